"""Accuracy, confusion, intervals and paired differences on numbers worked out elsewhere."""

import numpy as np
import pytest
from scipy import stats

from cspipe.headtrain.evaluate import accuracy, confusion, interval, paired, summarise


def result(method: str, split: int, value: float, train_seed: int = 0) -> dict:
    return {"method": method, "split_seed": split, "train_seed": train_seed, "accuracy": value}


def test_accuracy_is_the_share_of_right_rows():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75


def test_confusion_counts_true_classes_in_rows_and_predicted_ones_in_columns():
    counts = confusion(np.array([0, 1, 1, 2]), np.array([0, 0, 0, 2]), 4)
    assert counts.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.71, 0.75, 0.69, 0.8, 0.77]])
def test_interval_is_scipys_student_t_interval(values):
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values) == pytest.approx(list(expected), abs=1e-12)


def test_interval_of_five_equal_values_has_no_width_and_of_one_value_does_not_exist():
    assert interval([0.5] * 5) == [0.5, 0.5]
    assert interval([0.5]) is None
    assert interval([]) is None


def test_summary_has_every_method_in_order_of_appearance():
    told = summarise([result("b", 0, 0.5), result("a", 0, 0.9), result("b", 1, 0.7)])
    assert list(told) == ["b", "a"]
    assert told["b"] == {"mean": pytest.approx(0.6), "ci95": pytest.approx(interval([0.5, 0.7]))}
    assert told["a"] == {"mean": 0.9, "ci95": None}


def test_differences_are_paired_by_split_whatever_the_order_of_results():
    ours = [result("ours", split, value) for split, value in ((2, 0.9), (0, 0.5), (1, 0.7))]
    theirs = [result("theirs", split, value) for split, value in ((0, 0.4), (1, 0.6), (2, 0.8))]
    told = paired(ours + theirs, "ours")
    assert told.keys() == {"theirs"}
    assert told["theirs"]["mean_difference"] == pytest.approx(0.1)
    assert told["theirs"]["ci95"] == pytest.approx([0.1, 0.1])


def test_a_split_that_only_one_method_has_is_no_pair():
    results = [result("ours", 0, 0.9), result("ours", 1, 0.5), result("theirs", 0, 0.8), result("third", 7, 0.1)]
    told = paired(results, "ours")
    assert told == {"theirs": {"mean_difference": pytest.approx(0.1), "ci95": None}}


def test_results_of_other_training_seeds_are_other_pairs():
    results = [result("ours", 0, 0.9, 0), result("ours", 0, 0.7, 1), result("theirs", 0, 0.6, 0),
               result("theirs", 0, 0.6, 1)]  # fmt: skip
    assert paired(results, "ours")["theirs"]["mean_difference"] == pytest.approx(0.2)


def test_nothing_is_paired_where_the_method_was_not_run():
    assert paired([result("theirs", 0, 0.8)], "ours") == {}
