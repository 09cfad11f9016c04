"""Tokens made ready for a head: standardised with the unlabelled rows' statistics, then projected once.

Legend: `N` rows, `D` token width, `P` projected width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from cspipe.store.errors import MismatchError

if TYPE_CHECKING:
    from cspipe.headtrain.chunked import Tokens

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Projection:
    """(token - mean) / scale, then the first P principal components; kept with the head.

    Attributes:
        mean_D: mean of the rows it was fitted on.
        scale_D: their deviation with a floor, see `fit_projection`.
        basis_DP: orthonormal principal directions of the standardised rows, or None to keep all D.
    """

    mean_D: Tensor
    scale_D: Tensor
    basis_DP: Tensor | None

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
        standard_ND = (token_ND.to(self.mean_D.dtype) - self.mean_D) / self.scale_D
        return standard_ND if self.basis_DP is None else standard_ND @ self.basis_DP

    def rows(self, token_ND: Tensor) -> Tensor:
        """The same for many stored rows `(N, D)` on any device, some at a time so that fp16 rows stay fp16."""
        width = len(self.mean_D) if self.basis_DP is None else self.basis_DP.shape[1]
        out_NP = torch.empty(len(token_ND), width, dtype=self.mean_D.dtype, device=self.mean_D.device)
        for start in range(0, len(token_ND), ROWS_AT_ONCE):
            part = token_ND[start : start + ROWS_AT_ONCE].to(self.mean_D.device)
            out_NP[start : start + len(part)] = self(part)
        return out_NP

    @property
    def width(self) -> int:
        """Projected width P."""
        return len(self.mean_D) if self.basis_DP is None else self.basis_DP.shape[1]


def fit_projection(
    token_ND: "Tokens", components: int, *, scale_floor: float = 1.0, device: torch.device | str = "cpu"
) -> Projection:
    """Statistics of the unlabelled training rows `(N, D)`; moments are summed in float64 over blocks of rows.

    A dimension is divided by sqrt(variance + scale_floor^2 x mean variance of all dimensions). Full standardisation
    (0) raises dimensions that are nearly dead to the weight of all others: a tenth of EfficientNet's are on MNIST,
    they are noise, and they explode on augmented or shifted images. A large floor leaves the scales alone.

    Args:
        token_ND: the rows, any float type, on any device; those that stay in their store are read chunk by chunk.
        components: P; 0, or D and more, keeps all D without a basis.
        scale_floor: share of the root mean square deviation that no dimension's scale falls below.
        device: where the projection will live.
    """
    rows, width = token_ND.shape
    total_D = torch.zeros(width, dtype=torch.float64, device=device)
    moment_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
    shift_D = torch.zeros(0)
    for block_ND in torch.split(token_ND, ROWS_AT_ONCE) if isinstance(token_ND, Tensor) else token_ND.blocks():
        part_ND = block_ND.to(device).float()
        shift_D = shift_D if len(shift_D) else part_ND.mean(0)
        part_ND = part_ND - shift_D
        total_D += part_ND.sum(0)
        moment_DD += part_ND.T @ part_ND
    centre_D = total_D / rows
    covariance_DD = moment_DD / rows - torch.outer(centre_D, centre_D)
    variance_D = covariance_DD.diagonal().clamp_min(0)
    scale_D = (variance_D + scale_floor**2 * variance_D.mean()).sqrt()
    scale_D = torch.where(scale_D > 1e-6, scale_D, torch.ones_like(scale_D))
    mean_D = (centre_D + shift_D).float()
    if components == 0 or components >= width:
        return Projection(mean_D, scale_D.float(), None)
    correlation_DD = (covariance_DD / torch.outer(scale_D, scale_D)).cpu().numpy()
    # LAPACK's evr gives the leading directions alone, and copes with the many zeros of fewer rows than dimensions.
    ascending_DP = linalg.eigh(correlation_DD, subset_by_index=[width - components, width - 1], driver="evr")[1]
    basis_DP = torch.from_numpy(np.ascontiguousarray(ascending_DP[:, ::-1], np.float32)).to(device)
    return Projection(mean_D, scale_D.float(), basis_DP)
