"""Local folders that mirror remote ones: which there are, and what is asked of the remote side.

The remote folder is the truth and the local one a working copy, so that everything else works on plain paths. What
writes and removes files (:mod:`cspipe.store.files`) tells the remote side here; :mod:`cspipe.store.remote` is it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Remote(Protocol):
    """The remote folder that a local one mirrors; paths are those of the mirror."""

    def put(self, path: Path) -> None:
        """Write the remote file as the local one is."""

    def delete(self, path: Path) -> int:
        """Remove a file, or all files below a folder; returns their bytes."""

    def bring(self, folder: Path, *, anew: bool = False) -> None:
        """Make the local files below a folder those of the remote one; ``anew``: compare every byte."""

    def lock(self, store: Path, *, bring: bool = True) -> Callable[[], None]:
        """Keep writers on other machines out, then bring the store; returns what lets them in again."""

    def still(self) -> AbstractContextManager[None]:
        """While held, no process of this machine changes the mirror by bringing files."""

    def url(self, path: Path) -> str:
        """Where the remote file or folder lies."""


_remotes: dict[Path, Remote] = {}


def register(root: Path, remote: Remote) -> None:
    """From now on, what happens to files below ``root`` happens to those of ``remote`` too."""
    _remotes[root] = remote


def remote_of(path: Path) -> Remote | None:
    """The remote folder in whose mirror a path lies."""
    return next((remote for root, remote in _remotes.items() if path.is_relative_to(root)), None)


def bring(folder: Path, *, anew: bool = False) -> None:
    """Have the files below ``folder`` here, where it lies in a mirror; see :meth:`Remote.bring`."""
    if remote := remote_of(folder):
        remote.bring(folder, anew=anew)


def shown(path: Path) -> str:
    """A path as users know it: the URL of one in a mirror."""
    remote = remote_of(path)
    return remote.url(path) if remote else str(path)
