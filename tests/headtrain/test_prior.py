"""Class priors: what each kind gives on known numbers."""

import numpy as np
import pytest
from scipy.stats import norm

from cspipe.headtrain.prior import (
    LABELLED,
    LOOKED_AT,
    class_prior,
    drawn_back,
    estimated_prior,
    labelled_prior,
    some_labelled,
    some_rows,
)
from cspipe.store.errors import SettingError

NOTHING = np.empty((0, 1), np.float32)


def of_kind(kind: str, *, given: tuple[float, ...] = (), label=(0, 1), classes: int = 2, **tokens) -> np.ndarray:
    tokens = {"token_ND": NOTHING, "token_LD": NOTHING, **tokens}
    return class_prior(
        kind, given=given, label_L=np.array(label), classes=classes, token_ND=lambda: tokens["token_ND"],
        token_LD=lambda at: tokens["token_LD"][at],
    )  # fmt: skip


def test_labelled_frequencies_have_one_count_added_to_each_class():
    assert labelled_prior(np.array([0, 0, 0, 1]), 4).tolist() == [4 / 8, 2 / 8, 1 / 8, 1 / 8]
    assert of_kind("labelled", label=[1, 1], classes=2).tolist() == [0.25, 0.75]


def test_uniform_prior_is_uniform_whatever_the_labels():
    assert of_kind("uniform", label=[0, 0, 0, 1], classes=4).tolist() == [0.25] * 4


def test_given_prior_is_normalised():
    assert of_kind("given", given=(1.0, 3.0)).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("given", [(1.0,), (0.2, 0.3, 0.5), (0.0, 0.0), ()])
def test_a_given_prior_of_another_length_or_without_mass_is_refused(given):
    with pytest.raises(SettingError, match=rf"holds {len(given)} numbers .* store has 2 classes: give one probability"):
        of_kind("given", given=given)


def calibrated(share: float, rows: int = 20_000) -> np.ndarray:
    """Posterior under equal priors of N(-1, 1) against N(1, 1), on rows of which `share` come from the first."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=rows) + np.where(np.arange(rows) < share * rows, -1, 1)
    likelihood = np.stack([norm.pdf(x, -1), norm.pdf(x, 1)], 1)
    return likelihood / likelihood.sum(1, keepdims=True)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_em_recovers_a_shifted_prior_from_calibrated_probabilities(share):
    probability, even = calibrated(share), np.array([0.5, 0.5])
    assert estimated_prior(probability, even) == pytest.approx([share, 1 - share], abs=0.01)
    if share != 0.5:  # counting predictions, the naive estimate, is far off
        assert abs(probability.mean(0)[0] - share) > 0.05


def test_em_counts_the_rows_where_the_classifier_is_certain():
    certain = np.eye(3)[[0, 0, 0, 0, 1, 1, 1, 2]]
    assert estimated_prior(certain, np.array([0.2, 0.3, 0.5])) == pytest.approx([4 / 8, 3 / 8, 1 / 8])


def test_em_stays_at_the_training_prior_where_the_classifier_knows_nothing():
    prior = np.array([0.2, 0.3, 0.5])
    assert estimated_prior(np.tile(prior, (7, 1)), prior) == pytest.approx(prior)


def test_estimated_prior_follows_the_unlabelled_rows_where_labels_are_balanced():
    generator = np.random.default_rng(0)
    label = np.repeat([0, 1], [900, 100])
    token = (generator.normal(size=(1000, 4)) + 4 * label[:, None]).astype(np.float32)
    chosen = np.r_[0:20, 980:1000]
    found = of_kind("estimated", token_ND=token, token_LD=token[chosen], label=label[chosen])
    assert found == pytest.approx([0.9, 0.1], abs=0.01)


def test_shares_that_chance_explains_stay_those_of_the_labelled_rows():
    found, even = np.array([0.27, 0.25, 0.25, 0.23]), np.full(4, 0.25)  # squared distance .0008
    assert drawn_back(found, even, error=0.1, labels=200).tolist() == even.tolist()
    assert drawn_back(even, even, error=0.0, labels=1).tolist() == even.tolist()


def test_shares_move_by_what_chance_does_not_explain():
    found, even = np.array([0.4, 0.3, 0.2, 0.1]), np.full(4, 0.25)  # squared distance .05
    kept = 1 - 2 * 0.1 / 8 / 0.9**2 / 0.05  # no error told of eight labels counts as one of ten
    assert drawn_back(found, even, error=0.0, labels=8) == pytest.approx(even + kept * (found - even))
    surer, fewer = (drawn_back(found, even, error=e, labels=n) for e, n in ((0.01, 62), (0.2, 31)))
    assert surer[0] > 0.37 > fewer[0]


def test_balanced_rows_keep_the_shares_of_balanced_labels_exactly():
    generator = np.random.default_rng(0)
    label = np.tile([0, 1, 2], 400)
    token = (generator.normal(size=(1200, 6)) + 1.5 * np.eye(6)[label]).astype(np.float32)
    found = of_kind("estimated", token_ND=token, token_LD=token[:60], label=label[:60], classes=3)
    assert found.tolist() == pytest.approx([1 / 3] * 3, abs=1e-12)


def test_labels_drawn_from_uneven_rows_are_where_the_shares_start():
    generator = np.random.default_rng(1)
    label = np.r_[np.zeros(900, np.int64), np.ones(100, np.int64)]
    generator.shuffle(label)
    token = (generator.normal(size=(1000, 4)) + 2 * label[:, None]).astype(np.float32)
    found = of_kind("estimated", token_ND=token, token_LD=token[:200], label=label[:200])
    assert found == pytest.approx(labelled_prior(label[:200], 2), abs=0.03)


def test_many_labelled_rows_are_cut_to_as_many_of_each_class_as_there_are():
    label = np.r_[np.zeros(900, np.int64), np.ones(100, np.int64), np.full(10, 2)]
    at = some_labelled(label)
    assert len(at) == LABELLED == len(set(at.tolist())) and (np.diff(at) > 0).all()
    assert np.bincount(label[at]).tolist() == [140, 100, 10]
    assert some_labelled(label[:40]).tolist() == list(range(40))
    many = np.repeat(np.arange(100), 20)
    assert np.bincount(many[some_labelled(many)]).tolist() == [5] * 100


def test_many_rows_are_looked_at_in_part():
    assert some_rows(7).tolist() == list(range(7))
    at = some_rows(3 * LOOKED_AT)
    assert len(set(at.tolist())) == LOOKED_AT and at.max() > 2 * LOOKED_AT


def test_no_class_is_estimated_away_where_labels_are_few():
    generator = np.random.default_rng(0)
    token = generator.normal(size=(300, 2)).astype(np.float32)
    label = np.repeat([0, 1], 3)
    found = of_kind("estimated", token_ND=token + 9, token_LD=token[:6] + 9 * label[:, None], label=label)
    assert found.min() > 0.01 and found.sum() == pytest.approx(1)
