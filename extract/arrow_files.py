"""Images in parquet and arrow files, as the Hugging Face hub keeps them: data alone, no code is run.

An image is a struct of ``bytes`` and ``path``, or the bytes themselves; the path inside is never opened.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.published import damaged
from cspipe.extract.splits import Image, Load, numbered_classes
from cspipe.store.errors import MissingDataError, SettingError

_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_GROUPS_IN_MEMORY = 8
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class _File:
    """A file with its schema; ``column(name)`` reads a column, ``groups`` the rows of each part that is read at once.

    ``group(number, name)`` reads a column of one part.
    """

    path: Path
    schema: Any
    groups: list[int]
    column: Callable[[str], Any]
    group: Callable[[int, str], Any]


@dataclass(frozen=True)
class ArrowImages:
    """Images of one split; ``labels`` are numbers, texts or None, ``class_names`` None where the file has none."""

    labels: list[int | str | None]
    class_names: list[str] | None
    paths: list[str]
    load: Load


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingDataError(f"{path} needs pyarrow: run pip install 'content-style-pipeline[datasets]'") from error


def _open_parquet(path: Path) -> _File:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]

    def column(name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
        return file.read(columns=[name]).column(0)

    def group(number: int, name: str) -> Any:  # noqa: ANN401
        return parquet.ParquetFile(path).read_row_group(number, columns=[name]).column(0)

    return _File(path, file.schema_arrow, groups, column, group)


def _open_arrow(path: Path) -> _File:
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        table = pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(source).read_all()
    return _File(path, table.schema, [len(table)], table.column, lambda number, name: table.column(name))


def _open(path: Path) -> _File:
    """A parquet or arrow file.

    Raises:
        MissingDataError: pyarrow is not installed, or the file is a pointer to one that was not fetched.
        SettingError: it is damaged or of another kind.
    """
    _need_pyarrow(path)
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise MissingDataError(f"{path} is only a pointer of Git LFS: run git lfs pull in its folder")
    try:
        return _open_parquet(path) if path.suffix == ".parquet" else _open_arrow(path)
    except Exception as error:  # pyarrow has many kinds of error for a damaged file
        raise damaged(path, " ".join(str(error).split())[:200]) from error


def _features(schema: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """What the hub's library wrote of each column, empty where it wrote nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: told for name, told in features.items() if isinstance(told, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(kind: str, file: _File, marked: list[str], usual: Sequence[str]) -> str | None:
    """The column that is marked as of that kind, or has one of the usual names."""
    names = list(file.schema.names)
    for name in usual:
        if name in marked or (not marked and name in names):
            return name
    if len(marked) > 1:
        listed = ", ".join(marked)
        raise SettingError(
            f"{file.path} has several {kind} columns ({listed}): rename the one that is meant to {usual[0]}"
        )
    return marked[0] if marked else None


def _image_column(file: _File) -> str:
    import pyarrow

    features = _features(file.schema)
    marked = [name for name, told in features.items() if told.get("_type") == "Image"] or [
        field.name
        for field in file.schema
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    name = _named("image", file, marked, _IMAGE_COLUMNS)
    if name is None:
        columns = ", ".join(file.schema.names)
        raise SettingError(f"{file.path} has no column of images (its columns: {columns}): one must be called image")
    return name


def _label_column(file: _File) -> tuple[str | None, list[str] | None]:
    """Name of the column of labels, and the class names that the file gives."""
    features = _features(file.schema)
    marked = [name for name, told in features.items() if told.get("_type") == "ClassLabel"]
    name = _named("label", file, marked, _LABEL_COLUMNS)
    names = features.get(name or "", {}).get("names")
    return name, [str(each) for each in names] if names else None


def _bytes_of(value: Any, path: Path) -> bytes:  # noqa: ANN401
    """The bytes of one image cell."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise OSError(f"the image's bytes are not in {path}")
    return content


def _loader(files: list[_File], columns: list[str]) -> Load:
    """A function that gives the i-th image's bytes; a few parts are kept, as images are mostly read in order."""
    parts = [(file, group, rows) for file, _ in enumerate(files) for group, rows in enumerate(files[file].groups)]
    ends = np.cumsum([rows for _, _, rows in parts])

    @lru_cache(maxsize=_GROUPS_IN_MEMORY)
    def cells(part: int) -> Any:  # noqa: ANN401
        file, group, _ = parts[part]
        try:
            return files[file].group(group, columns[file])
        except Exception as error:  # pyarrow has many kinds of error for a damaged file
            raise damaged(files[file].path, " ".join(str(error).split())[:200]) from error

    def load(image: int) -> Image:
        part = int(np.searchsorted(ends, image, side="right"))
        row = image - int(ends[part]) + parts[part][2]
        return _bytes_of(cells(part)[row].as_py(), files[parts[part][0]].path)

    return load


def read_arrow(paths: Sequence[Path], root: Path) -> ArrowImages:
    """List the images of a split.

    Args:
        paths: its parquet or arrow files, in order.
        root: what names are relative to.

    Raises:
        MissingDataError: pyarrow is not installed.
        SettingError: a file is damaged, or has no column of images.
    """
    files = [_open(path) for path in paths]
    columns = [_image_column(file) for file in files]
    labels: list[int | str | None] = []
    class_names: list[str] | None = None
    names = []
    for file in files:
        rows = sum(file.groups)
        label, given = _label_column(file)
        class_names = class_names or given
        labels += file.column(label).to_pylist() if label else [None] * rows
        names += [f"{file.path.relative_to(root).as_posix()}/{row:06d}" for row in range(rows)]
    return ArrowImages(labels, class_names, names, _loader(files, columns))


def numbered(values: Sequence[int | str | None], class_names: list[str], source: Path) -> NDArray[np.int64]:
    """Labels as class numbers `(N,)`: texts by their place in ``class_names``, None and negative ones -1.

    Raises:
        SettingError: a label is of no class.
    """
    place = {name: number for number, name in enumerate(class_names)}
    numbers = np.full(len(values), -1, np.int64)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        number = place.get(value, len(place)) if isinstance(value, str) else int(value)
        if number >= len(class_names):
            raise SettingError(f"{source}: row {row} has the label {value!r}, but there are {len(class_names)} classes")
        numbers[row] = max(number, -1)
    return numbers


def classes_of(values: Sequence[int | str | None], source: Path) -> list[str]:
    """Class names that labels imply: texts sorted, or the numbers from 0 to the highest.

    Raises:
        SettingError: labels are neither whole numbers nor texts alone.
    """
    given = {value for value in values if value is not None and value != ""}
    if all(isinstance(value, int) for value in given):
        return numbered_classes(max((int(value) for value in given), default=-1), source)
    if not all(isinstance(value, str) for value in given):
        raise SettingError(f"{source}: labels are whole numbers or texts, nothing else: mend the label column")
    return sorted(str(value) for value in given)
