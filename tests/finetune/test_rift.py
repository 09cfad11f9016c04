"""RIFT: known values, what each kind of Q sees and does not see, gradients."""

import pytest
import torch
from torch import Tensor

from cspipe.finetune.drift import linear_cka
from cspipe.finetune.rift import aligned, learned_rotation, rift, rift_learned, rift_procrustes
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


def by_formula(live: Tensor, cached: Tensor, q: Tensor | None = None) -> Tensor:
    """The D x D covariances as the docstring writes them."""
    tuned, pretrained = torch.cov(live.T, correction=0), torch.cov(cached.T, correction=0)
    turned = pretrained if q is None else q @ pretrained @ q.T
    return (tuned - turned).square().sum() / pretrained.square().sum()


def learn_rotation(live: Tensor, cached: Tensor, steps: int = 1200) -> list[float]:
    """Loss at every step of Adam on Q alone."""
    torch.manual_seed(0)
    turning = learned_rotation(live.shape[1]).double()
    adam = torch.optim.Adam(turning.parameters(), lr=0.03)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    losses = []
    for _ in range(steps):
        loss = rift_learned(live_BD=live, cached_BD=cached, rotation_DD=turning.weight)
        adam.zero_grad()
        loss.backward()
        adam.step()
        slower.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("rows", "width"), [(12, 40), (60, 8), (2, 5)])
def test_rift_is_the_formula_on_d_by_d_covariances(rows, width):
    live, cached = drawn(rows, width), drawn(rows, width, seed=4)
    assert rift(live_BD=live, cached_BD=cached).item() == pytest.approx(by_formula(live, cached).item(), rel=1e-9)
    q = rotation(width)
    learned = rift_learned(live_BD=live, cached_BD=cached, rotation_DD=q)
    assert learned.item() == pytest.approx(by_formula(live, cached, q).item(), rel=1e-9)


def test_rift_of_doubled_tokens_is_9():
    cached = drawn()
    assert rift(live_BD=2 * cached, cached_BD=cached).item() == pytest.approx(9)
    assert rift_procrustes(live_BD=2 * cached, cached_BD=cached).item() == pytest.approx(9)


def test_every_kind_is_0_where_nothing_has_moved_and_under_a_shift_alone():
    cached, still = drawn(), learned_rotation(8).double().weight
    for live in (cached, cached + 10):
        assert rift(live_BD=live, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)
        assert rift_procrustes(live_BD=live, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)
        assert rift_learned(live_BD=live, cached_BD=cached, rotation_DD=still).item() == pytest.approx(0, abs=1e-9)
    single = cached.float()
    assert 0 <= rift(live_BD=single, cached_BD=single).item() < 1e-6


def test_a_rotation_of_the_features_is_seen_by_identity_and_not_by_procrustes():
    for rows, width in ((60, 8), (12, 40)):
        cached = drawn(rows, width)
        live = cached @ rotation(width) + 3
        assert rift(live_BD=live, cached_BD=cached).item() > 0.01
        assert rift_procrustes(live_BD=live, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)


def test_a_learned_q_undoes_a_rotation_or_a_reflection_and_cannot_undo_another_spectrum():
    generator = torch.Generator().manual_seed(2)
    cached = torch.randn(40, 4, generator=generator, dtype=torch.float64) * torch.tensor([1, 1.5, 2, 2.5])
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    for turn in (rotation(4), rotation(4) @ mirror):
        losses = learn_rotation(cached @ turn, cached)
        assert losses[0] > 0.01
        assert losses[-1] < 1e-4
    spread = cached * torch.tensor([3.0, 1, 1, 1], dtype=torch.float64)
    values = [torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)) for rows in (spread, cached)]
    least = ((values[0] - values[1]).square().sum() / values[1].square().sum()).item()  # von Neumann: sorted spectra
    assert learn_rotation(spread, cached)[-1] == pytest.approx(least, rel=0.02)
    assert least > 0.1


def test_the_spectrum_is_seen_by_every_kind():
    cached = drawn()
    live = cached * torch.tensor([3.0, *[1.0] * 7])
    assert rift(live_BD=live, cached_BD=cached).item() > 0.01
    assert rift_procrustes(live_BD=live, cached_BD=cached).item() > 0.01


def test_rift_does_not_see_which_row_is_which_but_cka_does():
    cached = drawn()
    live = shuffled(cached)
    assert rift(live_BD=live, cached_BD=cached).item() == pytest.approx(0, abs=1e-9)
    assert linear_cka(live, cached) < 0.3


def test_procrustes_finds_the_best_orthogonal_map_of_paired_rows():
    live, cached = drawn(), drawn(seed=4)
    live, cached = live - live.mean(0), cached - cached.mean(0)
    left, _, right = torch.linalg.svd(live.T @ cached)
    best = left @ right
    assert torch.allclose(aligned(live, cached), cached @ best.T)
    found = (live - aligned(live, cached)).square().sum()
    for other in (torch.eye(8, dtype=torch.float64), rotation(), -best):
        assert found < (live - cached @ other.T).square().sum()


def test_the_learned_map_stays_orthogonal_and_begins_as_the_identity():
    turning = learned_rotation(6)
    assert torch.equal(turning.weight, torch.eye(6))
    adam = torch.optim.Adam(turning.parameters(), lr=0.1)
    for _ in range(20):
        (turning.weight * torch.arange(36.0).reshape(6, 6)).sum().backward()
        adam.step()
    assert (turning.weight - torch.eye(6)).abs().max() > 0.1
    torch.testing.assert_close(turning.weight @ turning.weight.T, torch.eye(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [6, 12])
def test_gradient_of_rift_is_its_derivative(rows):
    live, cached, q = drawn(rows, 9).requires_grad_(), drawn(rows, 9, seed=4), rotation(9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rift(live_BD=x, cached_BD=cached), [live])
    assert torch.autograd.gradcheck(lambda x, y: rift_learned(live_BD=x, cached_BD=cached, rotation_DD=y), [live, q])


def test_gradient_of_procrustes_takes_q_as_given():
    live, cached = drawn(6, 9).requires_grad_(), drawn(6, 9, seed=4)
    (mine,) = torch.autograd.grad(rift_procrustes(live_BD=live, cached_BD=cached), live)
    rest, kept = live.detach() - live.detach().mean(0), cached - cached.mean(0)
    held = aligned(rest, kept)
    assert torch.autograd.gradcheck(lambda x: rift(live_BD=x, cached_BD=held), [live])
    (expected,) = torch.autograd.grad(rift(live_BD=live, cached_BD=held), live)
    torch.testing.assert_close(mine, expected)


def test_rift_refuses_tokens_that_are_not_paired_a_single_row_and_a_map_of_another_width():
    for live, cached in ((drawn(6), drawn(7)), (drawn(1), drawn(1))):
        with pytest.raises(SettingError, match=rf"two or more rows; it was given \({len(live)}, 8\) and"):
            rift(live_BD=live, cached_BD=cached)
    with pytest.raises(SettingError, match=r"orthogonal map 8 by 8, as wide as the tokens; it was given \(5, 5\)"):
        rift_learned(live_BD=drawn(), cached_BD=drawn(), rotation_DD=torch.eye(5))
