"""How far a fine-tuned backbone has moved from the cached tokens. Legend: `N` rows, `D` token width."""

import torch
from torch import Tensor

from cspipe.store.errors import SettingError


def linear_cka(first_ND: Tensor, second_NE: Tensor) -> float:
    """Linear centred kernel alignment of paired rows (Kornblith et al. 2019, arXiv 1905.00414, eq. 3 and 4), 0 to 1.

    1 where the two are equal up to rotation, scale and shift; shuffling the rows of one lowers it.

    Raises:
        SettingError: different numbers of rows.
    """
    if len(first_ND) != len(second_NE):
        raise SettingError(f"linear_cka compares the same rows; it was given {len(first_ND)} and {len(second_NE)}.")
    first_ND = first_ND.double() - first_ND.double().mean(0)
    second_NE = second_NE.double() - second_NE.double().mean(0)
    shared = (first_ND.T @ second_NE).square().sum()
    own = (first_ND.T @ first_ND).square().sum().sqrt() * (second_NE.T @ second_NE).square().sum().sqrt()
    return float(shared / own) if own > 0 else 0.0


def token_variance(token_ND: Tensor) -> float:
    """Mean variance of a dimension; towards 0 where the tokens collapse."""
    return float(token_ND.double().var(0, correction=0).mean())


def effective_rank(token_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); from 1 to min(N, D)."""
    values = torch.linalg.svdvals(token_ND.double() - token_ND.double().mean(0))
    total = values.sum()
    if total <= 0:
        return 1.0
    share = values / total
    return float(torch.exp(-torch.xlogy(share, share).sum()))
