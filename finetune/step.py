"""One optimiser step of backbone and head on the live token with the head's own objective.

Legend: `X` rows of a batch (labelled, then unlabelled), `L` labelled, `B` unlabelled, `D` token width, `P` projected
width, `K` classes. The head is a stack of one, so its tensors carry a leading axis of 1. With several processes `X` is
the whole batch, and pixels are one process's share of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.extract.backbones import Backbone
from cspipe.finetune.image_decoder import image_rows
from cspipe.finetune.images import to_batch
from cspipe.finetune.model import Joined
from cspipe.finetune.optimise import apply, gradients, norm_of, parameters_of
from cspipe.finetune.plan import TrainRows
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.supply import Anchors, Seen, Supply, regulariser_terms
from cspipe.finetune.world import ALONE, World
from cspipe.headtrain.batches import draw_prior, draw_shares
from cspipe.headtrain.objective import critic_losses, objective, total
from cspipe.headtrain.settings import HeadSettings

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """What a training works with.

    Attributes:
        model: what learns.
        backbone: its backbone with preprocessing.
        head_settings: the objective.
        prior_1K: class prior.
        device: where the model is.
        anchors: what regularisers compare with.
        world: which of how many processes.
        channels: of the image that L_y rebuilds; 0 where it rebuilds the token.
    """

    model: Joined
    backbone: Backbone
    head_settings: HeadSettings
    prior_1K: Tensor
    device: torch.device
    anchors: Anchors
    world: World = ALONE
    channels: int = 0


@dataclass(frozen=True)
class Pass:
    """One forward pass: rows, and their pixels `(X, 3, H, W)` uint8; None in the probe, which looks at no image."""

    rows: Ints
    pixels_X3HW: Tensor | None


def take_step(
    parts: Parts, rows: TrainRows, passes: Sequence[Pass], made: Mapping[str, torch.optim.Optimizer],
    settings: FinetuneSettings, generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Backbone, encoder and decoder move once, then the discriminators; a step that is not finite moves nothing.

    Returns:
        Detached terms, their mean over the passes; `gradient_norm`; `skipped`, 1 where nothing was moved.
    """
    parameters = {name: parameters_of(optimiser) for name, optimiser in made.items()}
    found: dict[str, list[Tensor | None] | None] = dict.fromkeys(made)
    sums: dict[str, Tensor] = {}
    for one in passes:
        losses, told = forward(parts, rows, one, settings, generator)
        for name, loss in losses.items():
            again = name == "main" and len(losses) > 1
            found[name] = gradients(loss / len(passes), parameters[name], found[name], again=again)
        sums = {name: value + sums.get(name, 0.0) for name, value in told.items()}
    terms = {name: value / len(passes) for name, value in sums.items()}
    whole = {name: exchange(parts, parameters[name], part) for name, part in found.items() if part is not None}
    norms = {name: norm_of(part) for name, part in whole.items()}
    finite = bool(torch.stack([terms["total"], *norms.values()]).isfinite().all())
    if finite:
        for name, optimiser in made.items():
            apply(optimiser, whole[name], norms[name], clip=settings.clip if name == "main" else None)
    return terms | {"gradient_norm": norms["main"], "skipped": torch.tensor(0.0 if finite else 1.0)}


def exchange(parts: Parts, parameters: Sequence[Tensor], found: list[Tensor | None]) -> list[Tensor | None]:
    """The backbone's gradients summed over the processes; the others are the same in all of them."""
    if parts.world.size == 1:
        return found
    backbone = {id(parameter) for parameter in parts.model.backbone.parameters()}
    place = [number for number, parameter in enumerate(parameters) if id(parameter) in backbone]
    summed = parts.world.add([found[number] for number in place])
    return [dict(zip(place, summed, strict=True)).get(number, gradient) for number, gradient in enumerate(found)]


def forward(
    parts: Parts, rows: TrainRows, one: Pass, settings: FinetuneSettings, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by optimiser, still attached, and detached terms of one forward pass."""
    model, labelled, at = parts.model, settings.labelled_batch, torch.from_numpy(one.rows)
    cached_XD = rows.cached_ND[at].to(parts.device, parts.prior_1K.dtype)
    label_L = rows.label_N[at[:labelled]].to(parts.device)
    pixels_X3HW = None
    if one.pixels_X3HW is not None:
        pixels_X3HW = to_batch(one.pixels_X3HW, parts.backbone, parts.device).to(parts.prior_1K.dtype)
    live_XD = cached_XD if pixels_X3HW is None else parts.world.gather(embed(parts, pixels_X3HW, settings))
    projected_1XP = model.projection(live_XD)[None]
    share_1B1 = shares(parts, projected_1XP[:, labelled:], generator)
    target = model.projection(cached_XD[labelled:])[None] if settings.target == "cached" else None
    image_1BI = pixels_rebuilt(parts, one, labelled)
    terms, samples = objective(
        model.stack, projected_1XP, label_L[None], parts.prior_1K, parts.head_settings, target_HBP=target,
        share_HB1=share_1B1, image_HBI=image_1BI,
    )  # fmt: skip
    loss = total(terms, parts.head_settings).sum()
    if pixels_X3HW is not None and settings.regularisers:
        seen = Seen(pixels_X3HW, live_XD, cached_XD, label_L, generator)
        embedding = partial(embed, parts, settings=settings)
        supply = Supply(settings, model, embedding, seen, parts.anchors, parts.world)
        kept = regulariser_terms(settings.regularisers, supply)
        loss = loss + torch.stack([settings.regularisers[name] * value for name, value in kept.items()]).sum()
        terms |= kept
    losses, told = {"main": loss}, terms | {"total": loss}
    if samples:
        real_1BX = model.projection(cached_XD[labelled:])[None] if image_1BI is None else image_1BI
        judged = critic_losses(model.stack, samples, real_samples(parts, real_1BX, generator))
        losses["critics"] = torch.stack(list(judged.values())).sum()
        told |= {f"critic_{name}": value for name, value in judged.items()}
    return losses, {name: value.detach().reshape(()) for name, value in told.items()}


def embed(parts: Parts, pixels_X3HW: Tensor, settings: FinetuneSettings) -> Tensor:
    """Live tokens of normalised pixels, the backbone in bfloat16 where the settings say so."""
    on = settings.autocast if settings.autocast is not None else parts.device.type == "cuda"
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=on):
        return parts.model.tokens(pixels_X3HW)


def shares(parts: Parts, unlabelled_1BP: Tensor, generator: torch.Generator) -> Tensor | None:
    """What each unlabelled row keeps when it is mixed with the one before it; None where the objective has no L_mix.

    The head mixes cached views; the live backbone has none, so tokens of the images themselves are mixed, as the head
    does where a store holds no views.
    """
    if not parts.head_settings.lambda_mix or not parts.head_settings.semi_supervised:
        return None
    return draw_shares(1, unlabelled_1BP.shape[1], parts.head_settings, generator, unlabelled_1BP.dtype)


def pixels_rebuilt(parts: Parts, one: Pass, labelled: int) -> Tensor | None:
    """Pixels in [0, 1] `(1, B, I)` of the whole batch's unlabelled images; None where the token is rebuilt."""
    if one.pixels_X3HW is None or not parts.channels:
        return None
    mine_XI = image_rows(one.pixels_X3HW, parts.channels, parts.prior_1K)[0]
    return parts.world.gather(mine_XI)[None, labelled:]


def real_samples(parts: Parts, real_1BX: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What the discriminators take for real: prior draws, and cached tokens or images."""
    stack, rows, dtype = parts.model.stack, real_1BX.shape[1], parts.prior_1K.dtype
    drawn = draw_prior(parts.prior_1K[0], rows, generator, 1)
    return {
        "content": torch.nn.functional.one_hot(drawn, stack.classes).to(dtype),
        "style": torch.randn(1, rows, stack.style, generator=generator, device=parts.device, dtype=dtype),
        "token": real_1BX,
    }
