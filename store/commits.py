"""Which chunks are complete: the commit record, apart from the data and itself checksummed.

One 24-byte record a chunk, ``[first_row, end_row, crc32c of the embedding chunk]``, is written only after
the chunk file is durable. A chunk counts as committed when its record is sound and the chunk file's own
trailer names the same checksum. So a chunk file without a record is never read, and a record that does
not fit its file is none.

Extending the last, partial chunk replaces a file that is committed already. Its former file is first
copied to ``<name>.kept`` in the same folder; it goes when the new record is durable. A process killed
between the two renames leaves the old record, the new file and the kept copy: the next writer puts the
copy back (:func:`roll_back`), and the split is again as it was before the extension. No committed row is
lost, or computed twice. Where the copy is missing too, the trailer differs from the record: the whole
chunk counts as not committed, and its rows are planned anew.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import StoreError
from cspipe.store.files import (
    move,
    read_chunk_into,
    read_trailer,
    remove,
    write_atomic,
    write_chunk,
)
from cspipe.store.table import Shape

KEPT = ".kept"


def embedding_file(split: Path, chunk: int) -> Path:
    """The file of an embedding chunk."""
    return Path(f"{split}/embedding/c/{chunk}/0")


def commit_file(split: Path, chunk: int) -> Path:
    """The file of a chunk's commit record."""
    return Path(f"{split}/commit/c/{chunk}/0")


def write_record(split: Path, chunk: int, first_row: int, end_row: int, crc: int) -> None:
    """Declare rows `[first_row, end_row)` of a chunk complete, durably."""
    write_chunk(commit_file(split, chunk), np.array([first_row, end_row, crc], "<i8"))


def read_record(split: Path, chunk: int) -> tuple[int, int, int] | None:
    """``(first_row, end_row, crc)`` of a chunk, or None where there is no sound record."""
    record = np.empty(3, "<i8")
    try:
        read_chunk_into(commit_file(split, chunk), record)
    except StoreError:
        return None
    return int(record[0]), int(record[1]), int(record[2])


def committed_end(split: Path, chunk: int, shape: Shape) -> int:
    """First row of the chunk that is not committed; the chunk's first row where none is."""
    first = chunk * shape.per_chunk
    record = read_record(split, chunk)
    if record is None or record[0] != first or not first < record[1] <= first + shape.per_chunk:
        return first
    trailer = read_trailer(embedding_file(split, chunk), shape.chunk_bytes)
    return record[1] if trailer == record[2] else first


def recorded_chunks(split: Path) -> list[int]:
    """Numbers of the chunks that have a data file or a commit record, whether sound or not."""
    folders = [*(split / "commit" / "c").glob("*"), *(split / "embedding" / "c").glob("*")]
    return sorted({int(path.name) for path in folders if path.name.isdigit()})


def committed_ends(split: Path, shape: Shape) -> NDArray[np.int64]:
    """:func:`committed_end` of every chunk up to the last committed one, `(C,)`."""
    ends = {chunk: committed_end(split, chunk, shape) for chunk in recorded_chunks(split)}
    count = 1 + max((c for c, end in ends.items() if end > c * shape.per_chunk), default=-1)
    return np.array([ends.get(c, c * shape.per_chunk) for c in range(count)], np.int64)


def keep_former(path: Path) -> None:
    """Keep a copy of a committed chunk file that is about to be replaced."""
    write_atomic(path.with_name(path.name + KEPT), path.read_bytes())


def drop_former(path: Path) -> None:
    """Remove the copy that :func:`keep_former` made, once the new record is durable."""
    remove(path.with_name(path.name + KEPT))


def roll_back(split: Path, shape: Shape) -> None:
    """Settle extensions that were killed: the new chunk where its record was written, else the former."""
    for kept in (split / "embedding").rglob(f"*{KEPT}"):
        path = kept.with_name(kept.name.removesuffix(KEPT))
        chunk = int(path.parent.name)
        record = read_record(split, chunk)
        is_former = record is not None and read_trailer(kept, shape.chunk_bytes) == record[2]
        if is_former and committed_end(split, chunk, shape) == chunk * shape.per_chunk:
            move(kept, path)
        else:
            remove(kept)


def discard(split: Path, chunks: list[int]) -> None:
    """Remove data and records of chunks that are about to be planned anew, or are no longer there."""
    for chunk in chunks:
        remove(commit_file(split, chunk))
        remove(embedding_file(split, chunk))


def progress(split: Path, rows: int, shape: Shape) -> tuple[int, int]:
    """``(k, n)``: how many of the split's chunks are committed to their end."""
    count = -(-rows // shape.per_chunk)
    ends = [min((chunk + 1) * shape.per_chunk, rows) for chunk in range(count)]
    return sum(committed_end(split, chunk, shape) == end for chunk, end in enumerate(ends)), count


def write_embedding(split: Path, chunk: int, first_row: int, tokens: NDArray[Any], shape: Shape) -> None:
    """Write the chunk's file, keeping its rows before ``first_row``, then its commit record.

    Args:
        split: the split's group.
        chunk: number of the chunk.
        first_row: row of the first token; the chunk's rows before it are committed.
        tokens: `(n, D)` in the stored type.
        shape: width, data type and chunk rows of the store.

    Raises:
        StoreError: the rows to keep are damaged.
    """
    path, start = embedding_file(split, chunk), chunk * shape.per_chunk
    end_row, extends = first_row + len(tokens), first_row > start
    block = np.full((shape.per_chunk, shape.width), np.nan, shape.dtype)
    if extends:
        read_chunk_into(path, block)  # as large as ever; rows beyond the kept ones are NaN
        keep_former(path)
    block[first_row - start : end_row - start] = tokens
    block[end_row - start :] = np.nan
    crc = write_chunk(path, block)
    write_record(split, chunk, start, end_row, crc)
    if extends:
        drop_former(path)
