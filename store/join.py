"""Stores of several backbones on one data set, into one store: the tokens of an image side by side.

Legend: `N` rows, `D` width of one store's tokens.

What one backbone does not see another may. Each one's tokens are scaled to the same total deviation, so that none
outweighs the others by its units or its width: where every dimension had the same deviation, heads were .4 points worse
(ViT-S/14 of 384 and lite0 of 1,280 dimensions, MNIST, 1,000 labels, dev rows).
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import MismatchError, SettingError
from cspipe.store.layout import StoreKey, record_latest, store_path
from cspipe.store.meta import canonical
from cspipe.store.plan import match
from cspipe.store.reader import Split, Store, open_store
from cspipe.store.remotes import shown
from cspipe.store.writer import ImageTable, StoreWriter

JOINED = "joined"
"""What the provenance of a joined store lists its parts under."""

_BLOCK = 8192
_SPLIT_OF_SCALE = "train"
_DEVIATION = 32.0  # numbers of tokens of some hundred dimensions are then about 1
_STEPS = 8  # an octave: the scale is rounded, so that rows which are added later seldom change it


@dataclass(frozen=True)
class Part:
    """One of the stores that are joined, and what its tokens are divided by."""

    store: Store
    scale: float

    @property
    def record(self) -> dict[str, Any]:
        """What the joined store keeps of it."""
        return {"backbone": self.store.backbone, "key": asdict(self.store.key), "width": self.store.width,
                "scale": self.scale}  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Rows of one split that all parts hold: the table, the place of each in each part's split, rows left out."""

    table: ImageTable
    places: list[NDArray[np.int64]]
    left_out: int


def join_stores(paths: Sequence[Path], *, stores: Path) -> dict[str, Any]:
    """Make a store of the tokens of several ones side by side, or bring one up to date.

    Rows are the images that all of them hold, in the first one's order, by the images' hashes; views are joined where
    all hold them.

    Args:
        paths: two or more finished stores of one data set.
        stores: folder of the stores.

    Returns:
        A JSON document.

    Raises:
        SettingError: fewer than two stores, or one twice.
        MismatchError: other data sets, splits or labels; or no image that all hold.
        StoreError: one is not finished, or damaged.
    """
    opened = [open_store(path) for path in paths]
    _check(opened)
    first = opened[0]
    parts = [Part(store, scale_of(store[_SPLIT_OF_SCALE])) for store in opened]
    backbone = "+".join(store.backbone for store in opened)
    dtype = "fp16" if all(store.key.dtype == "fp16" for store in opened) else "fp32"
    records = [part.record for part in parts]
    made_of = hashlib.sha256(canonical(records)).hexdigest()
    key = StoreKey(transform=JOINED, image_px=0, weights_sha256=made_of, token=JOINED, dtype=dtype)
    rows = {name: _common_rows([store[name] for store in opened], name) for name in first.splits}
    views = {view: found for name in first.splits for view, found in _common_views(opened, name, rows[name])}
    about = {"backbone": backbone, "class_names": first.class_names, JOINED: records}
    path = store_path(stores, first.dataset, backbone, key)
    with StoreWriter(
        path, key=key, width=sum(store.width for store in opened), batch_size=64, backbone=backbone,
        dataset=first.dataset, provenance=about, sources=first.attributes.get("sources", {}) | {"weights": None},
    ) as writer:  # fmt: skip
        written = {
            name: writer.write(name, found.table, partial(_tokens, [store[name] for store in opened], parts, found))
            for name, found in (rows | views).items()
        }
    record_latest(stores, path)
    return {
        "store": shown(path), "dataset": first.dataset, "backbone": backbone, "dtype": dtype,
        "parts": [{"store": shown(part.store.path), "width": part.store.width, "scale": round(part.scale, 4)}
                  for part in parts],
        "splits": {name: {"rows": len(found.table), "written": written[name], "left_out": found.left_out}
                   for name, found in rows.items()},
        "views": list(views),
    }  # fmt: skip


def scale_of(split: Split) -> float:
    """What a split's tokens are divided by: their total deviation, the root of all variances' sum, is then about 32.

    1 where they do not vary.
    """
    total_D, squares_D = np.zeros(split.shape.width), np.zeros(split.shape.width)
    shift_D = split.take(np.arange(min(1, len(split)))).astype(np.float64).sum(0)
    for start in range(0, len(split), _BLOCK):
        token_ND = split.take(np.arange(start, min(start + _BLOCK, len(split)))) - shift_D
        total_D += token_ND.sum(0)
        squares_D += np.square(token_ND).sum(0)
    count = max(1, len(split))
    variance = float((squares_D / count - np.square(total_D / count)).sum())
    return 2.0 ** (round(_STEPS * math.log2(math.sqrt(variance) / _DEVIATION)) / _STEPS) if variance > 0 else 1.0


def _check(opened: Sequence[Store]) -> None:
    """Refuse stores that cannot be joined."""
    if len({store.path.resolve() for store in opened}) < max(2, len(opened)):
        raise SettingError("join takes two or more different stores: name one of each backbone")
    first = opened[0]
    for other in opened[1:]:
        if (other.dataset, other.class_names) != (first.dataset, first.class_names):
            raise MismatchError(
                f"{first.path.name} is of {first.dataset} ({len(first.class_names)} classes) and {other.path.name} of "
                f"{other.dataset} ({len(other.class_names)}): join stores of one data set"
            )
        if other.splits != first.splits:
            raise MismatchError(
                f"{first.path.name} has the splits {', '.join(first.splits)} and {other.path.name} has "
                f"{', '.join(other.splits)}: extract what is missing first"
            )
    if _SPLIT_OF_SCALE not in first.splits:
        raise MismatchError(f"{first.path.name} has no split {_SPLIT_OF_SCALE}: extract it first")


def _common_rows(splits: Sequence[Split], name: str) -> _Rows:
    """The first split's rows whose image all others hold."""
    first = splits[0]
    sha256, label = first.sha256(), first.label()
    places = [np.arange(len(first)), *(match(sha256, other.sha256()) for other in splits[1:])]
    kept = np.flatnonzero(np.all([place >= 0 for place in places], axis=0))
    if not len(kept) and len(first):
        raise MismatchError(
            f"no image of the split {name} is in all of the stores: extract them from the same files, without --limit "
            "or with the same one"
        )
    places = [place[kept] for place in places]
    for other, place in zip(splits[1:], places[1:], strict=True):
        if unlike := int((other.label()[place] != label[kept]).sum()):
            raise MismatchError(
                f"the stores disagree about the labels of {unlike} of {len(kept)} rows of {name}: run the same cspipe "
                "extract again for each, which brings labels up to date"
            )
    paths = first.path()
    table = ImageTable(sha256[kept], label[kept], [paths[row] for row in kept])
    return _Rows(table, places, max(len(split) for split in splits) - len(kept))


def _common_views(opened: Sequence[Store], name: str, rows: _Rows) -> Iterator[tuple[str, _Rows]]:
    """Views of a split that all stores hold of all joined rows."""
    for view in opened[0].views(name):
        if not all(view in store.views(name) for store in opened[1:]):
            continue
        places = [match(rows.table.sha256, store[view].sha256()) for store in opened]
        if all((place >= 0).all() for place in places):
            yield view, _Rows(rows.table, places, 0)


def _tokens(held: Sequence[Split], parts: Sequence[Part], found: _Rows, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Scaled tokens of these rows of the table, those of all parts side by side."""
    scaled = [each.take(place[rows]).astype(np.float32) / part.scale
              for part, each, place in zip(parts, held, found.places, strict=True)]  # fmt: skip
    return np.concatenate(scaled, axis=1)


def parts_of(provenance: Mapping[str, Any]) -> list[str]:
    """Names of the backbones that a joined store's tokens are of; empty for any other store."""
    return [str(part["backbone"]) for part in provenance.get(JOINED, [])]
