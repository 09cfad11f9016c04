"""Was it worth it? Accuracy of the tuned model minus that of the frozen head, on the same rows. Legend: `M` rows."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Z = 1.959963984540054
"""Of a two-sided 95 % interval of the normal distribution."""


def paired_gain(before_M: Ints, after_M: Ints, label_M: Ints) -> dict[str, Any]:
    """The gain and its interval, paired by row.

    Only rows that one of the two gets right and the other wrong say anything (McNemar 1947). The interval is Bonett and
    Price's of 2012, adjusted Wald: one row is added to either kind, and it holds for few rows too. It covers the sample
    of judged rows, not the draw of the labelled ones.

    Returns:
        `gain`, tuned minus frozen, a fraction of the rows; `gain_ci95`, [low, high]; `fixed` and `broken`: rows that
        only the tuned model gets right, and only the frozen head.
    """
    right_before, right_after = before_M == label_M, after_M == label_M
    fixed, broken = int((right_after & ~right_before).sum()), int((right_before & ~right_after).sum())
    rows = len(label_M)
    up, down = (fixed + 1) / (rows + 2), (broken + 1) / (rows + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (rows + 2))
    return {
        "gain": (fixed - broken) / rows, "gain_ci95": [up - down - half, up - down + half], "fixed": fixed,
        "broken": broken,
    }  # fmt: skip
