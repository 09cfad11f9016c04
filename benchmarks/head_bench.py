"""What the parts of head.py share: the rows, studies on them, heads just before training, Markdown rows."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

from cspipe.headtrain import heads
from cspipe.headtrain.rows import Labels, StudyRows, labelled_positions
from cspipe.headtrain.settings import MAIN_METHOD, HeadSettings
from cspipe.headtrain.study import Memory, Study, Trial, make_trials
from cspipe.headtrain.train import train_heads

SEEDS_OF_ALL = 3


@dataclass(frozen=True)
class Bench:
    """What every measurement starts from.

    Attributes:
        rows: of the store, with their judged rows.
        settings: of a content-style head: the defaults and what --set changes.
        splits: labelled splits. train_seeds: heads a split; with all labels there is one, of `SEEDS_OF_ALL` heads.
        steps: so many steps in every training in place of its own; None: its own.
        memory: the graph of nearest neighbours, class priors and baselines' answers, computed once.
    """

    rows: StudyRows
    settings: HeadSettings
    splits: int = 5
    train_seeds: int = 3
    steps: int | None = None
    memory: Memory = field(default_factory=Memory, repr=False)

    def study(self, labels: Labels, settings: HeadSettings, *, heads: int | None = None) -> Study:
        """The trials with so many labels; `heads` of them, a split after the other, or one a split and seed."""
        return self.study_of(self.trials(labels, heads), settings)

    def study_of(self, trials: list[Trial], settings: HeadSettings) -> Study:
        """A study of these trials."""
        chosen = settings if self.steps is None else replace(settings, steps=self.steps)
        return Study(self.rows, trials, chosen, "cpu", None, self.memory)

    def trials(self, labels: Labels, heads: int | None = None) -> list[Trial]:
        """So many labels: `heads` trials, a split after the other, or one a split and seed."""
        splits = labelled_positions(self.rows, labels, self.splits, "balanced")
        seeds = SEEDS_OF_ALL if labels == "all" else self.train_seeds
        seeds = seeds if heads is None else -(-heads // len(splits))
        return make_trials(self.rows, splits, range(seeds))[:heads]


class EnoughSteps(Exception):
    """Ends a training that is timed."""


@dataclass(frozen=True)
class Ready:
    """Heads just before training, with all that `fit_heads` hands to `train_heads`.

    Attributes:
        train: `train_heads` with its arguments.
        heads: how many train at once.
        steps: of a whole training.
        set_up_seconds: what came before: projection, resident table, first weights.
    """

    train: Callable[..., Any]
    heads: int
    steps: int
    set_up_seconds: float

    def run(self, steps: int) -> tuple[float, int]:
        """Seconds that the first `steps` of a training take, and how many they were: whole blocks of the loop."""
        done = 0

        def stop(step: int) -> None:
            nonlocal done
            done = step
            if done >= steps:
                raise EnoughSteps

        begun = time.perf_counter()
        with suppress(EnoughSteps):
            self.train(on_step=stop)
            done = self.steps
        return time.perf_counter() - begun, done

    def seconds_a_step(self, steps: int) -> float:
        """Wall time of a step, mean over the first `steps` of a training."""
        spent, done = self.run(steps)
        return spent / done


def make_ready(study: Study) -> Ready:
    """Lets `fit_heads` prepare everything, and keeps the call of `train_heads` that it would have made.

    So what is timed is the product's own loop on the product's own table, whatever they are today.
    """
    begun = time.perf_counter()
    with mock.patch.object(heads, "train_heads", return_value=[]) as seen:
        study.fit(MAIN_METHOD, study.trials)
    spent = time.perf_counter() - begun
    train = partial(train_heads, *seen.call_args.args, **seen.call_args.kwargs)
    return Ready(train, len(study.trials), study.settings.steps, spent)


def accuracies(study: Study, probabilities: Sequence[Any]) -> dict[int, float]:
    """Accuracy by split seed, mean over training seeds, of class probabilities `(M, K)` a trial."""
    answers = [study.answers(trial, said) for trial, said in zip(study.trials, probabilities, strict=True)]
    by_split: dict[int, list[float]] = {}
    for row in study.judge(MAIN_METHOD, answers)[0]:
        by_split.setdefault(row["split_seed"], []).append(row["accuracy"])
    return {seed: sum(values) / len(values) for seed, values in by_split.items()}


def say(*cells: object) -> None:
    """One row of a Markdown table, at once."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def heading(title: str, *columns: str) -> None:
    """A title and the head of a Markdown table."""
    print(f"\n{title}\n", flush=True)
    say(*columns)
    say(*["---"] * len(columns))


def share(value: float) -> str:
    """`0.8941` -> `.894`."""
    return f"{value:.3f}".lstrip("0")


def span(ci95: Sequence[float] | None) -> str:
    """An interval of accuracies; empty where there is none."""
    return "" if ci95 is None else f"[{share(ci95[0])}, {share(ci95[1])}]"


def points(told: dict[str, Any] | None) -> tuple[str, str]:
    """A difference of accuracies and its interval, in points; empty where there is none."""
    if told is None:
        return "", ""
    low_high = told["ci95"] and [f"{100 * bound:+.1f}" for bound in told["ci95"]]
    return f"{100 * told['mean_difference']:+.1f}", f"[{low_high[0]}, {low_high[1]}]" if low_high else ""
