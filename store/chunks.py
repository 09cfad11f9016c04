"""One chunk of tokens read and checked, what of it is not flagged, and the caller's array that tokens are read into."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import commits
from cspipe.store.errors import DamageError, SettingError
from cspipe.store.files import read_chunk_into
from cspipe.store.table import Shape


def room_for(rows: int, shape: Shape, out: NDArray[Any] | None) -> NDArray[Any]:
    """``out``, or a new `(rows, D)` array of the stored type.

    Raises:
        SettingError: ``out`` is of another shape or type, or cannot be written.
    """
    wanted, dtype = (rows, shape.width), np.dtype(shape.dtype)
    if out is None:
        return np.empty(wanted, dtype)
    if out.shape != wanted or out.dtype != dtype or not out.flags.writeable:
        raise SettingError(f"out is a writable {wanted} array of {dtype} here; got {out.shape} {out.dtype}")
    return out


def read_chunk(split: Path, chunk: int, rows: int, shape: Shape, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Read the first ``rows`` rows of a chunk, checked against its own sum and its commit record.

    Args:
        split: the split's group.
        chunk: number of the chunk.
        rows: how many of its rows the split has.
        shape: width, data type and chunk rows of the store.
        out: contiguous `(rows, D)` array to read into, or None for a new one.

    Returns:
        `(rows, D)` tokens.

    Raises:
        StoreError: the file or its record is missing, damaged, or they do not belong together.
    """
    tokens = np.empty((rows, shape.width), shape.dtype) if out is None else out
    path, first = commits.embedding_file(split, chunk), chunk * shape.per_chunk
    record = commits.read_record(split, chunk)
    if record is None:
        raise DamageError(commits.commit_file(split, chunk), "the commit record is missing or damaged")
    rest = np.empty((shape.per_chunk - rows, shape.width), shape.dtype)
    crc = read_chunk_into(path, tokens, rest)
    if record != (first, first + rows, crc):
        raise DamageError(path, f"chunk {chunk} is not the one its commit record names")
    return tokens


def read_good_rows(split: Path, chunk: int, good: NDArray[np.bool_], shape: Shape) -> NDArray[Any]:
    """The good rows of a chunk; runs on a dask worker."""
    tokens = read_chunk(split, chunk, len(good), shape)
    return tokens if good.all() else tokens[good]


def read_good(
    split: Path, chunk: int, good: NDArray[np.bool_], bad: NDArray[np.int64], shape: Shape, target: NDArray[Any]
) -> None:
    """Read the rows of a chunk that are not flagged, straight into place where none is.

    Args:
        split: the split's group.
        chunk: number of the chunk.
        good: `(rows of the chunk,)` which are not flagged.
        bad: row numbers of all images of the split that could not be used.
        shape: width, data type and chunk rows of the store.
        target: `(good rows of the chunk, D)`, filled.

    Raises:
        StoreError: as for :func:`read_chunk`, or other rows than those of the bad images are NaN.
    """
    direct = bool(good.all()) and target.flags.c_contiguous
    tokens = read_chunk(split, chunk, len(good), shape, target if direct else None)
    start = chunk * shape.per_chunk
    known = np.zeros(len(good), np.bool_)
    known[bad[(bad >= start) & (bad < start + len(good))] - start] = True
    if not np.array_equal(np.isnan(tokens[:, 0]), known):
        path = commits.embedding_file(split, chunk)
        raise DamageError(path, "its NaN rows are not the bad images that the split's attributes list")
    if not direct:
        target[...] = tokens[good]


def ends_of_chunks(good: NDArray[np.bool_], per_chunk: int) -> NDArray[np.int64]:
    """Rows that are not flagged up to the end of each chunk.

    >>> ends_of_chunks(np.array([True, False, True, True, True]), 2).tolist()
    [1, 3, 4]
    """
    ends = np.minimum(np.arange(per_chunk, len(good) + per_chunk, per_chunk), len(good))
    counted: NDArray[np.int64] = np.cumsum(good, dtype=np.int64)
    at_end: NDArray[np.int64] = counted[ends - 1]
    return at_end


def take_rows(
    split: Path,
    place: NDArray[np.int64],
    ends: NDArray[np.int64],
    good: NDArray[np.bool_],
    bad: NDArray[np.int64],
    shape: Shape,
) -> NDArray[Any]:
    """Read some rows that are not flagged; one chunk is in memory at a time.

    Args:
        split: the split's group.
        place: numbers of the rows among those that are not flagged, in any order.
        ends: as :func:`ends_of_chunks` gives them.
        good: `(all rows,)` which are not flagged.
        bad: row numbers of the images that could not be used.
        shape: width, data type and chunk rows of the store.

    Returns:
        `(len(place), D)` tokens in the order named.

    Raises:
        StoreError: as for :func:`read_good`.
    """
    out = room_for(len(place), shape, None)
    chunk_of = np.searchsorted(ends, place, side="right")
    for chunk in np.unique(chunk_of).tolist():
        first, start = int(ends[chunk - 1]) if chunk else 0, chunk * shape.per_chunk
        tokens = room_for(int(ends[chunk]) - first, shape, None)
        read_good(split, chunk, good[start : start + shape.per_chunk], bad, shape, tokens)
        mine = chunk_of == chunk
        out[mine] = tokens[place[mine] - first]
    return out
