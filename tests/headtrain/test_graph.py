"""The nearest-neighbour graph, and labels that spread along it."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import make_moons

from cspipe.headtrain import given
from cspipe.headtrain.baselines import knn, label_propagation
from cspipe.headtrain.given import Given, SharedRows
from cspipe.headtrain.graph import (
    Neighbours,
    edge_weight,
    equal_class_masses,
    nearest_in_table,
    nearest_of_each,
    normalised_affinity,
    spread_labels,
)
from cspipe.headtrain.run import run_head


def unit_rows(count, width=5, seed=0):
    token = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(token, dim=1)


def moons(count, seed):
    """Two moons as 400 random Fourier features, whose cosine falls with the distance, and their moon."""
    point, moon = make_moons(count, noise=0.04, random_state=seed)
    draw = np.random.default_rng(0)
    angle = point @ draw.normal(size=(2, 400)) * 4 + draw.uniform(0, 2 * np.pi, 400)
    return np.cos(angle).astype(np.float32), moon, point


def what_is_given(token, at, label, judged, *, classes=2):
    rows = SharedRows(torch.from_numpy(token), torch.from_numpy(judged))
    return Given(rows, np.array(at), np.array(label), classes)


@pytest.mark.parametrize("at_once", [1, 7, 40, 4096])
def test_neighbours_are_those_of_a_full_sort_whatever_the_size_of_a_block(monkeypatch, at_once):
    monkeypatch.setattr("cspipe.headtrain.graph.ROWS_AT_ONCE", at_once)
    table, query = unit_rows(40), 3 * unit_rows(11, seed=1)
    own, other = nearest_of_each(table, neighbours=6), nearest_in_table(query, table, neighbours=6)
    cosine = (table @ table.T).fill_diagonal_(-2)
    assert own.row.tolist() == cosine.argsort(1, descending=True)[:, :6].tolist()
    np.testing.assert_allclose(own.cosine, cosine.sort(1, descending=True)[0][:, :6], atol=1e-6)
    assert other.row.tolist() == (query @ table.T).argsort(1, descending=True)[:, :6].tolist()


def test_a_table_smaller_than_the_neighbours_asked_for_leaves_edges_without_weight():
    own = nearest_of_each(torch.eye(2) + 0.5, neighbours=4)
    assert own.row[:, 0].tolist() == [1, 0]
    weight = edge_weight(own.cosine)
    assert (weight[:, 0] > 0).all()
    assert (weight[:, 1:] == 0).all()
    assert normalised_affinity(own).toarray() == pytest.approx(np.array([[0, 1], [1, 0]]))


def test_progress_of_the_graph_rises_to_1(monkeypatch):
    monkeypatch.setattr("cspipe.headtrain.graph.ROWS_AT_ONCE", 7)
    shares = []
    nearest_of_each(unit_rows(40), on_share=shares.append)
    assert len(shares) == 6
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_an_edge_weighs_the_cube_of_its_cosine_and_nothing_where_that_is_negative():
    assert edge_weight(np.array([1, 0.5, -0.5, -np.inf], np.float32)).tolist() == [1, 0.125, 0, 0]


def test_the_affinity_is_symmetric_and_normalised_by_the_degrees_of_both_ends():
    """0 and 1 are neighbours of each other (weight 1 each way), 2 of 0 alone with cosine 0.5: 0.125; 3 has no edge."""
    found = Neighbours(np.array([[1], [0], [0], [0]]), np.array([[1.0], [1.0], [0.5], [-1.0]], np.float32))
    dense = normalised_affinity(found).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / np.sqrt(2.125 * 2)
    expected[0, 2] = expected[2, 0] = 0.125 / np.sqrt(2.125 * 0.125)
    assert dense == pytest.approx(expected)


def test_labels_spread_as_dense_linear_algebra_says():
    affinity = normalised_affinity(nearest_of_each(unit_rows(60, 3), neighbours=4)).astype(np.float64)
    at, label = np.array([3, 20, 41, 59]), np.array([0, 2, 1, 0])
    spread = spread_labels(affinity, at, label, classes=4, tolerance=1e-10)
    one_hot = np.zeros((60, 4))
    one_hot[at, label] = 1
    np.testing.assert_allclose(spread, np.linalg.solve(np.eye(60) - 0.99 * affinity.toarray(), one_hot), atol=1e-6)
    assert (spread[:, 3] == 0).all()


def test_a_class_with_a_single_label_is_as_exact_as_one_with_many_in_whatever_block_of_classes_it_lies():
    affinity = normalised_affinity(nearest_of_each(unit_rows(1200, 3), neighbours=4))
    label = np.repeat(np.arange(70), np.where(np.arange(70) == 5, 1000, 1))
    spread = spread_labels(affinity, np.arange(len(label)), label, classes=70, tolerance=1e-3)
    one_hot = np.zeros((1200, 70))
    one_hot[np.arange(len(label)), label] = 1
    left_K = np.linalg.norm(spread - 0.99 * affinity @ spread - one_hot, axis=0)
    assert (left_K <= 1e-3 * np.linalg.norm(one_hot, axis=0)).all()


def test_the_spread_along_a_path_of_three_is_the_known_one():
    """S = [[0, s, 0], [s, 0, s], [0, s, 0]], s^2 = 1/2, alpha = 1/2: (I - S/2) f = e_0 has f = (7, 2 sqrt 2, 1) / 6."""
    path = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) * 0.5**0.5)
    spread = spread_labels(path, np.array([0]), np.array([0]), classes=1, alpha=0.5)
    assert spread[:, 0] == pytest.approx(np.array([7, 2 * 2**0.5, 1]) / 6)


def test_classes_are_scaled_to_the_same_mass_and_rows_to_1():
    spread = np.array([[3.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    equal = equal_class_masses(spread)
    assert equal == pytest.approx(np.array([[1 / 3, 2 / 3, 0], [1, 0, 0], [0, 0, 0]]))


def test_two_moons_are_told_apart_by_one_label_each_where_neighbours_of_the_labels_cannot():
    token, moon, point = moons(600, 0)
    judged, truth, _ = moons(300, 1)
    at = [int(np.flatnonzero(moon == side)[point[moon == side, 0].argmin()]) for side in (0, 1)]
    trial = what_is_given(token, at, [0, 1], judged)
    assert (label_propagation(trial).argmax(1) == truth).all()
    assert np.mean(knn(trial.token_LD, trial.label_L, trial.rows.token_MD, classes=2).argmax(1) == truth) < 0.9


def test_a_judged_row_gets_the_same_class_whatever_else_is_judged():
    token, moon, _ = moons(200, 0)
    judged, _, _ = moons(50, 1)
    at = [int(np.flatnonzero(moon == side)[0]) for side in (0, 1)]
    together = label_propagation(what_is_given(token, at, [0, 1], judged))
    alone = label_propagation(what_is_given(token, at, [0, 1], judged[7:8]))
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(together[7:8], alone, atol=1e-5)


def test_a_row_that_no_label_reaches_gets_the_frequencies_of_the_labelled_rows():
    """Twelve rows a direction fill each other's neighbours; nothing is labelled in the third direction."""
    direction = np.repeat(np.eye(3, dtype=np.float32), 12, 0)
    trial = what_is_given(direction, [0, 1, 12], [0, 0, 1], np.eye(3, dtype=np.float32), classes=3)
    found = label_propagation(trial)
    assert found == pytest.approx(np.array([[1, 0, 0], [0, 1, 0], [2 / 3, 1 / 3, 0]]), abs=1e-6)


@pytest.fixture
def graphs(monkeypatch):
    """Sizes of the graphs that are built."""
    sizes = []

    def count(unit_ND, **options):
        sizes.append(len(unit_ND))
        return nearest_of_each(unit_ND, **options)

    monkeypatch.setattr(given, "nearest_of_each", count)
    return sizes


def test_all_splits_of_a_study_share_one_graph_of_the_training_rows_and_its_progress_is_told(store, tmp_path, graphs):
    told = []
    document = run_head(
        store=store, runs=tmp_path, labels=12, seeds=3, methods=["knn", "label-propagation"],
        on_progress=lambda name, share: told.append((name, share)),
    )  # fmt: skip
    assert graphs == [240]
    assert ("nearest neighbours", 1) in told
    assert told[-1] == ("label-propagation", 1)
    assert document["summary"]["label-propagation"]["mean"] > document["summary"]["knn"]["mean"] - 0.05


def test_in_cross_validation_the_graph_of_a_fold_leaves_its_held_out_rows_out(make_store, blobs, tmp_path, graphs):
    rows = blobs(60, 1)
    label = np.where(np.arange(60) < 24, rows.label, -1)
    store = make_store({"train": type(rows)(rows.token, label)})
    document = run_head(store=store, runs=tmp_path, seeds=2, methods=["label-propagation"])
    assert len(graphs) == 10
    assert sum(60 - size for size in graphs) == 48
    assert len(document["results"]) == 2
