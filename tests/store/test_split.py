import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspipe.store.errors import SettingError
from cspipe.store.split import draw_labelled, labelled_folds, split_hash

LABEL = np.repeat(np.arange(5), [40, 30, 20, 15, 10])
ROW = np.arange(len(LABEL)) * 3 + 7
PINNED = [124, 157, 223, 274, 283, 322, 340]


@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), draw=st.sampled_from(["balanced", "natural"]))
def test_a_draw_has_the_size_asked_for_without_repeats_sorted_and_labelled(n, seed, draw):
    label = np.where(np.arange(len(LABEL)) % 7 == 0, -1, LABEL)
    rows = draw_labelled(label, ROW, n, seed, draw=draw)
    assert rows.dtype == np.int64 and len(rows) == n
    assert (np.diff(rows) > 0).all()
    assert set(rows) <= set(ROW[label >= 0])


@given(n=st.integers(1, 50), seed=st.integers(0, 1000))
def test_a_balanced_draw_gives_the_remainder_to_distinct_classes(n, seed):
    counts = np.bincount(LABEL[np.isin(ROW, draw_labelled(LABEL, ROW, n, seed))], minlength=5)
    assert sorted(counts) == sorted([n // 5] * (5 - n % 5) + [n // 5 + 1] * (n % 5))


def test_which_classes_get_the_remainder_depends_on_the_seed():
    favoured = {tuple(LABEL[np.isin(ROW, draw_labelled(LABEL, ROW, 2, seed))]) for seed in range(30)}
    assert len(favoured) > 5


@given(seed=st.integers(0, 1000), extra=st.integers(1, 60), draw=st.sampled_from(["balanced", "natural"]))
def test_a_draw_depends_neither_on_unlabelled_rows_nor_on_the_order(seed, extra, draw):
    rng = np.random.default_rng(seed)
    label = np.concatenate([LABEL, np.full(extra, -1)])
    row = np.concatenate([ROW, 10_000 + np.arange(extra)])
    order = rng.permutation(len(label))
    expected = draw_labelled(LABEL, ROW, 23, seed, draw=draw)
    np.testing.assert_array_equal(draw_labelled(label[order], row[order], 23, seed, draw=draw), expected)


def test_a_class_draws_the_same_rows_whatever_the_other_classes_are():
    both = draw_labelled(LABEL, ROW, 10, 3)
    alone = draw_labelled(np.where(LABEL == 2, 2, -1), ROW, 2, 3)
    np.testing.assert_array_equal(both[np.isin(both, ROW[LABEL == 2])], alone)


def test_the_draw_of_seed_zero_is_pinned():
    assert draw_labelled(LABEL, ROW, 7, 0).tolist() == PINNED
    assert draw_labelled(LABEL, ROW, 7, 1).tolist() != PINNED


def test_all_takes_every_labelled_row():
    np.testing.assert_array_equal(draw_labelled(np.where(LABEL == 0, -1, LABEL), ROW, "all", 0), ROW[LABEL > 0])


@pytest.mark.parametrize(
    ("n", "seed", "draw", "words"),
    [
        (116, 0, "balanced", "116 labels were asked for and 115 rows have one"),
        (0, 0, "balanced", "1 or more, or 'all'; got 0"),
        ("most", 0, "balanced", "1 or more, or 'all'; got 'most'"),
        (55, 0, "balanced", "class 4 has 10 labelled rows.*takes 11 of it.*fewer labels, or use --draw natural"),
        (5, -1, "balanced", "0 or more; got -1"),
        (5, 0, "random", "balanced or natural; got 'random'"),
    ],
)
def test_a_draw_that_cannot_be_says_what_holds_and_what_to_do(n, seed, draw, words):
    with pytest.raises(SettingError, match=words):
        draw_labelled(LABEL, ROW, n, seed, draw=draw)


def test_a_natural_draw_takes_what_a_balanced_one_cannot():
    assert len(draw_labelled(LABEL, ROW, 115, 0, draw="natural")) == 115


def test_a_split_hash_names_the_set_and_not_the_order():
    assert split_hash(ROW) == split_hash(ROW[::-1].astype(np.int32))
    assert split_hash(ROW) != split_hash(ROW[1:])
    assert len(split_hash(ROW)) == 16


@given(folds=st.integers(2, 10), seed=st.integers(0, 1000))
def test_folds_hold_out_every_position_once_and_spread_each_class_evenly(folds, seed):
    held_out = labelled_folds(LABEL, folds, seed)
    assert sorted(np.concatenate(held_out)) == list(range(len(LABEL)))
    counts = np.array([np.bincount(LABEL[positions], minlength=5) for positions in held_out])
    assert (np.ptp(counts, axis=0) <= 1).all() and np.ptp(counts.sum(1)) <= 1


def test_folds_change_with_the_seed_and_refuse_more_than_there_are_rows():
    assert [f.tolist() for f in labelled_folds(LABEL, 3, 0)] != [f.tolist() for f in labelled_folds(LABEL, 3, 1)]
    with pytest.raises(SettingError, match="at most the 2 labelled rows; got 3"):
        labelled_folds(np.array([0, 1]), 3, 0)
