"""The nearest-neighbour graph of all rows that may be looked at, and labels that spread along it.

Legend: `N` rows of the graph, `M` rows to predict, `D` token width, `C` neighbours of a row, `K` classes,
`A` and `B` rows of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn import functional as F

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NEIGHBOURS, VOTING_NEIGHBOURS = 10, 20
"""Of a row in the graph (Iscen et al. 2019 have 50), and those that vote in k-nearest-neighbours (DINO's protocol)."""

CLASSES_AT_ONCE = 32
"""A row of the graph is read once for so many classes; more take memory and gain nothing."""

ROWS_AT_ONCE = 2000
"""A block of cosines stays in the cache, and its rows do not lie a power of two apart, which makes transposing slow:
the graph of 50,000 rows takes 22 s, with blocks of 4,096 26 s."""


@dataclass(frozen=True)
class Neighbours:
    """The rows of a table that are nearest to each of some rows, by cosine.

    Attributes:
        row: their numbers `(rows, C)`, nearest first.
        cosine: of the angle to each `(rows, C)`; -inf where there are fewer than C.
    """

    row: Ints
    cosine: Floats

    def first(self, number: int) -> "Neighbours":
        """The nearest so many."""
        return Neighbours(self.row[:, :number], self.cosine[:, :number])


class Nearest:
    """The best C of all cosines that were shown so far, on the cosines' device."""

    def __init__(self, rows: int, neighbours: int, device: torch.device) -> None:
        self.cosine = torch.full((rows, neighbours), -torch.inf, device=device)
        self.row = torch.zeros(rows, neighbours, dtype=torch.int64, device=device)

    def show(self, cosine_AB: Tensor, start: int, first: int) -> None:
        """A block of cosines: of rows `start`.. with table rows `first`.."""
        part = slice(start, start + len(cosine_AB))
        block = cosine_AB.topk(min(self.row.shape[1], cosine_AB.shape[1]), dim=1)
        best = torch.cat([self.cosine[part], block.values], 1).topk(self.row.shape[1], dim=1)
        self.row[part] = torch.cat([self.row[part], block.indices + first], 1).gather(1, best.indices)
        self.cosine[part] = best.values

    def found(self) -> Neighbours:
        """What is nearest."""
        return Neighbours(self.row.cpu().numpy(), self.cosine.cpu().numpy())


def nearest_in_table(query_MD: Tensor, unit_ND: Tensor, *, neighbours: int = NEIGHBOURS) -> Neighbours:
    """Exact nearest rows of a table for each query row, block by block.

    Args:
        query_MD: rows to find neighbours of, of any length.
        unit_ND: rows of length 1 (or 0) to find them among.
        neighbours: C.
    """
    best = Nearest(len(query_MD), neighbours, query_MD.device)
    for start in range(0, len(query_MD), ROWS_AT_ONCE):
        unit_AD = F.normalize(query_MD[start : start + ROWS_AT_ONCE], dim=1)
        for first in range(0, len(unit_ND), ROWS_AT_ONCE):
            best.show(unit_AD @ unit_ND[first : first + ROWS_AT_ONCE].T, start, first)
    return best.found()


def nearest_of_each(
    unit_ND: Tensor, *, neighbours: int = NEIGHBOURS, on_share: Callable[[float], None] | None = None
) -> Neighbours:
    """Exact nearest other rows of each row; each block of cosines is computed once and read along both axes.

    Args:
        unit_ND: rows of length 1 (or 0).
        neighbours: C.
        on_share: called with the share that is done after each stripe of blocks.
    """
    rows = len(unit_ND)
    best = Nearest(rows, neighbours, unit_ND.device)
    for start in range(0, rows, ROWS_AT_ONCE):
        unit_AD = unit_ND[start : start + ROWS_AT_ONCE]
        for first in range(start, rows, ROWS_AT_ONCE):
            cosine_AB = unit_AD @ unit_ND[first : first + ROWS_AT_ONCE].T
            if first == start:
                cosine_AB.fill_diagonal_(-torch.inf)
            else:
                best.show(cosine_AB.T.contiguous(), first, start)
            best.show(cosine_AB, start, first)
        if on_share:
            on_share(1 - (max(0, rows - start - ROWS_AT_ONCE) / rows) ** 2)
    return best.found()


def edge_weight(cosine: Floats, *, power: float = 3.0) -> Floats:
    """Weight of an edge: the positive part of the cosine, cubed (Iscen et al. 2019, gamma = 3)."""
    weight: Floats = (np.maximum(cosine, 0) ** power).astype(np.float32)
    return weight


def edges(found: Neighbours, table_rows: int) -> sparse.csr_array:
    """Weights of the edges to `table_rows` rows `(rows, table_rows)`, as found: not symmetric."""
    rows, count = found.row.shape
    small = sparse.get_index_dtype(maxval=max(rows * count, table_rows))
    start, end = np.arange(0, rows * count + 1, count, dtype=small), found.row.ravel().astype(small)
    return sparse.csr_array((edge_weight(found.cosine).ravel(), end, start), shape=(rows, table_rows))


def normalised_affinity(own: Neighbours) -> sparse.csr_array:
    """S = D^-1/2 (A + A^T) D^-1/2 `(N, N)` of the rows' own neighbours; a row without edges keeps zeros."""
    affinity = edges(own, len(own.row))
    affinity = sparse.csr_array(affinity + affinity.T)
    degree_N = affinity.sum(1)
    scale_N = np.divide(1, np.sqrt(degree_N), out=np.zeros_like(degree_N), where=degree_N > 0)
    affinity.data *= scale_N[affinity.indices] * np.repeat(scale_N, np.diff(affinity.indptr))
    return affinity


def spread_labels(
    affinity: sparse.csr_array, at_L: Ints, label_L: Ints, *, classes: int, alpha: float = 0.99, tolerance: float = 1e-4
) -> Floats:
    """Solves (I - alpha S) F = Y by conjugate gradients, many classes at once (Zhou et al. 2004, up to a factor).

    Args:
        affinity: S, see `normalised_affinity`; its precision is that of the answer.
        at_L: positions of the labelled rows. label_L: their classes.
        classes: K.
        alpha: how far labels spread, below 1; both papers use 0.99.
        tolerance: of the residual, relative to each class of Y. Of 10,000 judged rows (MNIST, 100 and 1,000 labels)
            none changes its class from 1e-6 to 1e-4, two to five at 1e-3.

    Returns:
        F `(N, K)`, not negative; 0 in rows that no labelled row reaches.
    """
    label_NK: Floats = np.zeros((affinity.shape[0], classes), affinity.dtype)
    label_NK[at_L, label_L] = 1
    length_K = np.linalg.norm(label_NK, axis=0).clip(1)
    for start in range(0, classes, CLASSES_AT_ONCE):
        part = slice(start, start + CLASSES_AT_ONCE)
        label_NK[:, part] = solved(affinity, alpha, label_NK[:, part] / length_K[part], tolerance) * length_K[part]
    spread_NK: Floats = label_NK.clip(0)
    return spread_NK


def solved(affinity: sparse.csr_array, alpha: float, right_NC: Floats, tolerance: float) -> Floats:
    """X `(N, C)` with (I - alpha S) X = right side; no column's residual is longer than the tolerance."""

    def times(column: Floats) -> Floats:
        given_NC = column.reshape(right_NC.shape)
        spread_NC: Floats = affinity @ given_NC
        return (given_NC - alpha * spread_NC).ravel()

    operator = LinearOperator((right_NC.size, right_NC.size), matvec=times, dtype=affinity.dtype)
    found_NC: Floats = cg(operator, right_NC.ravel(), rtol=0, atol=tolerance)[0].reshape(right_NC.shape)
    return found_NC


def equal_class_masses(spread_NK: Floats) -> Floats:
    """Scales each class to the same mass over all rows, then each row to sum to 1.

    Class mass normalisation (Zhu, Ghahramani and Lafferty, ICML 2003) with equal proportions; Zhou et al.
    and Iscen et al. have none. A class whose labelled rows lie well connected would else take its neighbours' rows.
    Not with the class prior: masses along a graph are no calibrated probabilities, and even the true prior drowns rare
    classes. A class that reaches no row stays at 0, and so does a row that no class reaches.
    """
    scaled_NK = spread_NK / spread_NK.sum(0, dtype=np.float64).clip(1e-300)
    equal_NK: Floats = (scaled_NK / scaled_NK.sum(1, keepdims=True).clip(1e-300)).astype(spread_NK.dtype)
    return equal_NK
