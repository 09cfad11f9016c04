"""Killed with SIGKILL over and over: nothing finished is lost or computed twice, the bytes are the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cspipe.store.verify import verify_store

PROGRAM = Path(__file__).with_name("killing.py")
WHOLE = "import sys; sys.path.insert(0, sys.argv[1]); import killing; from pathlib import Path; "
WHOLE += "killing.run(*map(Path, sys.argv[2:5]))"


def check_kills(tmp_path: Path, weights: Path, files, *, kills: int, count: int, timeout: float) -> None:
    random, images = np.random.default_rng(kills), tmp_path / "dots.npz"
    pixels = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    label = np.arange(count) % 3
    np.savez(images, images=pixels[20:], labels=label[20:], test_images=pixels[:20], test_labels=label[:20])
    killed, whole = tmp_path / "killed" / "stores", tmp_path / "whole" / "stores"
    killed.mkdir(parents=True)
    command = [sys.executable, str(PROGRAM), str(killed), str(images), str(weights), str(kills), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert len(told["gained"]) == kills + 1 and min(told["gained"][:-1]) >= 1
    assert told["twice"] == [] and told["lost"] == [] and told["status"] == 0
    command = [sys.executable, "-c", WHOLE, str(PROGRAM.parent), str(whole), str(images), str(weights)]
    subprocess.run(command, check=True, capture_output=True, timeout=timeout)
    assert files(next(killed.glob("*.zarr"))) == files(next(whole.glob("*.zarr")))
    assert verify_store(next(killed.glob("*.zarr"))) == []


def test_an_extraction_that_is_killed_four_times_ends_in_the_same_bytes(tmp_path, weights, files):
    check_kills(tmp_path, weights, files, kills=4, count=500, timeout=120)


@pytest.mark.slow
def test_an_extraction_that_is_killed_fifty_times_ends_in_the_same_bytes(tmp_path, weights, files):
    check_kills(tmp_path, weights, files, kills=50, count=6000, timeout=900)
