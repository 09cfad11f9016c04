"""Which unlabelled rows to label next."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.headtrain import HeadSettings, HeadTask, fit_heads
from cspipe.headtrain.evaluate import accuracy, interval
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.suggestion import SHORTLIST, margin, suggest
from cspipe.store.errors import SettingError
from cspipe.store.split import draw_labelled


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_margin_is_one_where_two_classes_are_as_likely_and_nothing_where_one_is_certain():
    assert margin(np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.7, 0.1]])).tolist() == pytest.approx([1, 0, 0.5])


def test_what_is_suggested_is_among_the_least_certain_and_no_two_are_alike():
    """Three far heaps of doubtful rows, one row each of which is wanted, in a sea of certain ones."""
    rng = np.random.default_rng(0)
    heaps = np.array([[40.0, 0], [0, 40.0], [40.0, 40.0]])
    token = np.concatenate([rng.normal(size=(900, 2)), np.repeat(heaps, 10, axis=0) + rng.normal(size=(30, 2))])
    logits = np.zeros((930, 3))
    logits[:900, 0] = 9
    logits[900:] = rng.normal(scale=0.1, size=(30, 3))
    picked = suggest(softmax(logits), token.astype(np.float32), 3)
    assert len(set(picked.tolist())) == 3 and (picked >= 900).all()
    assert sorted((picked - 900) // 10) == [0, 1, 2]


def test_equal_rows_still_give_as_many_suggestions_as_were_asked_for():
    picked = suggest(np.full((60, 2), 0.5), np.zeros((60, 4), np.float32), 5)
    assert len(set(picked.tolist())) == 5


def test_suggestions_are_the_same_each_time_and_never_beyond_the_shortlist():
    rng = np.random.default_rng(1)
    probability, token = softmax(rng.normal(size=(500, 4))), rng.normal(size=(500, 8)).astype(np.float32)
    first, second = suggest(probability, token, 7), suggest(probability, token, 7)
    assert first.tolist() == second.tolist()
    assert set(first.tolist()) <= set(np.argsort(-margin(probability))[: 7 * SHORTLIST].tolist())


def test_more_than_there_are_is_refused():
    with pytest.raises(SettingError, match="9 rows were asked for and 8 have no label"):
        suggest(np.full((8, 2), 0.5), np.zeros((8, 2), np.float32), 9)


@pytest.fixture(scope="module")
def digits_of_mnist(tmp_path_factory):
    """Tokens and labels of 3,000 MNIST training images under real weights; the last 600 are dev rows."""
    if "CSPIPE_TEST_DATA" not in os.environ:
        pytest.skip("CSPIPE_TEST_DATA names no folder with data/mnist")
    from cspipe.extract.run import extract

    told = extract("lite0", "mnist", stores=tmp_path_factory.mktemp("mnist"), split="train", limit=3000,
                   data_dir=Path(os.environ["CSPIPE_TEST_DATA"]) / "data" / "mnist")  # fmt: skip
    return read_rows(Path(told["store"]), dev_rows=600)


@pytest.mark.slow
def test_suggested_labels_teach_more_than_as_many_random_ones(digits_of_mnist):
    """30 labels and 20 more, 15 splits, paired."""
    rows, settings = digits_of_mnist, HeadSettings(components=128, hidden=128, steps=400, batch=128, labelled_batch=64)
    every, label_N = np.arange(len(rows.label_N)), torch.from_numpy(rows.label_N)

    def fit(labelled):
        tasks = [HeadTask(np.sort(known), every) for known in labelled]
        return fit_heads(rows.token_ND, label_N, tasks, settings, classes=10).heads

    splits = [draw_labelled(rows.label_N, every, 30, seed) for seed in range(15)]
    chosen, drawn = [], []
    for seed, (known, head) in enumerate(zip(splits, fit(splits), strict=True)):
        free = np.setdiff1d(every, known)
        tokens = rows.token_ND[torch.from_numpy(free)]
        picked = suggest(head.probabilities(tokens).numpy(), head.projection.rows(tokens).numpy(), 20)
        chosen.append(np.concatenate([known, free[picked]]))
        drawn.append(np.concatenate([known, np.random.default_rng(seed).permutation(free)[:20]]))
    ours, theirs = (
        [accuracy(head.predict(rows.eval_token_MD), rows.eval_label_M) for head in fit(sets)]
        for sets in (chosen, drawn)
    )
    gain = np.subtract(ours, theirs)
    told = interval(gain.tolist())
    print(f"gain {gain.mean():+.4f}, 95 % interval {told}")
    assert told is not None and told[0] > 0, f"{gain.mean():+.4f}, 95 % interval {told}"
