"""Which class is taken for which: the table of a page, or of many classes the pairs that are confused most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cspipe import plots, verdicts

CONFUSED_PAIRS = 15


@dataclass(frozen=True)
class Confusion:
    """Counts for the page: all cells where classes are few, else the pairs that are confused most.

    Attributes:
        names: class names.
        cells: row by true class: count, depth of colour from 0 to 1.
        pairs: true name, predicted name, count, share of the true class's rows.
    """

    names: list[str]
    cells: list[list[tuple[int, float]]]
    pairs: list[tuple[str, str, int, str]]

    @property
    def long(self) -> bool:
        """True where names are too long to stand side by side."""
        return max(map(len, self.names)) > 4


def make_confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Confusion:
    """Counts with the share of their row; the pairs confused most, at most `CONFUSED_PAIRS`."""
    count_KK = np.asarray(counts)
    share_KK = count_KK / np.maximum(count_KK.sum(1, keepdims=True), 1)
    few = len(names) <= plots.CLASSES_WITH_NAMES
    cells = [[(int(n), round(float(s) ** 0.5, 2)) for n, s in zip(*row, strict=True)]
             for row in zip(count_KK, share_KK, strict=True)] if few else []  # fmt: skip
    wrong_KK = np.where(np.eye(len(names), dtype=bool), 0, count_KK)
    worst = np.argsort(-wrong_KK, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [(names[i], names[j], int(wrong_KK[i, j]), verdicts.percent(float(share_KK[i, j])))
             for i, j in zip(*np.unravel_index(worst, wrong_KK.shape), strict=True) if wrong_KK[i, j]]  # fmt: skip
    return Confusion(list(names), cells, pairs)
