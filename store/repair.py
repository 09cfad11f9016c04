"""Mending a store from what it holds itself: descriptions from their copies, tables from equal ones, lone sums.

What needs the images (tokens, tables that nothing in the store repeats) is done by
:mod:`cspipe.extract.recompute`. Nothing here guesses: a description must fit its seal, a table its recorded
SHA-256, a chunk its commit record. The caller holds the store's lock, except of :func:`repair_store`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import commits
from cspipe.store.copies import copied, copy_file, copy_problem, refresh_copies, root_from_copies
from cspipe.store.errors import DamageError, StoreError
from cspipe.store.files import remove, with_trailer, write_atomic, write_chunk
from cspipe.store.lock import StoreLock
from cspipe.store.meta import TABLES, array_document, read_group, write_group
from cspipe.store.opening import settle
from cspipe.store.remote import local_path
from cspipe.store.table import Shape, array_sums, read_array, write_array
from cspipe.store.verify import Problem, verify_store

Values = NDArray[Any] | list[str]


@dataclass(frozen=True)
class Mended:
    """A file or array that is as it was again, relative to the store, and how it was mended."""

    where: str
    how: str


def shape_of(root: Mapping[str, Any]) -> Shape:
    """What the arrays of every split of a store with these attributes share."""
    return Shape(int(root["width"]), str(root["dtype"]), int(root["chunk_rows"]))


def splits_of(store: Path, root: Mapping[str, Any]) -> list[Path]:
    """Groups of the splits that the root names or that lie there."""
    return sorted({store / name for name in root["splits"]} | {path.parent for path in store.glob("*/zarr.json")})


def damaged_chunks(store: Path, problems: list[Problem]) -> dict[str, list[int]]:
    """Numbers of the chunks of each split that are not sound, among these problems."""
    found: dict[str, set[int]] = {}
    for problem in problems:
        parts = Path(problem.where).parts
        if len(parts) == 5 and parts[1] in ("embedding", "commit") and parts[2] == "c" and parts[3].isdigit():
            found.setdefault(parts[0], set()).add(int(parts[3]))
    held: dict[str, list[int]] = {}
    for split, chunks in found.items():
        try:
            rows = int(read_group(store / split)["rows"])
            count = -(-rows // shape_of(read_group(store)).per_chunk)
        except DamageError:
            continue
        held[split] = sorted(chunk for chunk in chunks if chunk < count)
    return {split: chunks for split, chunks in held.items() if chunks}


def damaged_tables(split: Path) -> list[str]:
    """Names of the split's tables that cannot be read as they were written."""
    attributes, bad = read_group(split), []
    for name in TABLES:
        try:
            read_array(split, name, attributes)
        except DamageError:
            bad.append(name)
    return bad


def put_back(split: Path, name: str, values: Values) -> bool:
    """Write a table array where these values are those that were recorded; whether they were."""
    attributes = read_group(split)
    if array_sums({name: values})[name] != attributes["array_sha256"][name]:
        return False
    write_array(split / name, values)
    return True


def mend(store: Path) -> list[Mended]:
    """Mend everything that needs neither images nor weights; what it could not mend, verify still lists.

    Args:
        store: the Zarr group; its lock is held by the caller.

    Raises:
        DamageError: the root's description is damaged and there is no copy of it.
    """
    done = list(_root(store))
    root = read_group(store)
    shape = shape_of(root)
    for split in splits_of(store, root):
        done += _group(store, split)
    settle(store, shape)
    for split in splits_of(store, root):
        try:
            attributes = read_group(split)
        except DamageError:
            continue
        if "array_sha256" in attributes:
            done += _documents(store, split, attributes, shape)
            done += _tables(store, split, attributes)
            done += _sums(store, split, attributes, shape)
    return done + _copies(store, root)


def _root(store: Path) -> Iterator[Mended]:
    """Put the root's description back from a split's copy."""
    try:
        read_group(store)
        return
    except DamageError as error:
        damage = error
    root = root_from_copies(store)
    if root is None:
        raise StoreError(f"{damage.path}: {damage.what}, and no split holds a copy of it: {store} cannot be repaired. "
                         "Remove it (cspipe store rm) and run cspipe extract again") from damage  # fmt: skip
    write_group(store, root)
    yield Mended("zarr.json", "put back from a copy")


def _group(store: Path, split: Path) -> Iterator[Mended]:
    """Put a split's description back from its copy; one that has none stays as it is."""
    try:
        read_group(split)
    except DamageError:
        where = f"{split.name}/zarr.json"
        for text in copied(store, where):
            write_atomic(split / "zarr.json", text)
            yield Mended(where, "put back from its copy")
            return


def _documents(store: Path, split: Path, attributes: Mapping[str, Any], shape: Shape) -> Iterator[Mended]:
    """Put descriptions of arrays back, from the copy or made anew."""
    for name, recorded in sorted(attributes["metadata_sha256"].items()):
        path = split / name / "zarr.json"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == recorded:
            continue
        rows, where = int(attributes["rows"]), str(path.relative_to(store))
        anew = array_document(name, rows=rows, width=shape.width, dtype=shape.dtype, per_chunk=shape.per_chunk)
        for text in (*copied(store, where), anew):
            if hashlib.sha256(text).hexdigest() == recorded:
                write_atomic(path, text)
                yield Mended(where, "put back as it was")
                break


def _tables(store: Path, split: Path, attributes: Mapping[str, Any]) -> Iterator[Mended]:
    """Put tables back that follow from the row count, or that another split holds too, as views and theirs do."""
    rows = int(attributes["rows"])
    known: dict[str, Values] = {"row_id": np.arange(rows, dtype=np.int64), "present": np.ones(rows, np.bool_)}
    for name in damaged_tables(split):
        where = str((split / name).relative_to(store))
        if name in known and put_back(split, name, known[name]):
            yield Mended(where, "made anew from the row count")
            continue
        for other in sorted(path.parent for path in store.glob("*/zarr.json")):
            if other != split and _same_table(other, name, attributes) and put_back(split, name, _read(other, name)):
                yield Mended(where, f"copied from {other.name}, which holds the same")
                break


def _same_table(other: Path, name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether another split records the same table, and holds it."""
    try:
        sums = read_group(other).get("array_sha256", {})
        return sums.get(name) == attributes["array_sha256"][name] and name not in damaged_tables(other)
    except DamageError:
        return False


def _read(split: Path, name: str) -> Values:
    """A table as :func:`put_back` takes it."""
    values = read_array(split, name, read_group(split))
    return [str(path) for path in values] if name == "path" else values


def _sums(store: Path, split: Path, attributes: Mapping[str, Any], shape: Shape) -> Iterator[Mended]:
    """Put back a checksum or commit record that alone is damaged: its tokens are then known to be sound."""
    rows = int(attributes["rows"])
    for chunk in range(-(-rows // shape.per_chunk)):
        start = chunk * shape.per_chunk
        end = min(rows, start + shape.per_chunk)
        data, record_file = commits.embedding_file(split, chunk), commits.commit_file(split, chunk)
        if commits.committed_end(split, chunk, shape) == end or not data.is_file():
            continue
        held = np.fromfile(data, np.uint8)
        body, record = held[: shape.chunk_bytes], commits.read_record(split, chunk)
        whole = with_trailer(body.tobytes())
        crc = int.from_bytes(whole[-4:], "little")
        if record == (start, end, crc):
            write_chunk(data, body)
            yield Mended(str(data.relative_to(store)), "the checksum is put back; the tokens fit their commit record")
        elif record is None and whole == held.tobytes() and _one_bit_off(record_file, start, end, crc):
            commits.write_record(split, chunk, start, end, crc)
            yield Mended(str(record_file.relative_to(store)), "one bit is put back; the record fits its chunk")


def _one_bit_off(record_file: Path, start: int, end: int, crc: int) -> bool:
    """Whether a commit record's file differs from the one expected in a single bit."""
    expected = np.frombuffer(with_trailer(np.array([start, end, crc], "<i8").tobytes()), np.uint8)
    held = np.fromfile(record_file, np.uint8) if record_file.is_file() else expected[:0]
    return len(held) == len(expected) and int(np.bitwise_count(held ^ expected).sum()) == 1


def _copies(store: Path, root: Mapping[str, Any]) -> list[Mended]:
    """Write the copies of descriptions that are not as they should be."""
    bad = [split for split in splits_of(store, root) if split.is_dir() and copy_problem(split)]
    refresh_copies(store)
    mended = [split for split in bad if copy_file(split).is_file() and not copy_problem(split)]
    return [Mended(str(copy_file(split).relative_to(store)), "written anew") for split in mended]


def take_out(store: Path, split: str, chunks: list[int]) -> None:
    """Remove chunks with their records and declare the split unfinished, so that extract computes them anew."""
    attributes = read_group(store / split)
    if attributes["complete"]:
        remove(copy_file(store / split))
        write_group(store / split, {**attributes, "complete": False})
    commits.discard(store / split, chunks)


def repair_store(path: Path | str) -> list[Problem]:
    """Mend what the store itself allows, and take damaged chunks out for the next extraction to compute anew.

    Args:
        path: the Zarr group, or its URL.

    Returns:
        What :func:`cspipe.store.verify.verify_store` still finds.

    Raises:
        StoreError: another process writes this store, or its description is lost.
    """
    store = local_path(path)
    lock = StoreLock(store)
    try:
        mend(store)
        for split, chunks in damaged_chunks(store, verify_store(store)).items():
            take_out(store, split, chunks)
    finally:
        lock.release()
    return verify_store(store)
