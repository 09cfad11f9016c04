"""Stores behind a URL (``s3://bucket/prefix``, or whatever fsspec knows): one place makes local paths of them.

Everything else works on the local mirror that :func:`local_path` gives; see :mod:`cspipe.store.mirror`.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from cspipe.store import remote_lock
from cspipe.store.errors import SettingError
from cspipe.store.mirror import Mirror
from cspipe.store.remote_files import connect
from cspipe.store.remotes import register, remote_of

CACHE = "CSPIPE_CACHE"
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)


def url_of(place: Path | str) -> str | None:
    """The URL that is meant, without a slash at its end; None for a local path.

    >>> url_of(Path("s3://bucket/stores/")), url_of("stores"), url_of("file:///data")
    ('s3://bucket/stores', None, None)
    """
    found = _URL.fullmatch(str(place))  # a Path has lost one of the slashes
    if found is None or found[1] in ("file", "local"):
        return None
    return f"{found[1]}://{found[2].rstrip('/')}"


def local_path(place: Path | str) -> Path:
    """The path on this machine of a folder of stores, or of one store ``*.zarr``, that may lie behind a URL.

    A URL is looked up anew in each call: descriptions that changed are brought, what is gone is removed.

    Raises:
        SettingError: the protocol is not known, or its package not installed.
        StoreError: the remote folder cannot be read.
    """
    url = url_of(place)
    if url is None:
        found = _URL.fullmatch(str(place))
        return Path(f"/{found[2]}") if found else Path(place)
    folder, _, name = url.rpartition("/")
    if not name.endswith(".zarr"):
        return _mirror_of(url).root
    return _mirror_of(folder).root / name


def unlock(place: Path | str) -> dict[str, Any] | None:
    """Remove the lock of a remote store whose writer is no more; see :func:`cspipe.store.remote_lock.unlock`.

    Raises:
        SettingError: it is no remote store: a local lock ends with its process.
    """
    folder, _, name = (url_of(place) or "").rpartition("/")
    if not folder or not name.endswith(".zarr"):
        raise SettingError(f"{place} is no store behind a URL; the lock of a local one ends with its writer")
    return remote_lock.unlock(connect(folder), name)


def cache_folder() -> Path:
    """Where mirrors lie: ``$CSPIPE_CACHE``, else the user's cache folder."""
    if given := os.environ.get(CACHE):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cspipe"


def _mirror_of(url: str) -> Mirror:
    """The mirror of a URL, its descriptions as they are now."""
    folder = cache_folder() / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
    known = remote_of(folder / "stores")
    mirrored = known if isinstance(known, Mirror) else Mirror(connect(url), folder)
    mirrored.refresh()
    register(mirrored.root, mirrored)
    return mirrored
