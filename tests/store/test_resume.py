"""Killed at every kind of instant: a child process stops itself with SIGKILL at its n-th durable step."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cspipe.store import commits
from cspipe.store.errors import StoreError
from cspipe.store.files import write_chunk
from cspipe.store.table import Shape
from cspipe.store.verify import verify_store

SHAPE = Shape(6, "float16", 8)
FIRST, SECOND = range(13), range(27)
BAD = [4, 9, 14]


def _counted(call: Callable, at: int, count: list[int]) -> Callable:
    """``call``, but the process dies just before the step with number ``at``."""

    def step(*arguments, **keywords):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **keywords)

    return step


def killed(work: Callable[[], object], at: int) -> bool:
    """Do the work in a child that is killed before its step ``at``; whether it lived to be killed."""
    child = os.fork()
    if child == 0:
        count = [0]
        os.fsync = _counted(os.fsync, at, count)
        for name in ("replace", "unlink", "mkdir", "write_bytes"):
            setattr(Path, name, _counted(getattr(Path, name), at, count))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def committed(maker) -> set[int]:
    """Rows that are committed now."""
    split = maker.path / "train"
    ends = commits.committed_ends(split, SHAPE) if split.is_dir() else []
    return {row for chunk, end in enumerate(ends) for row in range(chunk * 8, int(end))}


def computed(maker, images) -> set[int]:
    """Rows that extracting these images computes."""
    tasks = maker.extract(images, bad=BAD)
    return {row for task in tasks for row in range(task.first_row, task.end_row)}


@pytest.mark.parametrize("at", range(1, 130, 10))
def test_a_first_extraction_killed_at_any_step_resumes_to_the_same_bytes(maker, files, uninterrupted, at):
    assert killed(lambda: maker.extract(FIRST, bad=BAD), at)
    before = committed(maker)
    if maker.path.is_dir():
        assert verify_store(maker.path) != []
    assert computed(maker, FIRST) == set(FIRST) - before
    assert files(maker.path) == uninterrupted(FIRST, bad=BAD)
    assert verify_store(maker.path) == []


@pytest.mark.parametrize("at", [*range(2, 96, 9), 62, 66, 75])
def test_an_extension_killed_at_any_step_loses_no_row_and_computes_none_twice(maker, files, uninterrupted, at):
    maker.extract(FIRST, bad=BAD)
    was_killed = killed(lambda: maker.extract(SECOND, bad=BAD), at)
    assert was_killed
    again = computed(maker, SECOND)
    assert not again & set(FIRST)
    assert files(maker.path) == uninterrupted(FIRST, SECOND, bad=BAD)
    assert verify_store(maker.path) == []


@pytest.mark.parametrize("at", range(3, 96, 14))
def test_after_a_killed_extension_the_former_data_set_is_complete_again(maker, tokens, at):
    maker.extract(FIRST, bad=BAD)
    assert killed(lambda: maker.extract(SECOND, bad=BAD), at)
    maker.extract(FIRST, bad=BAD, whole=False)
    split = maker.open()["train"]
    good = [i for i in FIRST if i not in BAD]
    np.testing.assert_array_equal(split.embedding()[: len(good)], tokens(good))
    assert verify_store(maker.path) == []


@pytest.mark.parametrize("at", range(3, 50, 7))
def test_a_killed_relabelling_is_repaired_by_the_next_plan(maker, table, at):
    maker.extract(range(13))
    moved = table(list(range(13)), label=[5] * 13, folder="b")
    assert killed(lambda: maker.extract(range(13), table=moved), at)
    assert maker.extract(range(13), table=moved) == []
    split = maker.open()["train"]
    assert (split.label() == 5).all() and split.path()[12] == "b/12.png"
    assert verify_store(maker.path) == []


def test_a_chunk_is_durable_under_its_name_before_its_commit_record_is_begun(maker, table, tokens, monkeypatch):
    events = []
    replace = Path.replace

    def logged_replace(path, target):
        events.append(("rename", str(Path(target).relative_to(maker.path / "train"))))
        return replace(path, target)

    def logged_fsync(handle):
        name = str(Path(f"/proc/self/fd/{handle}").readlink()).removesuffix(".partial")
        kind = "data" if Path(f"/proc/self/fd/{handle}").is_file() else "names"
        events.append((kind, str(Path(name).relative_to(maker.path / "train")).split(".")[0]))

    with maker.writer() as writer:
        tasks = writer.plan("train", table(FIRST), whole=True)
        monkeypatch.setattr(Path, "replace", logged_replace)
        monkeypatch.setattr(os, "fsync", logged_fsync)
        writer.commit("train", tasks[0], tokens(range(8)))
    steps = [
        (kind, f"{array}/c/0{tail}")
        for array in ("embedding", "commit")
        for kind, tail in (("data", "/0"), ("rename", "/0"), ("names", ""))
    ]
    assert [event for event in events if event in steps] == steps


def test_a_chunk_file_without_a_commit_record_is_never_read(maker, tokens):
    def forge(task):
        write_chunk(commits.embedding_file(maker.path / "train", task.chunk), np.full((8, 6), 77, np.float16))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maker.extract(FIRST, before_commit=forge)
    assert any("no sound commit record" in problem.what for problem in verify_store(maker.path))
    assert computed(maker, FIRST) == set(FIRST)
    assert not (maker.open()["train"].embedding() == 77).any()


def test_an_extension_killed_between_chunk_and_record_is_undone(maker, files, uninterrupted, monkeypatch):
    maker.extract(FIRST, bad=BAD)

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(commits, "write_record", die)
        assert killed(lambda: maker.extract(SECOND, bad=BAD), 10_000)
    assert committed(maker) == set(range(8))  # the chunk's record no longer fits its file
    maker.writer().close()
    assert committed(maker) == set(FIRST)
    assert computed(maker, SECOND) == set(SECOND) - set(FIRST)
    assert files(maker.path) == uninterrupted(FIRST, SECOND, bad=BAD)


def test_an_extended_file_whose_record_was_not_written_is_planned_anew_as_a_whole(maker, tokens):
    maker.extract(FIRST)
    longer = np.full((8, 6), 77, np.float16)
    write_chunk(commits.embedding_file(maker.path / "train", 1), longer)
    tasks = maker.extract(FIRST)
    assert [(task.first_row, task.end_row) for task in tasks] == [(8, 13)]
    np.testing.assert_array_equal(maker.open()["train"].embedding(), tokens(FIRST))


def test_a_row_lost_in_a_crash_whose_image_is_gone_becomes_void_and_the_image_a_new_row(maker, tokens):
    maker.extract(FIRST)
    commits.embedding_file(maker.path / "train", 0).unlink()
    kept = [i for i in FIRST if i != 3]
    with pytest.raises(StoreError, match=r"1 rows of an interrupted run.*without --limit first"):
        maker.extract(kept, whole=False)
    maker.extract(kept)
    split = maker.open()["train"]
    assert split.row_id().tolist() == kept
    assert split.attributes["bad_images"][0]["reason"] == "the image was gone before its token was kept"
    np.testing.assert_array_equal(split.embedding(), tokens(kept))
    maker.extract(FIRST)
    np.testing.assert_array_equal(maker.open()["train"].embedding(), tokens([*kept, 3]))
    assert verify_store(maker.path) == []


def test_a_limited_run_after_an_interrupted_whole_one_keeps_what_is_committed(maker, table, tokens):
    with maker.writer() as writer:
        tasks = writer.plan("train", table(SECOND), whole=True)
        writer.commit("train", tasks[0], tokens(range(8)))
    again = maker.extract([2, 20, 26], whole=False)
    assert [i for task in again for i in task.images] == [1, 2]
    np.testing.assert_array_equal(maker.open()["train"].embedding(), tokens([*range(8), 20, 26]))


def test_a_limited_run_does_not_leave_holes_that_an_interrupted_whole_one_left(maker, table, tokens):
    with maker.writer() as writer:
        tasks = writer.plan("train", table(SECOND), whole=True)
        writer.commit("train", tasks[1], tokens(range(8, 16)))
    with pytest.raises(StoreError, match="7 rows of an interrupted run"):
        maker.extract([2, 9], whole=False)
    assert computed(maker, SECOND) == set(SECOND) - set(range(8, 16))


def test_left_over_partial_files_are_ignored_by_readers_and_removed_by_the_next_writer(maker):
    maker.extract(FIRST)
    left = [maker.path / "zarr.json.1.partial", maker.path / "train" / "embedding" / "c" / "0" / "0.9.partial"]
    for path in left:
        path.write_bytes(b"torn")
    assert len(maker.open()["train"].embedding()) == 13
    assert [p.what for p in verify_store(maker.path)] == ["a killed process left this file"] * 2
    assert maker.extract(FIRST) == []
    assert not any(path.exists() for path in left) and verify_store(maker.path) == []


def test_a_folder_that_is_no_store_is_not_written_into(maker):
    maker.path.mkdir(parents=True)
    (maker.path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a store"):
        maker.writer()
    assert [path.name for path in maker.path.iterdir()] == ["notes.txt"]
