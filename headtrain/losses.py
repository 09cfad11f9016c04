"""The terms of the objective, one pure function each. arXiv 2410.02069; estimators as in Entropy 22(9):943.

    L_total = L_c + lambda_c D_c + lambda_s D_s + lambda_y D_y + lambda_yy L_y

| symbol        | function                                                                          |
|---------------|-----------------------------------------------------------------------------------|
| L_c           | `content_cross_entropy`                                                           |
| D_c           | `adversarial` on the content discriminator, or in closed form (ours):             |
|               | both parts of `content_divergence`, the entropy with a weight                     |
| D_s           | `adversarial` on the style discriminator, `gaussian_kl` or `mmd`                  |
| D_y           | `adversarial` on the token discriminator                                          |
| L_y           | `token_reconstruction`; of pixels, as in the predecessor, `image_reconstruction`  |
| L_mix         | `interpolation` (ours)                                                            |
| discriminator | `discriminator_loss`; its logit estimates log prior/model, `density_ratio_kl` logs |

Legend: `B` batch rows, `L` labelled rows, `K` classes, `D` token width, `...` any leading axes (the heads that
are trained at once). Every function averages over the rows and keeps the leading axes. Values are in nats.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.derivatives import ContentDivergence, GaussianKl, RowCosine, SoftCrossEntropy, mixed
from cspipe.headtrain.settings import Estimator
from cspipe.store.errors import SettingError

TINY = 1e-8
"""What the product of two norms counts at least, so that the cosine with a row of zeros is 0."""

RIDGE = 1e-4
"""What each variance of a style counts more in a determinant, which is then finite."""


def content_cross_entropy(*, logits_LK: Tensor, label_L: Tensor) -> Tensor:
    """L_c: cross-entropy of the content against the label, `(..., L, K)`, `(..., L)` -> `(...)`, nats.

    Raises:
        SettingError: the shapes do not belong together.
    """
    if logits_LK.shape[:-1] != label_L.shape:
        raise SettingError(
            f"content_cross_entropy wants logits (..., L, K) and labels (..., L); it was given "
            f"{tuple(logits_LK.shape)} and {tuple(label_L.shape)}."
        )
    log_content_LK = logits_LK.log_softmax(-1)
    return -log_content_LK.gather(-1, label_L.unsqueeze(-1)).squeeze(-1).mean(-1)


class Content(NamedTuple):
    """Content of some rows, and the two parts of D_c in closed form.

    Attributes:
        content_BK: class probabilities.
        entropy: mean entropy of the content given the image, nats; 0 where every row is certain.
        marginal_kl: KL(mean content || prior), nats; 0 where the mean content is the prior.
    """

    content_BK: Tensor
    entropy: Tensor
    marginal_kl: Tensor


def content_divergence(*, logits_BK: Tensor, prior_K: Tensor) -> Content:
    """D_c in closed form, in two parts, `(..., B, K)`, `(..., K)` -> content `(..., B, K)` and each part `(...)`.

    Both are 0 exactly where the content is one-hot and its mean is the prior, which is where the paper's adversarial
    D_c is 0.

    Raises:
        SettingError: the prior has another number of classes than the content.
    """
    if logits_BK.shape[-1] != prior_K.shape[-1]:
        raise SettingError(
            f"the class prior has {prior_K.shape[-1]} probabilities but the content has {logits_BK.shape[-1]} "
            "classes: give one probability a class."
        )
    return Content(*ContentDivergence.apply(logits_BK, prior_K))


def adversarial(*, logit_B: Tensor, estimator: Estimator) -> Tensor:
    """What the encoder and decoder minimise on a discriminator's logits of their samples, `(..., B)` -> `(...)`.

    `nonsaturating`: mean softplus(-T), whose gradient is that of KL - 2 JS (Arjovsky and Bottou 2017, theorem
    2.5). `kl`: mean -T, an estimate of KL(model || prior) when T is log prior/model.
    """
    if estimator == "nonsaturating":
        return F.softplus(-logit_B).mean(-1)
    return density_ratio_kl(logit_B=logit_B)


def density_ratio_kl(*, logit_B: Tensor) -> Tensor:
    """Estimate of KL(model || prior) from the discriminator, mean of -T over model samples, nats.

    On soft content against exact one-hots the true KL is infinite: the figure then says only how well the
    discriminator does.
    """
    return -logit_B.mean(-1)


def discriminator_loss(*, logit_prior_B: Tensor, logit_model_B: Tensor) -> Tensor:
    """Binary cross-entropy, prior (or real) = 1 and model = 0, `(..., B)`, `(..., B)` -> `(...)`, nats.

    The sum of the two means, halved: ln 2 where the discriminator cannot tell.
    """
    return 0.5 * (F.softplus(-logit_prior_B).mean(-1) + F.softplus(logit_model_B).mean(-1))


def token_reconstruction(*, token_BD: Tensor, rebuilt_BD: Tensor) -> Tensor:
    """L_y: 1 - cos(token, rebuilt token), mean over rows, `(..., B, D)` twice -> `(...)`; from 0 to 2.

    Raises:
        SettingError: the two differ in shape.
    """
    if token_BD.shape != rebuilt_BD.shape:
        raise SettingError(
            f"token_reconstruction wants two tensors of one shape; it was given {tuple(token_BD.shape)} and "
            f"{tuple(rebuilt_BD.shape)}."
        )
    cosine_B = RowCosine.apply(token_BD, rebuilt_BD, TINY)
    loss: Tensor = 1 - cosine_B.mean(-1)
    return loss


def image_reconstruction(*, pixel_BI: Tensor, logit_BI: Tensor) -> Tensor:
    """L_y on pixels: binary cross-entropy of rebuilt ones, mean over pixels and rows, `(..., B, I)` twice -> `(...)`.

    Pixels are in [0, 1], black to white, and sigmoid(logit) is the rebuilt pixel. At its least it is the pixels' own
    entropy, 0 for black and white ones alone.

    Raises:
        SettingError: the two differ in shape.
    """
    if pixel_BI.shape != logit_BI.shape:
        raise SettingError(
            f"image_reconstruction wants two tensors of one shape; it was given {tuple(pixel_BI.shape)} and "
            f"{tuple(logit_BI.shape)}."
        )
    return (F.softplus(logit_BI) - pixel_BI * logit_BI).mean((-2, -1))


def gaussian_kl(*, style_BS: Tensor) -> Tensor:
    """D_s by moments: KL(N(mean, covariance) || N(0, I)) of the rows' own moments, `(..., B, S)` -> `(...)`, nats.

    Blind to all but the first two moments. A ridge keeps it finite where there are fewer rows than S.

    Raises:
        SettingError: a single row, which has no covariance.
    """
    if style_BS.shape[-2] < 2:
        raise SettingError(f"gaussian_kl wants at least two rows (..., B, S); it was given {tuple(style_BS.shape)}.")
    divergence: Tensor = GaussianKl.apply(style_BS, RIDGE)
    return divergence


def mmd(*, style_BS: Tensor, prior_BS: Tensor) -> Tensor:
    """D_s by kernel: squared maximum mean discrepancy from prior draws, `(..., B, S)` twice -> `(...)`.

    Inverse multiquadric kernel of scale 2 S, the mean squared distance of two draws of N(0, I) (Tolstikhin et al.
    2018); the unbiased estimate, so it is negative half of the time where the two agree.

    Raises:
        SettingError: the two differ in shape, or hold a single row.
    """
    if style_BS.shape != prior_BS.shape or style_BS.shape[-2] < 2:
        raise SettingError(
            f"mmd wants two tensors of one shape (..., B, S), B at least 2; it was given {tuple(style_BS.shape)} and "
            f"{tuple(prior_BS.shape)}."
        )
    rows, scale = style_BS.shape[-2], 2.0 * style_BS.shape[-1]

    def kernel(one_BS: Tensor, other_BS: Tensor) -> Tensor:
        squared_BB = one_BS.square().sum(-1)[..., :, None] + other_BS.square().sum(-1)[..., None, :]
        return scale / (scale + (squared_BB - 2 * one_BS @ other_BS.mT).clamp_min(0))

    def among(points_BS: Tensor) -> Tensor:
        kernel_BB = kernel(points_BS, points_BS)
        own = kernel_BB.diagonal(dim1=-2, dim2=-1).sum(-1)
        return (kernel_BB.sum((-2, -1)) - own) / (rows * (rows - 1))

    return among(style_BS) + among(prior_BS) - 2 * kernel(style_BS, prior_BS).mean((-2, -1))


def sharpened(*, content_BK: Tensor, temperature: float) -> Tensor:
    """Content to the power 1 / temperature, normalised: surer below 1, unchanged at 1. `(..., B, K)` twice."""
    if temperature == 1:
        return content_BK
    powered_BK: Tensor = content_BK ** (1 / temperature)
    return powered_BK / powered_BK.sum(-1, keepdim=True)


def interpolation(*, logits_BK: Tensor, content_BK: Tensor, share_B1: Tensor) -> Tensor:
    """L_mix: cross-entropy of mixed rows' content with the mixed content, which is held fixed; nats.

    Row b was mixed of `share_B1[b]` of row b and the rest of row b - 1 (`roll`): interpolation consistency, Verma et
    al. 2019. `(..., B, K)` twice, `(..., B, 1)` -> `(...)`.

    Raises:
        SettingError: the shapes do not belong together.
    """
    if logits_BK.shape != content_BK.shape or share_B1.shape[:-1] != content_BK.shape[:-1]:
        raise SettingError(
            f"interpolation wants logits and content (..., B, K) and shares (..., B, 1); it was given "
            f"{tuple(logits_BK.shape)}, {tuple(content_BK.shape)} and {tuple(share_B1.shape)}."
        )
    loss: Tensor = SoftCrossEntropy.apply(logits_BK, mixed(content_BK.detach(), share_B1))
    return loss
