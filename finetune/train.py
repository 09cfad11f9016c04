"""The loop of stage three: probe, steps, what is told of each epoch, checkpoints, early stopping.

Legend: `N` rows of the fixed sample, `D` token width.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from cspipe.finetune.checkpoint import BEST, load_checkpoint, load_weights, save_checkpoint, save_weights
from cspipe.finetune.model import Joined
from cspipe.finetune.optimise import optimisers
from cspipe.finetune.plan import Ints, TrainRows, learning_rate_share, plan_batches, plan_probe, steps_an_epoch
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.step import Parts, Pass, take_step
from cspipe.finetune.watch import watch_epoch
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.runs import write_metrics
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import StoreError

LOG_EVERY = 10
MOST_SKIPPED = 10
"""Steps in a row that may be skipped because they are not finite."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        records: metrics of the whole run, those before an interruption too.
        backbone, stack: what is judged and kept: the moving average where there is one, of the best epoch where one
            was looked for.
        epoch: the number of that epoch.
        seconds: of training, those before an interruption too.
    """

    records: list[Record]
    backbone: nn.Module
    stack: ContentStyle
    epoch: int
    seconds: float


@dataclass(frozen=True)
class Loop:
    """A training with all that it works with.

    Attributes:
        parts, rows, settings, run: as `train` was given them.
        made: optimisers by name.
        average: the moving average, where there is one.
        held: everything whose state a checkpoint keeps.
        probe: rows of each step of the probe.
        passes: rows of each forward pass after it.
    """

    parts: Parts
    rows: TrainRows
    settings: FinetuneSettings
    run: Path
    made: Mapping[str, torch.optim.Optimizer]
    average: ModelEmaV3 | None
    held: nn.ModuleDict
    probe: list[Ints]
    passes: list[Ints]

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.probe) + len(self.passes) // self.settings.accumulate

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return steps_an_epoch(self.rows, self.settings)

    @property
    def shown(self) -> nn.Module:
        """The joined model that is judged and kept."""
        return self.held["joined" if self.average is None else "average"]


def rows_that_teach(head: HeadSettings, settings: FinetuneSettings) -> FinetuneSettings:
    """Settings under which unlabelled rows are left out of the batches where no term looks at them.

    So it is with a head that relies on its labelled rows alone, unless a regulariser compares tokens. The numbers are
    those with all rows in the batch: the backbone's batch norms keep their statistics.
    """
    alone = not head.semi_supervised and not settings.regularisers
    return replace(settings, method="supervised") if alone else settings


def make_loop(parts: Parts, rows: TrainRows, settings: FinetuneSettings, run: Path, seed: int) -> Loop:
    """A training before its first step."""
    planned = rows_that_teach(parts.head_settings, settings)
    average = ModelEmaV3(parts.model, settings.ema, use_warmup=True) if settings.ema else None
    held = nn.ModuleDict({"joined": parts.model})
    if average is not None:
        held["average"] = average.module
    return Loop(
        parts, rows, settings, run, optimisers(parts.model, settings), average, held,
        plan_probe(rows, planned, seed), plan_batches(rows, planned, seed),
    )  # fmt: skip


def train(
    parts: Parts, rows: TrainRows, settings: FinetuneSettings, run: Path, *, seed: int,
    on_step: Callable[[int, int], None], on_message: Callable[[str], None] = lambda text: None,
) -> Trained:  # fmt: skip
    """Trains in place, from the run's checkpoint where it has one.

    Args:
        parts: what learns.
        rows: what it learns from.
        settings: of stage three.
        run: folder for checkpoint and metrics.
        seed: of batches and noise.
        on_step: called with steps done and steps in all.
        on_message: told of steps that were left out.

    Raises:
        StoreError: the loss stays no number for steps on end; the last checkpoint stays.
    """
    began, loop = time.perf_counter(), make_loop(parts, rows, settings, run, seed)
    facts = load_checkpoint(run, loop.held, loop.made)
    start, skipped = int(facts.get("step", 0)), int(facts.get("skipped", 0))
    began -= float(facts.get("seconds", 0.0))
    records = [record for record in read_records(run) if record["step"] <= start]
    for done, one in enumerate(all_passes(loop, start), start + 1):
        if stops(records, settings):
            break
        terms = one_step(loop, done, one, seed)
        skipped = skipped + 1 if bool(terms["skipped"]) else 0
        if skipped:
            told_of_skip(skipped, done, run, on_message)
        note(loop, records, terms, done)
        if done % settings.checkpoint_steps == 0 or done == loop.steps:
            facts = {"step": done, "skipped": skipped, "seconds": time.perf_counter() - began}
            keep(loop, records, facts)
        on_step(done, loop.steps)
    return finish(loop, records, time.perf_counter() - began)


def one_step(loop: Loop, done: int, passes: list[Pass], seed: int) -> dict[str, Tensor]:
    """Step number `done`, the first being 1, and the moving average's."""
    parts, probe = loop.parts, len(loop.probe)
    parts.model.learn()
    set_rates(loop.made, loop.settings, done - 1, loop.steps, probe)
    generator = torch.Generator(parts.device).manual_seed(seed * 1_000_003 + done - 1)
    terms = take_step(parts, loop.rows, passes, loop.made, loop.settings, generator)
    if loop.average is not None and not bool(terms["skipped"]):
        loop.average.update(parts.model, done)
    return terms


def note(loop: Loop, records: list[Record], terms: Mapping[str, Tensor], done: int) -> None:
    """Adds what a step and, at its end, an epoch told; the weights of the best epoch go to disk."""
    settings, after_probe = loop.settings, max(0, done - len(loop.probe))
    if done % settings.checkpoint_steps == 0 or done == loop.steps or done % LOG_EVERY == 0 or bool(terms["skipped"]):
        records.append(logged(terms, done, after_probe / loop.per_epoch))
    if after_probe == 0 or after_probe % loop.per_epoch:
        return
    epoch, shown = after_probe // loop.per_epoch, loop.shown
    told = watch_epoch(loop.parts, shown, loop.rows, settings)
    records.append({"event": "epoch", "step": done, "epoch": epoch, **told})
    if settings.stop != "never" and best_epoch(records, settings) == epoch and loop.parts.world.first:
        save_weights(loop.run / BEST, shown)


def keep(loop: Loop, records: list[Record], facts: Mapping[str, Any]) -> None:
    """Metrics, then the checkpoint, on disk."""
    if loop.parts.world.first:
        write_metrics(loop.run, records)
        save_checkpoint(loop.run, loop.held, loop.made, facts)


def finish(loop: Loop, records: list[Record], seconds: float) -> Trained:
    """The weights that are kept, and the metrics on disk."""
    loop.parts.world.wait()
    if loop.parts.world.first:
        write_metrics(loop.run, records)
    shown = loop.shown
    if loop.settings.stop != "never":
        load_weights(loop.run / BEST, shown)
    assert isinstance(shown, Joined)
    return Trained(records, shown.backbone, shown.stack, best_epoch(records, loop.settings), seconds)


def all_passes(loop: Loop, start: int) -> Iterator[list[Pass]]:
    """The forward passes of each step after `start`; images are decoded for this process's rows alone."""
    for batch in loop.probe[start:]:
        yield [Pass(batch, None)]
    settings, number = loop.settings, max(0, start - len(loop.probe)) * loop.settings.accumulate
    rest = loop.passes[number:]
    mine = [loop.parts.world.mine(batch) for batch in rest]
    pixels = loop.rows.images.batches(mine, augment=settings.augment, first=number)
    group: list[Pass] = []
    for batch, seen in zip(rest, pixels, strict=True):
        group.append(Pass(batch, seen))
        if len(group) == settings.accumulate:
            yield group
            group = []


def set_rates(
    made: Mapping[str, torch.optim.Optimizer], settings: FinetuneSettings, step: int, steps: int, probe: int
) -> None:
    """Learning rates of a step: the head's from the first on, the backbone's after the probe."""
    for optimiser in made.values():
        for group in optimiser.param_groups:
            own = (step - probe, steps - probe) if group.get("of_backbone") else (step, steps)
            group["lr"] = group.get("peak", settings.head_lr) * learning_rate_share(*own)


def best_epoch(records: list[Record], settings: FinetuneSettings) -> int:
    """The epoch of the lowest criterion, the earliest of equals; the last one where nothing was looked for."""
    epochs = [record for record in records if record.get("event") == "epoch"]
    if not epochs:
        return 0
    if settings.stop == "never":
        return int(epochs[-1]["epoch"])
    return int(min(epochs, key=lambda record: (record["criterion"] is None, record["criterion"] or 0.0))["epoch"])


def stops(records: list[Record], settings: FinetuneSettings) -> bool:
    """True where the criterion has not improved for `patience` epochs."""
    if settings.stop == "never":
        return False
    epochs = len([record for record in records if record.get("event") == "epoch"])
    return epochs >= best_epoch(records, settings) + settings.patience


def told_of_skip(skipped: int, step: int, run: Path, on_message: Callable[[str], None]) -> None:
    """Says that a step was left out; gives up after too many in a row.

    Raises:
        StoreError: so many were not finite one after the other.
    """
    if skipped >= MOST_SKIPPED:
        raise StoreError(
            f"loss or gradient was no finite number in the {skipped} steps up to step {step}. Lower finetune.lr; {run} "
            "keeps the checkpoint before."
        )
    on_message(f"step {step}: loss or gradient is no finite number, the step is left out")


def logged(terms: Mapping[str, Tensor], step: int, epoch: float) -> Record:
    """A metric record; numbers that are not finite are null in it."""
    values = {name: float(value) for name, value in terms.items()}
    kept = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"step": step, "epoch": round(epoch, 4), **kept}


def read_records(run: Path) -> Iterator[Record]:
    """Metric records that an interrupted run left."""
    path = run / "metrics.jsonl"
    if path.is_file():
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
