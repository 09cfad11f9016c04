"""A study: every method on every labelled split of one store's rows.

Legend: `N` training rows, `M` evaluation rows, `D` token width, `K` classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.headtrain.baselines import BASELINES
from cspipe.headtrain.evaluate import accuracy, confusion
from cspipe.headtrain.given import Given, SharedRows
from cspipe.headtrain.heads import Fit, Head, HeadTask, fit_heads
from cspipe.headtrain.prior import class_prior
from cspipe.headtrain.rows import Ints, StudyRows
from cspipe.headtrain.settings import HEAD_METHODS, HeadSettings, method_settings
from cspipe.store.errors import SettingError
from cspipe.store.split import labelled_folds

METHODS = (*HEAD_METHODS, *BASELINES)
FOLDS = 5

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""


@dataclass(frozen=True)
class Trial:
    """One labelled set and what it is judged on: positions among the training rows.

    Attributes:
        split_seed: seed of the labelled draw.
        labelled: rows whose labels may be used.
        unlabelled: rows whose tokens may be looked at.
        judged: training rows that accuracy is measured on; None: the evaluation rows.
    """

    split_seed: int
    labelled: Ints
    unlabelled: Ints
    judged: Ints | None


def make_trials(rows: StudyRows, splits: Mapping[int, Ints]) -> list[Trial]:
    """One trial a split; in cross-validation one a split and fold, whose held-out rows no one looks at."""
    every = np.arange(len(rows.label_N))
    if rows.evaluation != "cross-validation":
        return [Trial(seed, labelled, every, None) for seed, labelled in splits.items()]
    trials = []
    for seed, labelled in splits.items():
        smallest = int(np.bincount(rows.label_N[labelled], minlength=rows.classes).min())
        if smallest < 2:
            raise SettingError(
                "there is no labelled test split, so accuracy is cross-validated inside the labelled rows; that needs "
                f"two labelled rows of each class and one class has {smallest}. Add labels, or a test folder."
            )
        for held in labelled_folds(rows.label_N[labelled], min(FOLDS, smallest), seed):
            judged = labelled[held]
            trials.append(Trial(seed, np.setdiff1d(labelled, judged), np.setdiff1d(every, judged), judged))
    return trials


@dataclass(frozen=True)
class Outcome:
    """What one method gave: result rows, confusion counts `(K, K)`, metric records, trained heads if it has any."""

    method: str
    results: list[dict[str, Any]]
    confusion: Ints
    metrics: list[dict[str, Any]]
    heads: list[Head]


@dataclass(frozen=True)
class Study:
    """All that the methods of one run share; `kept` is what the baselines of the trial at hand have computed."""

    rows: StudyRows
    trials: list[Trial]
    settings: HeadSettings
    train_seed: int
    device: str
    on_progress: OnProgress | None
    kept: dict[object, SharedRows] = field(default_factory=dict, repr=False, compare=False)

    @property
    def judged_rows(self) -> int:
        """Rows that each split's accuracy is measured on."""
        if self.rows.eval_label_M is not None:
            return len(self.rows.eval_label_M)
        first = self.trials[0].split_seed
        return sum(len(t.judged) for t in self.trials if t.split_seed == first and t.judged is not None)

    def run(self, method: str) -> Outcome:
        """One method on every trial; folds of a split are pooled, so that each row is judged once."""
        if method in HEAD_METHODS:
            fit = self.fit(method, self.trials)
            pairs = zip(fit.heads, self.trials, strict=True)
            predictions = [head.predict(self.judged_tokens(trial)) for head, trial in pairs]
            metrics = metric_records(method, fit, self.trials, self.train_seed)
            heads = fit.heads
        else:
            predictions, metrics, heads = list(self.baseline(method)), [], []
        results, counts = self.judge(method, predictions)
        return Outcome(method, results, counts, metrics, heads)

    def fit(self, method: str, trials: Sequence[Trial]) -> Fit:
        """Trains the heads of one method."""
        settings = method_settings(method, self.settings)

        def told(step: int) -> None:
            if self.on_progress:
                self.on_progress(method, step / settings.steps)

        tasks = [HeadTask(t.labelled, t.unlabelled, self.train_seed, self.prior(settings, t)) for t in trials]
        return fit_heads(
            self.rows.token_ND, torch.from_numpy(self.rows.label_N), tasks, settings, classes=self.rows.classes,
            device=self.device, on_step=told,
        )  # fmt: skip

    def prior(self, settings: HeadSettings, trial: Trial) -> NDArray[np.float64] | None:
        """Class prior of one trial, from its labelled and unlabelled rows alone; None where no term asks for it."""
        if not settings.semi_supervised:
            return None
        known_LD = token_ND = np.empty((0, 1), np.float32)
        if settings.prior == "estimated":
            shared = self.shared_rows(trial)
            token_ND = shared.projection.rows(shared.stored_ND).numpy()
            known_LD = token_ND[np.searchsorted(trial.unlabelled, trial.labelled)]
        return class_prior(
            settings.prior, given=settings.prior_given, token_ND=token_ND, token_LD=known_LD,
            label_L=self.rows.label_N[trial.labelled], classes=self.rows.classes,
        )  # fmt: skip

    def judged_tokens(self, trial: Trial) -> torch.Tensor:
        """Tokens that the trial is judged on."""
        if trial.judged is not None:
            return self.rows.token_ND[torch.from_numpy(trial.judged)]
        assert self.rows.eval_token_MD is not None
        return self.rows.eval_token_MD

    def shared_rows(self, trial: Trial) -> SharedRows:
        """What the trial's baselines look at; kept until a trial with other rows comes, for its graph is costly."""
        key = (trial.unlabelled.tobytes(), None if trial.judged is None else trial.judged.tobytes())
        if key not in self.kept:
            self.kept.clear()
            every = len(trial.unlabelled) == len(self.rows.token_ND)
            stored = self.rows.token_ND if every else self.rows.token_ND[torch.from_numpy(trial.unlabelled)]
            on_share = partial(self.on_progress, "nearest neighbours") if self.on_progress else None
            self.kept[key] = SharedRows(stored, self.judged_tokens(trial), self.device, on_share)
        return self.kept[key]

    def baseline(self, method: str) -> Iterator[Ints]:
        """Predictions of one baseline, trial by trial."""
        for number, trial in enumerate(self.trials):
            at_L = np.searchsorted(trial.unlabelled, trial.labelled)
            given = Given(
                self.shared_rows(trial), at_L, self.rows.label_N[trial.labelled], self.rows.classes,
                self.train_seed, self.settings,
            )  # fmt: skip
            yield BASELINES[method](given).argmax(1)
            if self.on_progress:
                self.on_progress(method, (number + 1) / len(self.trials))

    def judge(self, method: str, predictions: Sequence[Ints]) -> tuple[list[dict[str, Any]], Ints]:
        """Accuracy of each split and confusion counts over all of them."""
        pooled: dict[int, tuple[list[Ints], list[Ints]]] = {}
        for trial, predicted in zip(self.trials, predictions, strict=True):
            truth = self.rows.eval_label_M if trial.judged is None else self.rows.label_N[trial.judged]
            assert truth is not None
            said, true = pooled.setdefault(trial.split_seed, ([], []))
            said.append(predicted)
            true.append(truth)
        results, counts = [], np.zeros((self.rows.classes, self.rows.classes), np.int64)
        for seed, parts in pooled.items():
            predicted, truth = (np.concatenate(part) for part in parts)
            counts += confusion(predicted, truth, self.rows.classes)
            labels = sum(len(t.judged) for t in self.trials if t.split_seed == seed and t.judged is not None)
            results.append({
                "method": method, "labels": labels or len(self.trials[0].labelled), "split_seed": seed,
                "train_seed": self.train_seed, "accuracy": accuracy(predicted, truth),
            })  # fmt: skip
        return results, counts


def metric_records(method: str, fit: Fit, trials: Sequence[Trial], train_seed: int) -> list[dict[str, Any]]:
    """History as one record a head and moment."""
    fold: dict[int, int] = {}
    records = []
    for head, trial in enumerate(trials):
        number = fold[trial.split_seed] = fold.get(trial.split_seed, -1) + 1
        named = {"method": method, "split_seed": trial.split_seed, "train_seed": train_seed, "fold": number}
        for moment in fit.history:
            values = {name: float(value[head]) for name, value in moment.items() if name != "step"}
            records.append(named | {"step": int(moment["step"])} | values)
    return records
