"""Logistic regression and nearest neighbours."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cspipe.headtrain.baselines import BASELINES, choose_c, knn, logistic
from cspipe.headtrain.given import Given, SharedRows


def separable(rows: int, width: int, classes: int = 3, seed: int = 0):
    """Overlapping Gaussian classes, balanced."""
    generator = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(classes, width))
    label = np.arange(rows) % classes
    return (means[label] + 2 * generator.normal(size=(rows, width))).astype(np.float32), label


def test_logistic_in_the_span_of_few_rows_is_the_logistic_on_all_dimensions():
    token, label = separable(18, 60)
    judged, _ = separable(200, 60, seed=1)
    whole = LogisticRegression(C=choose_c(token, label), max_iter=2000, tol=1e-8).fit(token, label)
    ours = logistic(token, label, judged, classes=3)
    np.testing.assert_allclose(ours, whole.predict_proba(judged), atol=1e-3)
    assert np.array_equal(ours.argmax(1), whole.predict(judged))


@pytest.mark.filterwarnings("error")
def test_logistic_says_nothing_of_two_rows_of_each_of_many_classes():
    token, label = separable(48, 20, classes=24)
    assert logistic(token, label, token, classes=24).shape == (48, 24)


def test_logistic_learns_what_can_be_learned():
    token, label = separable(90, 20)
    judged, truth = separable(600, 20, seed=1)
    found = logistic(token, label, judged, classes=3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert np.mean(found.argmax(1) == truth) > 0.75


def test_logistic_learns_from_views_of_the_labelled_rows_too():
    token, label = separable(30, 20)
    judged, _ = separable(600, 20, seed=1)
    noise = np.random.default_rng(5)
    views = [(token + noise.normal(size=token.shape)).astype(np.float32) for _ in range(3)]
    every, labels = np.concatenate([token, *views]), np.tile(label, 4)
    expected = LogisticRegression(C=choose_c(token, label) / 4, max_iter=2000, tol=1e-8).fit(every, labels)
    ours = logistic(token, label, judged, classes=3, view_VLD=views)
    np.testing.assert_allclose(ours, expected.predict_proba(judged), atol=2e-3)
    same = logistic(token, label, judged, classes=3, view_VLD=[token] * 3)  # copies of the rows change nothing
    np.testing.assert_allclose(same, logistic(token, label, judged, classes=3), atol=2e-3)


def test_a_class_without_a_labelled_row_gets_probability_0():
    token, label = separable(20, 5, classes=2)
    found = logistic(token, np.array([0, 3])[label], token, classes=5)
    assert found.shape == (20, 5)
    assert (found[:, [1, 2, 4]] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def predict(name, token, label, judged):
    """Probabilities of a baseline that is given the labelled rows alone."""
    rows = SharedRows(torch.from_numpy(token), torch.from_numpy(judged))
    return BASELINES[name](Given(rows, np.arange(len(token)), label, 3))


@pytest.mark.parametrize("name", BASELINES)
def test_one_labelled_row_of_each_class_is_enough(name):
    token = 5 * np.eye(3, 8, dtype=np.float32)
    judged = token + 0.1
    assert predict(name, token, np.arange(3), judged).argmax(1).tolist() == [0, 1, 2]
    assert choose_c(token, np.arange(3)) == 1.0


@pytest.mark.parametrize("name", BASELINES)
def test_labelled_rows_of_a_single_class_predict_that_class(name):
    token = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    found = predict(name, token, np.array([1, 1]), token)
    assert found == pytest.approx(np.array([[0, 1, 0], [0, 1, 0]]), abs=1e-6)


def test_c_is_the_strongest_penalty_where_labels_are_noise_and_weaker_where_they_are_not():
    token, label = separable(300, 5)
    noise = np.random.default_rng(0).permutation(label)
    assert choose_c(token, label) > choose_c(token, noise)


@pytest.mark.parametrize("rows", [2001, 2100])
def test_c_can_be_chosen_on_many_rows_of_which_one_class_has_a_single_one(rows):
    token, label = separable(rows, 2)
    assert choose_c(token, label) <= 10  # one row is left over, too few to hold every class
    label[:] = label % 2
    label[7] = 2
    assert choose_c(token, label) <= 10


def test_knn_votes_are_weighted_by_their_cosine():
    """Neighbours at cosine 1 (class 0), 0.6 and 0.6 (class 1): e^(0/T) against 2 e^(-0.4/T)."""
    token = np.array([[2.0, 0.0], [3.0, 4.0], [3.0, -4.0], [-1.0, 0.0]], np.float32)
    label = np.array([0, 1, 1, 2])
    found = knn(token, label, np.array([[7.0, 0.0]], np.float32), classes=3, neighbours=3, temperature=0.4)
    rest = 2 * np.exp(-1)
    assert found[0] == pytest.approx([1 / (1 + rest), rest / (1 + rest), 0])


def test_knn_looks_at_the_nearest_rows_alone():
    angle = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    token = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    found = knn(token, np.array([1, 1, 0, 0, 0]), np.array([[1.0, 0.0]], np.float32), classes=2, neighbours=2)
    assert found.tolist() == [[0, 1]]


def test_knn_where_every_row_is_labelled_is_the_same_whatever_order_the_labels_come_in():
    token, label = separable(60, 5)
    rows = SharedRows(torch.from_numpy(token), torch.from_numpy(separable(40, 5, seed=1)[0]))
    order = np.random.default_rng(0).permutation(60)
    given = Given(rows, order, label[order], 3)
    found = BASELINES["knn"](given)
    assert "nearest" in vars(rows)
    expected = knn(given.token_LD, given.label_L, rows.token_MD, classes=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_knn_with_fewer_rows_than_neighbours_takes_them_all():
    token = np.eye(2, dtype=np.float32)
    found = knn(token, np.array([0, 1]), np.array([[1.0, 1.0]], np.float32), classes=2)
    assert found[0] == pytest.approx([0.5, 0.5])


def test_knn_of_a_zero_token_is_no_nan():
    found = knn(np.eye(2, dtype=np.float32), np.array([0, 1]), np.zeros((1, 2), np.float32), classes=2)
    assert found[0] == pytest.approx([0.5, 0.5])
