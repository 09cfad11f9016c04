"""Derivatives in closed form: fewer passes over the rows than following each operation backward.

A second derivative is refused: what they keep of the way forward would count as constant.

Legend: `B` rows, `D` token width, `K` classes, `S` style, `...` any leading axes; `X` rows of which the first `Y` go on
as they are and the last `B` are mixed, `F` hidden width.
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


class ContentDivergence(Function):
    """Content, its mean entropy and KL(mean content || prior) of logits, `(..., B, K)`, `(..., K)` -> `(..., B, K)` and
    `(...)` twice, nats; a probability counts `tiny` at least in the logarithm of the KL."""

    @staticmethod
    def forward(ctx: Any, logits_BK: Tensor, prior_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        """softmax, -mean sum p log p, sum m log(m / prior)."""
        log_content_BK = log_softmax(logits_BK)
        content_BK = log_content_BK.exp()
        entropy = (content_BK * log_content_BK).sum((-2, -1)) / -logits_BK.shape[-2]
        marginal_K = content_BK.mean(-2)
        tiny = torch.finfo(marginal_K.dtype).tiny
        log_ratio_K = (marginal_K.clamp_min(tiny) / prior_K.clamp_min(tiny)).log()
        ctx.save_for_backward(content_BK, log_content_BK, log_ratio_K)
        return content_BK, entropy, (marginal_K * log_ratio_K).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        towards_BK: Tensor,
        of_entropy: Tensor,
        of_kl: Tensor,
    ) -> tuple[Tensor, None]:
        """p (v - sum p v), where v is what pulls at the content, but for a constant of the row."""
        content_BK, log_content_BK, log_ratio_K = ctx.saved_tensors
        rows = content_BK.shape[-2]
        pull_BK = log_content_BK * (-of_entropy / rows)[..., None, None]
        pull_BK += (log_ratio_K * (of_kl / rows)[..., None])[..., None, :]
        pull_BK += towards_BK
        pull_BK -= (content_BK * pull_BK).sum(-1, keepdim=True)
        return pull_BK.mul_(content_BK), None


class SoftCrossEntropy(Function):
    """Cross-entropy of logits with class probabilities that are held fixed, `(..., B, K)` twice -> `(...)`, nats."""

    @staticmethod
    def forward(ctx: Any, logits_BK: Tensor, target_BK: Tensor) -> Tensor:  # noqa: ANN401
        """-mean sum target log softmax."""
        log_content_BK = log_softmax(logits_BK)
        ctx.save_for_backward(log_content_BK, target_BK)
        return (target_BK * log_content_BK).sum((-2, -1)) / -logits_BK.shape[-2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Softmax, times what the target sums to, minus the target."""
        log_content_BK, target_BK = ctx.saved_tensors
        towards_BK = log_content_BK.exp().mul_(target_BK.sum(-1, keepdim=True)).sub_(target_BK)
        return towards_BK.mul_((gradient / target_BK.shape[-2])[..., None, None]), None


class KeptAndMixed(Function):
    """The first Y of some rows, and the last B each mixed with the one before it, the first of them with the last:
    `(..., X, F)`, `(..., B, 1)` -> `(..., Y, F)`, `(..., B, F)`."""

    @staticmethod
    def forward(ctx: Any, rows_XF: Tensor, share_B1: Tensor, kept: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """share x of each and 1 - share of the one before it."""
        ctx.save_for_backward(share_B1)
        ctx.rows = rows_XF.shape[-2]
        return rows_XF[..., :kept, :], mixed(rows_XF[..., -share_B1.shape[-2] :, :], share_B1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, kept_YF: Tensor, mixed_BF: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """Each row gets its share of its own mix and the rest of the next one's."""
        (share_B1,) = ctx.saved_tensors
        out_XF = kept_YF.new_empty(*kept_YF.shape[:-2], ctx.rows, kept_YF.shape[-1])
        kept = kept_YF.shape[-2]
        out_XF[..., :kept, :] = kept_YF
        out_XF[..., kept:, :] = 0
        tail_BF, rest_B1 = out_XF[..., -share_B1.shape[-2] :, :], 1 - share_B1
        tail_BF.addcmul_(mixed_BF, share_B1)
        tail_BF[..., :-1, :].addcmul_(mixed_BF[..., 1:, :], rest_B1[..., 1:, :])
        tail_BF[..., -1:, :].addcmul_(mixed_BF[..., :1, :], rest_B1[..., :1, :])
        return out_XF, None, None


def mixed(rows_BX: Tensor, share_B1: Tensor) -> Tensor:
    """`share` of each row and the rest of the row before it, `(..., B, X)`, `(..., B, 1)` -> `(..., B, X)`."""
    return rows_BX.roll(1, -2).lerp(rows_BX, share_B1)


def log_softmax(logits_BK: Tensor) -> Tensor:
    """Over classes; rows lie side by side in memory, since over ten such numbers PyTorch takes five times as long."""
    return logits_BK.mT.contiguous().log_softmax(-2).mT
