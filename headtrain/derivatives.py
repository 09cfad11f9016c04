"""Derivatives of two terms in closed form: fewer passes over the rows than following each operation backward.

A second derivative is refused: what they keep of the way forward would count as constant.

Legend: `B` rows, `D` token width, `S` style, `...` any leading axes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class RowCosine(Function):
    """Cosine of the angle between rows, `(..., B, D)` twice -> `(..., B)`; norms count `tiny` at least, multiplied."""

    @staticmethod
    def forward(ctx: Any, one_BD: Tensor, other_BD: Tensor, tiny: float) -> Tensor:  # noqa: ANN401
        """x.y / (|x| |y|)."""
        norm_B, other_norm_B = (torch.linalg.vector_norm(rows, dim=-1) for rows in (one_BD, other_BD))
        product_B = norm_B * other_norm_B
        inverse_B = product_B.clamp_min(tiny).reciprocal()
        cosine_B: Tensor = torch.linalg.vecdot(one_BD, other_BD) * inverse_B
        inside_B = cosine_B * (product_B > tiny)
        ctx.save_for_backward(one_BD, other_BD, norm_B, other_norm_B, inverse_B, inside_B)
        return cosine_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401
        """y / (|x| |y|) - cos x / |x|^2, and the like for y."""
        one_BD, other_BD, norm_B, other_norm_B, inverse_B, inside_B = ctx.saved_tensors
        across_B1 = (gradient_B * inverse_B).unsqueeze(-1)

        def towards(own_BD: Tensor, facing_BD: Tensor, facing_norm_B: Tensor) -> Tensor:
            along_B1 = -across_B1 * (inside_B * facing_norm_B.square() * inverse_B).unsqueeze(-1)
            gradient_BD: Tensor = own_BD * along_B1
            return gradient_BD.addcmul_(facing_BD, across_B1)

        return (
            towards(one_BD, other_BD, other_norm_B) if ctx.needs_input_grad[0] else None,
            towards(other_BD, one_BD, norm_B) if ctx.needs_input_grad[1] else None,
            None,
        )


class GaussianKl(Function):
    """KL(N(mean, covariance + ridge I) || N(0, I)) of the rows' own moments, `(..., B, S)` -> `(...)`, nats.

    The ridge counts in the determinant alone.
    """

    @staticmethod
    def forward(ctx: Any, style_BS: Tensor, ridge: float) -> Tensor:  # noqa: ANN401
        """Half of trace + |mean|^2 - S - log determinant."""
        rows, width = style_BS.shape[-2:]
        mean_1S = style_BS.mean(-2, keepdim=True)
        centred_BS = style_BS - mean_1S
        covariance_SS = centred_BS.mT @ centred_BS / rows
        unit_SS = torch.eye(width, dtype=style_BS.dtype, device=style_BS.device)
        factor_SS, _ = torch.linalg.cholesky_ex(covariance_SS + ridge * unit_SS)
        log_determinant = 2 * factor_SS.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        trace = covariance_SS.diagonal(dim1=-2, dim2=-1).sum(-1)
        ctx.save_for_backward(centred_BS, mean_1S, factor_SS, unit_SS)
        divergence: Tensor = 0.5 * (trace + mean_1S.square().sum((-2, -1)) - width - log_determinant)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """(centred (I - inverse covariance) + mean) / rows."""
        centred_BS, mean_1S, factor_SS, unit_SS = ctx.saved_tensors
        pull_SS = unit_SS - torch.cholesky_inverse(factor_SS)
        scale_11 = (gradient / centred_BS.shape[-2])[..., None, None]
        return (centred_BS @ pull_SS + mean_1S) * scale_11, None
