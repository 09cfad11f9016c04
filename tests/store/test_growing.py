import numpy as np
import pytest

from cspipe.store.errors import MismatchError, StoreError
from cspipe.store.verify import verify_store


def test_new_images_are_appended_and_the_last_partial_chunk_is_extended(maker, tokens):
    maker.extract(range(13), bad=[9])
    tasks = maker.extract(range(21))
    assert [(task.first_row, task.end_row) for task in tasks] == [(13, 16), (16, 21)]
    assert tasks[0].images.tolist() == [13, 14, 15]
    split = maker.open()["train"]
    np.testing.assert_array_equal(split.embedding(), tokens([i for i in range(21) if i != 9]))
    assert split.row_id().tolist() == [i for i in range(21) if i != 9]
    assert verify_store(maker.path) == []


def test_a_plan_with_nothing_to_do_leaves_the_store_byte_for_byte(maker, files):
    maker.extract(range(21), bad=[2])
    before = files(maker.path)
    assert maker.extract(range(21), provenance={"class_names": ["a", "b", "c"], "torch": "3"}) == []
    assert maker.extract(range(20, -1, -1)) == []
    assert files(maker.path) == before


def test_a_limited_run_on_a_complete_store_changes_nothing(maker, files):
    maker.extract(range(21))
    before = files(maker.path)
    assert maker.extract([3, 9, 17], whole=False) == []
    assert files(maker.path) == before


def test_a_whole_run_reuses_the_rows_of_a_limited_one(maker, tokens):
    maker.extract([3, 9, 17], whole=False)
    computed = [i for task in maker.extract(range(21)) for i in task.images]
    assert sorted(computed) == [i for i in range(21) if i not in (3, 9, 17)]
    order = [3, 9, 17, *(i for i in range(21) if i not in (3, 9, 17))]
    split = maker.open()["train"]
    np.testing.assert_array_equal(split.embedding(), tokens(order))
    assert split.path() == [f"a/{i}.png" for i in order]


def test_images_that_are_gone_are_left_out_and_come_back_with_their_row(maker, tokens):
    maker.extract(range(21))
    kept = [i for i in range(21) if i not in (0, 10)]
    assert maker.extract(kept) == []
    split = maker.open()["train"]
    assert split.flagged() == 2 and split.row_id().tolist() == kept
    np.testing.assert_array_equal(split.embedding(), tokens(kept))
    np.testing.assert_array_equal(split.embedding(all_rows=True), tokens(range(21)))
    with maker.writer() as writer:
        assert writer.removed("train") == 2
    assert maker.extract(range(21)) == []
    assert len(maker.open()["train"]) == 21


def test_a_limited_run_does_not_take_the_other_images_for_gone(maker):
    maker.extract(range(21))
    maker.extract([1, 2, 30], whole=False)
    assert len(maker.open()["train"]) == 22


def test_the_fingerprint_of_the_images_depends_on_them_and_their_labels_and_not_on_history(maker, table):
    maker.extract([3, 9, 17], whole=False)
    maker.extract(range(21))
    first = maker.open()["train"].attributes["dataset_fingerprint"]
    maker.path.rename(maker.stores / "first.zarr")
    maker.extract(range(21))
    assert maker.open()["train"].attributes["dataset_fingerprint"] == first
    maker.extract(range(21), table=table(list(range(21)), label=[0] * 21))
    assert maker.open()["train"].attributes["dataset_fingerprint"] != first


def test_labels_and_paths_follow_the_data_set_by_hash_into_another_folder(maker, table):
    maker.extract(range(10))
    moved = table(list(range(10)), label=[2] * 10, folder="b")
    assert maker.extract(range(10), table=moved, sources={"data": "/elsewhere", "weights": None}) == []
    store = maker.open()
    assert (store["train"].label() == 2).all() and store["train"].path()[0] == "b/0.png"
    assert store.attributes["sources"]["data"] == "/elsewhere"


def test_another_folder_of_the_same_name_is_refused_and_changes_nothing(maker, files):
    maker.extract(range(10))
    before = files(maker.path)
    with pytest.raises(MismatchError, match="holds 10 train images from /data/a, and none of them is in /b"):
        maker.extract(range(50, 60), sources={"data": "/b", "weights": None})
    assert files(maker.path) == before


def test_a_data_set_replaced_in_place_is_taken_as_it_is(maker):
    maker.extract(range(10))
    maker.extract(range(50, 60))
    split = maker.open()["train"]
    assert split.row_id().tolist() == list(range(10, 20)) and split.flagged() == 10


def test_new_classes_make_every_split_wait_for_its_labels(maker, table):
    maker.extract(range(10))
    maker.extract(range(4), split="test")
    more = {"class_names": ["0", "a", "b", "c"], "torch": "2"}
    shifted = table(list(range(10)), label=[i % 3 + 1 for i in range(10)])
    with pytest.raises(MismatchError, match="every label changes: run the same cspipe extract without --limit"):
        maker.extract([0, 1], whole=False, provenance=more)
    maker.extract(range(10), table=shifted, provenance=more)
    assert maker.open().class_names == ["0", "a", "b", "c"]
    assert maker.open()["train"].label()[:3].tolist() == [1, 2, 3]
    with pytest.raises(StoreError, match="not finished"):
        maker.open()["test"]
    maker.extract(range(4), split="test", table=table(list(range(4)), label=[1, 2, 3, 1]), provenance=more)
    assert maker.open()["test"].label().tolist() == [1, 2, 3, 1]
    assert maker.open().attributes["earlier_provenance"] == [{"class_names": ["a", "b", "c"], "torch": "2"}]


def test_tables_of_many_chunks_grow_and_are_checked(maker, monkeypatch, files):
    monkeypatch.setattr("cspipe.store.meta.TABLE_CHUNK_ROWS", 5)
    monkeypatch.setattr("cspipe.store.table.TABLE_CHUNK_ROWS", 5)
    monkeypatch.setattr("cspipe.store.verify.TABLE_CHUNK_ROWS", 5)
    maker.extract(range(13))
    maker.extract(range(23))
    assert verify_store(maker.path) == []
    folder = maker.path / "train" / "label" / "c"
    first, second = (folder / "0").read_bytes(), (folder / "1").read_bytes()
    (folder / "0").write_bytes(second)
    (folder / "1").write_bytes(first)
    assert [problem.where for problem in verify_store(maker.path)] == ["train/label"]
    with pytest.raises(StoreError, match="do not match the checksum"):
        maker.open()["train"].label()
