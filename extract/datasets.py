"""Registry of data sets: names to splits, classes and how to read an image; folders of the user's own too.

Listing is cheap: nothing is decoded before it is needed, and a split hands out one image at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import MissingDataError, UnknownNameError, unknown_name


@dataclass(frozen=True)
class ImageSplit:
    """One split: ``load(i)`` gives what is hashed and decoded, the bytes of a file or a uint8 array.

    Attributes:
        name: ``"train"`` or ``"test"``.
        labels: `(N,)` int64, class numbers, -1 for unlabelled.
        paths: N names, relative to the data set.
        load: image number to bytes or to an array `(H, W)` or `(H, W, 3)`; callable from any thread.
    """

    name: str
    labels: NDArray[np.int64]
    paths: list[str]
    load: Callable[[int], "bytes | NDArray[np.uint8]"]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Dataset:
    """Splits and class names of a data set; ``source`` says where it was read, advisory."""

    name: str
    class_names: list[str]
    splits: Mapping[str, ImageSplit]
    source: str


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the registry: ``read(data_dir)`` lists it, ``words`` say what it is."""

    name: str
    read: Callable[[Path | None], Dataset]
    words: str


def _digits(data_dir: Path | None) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, stratified 80/20, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    label = bunch.target.astype(np.int64)
    halves = train_test_split(np.arange(len(label)), test_size=0.2, stratify=label, random_state=0)

    def split(name: str, images: NDArray[np.int64]) -> ImageSplit:
        paths = [f"digits/{image:05d}" for image in images]
        return ImageSplit(name, label[images], paths, lambda i: pixels[images[i]])

    train, test = (np.sort(half) for half in halves)
    splits = {"train": split("train", train), "test": split("test", test)}
    return Dataset("digits", [str(digit) for digit in range(10)], splits, "scikit-learn load_digits")


def _mnist(data_dir: Path | None) -> Dataset:
    from cspipe.extract.mnist import read_mnist

    return read_mnist(data_dir)


def _striped(colour: str) -> Callable[[Path | None], Dataset]:
    def read(data_dir: Path | None) -> Dataset:
        from cspipe.extract.mnist import read_striped

        return read_striped(data_dir, colour)

    return read


DATASETS: Mapping[str, DatasetSpec] = MappingProxyType(
    {
        "digits": DatasetSpec("digits", _digits, "1,797 handwritten digits of 8 px, part of scikit-learn"),
        "mnist": DatasetSpec("mnist", _mnist, "70,000 handwritten digits of 28 px"),
        "mnist-white-stripes": DatasetSpec(
            "mnist-white-stripes", _striped("white"), "MNIST under oblique white stripes, a re-creation"
        ),
        "mnist-yellow-stripes": DatasetSpec(
            "mnist-yellow-stripes", _striped("yellow"), "MNIST under oblique yellow stripes, a re-creation"
        ),
    }
)


def load_dataset(name_or_folder: str | Path, *, data_dir: Path | None = None) -> Dataset:
    """List a data set by its name, or a folder of images by its path.

    Args:
        name_or_folder: a name in ``DATASETS``, else a folder (``./digits`` is one, ``digits`` is not).
        data_dir: where the files of a named data set lie; also where a folder is looked for.

    Returns:
        Its splits, classes and source.

    Raises:
        UnknownNameError: neither a known name nor a folder.
        MissingDataError: a folder without classes, a data set whose files are not there.
        SettingError: files that are damaged.
    """
    name = str(name_or_folder)
    if name in DATASETS:
        return DATASETS[name].read(data_dir)
    candidates = [Path(name).expanduser()] + ([data_dir / name] if data_dir is not None else [])
    for folder in candidates:
        if folder.is_dir():
            from cspipe.extract.folders import read_folder

            return read_folder(folder)
    if len(Path(name).parts) > 1:
        raise MissingDataError(f"no folder at {candidates[0]}: give a folder of images, or a data set's name")
    error = unknown_name("dataset", name, DATASETS)
    raise UnknownNameError(f"{error} A folder of images works too, but there is none at {name}.")
