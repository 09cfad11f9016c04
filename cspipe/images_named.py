"""The images that a user names: files, folders and patterns, as one list and as a data set of one split."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cspipe.extract.folders import EXTENSIONS
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit
from cspipe.store.errors import MissingDataError

PREDICTED = "predicted"
"""Name of the data set of everything that was ever predicted, of its folder below the stores, and of its split."""


def find_images(named: Sequence[str]) -> list[str]:
    """Paths of the images, in the order named, each once.

    A file that is named is taken whatever its suffix; of a folder all files below that have an image's suffix.

    Raises:
        MissingDataError: a name that is nothing, or a folder without an image.
    """
    found: dict[str, None] = {}
    for name in named:
        places = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207
        images = [image for place in places for image in (below(place) if Path(place).is_dir() else [place])]
        if not images:
            what = "no image" if places else "nothing"
            raise MissingDataError(f"there is {what} at {name}: name image files, folders, or a pattern in quotes.")
        found |= dict.fromkeys(images)
    return list(found)


def below(folder: str) -> list[str]:
    """Image files anywhere below a folder, sorted; hidden ones are left out."""
    images = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in sorted(files) if not name.startswith("."))
        images += [str(Path(here, name)) for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return images


def as_dataset(paths: Sequence[str]) -> DatasetSpec:
    """Those images as a data set: one split, no labels, no classes."""

    def read(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
        labels = np.full(len(paths), -1, np.int64)
        split = ImageSplit(PREDICTED, labels, list(paths), lambda image: Path(paths[image]).read_bytes())
        return Dataset(PREDICTED, [], {PREDICTED: split}, "images named to cspipe predict")

    return DatasetSpec(
        name=PREDICTED, read=read, train=0, test=0, classes=0, side_px=0, where="this machine",
        words="images named to cspipe predict", url="",
    )  # fmt: skip
