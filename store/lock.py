"""One writer a store: an advisory lock that the system releases when its process ends, however it ends.

A store in the mirror of a remote folder is locked there too, see :mod:`cspipe.store.remote_lock`.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from cspipe.store.errors import StoreError
from cspipe.store.files import make_folders, told_where_full
from cspipe.store.remotes import remote_of, shown


class StoreLock:
    """Exclusive lock on a store, ``<stores>/.locks/<name>.lock``; taken at once or not at all."""

    def __init__(self, store: Path, *, bring: bool = True) -> None:
        """Take the lock.

        Args:
            store: the Zarr group.
            bring: have all of a remote store here as it is now.

        Raises:
            StoreError: another writer holds it.
        """
        remote = remote_of(store)
        self._give_back: Callable[[], None] = lambda: None
        with remote.still() if remote else nullcontext():
            self._lock_here(store)
        try:
            if remote:
                self._give_back = remote.lock(store, bring=bring)
        except BaseException:
            self.release()
            raise

    def _lock_here(self, store: Path) -> None:
        """Keep other processes of this machine out."""
        folder = store.parent / ".locks"
        make_folders(folder)
        path = folder / f"{store.name}.lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip()
            os.close(self._handle)
            if not isinstance(error, BlockingIOError):
                raise StoreError(f"{path} cannot be locked ({error.strerror}): use a local disk") from error
            raise StoreError(
                f"{shown(store)} is being written by another writer ({holder or 'unknown'}): wait for it, or stop it"
            ) from None
        try:
            with told_where_full(path):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"process {os.getpid()}\n".encode(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in."""
        self._give_back()
        self._give_back = lambda: None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
