"""WebDataset tars: KEY.jpg or KEY.png beside KEY.cls, read in place; nothing is unpacked.

Members that are no images are passed over. An image without a ``.cls`` is unlabelled. Splits go by the names of
the tars and their folders; tars whose names say nothing are the train split.
"""

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cspipe.extract.folders import EXTENSIONS
from cspipe.extract.published import absolute, damaged, inside
from cspipe.extract.splits import Dataset, Image, ImageSplit, numbered_classes, split_of, train_and_test
from cspipe.extract.tables import class_order
from cspipe.store.errors import MissingDataError, SettingError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 512
_LABEL = ".cls"
_LONGEST_LABEL = 1024


@dataclass(frozen=True)
class _Sample:
    """One image: its tar, its name there, where its bytes lie, and its label, empty for none."""

    tar: Path
    name: str
    start: int
    size: int
    label: str


def _expanded(pattern: str) -> list[Path]:
    """The tars that a pattern means: ``{000..011}`` is a range of numbers, ``*`` whatever is there."""
    told = _RANGE.search(pattern)
    if told is None:
        magic = any(sign in pattern for sign in "*?[")
        return [Path(name) for name in sorted(glob.glob(pattern))] if magic else [Path(pattern)]  # noqa: PTH207
    first, last = told[1], told[2]
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [path for number in numbers for path in _expanded(pattern[: told.start()] + number + pattern[told.end() :])]


def _members(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Plain files of a tar, whole ones, whose names stay inside it."""
    size = tar.stat().st_size
    try:
        with tar.open("rb") as file:
            file.seek(-min(_BLOCK, size), 2)
            if size < 2 * _BLOCK or any(file.read()):
                raise damaged(tar, "it does not end as a tar does: cut short, or compressed (gunzip it)")
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                inside(member.name, tar)
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > size:
                        raise damaged(tar, f"{member.name} is cut short")
                    yield member
    except (tarfile.TarError, UnicodeError) as error:
        raise damaged(tar, str(error)) from error


def _key(name: str) -> tuple[str, str]:
    """Folder and name up to the first dot, and the extension from there on."""
    path = PurePosixPath(name)
    stem, dot, rest = path.name.partition(".")
    return (path.parent / stem).as_posix(), (dot + rest).lower()


def _label_text(tar: Path, member: tarfile.TarInfo) -> str:
    """What a ``.cls`` member says."""
    with tar.open("rb") as file:
        file.seek(member.offset_data)
        content = file.read(min(member.size, _LONGEST_LABEL + 1))
    text = content.decode("utf-8", "replace").strip()
    if len(content) > _LONGEST_LABEL or not text.isprintable():
        raise SettingError(f"{tar}: {member.name} is no class: it must be a whole number, or one line of text")
    return "" if text == "-1" else str(int(text)) if text.isdecimal() else text


def _samples(tar: Path) -> list[_Sample]:
    """The images of a tar, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    for member in _members(tar):
        key, extension = _key(member.name)
        if extension == _LABEL:
            labels[key] = _label_text(tar, member)
        elif extension in EXTENSIONS:
            if key in images:
                raise SettingError(f"{tar} holds two images of the name {key}: one sample has one image")
            images[key] = member
    return [
        _Sample(tar, member.name, member.offset_data, member.size, labels.get(key, ""))
        for key, member in images.items()
    ]


def _split(name: str, samples: Sequence[_Sample], class_names: list[str]) -> ImageSplit:
    number = {text: place for place, text in enumerate(class_names)} | {"": -1}

    def load(image: int) -> Image:
        sample = samples[image]
        with sample.tar.open("rb") as file:
            file.seek(sample.start)
            return file.read(sample.size)

    labels = np.array([number[sample.label] for sample in samples], np.int64)
    return ImageSplit(name, labels, [f"{sample.tar.name}/{sample.name}" for sample in samples], load)


def _name_of(path: Path) -> str:
    """A data set's name: the tar's, without what stands for a number."""
    return re.split(r"[*?\[{]", path.name.removesuffix(".tar"))[0].rstrip("-_. ") or path.absolute().parent.name


def read_tars(pattern: Path | str) -> Dataset:
    """List the images of tars.

    Args:
        pattern: a tar, a folder of tars, or a pattern such as ``shards/train-{000..011}.tar`` or ``shards/*.tar``.

    Returns:
        Split ``train`` and, where tars are named so, ``test``. Classes are the numbers up to the highest, or the
        texts of the ``.cls`` members, sorted.

    Raises:
        MissingDataError: a tar is not there, or there is no training image.
        SettingError: a tar is damaged, compressed, or names a file outside itself.
    """
    place = Path(pattern)
    tars = sorted(place.rglob("*.tar")) if place.is_dir() else _expanded(str(pattern))
    missing = next((tar for tar in tars if not tar.is_file()), None)
    if missing is not None or not tars:
        raise MissingDataError(f"no tar at {missing or pattern}: check the path and the range of numbers")
    found: dict[str, list[_Sample]] = {}
    for tar in map(absolute, tars):
        told = split_of(tar.relative_to(absolute(place)).as_posix() if place.is_dir() else tar.name)
        found.setdefault(told or "train", []).extend(_samples(tar))
    names = class_order({sample.label for samples in found.values() for sample in samples if sample.label})
    if names and all(name.isdecimal() for name in names):
        names = numbered_classes(int(names[-1]), pattern)
    parts = {split: _split(split, samples, names) for split, samples in found.items()}
    name = place.name if place.is_dir() else _name_of(place)
    return Dataset(name, names, train_and_test(parts, pattern), str(absolute(place)))
