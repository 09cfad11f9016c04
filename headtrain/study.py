"""A study: every method on every labelled split of one store's rows.

Legend: `N` training rows, `M` evaluation rows, `D` token width, `K` classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.headtrain.baselines import BASELINES
from cspipe.headtrain.clusters import TRIAL_STEPS, Findings, Sample, draw_sample, look_at_rows
from cspipe.headtrain.evaluate import Answers, accuracy, confusion
from cspipe.headtrain.given import Given, SharedRows
from cspipe.headtrain.heads import Fit, Head, fit_heads, probabilities_of
from cspipe.headtrain.prior import prior_of_rows
from cspipe.headtrain.rows import Ints, StudyRows
from cspipe.headtrain.settings import HEAD_METHODS, HeadSettings, method_settings
from cspipe.headtrain.tasks import HeadTask
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
        train_seed: seed of weights and batches.
    """

    split_seed: int
    labelled: Ints
    unlabelled: Ints
    judged: Ints | None
    train_seed: int = 0

    @property
    def labels(self) -> int:
        """Labelled rows of its split, those held out of a fold among them."""
        return len(self.labelled) + (0 if self.judged is None else len(self.judged))


def make_trials(rows: StudyRows, splits: Mapping[int, Ints], train_seeds: Sequence[int] = (0,)) -> list[Trial]:
    """One trial a split and training seed; in cross-validation one a fold too, whose held-out rows no one looks at.

    All trials of the first training seed come first.
    """
    first = [Trial(*parts, train_seeds[0]) for parts in labelled_sets(rows, splits)]
    return first + [replace(trial, train_seed=seed) for seed in train_seeds[1:] for trial in first]


def labelled_sets(rows: StudyRows, splits: Mapping[int, Ints]) -> list[tuple[int, Ints, Ints, Ints | None]]:
    """Split seed, labelled, unlabelled and judged rows of every split, in cross-validation of every fold."""
    every = np.arange(len(rows.label_N))
    if rows.evaluation != "cross-validation":
        return [(seed, labelled, every, None) for seed, labelled in splits.items()]
    found: list[tuple[int, Ints, Ints, Ints | None]] = []
    for seed, labelled in splits.items():
        smallest = int(np.bincount(rows.label_N[labelled], minlength=rows.classes).min())
        if smallest < 2:
            raise SettingError(
                "there is no labelled test split, so accuracy is cross-validated inside the labelled rows; that needs "
                f"two labelled rows of each class and one class has {smallest}. Add labels, or a test folder."
            )
        for held in labelled_folds(rows.label_N[labelled], min(FOLDS, smallest), seed):
            judged = labelled[held]
            found.append((seed, np.setdiff1d(labelled, judged), np.setdiff1d(every, judged), judged))
    return found


@dataclass(frozen=True)
class Outcome:
    """What one method gave: result rows, confusion counts `(K, K)`, metric records, trained heads if it has any.

    `answers` are those on the judged rows of all trials, one trial after the other.
    """

    method: str
    results: list[dict[str, Any]]
    answers: Answers
    confusion: Ints
    metrics: list[dict[str, Any]]
    heads: list[Head]


@dataclass(frozen=True)
class Memory:
    """What studies of the same rows compute once.

    Attributes:
        rows: of the trial at hand, with their graph of nearest neighbours.
        answers: of the baselines, by their labelled rows.
        priors: class priors, by their kind and labelled rows.
        samples: of rows that may be looked at, by their scale, power and the rows held out; the last one alone.
        findings: what `look_at_rows` found, by the settings and labelled rows.
    """

    rows: dict[object, SharedRows] = field(default_factory=dict)
    answers: dict[object, Answers] = field(default_factory=dict)
    priors: dict[object, NDArray[np.float64]] = field(default_factory=dict)
    samples: dict[object, Sample] = field(default_factory=dict)
    findings: dict[object, Findings] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """All that the methods of one run share."""

    rows: StudyRows
    trials: list[Trial]
    settings: HeadSettings
    device: str
    on_progress: OnProgress | None
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def judged_rows(self) -> int:
        """Rows that each split's accuracy is measured on."""
        if self.rows.eval_label_M is not None:
            return len(self.rows.eval_label_M)
        first = self.trials[0]
        return sum(len(t.judged) for t in self.trials if split_of(t) == split_of(first) and t.judged is not None)

    def run(self, method: str) -> Outcome:
        """One method on every trial; folds of a split are pooled, so that each row is judged once."""
        if method in HEAD_METHODS:
            heads, metrics = self.fit(method, self.trials)
            answers = self.answers_of(heads)
        else:
            answers, metrics, heads = list(self.baseline(method)), [], []
        results, counts = self.judge(method, answers)
        return Outcome(method, results, Answers.pool(answers), counts, metrics, heads)

    def answers_of(self, heads: Sequence[Head]) -> list[Answers]:
        """What the trials' heads say of the rows that they are judged on."""
        if self.trials[0].judged is None:
            said = probabilities_of(heads, self.judged_tokens(self.trials[0]))
        else:
            pairs = zip(heads, self.trials, strict=True)
            said = [head.probabilities(self.judged_tokens(trial)) for head, trial in pairs]
        return [self.answers(trial, each) for trial, each in zip(self.trials, said, strict=True)]

    def fit(self, method: str, trials: Sequence[Trial]) -> tuple[list[Head], list[dict[str, Any]]]:
        """Trains the heads of one method: a head a trial, and metric records; heads of the same settings at once."""
        asked = method_settings(method, self.settings)
        chosen = self.settings_of(asked, trials)
        heads: dict[int, Head] = {}
        records: list[dict[str, Any]] = []
        for settings in dict.fromkeys(chosen):
            places = [place for place, each in enumerate(chosen) if each == settings]
            fit = self.fit_at_once(method, settings, [trials[place] for place in places])
            heads |= dict(zip(places, fit.heads, strict=True))
            records += metric_records(method, fit, trials, places)
        return [heads[place] for place in range(len(trials))], records

    def fit_at_once(self, method: str, settings: HeadSettings, trials: Sequence[Trial]) -> Fit:
        """Trains heads of the same settings."""

        def told(step: int) -> None:
            if self.on_progress:
                self.on_progress(method, step / settings.steps)

        tasks = [HeadTask(t.labelled, t.unlabelled, t.train_seed, self.prior(settings, t)) for t in trials]
        return fit_heads(
            self.rows.token_ND, torch.from_numpy(self.rows.label_N), tasks, settings, classes=self.rows.classes,
            view_VND=self.rows.view_VND, device=self.device, on_step=told,
        )  # fmt: skip

    def settings_of(self, settings: HeadSettings, trials: Sequence[Trial]) -> list[HeadSettings]:
        """The settings, or what each trial's labelled rows bear out of them."""
        if not settings.asks_for_clusters:
            return [settings] * len(trials)
        return [found.borne_out(settings) for found in self.found(settings, trials)]

    def found(self, settings: HeadSettings, trials: Sequence[Trial]) -> list[Findings]:
        """How each trial's rows lie, by its own labelled rows; trials on the same rows are asked at once."""
        known, keys = self.memory.findings, [(settings, *rows_of(trial)) for trial in trials]
        new: dict[bytes | None, dict[object, Trial]] = {}
        for key, trial in zip(keys, trials, strict=True):
            if key not in known:
                new.setdefault(rows_of(trial)[1], {})[key] = trial

        def told(step: int) -> None:
            if self.on_progress:
                self.on_progress("how rows lie", step / min(settings.steps, TRIAL_STEPS))

        for alike in new.values():
            first = next(iter(alike.values()))
            tasks = [HeadTask(t.labelled, t.unlabelled, prior_K=self.prior(settings, t)) for t in alike.values()]
            found = look_at_rows(
                self.rows.token_ND, self.rows.label_N, tasks, self.sample(settings, first), settings,
                classes=self.rows.classes, device=self.device, on_step=told,
            )  # fmt: skip
            known.update(zip(alike, found, strict=True))
        return [known[key] for key in keys]

    def sample(self, settings: HeadSettings, trial: Trial) -> Sample:
        """Some of the rows that the trial may look at."""
        key = (settings.scale_floor, settings.power, rows_of(trial)[1])
        if key not in self.memory.samples:
            self.memory.samples.clear()  # of another fold: its tokens take room
            self.memory.samples[key] = draw_sample(self.rows.token_ND, trial.unlabelled, settings)
        return self.memory.samples[key]

    def prior(self, settings: HeadSettings, trial: Trial) -> NDArray[np.float64] | None:
        """Class prior of one trial, from its labelled and unlabelled rows alone; None where no D_c asks for it."""
        if not settings.lambda_c:
            return None
        key = (settings.prior, settings.prior_given, *rows_of(trial))
        if key not in self.memory.priors:
            self.memory.priors[key] = prior_of_rows(
                settings, partial(self.sample, settings, trial), self.rows.token_ND, trial.labelled,
                self.rows.label_N[trial.labelled], classes=self.rows.classes,
            )  # fmt: skip
        return self.memory.priors[key]

    def judged_tokens(self, trial: Trial) -> torch.Tensor:
        """Tokens that the trial is judged on."""
        if trial.judged is not None:
            return self.rows.token_ND[torch.from_numpy(trial.judged)]
        assert self.rows.eval_token_MD is not None
        return self.rows.eval_token_MD

    def shared_rows(self, trial: Trial) -> SharedRows:
        """What the trial's baselines look at; kept until a trial with other rows comes, for its graph is costly."""
        judged = None if trial.judged is None else trial.judged.tobytes()
        key = (trial.unlabelled.tobytes(), judged, self.settings.views)
        kept = self.memory.rows
        if key not in kept:
            kept.clear()
            every = len(trial.unlabelled) == len(self.rows.token_ND)
            at = torch.from_numpy(trial.unlabelled)
            held = (self.rows.token_ND, *self.rows.view_VND[: self.settings.views])
            stored, *views = held if every else [part_ND[at] for part_ND in held]
            on_share = partial(self.on_progress, "nearest neighbours") if self.on_progress else None
            kept[key] = SharedRows(stored, self.judged_tokens(trial), self.device, on_share, views)
        return kept[key]

    def baseline(self, method: str) -> Iterator[Answers]:
        """Answers of one baseline, trial by trial."""
        known = self.memory.answers
        for number, trial in enumerate(self.trials):
            key = (method, *rows_of(trial))
            if key not in known:
                at_L = np.searchsorted(trial.unlabelled, trial.labelled)
                label_L = self.rows.label_N[trial.labelled]
                given = Given(self.shared_rows(trial), at_L, label_L, self.rows.classes)
                known[key] = self.answers(trial, torch.from_numpy(BASELINES[method](given)))
            yield known[key]
            if self.on_progress:
                self.on_progress(method, (number + 1) / len(self.trials))

    def answers(self, trial: Trial, probability_MK: torch.Tensor) -> Answers:
        """What class probabilities of a trial's judged rows say, beside the true classes."""
        truth = self.rows.eval_label_M if trial.judged is None else self.rows.label_N[trial.judged]
        assert truth is not None
        return Answers.of(probability_MK.cpu().numpy(), truth)

    def judge(self, method: str, answers: Sequence[Answers]) -> tuple[list[dict[str, Any]], Ints]:
        """Accuracy of each split and training seed, and confusion counts over all of them."""
        pooled: dict[tuple[int, int, int], list[Answers]] = {}
        for trial, said in zip(self.trials, answers, strict=True):
            pooled.setdefault(split_of(trial), []).append(said)
        results, counts = [], np.zeros((self.rows.classes, self.rows.classes), np.int64)
        for (labels, split_seed, train_seed), parts in pooled.items():
            said = Answers.pool(parts)
            counts += confusion(said.predicted_M, said.label_M, self.rows.classes)
            results.append({
                "method": method, "labels": labels, "split_seed": split_seed, "train_seed": train_seed,
                "accuracy": accuracy(said.predicted_M, said.label_M),
            })  # fmt: skip
        return results, counts


def rows_of(trial: Trial) -> tuple[bytes, bytes | None]:
    """What tells the rows of one trial from those of another of the same study."""
    return trial.labelled.tobytes(), None if trial.judged is None else trial.judged.tobytes()


def split_of(trial: Trial) -> tuple[int, int, int]:
    """Labels, split seed and training seed: the same for the folds of one cross-validation, and for nothing else."""
    return trial.labels, trial.split_seed, trial.train_seed


def metric_records(
    method: str, fit: Fit, trials: Sequence[Trial], places: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """History as one record a head and moment; `places` of the fit's heads among the trials, all where it is None."""
    records = []
    for head, place in enumerate(range(len(trials)) if places is None else places):
        trial = trials[place]
        fold = sum(split_of(trial) == split_of(before) for before in trials[:place])
        named = {"method": method, "split_seed": trial.split_seed, "train_seed": trial.train_seed, "fold": fold}
        for moment in fit.history:
            values = {name: float(value[head]) for name, value in moment.items() if name != "step"}
            records.append(named | {"step": int(moment["step"])} | values)
    return records
