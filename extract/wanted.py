"""What one run of stage one is asked for: which images, which views of them, in which type."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.augment import draw_view, parts_of, words_of
from cspipe.extract.datasets import Dataset, ImageSplit
from cspipe.extract.images import Pixels
from cspipe.extract.pieces import Draw
from cspipe.store.errors import SettingError, unknown_name
from cspipe.store.layout import DTYPES
from cspipe.store.views import view_name
from cspipe.store.writer import ImageTable


@dataclass(frozen=True)
class Options:
    """What holds for every split of one run."""

    dtype: str
    limit: int | None
    strict: bool
    workers: int
    views: int
    augment: str


def evenly_spaced(count: int, limit: int | None) -> NDArray[np.int64]:
    """``limit`` of ``count`` image numbers from the first to the last, or all of them.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)


def wanted_splits(dataset: Dataset, split: str) -> list[ImageSplit]:
    if split == "all":
        return list(dataset.splits.values())
    if split not in dataset.splits:
        raise unknown_name(f"split of {dataset.name}", split, ["all", *dataset.splits])
    return [dataset.splits[split]]


def check_options(dtype: str, limit: int | None, batch_size: int | None, views: int, augment: str) -> None:
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


def view_facts(split: ImageSplit, options: Options) -> dict[str, dict[str, Any]]:
    """What is recorded with each view of a split, by the view's name; only training images have views."""
    count = options.views if split.name == "train" else 0
    about = {"augment": options.augment, "augment_words": words_of(options.augment)}
    return {view_name(split.name, options.augment, k): {**about, "view": k} for k in range(1, count + 1)}


def drawer(augment: str, table: ImageTable, view: int) -> Draw:
    """How view number ``view``, from 1, of the table's images is drawn."""

    def draw(image: int, pixels: Pixels) -> Pixels:
        return draw_view(augment, pixels, table.sha256[image].tobytes(), view - 1)

    return draw


def draws_of(split: ImageSplit, options: Options, table: ImageTable) -> dict[str, Draw | None]:
    """How each split of the store is drawn from the images of ``split``: itself, and each of its views."""
    facts = view_facts(split, options)
    return {split.name: None} | {name: drawer(options.augment, table, about["view"]) for name, about in facts.items()}
