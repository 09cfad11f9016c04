"""Tokens standardised with the statistics of what lies around them, in place of those of all rows.

Where something else outshines the class, as stripes outshine a digit, tokens lie together by that. What is left when
the mean of its neighbourhood is taken off a token, and it is divided by the deviation there, tells the class better:
the stripes are what the neighbourhood has in common.

Legend: `N` rows, `D` token width, `A` anchors, `Q` leading directions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

DIRECTIONS = 10
"""Q: what lies together is told from so many principal components. 5 to 20 give the same to half a point."""

NEIGHBOUR, SHARE = 5, 0.5
"""A neighbourhood's radius is this share of the median distance from an anchor to this next anchor."""

FEWEST_ROWS = 10
"""An anchor stands for at least so many rows."""


@dataclass(frozen=True)
class Neighbourhood:
    """Mean and deviation of tokens around a token: a Gaussian kernel's (Nadaraya 1964, Watson 1964), told from anchors.

    The kernel's weights are a softmax over anchors, so that all of it is two products and can be followed backward.

    Attributes:
        query_DQ: leading principal directions, in which distances are measured. key_QA: the anchors there, divided by
            the kernel's squared radius. bias_A: what an anchor's own length takes off its exponent.
        mean_AD: of the tokens around each anchor. square_AD: of their squares.
        floor: what is added to every variance.
    """

    query_DQ: Tensor
    key_QA: Tensor
    bias_A: Tensor
    mean_AD: Tensor
    square_AD: Tensor
    floor: Tensor

    def weights(self, token_ND: Tensor) -> Tensor:
        """How near each anchor is, `(..., N, A)`; rows sum to 1."""
        return (token_ND @ self.query_DQ @ self.key_QA + self.bias_A).softmax(-1)

    def __call__(self, token_ND: Tensor) -> Tensor:
        """`(..., N, D)` standardised with all rows' statistics -> `(..., N, D)` with the neighbourhood's."""
        weight_NA = self.weights(token_ND)
        mean_ND = weight_NA @ self.mean_AD
        variance_ND = (weight_NA @ self.square_AD - mean_ND.square()).clamp_min(0) + self.floor
        return (token_ND - mean_ND) / variance_ND.sqrt()

    def to(self, place: torch.device | str | torch.dtype) -> "Neighbourhood":
        """The same on another device or in another float type."""
        return Neighbourhood(*(getattr(self, field.name).to(place) for field in fields(self)))


def fit_neighbourhood(
    blocks: Callable[[], Iterable[Tensor]], query_DQ: Tensor, anchor_AD: Tensor, *, scale_floor: float
) -> Neighbourhood:
    """Statistics around each anchor, summed over blocks of rows.

    Args:
        blocks: gives the standardised rows `(n, D)`, block by block.
        query_DQ: their leading principal directions.
        anchor_AD: standardised rows that stand for all, at least two.
        scale_floor: as of all rows' statistics, share of the neighbourhoods' root mean square deviation that no
            scale falls below.
    """
    anchor_AQ = anchor_AD @ query_DQ
    radius = SHARE * torch.cdist(anchor_AQ, anchor_AQ).kthvalue(min(NEIGHBOUR + 1, len(anchor_AQ)), 1).values.median()
    spread = radius.square().clamp_min(1e-6)
    key_QA, bias_A = anchor_AQ.T / spread, -anchor_AQ.square().sum(1) / (2 * spread)
    weight_A = torch.zeros(len(anchor_AD), 1).to(anchor_AD)
    mean_AD, square_AD = torch.zeros_like(anchor_AD), torch.zeros_like(anchor_AD)
    for token_ND in blocks():
        share_AN = (token_ND @ query_DQ @ key_QA + bias_A).softmax(-1).T
        weight_A += share_AN.sum(1, keepdim=True)
        mean_AD += share_AN @ token_ND
        square_AD += share_AN @ token_ND.square()
    mean_AD, square_AD = mean_AD / weight_A.clamp_min(1e-12), square_AD / weight_A.clamp_min(1e-12)
    variance = (square_AD - mean_AD.square()).clamp_min(0).mean()
    return Neighbourhood(query_DQ, key_QA, bias_A, mean_AD, square_AD, scale_floor**2 * variance + 1e-6)


def anchor_rows(rows: int, anchors: int) -> Tensor:
    """Numbers `(A,)` of the rows that stand for all: drawn with a fixed seed, in order; none where rows are too few."""
    count = min(anchors, rows // FEWEST_ROWS)
    if count < 2:
        return torch.empty(0, dtype=torch.int64)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:count].sort().values
