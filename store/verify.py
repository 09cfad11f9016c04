"""Everything that can be wrong with a store, found without trusting any of it.

Every chunk file ends in a checksum, so a flipped bit shows in the file itself; what a file's own checksum
cannot show (a swapped, missing or foreign chunk, a torn table, a changed description) shows against the
commit records, the split's attributes and their seal. Damage is listed, never raised.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import commits
from cspipe.store.copies import HAS_COPY, copy_file, copy_problem
from cspipe.store.errors import DamageError, StoreError
from cspipe.store.files import PARTIAL, chunk_file, read_chunk_into
from cspipe.store.meta import ARRAYS, TABLE_CHUNK_ROWS, TABLES, check_format, read_group
from cspipe.store.remote import local_path
from cspipe.store.remotes import bring
from cspipe.store.table import Shape, journal_path, read_array

AGAIN = "run the same cspipe extract again"
REPAIR = "run cspipe store repair"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: the file or folder, relative to the store.
        what: what is wrong with it.
        hint: what to do.
    """

    where: str
    what: str
    hint: str


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sum_problem(path: Path, body_bytes: int | None = None) -> str | None:
    """What is wrong with a chunk file by its own checksum, or None."""
    size = max(_size(path) - 4, 0) if body_bytes is None else body_bytes
    try:
        read_chunk_into(path, np.empty(size, np.uint8))
    except DamageError as error:
        return error.what
    return None


def _expected_files(split: Path, rows: int, shape: Shape) -> set[Path]:
    """Every file that a finished split of so many rows consists of."""
    chunks, blocks = -(-rows // shape.per_chunk), -(-rows // TABLE_CHUNK_ROWS)
    files = {copy_file(split), split / "zarr.json", *(split / name / "zarr.json" for name in ARRAYS)}
    files |= {commits.embedding_file(split, chunk) for chunk in range(chunks)}
    files |= {commits.commit_file(split, chunk) for chunk in range(chunks)}
    for name, (_, _, columns) in TABLES.items():
        tail = () if columns is None else (0,)
        files |= {chunk_file(split / name, block, *tail) for block in range(blocks)}
    return files


def _foreign(folder: Path, expected: set[Path]) -> Iterator[tuple[Path, str, str]]:
    """Files that do not belong: left by a killed process, or by somebody else."""
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        if path in expected:
            continue
        if path.name.endswith((PARTIAL, commits.KEPT)) or path.name == "rewrite.journal":
            yield path, "a killed process left this file", AGAIN
        else:
            yield path, "this file does not belong to the store", "move it away"


def _documents(split: Path, attributes: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Descriptions of arrays that are not the ones written."""
    for name, recorded in sorted(attributes["metadata_sha256"].items()):
        path = split / name / "zarr.json"
        if not path.is_file():
            yield path, "the array's description is missing", REPAIR
        elif hashlib.sha256(path.read_bytes()).hexdigest() != recorded:
            yield path, "the array's description is not the one that was written", REPAIR


def _tables(split: Path, attributes: dict[str, Any], expected: set[Path]) -> Iterator[tuple[Path, str, str]]:
    """Table arrays whose files or values are not the ones written."""
    for name in TABLES:
        broken = False
        for path in sorted(path for path in expected if path.is_relative_to(split / name / "c")):
            wrong = _sum_problem(path)
            if wrong:
                broken = True
                yield path, wrong, REPAIR
        if broken:
            continue
        try:
            read_array(split, name, attributes)
        except DamageError as error:
            yield split / name, error.what, REPAIR


def _chunks(split: Path, attributes: dict[str, Any], shape: Shape) -> Iterator[tuple[Path, str, str]]:
    """Chunks that are missing, damaged, not where they belong, or not recorded as complete."""
    bad = _bad_rows(attributes)
    for chunk in range(-(-int(attributes["rows"]) // shape.per_chunk)):
        yield from _chunk(split, chunk, attributes, bad, shape)


def _bad_rows(attributes: dict[str, Any]) -> NDArray[np.int64]:
    """Numbers of the rows whose image could not be used, ascending."""
    return np.array(sorted(entry["row"] for entry in attributes["bad_images"]), np.int64)


def _chunk(
    split: Path, chunk: int, attributes: dict[str, Any], bad: NDArray[np.int64], shape: Shape
) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with one chunk."""
    start = chunk * shape.per_chunk
    end = min(int(attributes["rows"]), start + shape.per_chunk)
    data, record_file = commits.embedding_file(split, chunk), commits.commit_file(split, chunk)
    record = commits.read_record(split, chunk)
    if record is None and not data.is_file() and not attributes["complete"]:
        return  # not computed yet, which is told once for the whole split
    if record is None:
        wrong = "the chunk has data but no sound commit record" if data.is_file() else "the chunk is missing"
        yield record_file, wrong, REPAIR
        return
    if record[:2] != (start, end):
        yield record_file, f"it names rows {record[0]} to {record[1]}, not {start} to {end}", REPAIR
        return
    block = np.empty((shape.per_chunk, shape.width), shape.dtype)
    try:
        crc = read_chunk_into(data, block)
    except DamageError as error:
        yield data, error.what, REPAIR
        return
    nan_rows = np.flatnonzero(np.isnan(block[: end - start]).any(axis=1)) + start
    if crc != record[2]:
        yield data, "the chunk is not the one its commit record names: swapped or replaced", REPAIR
    elif not np.array_equal(nan_rows, bad[(bad >= start) & (bad < end)]):
        yield data, "its NaN rows are not the bad images in the split's attributes", REPAIR
    elif not np.isnan(block[end - start :]).all():
        yield data, "the rows beyond the last one are not NaN", REPAIR


def verify_chunk(store: Path, split: str, chunk: int) -> list[Problem]:
    """What is wrong with one chunk of a split; the time does not depend on the rows of the store.

    Raises:
        DamageError: a description is damaged.
    """
    root, attributes = read_group(store), read_group(store / split)
    shape = Shape(int(root["width"]), str(root["dtype"]), int(root["chunk_rows"]))
    found = _chunk(store / split, chunk, attributes, _bad_rows(attributes), shape)
    return [Problem(str(where.relative_to(store)), what, hint) for where, what, hint in found]


def _split_problems(split: Path, shape: Shape) -> Iterator[tuple[Path, str, str]]:
    """Everything wrong with one split."""
    try:
        attributes = read_group(split)
    except DamageError as error:
        yield error.path, error.what, REPAIR
        return
    expected = _expected_files(split, int(attributes["rows"]), shape)
    if not attributes["complete"]:
        done, count = commits.progress(split, int(attributes["rows"]), shape)
        yield split, f"extraction is not finished ({done} of {count} chunks)", AGAIN
    if "array_sha256" in attributes and not journal_path(split).is_file():
        yield from _documents(split, attributes)
        yield from _tables(split, attributes, expected)
        yield from _chunks(split, attributes, shape)
    wrong = copy_problem(split) if attributes["complete"] and attributes.get(HAS_COPY) else None
    if wrong:
        yield copy_file(split), wrong, REPAIR
    yield from _foreign(split, expected)


def _all_problems(store: Path) -> Iterator[tuple[Path, str, str]]:
    """Everything wrong with a store, split by split."""
    try:
        attributes = read_group(store)
        check_format(store, attributes)
    except DamageError as error:
        yield error.path, error.what, REPAIR
        return
    except StoreError as error:
        yield store / "zarr.json", str(error), "upgrade cspipe"
        return
    shape = Shape(int(attributes["width"]), str(attributes["dtype"]), int(attributes["chunk_rows"]))
    splits = {store / name for name in attributes["splits"]}
    splits |= {path.parent for path in store.glob("*/zarr.json")}
    if not splits:
        yield store, "extraction has not begun", AGAIN
    for split in sorted(splits):
        yield from _split_problems(split, shape)
    inside = {path for path in store.rglob("*") if splits.intersection(path.parents)}
    yield from _foreign(store, {store / "zarr.json"} | inside)


def verify_store(path: Path | str) -> list[Problem]:
    """List everything that is wrong with a store; an empty list means that all of it is sound.

    Finds flipped bits, missing, cut, foreign and swapped files, torn tables, chunks without a commit
    record and the reverse, unfinished splits, and what a killed process left.

    Args:
        path: the Zarr group, or its URL; what lies in a mirror is compared with the remote bytes first.

    Returns:
        The problems, in the order of splits and files. Damage is never raised.
    """
    store = local_path(path)
    bring(store, anew=True)
    return [Problem(str(where.relative_to(store)), what, hint) for where, what, hint in _all_problems(store)]
