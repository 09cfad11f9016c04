"""One chunk of tokens read and checked, and the caller's array that tokens are read into."""

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
