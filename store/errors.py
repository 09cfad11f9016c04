"""Every error a user can act on; the command line prints the message as one line and exits 1.

Each child is also a builtin, so that callers who never heard of cspipe can catch it. ``str(error)`` is
exactly the message, whatever the builtin's own formatting would be.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class CspipeError(Exception):
    """What holds, what was given and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UnknownNameError(CspipeError, LookupError):
    """A name that is in no registry; build it with :func:`unknown_name`."""


class SettingError(CspipeError, ValueError):
    """A value that cannot be used: labels beyond the rows, wrong shapes, a bad configuration."""


class MissingDataError(CspipeError, FileNotFoundError):
    """A file, folder, set of weights or hub that is not there."""


class MismatchError(CspipeError, ValueError):
    """Two things that do not belong together: a head and a store, weights and a backbone."""


class StoreError(CspipeError, OSError):
    """A store that is damaged, incomplete or in use by another process."""


class DamageError(StoreError):
    """A damaged file of a store: its name, what is wrong with it, what to do.

    Attributes:
        path: the file.
        what: what is wrong with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        store = next((folder for folder in (path, *path.parents) if folder.suffix == ".zarr"), path)
        super().__init__(f"{path}: {what}. `cspipe store verify {store}` lists all that is damaged")
        self.path = path
        self.what = what

    def __reduce__(self) -> tuple[type["DamageError"], tuple[Path, str]]:
        return type(self), (self.path, self.what)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not known, naming the nearest known one.

    Args:
        kind: what the name stands for, e.g. ``"backbone"``.
        name: what was given.
        known: every name that would have done.

    Returns:
        The error, to be raised by the caller.

    >>> str(unknown_name("backbone", "dinov3x", ["dinov2-s", "lite0"]))
    "unknown backbone 'dinov3x': did you mean 'dinov2-s'? Known: dinov2-s, lite0."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    listed = f"Known: {', '.join(names)}." if names else "None is known."
    return UnknownNameError(f"unknown {kind} {name!r}: {meant}{listed}")
