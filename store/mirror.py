"""The mirror of a remote folder of stores: a working copy that every other module reads and writes.

The remote folder is the truth. Files are brought whole, under partial names, synced and renamed. The descriptions of
all stores come at once; tokens and tables come where a split is opened or a store is locked, the whole split or store
together. While a store is written here, each file that is written or removed is written or removed remotely before
the call returns (:mod:`cspipe.store.files`), so a chunk is there before its record is, remotely too.

Where the two differ, because a write failed or the process was killed between both, the next command discards the
local file: what was not remote yet is computed again. Reading while another machine writes may meet files of two
moments; checksums tell, and the next command reads them anew.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from cspipe.store import remote_lock
from cspipe.store.errors import StoreError
from cspipe.store.files import PARTIAL, fsync_folder, make_folders, told_where_full, write_atomic
from cspipe.store.remote_files import Held, RemoteFolder

_LATEST, _GROUP = "latest.json", "zarr.json"
_CONNECTIONS = 8


def _is_ours(name: str) -> bool:
    """Whether a name is that of a file of a store, or of the pointer to the latest; others are left alone."""
    *folders, last = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in (*folders, last)):
        return False
    return last == _LATEST or any(folder.endswith(".zarr") for folder in folders)


def _is_description(name: str) -> bool:
    """Whether a file says what there is, and is needed to find and list stores."""
    return name.rpartition("/")[2] in (_LATEST, _GROUP)


def _store_in(name: str) -> str | None:
    """The store to which a file belongs."""
    found = re.match(r"(?:.*?/)?[^/]*\.zarr(?=/|$)", name)
    return found[0] if found else None


class Mirror:
    """A local folder that mirrors a remote one; what it is asked is described by :class:`cspipe.store.remotes.Remote`.

    Attributes:
        root: the folder of the stores here.
    """

    def __init__(self, remote: RemoteFolder, folder: Path) -> None:
        self.root = folder / "stores"
        self._remote, self._folder = remote, folder
        self._brought: set[Path] = set()
        self._written: set[str] = set()
        self._mutex = threading.Lock()

    def url(self, path: Path) -> str:
        """Where the remote file or folder lies."""
        return f"{self._remote.url}/{self._name(path)}".rstrip("/")

    def put(self, path: Path) -> None:
        """Write the remote file as the local one is."""
        name = self._name(path)
        self._remote.put(name, path)
        self._written.add(name)

    def delete(self, path: Path) -> int:
        """Remove a file, or all files below a folder, a store's description first; returns their bytes."""
        name = self._name(path)
        if path.is_dir():
            found = self._remote.list(name)
            first = [f"{name}/{_GROUP}"] if f"{name}/{_GROUP}" in found else []
            self._remote.delete(first)
            self._remote.delete([other for other in found if other not in first])
            return sum(each.size for each in found.values())
        self._remote.delete([name])
        self._written.discard(name)
        return 0

    def refresh(self) -> None:
        """Have the descriptions of all stores here as they are now; tokens and tables are brought anew when used."""
        with self._mutex:
            self._brought.clear()
            self._settle(self.root, _is_description)

    def bring(self, folder: Path, *, anew: bool = False) -> None:
        """Make the local files below a folder those of the remote one, unless it is being written here."""
        with self._mutex:
            if anew or not self._brought.intersection((folder, *folder.parents)):
                self._settle(folder, lambda name: True, anew=anew)
                self._brought.add(folder)

    def lock(self, store: Path, *, bring: bool = True) -> Callable[[], None]:
        """Keep writers on other machines out, then bring the store; returns what lets them in again."""
        name = self._name(store)
        give_back = remote_lock.take(self._remote, name)

        def release() -> None:
            with suppress(StoreError, OSError):
                self._note_written(name)
            give_back()

        try:
            if bring:
                with self._mutex:
                    self._settle(store, lambda name: True, mine=True)
                    self._brought.add(store)
        except BaseException:
            release()
            raise
        return release

    @contextmanager
    def still(self) -> Iterator[None]:
        """While held, no process of this machine changes the mirror by bringing files."""
        make_folders(self.root)
        handle = os.open(self._folder / "bring.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _name(self, path: Path) -> str:
        """The remote name of a local path."""
        name = path.relative_to(self.root).as_posix()
        return "" if name == "." else name

    def _settle(self, folder: Path, wanted: Callable[[str], bool], *, anew: bool = False, mine: bool = False) -> None:
        """Remove local files that are not the remote ones, then bring those that are wanted and not here."""
        with self.still():
            there = {name: each for name, each in self._remote.list(self._name(folder)).items() if _is_ours(name)}
            here = {self._name(path) for path in folder.rglob("*") if not path.is_dir()}
            here = {name for name in here if _is_ours(name)}
            stores = set() if mine else {_store_in(name) for name in there.keys() | here}
            busy = {store for store in stores if self._is_written(store)}
            there = {name: each for name, each in there.items() if _store_in(name) not in busy}
            known = self._manifest()
            for name in here:
                if _store_in(name) not in busy and not self._is_same(name, there.get(name), known, anew):
                    (self.root / name).unlink()
                    here = here - {name}
            missing = [name for name in there if name not in here and wanted(name)]
            self._download({name: there[name] for name in missing})
            self._keep(known, there)
            _prune(folder, {self.root / store for name in there if (store := _store_in(name))})

    def _is_written(self, store: str | None) -> bool:
        """Whether a process of this machine, maybe this one, holds the local lock of a store."""
        path = self.root / remote_lock.lock_name(store) if store else None
        if path is None or not path.is_file():
            return False
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _is_same(self, name: str, remote: Held | None, known: dict[str, list[object]], anew: bool) -> bool:
        """Whether the local file is the remote one: unchanged since both were alike, or of the same hash."""
        path = self.root / name
        if remote is None or path.is_symlink() or path.stat().st_size != remote.size:
            return False
        if not anew and known.get(name) == [remote.state, remote.size, path.stat().st_mtime_ns]:
            return True
        if remote.md5 is None:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == remote.md5

    def _download(self, files: dict[str, Held]) -> None:
        """Bring files, several at a time; each has its name only when it is whole and durable."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            try:
                for done in [pool.submit(self._bring_one, name, each) for name, each in files.items()]:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _bring_one(self, name: str, remote: Held) -> None:
        path = self.root / name
        make_folders(path.parent)
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            with told_where_full(path):
                self._remote.get(name, partial)
            if partial.stat().st_size != remote.size:
                raise StoreError(f"{self._remote.url}/{name} was replaced while it was read: run this again")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)
        fsync_folder(path.parent)

    def _manifest(self) -> dict[str, list[object]]:
        """State, bytes and local time of change of files that were alike on both sides when it was written."""
        try:
            return dict(json.loads((self._folder / "manifest.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _keep(self, known: dict[str, list[object]], alike: dict[str, Held]) -> None:
        """Note that these files, where they are here, are alike on both sides."""
        noted = {name: entry for name, entry in known.items() if (self.root / name).is_file()}
        for name, each in alike.items():
            with suppress(FileNotFoundError):
                noted[name] = [each.state, each.size, (self.root / name).stat().st_mtime_ns]
        if noted != known:
            write_atomic(self._folder / "manifest.json", json.dumps(noted).encode())

    def _note_written(self, store: str) -> None:
        """After writing a store, which is still locked: what was written is alike on both sides."""
        mine = {name for name in self._written if name.startswith(f"{store}/")}
        if mine:
            there = self._remote.list(store)
            with self.still():
                self._keep(self._manifest(), {name: there[name] for name in mine if name in there})
        self._written -= mine


def _prune(folder: Path, kept: Iterable[Path]) -> None:
    """Remove folders in which there is nothing, but make and keep these."""
    for store in kept:
        make_folders(store)
    stay = {parent for store in kept for parent in (store, *store.parents)}
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if path not in stay and path.name != ".locks":
            with suppress(OSError):
                path.rmdir()
