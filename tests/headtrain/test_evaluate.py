"""Accuracy, confusion, intervals and paired differences on numbers worked out elsewhere."""

import numpy as np
import pytest
from scipy import stats

from cspipe.headtrain.evaluate import Answers, accuracy, confusion, interval, paired, split_means, summarise


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


SEVERAL_SEEDS = [
    *(result("ours", 0, value, seed) for seed, value in enumerate((0.9, 0.7))),
    *(result("ours", 1, value, seed) for seed, value in enumerate((0.6, 0.6))),
    *(result("theirs", split, value, 0) for split, value in ((0, 0.5), (1, 0.4))),
]


def test_training_seeds_of_a_split_are_averaged_before_anything_else():
    means = split_means(SEVERAL_SEEDS)
    assert means == {"ours": {0: pytest.approx(0.8), 1: pytest.approx(0.6)}, "theirs": {0: 0.5, 1: 0.4}}


def test_intervals_count_splits_and_not_training_seeds():
    told = summarise(SEVERAL_SEEDS)["ours"]
    assert told == {"mean": pytest.approx(0.7), "ci95": pytest.approx(interval([0.8, 0.6]))}
    assert told["ci95"] != pytest.approx(interval([0.9, 0.7, 0.6, 0.6]))


def test_a_split_is_one_pair_however_often_either_method_was_trained_on_it():
    told = paired(SEVERAL_SEEDS, "ours")["theirs"]
    assert told == {"mean_difference": pytest.approx(0.25), "ci95": pytest.approx(interval([0.3, 0.2]))}


def test_answers_keep_of_each_row_what_the_figures_need():
    said = Answers.of(np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], np.float32), np.array([1, 1]))
    assert said.predicted_M.tolist() == [0, 1]
    assert said.confidence_M.tolist() == [0.5, 1.0]
    assert said.likelihood_M.tolist() == [0.25, 1.0]
    assert said.entropy_M == pytest.approx([1.5 * np.log(2), 0])


def test_pooled_answers_are_the_rows_of_all_parts_in_turn():
    one = Answers.of(np.array([[0.9, 0.1]]), np.array([1]))
    two = Answers.of(np.array([[0.2, 0.8]]), np.array([0]))
    both = Answers.pool([one, two])
    assert both.label_M.tolist() == [1, 0] and both.predicted_M.tolist() == [0, 1]
    assert both.likelihood_M.tolist() == [0.1, 0.2] and len(both.entropy_M) == 2


def test_nothing_is_paired_where_the_method_was_not_run():
    assert paired([result("theirs", 0, 0.8)], "ours") == {}
