"""Rows are drawn in whole passes, classes of the prior in their expected counts."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cspipe.headtrain.batches import Pools, draw_passes, draw_prior, draw_views


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 40), passes=st.integers(1, 4), extra=st.integers(0, 39), seed=st.integers(0, 1000))
def test_passes_show_every_row_equally_often(rows, passes, extra, seed):
    pool = torch.arange(rows) * 3 + 100
    drawn = draw_passes(pool, rows * passes + extra % rows, torch.Generator().manual_seed(seed)).tolist()
    counts = Counter(drawn)
    assert counts.keys() == set(pool.tolist())
    assert set(counts.values()) <= {passes, passes + 1}
    assert sum(count == passes + 1 for count in counts.values()) == extra % rows
    for start in range(0, rows * passes, rows):
        assert sorted(drawn[start : start + rows]) == pool.tolist()


def test_passes_are_shuffled_anew_each_time():
    pool, generator = torch.arange(50), torch.Generator().manual_seed(0)
    drawn = draw_passes(pool, 100, generator)
    assert not torch.equal(drawn[:50], pool)
    assert not torch.equal(drawn[:50], drawn[50:])


@settings(max_examples=100, deadline=None)
@given(
    prior=st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda p: sum(p) > 0.01),
    draws=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_prior_draws_are_the_expected_counts_to_within_one(prior, draws, seed):
    share = torch.tensor(prior, dtype=torch.float64) / sum(prior)
    drawn = draw_prior(share, draws, torch.Generator().manual_seed(seed), 5)
    assert drawn.shape == (5, draws)
    for step in drawn:
        counts = torch.bincount(step, minlength=len(prior))
        assert ((counts - draws * share).abs() < 1 + 1e-9).all()


def test_prior_draws_are_exactly_balanced_for_a_uniform_prior_that_divides_the_batch():
    drawn = draw_prior(torch.full((10,), 0.1), 100, torch.Generator().manual_seed(0), 500)
    counts = np.stack([np.bincount(step, minlength=10) for step in drawn.numpy()])
    assert (counts == 10).all()


def test_prior_draws_are_unbiased_where_the_batch_is_smaller_than_the_classes():
    prior = torch.tensor([0.05, 0.15, 0.3, 0.5])
    drawn = draw_prior(prior, 2, torch.Generator().manual_seed(0), 20_000)
    share = torch.bincount(drawn.reshape(-1), minlength=4) / drawn.numel()
    torch.testing.assert_close(share, prior, rtol=0, atol=0.01)


def test_a_row_is_drawn_itself_half_of_the_time_and_its_views_equally_often_else():
    row_QB, generator = torch.arange(4000).view(10, 400), torch.Generator().manual_seed(0)
    for views in (1, 4):
        pools = Pools([], [], torch.empty(0), views)
        drawn_QB = draw_views(row_QB, pools, 4000, generator)
        assert torch.equal(drawn_QB % 4000, row_QB)
        share = torch.bincount(drawn_QB.flatten() // 4000, minlength=views + 1) / 4000
        expected = torch.tensor([0.5] + [0.5 / views] * views)
        assert (share - expected).abs().max() < 0.03, share
    assert draw_views(row_QB, Pools([], [], torch.empty(0)), 4000, generator) is row_QB
