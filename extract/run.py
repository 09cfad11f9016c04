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

from cspipe.extract.augment import draw_view, parts_of, words_of
from cspipe.extract.backbones import Backbone, BackboneSpec, load_backbone, resolve_spec
from cspipe.extract.datasets import Dataset, ImageSplit, load_dataset
from cspipe.extract.embed import Lane, default_batch_size, make_lane, pick_device
from cspipe.extract.hashing import hash_images, pixel_reader
from cspipe.extract.images import Pixels
from cspipe.extract.parallel import Draw, Part, Work, run_parts, worker_count
from cspipe.extract.progress import ProgressLike, Silent
from cspipe.store.errors import MismatchError, SettingError, unknown_name
from cspipe.store.layout import DTYPES, StoreKey, record_latest, store_path
from cspipe.store.leaks import count_duplicates
from cspipe.store.reader import Store, open_store
from cspipe.store.views import parse_view, view_name
from cspipe.store.writer import ImageTable, StoreWriter

_LIBRARIES = (
    "torch", "torchvision", "timm", "open_clip_torch", "transformers", "zarr", "numpy", "pillow",
    "content-style-pipeline",
)  # fmt: skip


@dataclass(frozen=True)
class _Options:
    """What holds for every split of one run."""

    dtype: str
    limit: int | None
    strict: bool
    workers: int
    views: int
    augment: str


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


def _check_options(dtype: str, limit: int | None, batch_size: int | None, views: int, augment: str) -> None:
    """Refuse values that cannot be used before anything is loaded."""
    if dtype not in DTYPES:
        raise SettingError(f"tokens are stored as fp16 or fp32, not {dtype!r}: give --dtype fp16 or fp32")
    if limit is not None and limit < 1:
        raise SettingError(f"--limit is how many images of each split are taken, at least 1; got {limit}")
    if batch_size is not None and (batch_size < 1 or batch_size & (batch_size - 1)):
        raise SettingError(f"--batch-size is a power of two, such as 16 or 128; {batch_size} was given")
    if views < 0:
        raise SettingError(f"--views is how many views of each training image are kept, 0 for none; got {views}")
    parts_of(augment)


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


def _view_facts(split: ImageSplit, options: _Options) -> dict[str, dict[str, Any]]:
    """What is recorded with each view of a split, by the view's name; only training images have views."""
    count = options.views if split.name == "train" else 0
    about = {"augment": options.augment, "augment_words": words_of(options.augment)}
    return {view_name(split.name, options.augment, k): {**about, "view": k} for k in range(1, count + 1)}


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


def _drawer(augment: str, table: ImageTable, view: int) -> Draw:
    """How view number ``view``, from 1, of the table's images is drawn."""

    def draw(image: int, pixels: Pixels) -> Pixels:
        return draw_view(augment, pixels, table.sha256[image].tobytes(), view - 1)

    return draw


def _embed_split(
    writer: StoreWriter, split: ImageSplit, lane: Lane, options: _Options, progress: ProgressLike
) -> dict[str, _Outcome]:
    """Bring one split of the store up to date, and its views in the same decoding pass."""
    facts = _view_facts(split, options)
    _refuse_other_views(writer.path, facts)
    images = evenly_spaced(len(split), options.limit)
    table = hash_images(split, images, options.workers)
    draws: dict[str, Draw | None] = {split.name: None}
    draws |= {name: _drawer(options.augment, table, about["view"]) for name, about in facts.items()}
    tasks = {name: writer.plan(name, table, whole=options.limit is None) for name in draws}
    missing = {name: sum(len(task.images) for task in tasks[name]) for name in draws}
    words = f" and {len(facts)} views" if facts else ""
    line = progress.add_task(f"{writer.path.stem} {split.name}{words}", total=sum(missing.values()))
    work = Work(
        lane=lane,
        batch_size=writer.batch_size,
        dtype=options.dtype,
        strict=options.strict,
        paths=table.path,
        pixels=pixel_reader(split, images, table, lane.backbone.geometry),
        commit=writer.commit,
        advance=lambda count: progress.update(line, advance=count),
    )
    parts = [Part(name, task, draws[name]) for name in draws for task in tasks[name]]
    if parts:
        run_parts(parts, work, options.workers)
    for name in draws:
        writer.finish(name, **facts.get(name, {}))
    return {name: _outcome(writer, name, len(images), missing[name]) for name in draws}


def _outcome(writer: StoreWriter, name: str, rows: int, computed: int) -> _Outcome:
    """What was done to a finished split."""
    bad = len(open_store(writer.path).split_attributes(name)["bad_images"])
    return _Outcome(rows, computed, rows - computed, bad, writer.removed(name))


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


def _bad_images(store: Store, name: str) -> list[dict[str, Any]]:
    """Bad images of a split; of a view those that its own split does not list already."""
    listed: list[dict[str, Any]] = store.split_attributes(name)["bad_images"]
    view = parse_view(name, store.names)
    if view is None:
        return listed
    known = {entry["path"] for entry in store.split_attributes(view.split)["bad_images"]}
    return [entry for entry in listed if entry["path"] not in known]


def _document(path: Path, backbone: Backbone, options: _Options, outcomes: Mapping[str, _Outcome]) -> dict[str, Any]:
    """What the run did, as plain JSON; times are added by the caller."""
    store = open_store(path)
    bad = [{"split": name, **entry} for name in outcomes for entry in _bad_images(store, name)]
    return {
        "store": str(path),
        "backbone": backbone.name,
        "dataset": store.dataset,
        "splits": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "bad_images": bad,
        "duplicates": count_duplicates(store),
        "width": backbone.width,
        "image_px": backbone.image_px,
        "token": backbone.token,
        "dtype": options.dtype,
        "views": options.views,
        "augment": options.augment if options.views else None,
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
    views: int = 0,
    augment: str = "affine",
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
    begun = time.monotonic()
    _check_options(dtype, limit, batch_size, views, augment)
    place, spec = pick_device(device), resolve_spec(backbone)
    listed = load_dataset(dataset, data_dir=data_dir)
    wanted = _wanted_splits(listed, split)
    loaded = load_backbone(spec, weights=weights, revision=revision, image_px=image_px, token=token, device=device)
    lane = make_lane(loaded, place, dtype)
    options = _Options(dtype, limit, strict, worker_count(lane), views, augment)
    started = time.monotonic()
    outcomes: dict[str, _Outcome] = {}
    with _open_writer(stores, lane, listed, dtype, weights, batch_size) as writer:
        for part in wanted:
            outcomes |= _embed_split(writer, part, lane, options, progress or Silent())
    record_latest(stores, writer.path)
    computed, ended = sum(outcome.computed for outcome in outcomes.values()), time.monotonic()
    speed = computed / (ended - started) if computed else None
    document = _document(writer.path, loaded, options, outcomes)
    return document | {"images_per_second": speed, "seconds": ended - begun}
