"""What a store was made from, found again: its backbone, its images, the image of each row.

Legend: ``N`` rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.backbones import Backbone, load_backbone
from cspipe.extract.datasets import DATASETS, Dataset, ImageSplit, load_dataset
from cspipe.extract.hashing import hash_images
from cspipe.extract.wanted import evenly_spaced
from cspipe.store.errors import CspipeError, MismatchError, MissingDataError
from cspipe.store.join import parts_of
from cspipe.store.meta import read_group
from cspipe.store.plan import match
from cspipe.store.reader import Store
from cspipe.store.repair import Mended, Values, damaged_tables, put_back
from cspipe.store.table import Rows, read_array, storable_paths
from cspipe.store.views import parse_view

Ints = NDArray[np.int64]
READERS = 2


def recorded_backbone(store: Store, *, weights: Path | None, device: str) -> Backbone:
    """The backbone that a store was made with.

    Args:
        store: where name, side, token and the hash of the weights are recorded.
        weights: file of the weights; None: where they were at extraction.
        device: torch device.

    Raises:
        MissingDataError: the weights are not where they were.
        MismatchError: other weights or another preprocessing than those of the store, or tokens of several backbones.
    """
    if parts := parts_of(store.provenance):
        raise MismatchError(
            f"{store.path.name} holds the tokens of {' and '.join(parts)} side by side, which no single backbone "
            "makes: to predict, export or fine-tune, train a head on the store of one of them"
        )
    recorded, key = store.attributes.get("sources", {}).get("weights"), store.key
    file = weights or (Path(recorded) if recorded else None)
    if file is not None and not file.exists():
        raise MissingDataError(
            f"the weights of {store.backbone} are no longer at {file}: name them with --weights FILE"
        )
    revision = None if file else store.provenance.get("revision")
    backbone = load_backbone(
        store.backbone, weights=file, revision=revision, image_px=key.image_px, token=key.token, device=device
    )
    if backbone.weights_sha256 != key.weights_sha256:
        raise MismatchError(
            f"{store.path.name} was extracted with weights {key.weights_sha256[:12]}, but "
            f"{backbone.weights_source} holds {backbone.weights_sha256[:12]}: name the right file with --weights FILE"
        )
    if backbone.transform_words != key.transform:
        raise MismatchError(
            f"{store.path.name} was extracted with the preprocessing {key.transform!r}, which is now "
            f"{backbone.transform_words!r}: install the versions that `cspipe store info` lists"
        )
    return backbone


def recorded_dataset(store: Store, data_dir: Path | None) -> Dataset:
    """The images that a store was made from, where they were or under ``data_dir``.

    Raises:
        MissingDataError: they are not there.
    """
    recorded = store.attributes.get("sources", {}).get("data")
    where = data_dir or recorded
    try:
        if store.dataset in DATASETS:
            folder = Path(recorded) if recorded and Path(recorded).is_dir() else None
            return load_dataset(store.dataset, data_dir=data_dir or folder)
        return load_dataset(str(where))
    except CspipeError as error:
        raise MissingDataError(
            f"the images of {store.dataset} cannot be read at {where}: name their folder with --data-dir DIR ({error})"
        ) from error


@dataclass(frozen=True)
class Found:
    """The image number of each wanted row `(N,)`, -1 where there is none; and why, by the row's number."""

    image: Ints
    why: dict[int, str]


def find_images(split: ImageSplit, rows: Rows, wanted: Ints, workers: int) -> Found:
    """The image of each wanted row: the one at the row's path where its hash is right, else any with that hash.

    Args:
        split: the images as they are now.
        rows: the row table of the store.
        wanted: `(N,)` row numbers; a void row has no image and needs none.
        workers: threads that read files.
    """
    number = {path: image for image, path in enumerate(storable_paths(split.paths))}
    image = np.array([number.get(rows.path[row], -1) for row in wanted], np.int64)
    at_path = np.flatnonzero(image >= 0)
    there = hash_images(split, image[at_path], workers).sha256
    same = (there == rows.sha256[wanted[at_path]]).all(axis=1)
    changed = set(wanted[at_path[~same]].tolist())
    image[at_path[~same]] = -1
    lost = np.flatnonzero((image < 0) & rows.sha256[wanted].any(axis=1))
    if len(lost):
        every = hash_images(split, np.arange(len(split), dtype=np.int64), workers).sha256
        by_hash = {digest.tobytes(): k for k, digest in enumerate(every)}
        image[lost] = [by_hash.get(rows.sha256[row].tobytes(), -1) for row in wanted[lost]]
    gone = [int(wanted[place]) for place in lost if image[place] < 0]
    words = {True: "is no longer the image that was embedded: its hash changed", False: "is gone"}
    return Found(image, {row: f"{rows.path[row]} {words[row in changed]}" for row in gone})


def own_split(store: Store, name: str) -> str:
    """The split of the data set whose images a split holds, as they are or as views."""
    view = parse_view(name, store.names)
    return name if view is None else view.split


def rebuild_tables(store: Store, name: str, dataset: Dataset) -> Iterator[Mended]:
    """Make damaged tables of a split anew from the images; each is kept where it has the recorded sum."""
    folder, own = store.path / name, own_split(store, name)
    bad = damaged_tables(folder)
    if not bad or own not in dataset.splits:
        return
    split, attributes = dataset.splits[own], read_group(folder)
    sound = {table: read_array(folder, table, attributes) for table in ("sha256", "path") if table not in bad}
    if "path" in sound:
        number = {path: image for image, path in enumerate(storable_paths(split.paths))}
        image = np.array([number.get(str(path), -1) for path in sound["path"]], np.int64)
    elif "sha256" in sound:
        image = match(sound["sha256"], hash_images(split, np.arange(len(split), dtype=np.int64), READERS).sha256)
    else:
        image = evenly_spaced(len(split), int(attributes["rows"]))
    if len(image) != attributes["rows"] or (image < 0).any():
        return
    known: dict[str, Values] = {"label": split.labels[image]}
    known |= {"path": storable_paths([split.paths[k] for k in image])}
    known |= {"sha256": hash_images(split, image, READERS).sha256} if "sha256" in bad else {}
    for table in bad:
        if table in known and put_back(folder, table, known[table]):
            yield Mended(f"{name}/{table}", "made anew from the images")
