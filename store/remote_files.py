"""Files of a remote folder through fsspec: listed, read, written, removed; whatever fails is one plain line.

fsspec and the package of the protocol are imported where a URL is given, never before.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspipe.store.errors import CspipeError, SettingError, StoreError

EXTRA = "pip install 'content-style-pipeline[remote]'"
_STATES = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "modified", "created")
_IN_BUCKETS = ("s3", "s3a", "gs", "gcs")
_REASON_CHARACTERS = 160


@dataclass(frozen=True)
class Held:
    """What a listing tells of a remote file.

    Attributes:
        state: text that is another one once the content is.
        size: bytes.
        md5: hash of the content, hexadecimal; None where the service does not tell.
    """

    state: str
    size: int
    md5: str | None


def held(info: Mapping[str, Any]) -> Held:
    """An entry of a listing.

    >>> held({"size": 3, "ETag": '"900150983cd24fb0d6963f7d28e17f72"'}).md5
    '900150983cd24fb0d6963f7d28e17f72'
    """
    tag = str(info.get("ETag", info.get("etag", ""))).strip('"')
    md5 = tag if re.fullmatch(r"[0-9a-f]{32}", tag) else None  # of an object written whole; encrypted ones differ
    if isinstance(info.get("md5Hash"), str):
        md5 = base64.b64decode(info["md5Hash"]).hex()
    return Held(str(next((info[name] for name in _STATES if info.get(name)), "")), int(info["size"] or 0), md5)


def _advice(error: Exception) -> str:
    """What to do about an error of a file system's library."""
    if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
        return (
            "give credentials that may do this where its library looks for them, for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or ~/.aws"
        )
    return (
        "see that address and network are right (for S3 also AWS_ENDPOINT_URL), then run the same command again; "
        "nothing that is finished is lost"
    )


@contextmanager
def told(url: str, done: str) -> Iterator[None]:
    """Errors of a file system's library, of whatever kind, as one plain line.

    Raises:
        StoreError: ``url`` cannot be ``done``.
    """
    try:
        yield
    except CspipeError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        raise StoreError(f"{url} cannot be {done} ({reason}): {_advice(error)}") from error


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL; names of files are relative to it.

    Attributes:
        url: without a slash at its end.
        system: the fsspec file system.
        base: the folder as the file system names it.
    """

    url: str
    system: Any
    base: str

    def list(self, below: str = "") -> dict[str, Held]:
        """Every file below a folder, as it is now.

        Raises:
            StoreError: there is no such bucket, no permission, no network.
        """
        folder = f"{self.base}/{below}".rstrip("/")
        with told(self.url, "listed"):
            self.system.invalidate_cache()
            try:
                found = self.system.find(folder, detail=True)
            except FileNotFoundError:
                found = {}
            if not found:
                self._check_bucket()
        start = f"{self.base}/"
        files = {name: info for name, info in found.items() if info["type"] == "file" and name.startswith(start)}
        return {name.removeprefix(start): held(info) for name, info in files.items()}

    def _check_bucket(self) -> None:
        """Nothing is there: because the bucket itself is not?"""
        bucket = self.base.partition("/")[0]
        if self.url.partition("://")[0] in _IN_BUCKETS:
            try:
                self.system.ls(bucket, refresh=True)
            except FileNotFoundError as error:
                raise StoreError(f"{self.url}: there is no bucket {bucket}: make it, or mend --stores") from error

    def get(self, name: str, to: Path) -> None:
        """Bring a file."""
        with told(f"{self.url}/{name}", "read"):
            self.system.get_file(f"{self.base}/{name}", str(to))

    def put(self, name: str, path: Path) -> None:
        """Write a file from a local one; object stores show the former or the whole new one, never a part."""
        with told(f"{self.url}/{name}", "written"):
            self.system.put_file(str(path), f"{self.base}/{name}")

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those that are not there are no error."""
        with told(f"{self.url}/{names[0]}" if names else self.url, "removed"), suppress(FileNotFoundError):
            if len(names) == 1:
                self.system.rm_file(f"{self.base}/{names[0]}")
            elif names:
                self.system.rm([f"{self.base}/{name}" for name in names])

    def read(self, name: str) -> bytes | None:
        """Content of a small file; None where there is none."""
        with told(f"{self.url}/{name}", "read"):
            try:
                self.system.invalidate_cache()
                return bytes(self.system.cat_file(f"{self.base}/{name}"))
            except FileNotFoundError:
                return None

    def create(self, name: str, data: bytes) -> None:
        """Write a small file where there is none; what came of it is read afterwards.

        S3 refuses by ``If-None-Match`` where the file is there already (AWS since 2024, and most others by now); a
        service that ignores it overwrites.
        """
        with told(f"{self.url}/{name}", "written"), suppress(FileExistsError):
            self.system.pipe_file(f"{self.base}/{name}", data, mode="create")


def connect(url: str) -> RemoteFolder:
    """The folder behind a URL; nothing is asked of it yet.

    Raises:
        SettingError: a package is not installed, or nobody knows the protocol.
    """
    with told(url, "reached"):
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            system, base = url_to_fs(url)
        except ImportError as error:
            raise SettingError(f"{url} needs a package that is not installed ({error}): for S3 run {EXTRA}") from error
        except ValueError as error:
            raise SettingError(
                f"{url} cannot be used ({error}): give --stores a folder, or a URL such as s3://BUCKET/PREFIX"
            ) from error
    return RemoteFolder(url, system, str(base).rstrip("/"))
