"""What a data set is: splits that hand out one image at a time, and what is known before any file is opened."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import MissingDataError, SettingError

Image = bytes | NDArray[np.uint8]
Load = Callable[[int], Image]

_MOST_CLASSES = 100_000
_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised", "extra"),
}


@dataclass(frozen=True)
class ImageSplit:
    """One split: ``load(i)`` gives what is hashed and decoded, the bytes of a file or a uint8 array.

    Attributes:
        name: ``"train"`` or ``"test"``.
        labels: `(N,)` int64, class numbers, -1 for unlabelled.
        paths: N names, relative to the data set.
        load: image number to bytes or to an array `(H, W)` or `(H, W, 3)`; callable from any thread. An image
            that cannot be read is an OSError.
    """

    name: str
    labels: NDArray[np.int64]
    paths: list[str]
    load: Load

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
class PublishedFile:
    """A file as its authors published it; ``md5`` is hexadecimal, None where no sum was published."""

    name: str
    md5: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the registry; all but ``read`` is known before any file is opened.

    Attributes:
        name: what the user types.
        read: lists it from a folder, or from where it is kept or downloaded where that is None.
        train: labelled training images.
        test: test images.
        classes: how many.
        side_px: side of the images, pixels.
        where: who hands out the files, in a word or two.
        words: what it is.
        url: where they are described.
        files: the published files; those with a sum are checked.
        unlabelled: training images without a label.
    """

    name: str
    read: "Callable[[DatasetSpec, Path | None], Dataset]"
    train: int
    test: int
    classes: int
    side_px: int
    where: str
    words: str
    url: str
    files: tuple[PublishedFile, ...] = ()
    unlabelled: int = 0


def split_of(name: str) -> str | None:
    """Which split a file's name or folder speaks of, the innermost word counting.

    >>> split_of("data/train-00000-of-00001.parquet"), split_of("test/shard-1.tar"), split_of("dev/train_2.tar")
    ('train', 'test', 'train')
    >>> split_of("shards/0001.tar") is None
    True
    """
    path = PurePosixPath(name)
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            for split, words in _WORDS.items():
                if word in words:
                    return split
    return None


def joined(parts: Sequence[ImageSplit]) -> ImageSplit:
    """Several lists of images as one split, one after the other, under the first one's name."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([len(part) for part in parts])

    def load(image: int) -> Image:
        part = int(np.searchsorted(ends, image, side="right"))
        return parts[part].load(image - int(ends[part]) + len(parts[part]))

    labels = np.concatenate([part.labels for part in parts])
    return ImageSplit(parts[0].name, labels, [path for part in parts for path in part.paths], load)


def array_split(name: str, labels: NDArray[np.int64], load: Load, *, folder: str | None = None) -> ImageSplit:
    """A split of images that have numbers, not names."""
    return ImageSplit(name, labels, [f"{folder or name}/{image:05d}" for image in range(len(labels))], load)


def train_and_test(parts: Mapping[str, ImageSplit], source: Path | str) -> dict[str, ImageSplit]:
    """Splits as their files name them made into ``train`` and, where there is a labelled one, ``test``.

    Unlabelled images come last in train. A validation split is the test split where there is no other labelled
    one, and else left out.

    Raises:
        MissingDataError: there is no training image.
    """
    train = [parts[name] for name in ("train", "unlabelled") if name in parts and len(parts[name])]
    if not train:
        raise MissingDataError(
            f"{source} holds no training images, as every file's name speaks of another split: fetch or name those too"
        )
    splits = {"train": replace(joined(train), name="train")}
    judged = (parts[name] for name in ("test", "validation") if name in parts and (parts[name].labels >= 0).any())
    test = next(judged, None)
    return splits if test is None else splits | {"test": replace(test, name="test")}


def numbered_classes(top: int, source: Path | str) -> list[str]:
    """Names of the classes 0 to ``top``.

    Raises:
        SettingError: so many cannot be meant.
    """
    if top >= _MOST_CLASSES:
        raise SettingError(
            f"{source} holds the label {top}: class numbers count from 0 and end below {_MOST_CLASSES:,}"
        )
    return [str(number) for number in range(top + 1)]
