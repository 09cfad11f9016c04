"""Calibration, recall and leak probes on numbers worked out by hand, and on heads that are made to leak."""

from dataclasses import replace

import numpy as np
import pytest

from cspipe.headtrain import HeadSettings
from cspipe.headtrain.diagnostics import (
    BINS,
    calibration_error,
    class_from_style,
    diagnose,
    last_of_critics,
    learns_style,
    recall,
    reliability,
    style_from_content,
)
from cspipe.headtrain.evaluate import Answers
from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.headtrain.study import METHODS, Study, make_trials


def answers(confidence: list[float], right: list[bool]) -> Answers:
    """Two classes; the first is always predicted, with this confidence."""
    sure = np.array(confidence)
    return Answers.of(np.stack([sure, 1 - sure], 1), np.where(right, 0, 1))


def test_calibration_error_of_two_bins_worked_out_by_hand():
    points = reliability(answers([0.9, 0.6, 0.8, 0.7], [True, False, True, True]), bins=2)
    assert points == [
        {"confidence": pytest.approx(0.65), "accuracy": 0.5, "rows": 2},
        {"confidence": pytest.approx(0.85), "accuracy": 1.0, "rows": 2},
    ]
    assert calibration_error(points) == pytest.approx(0.5 * 0.15 + 0.5 * 0.15)


def test_bins_are_weighted_by_their_rows():
    points = [{"confidence": 0.9, "accuracy": 0.5, "rows": 30}, {"confidence": 0.6, "accuracy": 0.7, "rows": 10}]
    assert calibration_error(points) == pytest.approx((30 * 0.4 + 10 * 0.1) / 40)


def test_errors_of_opposite_sign_do_not_cancel():
    points = reliability(answers([0.6] * 10 + [0.9] * 10, [True] * 10 + [True] * 5 + [False] * 5), bins=2)
    assert calibration_error(points) == pytest.approx(0.4)


def test_there_are_15_bins_of_equal_mass_from_the_least_sure_rows_on():
    points = reliability(answers(list(np.linspace(0.5, 1, 300)), [True] * 300))
    assert BINS == 15 and [point["rows"] for point in points] == [20] * 15
    confidence = [point["confidence"] for point in points]
    assert confidence == sorted(confidence)


def test_rows_of_equal_confidence_share_a_bin_whatever_their_order():
    confidence, right = np.array([1.0] * 8 + [0.75, 0.6]), np.array([True] * 6 + [False, False, True, False])
    order = np.random.default_rng(0).permutation(10)
    points = reliability(answers(list(confidence), list(right)), bins=5)
    assert points == reliability(answers(list(confidence[order]), list(right[order])), bins=5)
    assert [point["rows"] for point in points] == [2, 8]
    assert points[1] == {"confidence": 1.0, "accuracy": 0.75, "rows": 8}


def test_fewer_rows_than_bins_are_one_bin_each():
    points = reliability(answers([0.6, 0.7, 0.8], [True, False, True]))
    assert [point["rows"] for point in points] == [1, 1, 1]
    assert calibration_error(points) == pytest.approx((0.4 + 0.7 + 0.2) / 3)


def test_probabilities_that_are_true_have_a_small_calibration_error_and_sharpened_ones_a_large_one():
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1, 20_000)
    right = generator.uniform(size=20_000) < sure
    assert calibration_error(reliability(answers(list(sure), list(right)))) < 0.01
    assert calibration_error(reliability(answers(list(sure**0.3), list(right)))) > 0.1


def test_recall_is_the_share_of_each_class_that_is_found():
    assert recall(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])) == [0.75, None, 0.5]


def test_discriminator_figures_are_the_last_logged_mean_over_heads():
    records = [{"step": 10, "L_c": 1.0, "critic_style": 9.0}, {"step": 20, "L_c": 1.0, "critic_style": 0.6},
               {"step": 20, "L_c": 1.0, "critic_style": 0.8}]  # fmt: skip
    assert last_of_critics(records) == {"critic_style": pytest.approx(0.7)}
    assert last_of_critics([{"step": 1, "critic_style": float("nan")}]) == {} == last_of_critics([])


def test_a_style_that_is_the_class_is_found_out_and_noise_is_at_chance():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 5, 2000)
    open_book = class_from_style(np.eye(5)[label], label)
    assert open_book["accuracy"] == 1.0
    closed = class_from_style(generator.normal(size=(2000, 8)), label)
    assert closed["accuracy"] == pytest.approx(0.2, abs=0.05)
    assert closed["chance"] == open_book["chance"] == np.bincount(label[1000:]).max() / 1000


def test_chance_is_what_naming_the_most_frequent_class_gives():
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], [900, 100]))
    told = class_from_style(np.random.default_rng(1).normal(size=(1000, 3)), label)
    assert told["chance"] == pytest.approx(0.9, abs=0.03)
    assert told["accuracy"] == pytest.approx(told["chance"], abs=0.01)


def test_the_probe_is_scored_on_rows_that_it_was_not_fitted_on():
    """As many dimensions as rows: a probe could learn its own half by heart."""
    generator = np.random.default_rng(0)
    told = class_from_style(generator.normal(size=(200, 120)), generator.integers(0, 2, 200))
    assert told["accuracy"] < 0.7


def test_probes_survive_a_single_known_class_and_a_constant_style():
    label = np.r_[np.zeros(30, int), np.ones(30, int)]
    assert class_from_style(np.ones((60, 2)), label) == {"accuracy": 0.0, "chance": 1.0}
    assert style_from_content(np.eye(2)[label], np.ones((60, 2))) == {"r2": 0.0}


def test_style_that_content_explains_has_an_r2_of_1_and_noise_of_0():
    generator = np.random.default_rng(0)
    content = np.eye(4)[generator.integers(0, 4, 2000)]
    assert style_from_content(content, content @ generator.normal(size=(4, 6)))["r2"] == pytest.approx(1, abs=1e-4)
    assert style_from_content(content, generator.normal(size=(2000, 6)))["r2"] == pytest.approx(0, abs=0.02)


def test_half_of_the_variance_explained_is_an_r2_of_a_half():
    generator = np.random.default_rng(0)
    content = np.eye(2)[generator.integers(0, 2, 4000)]
    style = np.stack([2 * content[:, 0], generator.normal(size=4000)], 1)  # each of variance 1
    assert style_from_content(content, style)["r2"] == pytest.approx(0.5, abs=0.03)


def test_a_style_that_no_term_reaches_is_not_probed():
    assert learns_style(HeadSettings()) and not learns_style(HeadSettings(lambda_s=0, lambda_y=0, lambda_yy=0))


@pytest.fixture
def study(store, quick):
    """A study of one head a split on the test rows of the synthetic store."""

    def make(**changes) -> Study:
        rows = read_rows(store)
        trials = make_trials(rows, labelled_positions(rows, 12, 2, "balanced"))
        return Study(rows, trials, replace(quick, **changes), "cpu", None)

    return make


def test_diagnostics_of_every_method_are_there_and_follow_from_its_answers(study):
    made = study(style_term="adversarial")
    for method in METHODS:
        outcome = made.run(method)
        told = diagnose(made, outcome, 0.5)
        assert told["calibration_error"] == calibration_error(told["reliability"])
        assert sum(point["rows"] for point in told["reliability"]) == 300 == len(outcome.answers.label_M)
        likelihood = np.maximum(outcome.answers.likelihood_M, 1e-7)
        assert told["negative_log_likelihood"] == pytest.approx(-np.log(likelihood).mean())
        assert 0 <= told["entropy"] <= np.log(3) and len(told["recall"]) == 3
        probed = method in ("content-style", "content-style-paper")
        assert (told["style_probe"] is not None) == (told["content_probe"] is not None) == probed
        assert told["heads_per_second"] == (4.0 if outcome.heads else None)
        critics = {"content-style": ["style"], "content-style-paper": ["content", "style", "token"]}.get(method, [])
        assert set(told["discriminators"]) == {f"critic_{name}" for name in critics}


def test_a_head_trained_to_rebuild_tokens_alone_is_seen_to_leak_the_class_into_its_style(study):
    made = study(lambda_s=0.0, lambda_c=0.0, steps=300, style=4, hidden=32)
    told = diagnose(made, made.run("content-style"), 1.0)["style_probe"]
    assert told["chance"] == pytest.approx(1 / 3, abs=0.1) and told["accuracy"] > told["chance"] + 0.2


def test_too_few_judged_rows_are_not_probed(make_store, blobs, quick):
    rows = read_rows(make_store({"train": blobs(60, 1), "test": blobs(49, 2)}))
    made = Study(rows, make_trials(rows, labelled_positions(rows, 12, 1, "balanced")), quick, "cpu", None)
    told = diagnose(made, made.run("content-style"), 1.0)
    assert told["style_probe"] is None and told["content_probe"] is None
