"""Backbone and head as one module, and which of the backbone's blocks learn. Legend: `B` batch, `D` token width."""

from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.projection import Projection
from cspipe.store.errors import SettingError


class Joined(nn.Module):
    """A live backbone under a trained head (a stack of one), and rift-learned's map where that is in use."""

    def __init__(
        self, backbone: nn.Module, stack: ContentStyle, projection: Projection, rotation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = stack
        self.projection = projection
        self.rotation = rotation

    def tokens(self, pixels_B3HW: Tensor) -> Tensor:
        """Live tokens `(B, D)` with gradient, in fp32 at least."""
        token: Tensor = self.backbone(pixels_B3HW)
        return token if token.dtype == torch.float64 else token.float()

    def content(self, token_BD: Tensor) -> Tensor:
        """Content logits `(B, K)` of tokens."""
        return self.stack.encode(self.projection(token_BD)[None])[0][0]

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Class probabilities `(B, K)` of normalised pixels."""
        return self.content(self.tokens(pixels_B3HW)).softmax(-1)

    def learn(self) -> None:
        """Training mode of the head alone: the backbone's batch norms keep their statistics, its dropout is off."""
        self.train()
        self.backbone.eval()


def block_numbers(backbone: Any) -> dict[str, int]:  # noqa: ANN401 - timm's models have no common class
    """Parameter name -> number of its block, by the model's own grouping: 0 the stem, then 1 to the last block.

    What follows the last block counts as part of it. timm does so for a final norm, but gives a head of another
    name (`fc_norm`, `attn_pool`) a group of its own, which is known by its name.

    Raises:
        SettingError: the model does not say what its blocks are.
    """
    if not hasattr(backbone, "group_matcher"):
        raise SettingError("this backbone does not tell its blocks apart: use --unfreeze to train all of it.")
    groups = group_parameters(backbone, backbone.group_matcher(coarse=False))
    last = max(groups)
    kind, former = ({name.split(".")[0].rstrip("0123456789") for name in groups[n]} for n in (last, max(last - 1, 0)))
    if last > 1 and kind.isdisjoint(former):
        groups[last - 1] += groups.pop(last)
    return {name: number for number, names in groups.items() for name in names}


def checkpoint_activations(backbone: nn.Module) -> None:
    """Lets the network recompute its activations in the backward pass.

    Raises:
        SettingError: it cannot.
    """
    for part in backbone.modules():
        switch: Any = getattr(part, "set_grad_checkpointing", None)
        if switch is not None:
            switch(True)
            return
    raise SettingError("this backbone cannot recompute its activations: leave out finetune.grad_checkpointing.")


def unfreeze(backbone: nn.Module, blocks: int | None) -> int:
    """Lets the last `blocks` blocks and what follows them learn, or everything where it is None.

    Returns:
        How many numbers learn.

    Raises:
        SettingError: more blocks than there are.
    """
    if blocks is None:
        backbone.requires_grad_(True)
    else:
        number = block_numbers(backbone)
        last = max(number.values())
        if blocks > last:
            raise SettingError(
                f"--unfreeze-blocks {blocks} is more than the {last} blocks of this backbone; to train all of it, "
                "its stem too, use --unfreeze."
            )
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(number[name] > last - blocks)
    return sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
