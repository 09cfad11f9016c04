"""One temperature for a head's probabilities, fitted on labelled rows that a second head never saw.

Legend: `N` rows, `L` labelled rows, `M` held-out labelled rows, `K` classes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cspipe.headtrain.heads import HeadTask
from cspipe.store.split import labelled_folds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HELD_OUT_SHARE = 4
HELD_OUT_LEAST = 10


def held_out(label_L: Ints, seed: int) -> Ints:
    """Positions `(M,)` of a stratified quarter of the labelled rows; none where that is fewer than ten.

    A class's only row stays: a head that never saw the class cannot judge it.
    """
    spare = np.flatnonzero(np.bincount(label_L)[label_L] >= 2)
    if len(spare) < HELD_OUT_LEAST * HELD_OUT_SHARE:
        return np.empty(0, np.int64)
    return np.take(spare, labelled_folds(label_L[spare], HELD_OUT_SHARE, seed)[0])


def without(task: HeadTask, rows: Ints) -> HeadTask:
    """The same task for a head that sees nothing of these rows, their tokens neither."""
    return HeadTask(np.setdiff1d(task.labelled, rows), np.setdiff1d(task.unlabelled, rows), task.seed, task.prior_K)


def best_temperature(logits_MK: Floats, label_M: Ints) -> float:
    """The temperature, 1 or more, that makes the labels likeliest, with log T ~ N(0, 1/4) beforehand.

    Temperature scaling is Guo et al.'s (arXiv 1706.04599); prior and bound are ours: rows all right would ask for 0.
    """

    def cost(log_t: float) -> float:  # negative log posterior in nats
        told_MK = log_softmax(logits_MK / np.exp(log_t), axis=1)
        return float(2 * log_t**2 - told_MK[np.arange(len(label_M)), label_M].sum())

    return float(np.exp(minimize_scalar(cost, bounds=(0, 4), method="bounded").x))
