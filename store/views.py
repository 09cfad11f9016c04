"""Views: a split of augmented images beside the split that they were made of, in the same store.

View 2 of the augmentation ``affine+flips`` of ``train`` is the split ``train-affine_flips-2``. It is planned,
committed, resumed, verified and repaired like every other split. It may lag behind its own split, or hold the
same images in another order, so rows are matched by the image's hash.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspipe.store.plan import match

_NAME = re.compile(r"(?P<split>[A-Za-z0-9_-]+)-(?P<augment>[A-Za-z0-9_]+)-(?P<number>[1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class View:
    """What a view split's name says: whose view, by which augmentation, its number from 1."""

    split: str
    augment: str
    number: int


def view_name(split: str, augment: str, number: int) -> str:
    """Name of the split that holds a view.

    >>> view_name("train", "affine+flips", 2)
    'train-affine_flips-2'
    """
    return f"{split}-{augment.replace('+', '_')}-{number}"


def parse_view(name: str, names: Collection[str]) -> View | None:
    """The view that a split holds, or None for a split of the data set's own.

    Args:
        name: of the split.
        names: of all splits of the store; a view's own split is among them.

    >>> parse_view("train-affine_flips-2", ["train", "train-affine_flips-2"])
    View(split='train', augment='affine+flips', number=2)
    >>> parse_view("fold-a-2", ["fold-a-2"]) is None
    True
    """
    found = _NAME.fullmatch(name)
    if found is None or found["split"] not in names:
        return None
    return View(found["split"], found["augment"].replace("_", "+"), int(found["number"]))


def views_of(split: str, names: Sequence[str]) -> dict[str, View]:
    """The splits among ``names`` that hold views of ``split``, by augmentation, then by number."""
    found = {name: view for name in names if (view := parse_view(name, names)) and view.split == split}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def options_for(name: str, known: Mapping[str, View]) -> str:
    """The options of ``cspipe extract`` that bring a view up to date, and the others of its augmentation with it."""
    augment = known[name].augment
    count = max(view.number for view in known.values() if view.augment == augment)
    return f"--views {count} --augment {augment}"


def rows_of_view(own_sha256: NDArray[np.uint8], view_sha256: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Which row of a view belongs to each row of its split, the k-th of a hash to the k-th of it.

    Args:
        own_sha256: `(N, 32)` hashes of the split's rows.
        view_sha256: `(M, 32)` hashes of the view's rows.

    Returns:
        `(N,)` row numbers, -1 where the view lacks the image; None where both hold the same rows in the same order.
    """
    return None if np.array_equal(own_sha256, view_sha256) else match(own_sha256, view_sha256)
