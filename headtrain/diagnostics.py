"""What a report says of a method beyond its accuracy: calibration, recall, leaks between content and style, speed.

Legend: `M` judged rows, `K` classes, `S` style. Everything here looks at judged rows and their labels, after training:
nothing is chosen by it.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.headtrain.evaluate import Answers
from cspipe.headtrain.heads import Head
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.study import Outcome, Study

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15
SMALLEST_LIKELIHOOD = 1e-7
"""A true class's probability counts as at least this: baselines give exact zeros, whose logarithm no mean survives."""

PROBED_ROWS = 2000
FEWEST_PROBED_ROWS = 50
PROBED_HEADS = 3


def diagnose(study: Study, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Diagnostics of one method as plain JSON; null where a figure does not exist.

    Args:
        study: what was run.
        outcome: what the method gave.
        seconds: that training and judging took.

    Returns:
        `calibration_error` and `reliability` (see `reliability`), `negative_log_likelihood` and `entropy` (nats, means
        over the judged rows of all splits), `recall` (by class), `style_probe`, `content_probe`, `discriminators`
        (mean of the last logged `critic_*` figures), `seconds`, `heads_per_second`.
    """
    answers, heads = outcome.answers, outcome.heads
    bins = reliability(answers)
    probed = leak_probes(study, heads) if heads and learns_style(heads[0].settings) else {}
    return {
        "calibration_error": calibration_error(bins), "reliability": bins,
        "negative_log_likelihood": float(-np.log(answers.likelihood_M.clip(SMALLEST_LIKELIHOOD)).mean()),
        "entropy": float(answers.entropy_M.mean()), "recall": recall(outcome.confusion),
        "style_probe": probed.get("style_probe"), "content_probe": probed.get("content_probe"),
        "discriminators": last_of_critics(outcome.metrics), "seconds": round(seconds, 3),
        "heads_per_second": round(len(heads) / seconds, 3) if heads and seconds > 0 else None,
    }  # fmt: skip


def learns_style(settings: HeadSettings) -> bool:
    """True where a term reaches the style; else it stays as it was drawn."""
    return max(settings.lambda_s, settings.lambda_y, settings.lambda_yy) > 0


def reliability(answers: Answers, bins: int = BINS) -> list[dict[str, float]]:
    """Points of the reliability curve: mean confidence, accuracy and rows of bins of equal mass, least sure first.

    Rows are sorted by the probability of the predicted class and cut into `bins` parts of equal size; rows of equal
    confidence stay together, so there can be fewer bins, and their order does not matter.
    """
    order = np.argsort(answers.confidence_M, kind="stable")
    confidence_M = answers.confidence_M[order]
    right_M = (answers.predicted_M == answers.label_M)[order]
    rows = len(order)
    cuts = [rows * number // bins for number in range(1, bins)]
    ends = np.searchsorted(confidence_M, confidence_M[[cut - 1 for cut in cuts if cut]], side="right")
    edges = np.unique([0, *ends, rows])
    return [
        {"confidence": float(confidence_M[a:b].mean()), "accuracy": float(right_M[a:b].mean()), "rows": int(b - a)}
        for a, b in pairwise(edges)
    ]


def calibration_error(points: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of their bin; 0 is perfect.

    Guo et al. 2017 (arXiv 1706.04599, equation 3), with bins of equal mass as in Nixon et al. 2019 (arXiv 1904.01685).
    """
    rows = sum(point["rows"] for point in points)
    return sum(point["rows"] * abs(point["accuracy"] - point["confidence"]) for point in points) / rows


def recall(counts_KK: Ints) -> list[float | None]:
    """Share of each class's rows that are found, from confusion counts; None for a class without judged rows.

    The counts are sums over splits, which judge the same rows: this is the mean over splits.
    """
    rows_K, right_K = counts_KK.sum(1), counts_KK.diagonal()
    return [float(right / rows) if rows else None for right, rows in zip(right_K, rows_K, strict=True)]


def last_of_critics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last logged figures of the discriminators, mean over heads."""
    step = max((record["step"] for record in metrics), default=0)
    last = [record for record in metrics if record["step"] == step]
    names = dict.fromkeys(name for record in last for name in record if name.startswith("critic_"))
    means = {name: float(np.mean([record[name] for record in last if name in record])) for name in names}
    return {name: value for name, value in means.items() if np.isfinite(value)}


def leak_probes(study: Study, heads: Sequence[Head]) -> dict[str, dict[str, float] | None]:
    """Mean of both probes over the first heads, at most `PROBED_HEADS`; None where too few rows are judged.

    Heads that learned from labelled rows alone have no style to look at.

    A probe is fitted on one random half of a head's judged rows, at most 2,000 of them, labels included, and scored on
    the other, at most as many. It is a diagnosis of the finished head, and no head learns from it.
    """
    told: dict[str, list[dict[str, float]]] = {"style_probe": [], "content_probe": []}
    for head, trial in list(zip(heads, study.trials, strict=True))[:PROBED_HEADS]:
        token_MD = study.judged_tokens(trial)
        label_M = study.rows.eval_label_M if trial.judged is None else study.rows.label_N[trial.judged]
        assert label_M is not None
        chosen = np.random.default_rng(0).permutation(len(label_M))[: 2 * PROBED_ROWS]
        if len(chosen) < FEWEST_PROBED_ROWS or not learns_style(head.settings):
            continue
        logits_MK, style_MS = head.encode(token_MD[torch.from_numpy(chosen)])
        style, content = style_MS.double().cpu().numpy(), logits_MK.double().softmax(-1).cpu().numpy()
        told["style_probe"].append(class_from_style(style, label_M[chosen]))
        told["content_probe"].append(style_from_content(content, style))
    return {name: mean_of(values) if values else None for name, values in told.items()}


def mean_of(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Records of the same keys, averaged."""
    return {key: float(np.mean([record[key] for record in records])) for key in records[0]}


def class_from_style(style_MS: Floats, label_M: Ints) -> dict[str, float]:
    """How well the style gives the class away.

    Args:
        style_MS: style vectors in random order. label_M: their classes.

    Returns:
        `accuracy` on the second half of the rows of a logistic regression (C = 1, standardised style) fitted on the
        first; `chance`, the share of the second half's most frequent class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    half = len(label_M) // 2
    known_L, asked_M = label_M[:half], label_M[half:]
    chance = float(np.bincount(asked_M).max() / len(asked_M))
    mean_S, scale_S = style_MS[:half].mean(0), style_MS[:half].std(0)
    style_MS = (style_MS - mean_S) / np.where(scale_S > 0, scale_S, 1)
    if len(np.unique(known_L)) == 1:
        return {"accuracy": float((asked_M == known_L[0]).mean()), "chance": chance}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=100, tol=1e-3).fit(style_MS[:half], known_L)
    return {"accuracy": float(probe.score(style_MS[half:], asked_M)), "chance": chance}


def style_from_content(content_MK: Floats, style_MS: Floats) -> dict[str, float]:
    """How much of the style the class probabilities explain.

    Args:
        content_MK: class probabilities of rows in random order. style_MS: their style vectors.

    Returns:
        `r2` on the second half of the rows of a ridge regression (penalty 1) fitted on the first: 1 minus the squared
        error over the variance, all dimensions together; 0 or less where content says nothing, or style is constant.
    """
    from sklearn.linear_model import Ridge

    half = len(style_MS) // 2
    probe = Ridge(alpha=1.0).fit(content_MK[:half], style_MS[:half])
    asked_MS = style_MS[half:]
    error = float(((asked_MS - probe.predict(content_MK[half:]).reshape(asked_MS.shape)) ** 2).sum())
    variance = float(((asked_MS - asked_MS.mean(0)) ** 2).sum())
    return {"r2": 1 - error / variance if variance > 0 else 0.0}
