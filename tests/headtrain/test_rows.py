"""What a study looks at: training, evaluation and labelled rows of a store."""

import numpy as np
import pytest
import torch

from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.store import open_store
from cspipe.store.errors import SettingError


@pytest.fixture
def partly(make_store, blobs):
    """120 training rows of which every fourth has its label, no test split."""
    rows = blobs(120, 1)
    label = np.where(np.arange(120) % 4 == 0, rows.label, -1)
    return make_store({"train": type(rows)(rows.token, label)})


def test_rows_are_the_training_split_and_the_labelled_rows_of_the_test_split(make_store, blobs):
    train, test = blobs(60, 1), blobs(30, 2)
    test.label[::3] = -1
    rows = read_rows(make_store({"train": train, "test": test}, bad=(5, 11)))
    good = np.delete(np.arange(60), [5, 11])
    assert torch.equal(rows.token_ND, torch.from_numpy(train.token[good]))
    assert rows.label_N.tolist() == train.label[good].tolist()
    assert rows.row_id_N.tolist() == good.tolist()
    assert (rows.flagged, rows.evaluation, rows.classes) == (2, "test", 3)
    assert torch.equal(rows.eval_token_MD, torch.from_numpy(test.token[test.label >= 0]))
    assert rows.eval_label_M.tolist() == test.label[test.label >= 0].tolist()
    assert rows.class_names == ["red", "green", "blue"]


def test_test_rows_are_never_among_the_training_rows(store):
    rows = read_rows(store)
    seen = {row.tobytes() for row in rows.token_ND.numpy()}
    held = {row.tobytes() for row in open_store(store)["test"].embedding()}
    assert len(rows.token_ND) == 240
    assert not seen & held


def test_without_a_labelled_test_row_accuracy_is_cross_validated(make_store, blobs, partly):
    assert read_rows(partly).evaluation == "cross-validation"
    test = blobs(10, 2)
    test.label[:] = -1
    rows = read_rows(make_store({"train": blobs(30, 1), "test": test}))
    assert rows.evaluation == "cross-validation"
    assert rows.eval_token_MD is rows.eval_label_M is None


def test_dev_rows_are_the_last_training_rows_and_leave_labelled_and_unlabelled_sets(store):
    whole, rows = read_rows(store), read_rows(store, dev_rows=40)
    assert rows.evaluation == "dev"
    assert torch.equal(rows.token_ND, whole.token_ND[:200])
    assert torch.equal(rows.eval_token_MD, whole.token_ND[200:])
    assert rows.eval_label_M.tolist() == whole.label_N[200:].tolist()
    for labels in (30, "all"):
        for position in labelled_positions(rows, labels, 3, "balanced").values():
            assert position.max() < 200


def test_unlabelled_dev_rows_are_not_judged(make_store, blobs):
    train = blobs(90, 1)
    train.label[60::2] = -1
    rows = read_rows(make_store({"train": train}), dev_rows=30)
    assert rows.eval_label_M.tolist() == train.label[61::2].tolist()
    assert torch.equal(rows.eval_token_MD, torch.from_numpy(train.token[61::2]))


def test_dev_rows_that_miss_a_class_are_refused(store):
    with pytest.raises(SettingError, match="the last 2 training rows do not hold every class"):
        read_rows(store, dev_rows=2)


def test_a_store_without_training_split_or_labels_is_refused(make_store, blobs):
    rows = blobs(12, 1)
    with pytest.raises(SettingError, match="holds no split 'train': extract it with --split train or all"):
        read_rows(make_store({"test": rows}))
    rows.label[:] = -1
    with pytest.raises(SettingError, match="holds no labelled training row: put labelled images in class folders"):
        read_rows(make_store({"train": rows}))


def test_by_default_all_labels_are_used_where_there_are_unlabelled_rows(partly):
    rows = read_rows(partly)
    splits = labelled_positions(rows, None, 3, "balanced")
    assert list(splits) == [0, 1, 2]
    assert all(position.tolist() == list(range(0, 120, 4)) for position in splits.values())


def test_by_default_250_labels_are_drawn_where_all_rows_are_labelled(make_store, blobs, store):
    rows = read_rows(make_store({"train": blobs(300, 1), "test": blobs(30, 2)}))
    splits = labelled_positions(rows, None, 2, "balanced")
    assert {seed: len(position) for seed, position in splits.items()} == {0: 250, 1: 250}
    fewer = labelled_positions(read_rows(store), None, 2, "balanced")
    assert {seed: len(position) for seed, position in fewer.items()} == {0: 240}


def test_draws_are_balanced_sorted_and_differ_between_seeds_but_not_between_calls(store):
    rows = read_rows(store)
    splits = labelled_positions(rows, 31, 4, "balanced")
    for position in splits.values():
        assert sorted(np.bincount(rows.label_N[position]).tolist()) == [10, 10, 11]
        assert (np.diff(position) > 0).all()
    assert len({tuple(position) for position in splits.values()}) == 4
    again = labelled_positions(rows, 31, 2, "balanced")
    assert all(np.array_equal(again[seed], splits[seed]) for seed in again)


def test_positions_point_at_the_drawn_rows_where_row_numbers_have_gaps(make_store, blobs):
    train = blobs(60, 1)
    rows = read_rows(make_store({"train": train, "test": blobs(9, 2)}, bad=(0, 1, 20)))
    (position,) = labelled_positions(rows, 12, 1, "natural").values()
    assert np.array_equal(rows.label_N[position], train.label[rows.row_id_N[position]])
    assert np.array_equal(rows.token_ND[position].numpy(), train.token[rows.row_id_N[position]])


def test_all_labels_are_one_split_where_a_test_split_judges(store):
    rows = read_rows(store)
    for labels in ("all", 240):
        splits = labelled_positions(rows, labels, 5, "balanced")
        assert list(splits) == [0]
        assert splits[0].tolist() == list(range(240))


def test_labels_that_cannot_be_drawn_are_refused(store, partly, make_store, blobs):
    with pytest.raises(SettingError, match="241 labels were asked for and 240 rows have one"):
        labelled_positions(read_rows(store), 241, 1, "balanced")
    with pytest.raises(SettingError, match="31 labels were asked for and 30 rows have one"):
        labelled_positions(read_rows(partly), 31, 1, "balanced")
    train = blobs(60, 1)
    train.label[2::3] = 0
    train.label[2] = 2
    rows = read_rows(make_store({"train": train, "test": blobs(9, 2)}, dtype="fp16"))
    with pytest.raises(SettingError, match=r"class 2 has 1 labelled rows.*fewer labels, or use --draw natural"):
        labelled_positions(rows, 30, 1, "balanced")
    assert len(labelled_positions(rows, 30, 1, "natural")[0]) == 30


def test_cached_views_come_with_the_training_rows_in_their_order_as_many_as_are_asked_for(make_store, blobs):
    train, one, two = blobs(30, 1), blobs(30, 3), blobs(30, 4)
    splits = {"train": train, "train-affine-1": one, "train-affine-2": two, "test": blobs(9, 2)}
    path = make_store(splits, same_images=("train-affine-1", "train-affine-2"), bad=(4,))
    rows = read_rows(path, views=5)
    kept = np.arange(30) != 4
    assert [view.shape for view in rows.view_VND] == [(29, 24), (29, 24)]
    for view, expected in zip(rows.view_VND, (one, two), strict=True):
        np.testing.assert_array_equal(view.numpy(), expected.token[kept])
    assert len(read_rows(path, views=1).view_VND) == 1 and read_rows(path).view_VND == ()
    short = read_rows(path, dev_rows=9, views=1)
    assert len(short.view_VND[0]) == len(short.token_ND) == 20
