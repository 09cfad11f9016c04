"""What opening, planning, verifying a chunk and reading cost on a store of many rows; a trivial backbone of zeros.

    python benchmarks/scale.py [--rows 10000000] [--width 16] [--folder DIR]

Builds the store through the writer (fsync off, for what is measured is arithmetic and memory), half of it first, as if
the run had been interrupted there. Every figure is from a process of its own: CPU seconds, seconds, peak memory.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cspipe.store import open_store
from cspipe.store.layout import StoreKey
from cspipe.store.verify import verify_chunk, verify_store
from cspipe.store.writer import ImageTable, StoreWriter

NAME = "scale.zarr"


def table_of(rows: int) -> ImageTable:
    """So many images: random hashes, ten classes, names of 22 characters."""
    sha256 = np.random.default_rng(0).integers(0, 256, (rows, 32), dtype=np.uint8)
    label = np.arange(rows, dtype=np.int64) % 10
    return ImageTable(sha256, label, [f"train/{row % 1000:03d}/{row:09d}.jpg" for row in range(rows)])


def open_writer(folder: Path, width: int) -> StoreWriter:
    """The store, created where there is none."""
    return StoreWriter(
        folder / NAME, key=StoreKey("none", 8, "0" * 64, "cls", "fp16"), width=width, batch_size=64,
        backbone="none", dataset="none", provenance={"class_names": [str(k) for k in range(10)]}, sources={},
    )  # fmt: skip


def hash_table(folder: Path, rows: int, width: int) -> None:
    """The table alone, which every plan begins with."""
    table_of(rows)


def begin(folder: Path, rows: int, width: int) -> None:
    """Plan, and commit every second chunk."""
    os.fsync = lambda handle: None  # type: ignore[assignment]
    with open_writer(folder, width) as writer:
        for task in writer.plan("train", table_of(rows), whole=True)[::2]:
            writer.commit("train", task, np.zeros((task.end_row - task.first_row, width), np.float16))


def plan_the_rest(folder: Path, rows: int, width: int) -> None:
    """Plan the rest of the interrupted run."""
    os.fsync = lambda handle: None  # type: ignore[assignment]
    with open_writer(folder, width) as writer:
        tasks = writer.plan("train", table_of(rows), whole=True)
        assert abs(sum(len(task.images) for task in tasks) - rows / 2) <= 2048


def finish(folder: Path, rows: int, width: int) -> None:
    """Plan and commit the rest."""
    os.fsync = lambda handle: None  # type: ignore[assignment]
    with open_writer(folder, width) as writer:
        for task in writer.plan("train", table_of(rows), whole=True):
            writer.commit("train", task, np.zeros((task.end_row - task.first_row, width), np.float16))
        writer.finish("train")


def look(folder: Path, rows: int, width: int) -> None:
    """Open the store, and its split's attributes."""
    assert open_store(folder / NAME)["train"].rows == rows


def verify_one(folder: Path, rows: int, width: int) -> None:
    """Verify one chunk."""
    assert verify_chunk(folder / NAME, "train", rows // 2048 // 2) == []


def verify_all(folder: Path, rows: int, width: int) -> None:
    """Verify every byte."""
    assert verify_store(folder / NAME) == []


def take(folder: Path, rows: int, width: int) -> None:
    """Read 1,000 rows of one chunk by their place."""
    split = open_store(folder / NAME)["train"]
    split.take(np.arange(rows // 2, rows // 2 + 1000, dtype=np.int64))


STEPS: dict[str, Callable[[Path, int, int], None]] = {
    step.__name__: step for step in (hash_table, begin, plan_the_rest, finish, look, verify_one, take, verify_all)
}


def measure(step: str, folder: Path, rows: int, width: int) -> dict[str, float]:
    """One step in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--rows", str(rows)]
    done = subprocess.run([*command, "--width", str(width)], check=True, capture_output=True, text=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def run_step(step: str, folder: Path, rows: int, width: int) -> None:
    """Do a step here and print what it took, imports left out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    STEPS[step](folder, rows, width)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(told | {"peak_mb": peak / 1024, "imports_mb": before / 1024}))


def main() -> None:
    """Builds, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.step:
        run_step(told.step, told.folder, told.rows, told.width)
        return
    folder = Path(tempfile.mkdtemp(dir=told.folder))
    try:
        for step in STEPS:
            took = measure(step, folder, told.rows, told.width)
            print(f"{told.rows:,} rows  {step:14} {took['cpu_seconds']:9.3f} s CPU  {took['seconds']:9.3f} s  "
                  f"{took['peak_mb']:7.0f} MB at most")  # fmt: skip
        for part in ("embedding", "commit", "sha256", "path", "label", "row_id", "present"):
            files = [path for path in (folder / NAME / "train" / part).rglob("*") if path.is_file()]
            each = sum(path.stat().st_size for path in files) / told.rows
            print(f"{part:10} {len(files):7} files {each:8.2f} bytes a row")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
