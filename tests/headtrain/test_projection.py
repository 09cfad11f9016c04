"""Standardisation and principal components against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from cspipe.headtrain import projection as module
from cspipe.headtrain.projection import fit_projection
from cspipe.store.errors import MismatchError


def correlated(rows: int = 300, width: int = 12) -> np.ndarray:
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(rows, width)) @ generator.normal(size=(width, width))
    return (mixed * np.linspace(0.1, 10, width) + np.linspace(-50, 50, width)).astype(np.float32)


@pytest.mark.parametrize("components", [1, 5, 11])
def test_projection_is_pca_of_the_standardised_rows_up_to_the_sign_of_each_component(components):
    token = correlated()
    standard = StandardScaler().fit_transform(token.astype(np.float64))
    expected = PCA(components).fit(standard).transform(standard)
    fitted = fit_projection(torch.from_numpy(token), components, scale_floor=0)
    ours = fitted(torch.from_numpy(token)).numpy()
    assert fitted.width == components == ours.shape[1]
    sign = np.sign((ours * expected).sum(0))
    np.testing.assert_allclose(ours * sign, expected, atol=2e-3)


@pytest.mark.parametrize("components", [0, 12, 99])
def test_0_or_as_many_components_as_dimensions_standardises_alone(components):
    token = correlated()
    fitted = fit_projection(torch.from_numpy(token), components, scale_floor=0)
    assert fitted.basis_DP is None
    assert fitted.width == 12
    np.testing.assert_allclose(fitted(torch.from_numpy(token)), StandardScaler().fit_transform(token), atol=1e-4)


def test_the_scale_has_a_floor_of_the_mean_variance_and_a_large_one_leaves_the_proportions_alone():
    token = torch.from_numpy(correlated())
    variance = token.double().var(0, correction=0)
    floored = fit_projection(token, 0, scale_floor=0.5).scale_D.double()
    torch.testing.assert_close(floored, (variance + 0.25 * variance.mean()).sqrt(), rtol=1e-4, atol=0)
    alone = fit_projection(token, 0, scale_floor=1e4).scale_D
    torch.testing.assert_close(alone, torch.full_like(alone, alone[0].item()), rtol=1e-4, atol=0)


def test_a_nearly_dead_dimension_stays_small_instead_of_being_raised_to_the_others_weight():
    token = torch.from_numpy(correlated())
    token[:, 3] = torch.linspace(0, 1e-3, len(token))
    assert fit_projection(token, 0, scale_floor=0)(token)[:, 3].std() > 0.9
    assert fit_projection(token, 0)(token)[:, 3].std() < 1e-3


def test_statistics_do_not_depend_on_how_rows_are_cut_into_blocks(monkeypatch):
    token = torch.from_numpy(correlated())
    whole = fit_projection(token, 5)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 37)
    cut = fit_projection(token, 5)
    torch.testing.assert_close(cut.mean_D, whole.mean_D, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.scale_D, whole.scale_D, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.rows(token).abs(), whole(token).abs(), rtol=0, atol=1e-3)


def test_a_constant_dimension_becomes_0_and_carries_no_component():
    token = correlated()
    token[:, [2, 7]] = [1000.0, 0.0]
    fitted = fit_projection(torch.from_numpy(token), 10)
    standard = fit_projection(torch.from_numpy(token), 0)(torch.from_numpy(token))
    assert standard[:, [2, 7]].abs().max().item() < 1e-3
    assert fitted.basis_DP[[2, 7]].abs().max().item() < 1e-6
    assert fitted(torch.from_numpy(token)).isfinite().all()


def test_offset_rows_lose_no_precision():
    token = correlated() + np.float32(3000)
    fitted = fit_projection(torch.from_numpy(token), 0, scale_floor=0)
    np.testing.assert_allclose(fitted.scale_D, token.astype(np.float64).std(0), rtol=1e-3)


def test_fp16_rows_are_projected_as_their_fp32_values():
    half = torch.from_numpy(correlated()).half()
    from_half, from_float = fit_projection(half, 4), fit_projection(half.float(), 4)
    assert torch.equal(from_half.mean_D, from_float.mean_D)
    out = from_half.rows(half)
    assert out.dtype == torch.float32
    assert torch.equal(out, from_half(half.float()))


def test_projection_is_differentiable():
    token = torch.from_numpy(correlated()[:4]).requires_grad_()
    fitted = fit_projection(torch.from_numpy(correlated()), 3)
    fitted(token).sum().backward()
    expected = fitted.basis_DP.sum(1) / fitted.scale_D
    torch.testing.assert_close(token.grad, expected.expand(4, 12))


def test_tokens_of_another_width_are_refused_with_both_widths_and_what_to_do():
    fitted = fit_projection(torch.from_numpy(correlated()), 3)
    with pytest.raises(MismatchError, match=r"expects tokens 12 wide, but was given 7\. Use the store of the backbone"):
        fitted(torch.zeros(2, 7))
    with pytest.raises(MismatchError, match="expects tokens 12 wide"):
        fitted.rows(torch.zeros(2, 7))
