"""Which rows each forward pass sees, and how large a step is. A function of seed and settings alone.

Legend: `N` rows, `L` labelled, `U` unlabelled.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cspipe.finetune.images import RowImages
from cspipe.finetune.settings import FinetuneSettings
from cspipe.store.errors import SettingError

Ints = NDArray[np.int64]
PASSES, PROBE = 2, 3
"""Second words of the generators' keys, after the seed."""
FEWEST_STEPS = 60
"""Steps of a run whose epochs are not given."""


@dataclass(frozen=True)
class TrainRows:
    """Training rows: images, cached tokens `(N, D)`, labels `(N,)`, and positions of rows.

    Attributes:
        labelled: rows whose labels are learnt from.
        unlabelled: all rows that are looked at, the labelled ones among them.
        held: labelled rows kept for early stopping; their labels are learnt from by nothing.
    """

    images: RowImages
    cached_ND: Tensor
    label_N: Tensor
    labelled: Ints
    unlabelled: Ints
    held: Ints = field(default_factory=lambda: np.empty(0, np.int64))


def steps_an_epoch(rows: TrainRows, settings: FinetuneSettings) -> int:
    """Optimiser steps of one pass over the unlabelled rows."""
    return max(1, len(rows.unlabelled) // (settings.batch * settings.accumulate))


def count_epochs(rows: TrainRows, settings: FinetuneSettings) -> int:
    """Passes over the unlabelled rows: as the settings say, else one, or as many as make `FEWEST_STEPS` steps."""
    return settings.epochs or max(1, math.ceil(FEWEST_STEPS / steps_an_epoch(rows, settings)))


def plan_batches(rows: TrainRows, settings: FinetuneSettings, seed: int) -> list[Ints]:
    """Row positions of every forward pass, labelled first; `accumulate` of them are a step. Resumed runs agree.

    `supervised` passes hold labelled rows alone, and are as many.

    Raises:
        SettingError: fewer unlabelled rows than forward passes in a step.
    """
    if len(rows.unlabelled) < 2 * settings.accumulate:
        raise SettingError(
            f"a step of {settings.accumulate} forward passes needs two rows for each, and there are "
            f"{len(rows.unlabelled)}: lower finetune.accumulate."
        )
    generator = np.random.default_rng([seed, PASSES])
    per_epoch = steps_an_epoch(rows, settings) * settings.accumulate
    size = min(settings.batch, len(rows.unlabelled) // settings.accumulate)
    passes = []
    for _ in range(count_epochs(rows, settings)):
        order = generator.permutation(rows.unlabelled)
        passes += [order[number * size : (number + 1) * size] for number in range(per_epoch)]
    return with_labelled(rows, passes, settings, generator)


def plan_probe(rows: TrainRows, settings: FinetuneSettings, seed: int) -> list[Ints]:
    """Row positions of every step of the probe, from a generator of its own."""
    generator = np.random.default_rng([seed, PROBE])
    size = min(settings.batch, len(rows.unlabelled))
    drawn = [generator.permutation(rows.unlabelled)[:size] for _ in range(settings.probe_steps)]
    return with_labelled(rows, drawn, settings, generator) if drawn else []


def with_labelled(
    rows: TrainRows, unlabelled: list[Ints], settings: FinetuneSettings, generator: np.random.Generator
) -> list[Ints]:
    """Labelled rows in whole shuffled passes, each equally often, before the unlabelled rows of every batch."""
    need = len(unlabelled) * settings.labelled_batch
    passes = [generator.permutation(rows.labelled) for _ in range(-(-need // len(rows.labelled)))]
    labelled = np.concatenate(passes)[:need].reshape(len(unlabelled), -1)
    if settings.method == "supervised":
        return list(labelled)
    return [np.concatenate(pair) for pair in zip(labelled, unlabelled, strict=True)]


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: warm-up, then a cosine to 0; 0 before step 0.

    Warm-up takes a tenth of the run, at least 10 steps, at most half of it: Adam's first steps move every weight by
    the full rate, which alone can undo the pretraining.
    """
    if step < 0:
        return 0.0
    warm = max(1, min(steps // 2, max(10, steps // 10)))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
