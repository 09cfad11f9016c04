"""Class shares that a head learns: how far they move, when, and what is kept of them."""

from dataclasses import replace

import pytest
import torch

from cspipe.headtrain import HeadSettings
from cspipe.headtrain.batches import Pools
from cspipe.headtrain.shares import WEAK, ClassShares, shrunken

EVEN = torch.full((2, 4), 0.25)
POOLS = Pools([torch.arange(50), torch.arange(100)], [torch.arange(1000)] * 2, EVEN)
LEARNS = HeadSettings(steps=100)
FOUND = torch.tensor([0.4, 0.3, 0.2, 0.1])


def content(found_K: torch.Tensor, sure: float = 1.0, heads: int = 2, rows: int = 100) -> torch.Tensor:
    """Rows `(H, B, K)` whose classes have these shares, each row with the class's probability `sure`."""
    counts = (found_K * rows).round().long()
    label_B = torch.repeat_interleave(torch.arange(4), counts)
    other = (1 - sure) / 3
    return (torch.nn.functional.one_hot(label_B, 4) * (sure - other) + other).expand(heads, -1, -1)


def test_shares_stay_where_no_more_was_found_than_chance_explains():
    found_1K = torch.tensor([[0.27, 0.25, 0.25, 0.23]])  # squared distance .0008, by chance 2 * .1 / 200 = .001
    assert torch.equal(shrunken(found_1K, EVEN[:1], torch.tensor([0.1]), torch.tensor([200.0])), EVEN[:1])


def test_shares_move_by_what_chance_does_not_explain():
    found_1K = FOUND[None]  # squared distance .05, by chance 2 * .1 / 20 = .01: four fifths are kept
    moved = shrunken(found_1K, EVEN[:1], torch.tensor([0.1]), torch.tensor([20.0]))
    torch.testing.assert_close(moved, EVEN[:1] + 0.8 * (found_1K - EVEN[:1]))


def test_a_sure_head_with_many_labels_is_believed_more_than_an_unsure_one_with_few():
    kept = shrunken(FOUND.expand(2, -1), EVEN, torch.tensor([0.05, 0.4]), torch.tensor([1000.0, 20.0]))
    assert kept[0] == pytest.approx(FOUND, abs=0.001) and (kept[0] - kept[1]).abs().max() > 0.05
    torch.testing.assert_close(kept.sum(1), torch.ones(2))


def test_a_head_without_an_error_and_at_the_start_stays_finite():
    assert torch.equal(shrunken(EVEN, EVEN, torch.zeros(2), torch.ones(2)), EVEN)


def test_the_prior_holds_weakly_while_it_is_told_three_times_each_from_the_steps_since_the_time_before():
    shares, other = ClassShares(POOLS, LEARNS), torch.tensor([0.2, 0.2, 0.2, 0.4])
    seen = [FOUND.flip(0)] * 5 + [FOUND] * 5 + [other] * 5 + [FOUND] * 5 + [other] * 80
    for step, found_K in enumerate(seen, 1):
        shares.look(step, content(found_K))
        told_K = EVEN[0] if step < 10 else FOUND if step < 15 else other if step < 20 else FOUND
        assert shares.prior_HK == pytest.approx(told_K.expand(2, -1), abs=1e-6)
        assert float(shares.weight) == pytest.approx(WEAK if step < 20 else 1)


def test_unsure_rows_move_the_prior_less():
    moved = []
    for sure in (1.0, 0.7):
        shares = ClassShares(POOLS, LEARNS)
        for step in range(1, 21):
            shares.look(step, content(FOUND, sure))
        moved.append((shares.prior_HK - EVEN).abs().sum(1))
    assert (moved[1] < 0.7 * moved[0]).all()
    assert moved[1][0] < moved[1][1]  # fifty labelled rows in place of a hundred


def test_steps_of_which_a_head_was_lost_tell_nothing_of_it():
    shares = ClassShares(POOLS, LEARNS)
    for step in range(1, 21):
        lost = content(FOUND).clone()
        if step % 2:
            lost[0] = torch.nan
        lost[1] = torch.nan
        shares.look(step, lost)
    assert shares.prior_HK[0] == pytest.approx(FOUND, abs=1e-6)
    assert torch.equal(shares.prior_HK[1], EVEN[1])


@pytest.mark.parametrize("changes", [{"prior": "uniform"}, {"content_term": "adversarial"}, {"lambda_c": 0.0}])
def test_any_other_prior_is_held_to_in_full_from_the_first_step(changes):
    shares = ClassShares(POOLS, replace(LEARNS, **changes))
    for step in range(1, 101):
        shares.look(step, content(FOUND))
    assert torch.equal(shares.prior_HK, EVEN) and float(shares.weight) == 1


def test_a_training_of_a_single_step_learns_from_it():
    shares = ClassShares(POOLS, replace(LEARNS, steps=1))
    shares.look(1, content(FOUND))
    assert float(shares.weight) == 1 and not torch.equal(shares.prior_HK, EVEN)


def test_nothing_is_learned_where_no_term_looks_at_unlabelled_rows():
    shares = ClassShares(POOLS, replace(LEARNS, lambda_c=0.0))
    shares.look(1, None)
    assert torch.equal(shares.prior_HK, EVEN)
