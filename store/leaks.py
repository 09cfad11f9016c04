"""Images that lie in the training and in the test split: equal ones by hash, near ones by their tokens.

Legend: `N` rows of a block, `D` width. Rows whose image could not be used, or is gone, do not count.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import SettingError
from cspipe.store.reader import Split, Store

_BLOCK_ROWS = 2048
_ROUNDING = 1e-5  # of a cosine in fp32: equal tokens give nearly 1
_ORDER = ("train", "test")


@dataclass(frozen=True)
class Row:
    """A row of a split: its number and its image's path."""

    split: str
    row_id: int
    path: str


@dataclass(frozen=True)
class Pair:
    """Two rows of different splits and the cosine of their tokens, None where it was not asked for."""

    first: Row
    second: Row
    cosine: float | None


@dataclass(frozen=True)
class Duplicates:
    """``pairs``, most alike first, at most as many as asked for; ``count`` of all there are."""

    pairs: list[Pair]
    count: int


def _pairs_of_splits(store: Store) -> Iterator[tuple[str, str]]:
    """Finished splits two by two, train first."""
    done = [name for name in store.splits if store.split_attributes(name)["complete"]]
    done.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    yield from combinations(done, 2)


def _hashes(split: Split) -> NDArray[np.void]:
    """Hashes as one value a row `(N,)`."""
    return np.ascontiguousarray(split.sha256()).view("V32").reshape(-1)


def _rows(store: Store, names: tuple[str, str]) -> tuple[Callable[[int], Row], Callable[[int], Row]]:
    """For each of two splits a function from a place to its row; the tables are read once."""

    def one(name: str) -> Callable[[int], Row]:
        numbers, paths = store[name].row_id(), store[name].path()
        return lambda place: Row(name, int(numbers[place]), paths[place])

    return one(names[0]), one(names[1])


def count_duplicates(store: Store) -> dict[str, int]:
    """How many rows of one split hold an image, byte for byte, that another split holds too.

    Returns:
        ``{"train/test": n}`` for each two finished splits, ``n`` the rows of the second.

    Raises:
        StoreError: a table is damaged.
    """
    return {f"{first}/{second}": _held_by(store[first], store[second]) for first, second in _pairs_of_splits(store)}


def _held_by(first: Split, second: Split) -> int:
    """Rows of the second whose image the first holds too; the first is looked up block by block, to save memory."""
    known, count = np.unique(_hashes(second), return_counts=True)
    found, asked = np.zeros(len(known), np.bool_), _hashes(first)
    for start in range(0, len(asked) if len(known) else 0, _BLOCK_ROWS * 32):
        block = asked[start : start + _BLOCK_ROWS * 32]
        place = np.searchsorted(known, block).clip(max=len(known) - 1)
        found[place[known[place] == block]] = True
    return int(count[found].sum())


def exact_duplicates(store: Store, *, limit: int) -> Duplicates:
    """Pairs of rows of different splits with equal images, in the order of the second split.

    Args:
        store: its finished splits are compared.
        limit: pairs that are returned at most.

    Raises:
        StoreError: a table is damaged.
    """
    pairs: list[Pair] = []
    count = 0
    for names in _pairs_of_splits(store):
        known: dict[bytes, list[int]] = {}
        for place, value in enumerate(_hashes(store[names[0]]).tolist()):
            known.setdefault(value, []).append(place)
        row_of_first, row_of_second = _rows(store, names)
        for place, value in enumerate(_hashes(store[names[1]]).tolist()):
            twins = known.get(value, [])
            count += len(twins)
            room = max(limit - len(pairs), 0)
            pairs += [Pair(row_of_first(twin), row_of_second(place), None) for twin in twins[:room]]
    return Duplicates(pairs, count)


def _unit(tokens_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1 in fp32; a row of zeros stays one and is like nothing."""
    rows_ND = tokens_ND.astype(np.float32)
    length_N1 = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND))[:, None]
    rows_ND /= np.where(length_N1 == 0, 1, length_N1)
    return rows_ND


def _alike(
    first_ND: NDArray[np.floating], second_ND: NDArray[np.floating], cosine: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Places in the first and the second, and cosines, of each block's pairs that are at least so alike."""
    for start in range(0, len(second_ND), _BLOCK_ROWS):
        block_ND = _unit(second_ND[start : start + _BLOCK_ROWS])
        for other in range(0, len(first_ND), _BLOCK_ROWS):
            cosine_NN = block_ND @ _unit(first_ND[other : other + _BLOCK_ROWS]).T
            right, left = np.nonzero(cosine_NN >= cosine)
            yield left + other, right + start, cosine_NN[right, left]


def near_duplicates(store: Store, cosine: float, *, limit: int) -> Duplicates:
    """Pairs of rows of different splits whose tokens are alike, the most alike first.

    Every row of one split is compared with every row of the other, block by block in fp32: the memory beyond the
    tokens is that of two blocks and their product, 16 MiB, and the pairs that are returned.

    Args:
        store: its finished splits are compared.
        cosine: the smallest cosine of the two tokens that counts, above 0 and at most 1.
        limit: pairs that are returned at most.

    Raises:
        SettingError: ``cosine`` is not such a number.
        StoreError: a chunk is damaged.
    """
    if not 0 < cosine <= 1:
        raise SettingError(f"--near is a cosine above 0 and at most 1, such as 0.98; got {cosine}")
    smallest = cosine - _ROUNDING
    best: list[tuple[float, int, int, int]] = []
    splits = list(_pairs_of_splits(store))
    count = 0
    for number, (first, second) in enumerate(splits):
        for left, right, cosines in _alike(store[first].embedding(), store[second].embedding(), smallest):
            count += len(left)
            top = np.argsort(-cosines, kind="stable")[:limit]
            found = zip(cosines[top].tolist(), (-left[top]).tolist(), (-right[top]).tolist(), strict=True)
            best = heapq.nlargest(limit, [*best, *((value, -number, one, other) for value, one, other in found)])
    rows = [_rows(store, names) for names in splits]
    pairs = [
        Pair(rows[-number][0](-one), rows[-number][1](-other), min(value, 1.0)) for value, number, one, other in best
    ]
    return Duplicates(pairs, count)
