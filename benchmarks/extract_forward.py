"""Extraction against what no extraction can pass: the bare forward pass, and decoding beside it.

Legend: `B` batch, `H` and `W` height and width, pixels.

The bare forward pass is that of the same network (folded, channels-last) on batches of the same size that lie ready in
memory, normalised; decoding alone is from a file's bytes to the cropped pixels, without hashes or normalisation. Both
run on as many single-threaded threads as extraction has.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract_bench import Bench, Extraction, alternate, on_workers, run_extract, summary, tell
from head_bench import heading
from numpy.typing import NDArray

from cspipe.extract.datasets import ImageSplit, load_dataset
from cspipe.extract.embed import Lane
from cspipe.extract.images import Pixels, decode, normalise, to_uint8
from cspipe.extract.parallel import STAGES
from cspipe.extract.wanted import evenly_spaced
from cspipe.store.errors import SettingError

TITLES = "what", "images/s", "lowest to highest", "ratio", "lowest to highest"


def arrays(bench: Bench, dataset: str, data_dir: Path | None, count: int) -> dict[str, Any]:
    """Images in memory: extraction against the bare forward pass."""
    split = load_dataset(dataset, data_dir=data_dir).splits["train"]
    batches = _batches(bench, split, count)
    count = sum(map(len, batches))
    ready = [_ready(bench.lane, split, images) for images in batches]
    runs: list[Extraction] = []
    rates = alternate(bench.rounds, {
        "cspipe extract": lambda: _extract(bench, dataset, data_dir, count, runs),
        "bare forward": lambda: count / on_workers(bench, lambda batch: _forward(bench.lane, batch), ready),
    })  # fmt: skip
    heading(f"{dataset}, {count} images, {_words(bench)}", *TITLES)
    ours, bare = rates["cspipe extract"], rates["bare forward"]
    return _report(count, [summary("bare forward", bare), summary("cspipe extract", ours, bare)], runs)


def jpegs(bench: Bench, folder: Path) -> dict[str, Any]:
    """A folder of JPEGs: extraction against 1 / (1 / decode + 1 / forward), as both share the cores."""
    split = load_dataset(folder).splits["train"]
    batches = _batches(bench, split, len(split))
    count = sum(map(len, batches))
    ready = [_ready(bench.lane, split, images) for images in batches]
    runs: list[Extraction] = []
    rates = alternate(bench.rounds, {
        "cspipe extract": lambda: _extract(bench, str(folder), None, count, runs),
        "bare forward": lambda: count / on_workers(bench, lambda batch: _forward(bench.lane, batch), ready),
        "decode alone": lambda: count / on_workers(bench, lambda images: _decode(bench.lane, split, images), batches),
    })  # fmt: skip
    forward, alone = rates["bare forward"], rates["decode alone"]
    bound = [1 / (1 / one + 1 / other) for one, other in zip(forward, alone, strict=True)]
    heading(f"JPEGs, {count} images, {_words(bench)}", *TITLES)
    return _report(count, [
        summary("decode alone", alone), summary("bare forward", forward),
        summary("1 / (1 / decode + 1 / forward)", bound), summary("cspipe extract", rates["cspipe extract"], bound),
    ], runs)  # fmt: skip


def _words(bench: Bench) -> str:
    return (
        f"lite0 at {bench.backbone.image_px} px, batches of {bench.batch_size}, {bench.workers} workers, "
        f"n = {bench.rounds} alternating runs, medians; the ratio is the median of the rounds' ratios"
    )


def _batches(bench: Bench, split: ImageSplit, count: int) -> list[NDArray[np.int64]]:
    """About `count` image numbers, evenly spaced, in whole batches, so that no forward pass is filled up.

    Raises:
        SettingError: they do not fill one batch.
    """
    size = bench.batch_size
    whole = min(count, len(split)) // size * size
    if not whole:
        raise SettingError(f"a batch is {size} images, {min(count, len(split))} were given: raise --images")
    return list(evenly_spaced(len(split), whole).reshape(-1, size))


def _extract(bench: Bench, dataset: str, data_dir: Path | None, count: int, runs: list[Extraction]) -> float:
    """Images a second of one extraction, which is kept in `runs`."""
    runs.append(run_extract(bench, dataset, data_dir=data_dir, limit=count))
    return runs[-1].images_per_second


def _decode(lane: Lane, split: ImageSplit, images: NDArray[np.int64]) -> list[Pixels]:
    """Images as the network's side wants them, uint8 `(3, H, W)` each."""
    return [to_uint8(decode(split.load(int(image))), lane.backbone.geometry) for image in images]


def _ready(lane: Lane, split: ImageSplit, images: NDArray[np.int64]) -> torch.Tensor:
    """A normalised batch `(B, 3, H, W)`, channels-last."""
    pixels_B3HW = torch.from_numpy(np.stack(_decode(lane, split, images)))
    batch_B3HW = normalise(pixels_B3HW, lane.backbone.mean, lane.backbone.std)
    return batch_B3HW.contiguous(memory_format=torch.channels_last)


def _forward(lane: Lane, batch_B3HW: torch.Tensor) -> None:
    with torch.inference_mode():
        lane.model(batch_B3HW)


def _report(count: int, rows: list[dict[str, Any]], runs: list[Extraction]) -> dict[str, Any]:
    """Prints the rows and where the workers' time went, all runs but the first."""
    for row in rows:
        tell(row)
    seconds = {stage: sum(run.seconds_by_stage[stage] for run in runs[1:]) for stage in STAGES}
    whole = sum(seconds.values())
    shares = {stage: spent / whole for stage, spent in seconds.items()}
    words = ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    print(f"\nOf the workers' busy time in cspipe extract: {words}", flush=True)
    return {"images": count, "rows": rows, "share_by_stage": shares}
