"""Tokens standardised with what lies around them: against a plain kernel regression, and where it helps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cspipe.headtrain.clusters import Findings, draw_sample, look_at_rows
from cspipe.headtrain.headfile import load_head, save_head
from cspipe.headtrain.heads import fit_heads
from cspipe.headtrain.neighbourhood import Neighbourhood, anchor_rows, fit_neighbourhood
from cspipe.headtrain.projection import fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.tasks import HeadTask

ROWS, WIDTH, CLASSES = 600, 20, 3


def outshone(seed, rows=ROWS):
    """Tokens that lie on a bent sheet, told by two numbers, in all dimensions; the class is a small step off it."""
    generator, world = np.random.default_rng(seed), np.random.default_rng(0)
    place_N2, label_N = generator.uniform(0, 1, (rows, 2)), generator.integers(0, CLASSES, rows)
    wave_2D, phase_D = 4 * world.standard_normal((2, WIDTH)), world.uniform(0, 6, WIDTH)
    sheet_ND, step_KD = 3 * np.cos(place_N2 @ wave_2D + phase_D), 0.4 * world.standard_normal((CLASSES, WIDTH))
    token_ND = sheet_ND + step_KD[label_N] + 0.3 * generator.standard_normal((rows, WIDTH))
    return torch.from_numpy(token_ND.astype(np.float32)), label_N


@pytest.fixture
def made():
    """A neighbourhood of six anchors in three directions, and the rows that it was fitted on, in float64."""
    generator = torch.Generator().manual_seed(3)
    token_ND = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    query_DQ = torch.linalg.qr(torch.randn(5, 3, generator=generator, dtype=torch.float64))[0]
    around = fit_neighbourhood(lambda: torch.split(token_ND, 17), query_DQ, token_ND[:6], scale_floor=0.5)
    return around, token_ND, query_DQ


def kernel(query_ND, anchor_AD, directions, radius):
    """Gaussian kernel weights, one number after the other."""
    weight = np.empty((len(query_ND), len(anchor_AD)))
    for n, query in enumerate(query_ND):
        for a, anchor in enumerate(anchor_AD):
            weight[n, a] = np.exp(-(np.square((query - anchor) @ directions).sum()) / (2 * radius**2))
    return weight / weight.sum(1, keepdims=True)


def test_a_row_is_standardised_with_a_gaussian_kernel_s_mean_and_deviation_around_it(made):
    around, token_ND, query_DQ = made
    token, directions = token_ND.numpy(), query_DQ.numpy()
    apart = np.sort(np.linalg.norm((token[:6, None] - token[None, :6]) @ directions, axis=2), axis=1)
    radius = 0.5 * np.sort(apart[:, 5])[2]  # half the way to the fifth next anchor; torch's median is the lower one
    weight_NA = kernel(token, token[:6], directions, radius)
    mean_AD = (weight_NA.T @ token) / weight_NA.sum(0)[:, None]
    square_AD = (weight_NA.T @ token**2) / weight_NA.sum(0)[:, None]
    mean_ND, square_ND = weight_NA @ mean_AD, weight_NA @ square_AD
    floor = 0.25 * (square_AD - mean_AD**2).mean() + 1e-6
    expected = (token - mean_ND) / np.sqrt(square_ND - mean_ND**2 + floor)
    np.testing.assert_allclose(around(token_ND).numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(around.weights(token_ND).sum(1), 1, rtol=1e-12)


def test_it_can_be_followed_backward(made):
    around, token_ND, _ = made
    row_ND = token_ND[10:13].clone().requires_grad_()
    assert torch.autograd.gradcheck(around, (row_ND,))


def test_rows_that_all_agree_give_no_number_that_is_not_finite():
    same = torch.ones(40, 6)
    assert fit_projection(same, 0, anchors=5, scale_floor=0)(same).isfinite().all()


def test_anchors_are_the_same_each_time_and_are_not_more_than_rows_can_bear():
    assert anchor_rows(1000, 50).tolist() == anchor_rows(1000, 50).tolist()
    assert len(set(anchor_rows(1000, 50).tolist())) == 50
    assert len(anchor_rows(40, 50)) == 4
    assert len(anchor_rows(19, 50)) == len(anchor_rows(1000, 0)) == 0
    assert fit_projection(torch.randn(19, 4), 0, anchors=50).around is None


def test_it_takes_off_what_a_neighbourhood_has_in_common_and_leaves_the_class():
    (token_ND, label_N), (judged_MD, judged_M) = outshone(1), outshone(2)
    score = {}
    for anchors in (0, 60):
        projection = fit_projection(token_ND, 0, anchors=anchors)
        known_LD = projection.rows(token_ND[:60]).numpy()
        model = LogisticRegression(C=0.01, max_iter=500).fit(known_LD, label_N[:60])
        score[anchors] = model.score(projection.rows(judged_MD).numpy(), judged_M)
    assert score[60] > score[0] + 0.1


def test_principal_components_are_those_of_what_is_left():
    token_ND, _ = outshone(1)
    whole, cut = (fit_projection(token_ND, components, anchors=60) for components in (0, 4))
    left_ND = whole.rows(token_ND).numpy()
    expected = np.linalg.svd(left_ND - left_ND.mean(0), full_matrices=False)[2][:4]
    assert cut.width == 4 and cut.around is not None
    np.testing.assert_allclose(np.abs(expected @ cut.basis_DP.numpy()), np.eye(4), atol=2e-3)


def looked_at(token_ND, label_N, settings):
    """What is found with 60 labelled rows."""
    every = np.arange(ROWS)
    sample = draw_sample(token_ND, every, HeadSettings())
    task = HeadTask(np.arange(60), every)
    (found,) = look_at_rows(token_ND, label_N, [task], sample, settings, classes=CLASSES)
    return found


def test_labelled_rows_tell_whether_it_helps(quick):
    assert looked_at(*outshone(1), quick).anchors
    _, label_N = outshone(1)
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    near = means[torch.from_numpy(label_N)] + torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    assert not looked_at(near, label_N, quick).anchors


@pytest.mark.parametrize(("findings", "anchors", "relied_on"), [
    (Findings(None), 0, True), (Findings(0.9), 0, True), (Findings(0.9, True), 500, True),
    (Findings(0.2, False, (50, 10, 20)), 0, False), (Findings(0.2, True, (50, 10, 20)), 500, False),
    (Findings(0.2, True, (50, 10, 10)), 500, False), (Findings(0.2, True, (50, 13, 10)), 500, False),
    (Findings(0.1, True, (50, 12, 3)), 500, False), (Findings(0.2, True, (50, 12, 3)), 500, True),
    (Findings(0.2, True, (50, 20, 5)), 500, True),
])  # fmt: skip
def test_what_is_left_of_the_settings(findings, anchors, relied_on):
    left = findings.borne_out(HeadSettings())
    assert (left.anchors, left.lambda_c > 0, left.voted) == (anchors, relied_on, not relied_on)


def test_anchors_of_the_user_s_are_kept():
    asked = HeadSettings(anchors=900)
    assert Findings(0.2).borne_out(asked).anchors == Findings(0.2, True, (0, 0, 1)).borne_out(asked).anchors == 900


@pytest.mark.parametrize("components", [0, 4])
def test_a_head_learns_on_it_and_comes_back_from_its_file(tmp_path, quick, components):
    token_ND, label_N = outshone(1)
    settings = replace(quick, anchors=60, components=components, steps=20)
    task = HeadTask(np.arange(60), np.arange(ROWS))
    head = fit_heads(token_ND, torch.from_numpy(label_N), [task], settings, classes=CLASSES).heads[0]
    save_head(tmp_path / "head.safetensors", head, np.arange(60), {})
    back = load_head(tmp_path / "head.safetensors").head
    assert isinstance(back.projection.around, Neighbourhood) and back.settings == settings
    assert torch.equal(back.probabilities(token_ND), head.probabilities(token_ND))
    double = back.projection.to(torch.float64)
    assert double.around.mean_AD.dtype == double.mean_D.dtype == torch.float64
    torch.testing.assert_close(double(token_ND).float(), back.projection(token_ND), rtol=1e-3, atol=1e-3)
