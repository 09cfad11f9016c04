"""Stage one: every image of a data set once through a backbone, its token kept in a store."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.backbones import BackboneSpec, resolve_spec
from cspipe.extract.cluster import Cluster, Job, Planned, make_job
from cspipe.extract.datasets import DatasetSpec, ImageSplit, load_dataset
from cspipe.extract.embed import pick_device
from cspipe.extract.hashing import hash_images, image_reader
from cspipe.extract.outcomes import Outcome, document, outcome
from cspipe.extract.parallel import Clock, Work, run_parts, worker_count
from cspipe.extract.pieces import Part
from cspipe.extract.progress import ProgressLike, Silent
from cspipe.extract.targets import Request, Target, load_networks, open_targets
from cspipe.extract.wanted import Options, check_options, draws_of, evenly_spaced, view_facts, wanted_splits
from cspipe.store.errors import MismatchError
from cspipe.store.layout import record_latest
from cspipe.store.reader import open_store
from cspipe.store.remote import local_path
from cspipe.store.writer import ImageTable


def _refuse_other_views(path: Path, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Stop where a view of the same name was made in another way."""
    store = open_store(path)
    for name in [name for name in facts if name in store.names]:
        recorded = store.split_attributes(name).get("facts")
        if recorded and recorded != facts[name]:
            raise MismatchError(
                f"{path / name} was made by {recorded.get('augment')} as {recorded.get('augment_words')!r}, which is "
                f"now {facts[name]['augment_words']!r}: give another --augment, or another --stores folder"
            )


Compute = Callable[[ImageSplit, Sequence[Planned], NDArray[np.int64], ImageTable, Callable[[int], None]], None]
"""Computes and commits planned parts of a split, given its images, their table, and what to tell of progress."""


def _embed_split(
    targets: Sequence[Target], split: ImageSplit, options: Options, progress: ProgressLike, compute: Compute
) -> list[dict[str, Outcome]]:
    """Bring one split of every store up to date, and its views, in one decoding pass."""
    facts = view_facts(split, options)
    for target in targets:
        _refuse_other_views(target.writer.path, facts)
    images = evenly_spaced(len(split), options.limit)
    table = hash_images(split, images, options.workers)
    draws = draws_of(split, options, table)
    planned: list[Planned] = []
    missing: list[dict[str, int]] = []
    for number, target in enumerate(targets):
        tasks = {name: target.writer.plan(name, table, whole=options.limit is None) for name in draws}
        planned += [
            Planned(number, facts.get(name, {}).get("view"), Part(target.output, name, task, draws[name]))
            for name in draws
            for task in tasks[name]
        ]
        missing.append({name: sum(len(task.images) for task in tasks[name]) for name in draws})
    words = f" and {len(facts)} views" if facts else ""
    names = ", ".join(target.writer.path.stem for target in targets)
    line = progress.add_task(f"{names} {split.name}{words}", total=sum(sum(each.values()) for each in missing))
    if planned:
        compute(split, planned, images, table, lambda count: progress.update(line, advance=count))
    for target in targets:
        for name in draws:
            target.writer.finish(name, **facts.get(name, {}))
    return [
        {name: outcome(target.writer, name, len(images), undone[name]) for name in draws}
        for target, undone in zip(targets, missing, strict=True)
    ]


def _locally(options: Options, clock: Clock) -> Compute:
    """Parts computed by threads of this process."""

    def compute(
        split: ImageSplit, planned: Sequence[Planned], images: NDArray[np.int64], table: ImageTable,
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        work = Work(options.dtype, options.strict, table.path, image_reader(split, images, table), advance, clock)
        run_parts([each.part for each in planned], work, options.workers)

    return compute


def _on_cluster(cluster: Cluster, job: Job) -> Compute:
    """Parts computed by the workers of a scheduler."""

    def compute(
        split: ImageSplit, planned: Sequence[Planned], images: NDArray[np.int64], table: ImageTable,
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        cluster.run(job, split.name, planned, images, table, advance)

    return compute


def extract_all(
    requests: Sequence[Request],
    dataset: str | DatasetSpec,
    *,
    stores: Path | str,
    split: str = "all",
    data_dir: Path | None = None,
    dtype: str = "fp16",
    batch_size: int | None = None,
    limit: int | None = None,
    views: int = 0,
    augment: str = "affine",
    strict: bool = False,
    devices: Sequence[str] = ("cpu",),
    scheduler: str | None = None,
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Embed a data set's images by several backbones at once, each image decoded once; resumes as :func:`extract`.

    Args:
        requests: the backbones and the tokens of each, at least one.
        dataset: as in :func:`extract`; so are the other options.
        devices: where every backbone runs; batches are dealt out to them.
        scheduler: address of a dask.distributed scheduler whose workers do the work, see
            :mod:`cspipe.extract.cluster`; the first device is then that of each worker.

    Returns:
        A JSON document: ``stores``, a list of what :func:`extract` tells of one store; ``store``, the first one,
        which is the latest from now on; ``images_per_second``, null where nothing had to be computed; ``seconds``,
        and ``seconds_by_stage`` over all workers.

    Raises:
        CspipeError: whatever a user can mend; the message says how.
    """
    begun, stores = time.monotonic(), local_path(stores)
    check_options(dtype, limit, batch_size, views, augment)
    places = [pick_device(name) for name in devices]
    for request in requests:
        resolve_spec(request.backbone)
    listed = load_dataset(dataset, data_dir=data_dir)
    wanted = wanted_splits(listed, split)
    networks = load_networks(requests, places, dtype)
    workers = worker_count([lane for network in networks for lane in network.lanes])
    options = Options(dtype, limit, strict, workers, views, augment)
    started, clock = time.monotonic(), Clock()
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(scheduler)) if scheduler else None
        targets = stack.enter_context(open_targets(networks, listed, stores, dtype, batch_size))
        compute = _locally(options, clock)
        if cluster is not None:
            name = dataset if isinstance(dataset, str) else dataset.name
            compute = _on_cluster(cluster, make_job(networks, targets, name, data_dir, options, devices[0]))
        outcomes: list[dict[str, Outcome]] = [{} for _ in targets]
        for part in wanted:
            done = _embed_split(targets, part, options, progress or Silent(), compute)
            outcomes = [former | new for former, new in zip(outcomes, done, strict=True)]
    record_latest(stores, targets[0].writer.path)
    computed, ended = sum(part.computed for each in outcomes for part in each.values()), time.monotonic()
    chosen = {"dtype": dtype, "views": views, "augment": augment if views else None}
    told = [
        document(target.writer.path, target.backbone, each) | chosen
        for target, each in zip(targets, outcomes, strict=True)
    ]
    return {
        "store": told[0]["store"], "stores": told, "images_per_second": computed / (ended - started) or None,
        "seconds": ended - begun, "seconds_by_stage": clock.seconds,
    }  # fmt: skip


def extract(
    backbone: str | BackboneSpec,
    dataset: str | DatasetSpec,
    *,
    stores: Path | str,
    split: str = "all",
    weights: Path | None = None,
    revision: str | None = None,
    data_dir: Path | None = None,
    image_px: int | None = None,
    token: str | None = None,
    dtype: str = "fp16",
    batch_size: int | None = None,
    limit: int | None = None,
    views: int = 0,
    augment: str = "affine",
    strict: bool = False,
    device: str = "cpu",
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Embed a data set's images that the store does not hold yet; interrupted, it goes on where it stopped.

    Args:
        backbone: a name in ``BACKBONES``, or a spec.
        dataset: a name in ``DATASETS``, a folder of images, or an entry of that registry's kind.
        stores: folder of the stores, or its URL.
        split: ``"train"``, ``"test"`` or ``"all"``.
        weights: file of the backbone's weights, in place of the hub.
        revision: of the weights on the hub.
        data_dir: where a named data set's files lie.
        image_px: side of the input, pixels.
        token: which vector of the backbone.
        dtype: ``"fp16"`` or ``"fp32"``, as stored.
        batch_size: images of a batch, a power of two; a store goes on with the one it was started with.
        limit: this many images of each split, evenly spaced; a later run without it reuses them.
        views: so many augmented views of each training image are embedded too; more may be added later.
        augment: how views are drawn, a name in :data:`cspipe.extract.augment.AUGMENTATIONS`, or several joined by +.
        strict: stop at the first image that cannot be decoded instead of keeping a flagged row.
        device: where the backbone runs.
        progress: such as :func:`cspipe.extract.progress.console_progress`, already entered.

    Returns:
        A JSON document; ``images_per_second`` is null where nothing had to be computed.

    Raises:
        CspipeError: whatever a user can mend; the message says how.
    """
    request = Request(backbone, (token,), weights, revision, image_px)
    told = extract_all(
        [request], dataset, stores=stores, split=split, data_dir=data_dir, dtype=dtype, batch_size=batch_size,
        limit=limit, views=views, augment=augment, strict=strict, devices=(device,), progress=progress,
    )  # fmt: skip
    one: dict[str, Any] = told["stores"][0]
    return one | {name: value for name, value in told.items() if name != "stores"}
