"""How good a prediction is, and how sure we are of it. Legend: `N` rows, `K` classes, `M` splits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def accuracy(predicted_N: NDArray[np.int64], label_N: NDArray[np.int64]) -> float:
    """Share of rows whose predicted class is the label, from 0 to 1."""
    return float(np.mean(predicted_N == label_N))


def confusion(predicted_N: NDArray[np.int64], label_N: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts `(K, K)`: row the true class, column the predicted one."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


def interval(values_M: Sequence[float]) -> list[float] | None:
    """Student t 95 % interval of the mean over splits, [low, high]; None for fewer than two values.

    It covers the draw of the labelled rows, not the sample of test rows.
    """
    if len(values_M) < 2:
        return None
    mean, error = float(np.mean(values_M)), float(np.std(values_M, ddof=1) / np.sqrt(len(values_M)))
    half = error * float(stats.t.ppf(0.975, len(values_M) - 1))
    return [mean - half, mean + half]


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean accuracy and interval of every method, in order of appearance."""
    values: dict[str, list[float]] = {}
    for row in results:
        values.setdefault(row["method"], []).append(row["accuracy"])
    return {name: {"mean": float(np.mean(v)), "ci95": interval(v)} for name, v in values.items()}


def paired(results: Sequence[dict[str, Any]], method: str) -> dict[str, dict[str, Any]]:
    """`method` minus every other method, paired by split and training seed: mean difference and interval."""
    by_split: dict[str, dict[tuple[int, int], float]] = {}
    for row in results:
        by_split.setdefault(row["method"], {})[(row["split_seed"], row["train_seed"])] = row["accuracy"]
    ours = by_split.pop(method, {})
    told: dict[str, dict[str, Any]] = {}
    for name, theirs in by_split.items():
        differences = [ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())]
        if differences:
            told[name] = {"mean_difference": float(np.mean(differences)), "ci95": interval(differences)}
    return told
