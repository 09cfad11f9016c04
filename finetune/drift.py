"""How far a fine-tuned backbone has moved from the cached tokens. Legend: `N` rows, `D` token width, `Q` neighbours."""

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


def knn_overlap(first_ND: Tensor, second_NE: Tensor, *, neighbours: int = 10) -> float:
    """Share of a row's nearest rows (by cosine, of centred rows) that are nearest in both spaces, 0 to 1.

    Chance is neighbours / (N - 1). Unlike CKA it looks at what is near alone.

    Raises:
        SettingError: different numbers of rows, or fewer than two.
    """
    if len(first_ND) != len(second_NE) or len(first_ND) < 2:
        raise SettingError(
            f"knn_overlap compares the same two or more rows; it was given {len(first_ND)} and {len(second_NE)}."
        )
    count = min(neighbours, len(first_ND) - 1)
    sets = []
    for rows_NX in (first_ND, second_NE):
        unit_NX = torch.nn.functional.normalize(rows_NX.double() - rows_NX.double().mean(0), dim=1)
        cosine_NN = (unit_NX @ unit_NX.T).fill_diagonal_(-torch.inf)
        nearest_NQ = cosine_NN.topk(count, dim=1).indices
        sets.append(torch.zeros_like(cosine_NN).scatter_(1, nearest_NQ, 1.0))
    return float((sets[0] * sets[1]).sum() / (count * len(first_ND)))


def mean_cosine(first_ND: Tensor, second_ND: Tensor) -> float:
    """Mean cosine of paired rows, -1 to 1; 1 where only lengths differ."""
    return float(torch.nn.functional.cosine_similarity(first_ND.double(), second_ND.double(), dim=1).mean())


DRIFT = ("cka", "knn_overlap", "cosine", "token_variance", "effective_rank")
"""Numbers that `measure_drift` gives."""


def measure_drift(live_ND: Tensor, cached_ND: Tensor) -> dict[str, float]:
    """Everything of `DRIFT`: live tokens against the cached ones of the same rows, then what the live ones are."""
    values = (
        linear_cka(live_ND, cached_ND), knn_overlap(live_ND, cached_ND), mean_cosine(live_ND, cached_ND),
        token_variance(live_ND), effective_rank(live_ND),
    )  # fmt: skip
    return dict(zip(DRIFT, values, strict=True))
