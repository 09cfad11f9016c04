"""Labels + number + seed -> row numbers: which rows are labelled, the same for head and fine-tuning.

Legend: `N` rows, `K` classes with at least one labelled row. Every class draws from a generator of its
own over its rows in order of row number, so a draw depends neither on the order of the rows nor on how
many unlabelled ones there are.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import SettingError

Int = NDArray[np.int64]
_REMAINDER, _NATURAL, _CLASS = 0, 1, 2  # first word of each generator's key after the seed


def _generator(seed: int, *key: int) -> np.random.Generator:
    if seed < 0:
        raise SettingError(f"a split seed is 0 or more; got {seed}")
    return np.random.default_rng([seed, *key])


def _balanced(label: Int, row_id: Int, n: int, seed: int) -> Int:
    """``n // K`` rows of each class, the first ``n % K`` classes in seeded order one more."""
    classes = np.unique(label)
    share = np.full(len(classes), n // len(classes))
    share[_generator(seed, _REMAINDER).permutation(len(classes))[: n % len(classes)]] += 1
    drawn = []
    for number, count in zip(classes, share, strict=True):
        rows = row_id[label == number]
        if count > len(rows):
            raise SettingError(
                f"class {number} has {len(rows)} labelled rows, a balanced draw of {n} labels over "
                f"{len(classes)} classes takes {count} of it: ask for fewer labels, or use --draw natural"
            )
        drawn.append(_generator(seed, _CLASS, int(number)).permutation(rows)[:count])
    return np.concatenate(drawn)


def _usable_count(n: int | str, labelled: int) -> int:
    """``n`` if that many rows can be drawn."""
    if isinstance(n, str) or n < 1:
        raise SettingError(f"the number of labels is 1 or more, or 'all'; got {n!r}")
    if n > labelled:
        raise SettingError(
            f"{n} labels were asked for and {labelled} rows have one: ask for at most {labelled}, or 'all'"
        )
    return n


def draw_labelled(
    label: NDArray[np.integer[Any]],
    row_id: NDArray[np.integer[Any]],
    n: int | str,
    seed: int,
    *,
    draw: str = "balanced",
) -> Int:
    """Draw the rows whose labels are used.

    Args:
        label: `(N,)` class numbers, -1 for unlabelled rows, which are never drawn.
        row_id: `(N,)` row numbers.
        n: how many labels in all, or ``"all"``.
        seed: split seed, 0 or more.
        draw: ``"balanced"``: ``n // K`` of each class, the first ``n % K`` classes in seeded order one
            more; ``"natural"``: uniform over the labelled rows.

    Returns:
        `(n,)` row numbers, sorted.

    Raises:
        SettingError: more labels than labelled rows, too few rows of a class, or an unknown draw.
    """
    if label.shape != row_id.shape or label.ndim != 1:
        raise SettingError(f"label and row_id are both (N,); got {label.shape} and {row_id.shape}")
    order = np.argsort(row_id, kind="stable")
    order = order[label[order] >= 0]
    numbers, rows = label[order].astype(np.int64), row_id[order].astype(np.int64)
    if n == "all":
        return rows
    count = _usable_count(n, len(rows))
    if draw == "natural":
        return np.sort(_generator(seed, _NATURAL).permutation(rows)[:count])
    if draw == "balanced":
        return np.sort(_balanced(numbers, rows, count, seed))
    raise SettingError(f"a draw is balanced or natural; got {draw!r}")


def split_hash(row_ids: NDArray[np.integer[Any]]) -> str:
    """Sixteen hexadecimal digits that name a set of rows, whatever their order."""
    return hashlib.sha256(np.sort(np.asarray(row_ids, "<i8")).tobytes()).hexdigest()[:16]


def labelled_folds(label_of_labelled: NDArray[np.integer[Any]], folds: int, seed: int) -> list[Int]:
    """Stratified folds: every position is held out once, each class spread as evenly as it can be.

    Args:
        label_of_labelled: `(L,)` class numbers of the labelled rows.
        folds: number of folds, 2 or more.
        seed: 0 or more.

    Returns:
        ``folds`` sorted arrays of held-out positions in `[0, L)`.

    Raises:
        SettingError: fewer than two folds, or more folds than rows.
    """
    label = np.asarray(label_of_labelled, np.int64)
    if not 2 <= folds <= len(label):
        raise SettingError(f"folds are at least 2 and at most the {len(label)} labelled rows; got {folds}")
    dealt = [
        _generator(seed, _CLASS, int(number) + 1).permutation(np.flatnonzero(label == number))
        for number in np.unique(label)
    ]
    positions = np.concatenate(dealt)
    return [np.sort(positions[fold::folds]) for fold in range(folds)]
