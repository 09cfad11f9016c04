"""Contrastive terms on labelled rows. Legend: `L` labelled rows of a batch, `P` projected width, `K` classes.

Both look at the projected tokens (standardised with the training rows' statistics): raw tokens behind a ReLU all point
the same way, so their cosines say little.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cspipe.store.errors import SettingError


def supcon(
    *, labelled_LP: Tensor, label_L: Tensor, temperature: float = 0.1, positive_margin: float = 0.1,
    negative_margin: float = 0.1,
) -> Tensor:  # fmt: skip
    """Supervised contrastive term with another similarity for positives than for negatives, `(L, P)`, `(L,)` -> nats.

    Kutsuna 2023, arXiv 2304.03440, on Khosla 2020, arXiv 2004.11362, eq. 2: with s+ = cos - positive_margin between
    rows of one class and s- = cos + negative_margin between rows of two, the mean over rows i that have a partner and
    over their partners p of -log(exp(s_ip / t) / sum over a != i of exp(s_ia / t)). The source reaches its margins by
    parameters of a more general similarity; ours are added to the cosine. With both margins 0 it is plain SupCon.

    Returns:
        0 where no two rows share a class.

    Raises:
        SettingError: the shapes do not belong together.
    """
    if labelled_LP.ndim != 2 or labelled_LP.shape[:1] != label_L.shape:
        raise SettingError(
            f"supcon wants tokens (L, P) and labels (L,); it was given {tuple(labelled_LP.shape)} and "
            f"{tuple(label_L.shape)}."
        )
    unit_LP = F.normalize(labelled_LP, dim=-1)
    same_LL = label_L[:, None] == label_L[None, :]
    margin_LL = torch.where(same_LL, -positive_margin, negative_margin)
    self_LL = torch.eye(len(label_L), dtype=torch.bool, device=label_L.device)
    score_LL = ((unit_LP @ unit_LP.T + margin_LL) / temperature).masked_fill(self_LL, -torch.inf)
    log_share_LL = score_LL.log_softmax(-1)
    partner_LL = same_LL & ~self_LL
    partners_L = partner_LL.sum(-1)
    paired_L = partners_L > 0
    if not bool(paired_L.any()):
        return labelled_LP.sum() * 0
    summed_L = log_share_LL.masked_fill(~partner_LL, 0.0).sum(-1)
    return -(summed_L[paired_L] / partners_L[paired_L]).mean()


def proco(*, labelled_LP: Tensor, label_L: Tensor, prototypes_KP: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrast of labelled rows with the classes' prototypes, every class of equal weight, nats.

    ProCo (Yang et al. 2022) for long tails: -log(exp(cos(z_i, c_y) / t) / sum over k of exp(cos(z_i, c_k) / t)), mean
    over the rows of a class, then over the classes of the batch, so that a rare class counts as much as a frequent one.
    The prototypes are the classes' means of the cached labelled tokens and stay (ours): the source's follow the live
    ones and are recalibrated, and its adversarial prototypes are left out.

    Args:
        labelled_LP: projected live tokens.
        label_L: their classes.
        prototypes_KP: one a class; a row of NaN where a class has no labelled row, which then is no rival.

    Raises:
        SettingError: the shapes do not belong together.
    """
    if labelled_LP.shape[:1] != label_L.shape or labelled_LP.shape[-1] != prototypes_KP.shape[-1]:
        raise SettingError(
            f"proco wants tokens (L, P), labels (L,) and prototypes (K, P); it was given {tuple(labelled_LP.shape)}, "
            f"{tuple(label_L.shape)} and {tuple(prototypes_KP.shape)}."
        )
    missing_K = prototypes_KP.isnan().any(-1)
    cosine_LK = F.normalize(labelled_LP, dim=-1) @ F.normalize(prototypes_KP.nan_to_num(), dim=-1).T
    score_LK = (cosine_LK / temperature).masked_fill(missing_K, -torch.inf)
    wrong_L = -score_LK.log_softmax(-1).gather(-1, label_L[:, None]).squeeze(-1)
    count_K = label_L.bincount(minlength=len(prototypes_KP))
    return (wrong_L / count_K[label_L]).sum() / (count_K > 0).sum()


def class_means(*, labelled_LP: Tensor, label_L: Tensor, classes: int) -> Tensor:
    """Mean row of each class, `(L, P)`, `(L,)` -> `(K, P)`; NaN where a class has no row."""
    one_hot_LK = F.one_hot(label_L, classes).to(labelled_LP.dtype)
    return one_hot_LK.T @ labelled_LP / one_hot_LK.sum(0)[:, None]
