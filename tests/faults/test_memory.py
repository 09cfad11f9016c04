"""Peak memory of an extraction with a trivial backbone: what a row adds is its line in the table, nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
import cspipe.extract.parallel as parallel
from cspipe.extract.run import extract
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit

rows, weights, stores = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
whole = np.random.default_rng(0).integers(0, 256, (64 + rows // 4096 + 1, 64 + 4096, 3), dtype=np.uint8)

def read(spec, data_dir):
    def image(i):  # 64 x 64 pixels, 12 kB, a window of a larger picture
        top, left = divmod(int(i), 4096)
        return np.ascontiguousarray(whole[top : top + 64, left : left + 64])
    paths = [f"train/{i:09d}.png" for i in range(rows)]
    return Dataset("windows", ["a"], {"train": ImageSplit("train", np.zeros(rows, np.int64), paths, image)}, "made")

def trivial(lane, seat, *rest):
    return np.full((len(seat.pixels_B3HW), lane.backbone.width), float(seat.pixels_B3HW[0, 0, 0, 0]), np.float32)

parallel.embed = trivial
spec = DatasetSpec("windows", read, rows, 0, 1, 64, "made", "windows", "")
extract("timm:test_vit", spec, stores=stores, weights=weights, image_px=16, batch_size=64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mb(rows: int, weights: Path, folder: Path) -> int:
    """Peak memory of a process that extracts so many rows."""
    command = [sys.executable, "-c", PEAK, str(rows), str(weights), str(folder / str(rows))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_memory_hardly_grows_from_10_000_to_200_000_rows(tmp_path, weights):
    small, large = (peak_mb(rows, weights, tmp_path) for rows in (10_000, 200_000))
    print(f"peak at 10,000 rows {small} MB, at 200,000 rows {large} MB")
    assert large - small < 190_000 * 1_000 / 1e6 + 30
