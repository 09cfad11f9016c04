"""Reading all rows of a store, checksums verified, against other readers of the same bytes.

    python benchmarks/store.py [--rows 60000] [--width 1280] [--repeats 9]

Prints medians of alternating runs with a warm page cache, and the ratio to np.load, which verifies nothing. CPU time is
that of all threads: it tells what reading costs where the cores are wanted for other work.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from safetensors.numpy import load_file, save_file

from cspipe.store import open_store
from cspipe.store.commits import embedding_file
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
        writer.write("train", table, tokens.__getitem__)
    return path


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def read_unsummed(path: Path, out: np.ndarray[Any, Any]) -> None:
    """The chunk files of a split without flagged rows straight into ``out``, no checksum looked at, two threads."""
    per_chunk = open_store(path).shape.per_chunk

    def read(chunk: int) -> None:
        rows = out[chunk * per_chunk : (chunk + 1) * per_chunk].reshape(-1).view(np.uint8)
        with embedding_file(path / "train", chunk).open("rb", buffering=0) as file:
            done = 0
            while done < len(rows):
                done += file.readinto(rows[done:].data)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, range(-(-len(out) // per_chunk))))


def read_by_zarr(path: Path) -> np.ndarray[Any, Any]:
    """By zarr's own reader with its default settings, checksums verified."""
    array = zarr.open_group(path, mode="r")["train/embedding"]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def readers(folder: Path, path: Path, out: np.ndarray[Any, Any]) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    return {
        "np.load": lambda: np.load(folder / "tokens.npy"),
        "cspipe, new array": lambda: open_store(path)["train"].embedding(),
        "cspipe, caller's buffer": lambda: open_store(path)["train"].embedding(out),
        "without checksums, new": lambda: read_unsummed(path, np.empty_like(out)),
        "without checksums, buffer": lambda: read_unsummed(path, out),
        "np.memmap, copied": lambda: np.array(np.load(folder / "tokens.npy", mmap_mode="r")),
        "safetensors": lambda: load_file(folder / "tokens.safetensors")["tokens"],
        "zarr, defaults": lambda: read_by_zarr(path),
        "cspipe, dask": lambda: open_store(path)["train"].dask().compute(),
    }


def measure(rows: int, width: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU times of each reader, alternating, after one round that is not counted."""
    tokens = np.random.default_rng(0).standard_normal((rows, width), np.float32).astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "tokens.npy", tokens)
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
        path, out = make_store(folder, tokens), np.empty_like(tokens)
        calls = readers(folder, path, out)
        times: dict[str, list[tuple[float, float]]] = {reader: [] for reader in calls}
        for repeat in range(repeats + 1):
            for reader, call in calls.items():
                spent = seconds(call)
                if repeat:
                    times[reader].append(spent)
        assert np.array_equal(out, tokens)
    return times


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=9)
    told = parser.parse_args()
    size = told.rows * told.width * 2
    print(f"{told.rows} x {told.width} fp16, {size / 1e6:.0f} MB, n = {told.repeats}, alternating, warm cache")
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "zarr", "safetensors", "dask"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {versions}")
    times = measure(told.rows, told.width, told.repeats)
    base = statistics.median(wall for wall, _ in times["np.load"])
    for name, spent in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*spent, strict=True))
        print(
            f"{name:26} {1e3 * wall:8.1f} ms  {size / wall / 1e9:6.2f} GB/s  {wall / base:5.2f} x np.load's time  "
            f"{1e3 * cpu:8.1f} ms CPU"
        )


if __name__ == "__main__":
    main()
