"""How good a prediction is, and how sure we are of it. Legend: `M` judged rows, `K` classes, `R` split seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import xlogy

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a method said of judged rows, reduced to a few numbers a row.

    Attributes:
        label_M: true classes. predicted_M: the likeliest class of each row.
        confidence_M: probability of the predicted class. likelihood_M: of the true one.
        entropy_M: of the class probabilities, nats.
    """

    label_M: Ints
    predicted_M: Ints
    confidence_M: Floats
    likelihood_M: Floats
    entropy_M: Floats

    @classmethod
    def of(cls, probability_MK: NDArray[np.floating[Any]], label_M: Ints) -> Self:
        """Answers from class probabilities `(M, K)`."""
        doubles_MK, every = probability_MK.astype(np.float64), np.arange(len(label_M))
        predicted_M = probability_MK.argmax(1)
        return cls(
            label_M, predicted_M, doubles_MK[every, predicted_M], doubles_MK[every, label_M],
            -xlogy(doubles_MK, doubles_MK).sum(1),
        )  # fmt: skip

    @classmethod
    def pool(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after the other."""
        names = ("label_M", "predicted_M", "confidence_M", "likelihood_M", "entropy_M")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def accuracy(predicted_M: Ints, label_M: Ints) -> float:
    """Share of rows whose predicted class is the label, from 0 to 1."""
    return float(np.mean(predicted_M == label_M))


def confusion(predicted_M: Ints, label_M: Ints, classes: int) -> Ints:
    """Counts `(K, K)`: row the true class, column the predicted one."""
    return np.bincount(label_M * classes + predicted_M, minlength=classes**2).reshape(classes, classes)


def interval(values_R: Sequence[float]) -> list[float] | None:
    """Student t 95 % interval of the mean over split seeds, [low, high]; None for fewer than two values.

    It covers the draw of the labelled rows, not the sample of test rows.
    """
    if len(values_R) < 2:
        return None
    mean, error = float(np.mean(values_R)), float(np.std(values_R, ddof=1) / np.sqrt(len(values_R)))
    half = error * float(stats.t.ppf(0.975, len(values_R) - 1))
    return [mean - half, mean + half]


def split_means(results: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Method -> split seed -> accuracy, the mean over training seeds.

    Training seeds of one split share their labelled rows, so they are no independent draws: a split counts once,
    however many seeds it was trained with.
    """
    seen: dict[str, dict[int, list[float]]] = {}
    for row in results:
        seen.setdefault(row["method"], {}).setdefault(row["split_seed"], []).append(row["accuracy"])
    return {name: {seed: float(np.mean(v)) for seed, v in splits.items()} for name, splits in seen.items()}


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean accuracy and interval over split seeds of every method, in order of appearance; see `split_means`."""
    return {
        name: {"mean": float(np.mean(list(splits.values()))), "ci95": interval(list(splits.values()))}
        for name, splits in split_means(results).items()
    }


def paired(results: Sequence[dict[str, Any]], method: str) -> dict[str, dict[str, Any]]:
    """`method` minus every other method, paired by split seed: mean difference and interval; see `split_means`."""
    means = split_means(results)
    ours = means.pop(method, {})
    told = {name: difference(ours, theirs) for name, theirs in means.items()}
    return {name: value for name, value in told.items() if value is not None}


def difference(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any] | None:
    """Mean of ours minus theirs over the split seeds that both have, with its interval; None where there is none."""
    values = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return {"mean_difference": float(np.mean(values)), "ci95": interval(values)} if values else None
