"""A full disk at many points: one plain line, nothing finished lost, and the same command goes on."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from cspipe.store import commits
from cspipe.store.errors import StoreError
from cspipe.store.table import Shape
from cspipe.store.verify import verify_store

SHAPE = Shape(6, "float16", 8)
IMAGES, BAD = range(27), [4, 9, 14]


class Disk:
    """Takes so many bytes; a write beyond them is cut where the room ends, as a file system does it."""

    def __init__(self, room: int) -> None:
        self.room, self.written = room, 0
        self._open = Path.open

    def open(self, path, mode="r", *arguments, **keywords):
        file = self._open(path, mode, *arguments, **keywords)
        if "w" not in mode:
            return file
        write = file.write

        def bounded(data):
            room = self.room - self.written
            self.written += len(data)
            if len(data) > room:
                write(bytes(data)[: max(room, 0)])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(data)

        return _Writing(file, bounded)


class _Writing:
    """A file whose write is replaced."""

    def __init__(self, file, write) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def committed(maker) -> set[int]:
    split = maker.path / "train"
    ends = commits.committed_ends(split, SHAPE) if split.is_dir() else []
    return {row for chunk, end in enumerate(ends) for row in range(chunk * 8, int(end))}


def check_goes_on(maker, files, uninterrupted) -> None:
    """With room again the rest is computed, and the store is as if nothing had happened."""
    before = committed(maker)
    tasks = maker.extract(IMAGES, bad=BAD)
    assert {row for task in tasks for row in range(task.first_row, task.end_row)} == set(IMAGES) - before
    assert files(maker.path) == uninterrupted(IMAGES, bad=BAD)
    assert verify_store(maker.path) == []


@pytest.mark.parametrize("share", np.linspace(0, 0.97, 20).round(3).tolist())
def test_a_full_disk_is_told_in_a_line_and_the_same_command_goes_on(maker, files, uninterrupted, monkeypatch, share):
    measured = Disk(1 << 30)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *given, **named: measured.open(*given, **named))
        maker.extract(IMAGES, bad=BAD)
    whole = files(maker.path)
    other = type(maker)(maker.stores.parent / "others")
    full = Disk(int(share * measured.written))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *given, **named: full.open(*given, **named))
        with pytest.raises(StoreError, match=r"No space left on device\): make room, then run the same command"):
            other.extract(IMAGES, bad=BAD)
    assert not list(other.stores.rglob("*.partial"))
    check_goes_on(other, files, uninterrupted)
    assert files(other.path) == whole


def limited(work, largest: int) -> str:
    """Do the work in a child whose files may not be larger; the message of the StoreError that stops it, or ""."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            work()
        except StoreError as error:
            os.write(tell, str(error).encode())
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(child, 0)
    with os.fdopen(told, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("largest", [0, 10, 27, 60, 99, 103, 140, 300, 500, 700, 900, 1100, 1300, 1500, 1800, 2200])
def test_files_that_may_not_grow_stop_it_with_a_line_and_without_harm(maker, files, uninterrupted, largest):
    told = limited(lambda: maker.extract(IMAGES, bad=BAD), largest)
    assert "cannot be written (File too large): make room" in told, told
    check_goes_on(maker, files, uninterrupted)
