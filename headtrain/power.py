"""Rectified dimensions of tokens, raised to a power below 1.

What an activation such as ReLU leaves, averaged over an image, is 0 for most images and large for few. A square root
brings such values near to a Gaussian's, as in RootSIFT (Arandjelovic and Zisserman 2012) and in few-shot learning
(Hu et al., arXiv 2006.03806). Dimensions of either sign, as after a transformer's last norm, are left alone: there the
same lost a point. So are those that stay far above 0, where a power is next to a straight line.

Legend: `N` rows, `D` token width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

OFFSET = 0.001
"""Added before the power is taken, a share of the root mean square: keeps the slope at 0 finite. .1 does the same."""

NEAR = 0.1
"""A rectified dimension is never negative, and its smallest value is at most this share of its mean."""


@dataclass(frozen=True)
class PowerTransform:
    """x -> (x + offset) ** power in rectified dimensions.

    Attributes:
        offset_D: what is added before; inf leaves a dimension alone.
        power: between 0 and 1.
    """

    offset_D: Tensor
    power: float

    def __call__(self, token_ND: Tensor) -> Tensor:
        """`(..., N, D)` to the same; differentiable. What falls below 0 after all, as in a shifted set, counts as 0."""
        chosen_D = self.offset_D.isfinite()
        raised_ND = (token_ND.clamp_min(0) + self.offset_D).pow(self.power)
        return torch.where(chosen_D, raised_ND, token_ND)

    def to(self, place: torch.device | str | torch.dtype) -> "PowerTransform":
        """The same on another device or in another float type."""
        return PowerTransform(self.offset_D.to(place), self.power)


def fit_power(
    blocks: Iterable[Tensor], width: int, power: float, device: torch.device | str
) -> tuple[PowerTransform, Tensor] | None:
    """The transform that rows ask for, and the variance `(D,)` in float64 that dimensions have without it.

    Args:
        blocks: the rows `(n, D)`, block by block.
        width: D.
        power: 1 leaves all as it is.
        device: where the rows are.

    Returns:
        None where no dimension is rectified, or the power is 1.
    """
    if power == 1:
        return None
    rows, smallest_D = 0, torch.full((width,), torch.inf, device=device)
    total_D, square_D = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))
    for block_ND in blocks:
        rows += len(block_ND)
        smallest_D = torch.minimum(smallest_D, block_ND.amin(0))
        total_D += block_ND.sum(0)
        square_D += block_ND.square().sum(0)
    mean_D = total_D / rows
    variance_D = (square_D / rows - mean_D.square()).clamp_min(0)
    chosen_D = (smallest_D >= 0) & (smallest_D <= NEAR * mean_D) & (square_D > 0)
    if not chosen_D.any():
        return None
    offset = OFFSET * (square_D[chosen_D].mean() / rows).sqrt().float()
    return PowerTransform(torch.where(chosen_D, offset, torch.inf), power), variance_D
