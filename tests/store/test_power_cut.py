"""The power fails: only what was fsynced is sure to be there, everything else is there, cut, empty or gone.

The disk is recorded through ``os.fsync``: fsync of a file keeps its bytes, fsync of a folder keeps its names. At
the cut the folder is rebuilt from those records; what was written and never fsynced is kept or not by lot.
"""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from cspipe.store import commits
from cspipe.store.errors import CspipeError
from cspipe.store.table import Shape
from cspipe.store.verify import verify_store

SHAPE = Shape(6, "float16", 8)
FIRST, SECOND, BAD = range(13), range(27), [4, 9, 14]


class PowerCut(BaseException):
    """Nothing after this instant happened."""


class Platter:
    """What a disk is sure to hold, by inode; every inode seen is held open, so that its number is not used again."""

    def __init__(self, root: Path, cut_at: int) -> None:
        self.root, self.cut_at, self.count = root, cut_at, 0
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.folders: set[int] = set()
        self._held: dict[int, int] = {}

    def fsync(self, handle: int) -> None:
        """In place of ``os.fsync``; at the chosen call the power fails instead."""
        self.count += 1
        if self.count == self.cut_at:
            raise PowerCut
        self._note(Path(f"/proc/self/fd/{handle}").resolve())

    def _note(self, path: Path) -> None:
        inode = self._hold(path)
        if path.is_dir():
            self.names[inode] = {entry.name: self._hold(entry) for entry in path.iterdir()}
        else:
            self.bytes[inode] = path.read_bytes()

    def _hold(self, path: Path) -> int:
        about = path.stat()
        if about.st_ino not in self._held:
            self._held[about.st_ino] = os.open(path, os.O_RDONLY)
        if stat.S_ISDIR(about.st_mode):
            self.folders.add(about.st_ino)
        return about.st_ino

    def after_the_cut(self, target: Path, random: np.random.Generator) -> None:
        """Rebuild what may be found when the power is back."""
        for path in (self.root, *self.root.rglob("*")):
            self._hold(path)
        self._rebuild(self.root.stat().st_ino, self.root, target, random)

    def _rebuild(self, inode: int, now: Path | None, target: Path, random: np.random.Generator) -> None:
        target.mkdir()
        sure = self.names.get(inode, {})
        current = {entry.name: entry.stat().st_ino for entry in now.iterdir()} if now and now.is_dir() else {}
        for name in sorted({*sure, *current}):
            choices = [names.get(name) for names in (sure, current)]
            chosen = choices[int(random.integers(2))]
            if chosen is None:
                continue
            if chosen in self.folders:
                here = now / name if now is not None and current.get(name) == chosen else None
                self._rebuild(chosen, here, target / name, random)
            else:
                (target / name).write_bytes(self._content(chosen, random))

    def _content(self, inode: int, random: np.random.Generator) -> bytes:
        """The fsynced bytes; where the file was changed since or never fsynced, whatever may be there."""
        size = os.fstat(self._held[inode]).st_size
        latest = os.pread(self._held[inode], size, 0)
        if self.bytes.get(inode) == latest:
            return latest
        options = [latest, latest[: int(random.integers(size + 1))], b"", b"\0" * size]
        return [*options, *([self.bytes[inode]] if inode in self.bytes else [])][int(random.integers(len(options)))]

    def close(self) -> None:
        for handle in self._held.values():
            os.close(handle)


def committed(maker) -> set[int]:
    split = maker.path / "train"
    ends = commits.committed_ends(split, SHAPE) if (split / "zarr.json").is_file() else []
    return {row for chunk, end in enumerate(ends) for row in range(chunk * 8, int(end))}


def cut(maker, monkeypatch, images, at: int, seed: int) -> set[int] | None:
    """Extract until the power fails at fsync number ``at``; the rows whose commit had returned, None if it did not."""
    root, acknowledged = maker.stores.parent, set()
    maker.stores.mkdir(exist_ok=True)
    platter = Platter(root, at)
    for path in (root, *root.rglob("*")):
        platter._note(path)
    pending: list = []

    def begun(task) -> None:
        acknowledged.update(row for done in pending for row in range(done.first_row, done.end_row))
        pending[:] = [task]

    failed = False
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", platter.fsync)
        try:
            maker.extract(images, bad=BAD, before_commit=begun)
        except PowerCut:
            failed = True
    after = root.with_name(root.name + "-after")
    platter.after_the_cut(after, np.random.default_rng(seed))
    platter.close()
    shutil.rmtree(root)
    after.rename(root)
    return acknowledged if failed else None


def check_power_cut(maker, monkeypatch, files, uninterrupted, at: int, seed: int) -> bool:
    """Whether the power failed; then no finished row was lost and the rest is computed to the same bytes."""
    maker.extract(FIRST, bad=BAD)
    acknowledged = cut(maker, monkeypatch, SECOND, at, seed)
    if acknowledged is None:
        return False
    again = maker.extract(SECOND, bad=BAD)
    computed = {row for task in again for row in range(task.first_row, task.end_row)}
    assert not computed & (acknowledged | set(FIRST)), (at, seed)
    assert files(maker.path) == uninterrupted(FIRST, SECOND, bad=BAD), (at, seed)
    assert verify_store(maker.path) == []
    return True


@pytest.fixture
def own_root(maker, tmp_path):
    """The maker below a folder of its own, which can be replaced as a whole."""
    (tmp_path / "disk").mkdir()
    return type(maker)(tmp_path / "disk" / "stores")


@pytest.mark.parametrize("at", [*range(1, 70, 5), 48])
def test_no_finished_row_is_lost_when_the_power_fails(own_root, monkeypatch, files, uninterrupted, at):
    assert check_power_cut(own_root, monkeypatch, files, uninterrupted, at, seed=at)


@pytest.mark.parametrize("at", range(2, 100, 11))
def test_a_first_extraction_survives_a_power_cut(own_root, monkeypatch, files, uninterrupted, at):
    acknowledged = cut(own_root, monkeypatch, SECOND, at, seed=at)
    assert acknowledged is not None
    again = own_root.extract(SECOND, bad=BAD)
    assert not {row for task in again for row in range(task.first_row, task.end_row)} & acknowledged
    assert files(own_root.path) == uninterrupted(SECOND, bad=BAD)


def test_the_test_sees_a_missing_fsync(own_root, monkeypatch, files, uninterrupted):
    """Without the fsync of files, some cut shows it."""
    import cspipe.store.files as module

    write = module._write_durably

    def careless(path, content):
        fsync = os.fsync
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda handle: None if stat.S_ISREG(os.fstat(handle).st_mode) else fsync(handle))
            write(path, content)

    monkeypatch.setattr(module, "_write_durably", careless)
    with pytest.raises((AssertionError, CspipeError)):
        for at in range(5, 60, 3):
            shutil.rmtree(own_root.stores, ignore_errors=True)
            check_power_cut(own_root, monkeypatch, files, uninterrupted, at, seed=at)


@pytest.mark.slow
def test_the_power_fails_at_every_fsync_many_times(maker, monkeypatch, files, uninterrupted, tmp_path):
    cuts = 0
    for seed in range(4):
        for at in range(1, 200):
            root = tmp_path / f"disk-{seed}-{at}"
            root.mkdir()
            if not check_power_cut(type(maker)(root / "stores"), monkeypatch, files, uninterrupted, at, seed):
                break
            cuts += 1
            shutil.rmtree(root)
    assert cuts > 250
