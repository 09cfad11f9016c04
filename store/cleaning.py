"""Removing stores, and what interrupted writers left behind; a finished chunk is never garbage."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cspipe.store import commits
from cspipe.store.errors import DamageError, MissingDataError, StoreError
from cspipe.store.files import fsync_folder, left_overs, remove_tree
from cspipe.store.files import remove as remove_file
from cspipe.store.lock import StoreLock
from cspipe.store.meta import read_group
from cspipe.store.remotes import remote_of
from cspipe.store.repair import shape_of, splits_of

_REMOVED = ".removed-"


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nobody needs, why, and its bytes."""

    path: Path
    why: str
    size: int


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() or path.is_symlink() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.lstat().st_size for file in files)


def remove_store(path: Path) -> int:
    """Remove a store; returns the bytes that were freed.

    Killed midway, ``gc`` removes the rest; of a remote one the same call does.

    Raises:
        MissingDataError: there is no store at this path.
        StoreError: another process writes it.
    """
    if path.suffix != ".zarr" or not path.is_dir():
        raise MissingDataError(f"{path} is not a store: name a folder *.zarr, see cspipe store ls")
    lock, remote = StoreLock(path, bring=False), remote_of(path)
    try:
        size, aside = remote.delete(path) if remote else _size(path), path.with_name(f"{_REMOVED}{path.name}")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        fsync_folder(path.parent)
        shutil.rmtree(aside)
    finally:
        lock.release()
    return size


def _orphans(store: Path) -> Iterator[Garbage]:
    """Chunks beyond the last row of a split, and chunks of an unfinished split that were never committed."""
    try:
        root = read_group(store)
    except DamageError:
        return
    shape = shape_of(root)
    for split in splits_of(store, root):
        try:
            attributes = read_group(split)
        except DamageError:
            continue
        count = -(-int(attributes["rows"]) // shape.per_chunk)
        for chunk in commits.recorded_chunks(split):
            file, record = commits.embedding_file(split, chunk), commits.commit_file(split, chunk)
            if chunk >= count:
                parts = [path for path in (file, record) if path.is_file()]
                yield from (Garbage(path, "beyond the last row of its split", _size(path)) for path in parts)
            elif not attributes["complete"] and not record.exists() and file.is_file():
                yield Garbage(file, "written, but never committed", _size(file))


def _is_abandoned(store: Path) -> bool:
    """Whether no chunk was ever committed in a folder that is, or was to be, a store."""
    return next(store.glob("*/commit/c/*/0"), None) is None and next(store.glob("*/embedding/c/*/0"), None) is None


def _garbage_of(store: Path) -> list[Garbage]:
    """What is garbage in one store, which is locked."""
    if _is_abandoned(store) and not _is_complete(store):
        return [Garbage(store, "a store in which no chunk was finished", _size(store))]
    partial = [Garbage(path, "left by a process that was killed", _size(path)) for path in left_overs(store)]
    return partial + list(_orphans(store))


def _is_complete(store: Path) -> bool:
    """Whether some split is declared complete, as one without rows may be; a damaged one counts as complete."""
    try:
        return any(read_group(split)["complete"] for split in splits_of(store, read_group(store)))
    except DamageError:
        return (store / "zarr.json").exists()


def collect(stores: Path, *, remove: bool) -> tuple[list[Garbage], list[Path]]:
    """Find, and remove where asked, what nobody needs under a folder of stores.

    Left-over partial files, orphaned chunks, stores in which no chunk was finished, stores that were being
    removed. Stores that are being written are passed over.

    Args:
        stores: folder of the stores.
        remove: remove what is found.

    Returns:
        What was found, and the stores that are being written.
    """
    found = [Garbage(path, "a store that was being removed", _size(path)) for path in stores.glob(f"{_REMOVED}*")]
    busy = []
    if remove:
        for garbage in found:
            remove_tree(garbage.path)
    for store in sorted(path for path in stores.glob("*.zarr") if path.is_dir() and not path.is_symlink()):
        try:
            lock = StoreLock(store)
        except StoreError:
            busy.append(store)
            continue
        try:
            mine = _garbage_of(store)
            found += mine
            for garbage in mine if remove else []:
                remove_tree(garbage.path) if garbage.path.is_dir() else remove_file(garbage.path)
        finally:
            lock.release()
    return found, busy
