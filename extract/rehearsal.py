"""What an extraction would do, found out without writing anything: rows, bytes, and time by a measured sample."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspipe.extract.backbones import resolve_spec
from cspipe.extract.datasets import ImageSplit, load_dataset
from cspipe.extract.embed import default_batch_size, pick_device
from cspipe.extract.hashing import hash_images, image_reader
from cspipe.extract.parallel import Work, run_parts, worker_count
from cspipe.extract.pieces import Output, Part
from cspipe.extract.targets import Network, Request, key_of, load_networks
from cspipe.extract.wanted import Options, check_options, draws_of, evenly_spaced, wanted_splits
from cspipe.store.commits import committed_ends
from cspipe.store.layout import DTYPES, chunk_rows, store_path
from cspipe.store.meta import read_group
from cspipe.store.plan import ChunkTask, ImageTable, make_plan
from cspipe.store.remotes import bring, shown
from cspipe.store.table import Rows, Shape, read_rows

SAMPLE_BATCHES = 4
"""Batches a worker that the speed is measured on, after one to warm up."""

BYTES_A_ROW = 160
"""Disk that the row table takes for an image beside its token, about: hash, path, label, number."""


def tasks_of(path: Path, split: str, table: ImageTable, shape: Shape, *, whole: bool) -> list[ChunkTask]:
    """What a run would compute for one split of a store that may not exist yet.

    Raises:
        StoreError: the store is damaged.
    """
    folder = path / split
    attributes = read_group(folder) if (folder / "zarr.json").is_file() else {}
    rows = read_rows(folder, attributes) if "array_sha256" in attributes else Rows.none()
    ends = committed_ends(folder, shape)
    settled = int(attributes.get("settled", 0))
    return make_plan(rows, ends, settled, table, whole=whole, per_chunk=shape.per_chunk).tasks


def _shape(path: Path, width: int, dtype: str, batch_size: int) -> tuple[Shape, int]:
    """Shape and batch size of a store, or those that it would be begun with."""
    if (path / "zarr.json").is_file():
        root = read_group(path)
        return Shape(width, DTYPES[dtype], int(root["chunk_rows"])), int(root["batch_size"])
    per_chunk = chunk_rows(width, np.dtype(DTYPES[dtype]).itemsize)
    return Shape(width, DTYPES[dtype], per_chunk), min(batch_size, per_chunk)


class _Rehearsal:
    """One backbone's token: what is missing of its store, and a sample of it."""

    def __init__(
        self, network: Network, number: int, dataset: str, stores: Path, *, dtype: str, batch_size: int | None
    ) -> None:
        self.backbone = network.tokens[number]
        self.path = store_path(stores, dataset, self.backbone.name, key_of(self.backbone, dtype))
        wanted = batch_size or default_batch_size(network.lanes[0])
        self.shape, size = _shape(self.path, self.backbone.width, dtype, wanted)
        self.output = Output(network.lanes, network.columns(number), size, lambda *_: None)
        self.missing: dict[str, int] = {}

    def sample(self, split: ImageSplit, options: Options, table: ImageTable) -> list[Part]:
        """Note what is missing of a split and its views; parts that hold a few batches of it."""
        parts, draws = [], draws_of(split, options, table)
        few = self.output.batch_size * options.workers * SAMPLE_BATCHES
        for name, draw in draws.items():
            bring(self.path / name)
            tasks = tasks_of(self.path, name, table, self.shape, whole=options.limit is None)
            self.missing[name] = sum(len(task.images) for task in tasks)
            if tasks:
                images = np.concatenate([task.images for task in tasks])[:few]
                parts.append(Part(self.output, name, ChunkTask(0, 0, len(images), images), draw))
        return parts

    def told(self) -> dict[str, Any]:
        """What would be done to this store."""
        rows = sum(self.missing.values())
        row_bytes = self.shape.width * np.dtype(self.shape.dtype).itemsize
        return {
            "store": shown(self.path), "exists": self.path.is_dir(), "backbone": self.backbone.name,
            "token": self.backbone.token, "width": self.backbone.width, "licence": self.backbone.licence,
            "image_px": self.backbone.image_px, "batch_size": self.output.batch_size, "rows_to_compute": self.missing,
            "bytes": rows * (row_bytes + BYTES_A_ROW),
        }  # fmt: skip


def rehearse(
    requests: Sequence[Request],
    dataset: str,
    *,
    stores: Path,
    split: str = "all",
    data_dir: Path | None = None,
    dtype: str = "fp16",
    batch_size: int | None = None,
    limit: int | None = None,
    views: int = 0,
    augment: str = "affine",
    devices: Sequence[str] = ("cpu",),
) -> dict[str, Any]:
    """What :func:`cspipe.extract.run.extract_all` would do with the same arguments; nothing is written.

    Returns:
        A JSON document: ``stores``, for each the rows to compute by split, bytes on disk (estimated), batch size
        and licence of the weights; ``images_per_second`` over all stores, measured on a few batches;
        ``seconds_left``; ``bytes_free``, of the disk; the last three null where nothing has to be computed.

    Raises:
        CspipeError: as the extraction itself.
    """
    check_options(dtype, limit, batch_size, views, augment)
    for request in requests:
        resolve_spec(request.backbone)
    listed = load_dataset(dataset, data_dir=data_dir)
    wanted = wanted_splits(listed, split)
    networks = load_networks(requests, [pick_device(name) for name in devices], dtype)
    options = Options(dtype, limit, False, worker_count([n.lanes[0] for n in networks]), views, augment)
    plans = [
        _Rehearsal(network, number, listed.name, stores, dtype=dtype, batch_size=batch_size)
        for network in networks
        for number in range(len(network.tokens))
    ]
    speed: float | None = None
    for part in wanted:
        images = evenly_spaced(len(part), limit)
        table = hash_images(part, images, options.workers)
        sample = [each for plan in plans for each in plan.sample(part, options, table)]
        if sample and speed is None:
            work = Work(dtype, False, table.path, image_reader(part, images, table), lambda count: None)
            speed = _measure(sample, work, options.workers)
    rows = sum(sum(plan.missing.values()) for plan in plans)
    near = next(folder for folder in (stores.absolute(), *stores.absolute().parents) if folder.is_dir())
    return {
        "dry_run": True, "stores": [plan.told() for plan in plans], "images_per_second": speed,
        "seconds_left": rows / speed if speed else None, "bytes_free": shutil.disk_usage(near).free,
    }  # fmt: skip


def _measure(parts: Sequence[Part], work: Work, workers: int) -> float:
    """Images a second, of all parts together, after one batch of each to warm up."""
    first = [
        Part(part.output, part.split, ChunkTask(0, 0, 1, part.task.images[:1]), part.draw) for part in parts
    ]  # fmt: skip
    run_parts(first, work, workers)
    begun = time.perf_counter()
    run_parts(parts, work, workers)
    return sum(len(part.task.images) for part in parts) / (time.perf_counter() - begun)
