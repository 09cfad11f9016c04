"""The terms of the objective, one pure function each. arXiv 2410.02069; estimators as in Entropy 22(9):943.

    L_total = L_c + lambda_c D_c + lambda_s D_s + lambda_y D_y + lambda_yy L_y

| symbol        | function                                                                          |
|---------------|-----------------------------------------------------------------------------------|
| L_c           | `content_cross_entropy`                                                           |
| D_c           | `adversarial` on the content discriminator, or `content_prior_divergence`         |
| D_s           | `adversarial` on the style discriminator                                          |
| D_y           | `adversarial` on the token discriminator                                          |
| L_y           | `token_reconstruction`                                                            |
| discriminator | `discriminator_loss`; its logit estimates log prior/model, `density_ratio_kl` logs |

Legend: `B` batch rows, `L` labelled rows, `K` classes, `D` token width, `...` any leading axes (the heads that
are trained at once). Every function averages over the rows and keeps the leading axes. Values are in nats.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.settings import Estimator
from cspipe.store.errors import SettingError


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


def content_entropy(*, logits_BK: Tensor) -> Tensor:
    """Mean entropy of the content given the image, `(..., B, K)` -> `(...)`, nats; 0 where every row is certain."""
    log_content_BK = logits_BK.log_softmax(-1)
    return -(log_content_BK.exp() * log_content_BK).sum(-1).mean(-1)


def content_marginal_kl(*, logits_BK: Tensor, prior_K: Tensor) -> Tensor:
    """KL(mean content || prior), `(..., B, K)`, `(..., K)` -> `(...)`, nats.

    Raises:
        SettingError: the prior has another number of classes than the content.
    """
    if logits_BK.shape[-1] != prior_K.shape[-1]:
        raise SettingError(
            f"the class prior has {prior_K.shape[-1]} probabilities but the content has {logits_BK.shape[-1]} "
            "classes: give one probability a class."
        )
    marginal_K = logits_BK.softmax(-1).mean(-2)
    tiny = torch.finfo(marginal_K.dtype).tiny
    return torch.xlogy(marginal_K, marginal_K / prior_K.clamp_min(tiny)).sum(-1)


def content_prior_divergence(*, logits_BK: Tensor, prior_K: Tensor, entropy_weight: float) -> Tensor:
    """D_c in closed form (ours): marginal KL plus `entropy_weight` times the conditional entropy.

    Both are 0 exactly where the content is one-hot and its mean is the prior, which is where the paper's
    adversarial D_c is 0. `(..., B, K)`, `(..., K)` -> `(...)`, nats.
    """
    marginal = content_marginal_kl(logits_BK=logits_BK, prior_K=prior_K)
    return marginal + entropy_weight * content_entropy(logits_BK=logits_BK)


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
    return 1 - F.cosine_similarity(token_BD, rebuilt_BD, dim=-1).mean(-1)
