"""Terms that keep the pretrained representation, one pure function each. Legend: `B` batch rows, `D` token width."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from cspipe.store.errors import SettingError


def rift(*, live_BD: Tensor, cached_BD: Tensor) -> Tensor:
    """RIFT with Q = identity (arXiv 2503.07399v3): || Sigma_ft - Sigma_pt ||_F^2 / || Sigma_pt ||_F^2, a number.

    Sigma is the covariance of the centred final features of the same rows, live and cached: no second forward
    pass, 0 as long as the backbone has not moved. The normalisation is ours.

    Raises:
        SettingError: the two differ in shape, or there are fewer than two rows.
    """
    if live_BD.shape != cached_BD.shape or len(live_BD) < 2:
        raise SettingError(
            f"rift compares the live and the cached tokens of the same two or more rows; it was given "
            f"{tuple(live_BD.shape)} and {tuple(cached_BD.shape)}."
        )
    live_BD = live_BD - live_BD.mean(0)
    cached_BD = cached_BD - cached_BD.mean(0)
    # || X'X - Y'Y ||^2 = || XX' ||^2 - 2 || XY' ||^2 + || YY' ||^2: B x B products in place of D x D ones.
    cached = (cached_BD @ cached_BD.T).square().sum()
    cross = (live_BD @ cached_BD.T).square().sum()
    live = (live_BD @ live_BD.T).square().sum()
    return (live - 2 * cross + cached).clamp_min(0) / cached.clamp_min(torch.finfo(cached.dtype).tiny)


REGULARISERS: Mapping[str, Callable[..., Tensor]] = MappingProxyType({"rift": rift})
"""Name -> function of (live_BD, cached_BD)."""
