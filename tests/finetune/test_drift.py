"""How far tokens have moved: known values and invariances."""

import math

import pytest
import torch
from torch import Tensor

from cspipe.finetune.drift import (
    DRIFT,
    effective_rank,
    knn_overlap,
    linear_cka,
    mean_cosine,
    measure_drift,
    token_variance,
)
from cspipe.store.errors import SettingError


def drawn(rows: int = 60, width: int = 8, seed: int = 0) -> Tensor:
    """Correlated rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return rows_ND @ torch.randn(width, width, generator=generator, dtype=torch.float64)


def rotation(width: int = 8) -> Tensor:
    return torch.linalg.qr(drawn(width, width, seed=9))[0]


def shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]


def test_cka_of_two_columns_is_their_squared_correlation():
    first, second = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    assert linear_cka(first, second) == pytest.approx(0.25)


def test_cka_is_1_for_equal_rows_and_under_rotation_scale_and_shift():
    rows = drawn()
    for other in (rows, rows @ rotation(), 7 * rows, rows + 100, -0.1 * rows @ rotation() - 3):
        assert linear_cka(rows, other) == pytest.approx(1, abs=1e-9)


def test_cka_is_low_for_shuffled_rows_and_for_others_and_symmetric():
    rows = drawn()
    for other in (shuffled(rows), drawn(width=5, seed=3)):
        assert linear_cka(rows, other) < 0.3
        assert linear_cka(rows, other) == pytest.approx(linear_cka(other, rows))


def test_cka_changes_under_a_stretch_of_one_dimension():
    rows = drawn()
    stretched = rows * torch.tensor([5.0, *[1.0] * 7])
    assert 0.1 < linear_cka(rows, stretched) < 0.99


def test_cka_of_collapsed_tokens_is_0_and_rows_have_to_be_paired():
    assert linear_cka(drawn(), torch.ones(60, 8)) == 0
    with pytest.raises(SettingError, match="compares the same rows; it was given 60 and 59"):
        linear_cka(drawn(), drawn(59))


def test_token_variance_is_the_mean_over_dimensions():
    assert token_variance(torch.tensor([[0.0, 5.0], [2.0, 5.0]])) == pytest.approx(0.5)
    assert token_variance(torch.ones(4, 3)) == 0


def test_effective_rank_counts_equal_directions_and_weighs_unequal_ones():
    """Two directions with singular values 3 : 1 have entropy of (3/4, 1/4)."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    assert effective_rank(axes) == pytest.approx(3)
    assert effective_rank(axes + 7) == pytest.approx(3)
    two = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(two) == pytest.approx(expected)


def test_effective_rank_of_a_line_and_of_a_point_is_1():
    assert effective_rank(torch.arange(6.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.ones(5, 4)) == 1


def test_knn_overlap_is_1_unmoved_and_under_rotation_scale_and_shift_and_chance_for_others():
    rows = drawn()
    for other in (rows, 7 * rows @ rotation(), rows + 100):
        assert knn_overlap(rows, other) == pytest.approx(1)
    many = drawn(400)
    assert knn_overlap(many, drawn(400, seed=3)) == pytest.approx(10 / 399, abs=0.01)


def test_knn_overlap_counts_shared_neighbours():
    """On a line centred at 0 the nearest by cosine are those on the same side."""
    first = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    second = torch.tensor([[-2.0], [1.0], [-1.0], [2.0]])
    assert knn_overlap(first, first, neighbours=1) == 1
    assert knn_overlap(first, second, neighbours=1) == 0
    assert knn_overlap(first, second, neighbours=3) == 1
    with pytest.raises(SettingError, match="the same two or more rows; it was given 4 and 3"):
        knn_overlap(first, second[:3])


def test_mean_cosine_of_paired_rows():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert mean_cosine(rows, 3 * rows) == pytest.approx(1)
    assert mean_cosine(rows, rows.flip(0)) == pytest.approx(0)
    assert mean_cosine(rows, torch.tensor([[1.0, 0.0], [0.0, -1.0]])) == pytest.approx(0)


def test_drift_holds_every_number_by_its_name():
    rows = drawn()
    told = measure_drift(2 * rows, rows)
    assert tuple(told) == DRIFT
    assert told["cka"] == pytest.approx(1)
    assert told["knn_overlap"] == told["cosine"] == pytest.approx(1)
    assert told["token_variance"] == pytest.approx(4 * token_variance(rows))
