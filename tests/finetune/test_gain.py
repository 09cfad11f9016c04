"""The gain over the frozen head and its interval."""

import numpy as np
import pytest

from cspipe.finetune.gain import paired_gain

LABEL = np.zeros(100, np.int64)


def answers(wrong: range) -> np.ndarray:
    predicted = LABEL.copy()
    predicted[list(wrong)] = 1
    return predicted


def test_gain_counts_rows_that_only_one_of_the_two_gets_right():
    told = paired_gain(answers(range(0, 20)), answers(range(15, 25)), LABEL)
    assert (told["fixed"], told["broken"]) == (15, 5)
    assert told["gain"] == pytest.approx(0.10)


def test_interval_is_bonett_and_prices():
    """By hand: (16 - 6) / 102 +- 1.96 sqrt((22 / 102 - (10 / 102)^2) / 102)."""
    low, high = paired_gain(answers(range(0, 20)), answers(range(15, 25)), LABEL)["gain_ci95"]
    assert (low + high) / 2 == pytest.approx(10 / 102)
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt((22 / 102 - (10 / 102) ** 2) / 102), rel=1e-6)


def test_equal_answers_leave_a_doubt_that_shrinks_with_the_rows():
    def width(rows: int) -> float:
        same = np.zeros(rows, np.int64)
        low, high = paired_gain(same, same, same)["gain_ci95"]
        assert low == pytest.approx(-high)
        return high - low

    assert 0 < width(1000) < width(100) / 5


def test_swapping_the_two_turns_the_sign():
    first, second = answers(range(0, 20)), answers(range(15, 25))
    there, back = paired_gain(first, second, LABEL), paired_gain(second, first, LABEL)
    assert back["gain"] == -there["gain"]
    assert back["gain_ci95"] == pytest.approx([-there["gain_ci95"][1], -there["gain_ci95"][0]])


def test_the_interval_holds_the_true_gain_about_as_often_as_it_says():
    """Rows that one fixes with probability .12 and breaks with .06: 95 of 100 samples of 200 rows hold .06."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(1000):
        kind = generator.choice(3, 200, p=[0.12, 0.06, 0.82])
        label = np.zeros(200, np.int64)
        low, high = paired_gain((kind == 0).astype(np.int64), (kind == 1).astype(np.int64), label)["gain_ci95"]
        held += low <= 0.06 <= high
    assert 930 <= held <= 970
