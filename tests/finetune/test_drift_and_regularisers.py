"""How far tokens have moved, and the term that holds them: known values, invariances, gradients."""

import math

import pytest
import torch
from torch import Tensor

from cspipe.finetune.drift import effective_rank, linear_cka, token_variance
from cspipe.finetune.regularisers import rift
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


def by_formula(live: Tensor, cached: Tensor) -> Tensor:
    """The D x D covariances as the docstring writes them."""
    tuned, pretrained = torch.cov(live.T, correction=0), torch.cov(cached.T, correction=0)
    return (tuned - pretrained).square().sum() / pretrained.square().sum()


@pytest.mark.parametrize(("rows", "width"), [(12, 40), (60, 8), (2, 5)])
def test_rift_is_the_formula_on_d_by_d_covariances(rows, width):
    live, cached = drawn(rows, width), drawn(rows, width, seed=4)
    assert rift(live_BD=live, cached_BD=cached).item() == pytest.approx(by_formula(live, cached).item(), rel=1e-9)


def test_rift_of_doubled_tokens_is_9():
    cached = drawn()
    assert rift(live_BD=2 * cached, cached_BD=cached).item() == pytest.approx(9)


def test_rift_is_0_where_nothing_has_moved_and_under_a_shift_alone():
    cached = drawn()
    assert rift(live_BD=cached, cached_BD=cached).item() == pytest.approx(0, abs=1e-12)
    assert rift(live_BD=cached + 10, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)
    single = cached.float()
    assert 0 <= rift(live_BD=single, cached_BD=single).item() < 1e-6


def test_rift_is_positive_where_the_spectrum_changes_and_under_a_rotation():
    cached = drawn()
    assert rift(live_BD=cached * torch.tensor([3.0, *[1.0] * 7]), cached_BD=cached).item() > 0.01
    assert rift(live_BD=cached @ rotation(), cached_BD=cached).item() > 0.01


def test_rift_does_not_see_which_row_is_which_but_cka_does():
    cached = drawn()
    live = shuffled(cached)
    assert rift(live_BD=live, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)
    assert linear_cka(live, cached) < 0.3


def test_gradient_of_rift_is_its_derivative():
    live, cached = drawn(6, 9).requires_grad_(), drawn(6, 9, seed=4)
    assert torch.autograd.gradcheck(lambda x: rift(live_BD=x, cached_BD=cached), [live])


def test_rift_refuses_tokens_that_are_not_paired_and_a_single_row():
    for live, cached in ((drawn(6), drawn(7)), (drawn(1), drawn(1))):
        with pytest.raises(SettingError, match=rf"two or more rows; it was given \({len(live)}, 8\) and"):
            rift(live_BD=live, cached_BD=cached)
