"""Terms that tie the tuned backbone to the pretrained one: weights, features, features of masked images.

Legend: `B` batch rows, `D` token width, `H` and `W` height and width in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cspipe.store.errors import SettingError


def l2sp(*, weights: Sequence[Tensor], start_weights: Sequence[Tensor]) -> Tensor:
    """L2-SP: 1/2 sum || w - w_0 ||^2 over the weights that learn, w_0 the pretrained ones. Li 2018, arXiv 1802.01483.

    The source's second term, weight decay of what is new, is left to AdamW.

    Raises:
        SettingError: other shapes at the start than now, or no weights at all.
    """
    now, then = [w.shape for w in weights], [w.shape for w in start_weights]
    if now != then or not now:
        raise SettingError(
            f"l2sp compares the weights that learn with the same ones at the start; it was given {len(now)} and "
            f"{len(then)} tensors" + (" of other shapes." if len(now) == len(then) and now else ".")
        )
    return 0.5 * torch.stack([(w - s).square().sum() for w, s in zip(weights, start_weights, strict=True)]).sum()


def distillation(*, live_BD: Tensor, cached_BD: Tensor) -> Tensor:
    """Feature distillation: sum || live - cached ||^2 / sum || cached - mean cached ||^2, a number.

    FitNets' hint on the final feature (Romero 2014, arXiv 1412.6550), the pretrained backbone being the teacher; the
    denominator is ours: 1 is the error of a backbone that gives every image the same token, the mean one.

    Raises:
        SettingError: the two differ in shape, or there are fewer than two rows.
    """
    if live_BD.shape != cached_BD.shape or len(live_BD) < 2:
        raise SettingError(
            f"distillation compares the live and the cached tokens of the same two or more rows; it was given "
            f"{tuple(live_BD.shape)} and {tuple(cached_BD.shape)}."
        )
    spread = (cached_BD - cached_BD.mean(0)).square().sum()
    return (live_BD - cached_BD).square().sum() / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def masked(*, masked_live_BD: Tensor, masked_frozen_BD: Tensor) -> Tensor:
    """Mean squared difference of the tuned and the frozen backbone's tokens of masked, refilled images.

    Xiao 2023, arXiv 2303.03052: an image part of which is taken from another image is a counterfactual sample. It costs
    a second forward and backward pass of the tuned backbone, a forward pass of the frozen one and a copy of its
    weights: more than twice the step without it.

    Raises:
        SettingError: the two differ in shape.
    """
    if masked_live_BD.shape != masked_frozen_BD.shape:
        raise SettingError(
            f"masked compares two tokens of the same images; it was given {tuple(masked_live_BD.shape)} and "
            f"{tuple(masked_frozen_BD.shape)}."
        )
    return F.mse_loss(masked_live_BD, masked_frozen_BD)


def mask_and_refill(
    pixels_B3HW: Tensor, generator: torch.Generator, *, share: float = 0.5, cells: int = 8
) -> Tensor:  # fmt: skip
    """Images with random cells of a grid taken from the image that stands some places before in the batch.

    The source masks by class activation maps or at random, and refills with other images; ours is at random, for maps
    belong to one kind of network.

    Args:
        pixels_B3HW: a batch.
        generator: of the cells and of the shift.
        share: probability that a cell is replaced.
        cells: cells a side.
    """
    rows, (height, width) = len(pixels_B3HW), pixels_B3HW.shape[-2:]
    device = pixels_B3HW.device
    replaced = torch.rand(rows, 1, cells, cells, generator=generator, device=device) < share
    at_y = torch.arange(height, device=device) * cells // height
    at_x = torch.arange(width, device=device) * cells // width
    replaced_B1HW = replaced[:, :, at_y][:, :, :, at_x]
    shift = int(torch.randint(1, max(rows, 2), (1,), generator=generator, device=device))
    return torch.where(replaced_B1HW, pixels_B3HW.roll(shift, 0), pixels_B3HW)
