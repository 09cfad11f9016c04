"""Reading all rows of a store, checksums verified, against np.load and zarr's own reader on the same bytes.

    python benchmarks/store.py [--rows 60000] [--width 1280] [--repeats 9]

Prints medians of alternating runs with a warm page cache, and the ratio to np.load.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cspipe.store import open_store
from cspipe.store.layout import StoreKey
from cspipe.store.writer import ImageTable, StoreWriter


def make_store(folder: Path, tokens: np.ndarray[Any, Any]) -> Path:
    """A store with these rows."""
    generator = np.random.default_rng(1)
    table = ImageTable(
        sha256=generator.integers(0, 256, (len(tokens), 32), dtype=np.uint8),
        label=np.zeros(len(tokens), np.int64), path=[str(row) for row in range(len(tokens))],
    )  # fmt: skip
    key = StoreKey("benchmark", 224, "0" * 64, "cls", "fp16")
    path = folder / "benchmark.zarr"
    with StoreWriter(path, key=key, width=tokens.shape[1], batch_size=64, backbone="none", dataset="none",
                     provenance={}, sources={}) as writer:  # fmt: skip
        for task in writer.plan("train", table, whole=True):
            writer.commit("train", task, tokens[task.first_row : task.end_row])
        writer.finish("train")
    return path


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=9)
    told = parser.parse_args()
    tokens = np.random.default_rng(0).standard_normal((told.rows, told.width), np.float32).astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "tokens.npy", tokens)
        path = make_store(folder, tokens)
        out = np.empty_like(tokens)
        calls: dict[str, Callable[[], object]] = {
            "np.load": lambda: np.load(folder / "tokens.npy"),
            "cspipe, new array": lambda: open_store(path)["train"].embedding(),
            "cspipe, caller's buffer": lambda: open_store(path)["train"].embedding(out),
            "zarr, defaults": lambda: zarr.open_group(path, mode="r")["train/embedding"][:],  # type: ignore[index]
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(told.repeats + 1):
            for name, call in calls.items():
                spent = seconds(call)
                if repeat:
                    times[name].append(spent)
        assert np.array_equal(out, tokens)
    print(f"{told.rows} x {told.width} fp16, {tokens.nbytes / 1e6:.0f} MB, n = {told.repeats}, alternating, warm cache")
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {version('numpy')}, zarr {version('zarr')}")
    base = statistics.median(times["np.load"])
    for name, spent in times.items():
        middle = statistics.median(spent)
        print(
            f"{name:24} {1e3 * middle:8.1f} ms  {tokens.nbytes / middle / 1e9:6.2f} GB/s  "
            f"{middle / base:5.2f} x np.load's time"
        )


if __name__ == "__main__":
    main()
