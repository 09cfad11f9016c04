"""Stage one: every image of a data set once through a backbone, its token kept in a store."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.backbones import Backbone, BackboneSpec, load_backbone, resolve_spec
from cspipe.extract.datasets import Dataset, ImageSplit, load_dataset
from cspipe.extract.embed import Lane, default_batch_size, make_lane, pick_device
from cspipe.extract.hashing import hash_images, pixel_reader
from cspipe.extract.parallel import Work, run_tasks, worker_count
from cspipe.extract.progress import ProgressLike, Silent
from cspipe.store.errors import SettingError, unknown_name
from cspipe.store.layout import DTYPES, StoreKey, record_latest, store_path
from cspipe.store.reader import open_store
from cspipe.store.writer import ChunkTask, StoreWriter

_LIBRARIES = ("torch", "timm", "zarr", "numpy", "pillow", "content-style-pipeline")


@dataclass(frozen=True)
class _Options:
    """What holds for every split of one run."""

    dtype: str
    limit: int | None
    strict: bool
    workers: int


@dataclass(frozen=True)
class _Outcome:
    """What one run did to a split: images wanted, computed now, found in the store; rows left out."""

    rows: int
    computed: int
    reused: int
    flagged: int
    removed: int


def evenly_spaced(count: int, limit: int | None) -> NDArray[np.int64]:
    """``limit`` of ``count`` image numbers from the first to the last, or all of them.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def _wanted_splits(dataset: Dataset, split: str) -> list[ImageSplit]:
    if split == "all":
        return list(dataset.splits.values())
    if split not in dataset.splits:
        raise unknown_name(f"split of {dataset.name}", split, ["all", *dataset.splits])
    return [dataset.splits[split]]


def _check_options(dtype: str, limit: int | None, batch_size: int | None) -> None:
    """Refuse values that cannot be used before anything is loaded."""
    if dtype not in DTYPES:
        raise SettingError(f"tokens are stored as fp16 or fp32, not {dtype!r}: give --dtype fp16 or fp32")
    if limit is not None and limit < 1:
        raise SettingError(f"--limit is how many images of each split are taken, at least 1; got {limit}")
    if batch_size is not None and (batch_size < 1 or batch_size & (batch_size - 1)):
        raise SettingError(f"--batch-size is a power of two, such as 16 or 128; {batch_size} was given")


def provenance(backbone: Backbone, dataset: Dataset, device: str) -> dict[str, Any]:
    """How the tokens came about, as plain JSON without times or places."""
    return {
        "backbone": backbone.name,
        "architecture": backbone.spec.architecture,
        "weights_sha256": backbone.weights_sha256,
        "weights_source": backbone.weights_source,
        "revision": backbone.revision,
        "licence": backbone.licence,
        "transform": backbone.transform_words,
        "transform_sha256": hashlib.sha256(backbone.transform_words.encode()).hexdigest(),
        "device": device,
        "class_names": dataset.class_names,
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }


def _embed_split(
    writer: StoreWriter, split: ImageSplit, lane: Lane, options: _Options, progress: ProgressLike
) -> _Outcome:
    """Bring one split of the store up to date."""
    images = evenly_spaced(len(split), options.limit)
    table = hash_images(split, images, options.workers)
    tasks = writer.plan(split.name, table, whole=options.limit is None)
    missing = sum(task.end_row - task.first_row for task in tasks)
    line = progress.add_task(f"{writer.path.stem} {split.name}", total=missing)

    def commit(task: ChunkTask, tokens_nD: NDArray[np.float32], bad: list[tuple[int, str]]) -> None:
        writer.commit(split.name, task, tokens_nD, bad)

    work = Work(
        lane=lane,
        batch_size=writer.batch_size,
        dtype=options.dtype,
        strict=options.strict,
        paths=table.path,
        pixels=pixel_reader(split, images, table, lane.backbone.geometry),
        commit=commit,
        advance=lambda count: progress.update(line, advance=count),
    )
    if tasks:
        run_tasks(tasks, work, options.workers)
    writer.finish(split.name)
    bad = len(open_store(writer.path).split_attributes(split.name)["bad_images"])
    return _Outcome(len(images), missing, len(images) - missing, bad, writer.removed(split.name))


def _open_writer(
    stores: Path, lane: Lane, dataset: Dataset, dtype: str, weights: Path | None, batch_size: int | None
) -> StoreWriter:
    """The store of this backbone and data set, created where there is none."""
    backbone = lane.backbone
    key = StoreKey(
        transform=backbone.transform_words,
        image_px=backbone.image_px,
        weights_sha256=backbone.weights_sha256,
        token=backbone.token,
        dtype=dtype,
    )
    return StoreWriter(
        store_path(stores, dataset.name, backbone.name, key),
        key=key,
        width=backbone.width,
        batch_size=batch_size or default_batch_size(backbone, lane.device),
        backbone=backbone.name,
        dataset=dataset.name,
        provenance=provenance(backbone, dataset, lane.device.type),
        sources={"weights": str(weights.resolve()) if weights else None, "data": dataset.source},
    )


def _document(path: Path, backbone: Backbone, dtype: str, outcomes: Mapping[str, _Outcome]) -> dict[str, Any]:
    """What the run did, as plain JSON; times are added by the caller."""
    store = open_store(path)
    bad = [{"split": name, **entry} for name in outcomes for entry in store.split_attributes(name)["bad_images"]]
    return {
        "store": str(path),
        "backbone": backbone.name,
        "dataset": store.dataset,
        "splits": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "bad_images": bad,
        "width": backbone.width,
        "image_px": backbone.image_px,
        "token": backbone.token,
        "dtype": dtype,
        "licence": backbone.licence,
    }


def extract(
    backbone: str | BackboneSpec,
    dataset: str,
    *,
    stores: Path,
    split: str = "all",
    weights: Path | None = None,
    revision: str | None = None,
    data_dir: Path | None = None,
    image_px: int | None = None,
    token: str | None = None,
    dtype: str = "fp16",
    batch_size: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    device: str = "cpu",
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Embed a data set's images that the store does not hold yet; interrupted, it goes on where it stopped.

    Args:
        backbone: a name in ``BACKBONES``, or a spec.
        dataset: a name in ``DATASETS``, or a folder of images.
        stores: folder of the stores.
        split: ``"train"``, ``"test"`` or ``"all"``.
        weights: file of the backbone's weights, in place of the hub.
        revision: of the weights on the hub.
        data_dir: where a named data set's files lie.
        image_px: side of the input, pixels.
        token: which vector of the backbone.
        dtype: ``"fp16"`` or ``"fp32"``, as stored.
        batch_size: images of a batch, a power of two; a store goes on with the one it was started with.
        limit: this many images of each split, evenly spaced; a later run without it reuses them.
        strict: stop at the first image that cannot be decoded instead of keeping a flagged row.
        device: where the backbone runs.
        progress: such as :func:`cspipe.extract.progress.console_progress`, already entered.

    Returns:
        A JSON document; ``images_per_second`` is null where nothing had to be computed.

    Raises:
        CspipeError: whatever a user can mend; the message says how.
    """
    begun = time.monotonic()
    _check_options(dtype, limit, batch_size)
    place, spec = pick_device(device), resolve_spec(backbone)
    listed = load_dataset(dataset, data_dir=data_dir)
    wanted = _wanted_splits(listed, split)
    loaded = load_backbone(spec, weights=weights, revision=revision, image_px=image_px, token=token, device=device)
    lane = make_lane(loaded, place, dtype)
    options = _Options(dtype=dtype, limit=limit, strict=strict, workers=worker_count(lane))
    started, outcomes = time.monotonic(), {}
    with _open_writer(stores, lane, listed, dtype, weights, batch_size) as writer:
        for part in wanted:
            outcomes[part.name] = _embed_split(writer, part, lane, options, progress or Silent())
    record_latest(stores, writer.path)
    computed, ended = sum(outcome.computed for outcome in outcomes.values()), time.monotonic()
    speed = computed / (ended - started) if computed else None
    document = _document(writer.path, loaded, dtype, outcomes)
    return document | {"images_per_second": speed, "seconds": ended - begun}
