"""How the rows of a data set lie, by their labelled rows, before a head relies on it.

Two things are asked, both of labelled rows that are held out of the answer:

1. Do rows that lie together share a class? The terms that sharpen and mix the contents of unlabelled rows take that for
   granted: the cluster assumption (Chapelle, Schoelkopf and Zien, "Semi-Supervised Learning", 2006, section 1.2). Where
   it does not hold, they teach the head what lies together instead of what was asked. Where rows are many the graph of
   nearest neighbours mostly tells at once that it holds; else short trainings with and without those terms tell. Where
   rows are few, those without are tried with a batch norm too.
2. Before those trainings: does what a row has in common with its neighbourhood say less of its class than the rest?
   Where something else outshines the class, as stripes outshine a digit, it is better taken off, see `neighbourhood`.
   Ridge regression tells.

Legend: `N` rows, `L` labelled rows, `U` other rows, `D` token width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.chunked import Tokens
from cspipe.headtrain.graph import nearest_of_each, normalised_affinity, spread_labels
from cspipe.headtrain.heads import fit_heads
from cspipe.headtrain.neighbourhood import anchor_rows
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.tasks import HeadTask
from cspipe.store.split import labelled_folds

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

PLAIN_AGREEMENT = 0.5
"""Kappa from which clusters are relied on without a trial. It says little below: tokens of plain and of striped digits
were blended in many proportions, and heads that relied on clusters lost 7 points at .13 and won 14 and 25 at .14 and
.17 (100 labels); lost 2 at .21 and won 6 at .31 (1,000)."""

ANCHORS = 500
"""Statistics of the neighbourhood are kept at so many rows where they are used."""

SAMPLE, STREAMED_SAMPLE, LABELLED, OTHERS, FEWEST = 20_000, 2000, 1000, 1000, 20
"""Rows that tell statistics, the same of tokens that stay in their store, labelled rows and other rows looked at, and
the fewest of either kind that tell anything."""

FOLDS, FOLDS_SEED = 5, 0
"""Of held-out labels."""

TRIAL_FOLDS, TRIAL_STEPS, TRIAL_ROWS = 3, 300, 10_000
"""Of the short trainings: folds of held-out labels, optimiser steps, unlabelled rows."""

FEW_ROWS, SURE_AGREEMENT = 5000, 0.9
"""Of so few rows heads are tried all the same, unless kappa is so high: among 1,200 solar cells it was .65, for the
graph told mono- from polycrystalline ones, and with 100 labels heads that relied on clusters were 4 points below
supervised ones. They cost little on few rows, and many make up for a graph that is coarse."""

STANDARD_ERRORS, LEAST_STANDARD_ERRORS = 2.5, 1.64
"""By how many a short training with clusters must be better than one without: the former where kappa is 0, less by
its square where it is more, the latter, the one-sided 5 % level, at least. Where the graph is plain, and rows few, more
rows right are enough: one standard error there cost .7 points on digits (ViT-S/14, 250 labels, dev rows), where votes
are two to six points below clusters."""


@dataclass(frozen=True)
class Findings:
    """How rows lie.

    Attributes:
        agreement: of held-out labels with those that spread to them, see `agreement`; None where rows are too few.
        anchors: tokens are standardised with the statistics of their neighbourhood.
        held_out: how many held-out labelled rows heads got right that rely on clusters and heads that do not: both,
            the former alone, the latter alone; None where the agreement alone was believed, or tells nothing.
        batch_norm: the heads that do not rely on clusters got more of those rows right with a batch norm.
    """

    agreement: float | None
    anchors: bool = False
    held_out: tuple[int, int, int] | None = None
    batch_norm: bool = False

    @property
    def plain(self) -> bool:
        """True where the graph alone tells that rows which lie together share a class."""
        return self.reaches(PLAIN_AGREEMENT)

    def reaches(self, kappa: float) -> bool:
        """True where the agreement is known and so high."""
        return self.agreement is not None and self.agreement >= kappa

    @property
    def bears_out(self) -> bool:
        """True where clusters are to be relied on: plainly, or as surely as held-out rows can tell.

        The burden is on them: without them a head is no worse than a supervised one, and where they help they help by
        much. McNemar's statistic, the rows gained minus those lost in standard errors, was 2.1 and less where they
        harm (86 trials under stripes, 100 to 1,000 labels, kappa of 0 to .2; 1.4 and less in 48 of them) and 3.5 and
        more where they help (plain digits, ViT-S/14, 50 labels). Among 28 kinds of letters, 100 labels, where clusters
        were worth seven to ten points it was .6 to 3.3, and kappa .27 to .37: so the burden is less by kappa. It does
        not fall to nothing: by parity of plain and striped digits at once it was .9 to 1.7 at kappa .36 to .47, and
        clusters cost one and a half points.
        """
        if self.held_out is None:
            return True
        _, gained, lost = self.held_out
        burden = 0.0
        if not self.plain:
            share = max(self.agreement or 0, 0) / PLAIN_AGREEMENT
            burden = max(LEAST_STANDARD_ERRORS, STANDARD_ERRORS * (1 - share**2))
        return gained - lost > burden * math.sqrt(gained + lost)

    def after_trial(self, with_L: Bools, without_L: Bools, batch_norm_L: Bools | None = None) -> "Findings":
        """The same with what heads got right of the held-out rows `(L,)`: those that rely on clusters, and those that
        do not, as asked and, where that was tried, with a batch norm."""
        better = False
        if batch_norm_L is not None and batch_norm_L.sum() > without_L.sum():
            without_L, better = batch_norm_L, True
        both, gained, lost = with_L & without_L, with_L & ~without_L, ~with_L & without_L
        return replace(self, held_out=(int(both.sum()), int(gained.sum()), int(lost.sum())), batch_norm=better)

    def scaled(self, settings: HeadSettings) -> HeadSettings:
        """The settings with the standardisation that was found."""
        return replace(settings, anchors=max(settings.anchors, ANCHORS)) if self.anchors else settings

    def borne_out(self, settings: HeadSettings) -> HeadSettings:
        """What the settings become."""
        if self.bears_out:
            return self.scaled(settings)
        left = self.scaled(settings).by_votes()
        return replace(left, norm="batch") if self.batch_norm else left


@dataclass(frozen=True)
class Sample:
    """Some of the rows that may be looked at, which serve all labelled sets.

    Attributes:
        row_N: their numbers.
        token_ND: their tokens, as stored.
        scale_floor: of the heads. power: likewise.
        anchors: how many statistics of the neighbourhood are kept at; 0 does not look at the neighbourhood.
    """

    row_N: Ints
    token_ND: Tensor
    scale_floor: float
    power: float
    anchors: int

    @cached_property
    def plain(self) -> Projection:
        """Tokens standardised with the statistics of all of them."""
        return fit_projection(self.token_ND, 0, scale_floor=self.scale_floor, power=self.power)

    @cached_property
    def near(self) -> Projection | None:
        """Tokens standardised with the statistics of their neighbourhood; None where it is not looked at."""
        if len(anchor_rows(len(self.token_ND), self.anchors)) == 0:
            return None
        return fit_projection(self.token_ND, 0, scale_floor=self.scale_floor, power=self.power, anchors=self.anchors)


def draw_sample(tokens: Tokens, unlabelled: Ints, settings: HeadSettings) -> Sample:
    """Some of the rows `unlabelled` of `tokens` `(N, D)`.

    Of tokens that stay in their store it is fewer, and their neighbourhood is not looked at: both take memory, which
    there is a limit of.
    """
    resident = isinstance(tokens, Tensor)
    row_N = np.random.default_rng(0).permutation(unlabelled)[: SAMPLE if resident else STREAMED_SAMPLE]
    row_N.sort()
    token_ND = tokens[torch.from_numpy(row_N)]
    return Sample(row_N, token_ND, settings.scale_floor, settings.power, ANCHORS if resident else 0)


@dataclass(frozen=True)
class Known:
    """What one task's labelled rows can be asked about.

    Attributes:
        labelled: numbers of at most `LABELLED` labelled rows, in order. label_L: their classes.
        others: numbers of rows of the sample that are not labelled, in a drawn order.
        prior_K: class prior of the task.
    """

    labelled: Ints
    label_L: Ints
    others: Ints
    prior_K: NDArray[np.float64] | None

    @classmethod
    def of(cls, task: HeadTask, label_N: Ints, sample: Sample) -> "Known":
        """The task's rows, drawn with a fixed seed."""
        generator = np.random.default_rng(len(task.labelled))
        labelled = task.labelled[np.sort(generator.permutation(len(task.labelled))[:LABELLED])]
        others = np.setdiff1d(sample.row_N, task.labelled)
        generator.shuffle(others)
        return cls(labelled, label_N[labelled], others, task.prior_K)

    @cached_property
    def pool(self) -> Ints:
        """Numbers of the rows that heads which are tried may look at, in order."""
        return np.union1d(self.labelled, self.others[:TRIAL_ROWS])

    @property
    def enough(self) -> bool:
        """True where they tell anything."""
        _, count_K = np.unique(self.label_L, return_counts=True)
        return len(self.others) >= FEWEST and count_K[count_K > 1].sum() >= FEWEST and len(count_K) >= 2


def look_at_rows(
    tokens: Tokens,
    label_N: Ints,
    tasks: Sequence[HeadTask],
    sample: Sample,
    settings: HeadSettings,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> list[Findings]:
    """How the rows that heads would learn from lie, by the labelled rows of each task.

    Args:
        tokens: of all rows `(N, D)`.
        label_N: classes; only the entries that a task names as labelled are looked at.
        tasks: labelled rows and class prior of each head; heads that are tried on the same rows are trained at once.
        sample: of the rows that all of them may look at.
        settings: of the heads.
        classes: K. device: where heads are tried.
        on_step: called with the steps done of at most `TRIAL_STEPS`, where heads are tried.
    """
    known = [Known.of(task, label_N, sample) for task in tasks]
    found = [by_graph(tokens, sample, each) if each.enough else Findings(None) for each in known]
    few = len(tokens) <= FEW_ROWS
    asked = [
        place for place, each in enumerate(found)
        if each.agreement is not None and not each.reaches(SURE_AGREEMENT if few else PLAIN_AGREEMENT)
    ]  # fmt: skip
    alike: dict[tuple[bool, bytes], list[int]] = {}
    for place in asked:
        alike.setdefault((found[place].anchors, known[place].pool.tobytes()), []).append(place)
    for places in alike.values():
        with_them = replace(found[places[0]].scaled(settings), steps=min(settings.steps, TRIAL_STEPS), compile=False)
        tried = [with_them, without := with_them.without_clusters()]
        if few and settings.norm == "layer":
            tried.append(replace(without, norm="batch"))
        right = [
            held_out_right(tokens, label_N, [known[place] for place in places], each, classes=classes, device=device,
                           on_step=on_step)
            for each in tried
        ]  # fmt: skip
        for place, (with_L, *without_CL) in zip(places, zip(*right, strict=True), strict=True):
            found[place] = found[place].after_trial(with_L, *without_CL)
    return found


def by_graph(tokens: Tokens, sample: Sample, known: Known) -> Findings:
    """What the graph of nearest neighbours and ridge regression tell."""
    others = np.sort(known.others[:OTHERS])
    known_LD, other_UD = tokens[torch.from_numpy(known.labelled)], tokens[torch.from_numpy(others)]
    plain_LD = sample.plain.rows(known_LD).numpy()
    found = Findings(agreement(plain_LD, known.label_L, sample.plain.rows(other_UD).numpy()))
    if not found.plain and sample.near is not None:
        near_LD = sample.near.rows(known_LD).numpy()
        if left_out_error(near_LD, known.label_L) < left_out_error(plain_LD, known.label_L):
            found = Findings(agreement(near_LD, known.label_L, sample.near.rows(other_UD).numpy()), anchors=True)
    return found


def held_out_right(
    tokens: Tokens,
    label_N: Ints,
    known: Sequence[Known],
    settings: HeadSettings,
    *,
    classes: int,
    device: torch.device | str,
    on_step: Callable[[int], None] | None,
) -> list[Bools]:
    """Which of the labelled rows `(L,)` of each set heads get right whose labels were held out; one pool serves all."""
    row_T = known[0].pool
    folds = [labelled_folds(each.label_L, TRIAL_FOLDS, FOLDS_SEED) for each in known]
    tasks = [
        HeadTask(np.searchsorted(row_T, np.delete(each.labelled, held)), np.arange(len(row_T)), prior_K=each.prior_K)
        for each, own in zip(known, folds, strict=True) for held in own
    ]  # fmt: skip
    token_TD, label_T = tokens[torch.from_numpy(row_T)], torch.from_numpy(label_N[row_T])
    heads = iter(fit_heads(token_TD, label_T, tasks, settings, classes=classes, device=device, on_step=on_step).heads)
    right: list[Bools] = []
    for each, own in zip(known, folds, strict=True):
        right_L = np.empty(len(each.labelled), bool)
        for held in own:
            right_L[held] = next(heads).predict(tokens[torch.from_numpy(each.labelled[held])]) == each.label_L[held]
        right.append(right_L)
    return right


def left_out_error(token_LD: Floats, label_L: Ints) -> float:
    """Mean squared leave-one-out error of ridge regression on classes as -1 and 1, of the best of 11 strengths."""
    scale = float(np.square(token_LD).sum(1).mean()) or 1.0
    return -float(RidgeClassifierCV(alphas=scale * np.logspace(-3, 2, 11)).fit(token_LD, label_L).best_score_)


def agreement(token_LD: Floats, label_L: Ints, token_UD: Floats) -> float:
    """How far labels that spread along the graph of nearest neighbours reach held-out rows of the same class.

    Cohen's kappa, 1 for always, 0 for by chance, over five folds of labelled rows: those of one fold are hidden at a
    time. A row whose class has no other labelled row is not counted.

    Args:
        token_LD: standardised tokens of labelled rows of at least two classes.
        label_L: their classes.
        token_UD: standardised tokens of other rows.
    """
    names, class_L = np.unique(label_L, return_inverse=True)
    affinity = normalised_affinity(nearest_of_each(F.normalize(torch.from_numpy(np.concatenate([token_LD, token_UD])))))
    reached_L = np.empty_like(class_L)
    for held in labelled_folds(class_L, FOLDS, FOLDS_SEED):
        shown_S = np.setdiff1d(np.arange(len(class_L)), held)
        spread_NK = spread_labels(affinity, shown_S, class_L[shown_S], classes=len(names), alpha=0.9, tolerance=1e-3)
        reached_L[held] = spread_NK[held].argmax(1)
    counted_L = np.bincount(class_L)[class_L] > 1
    return float(cohen_kappa_score(class_L[counted_L], reached_L[counted_L], labels=np.arange(len(names))))
