"""Stores written with tokens, labels and hashes of our own: views in another order, and the peak of memory."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.headtrain.chunked import chunked_split
from cspipe.headtrain.streaming import peak_bytes
from cspipe.store import open_store
from cspipe.store.layout import StoreKey
from cspipe.store.plan import ImageTable
from cspipe.store.writer import StoreWriter

PLENTY = 10**9


def write(folder, splits):
    """A store of fp16 tokens, labels and hashes, a tuple a split."""
    key = StoreKey(transform="none", image_px=8, weights_sha256="ab" * 32, token="cls", dtype="fp16")
    path, width = folder / "made.zarr", next(iter(splits.values()))[0].shape[1]
    writer = StoreWriter(
        path, key=key, width=width, batch_size=64, backbone="lite0", dataset="made",
        provenance={"class_names": ["red", "green", "blue"]}, sources={"data": "made", "weights": None},
    )  # fmt: skip
    with closing(writer):
        for name, (token, label, sha256) in splits.items():
            table = ImageTable(sha256, label.astype(np.int64), [""] * len(label))
            writer.write(name, table, token.__getitem__)
    return path


def test_a_view_whose_rows_lie_in_another_order_is_read_row_by_row_of_its_split(tmp_path, monkeypatch, blobs):
    monkeypatch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: 64)
    rows, order = blobs(200, 1), np.random.default_rng(0).permutation(200)
    sha256 = np.random.default_rng(1).integers(0, 256, (200, 32), np.uint8)
    splits = {
        "train": (rows.token, rows.label, sha256), "train-affine-1": (rows.token[order] + 5, rows.label, sha256[order]),
    }  # fmt: skip
    own, view = chunked_split(open_store(write(tmp_path, splits)), "train", ["train-affine-1"], PLENTY)
    at = torch.tensor([199, 0, 64, 65])
    torch.testing.assert_close(view[at], own[at] + 5, rtol=0, atol=0.01)
    torch.testing.assert_close(
        torch.cat(list(view.first(100).first(90).blocks())), own[torch.arange(90)] + 5, rtol=0, atol=0.01
    )


PEAK = """
import sys
from pathlib import Path
from cspipe.headtrain import HeadSettings
from cspipe.headtrain.run import run_head
settings = HeadSettings(components=64, hidden=16, style=4, steps=100, batch=256, views=0)
told = run_head(
    store=Path(sys.argv[1]), runs=Path(sys.argv[2]), labels=60, seeds=2, settings=settings,
    memory_gb=float(sys.argv[3]), methods=("content-style", "knn"),
)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), told["rows"])
"""


def peak_of_a_run(path, runs, memory_gb):
    """Most memory that `run_head` ever had, bytes, in a process of its own; and what it says of its rows."""
    command = [sys.executable, "-c", PEAK, str(path), str(runs), str(memory_gb)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr
    kilobytes, rows = done.stdout.split(" ", 1)
    return int(kilobytes) * 1024, rows


def made_of_repeats(folder, count, width):
    """A store of so many rows, and of 300 judged ones."""
    draw = np.random.default_rng(0)
    label, sha256 = np.arange(count) % 3, draw.integers(0, 256, (count, 32), np.uint8)
    token = np.resize(draw.normal(size=(2_000, width)).astype(np.float16), (count, width))
    return write(folder, {"train": (token, label, sha256), "test": (token[:300], label[:300], sha256[:300])})


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_peak_memory_is_bounded_by_the_stated_formula_not_by_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    rows, width = 400_000, 256
    (tmp_path / "tiny").mkdir()
    tiny, large = made_of_repeats(tmp_path / "tiny", 2_000, width), made_of_repeats(tmp_path, rows, width)
    bound = peak_bytes(window=20_000, labelled=120, chunk=2_048, width=width, projected=64, views=0, itemsize=2)
    least, told = peak_of_a_run(tiny, tmp_path / "runs", 1)
    assert "streamed" not in told
    most, told = peak_of_a_run(large, tmp_path / "runs", bound / 1e9)
    assert "streamed_in_gb" in told
    assert most - least < bound + 170 * rows < rows * width
