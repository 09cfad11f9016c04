"""One writer a store: an advisory lock that the system releases when its process ends, however it ends."""

import fcntl
import os
from pathlib import Path

from cspipe.store.errors import StoreError
from cspipe.store.files import make_folders, told_where_full


class StoreLock:
    """Exclusive lock on a store, ``<stores>/.locks/<name>.lock``; taken at once or not at all."""

    def __init__(self, store: Path) -> None:
        """Take the lock.

        Raises:
            StoreError: another writer holds it.
        """
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
                f"{store} is being written by another writer ({holder or 'unknown'}): wait for it, or stop it"
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
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
