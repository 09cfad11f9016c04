"""Rectified dimensions, raised to a power."""

import numpy as np
import pytest
import torch
from scipy.stats import skew

from cspipe.headtrain import HeadSettings, HeadTask, fit_heads, load_head
from cspipe.headtrain.headfile import save_head
from cspipe.headtrain.power import OFFSET, fit_power
from cspipe.headtrain.projection import fit_projection

SIGNED, RECTIFIED = slice(0, 4), slice(4, 8)


@pytest.fixture
def token_ND() -> torch.Tensor:
    """400 rows: four dimensions of either sign, four that are rarely far from 0 and never below."""
    generator = np.random.default_rng(0)
    signed, rectified = generator.normal(1, 2, (400, 4)), generator.gamma(0.5, 3, (400, 4))
    return torch.from_numpy(np.concatenate([signed, rectified], 1).astype(np.float32))


def test_rectified_dimensions_are_raised_and_the_others_are_as_before(token_ND):
    raised, variance_D = fit_power([token_ND], 8, 0.5, "cpu")
    np.testing.assert_allclose(variance_D, token_ND.numpy().astype(np.float64).var(0), rtol=1e-4)
    out = raised(token_ND)
    assert torch.equal(out[:, SIGNED], token_ND[:, SIGNED])
    offset = OFFSET * token_ND[:, RECTIFIED].square().mean().sqrt()
    torch.testing.assert_close(out[:, RECTIFIED], (token_ND[:, RECTIFIED] + offset).sqrt())
    assert (skew(out[:, RECTIFIED]) < skew(token_ND[:, RECTIFIED]) / 2).all()


def test_a_single_negative_value_a_place_far_above_0_or_a_power_of_1_leaves_a_dimension_alone(token_ND):
    assert fit_power([token_ND], 8, 1.0, "cpu") is None
    assert fit_power([token_ND + 20], 8, 0.5, "cpu") is None
    token_ND[17, RECTIFIED] = -0.001
    assert fit_power(torch.split(token_ND, 50), 8, 0.5, "cpu") is None
    assert fit_projection(token_ND, 0).raised is None


def test_dead_dimensions_are_left_alone_and_stay_finite():
    assert fit_power([torch.zeros(9, 3)], 3, 0.5, "cpu") is None
    half_dead = torch.zeros(9, 2)
    half_dead[:, 0] = torch.linspace(0, 1, 9)
    fitted = fit_projection(half_dead, 0)
    assert fitted.raised.offset_D.isfinite().tolist() == [True, False]
    assert fitted(half_dead).isfinite().all()
    assert not fitted(half_dead)[:, 1].any()


def test_raised_dimensions_keep_the_variance_that_they_had_beside_the_others(token_ND):
    raised, variance_D = fit_power([token_ND], 8, 0.5, "cpu")
    with_power, without = (
        fit_projection(token_ND, 0, scale_floor=1e4),
        fit_projection(token_ND, 0, scale_floor=1e4, power=1),
    )
    before, after = (p(token_ND).double().var(0, correction=0) for p in (without, with_power))
    torch.testing.assert_close(
        after[RECTIFIED].sum() / after[SIGNED].sum(), before[RECTIFIED].sum() / before[SIGNED].sum()
    )
    torch.testing.assert_close(after[SIGNED], before[SIGNED])
    assert raised.offset_D.isinf().tolist() == [True] * 4 + [False] * 4
    assert len(variance_D) == 8


def test_rows_in_another_unit_come_out_the_same(token_ND):
    torch.testing.assert_close(fit_projection(token_ND, 0)(token_ND), fit_projection(8 * token_ND, 0)(8 * token_ND))


def test_the_slope_at_0_is_finite_and_what_falls_below_counts_as_0(token_ND):
    fitted = fit_projection(token_ND, 3)
    low = torch.zeros(3, 8, requires_grad=True)
    with torch.no_grad():
        low[1, RECTIFIED], low[2, RECTIFIED] = -5, 1e-9
    out = fitted(low)
    out.sum().backward()
    assert torch.equal(out[0], out[1])
    assert low.grad.isfinite().all()
    slope = 0.5 / fitted.raised.offset_D.sqrt() / fitted.scale_D
    assert (low.grad[2].abs() <= 3 * slope)[RECTIFIED].all()
    assert low.grad[2, RECTIFIED].abs().min() > 0


def test_a_head_keeps_it_in_its_file_and_in_double_precision(token_ND, tmp_path):
    label_N = (token_ND[:, 4] > 1).long()
    task = HeadTask(np.arange(40), np.arange(400), 0)
    settings = HeadSettings(steps=20, cluster_terms="always")
    head = fit_heads(token_ND, label_N, [task], settings, classes=2).heads[0]
    save_head(tmp_path / "head.safetensors", head, np.arange(40), {})
    back = load_head(tmp_path / "head.safetensors").head
    assert torch.equal(back.projection.raised.offset_D, head.projection.raised.offset_D)
    assert torch.equal(back.probabilities(token_ND), head.probabilities(token_ND))
    double = head.projection.to(torch.float64)
    torch.testing.assert_close(double(token_ND).float(), head.projection(token_ND), rtol=1e-3, atol=1e-4)
