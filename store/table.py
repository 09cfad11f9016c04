"""The row table of a split: what is known of each image, and its journalled rewriting.

A rewrite touches many files, so it goes through a journal: the whole new table and the new attributes
are written to one file, then the arrays are rewritten from it, then it is removed. A process killed in
between leaves either no journal (nothing has changed) or a whole one (the next writer starts over from
it); doing it twice does no harm.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import DamageError, StoreError
from cspipe.store.files import (
    fsync_tree,
    read_chunk_into,
    remove,
    told_where_full,
    with_trailer,
    write_atomic,
)
from cspipe.store.meta import (
    ARRAYS,
    NO_NUMBER,
    TABLE_CHUNK_ROWS,
    TABLES,
    array_document,
    canonical,
    write_documents,
    write_group,
)


@dataclass(frozen=True)
class Rows:
    """What is known of each row of a split; the row's number is its place.

    Attributes:
        sha256: `(N, 32)` uint8, hash of the image; all zero for a void row (see :mod:`cspipe.store.plan`).
        label: `(N,)` int64, -1 for unlabelled.
        path: N names, as the data set last showed them.
        present: `(N,)` bool, whether the data set still held the image at the last whole run.
    """

    sha256: NDArray[np.uint8]
    label: NDArray[np.int64]
    path: list[str]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    def same_as(self, other: "Rows") -> bool:
        """Whether every row agrees."""
        arrays = ((self.sha256, other.sha256), (self.label, other.label), (self.present, other.present))
        return self.path == other.path and all(np.array_equal(mine, its) for mine, its in arrays)

    def fingerprint(self) -> str:
        """SHA-256 over image and label of every row that is present, whatever their order."""
        both = np.concatenate([self.sha256, self.label.view(np.uint8).reshape(-1, 8)], axis=1)
        images = sorted(image.tobytes() for image in both[self.present])
        return hashlib.sha256(b"".join(images)).hexdigest()

    @staticmethod
    def none() -> "Rows":
        """The table of a split that has no rows yet."""
        empty = np.zeros(0, np.int64)
        return Rows(np.zeros((0, 32), np.uint8), empty, [], np.zeros(0, np.bool_))


@dataclass(frozen=True)
class Shape:
    """What the arrays of every split of a store share: token width, data type, rows a chunk."""

    width: int
    dtype: str
    per_chunk: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an embedding chunk, its checksum not counted."""
        return self.per_chunk * self.width * np.dtype(self.dtype).itemsize


def journal_path(split: Path) -> Path:
    """Where a table rewrite under way keeps its journal."""
    return split / "row_id" / "rewrite.journal"


def storable_paths(paths: Sequence[str]) -> list[str]:
    """Paths as valid Unicode: bytes a file system holds beyond it are spelled out with backslashes."""
    return [path.encode("utf-8", "backslashreplace").decode() for path in paths]


def array_sums(values: Mapping[str, NDArray[Any] | list[str]]) -> dict[str, str]:
    """SHA-256 of the content of each table array, by name."""
    sums = {}
    for name, value in values.items():
        data = canonical(value) if isinstance(value, list) else np.ascontiguousarray(value).tobytes()
        sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def as_arrays(rows: Rows) -> dict[str, NDArray[Any] | list[str]]:
    """The table's arrays by name."""
    number = np.arange(len(rows), dtype=np.int64)
    return {
        "label": rows.label,
        "row_id": number,
        "sha256": rows.sha256,
        "path": rows.path,
        "present": rows.present,
    }


def write_array(folder: Path, value: NDArray[Any] | list[str]) -> None:
    """Write one table array through Zarr, whole chunks, empty ones too; remove chunks beyond its end."""
    import zarr

    array = zarr.open_array(folder, mode="r+").with_config({"write_empty_chunks": True})
    with told_where_full(folder):
        if len(value):
            array[:] = np.asarray(value, dtype=np.dtypes.StringDType()) if isinstance(value, list) else value
    count = -(-len(value) // TABLE_CHUNK_ROWS)
    for entry in (folder / "c").glob("*"):
        if not entry.name.isdigit() or int(entry.name) >= count:
            for path in (entry, *entry.rglob("*")):
                if path.is_file():
                    remove(path)
    fsync_tree(folder)


def _apply(split: Path, rows: Rows, attributes: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Rewrite table arrays, descriptions and attributes; may be repeated after a crash at any point."""
    documents = {
        name: array_document(name, rows=len(rows), width=shape.width, dtype=shape.dtype, per_chunk=shape.per_chunk)
        for name in ARRAYS
    }
    write_documents(split, documents)
    values = as_arrays(rows)
    for name, value in values.items():
        write_array(split / name, value)
    sums = array_sums(values)
    described = {name: hashlib.sha256(data).hexdigest() for name, data in documents.items()}
    new = {
        **attributes,
        "rows": len(rows),
        "array_sha256": sums,
        "table_sha256": hashlib.sha256(canonical(sums)).hexdigest(),
        "metadata_sha256": described,
    }
    write_group(split, new)
    remove(journal_path(split))
    return new


def rewrite(split: Path, rows: Rows, attributes: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Replace the split's table and attributes, safe against a crash at any point.

    Args:
        split: the split's group.
        rows: the new table.
        attributes: the new attributes; row count and checksums are added.
        shape: width, data type and chunk rows of the store.

    Returns:
        The attributes as written.
    """
    packed = io.BytesIO()
    header = np.frombuffer(canonical({"attributes": attributes, "path": rows.path}), np.uint8)
    np.savez(packed, header=header, sha256=rows.sha256, label=rows.label, present=rows.present)
    write_atomic(journal_path(split), with_trailer(packed.getvalue()))
    return _apply(split, rows, attributes, shape)


def replay(split: Path, shape: Shape) -> None:
    """Finish a rewrite that was killed; nothing happens where there was none."""
    path = journal_path(split)
    if not path.is_file():
        return
    body = np.empty(max(path.stat().st_size - 4, 0), np.uint8)
    read_chunk_into(path, body)
    with np.load(io.BytesIO(body.tobytes()), allow_pickle=False) as packed:
        header = json.loads(packed["header"].tobytes())
        rows = Rows(packed["sha256"], packed["label"], header["path"], packed["present"])
    _apply(split, rows, header["attributes"], shape)


def read_array(split: Path, name: str, attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Read one table array and check it against the split's attributes.

    Args:
        split: the split's group.
        name: one of :data:`cspipe.store.meta.TABLES`.
        attributes: attributes of the split.

    Returns:
        `(N,)` or `(N, 32)` values; paths as an array of ``object``.

    Raises:
        StoreError: a chunk is damaged, missing, or not the one that was written.
    """
    import zarr

    folder = split / name
    try:
        values: NDArray[Any] = np.asarray(zarr.open_array(folder, mode="r")[...])
    except Exception as error:  # damage reaches the codecs as errors of every kind
        raise DamageError(folder, f"the array cannot be read ({type(error).__name__}: {error})") from error
    if TABLES[name][1] == NO_NUMBER and bool((values == NO_NUMBER).any()):
        raise DamageError(folder, "rows are missing (they hold the fill value)")
    content: NDArray[Any] | list[str] = [str(path) for path in values] if name == "path" else values
    if array_sums({name: content})[name] != attributes["array_sha256"][name]:
        raise DamageError(folder, "the values do not match the checksum in the split's attributes")
    return np.array(content, dtype=object) if isinstance(content, list) else values


def read_rows(split: Path, attributes: Mapping[str, Any]) -> Rows:
    """Read the whole row table, checked.

    Raises:
        StoreError: an array is damaged.
    """
    if "array_sha256" not in attributes:
        raise StoreError(f"{split} has no row table yet: run the same cspipe extract again")
    arrays = {name: read_array(split, name, attributes) for name in TABLES if name != "row_id"}
    return Rows(arrays["sha256"], arrays["label"], list(arrays["path"]), arrays["present"])
