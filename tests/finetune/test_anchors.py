"""Ties to the pretrained backbone: known values, masks, gradients."""

import pytest
import torch
from torch import Tensor

from cspipe.finetune.anchors import distillation, l2sp, mask_and_refill, masked
from cspipe.store.errors import SettingError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l2sp_is_half_the_squared_way_of_all_weights():
    start = [torch.zeros(2, 2), torch.ones(3)]
    now = [torch.tensor([[3.0, 0], [0, 4.0]]), torch.tensor([1.0, 1, 3])]
    assert l2sp(weights=now, start_weights=start).item() == pytest.approx((9 + 16 + 4) / 2)
    assert l2sp(weights=start, start_weights=start).item() == 0


def test_distillation_is_0_unmoved_and_1_where_every_token_is_the_mean():
    cached = drawn(20, 5)
    assert distillation(live_BD=cached, cached_BD=cached).item() == 0
    assert distillation(live_BD=cached.mean(0).expand(20, 5), cached_BD=cached).item() == pytest.approx(1)
    shifted = torch.tensor([[0.0], [2.0]])
    assert distillation(live_BD=shifted + 3, cached_BD=shifted).item() == pytest.approx(9)


def test_distillation_sees_which_row_is_which():
    cached = drawn(20, 5)
    assert distillation(live_BD=cached.flip(0), cached_BD=cached).item() > 0.5


def test_masked_is_the_mean_squared_difference():
    zeros, live = torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 2.0, 1]])
    assert masked(masked_live_BD=live, masked_frozen_BD=zeros).item() == pytest.approx(1)


def test_gradients_are_derivatives():
    live, other = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: distillation(live_BD=x, cached_BD=other), [live])
    assert torch.autograd.gradcheck(lambda x: masked(masked_live_BD=x, masked_frozen_BD=other), [live])
    assert torch.autograd.gradcheck(lambda x: l2sp(weights=[x], start_weights=[other]), [live])


def test_what_is_not_paired_is_refused():
    with pytest.raises(SettingError, match=r"distillation compares .* it was given \(3, 2\) and \(4, 2\)"):
        distillation(live_BD=drawn(3, 2), cached_BD=drawn(4, 2))
    with pytest.raises(SettingError, match=r"masked compares .* it was given \(3, 2\) and \(4, 2\)"):
        masked(masked_live_BD=drawn(3, 2), masked_frozen_BD=drawn(4, 2))
    with pytest.raises(SettingError, match="given 1 and 2 tensors"):
        l2sp(weights=[drawn(2)], start_weights=[drawn(2), drawn(2)])
    with pytest.raises(SettingError, match="given 1 and 1 tensors of other shapes"):
        l2sp(weights=[drawn(2)], start_weights=[drawn(3)])
    with pytest.raises(SettingError, match="given 0 and 0 tensors"):
        l2sp(weights=[], start_weights=[])


def test_half_of_the_cells_come_from_another_image_and_all_of_a_cell_does():
    """Each image is of one colour, its number: a pixel tells whose it is."""
    pixels = torch.arange(40.0)[:, None, None, None].expand(40, 3, 24, 24)
    refilled = mask_and_refill(pixels, torch.Generator().manual_seed(0), share=0.5, cells=4)
    taken = refilled != pixels
    assert 0.4 < taken.float().mean() < 0.6
    cells = taken.reshape(40, 3, 4, 6, 4, 6)
    assert torch.equal(cells.all(5).all(3).all(1), cells.any(5).any(3).any(1))
    givers = (pixels - refilled)[taken] % 40
    assert len(givers.unique()) == 1
    assert torch.equal(refilled, mask_and_refill(pixels, torch.Generator().manual_seed(0), share=0.5, cells=4))


def test_a_side_that_the_grid_does_not_divide_is_covered():
    pixels = torch.arange(2.0)[:, None, None, None].expand(2, 3, 13, 9)
    assert torch.equal(mask_and_refill(pixels, torch.Generator().manual_seed(0), share=1.0), pixels.flip(0))
