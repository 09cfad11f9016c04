"""Several processes at once on one store: one writes, the others are told so in a line and can take over."""

import os
import time
from pathlib import Path

import pytest

from cspipe.store.errors import StoreError
from cspipe.store.verify import verify_store

IMAGES, BAD, PROCESSES = range(90), [4, 9, 14], 5


def work(maker, log: Path) -> None:
    """Extract until it is done; a refusal is waited out, every computed chunk is logged."""
    for _ in range(2000):
        try:
            tasks = maker.extract(IMAGES, bad=BAD, before_commit=lambda task: time.sleep(0.002))
        except StoreError as error:
            assert "is being written by another writer" in str(error)
            with log.open("a") as file:
                file.write("refused\n")
            time.sleep(0.005)
            continue
        with log.open("a") as file:
            file.write("".join(f"{task.chunk}\n" for task in tasks))
        return
    raise AssertionError("never had its turn")


@pytest.mark.parametrize("seed", range(2))
def test_processes_that_extract_the_same_compute_each_chunk_once(maker, files, uninterrupted, tmp_path, seed):
    children = []
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(maker, tmp_path / f"{number}.log")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES
    lines = [line for log in sorted(tmp_path.glob("*.log")) for line in log.read_text().split()]
    assert sorted(int(line) for line in lines if line != "refused") == list(range(12))
    assert "refused" in lines
    assert files(maker.path) == uninterrupted(IMAGES, bad=BAD)
    assert verify_store(maker.path) == []
