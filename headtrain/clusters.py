"""How the rows of a data set lie, by their labelled rows, before a head relies on it.

The terms that sharpen and mix the contents of unlabelled rows take for granted that rows which lie together are of
one class: the cluster assumption (Chapelle, Schoelkopf and Zien, "Semi-Supervised Learning", 2006, section 1.2). Where
it does not hold, as under stripes that outshine the digit, they teach the head what lies together instead of what was
asked: on MNIST under white stripes (lite0, 100 labels, dev rows) .17 with them, .25 without. There a second look tells
whether what rows have in common with their neighbourhood is better taken off them, see `neighbourhood`.

Legend: `L` labelled rows, `U` other rows, `D` token width.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import cohen_kappa_score
from sklearn.semi_supervised import LabelSpreading

from cspipe.headtrain.chunked import Tokens
from cspipe.headtrain.projection import fit_projection
from cspipe.headtrain.settings import HeadSettings

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

LEAST_AGREEMENT = 0.55
"""Kappa under which the terms are left out. With 50 to 1,000 labels of training rows it was .70 to .86 on MNIST and the
digits, .23 to .43 on both striped sets (lite0, ViT-S/14); nothing was seen in between."""

SAMPLE, FEWEST, NEIGHBOURS = 1000, 20, 10
"""Rows looked at of each kind, the fewest other rows that tell anything, and neighbours of a row."""

ANCHORS, SAMPLE_FOR_ANCHORS = 500, 10_000
"""Anchors that a head gets where they help, and rows that tell their statistics while that is found out."""


@dataclass(frozen=True)
class Findings:
    """How rows lie.

    Attributes:
        agreement: kappa, see `agreement`; None where there are too few other rows to tell.
        anchors: statistics of the neighbourhood tell the labelled rows better than those of all rows; only looked at
            where the agreement is low.
    """

    agreement: float | None
    anchors: bool = False

    @property
    def bears_out(self) -> bool:
        """True where nothing speaks against relying on clusters."""
        return self.agreement is None or self.agreement >= LEAST_AGREEMENT

    def borne_out(self, settings: HeadSettings) -> HeadSettings:
        """The settings, or what is left of them where clusters are not to be relied on."""
        return settings if self.bears_out else settings.without_clusters(ANCHORS if self.anchors else 0)


def look_at_rows(tokens: Tokens, labelled: Ints, label_L: Ints, unlabelled: Ints, *, floor: float) -> Findings:
    """How the rows that a head would learn from lie.

    Args:
        tokens: of all rows `(N, D)`.
        labelled: numbers of the labelled rows. label_L: their classes.
        unlabelled: numbers of all rows that may be looked at.
        floor: `scale_floor` of the head.
    """
    found = Findings(measure_agreement(tokens, labelled, label_L, unlabelled, floor=floor))
    if found.bears_out:
        return found
    return Findings(found.agreement, anchors_help(tokens, labelled, label_L, unlabelled, floor=floor))


def anchors_help(tokens: Tokens, labelled: Ints, label_L: Ints, unlabelled: Ints, *, floor: float) -> bool:
    """True where ridge regression on tokens standardised with their neighbourhood has the smaller leave-one-out error.

    The arguments are those of `look_at_rows`. Statistics are of a sample of rows.
    """
    generator = np.random.default_rng(len(labelled))
    keep = generator.permutation(len(labelled))[:SAMPLE]
    sample = np.sort(generator.permutation(unlabelled)[:SAMPLE_FOR_ANCHORS])
    known_LD, sample_ND = (tokens[torch.from_numpy(rows)].float().cpu() for rows in (labelled[keep], sample))
    plain, near = (fit_projection(sample_ND, 0, scale_floor=floor, anchors=count) for count in (0, ANCHORS))
    return left_out_error(near.rows(known_LD).numpy(), label_L[keep]) < left_out_error(
        plain.rows(known_LD).numpy(), label_L[keep]
    )


def left_out_error(token_LD: Floats, label_L: Ints) -> float:
    """Mean squared leave-one-out error of ridge regression on classes as -1 and 1, of the best strength."""
    return -float(fit_ridge(token_LD, label_L).best_score_)


def fit_ridge(token_LD: Floats, label_L: Ints) -> RidgeClassifierCV:
    """Ridge regression on classes, its strength by leave-one-out."""
    scale = float(np.square(token_LD).sum(1).mean()) or 1.0
    return RidgeClassifierCV(alphas=scale * np.logspace(-2, 2, 5)).fit(token_LD, label_L)


def agreement(token_LD: Floats, label_L: Ints, token_UD: Floats) -> float:
    """How far two guesses at the classes of unlabelled rows agree: Cohen's kappa, 1 for always, 0 for by chance.

    One guess looks at the labelled rows alone (ridge regression, its strength by leave-one-out), the other lets their
    labels spread along the graph of nearest neighbours by cosine. Where classes lie together both are mostly right, so
    they agree.

    Args:
        token_LD: scaled tokens of labelled rows of at least two classes.
        label_L: their classes.
        token_UD: scaled tokens of other rows.
    """
    ridge = fit_ridge(token_LD, label_L)
    both_ND = np.concatenate([token_LD, token_UD])
    both_ND /= np.linalg.norm(both_ND, axis=1, keepdims=True).clip(1e-12)
    hidden_U = np.full(len(token_UD), -1)
    graph = LabelSpreading(kernel="knn", n_neighbors=min(NEIGHBOURS, len(both_ND) - 1), alpha=0.9, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that no label reaches
        spread_U = graph.fit(both_ND, np.concatenate([label_L, hidden_U])).transduction_[len(label_L) :]
    return float(cohen_kappa_score(ridge.predict(token_UD), spread_U))


def measure_agreement(tokens: Tokens, labelled: Ints, label_L: Ints, unlabelled: Ints, *, floor: float) -> float | None:
    """`agreement` on a sample of the rows that a head would learn from.

    Args:
        tokens: of all rows `(N, D)`.
        labelled: numbers of the labelled rows. label_L: their classes.
        unlabelled: numbers of all rows that may be looked at.
        floor: `scale_floor` of the head.

    Returns:
        Kappa; None where there are too few other rows to tell.
    """
    generator = np.random.default_rng(len(labelled))
    keep = generator.permutation(len(labelled))[:SAMPLE]
    others = np.setdiff1d(unlabelled, labelled)
    others = np.sort(generator.permutation(others)[:SAMPLE])
    if len(others) < FEWEST or len(np.unique(label_L[keep])) < 2:
        return None
    known_LD, other_UD = (tokens[torch.from_numpy(rows)].float().cpu() for rows in (labelled[keep], others))
    projection = fit_projection(torch.cat([known_LD, other_UD]), 0, scale_floor=floor)
    return agreement(projection.rows(known_LD).numpy(), label_L[keep], projection.rows(other_UD).numpy())
