"""Peak memory of an extraction against the number of its images, each in a process of its own.

    python benchmarks/extract_memory.py ROWS        one extraction, its figures as JSON

The images are noise, made one by one as they are asked for, so that what grows is the extraction's own; the backbone
is timm's smallest ViT with random weights at 32 px.
"""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cspipe.extract.splits import DatasetSpec

SIDE_PX = 32
MIB = 2**20


def measure(rows: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measures and prints, numbers of rows in turn."""
    from head_bench import heading, say

    found: dict[int, list[dict[str, float]]] = {count: [] for count in rows}
    for _ in range(repeats):
        for count in rows:
            found[count].append(_in_own_process(count))
    heading(
        f"Peak resident memory, test_vit at {SIDE_PX} px, n = {repeats} processes each, medians",
        "rows", "before, MiB", "peak, MiB", "lowest to highest", "images/s",
    )  # fmt: skip
    told: list[dict[str, Any]] = []
    for count, runs in found.items():
        peaks = [run["peak_bytes"] for run in runs]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        row: dict[str, Any] = {"rows": count, **middle, "peaks": peaks}
        told.append(row)
        say(
            count, f"{row['before_bytes'] / MIB:.0f}", f"{row['peak_bytes'] / MIB:.0f}",
            f"{min(peaks) / MIB:.0f} to {max(peaks) / MIB:.0f}", f"{row['images_per_second']:.0f}",
        )  # fmt: skip
    first, last = told[0], told[-1]
    more = last["rows"] - first["rows"]
    grown = (last["peak_bytes"] - first["peak_bytes"]) / more if more else None
    if grown is not None:
        print(f"\n{grown:.0f} bytes more for each further row", flush=True)
    return {"repeats": repeats, "rows": told, "bytes_a_further_row": grown}


def _in_own_process(count: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, str(count)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak_bytes() -> int:
    """The most memory that this program had resident.

    Linux starts a child's `ru_maxrss` at what its parent had; the status file counts the program alone.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _noise(count: int, side: int) -> "DatasetSpec":
    """A data set of so many grey images, none of which is kept."""
    from cspipe.extract.splits import Dataset, DatasetSpec, array_split

    def load(image: int) -> NDArray[np.uint8]:
        return np.random.default_rng(image).integers(0, 256, (side, side), dtype=np.uint8)

    def read(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
        split = array_split("train", np.zeros(count, np.int64), load)
        return Dataset(spec.name, ["noise"], {"train": split}, "noise")

    return DatasetSpec("noise", read, count, 0, 1, side, "memory", "noise", "none")


def _random_weights(path: Path) -> Path:
    """Weights of the backbone, always the same."""
    import timm
    import torch
    from safetensors.torch import save_file

    state = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=SIDE_PX).state_dict()
    generator = torch.Generator().manual_seed(0)
    save_file({key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in state.items()}, path)
    return path


def extract_noise(count: int) -> dict[str, float]:
    """One extraction in this process: images a second, resident bytes before it and at most."""
    from cspipe.extract.run import extract_all
    from cspipe.extract.specs import BackboneSpec
    from cspipe.extract.targets import Request

    spec = BackboneSpec(
        name="test_vit", family="timm", architecture="test_vit", image_px=SIDE_PX, token="cls", licence="none",
        side_multiple=16, smallest_px=16,
    )  # fmt: skip
    with TemporaryDirectory() as name:
        request = Request(spec, weights=_random_weights(Path(name) / "weights.safetensors"))
        before = peak_bytes()
        told = extract_all([request], _noise(count, SIDE_PX), stores=Path(name), split="train")
    return {"images_per_second": told["images_per_second"], "before_bytes": before, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(extract_noise(int(sys.argv[1]))))
