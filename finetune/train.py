"""Training of backbone and head on the live token with the head's own objective.

Legend: `X` rows of a batch (labelled, then unlabelled), `L` labelled, `B` unlabelled, `D` token width, `P` projected
width. The head is a stack of one, so its tensors carry a leading axis of 1.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cspipe.extract.backbones import Backbone
from cspipe.finetune.checkpoint import load_checkpoint, save_checkpoint
from cspipe.finetune.drift import effective_rank, linear_cka, token_variance
from cspipe.finetune.images import RowImages, live_tokens, to_batch
from cspipe.finetune.model import Joined
from cspipe.finetune.regularisers import REGULARISERS
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain.batches import draw_prior
from cspipe.headtrain.objective import critic_losses, objective, total
from cspipe.headtrain.runs import write_metrics
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.train import apply_gradients
from cspipe.store.errors import StoreError

Ints = NDArray[np.int64]
LOG_EVERY = 10
DRIFT = ("cka", "token_variance", "effective_rank")
"""Numbers of the record of an epoch."""


@dataclass(frozen=True)
class TrainRows:
    """Training rows: images, cached tokens `(N, D)`, labels `(N,)`, and positions of labelled and unlabelled rows."""

    images: RowImages
    cached_ND: Tensor
    label_N: Tensor
    labelled: Ints
    unlabelled: Ints


@dataclass(frozen=True)
class Parts:
    """The joined model, its backbone with preprocessing, the head's settings and class prior, the device."""

    model: Joined
    backbone: Backbone
    head_settings: HeadSettings
    prior_1K: Tensor
    device: torch.device


def plan_batches(rows: TrainRows, settings: FinetuneSettings, seed: int) -> list[Ints]:
    """Row positions of every step, labelled first: a function of the seed alone, so that a resumed run agrees."""
    generator = np.random.default_rng([seed, 2])
    per_epoch = max(1, len(rows.unlabelled) // settings.batch)
    size = min(settings.batch, len(rows.unlabelled))
    batches = []
    for _ in range(settings.epochs):
        order = generator.permutation(rows.unlabelled)
        batches += [order[step * size : (step + 1) * size] for step in range(per_epoch)]
    need = len(batches) * settings.labelled_batch
    passes = [generator.permutation(rows.labelled) for _ in range(-(-need // len(rows.labelled)))]
    labelled = np.concatenate(passes)[:need].reshape(len(batches), -1)
    return [np.concatenate(pair) for pair in zip(labelled, batches, strict=True)]


def backbone_lr(backbone: nn.Module) -> float:
    """Peak learning rate by kind of network: what batch norm holds in place bears larger steps than a transformer."""
    return 2e-4 if any(isinstance(part, nn.BatchNorm2d) for part in backbone.modules()) else 1e-5


def optimisers(model: Joined, settings: FinetuneSettings) -> dict[str, torch.optim.Optimizer]:
    """AdamW for backbone, encoder and decoder; Adam for the discriminators where there are any."""
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    lr = backbone_lr(model.backbone) if settings.lr is None else settings.lr
    groups = [
        {"params": [p for p in backbone if p.ndim > 1], "peak": lr, "weight_decay": settings.weight_decay},
        {"params": [p for p in backbone if p.ndim <= 1], "peak": lr, "weight_decay": 0.0},
        {"params": model.stack.generator_parameters(), "peak": settings.head_lr, "weight_decay": 0.0},
    ]
    made: dict[str, torch.optim.Optimizer] = {"main": torch.optim.AdamW(groups, lr=lr)}
    critics = list(model.stack.critics.parameters())
    if critics:
        made["critics"] = torch.optim.Adam(critics, lr=settings.head_lr)
    return made


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: warm-up, then a cosine to 0.

    Warm-up takes a tenth of the run, at least 10 steps, at most half of it: Adam's first steps move every weight by
    the full rate, which alone can undo the pretraining.
    """
    warm = max(1, min(steps // 2, max(10, steps // 10)))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train_step(
    parts: Parts, rows: TrainRows, batch: Ints, pixels: Tensor, made: Mapping[str, torch.optim.Optimizer],
    settings: FinetuneSettings, generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """One step of backbone, encoder and decoder, then one of the discriminators; detached terms."""
    model, labelled = parts.model, settings.labelled_batch
    live_XD = model.tokens(to_batch(pixels, parts.backbone, parts.device))
    at = torch.from_numpy(batch)
    cached_XD = rows.cached_ND[at].to(parts.device).float()
    label_1L = rows.label_N[at[:labelled]].to(parts.device)[None]
    target = model.projection(cached_XD[labelled:])[None] if settings.target == "cached" else None
    projected_1XP = model.projection(live_XD)[None]
    terms, samples = objective(
        model.stack, projected_1XP, label_1L, parts.prior_1K, parts.head_settings, target_HBP=target
    )
    loss = total(terms, parts.head_settings).sum()
    for name, weight in settings.regularisers.items():
        terms[name] = REGULARISERS[name](live_BD=live_XD, cached_BD=cached_XD)
        loss = loss + weight * terms[name]
    apply_gradients(loss, made["main"], clip=1.0, again="critics" in made)
    told = {name: value.detach().reshape(()) for name, value in terms.items()} | {"total": loss.detach()}
    if "critics" in made:
        judged = critic_losses(model.stack, samples, real_samples(parts, cached_XD[labelled:], generator))
        apply_gradients(torch.stack(list(judged.values())).sum(), made["critics"])
        told |= {f"critic_{name}": value.detach().reshape(()) for name, value in judged.items()}
    return told


def real_samples(parts: Parts, cached_BD: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What the discriminators take for real: prior draws, and cached tokens."""
    stack, rows, device = parts.model.stack, len(cached_BD), parts.device
    drawn = draw_prior(parts.prior_1K[0], rows, generator, 1)
    return {
        "content": torch.nn.functional.one_hot(drawn, stack.classes).float(),
        "style": torch.randn(1, rows, stack.style, generator=generator, device=device),
        "token": parts.model.projection(cached_BD)[None],
    }


def train(
    parts: Parts, rows: TrainRows, settings: FinetuneSettings, run: Path, *, seed: int,
    on_step: Callable[[int, int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Trains in place, from the run's checkpoint where it has one.

    Args:
        parts: what learns.
        rows: what it learns from.
        settings: of stage three.
        run: folder for checkpoint and metrics.
        seed: of batches and noise.
        on_step: called with steps done and steps in all.

    Returns:
        Metric records of the whole run, those before an interruption too.

    Raises:
        StoreError: the loss is no longer a number; the last checkpoint stays.
    """
    made = optimisers(parts.model, settings)
    batches = plan_batches(rows, settings, seed)
    start = load_checkpoint(run, parts.model, made)
    records = [record for record in read_records(run) if record["step"] <= start]
    per_epoch = len(batches) // settings.epochs
    for step, pixels in enumerate(rows.images.batches(batches[start:]), start):
        parts.model.learn()
        for optimiser in made.values():
            for group in optimiser.param_groups:
                group["lr"] = group.get("peak", settings.head_lr) * learning_rate_share(step, len(batches))
        generator = torch.Generator(parts.device).manual_seed(seed * 1_000_003 + step)
        terms = train_step(parts, rows, batches[step], pixels, made, settings, generator)
        done = step + 1
        keep = done % settings.checkpoint_steps == 0 or done == len(batches)
        if keep or done % LOG_EVERY == 0:
            records.append(logged(terms, done, done / per_epoch, run))
        if done % per_epoch == 0:
            records.append({"event": "epoch", "step": done, "epoch": done // per_epoch, **drift(parts, rows)})
        if keep:
            write_metrics(run, records)
            save_checkpoint(run, parts.model, made, done)
        on_step(done, len(batches))
    return records


def logged(terms: Mapping[str, Tensor], step: int, epoch: float, run: Path) -> dict[str, Any]:
    """A metric record; refuses numbers that are not finite."""
    values = {name: float(value) for name, value in terms.items()}
    if not math.isfinite(values["total"]):
        raise StoreError(
            f"the loss is {values['total']} at step {step}. Lower finetune.lr; {run} keeps the checkpoint before it."
        )
    return {"step": step, "epoch": round(epoch, 4), **values}


def drift(parts: Parts, rows: TrainRows, *, sample: int = 512) -> dict[str, float]:
    """CKA with the cached tokens, variance and effective rank of the live ones, on a fixed sample of training rows."""
    chosen = np.unique(np.linspace(0, len(rows.cached_ND) - 1, sample).round().astype(np.int64))
    live_ND = live_tokens(parts.backbone, rows.images, chosen, parts.device)
    cached_ND = rows.cached_ND[torch.from_numpy(chosen)].float()
    values = (linear_cka(live_ND, cached_ND), token_variance(live_ND), effective_rank(live_ND))
    return dict(zip(DRIFT, values, strict=True))


def read_records(run: Path) -> Iterator[dict[str, Any]]:
    """Metric records that an interrupted run left."""
    path = run / "metrics.jsonl"
    if path.is_file():
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
