"""What learns at which rate, and one step of it."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from cspipe.finetune.model import Joined
from cspipe.finetune.settings import FinetuneSettings
from cspipe.store.errors import SettingError

Groups = list[dict[str, Any]]


def backbone_lr(backbone: nn.Module, settings: FinetuneSettings) -> float:
    """Peak learning rate by kind of network: one with batch or group norm bears larger steps than a transformer."""
    if settings.lr is not None:
        return settings.lr
    bold = settings.adapter == "lora" or any(
        isinstance(part, nn.BatchNorm2d | nn.GroupNorm) for part in backbone.modules()
    )
    return 1e-3 if bold else 1e-5


def backbone_groups(backbone: Any, settings: FinetuneSettings) -> Groups:  # noqa: ANN401 - timm's have no common class
    """timm's parameter groups: matrices alone decay, and each block at its own rate where there is a layer decay.

    Raises:
        SettingError: a layer decay, and the model does not say what its blocks are.
    """
    exempt: set[str] = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    if settings.layer_decay == 1:
        groups: Groups = param_groups_weight_decay(backbone, settings.weight_decay, no_weight_decay_list=exempt)
    elif not hasattr(backbone, "group_matcher"):
        raise SettingError("this backbone does not tell its blocks apart: leave finetune.layer_decay at 1.")
    else:
        groups = param_groups_layer_decay(
            backbone, settings.weight_decay, no_weight_decay_list=exempt, layer_decay=settings.layer_decay
        )
    peak = backbone_lr(backbone, settings)
    return [{"params": group["params"], "weight_decay": group["weight_decay"], "of_backbone": True,
             "peak": peak * group.get("lr_scale", 1.0)} for group in groups]  # fmt: skip


def optimisers(model: Joined, settings: FinetuneSettings) -> dict[str, torch.optim.Optimizer]:
    """AdamW by timm's factory for backbone, encoder and decoder; Adam for the discriminators where there are any."""
    head = [*model.stack.generator_parameters(), *(model.rotation.parameters() if model.rotation is not None else ())]
    groups = [
        *backbone_groups(model.backbone, settings),
        {"params": head, "peak": settings.head_lr, "weight_decay": 0.0, "of_backbone": False},
    ]
    made: dict[str, torch.optim.Optimizer] = {"main": create_optimizer_v2(groups, opt="adamw", lr=settings.head_lr)}
    critics = list(model.stack.critics.parameters())
    if critics:
        made["critics"] = torch.optim.Adam(critics, lr=settings.head_lr)
    return made


def parameters_of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimiser, in order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def gradients(
    loss: Tensor, parameters: Sequence[nn.Parameter], former: Sequence[Tensor | None] | None, *, again: bool = False
) -> list[Tensor | None]:
    """Gradients of `loss` for exactly these parameters, added to the `former` ones; None where it has none."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=again)
    if former is None:
        return list(found)
    return [old if new is None else new if old is None else old + new for old, new in zip(former, found, strict=True)]


def norm_of(found: Sequence[Tensor | None]) -> Tensor:
    """Norm of a whole gradient; not finite where any part of it is not."""
    there = [gradient for gradient in found if gradient is not None]
    return torch.nn.utils.get_total_norm(there) if there else torch.zeros(())


def apply(
    optimiser: torch.optim.Optimizer, found: Sequence[Tensor | None], norm: Tensor, *, clip: float | None = None
) -> None:
    """One step along these gradients, shortened to the norm `clip`."""
    share = None if clip is None else (clip / (norm + 1e-6)).clamp_max(1.0)
    for parameter, gradient in zip(parameters_of(optimiser), found, strict=True):
        parameter.grad = gradient if gradient is None or share is None else gradient * share
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
