"""RIFT: tuned and pretrained features have the same covariance up to an orthogonal map. arXiv 2503.07399v3.

    L_rift = || Sigma_ft - Q Sigma_pt Q^T ||_F^2 / || Sigma_pt ||_F^2        (the normalisation is ours)

Sigma is the covariance of the centred final features of the same rows, live and cached: no second forward pass, and 0
as long as the backbone has not moved. Q is the identity, or the map that lays the cached rows on the live ones
(Procrustes), or learned. A covariance does not see which row is which: shuffled rows give 0 too, so linear CKA is told
beside it. Legend: `B` batch rows, `D` token width, `R` rank.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from cspipe.store.errors import SettingError


def rift(*, live_BD: Tensor, cached_BD: Tensor) -> Tensor:
    """L_rift with Q = identity, `(B, D)` twice -> a number.

    Raises:
        SettingError: the two differ in shape, or there are fewer than two rows.
    """
    live_BD, cached_BD = centred_pair(live_BD, cached_BD)
    # || X'X - Y'Y ||^2 = || XX' ||^2 - 2 || XY' ||^2 + || YY' ||^2: B x B products in place of D x D ones.
    cached = (cached_BD @ cached_BD.T).square().sum()
    cross = (live_BD @ cached_BD.T).square().sum()
    live = (live_BD @ live_BD.T).square().sum()
    return (live - 2 * cross + cached).clamp_min(0) / cached.clamp_min(torch.finfo(cached.dtype).tiny)


def rift_procrustes(*, live_BD: Tensor, cached_BD: Tensor) -> Tensor:
    """L_rift with Q = argmin || Z_ft - Z_pt Q^T ||_F over orthogonal Q, held fixed, `(B, D)` twice -> a number.

    Raises:
        SettingError: as `rift`.
    """
    live_BD, cached_BD = centred_pair(live_BD, cached_BD)
    return rift(live_BD=live_BD, cached_BD=aligned(live_BD.detach(), cached_BD.detach()))


def rift_learned(*, live_BD: Tensor, cached_BD: Tensor, rotation_DD: Tensor) -> Tensor:
    """L_rift with the orthogonal `rotation_DD` for Q, which learns with the backbone: it sees the spectrum alone.

    Raises:
        SettingError: as `rift`, or Q is not as wide as the tokens.
    """
    width = live_BD.shape[-1]
    if rotation_DD.shape != (width, width):
        raise SettingError(
            f"rift-learned wants an orthogonal map {width} by {width}, as wide as the tokens; it was given "
            f"{tuple(rotation_DD.shape)}."
        )
    return rift(live_BD=live_BD, cached_BD=cached_BD @ rotation_DD.T)


def centred_pair(live_BD: Tensor, cached_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Both minus their mean row.

    Raises:
        SettingError: they differ in shape, or there are fewer than two rows.
    """
    if live_BD.shape != cached_BD.shape or len(live_BD) < 2:
        raise SettingError(
            f"rift compares the live and the cached tokens of the same two or more rows; it was given "
            f"{tuple(live_BD.shape)} and {tuple(cached_BD.shape)}."
        )
    return live_BD - live_BD.mean(0), cached_BD - cached_BD.mean(0)


def aligned(live_BD: Tensor, cached_BD: Tensor) -> Tensor:
    """The centred cached rows under the orthogonal map that lays them on the centred live rows best, `(B, D)`.

    Schoenemann 1966: Q = U V^T of the singular value decomposition of Z_ft^T Z_pt. That matrix is D x D but of rank
    R <= min(B, D), so only the small core between the rows' own spans is decomposed.
    """
    live_span_DR, live_RB = torch.linalg.qr(live_BD.T)
    cached_span_DR, cached_RB = torch.linalg.qr(cached_BD.T)
    left_RR, _, right_RR = torch.linalg.svd(live_RB @ cached_RB.T)
    turned_BD: Tensor = (cached_BD @ cached_span_DR) @ right_RR.T @ left_RR.T @ live_span_DR.T
    return turned_BD


def learned_rotation(width: int) -> nn.Module:
    """A module whose `weight` `(D, D)` is orthogonal whatever its parameter is; the identity at first.

    Cayley's map: one solve of a D x D system a step, and more for its gradient, which at D of a thousand can take
    longer than a small network's whole step. Orthogonal maps fall into two halves that no path joins, but the loss does
    not tell them apart: turning one eigenvector of Sigma_pt round changes the half and not the loss.
    """
    layer = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
    made: nn.Module = parametrizations.orthogonal(layer, orthogonal_map="cayley")
    return made
