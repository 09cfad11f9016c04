"""Images in both splits: equal ones by hash, near ones by token, against what a double loop over all rows finds."""

import tracemalloc

import numpy as np
import pytest

from cspipe.store import leaks, open_store
from cspipe.store.errors import SettingError, StoreError
from cspipe.store.leaks import count_duplicates, exact_duplicates, near_duplicates


def write(maker, split, tokens, table):
    """A split whose k-th image has the k-th of these tokens."""
    with maker.writer(width=tokens.shape[1]) as writer:
        for task in writer.plan(split, table, whole=True):
            writer.commit(split, task, tokens[task.images], [])
        writer.finish(split)


@pytest.fixture
def two_splits(maker, table):
    """A function that makes a store of these training and test tokens and opens it."""

    def make(train, test):
        start = 0
        for split, tokens in (("train", train), ("test", test)):
            rows = np.asarray(tokens, np.float32)
            write(maker, split, rows, table(range(start, start + len(rows)), folder=split))
            start += len(rows)
        return maker.open()

    return make


def test_equal_images_of_two_splits_are_counted_and_listed_with_rows_and_paths(maker, table):
    maker.extract([5, 6, 7, 7], table=table([5, 6, 7, 7], folder="train"))
    maker.extract([8, 7, 5, 5], split="test", table=table([8, 7, 5, 5], folder="test"))
    store = maker.open()
    assert count_duplicates(store) == {"train/test": 3}
    found = exact_duplicates(store, limit=100)
    listed = [(pair.first.row_id, pair.second.row_id) for pair in found.pairs]
    assert (listed, found.count) == ([(2, 1), (3, 1), (0, 2), (0, 3)], 4)
    first = found.pairs[0]
    assert (first.first.split, first.first.path) == ("train", "train/7.png")
    assert (first.second.split, first.second.path, first.cosine) == ("test", "test/7.png", None)
    assert exact_duplicates(store, limit=2).pairs == found.pairs[:2]
    assert exact_duplicates(store, limit=2).count == 4


def test_clean_splits_and_a_single_split_share_nothing(maker):
    maker.extract(range(9))
    assert count_duplicates(maker.open()) == {}
    maker.extract(range(9, 12), split="test")
    assert count_duplicates(maker.open()) == {"train/test": 0}
    assert exact_duplicates(maker.open(), limit=9).pairs == []


def test_images_that_could_not_be_used_or_are_gone_do_not_count(maker):
    maker.extract([1, 2, 3, 4], bad=[2])
    maker.extract([1, 3, 4])
    maker.extract([2, 3, 9], split="test")
    assert count_duplicates(maker.open()) == {"train/test": 1}
    assert [pair.second.row_id for pair in exact_duplicates(maker.open(), limit=9).pairs] == [1]


def test_a_split_that_is_not_finished_is_left_out(maker, table):
    maker.extract([1, 2, 3])
    with maker.writer() as writer:
        writer.plan("test", table([1, 2]), whole=True)
    assert count_duplicates(maker.open()) == {}


def by_hand(train, test, cosine):
    """All pairs that are so alike, in fp64."""
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test))
    alike = other @ one.T
    return {(int(i), int(j)): alike[j, i] for j, i in zip(*np.nonzero(alike >= cosine), strict=True)}


@pytest.mark.parametrize("block", [1, 3, 2048])
@pytest.mark.parametrize("cosine", [0.3, 0.7, 0.95])
def test_near_pairs_are_those_of_a_double_loop_whatever_the_block(two_splits, monkeypatch, block, cosine):
    generator = np.random.default_rng(block)
    train, test = (generator.standard_normal((n, 4)).astype(np.float16).astype(np.float32) for n in (31, 17))
    monkeypatch.setattr(leaks, "_BLOCK_ROWS", block)
    found = near_duplicates(two_splits(train, test), cosine, limit=1000)
    wanted = by_hand(train.astype(np.float64), test.astype(np.float64), cosine)
    assert {(pair.first.row_id, pair.second.row_id) for pair in found.pairs} == set(wanted)
    assert found.count == len(wanted) > 0
    for pair in found.pairs:
        assert pair.cosine == pytest.approx(wanted[pair.first.row_id, pair.second.row_id], abs=1e-5)
    cosines = [pair.cosine for pair in found.pairs]
    assert cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize("block", [2, 2048])
def test_only_the_most_alike_are_listed_but_all_are_counted(two_splits, monkeypatch, block):
    train = [[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [0, 1]]
    monkeypatch.setattr(leaks, "_BLOCK_ROWS", block)
    found = near_duplicates(two_splits(train, [[0, -1], [2, 0]]), 0.9, limit=3)
    assert [(pair.first.row_id, pair.second.row_id) for pair in found.pairs] == [(0, 1), (1, 1), (2, 1)]
    assert (found.pairs[0].cosine, found.count) == (1.0, 4)
    assert found.pairs[0].first.path == "train/0.png"


@pytest.mark.parametrize("width", [3, 1280])
def test_equal_tokens_have_cosine_1_also_where_they_are_large_and_zeros_are_like_nothing(two_splits, width):
    tokens = np.random.default_rng(0).uniform(-60_000, 60_000, (64, width))
    train = np.concatenate([tokens, np.zeros((1, width)), -tokens])
    found = near_duplicates(two_splits(train, train[:65]), 1.0, limit=99)
    assert {(pair.first.row_id, pair.second.row_id) for pair in found.pairs} == {(i, i) for i in range(64)}
    assert all(1 - 1e-6 < pair.cosine <= 1 for pair in found.pairs)


@pytest.mark.parametrize("cosine", [0, -0.5, 1.01, float("nan")])
def test_a_cosine_that_is_none_is_refused(maker, cosine):
    maker.extract(range(3))
    with pytest.raises(SettingError, match=r"--near is a cosine above 0 and at most 1, such as 0\.98; got"):
        near_duplicates(maker.open(), cosine, limit=9)


def test_memory_stays_that_of_the_blocks_even_where_every_pair_is_alike(two_splits, monkeypatch):
    monkeypatch.setattr(leaks, "_BLOCK_ROWS", 64)
    store = two_splits(np.ones((2000, 4)), np.ones((1500, 4)))
    tracemalloc.start()
    found = near_duplicates(store, 0.99, limit=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.count, len(found.pairs)) == (3_000_000, 10)
    assert peak < 4e6  # all pairs as an fp32 matrix would be 12 MB


def test_a_damaged_table_is_told_and_not_counted(store):
    chunk = next((store.path / "test" / "sha256" / "c").rglob("0"))
    file = chunk if chunk.is_file() else next(path for path in chunk.rglob("*") if path.is_file())
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(StoreError, match="sha256"):
        count_duplicates(open_store(store.path))
