"""Tokens made ready for a head: raised to a power, standardised with the unlabelled rows' statistics, projected once.

Legend: `N` rows, `D` token width, `P` projected width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from cspipe.headtrain.neighbourhood import DIRECTIONS, Neighbourhood, anchor_rows, fit_neighbourhood
from cspipe.headtrain.power import PowerTransform, fit_power
from cspipe.store.errors import MismatchError

if TYPE_CHECKING:
    from cspipe.headtrain.chunked import Tokens

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Projection:
    """(raised token - mean) / scale, once more with its neighbourhood's where asked, then P principal components.

    It is kept with the head.

    Attributes:
        mean_D: mean of the rows it was fitted on, after `raised`.
        scale_D: their deviation with a floor, see `fit_projection`.
        basis_DP: orthonormal principal directions of the standardised rows, or None to keep all D.
        around: statistics of the neighbourhood of a standardised row, or None.
        raised: what is done to rectified dimensions, or None where there are none.
    """

    mean_D: Tensor
    scale_D: Tensor
    basis_DP: Tensor | None
    around: Neighbourhood | None = None
    raised: PowerTransform | None = None

    def __call__(self, token_ND: Tensor) -> Tensor:
        """`(..., N, D)` of any float type -> `(..., N, P)` fp32 (float64 stays float64); differentiable.

        Raises:
            MismatchError: tokens of another width.
        """
        if token_ND.shape[-1] != len(self.mean_D):
            raise MismatchError(
                f"this head expects tokens {len(self.mean_D)} wide, but was given {token_ND.shape[-1]}. Use the "
                "store of the backbone that it was trained on."
            )
        token_ND = token_ND.to(self.mean_D.dtype)
        standard_ND = ((token_ND if self.raised is None else self.raised(token_ND)) - self.mean_D) / self.scale_D
        if self.around is not None:
            standard_ND = self.around(standard_ND)
        return standard_ND if self.basis_DP is None else standard_ND @ self.basis_DP

    def rows(self, token_ND: Tensor) -> Tensor:
        """The same for many stored rows `(N, D)` on any device, some at a time so that fp16 rows stay fp16."""
        width = len(self.mean_D) if self.basis_DP is None else self.basis_DP.shape[1]
        out_NP = torch.empty(len(token_ND), width, dtype=self.mean_D.dtype, device=self.mean_D.device)
        for start in range(0, len(token_ND), ROWS_AT_ONCE):
            part = token_ND[start : start + ROWS_AT_ONCE].to(self.mean_D.device)
            out_NP[start : start + len(part)] = self(part)
        return out_NP

    def to(self, place: torch.device | str | torch.dtype) -> "Projection":
        """The same on another device or in another float type."""
        basis_DP = None if self.basis_DP is None else self.basis_DP.to(place)
        around = None if self.around is None else self.around.to(place)
        raised = None if self.raised is None else self.raised.to(place)
        return Projection(self.mean_D.to(place), self.scale_D.to(place), basis_DP, around, raised)

    @property
    def width(self) -> int:
        """Projected width P."""
        return len(self.mean_D) if self.basis_DP is None else self.basis_DP.shape[1]


def fit_projection(
    token_ND: "Tokens",
    components: int,
    *,
    scale_floor: float = 1.0,
    power: float = 0.5,
    anchors: int = 0,
    device: torch.device | str = "cpu",
) -> Projection:
    """Statistics of the unlabelled training rows `(N, D)`.

    A dimension is divided by sqrt(variance + scale_floor^2 x mean variance of all dimensions). Full standardisation
    (0) raises dimensions that are nearly dead to the weight of all others: a tenth of EfficientNet's are on MNIST,
    they are noise, and they explode on augmented or shifted images. A large floor leaves the scales alone.

    Rectified dimensions are raised to a power first. Together they keep the variance that they had beside the others:
    that decides between backbones that lie side by side.

    Args:
        token_ND: the rows, any float type, on any device; those that stay in their store are read chunk by chunk.
        components: P; 0, or D and more, keeps all D without a basis.
        scale_floor: share of the root mean square deviation that no dimension's scale falls below.
        power: see `fit_power`; 1 raises nothing.
        anchors: rows that the statistics of neighbourhoods are kept at; 0, or rows too few, goes without them.
        device: where the projection will live.
    """
    width, numbers_A = token_ND.shape[1], anchor_rows(len(token_ND), anchors)
    found = fit_power(stored_blocks(token_ND, device), width, power, device)
    raised, blocks = None if found is None else found[0], stored_blocks(token_ND, device)
    keeps_all = components == 0 or components >= width
    scales_alone = keeps_all and not len(numbers_A)
    mean_D, covariance = moments(
        blocks if raised is None else map(raised, blocks), width, device, across=not scales_alone
    )
    variance_D = (covariance if scales_alone else covariance.diagonal()).clamp_min(0)
    unit_D = torch.ones_like(variance_D) if found is None else units(*found, variance_D)
    variance_D = variance_D * unit_D.square()
    scale_D = (variance_D + scale_floor**2 * variance_D.mean()).sqrt()
    scale_D = torch.where(scale_D > 1e-6, scale_D, torch.ones_like(scale_D)) / unit_D
    projection = Projection(mean_D.float(), scale_D.float(), None, None, raised)
    if scales_alone:
        return projection
    covariance_DD = covariance / torch.outer(scale_D, scale_D)
    if len(numbers_A):
        flat = projection
        query_DQ = leading_directions(covariance_DD, min(DIRECTIONS, width))
        around = fit_neighbourhood(
            lambda: map(flat, stored_blocks(token_ND, device)), query_DQ, flat.rows(token_ND[numbers_A]),
            scale_floor=scale_floor,
        )  # fmt: skip
        projection = Projection(flat.mean_D, flat.scale_D, None, around, raised)
        if not keeps_all:
            covariance_DD = moments(map(projection, stored_blocks(token_ND, device)), width, device)[1]
    if keeps_all:
        return projection
    basis_DP = leading_directions(covariance_DD, components)
    return Projection(projection.mean_D, projection.scale_D, basis_DP, projection.around, raised)


def units(raised: PowerTransform, before_D: Tensor, after_D: Tensor) -> Tensor:
    """What raised dimensions are multiplied by, `(D,)`, so that their variances add up to what they were before."""
    chosen_D = raised.offset_D.isfinite()
    spread = after_D[chosen_D].sum()
    unit = (before_D[chosen_D].sum() / spread).sqrt() if spread > 0 else torch.ones_like(spread)
    return torch.where(chosen_D, unit, torch.ones_like(after_D))


def stored_blocks(token_ND: "Tokens", device: torch.device | str) -> Iterator[Tensor]:
    """The rows in fp32 on the device, some at a time."""
    blocks = torch.split(token_ND, ROWS_AT_ONCE) if isinstance(token_ND, Tensor) else token_ND.blocks()
    return (block_ND.to(device).float() for block_ND in blocks)


def moments(
    blocks: Iterable[Tensor], width: int, device: torch.device | str, *, across: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` and covariance `(D, D)` of rows that come block by block, summed in float64.

    Without `across` it is the variances `(D,)` alone, which take a fraction of the time.
    """
    rows, shift_D = 0, torch.zeros(0)
    total_D = torch.zeros(width, dtype=torch.float64, device=device)
    moment = torch.zeros((width, width) if across else (width,), dtype=torch.float64, device=device)
    for block_ND in blocks:
        shift_D = shift_D if len(shift_D) else block_ND.mean(0)
        part_ND = block_ND - shift_D
        rows += len(part_ND)
        total_D += part_ND.sum(0)
        moment += part_ND.T @ part_ND if across else part_ND.square().sum(0)
    centre_D = total_D / rows
    squared = torch.outer(centre_D, centre_D) if across else centre_D.square()
    return centre_D + shift_D, moment / rows - squared


def leading_directions(covariance_DD: Tensor, count: int) -> Tensor:
    """Orthonormal principal directions `(D, count)` in fp32, the leading one first, where the covariance is.

    LAPACK's evr gives the leading directions alone, and copes with the many zeros of fewer rows than dimensions.
    """
    width = len(covariance_DD)
    ascending_DP = linalg.eigh(
        covariance_DD.cpu().numpy(), subset_by_index=[width - count, width - 1], driver="evr"
    )[1]  # fmt: skip
    return torch.from_numpy(np.ascontiguousarray(ascending_DP[:, ::-1], np.float32)).to(covariance_DD.device)
