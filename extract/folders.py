"""A user's own folder of images, one sub-folder a class.

FOLDER/train/CLASS/*  FOLDER/test/CLASS/*     or     FOLDER/CLASS/* (all of it is the train split)
FOLDER/unlabelled/*   FOLDER/train/unlabelled/*      images without a label, part of the train split
"""

import os
from pathlib import Path

import numpy as np

from cspipe.extract.splits import Dataset, ImageSplit
from cspipe.store.errors import MissingDataError

Groups = list[tuple[int, list[Path]]]
UNLABELLED = "unlabelled"
EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".jp2"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
_LAYOUT = "{0}/train/CLASS/image.jpg and {0}/test/CLASS/image.jpg, or {0}/CLASS/image.jpg alone"


def _folders(folder: Path) -> list[Path]:
    """Sub-folders by name, hidden ones left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Image files anywhere below, sorted; links are followed, but no folder is entered twice."""
    if not folder.is_dir():
        return []
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for here, below, files in os.walk(folder, followlinks=True):
        about = Path(here).stat()
        if (about.st_dev, about.st_ino) in seen:
            below.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        names = (name for name in files if not name.startswith("."))
        found += [Path(here, name) for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return sorted(found)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    """Images of each class folder that has any."""
    classes = {path.name: _images(path) for path in _folders(folder) if path.name != UNLABELLED}
    return {name: images for name, images in classes.items() if images}


def _split(name: str, root: Path, labelled: Groups, unlabelled: list[Path]) -> ImageSplit:
    """A split of these files, labelled ones first."""
    groups = [*labelled, (-1, unlabelled)]
    files = [str(file) for _, images in groups for file in images]
    labels = np.repeat(np.array([label for label, _ in groups]), [len(images) for _, images in groups])
    names = [Path(file).relative_to(root).as_posix() for file in files]
    return ImageSplit(name, labels.astype(np.int64), names, lambda i: Path(files[i]).read_bytes())


def read_folder(folder: Path) -> Dataset:
    """List a folder of images.

    Hidden files and files that are no images are passed over. Class names are sorted; a class that only one
    split has counts all the same.

    Args:
        folder: the data set's folder; its name is the data set's name.

    Returns:
        Splits ``train`` and, where the folder has one, ``test``.

    Raises:
        MissingDataError: no class with an image in it.
    """
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link that carries the name
    in_splits = (root / "train").is_dir()
    train = _by_class(root / "train" if in_splits else root)
    test = _by_class(root / "test") if in_splits else {}
    if not train:
        expected = _LAYOUT.format(folder)
        raise MissingDataError(f"{root} has no class folder with images for training: expected {expected}")
    class_names = sorted(train.keys() | test.keys())
    number = {name: label for label, name in enumerate(class_names)}
    unlabelled = _images(root / UNLABELLED) + (_images(root / "train" / UNLABELLED) if in_splits else [])
    labelled = [(number[name], images) for name, images in train.items()]
    splits = {"train": _split("train", root, labelled, unlabelled)}
    if test:
        splits["test"] = _split("test", root, [(number[name], images) for name, images in test.items()], [])
    return Dataset(root.name, class_names, splits, str(root))
