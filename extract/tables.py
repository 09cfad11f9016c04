"""A user's own images as a table: ``.csv`` with paths and labels, or ``.npz`` with the pixels themselves."""

import csv
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.published import absolute, damaged
from cspipe.extract.splits import Dataset, ImageSplit, array_split, numbered_classes
from cspipe.store.errors import MissingDataError, SettingError

Row = tuple[str, str, str]


def class_order(names: set[str]) -> list[str]:
    """Class names in order: as numbers where all are whole numbers, else as texts.

    >>> class_order({"10", "9"}), class_order({"10", "9", "dog"})
    (['9', '10'], ['10', '9', 'dog'])
    """
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _rows(file: Path) -> list[Row]:
    """Path, label and split of every line.

    Raises:
        SettingError: the columns are not there, or a line has no path or an unknown split.
    """
    rows: list[Row] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            columns = [column.strip().lower() for column in reader.fieldnames or []]
            if not {"path", "label"} <= set(columns):
                listed = ", ".join(columns) or "none"
                raise SettingError(f"{file} needs a first line with the columns path and label; it has {listed}")
            reader.fieldnames = columns
            for line in reader:
                path, label, split = ((line.get(key) or "").strip() for key in ("path", "label", "split"))
                if not path or split not in ("", "train", "test"):
                    what = "no path" if not path else f"the split {split!r}: train, test or nothing"
                    raise SettingError(f"{file}, line {reader.line_num}, has {what}")
                rows.append((path, label, split or "train"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(file, str(error)) from error
    return rows


def _check_paths(file: Path, rows: list[Row]) -> None:
    """Refuse images that are listed twice or are not there."""
    seen: set[str] = set()
    for path, _, _ in rows:
        if path in seen:
            raise SettingError(f"{file} lists {path} twice: each image has one line")
        seen.add(path)
    missing = [path for path, _, _ in rows if not (file.parent / path).is_file()]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(rows)} images that {file} lists are not there, such as {missing[0]}: paths are "
            f"relative to {file.parent}"
        )


def read_csv(path: Path) -> Dataset:
    """List the images of a table with the columns ``path``, ``label`` and, where wanted, ``split``.

    Args:
        path: the table; image paths are relative to its folder. An empty label is an unlabelled image, an empty
            split is train.

    Returns:
        Split ``train`` and, where lines say so, ``test``.

    Raises:
        MissingDataError: no training image, or an image is not there.
        SettingError: columns are missing, or a line cannot be used.
    """
    file = absolute(path)
    rows = _rows(file)
    _check_paths(file, rows)
    class_names = class_order({label for _, label, _ in rows if label})
    number = {name: place for place, name in enumerate(class_names)} | {"": -1}

    def split(name: str, mine: list[Row]) -> ImageSplit:
        names, labels = [path for path, _, _ in mine], [number[label] for _, label, _ in mine]
        return ImageSplit(name, np.array(labels, np.int64), names, lambda i: (file.parent / names[i]).read_bytes())

    by_split = {name: [row for row in rows if row[2] == name] for name in ("train", "test")}
    splits = {name: split(name, mine) for name, mine in by_split.items() if mine}
    if "train" not in splits:
        raise MissingDataError(f"{file} lists no training image: leave the column split out, or write train there")
    return Dataset(file.stem, class_names, splits, str(file))


def _pixels(file: Path, name: str, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The array, once it is images."""
    grey, colour = pixels.ndim == 3, pixels.ndim == 4 and pixels.shape[-1] == 3
    if pixels.dtype != np.uint8 or not (grey or colour):
        raise SettingError(
            f"{file}: {name} is uint8 (N, H, W) or (N, H, W, 3); it is {pixels.dtype} {pixels.shape}. Convert it, "
            "such as (x * 255).astype('uint8') for values from 0 to 1"
        )
    return pixels.astype(np.uint8, copy=False)


def _labels(file: Path, name: str, labels: NDArray[np.generic], count: int) -> NDArray[np.int64] | NDArray[np.str_]:
    """The array `(N,)`, once it is whole numbers from -1 on, or texts."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iuU":
        raise SettingError(
            f"{file}: {name} is ({count},) whole numbers or texts, one an image; it is {labels.dtype} {labels.shape}"
        )
    if labels.dtype.kind == "U":
        return labels.reshape(count).astype(np.str_)
    if count and int(labels.min()) < -1:
        raise SettingError(f"{file}: {name} holds {labels.min()}; a label is a class number, or -1 for none")
    return labels.reshape(count).astype(np.int64)


def _arrays(file: Path) -> dict[str, NDArray[np.generic]]:
    """The named arrays of an .npz; pickled objects are refused."""
    try:
        with np.load(file, allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged(file, " ".join(str(error).split())[:200]) from error


def read_npz(path: Path) -> Dataset:
    """List the images of arrays ``images`` and ``labels``, and ``test_images`` and ``test_labels`` where there.

    Args:
        path: the file. Labels are class numbers, -1 for unlabelled, or texts, empty for unlabelled; an array
            ``class_names`` of texts names the numbers.

    Raises:
        MissingDataError: an array is missing.
        SettingError: the file is damaged, holds objects, or an array has another shape or type.
    """
    file = absolute(path)
    arrays = _arrays(file)
    pairs = {"train": ("images", "labels")}
    if "test_images" in arrays:
        pairs["test"] = ("test_images", "test_labels")
    missing = [name for pair in pairs.values() for name in pair if name not in arrays]
    if missing:
        raise MissingDataError(f"{file} has no array {missing[0]}; it has {', '.join(arrays) or 'none'}")
    pixels = {split: _pixels(file, names[0], arrays[names[0]]) for split, names in pairs.items()}
    labels = {split: _labels(file, names[1], arrays[names[1]], len(pixels[split])) for split, names in pairs.items()}
    class_names, numbers = _numbered(file, labels, arrays.get("class_names"))
    splits = {split: array_split(split, numbers[split], pixels[split].__getitem__) for split in pairs}
    return Dataset(file.stem, class_names, splits, str(file))


def _numbered(
    file: Path, labels: dict[str, NDArray[np.int64] | NDArray[np.str_]], names: NDArray[np.generic] | None
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Class names, and every split's labels as class numbers."""
    if len({value.dtype.kind for value in labels.values()}) > 1:
        raise SettingError(f"{file}: the labels of both splits are numbers, or both are texts")
    everything = np.concatenate(list(labels.values()))
    if everything.dtype.kind == "U":
        class_names = class_order({str(name) for name in np.unique(everything) if name})
        place = {name: number for number, name in enumerate(class_names)} | {"": -1}
        return class_names, {
            split: np.array([place[str(name)] for name in value], np.int64) for split, value in labels.items()
        }
    top = int(everything.max(initial=-1))
    class_names = numbered_classes(top, file) if names is None else [str(name) for name in names]
    if top >= len(class_names):
        raise SettingError(f"{file}: a label is {top}, but class_names has {len(class_names)} names")
    return class_names, {split: value.astype(np.int64) for split, value in labels.items()}
