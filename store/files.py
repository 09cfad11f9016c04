"""Raw files: atomic and durable writing, chunk files that end in a CRC-32C.

Every chunk file of a store is ``body + 4 bytes``: the little-endian CRC-32C of the body, which is what
Zarr's ``crc32c`` codec reads and writes. Nothing here knows what a body means.

A folder may be the mirror of a remote one. Every file that is written or removed below it here is then written or
removed there too, in the same order and before the call returns; see :mod:`cspipe.store.remote`.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c as sum_of
from numpy.typing import NDArray

from cspipe.store.errors import DamageError, StoreError
from cspipe.store.remotes import remote_of

TRAILER_BYTES = 4
PARTIAL = ".partial"
_PIECE_BYTES = 2**20  # what one core keeps in its cache: read and summed there, then written to its place once
_DIRECT_BYTES = 2**16  # less than this is read straight into its place

_threads = threading.local()

Bytes = NDArray[np.uint8]


def _put(path: Path) -> None:
    """The last step of every write: the remote file, where the path lies in a mirror."""
    if remote := remote_of(path):
        remote.put(path)


def crc32c(data: bytes | NDArray[Any]) -> int:
    """CRC-32C of the bytes of ``data`` (an array must be contiguous)."""
    return int(sum_of(data if isinstance(data, bytes) else data.data))


def with_trailer(body: bytes) -> bytes:
    """``body`` followed by its CRC-32C, as a chunk file holds it."""
    return body + crc32c(body).to_bytes(TRAILER_BYTES, "little")


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make every file and name below ``folder`` durable, remotely too."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            _put(path)
    fsync_folder(folder)


def make_folders(folder: Path) -> None:
    """Create ``folder`` and its parents, each durable in its parent."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    with told_where_full(folder):
        folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


@contextmanager
def told_where_full(path: Path) -> Iterator[None]:
    """A write that finds no room is told in one line; what was finished before it stays.

    Raises:
        StoreError: the disk, the quota or the largest size of a file is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): make room, then run the same command again; "
            "nothing that is finished is lost"
        ) from error


def _write_durably(path: Path, write: Callable[[Any], object]) -> None:
    """Write beside ``path`` under a partial name, fsync, rename, fsync the folder."""
    make_folders(path.parent)
    if path.is_dir():
        raise DamageError(path, "this is a folder where a file belongs: move it away")
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with told_where_full(path), partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # what is left of it takes the room that is wanted
        raise
    partial.replace(path)
    fsync_folder(path.parent)
    _put(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file's content in one atomic, durable step; a crash leaves the old or the new."""
    _write_durably(path, lambda file: file.write(data))


def write_chunk(path: Path, body: NDArray[Any]) -> int:
    """Write an array's bytes as a chunk file, atomically and durably.

    Args:
        path: the chunk file.
        body: contiguous little-endian array.

    Returns:
        CRC-32C of the body.
    """
    flat = body.reshape(-1).view(np.uint8)
    crc = crc32c(flat)

    def write(file: Any) -> None:  # noqa: ANN401 - a binary file
        file.write(flat.data)
        file.write(crc.to_bytes(TRAILER_BYTES, "little"))

    _write_durably(path, write)
    return crc


def remove(path: Path) -> None:
    """Remove a file, durably; nothing happens where there is none."""
    if path.exists():
        path.unlink()
        fsync_folder(path.parent)
        if remote := remote_of(path):
            remote.delete(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, first remotely where it lies in a mirror."""
    if remote := remote_of(folder):
        remote.delete(folder)
    shutil.rmtree(folder)


def move(path: Path, to: Path) -> None:
    """Rename a file within its folder, durably, over another one."""
    path.replace(to)
    fsync_folder(to.parent)
    if remote := remote_of(to):
        remote.put(to)
        remote.delete(path)


def chunk_file(array: Path, *index: int) -> Path:
    """The chunk's file as Zarr names it: ``c/0/0``."""
    return Path(f"{array}/c/{'/'.join(map(str, index))}")  # parsed once: this is called for every chunk


def _scratch() -> Bytes:
    """This thread's own piece of memory.

    Read straight into a large array, every byte goes through the cache twice more: once fetched before it is
    overwritten, once for the sum. Copies of this size from a warm piece go around the cache; that takes a quarter
    off the time of a read.
    """
    piece: Bytes | None = getattr(_threads, "piece", None)
    if piece is None:
        piece = _threads.piece = np.empty(_PIECE_BYTES, np.uint8)
    return piece


def _read_summed(file: Any, flat: Bytes, crc: int) -> tuple[int, int]:  # noqa: ANN401
    """Fill ``flat`` from the file; returns bytes read and the CRC-32C extended by them."""
    done = 0
    while done < len(flat):
        left = flat[done:]
        piece = left if len(left) < _DIRECT_BYTES else _scratch()[: len(left)]
        count = int(file.readinto(piece))
        if count == 0:
            break
        crc = int(sum_of(piece[:count].data, crc))
        if piece is not left:
            left[:count] = piece[:count]
        done += count
    return done, crc


def read_chunk_into(path: Path, *parts: NDArray[Any]) -> int:
    """Read a chunk file straight into arrays, one after the other, and check its sum meanwhile.

    Args:
        path: the chunk file.
        parts: contiguous writable arrays that together take exactly the body.

    Returns:
        CRC-32C of the body.

    Raises:
        DamageError: the file is missing, of another size, or its bytes do not match its sum.
    """
    crc, size = 0, 0
    try:
        with path.open("rb", buffering=0) as file:
            for part in parts:
                flat = part.reshape(-1).view(np.uint8)
                count, crc = _read_summed(file, flat, crc)
                size += len(flat)
                if count < len(flat):
                    raise DamageError(path, "the file is cut short")
            trailer = file.read(TRAILER_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(path, "the chunk file is missing") from None
    except OSError as error:
        if isinstance(error, DamageError):
            raise
        raise DamageError(path, f"the file cannot be read ({error.strerror})") from error
    if len(trailer) != TRAILER_BYTES:
        raise DamageError(path, f"the file should be {size + TRAILER_BYTES} bytes long and is not")
    if int.from_bytes(trailer, "little") != crc:
        raise DamageError(path, "the bytes do not match their checksum")
    return crc


def read_trailer(path: Path, body_bytes: int) -> int | None:
    """The checksum a chunk file claims, its bytes unread; None where it is missing or of another size."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != body_bytes + TRAILER_BYTES:
                return None
            file.seek(body_bytes)
            return int.from_bytes(file.read(TRAILER_BYTES), "little")
    except OSError:
        return None


def left_overs(folder: Path) -> list[Path]:
    """Files under partial names, which only a process that was killed leaves behind."""
    return sorted(path for path in folder.rglob(f"*{PARTIAL}") if path.is_file())
