import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from cspipe.store import open_store
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, StoreError, UnknownNameError
from cspipe.store.verify import verify_store

IMAGES = list(range(100, 121))


def test_tokens_labels_paths_and_hashes_come_back_row_by_row(maker, tokens, table):
    maker.extract(IMAGES)
    split = maker.open()["train"]
    assert len(split) == 21 and split.flagged() == 0
    np.testing.assert_array_equal(split.embedding(), tokens(IMAGES).astype(np.float16))
    assert split.embedding().dtype == np.float16
    assert split.label().tolist() == [image % 3 for image in IMAGES]
    assert split.row_id().tolist() == list(range(21)) and split.row_id().dtype == np.int64
    assert split.path() == [f"a/{image}.png" for image in IMAGES]
    np.testing.assert_array_equal(split.sha256(), table(IMAGES).sha256)


def test_an_opened_store_tells_what_it_was_made_with(maker):
    maker.extract(IMAGES)
    maker.extract(IMAGES[:3], split="test")
    store = maker.open()
    assert (store.backbone, store.dataset, store.width, store.dtype) == ("lite0", "toy", 6, np.float16)
    assert store.class_names == ["a", "b", "c"] and store.splits == ["test", "train"]
    assert store.key.image_px == 8 and store.provenance["torch"] == "2"
    assert store.attributes["batch_size"] == 4 and store.attributes["chunk_rows"] == 8
    assert store.attributes["key_sha256"] == store.key.sha256()


def test_plain_zarr_reads_every_array_and_warns_of_nothing(maker, tokens):
    maker.extract(IMAGES, bad=[105])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(maker.path, mode="r")
        assert len(list(group.members(max_depth=None))) == 8
        values = group["train/embedding"][:]
        assert group["train/embedding"].chunks == (8, 6) and group["train/commit"].shape == (3, 3)
        assert group["train/commit"][:, :2].tolist() == [[0, 8], [8, 16], [16, 21]]
        assert group["train/path"][3] == "a/103.png" and group["train/present"][:].all()
    assert np.isnan(values[5]).all()
    np.testing.assert_array_equal(np.delete(values, 5, 0), np.delete(tokens(IMAGES), 5, 0))


def test_labels_that_equal_a_fill_value_or_are_all_zero_are_written_all_the_same(maker, table):
    maker.extract(IMAGES, table=table(IMAGES, label=[0] * 21))
    assert (maker.path / "train" / "label" / "c" / "0").is_file()
    assert (maker.open()["train"].label() == 0).all()


def test_a_table_chunk_that_equals_its_fill_value_is_written_all_the_same(maker):
    maker.extract(IMAGES)
    maker.extract([])
    assert not zarr.open(maker.path)["train/present"][:].any()
    assert (maker.path / "train" / "present" / "c" / "0").is_file()
    assert len(maker.open()["train"]) == 0 and verify_store(maker.path) == []


def test_bad_images_are_left_out_unless_all_rows_are_asked_for(maker, tokens):
    maker.extract(IMAGES, bad=[100, 108, 109, 120])
    split = maker.open()["train"]
    good = [image for image in IMAGES if image not in (100, 108, 109, 120)]
    assert len(split) == 17 and split.flagged() == 4
    np.testing.assert_array_equal(split.embedding(), tokens(good))
    assert split.path() == [f"a/{image}.png" for image in good]
    assert split.row_id().tolist() == [image - 100 for image in good]
    everything = split.embedding(all_rows=True)
    assert np.flatnonzero(np.isnan(everything).all(axis=1)).tolist() == [0, 8, 9, 20]
    assert len(split.label(all_rows=True)) == 21
    noted = split.attributes["bad_images"]
    assert noted[1] == {"row": 8, "path": "a/108.png", "reason": "not an image"} and len(noted) == 4


def test_a_token_that_does_not_fit_the_stored_type_is_flagged_with_the_reason(maker, table, tokens):
    with maker.writer() as writer:
        (task,) = writer.plan("train", table(IMAGES[:3]), whole=True)
        values = tokens(IMAGES[:3])
        values[1, 4] = 1e9
        writer.commit("train", task, values)
        writer.finish("train")
    split = maker.open()["train"]
    assert split.row_id().tolist() == [0, 2]
    assert split.attributes["bad_images"][0]["reason"] == "the token is not finite in float16"


def test_tokens_are_read_into_the_callers_array_whatever_its_layout(maker, tokens):
    maker.extract(IMAGES, bad=[103])
    split = maker.open()["train"]
    expected = np.delete(tokens(IMAGES), 3, 0)
    plain = np.zeros((20, 6), np.float16)
    assert split.embedding(plain) is plain
    np.testing.assert_array_equal(plain, expected)
    strided = np.zeros((20, 12), np.float16)
    split.embedding(strided[:, ::2])
    np.testing.assert_array_equal(strided[:, ::2], expected)
    assert (strided[:, 1::2] == 0).all()


@pytest.mark.parametrize(
    "make", [lambda: np.zeros((21, 5), "f2"), lambda: np.zeros((20, 6), "f2"), lambda: np.zeros((21, 6), "f4")]
)
def test_an_array_of_another_shape_or_type_is_refused_with_the_one_that_would_do(maker, make):
    maker.extract(IMAGES)
    with pytest.raises(SettingError, match=r"out is a writable \(21, 6\) array of float16 here; got"):
        maker.open()["train"].embedding(make())


def test_a_read_only_array_is_refused(maker):
    maker.extract(IMAGES)
    out = np.zeros((21, 6), np.float16)
    out.flags.writeable = False
    with pytest.raises(SettingError, match="writable"):
        maker.open()["train"].embedding(out)


@pytest.mark.parametrize("all_rows", [False, True])
def test_the_dask_view_agrees_with_the_array_and_has_a_block_a_chunk(maker, all_rows):
    maker.extract(IMAGES, bad=[103, *range(108, 116)])
    split = maker.open()["train"]
    view = split.dask(all_rows=all_rows)
    assert view.dtype == np.float16
    assert view.numblocks == ((3, 1) if all_rows else (2, 1))  # the second chunk has bad images only
    np.testing.assert_array_equal(view.compute(scheduler="sync"), split.embedding(all_rows=all_rows))


def test_an_empty_split_is_complete_and_reads_as_no_rows(maker):
    maker.extract([])
    split = maker.open()["train"]
    assert split.embedding().shape == split.dask().shape == (0, 6) and len(split.label()) == 0
    assert verify_store(maker.path) == []


def test_duplicate_images_keep_a_row_each(maker, tokens, table):
    images = [7, 8, 7, 7, 9]
    maker.extract(images, table=table(images, label=[0, 1, 2, -1, 0]))
    split = maker.open()["train"]
    assert split.label().tolist() == [0, 1, 2, -1, 0] and len(split) == 5
    assert maker.extract(images, table=table(images, label=[0, 1, 2, -1, 0])) == []


def test_paths_beyond_unicode_and_ascii_are_kept_readable(maker, table):
    shown = table([1, 2])
    shown.path[:] = ["ä/日本.png", "b/\udcff.png"]
    maker.extract([1, 2], table=shown)
    assert maker.open()["train"].path() == ["ä/日本.png", "b/\\udcff.png"]


def test_chunks_may_be_committed_from_several_threads_in_any_order(maker, table, tokens, files):
    images = list(range(64))
    maker.extract(images, bad=[3, 20, 60])
    expected = files(maker.path)
    maker.path.rename(maker.stores / "first.zarr")
    with maker.writer() as writer:
        tasks = writer.plan("train", table(images), whole=True)
        gate = threading.Barrier(4)

        def commit(share):
            gate.wait()
            for task in share:
                bad = [(o, "not an image") for o, i in enumerate(task.images) if i in (3, 20, 60)]
                writer.commit("train", task, tokens(task.images), bad)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(commit, [tasks[i::4][::-1] for i in range(4)]))
        writer.finish("train")
    assert files(maker.path) == expected


def test_a_second_writer_is_refused_at_once_even_from_another_process(maker):
    with maker.writer():
        with pytest.raises(StoreError, match=r"is being written by another writer \(process"):
            maker.writer()
        code = (
            "import sys; from pathlib import Path; from cspipe.store.lock import StoreLock\n"
            "try: StoreLock(Path(sys.argv[1]))\nexcept OSError as error: print(error)"
        )
        told = subprocess.run([sys.executable, "-c", code, str(maker.path)], capture_output=True, text=True)
        assert "is being written by another writer" in told.stdout
    maker.writer().close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 7}, "width 6, this run has 7"),
        ({"backbone": "dinov2-s"}, "backbone 'lite0', this run has 'dinov2-s'"),
    ],
)
def test_a_store_of_another_width_or_backbone_is_refused_and_left_as_it_was(maker, files, change, words):
    maker.extract(IMAGES)
    before = files(maker.path)
    with pytest.raises(MismatchError, match=words):
        maker.writer(**change)
    assert files(maker.path) == before


def test_the_first_batch_size_wins_and_must_be_a_power_of_two(maker):
    with pytest.raises(SettingError, match="batch size 48: give"):
        maker.writer(batch_size=48)
    assert not maker.path.exists()
    with maker.writer(batch_size=4096) as writer:
        assert writer.batch_size == 8
    with maker.writer(batch_size=2) as writer:
        assert writer.batch_size == 8


def test_a_store_refuses_tokens_of_another_width_and_says_what_to_do(maker, table, tokens):
    with maker.writer() as writer:
        task = writer.plan("train", table(IMAGES), whole=True)[0]
        with pytest.raises(SettingError, match=r"shape \(8, 6\) for rows 0 to 8; got \(8, 7\)"):
            writer.commit("train", task, tokens(IMAGES[:8], width=7))
        with pytest.raises(SettingError, match="offset is within the task's 8 rows; got 8"):
            writer.commit("train", task, tokens(IMAGES[:8]), [(8, "bad")])
        writer.commit("train", task, tokens(IMAGES[:8]))
        with pytest.raises(SettingError, match="committed already"):
            writer.commit("train", task, tokens(IMAGES[:8]))
        with pytest.raises(StoreError, match="train has 1 of 3 chunks"):
            writer.finish("train")


def test_an_unfinished_split_says_how_far_it_is_and_an_unknown_one_what_is_known(maker, table, tokens):
    with maker.writer() as writer:
        task = writer.plan("train", table(IMAGES), whole=True)[1]
        writer.commit("train", task, tokens(IMAGES[8:16]))
    store = maker.open()
    with pytest.raises(StoreError, match=r"not finished \(1 of 3 chunks\); run the same cspipe extract again"):
        store["train"]
    with pytest.raises(UnknownNameError, match="unknown split 'trian': did you mean 'train'"):
        store["trian"]
    with pytest.raises(MissingDataError, match="is not a store"):
        open_store(maker.stores)


def test_attributes_that_are_no_plain_json_are_refused_before_anything_is_created(maker):
    for wrong in (float("nan"), maker.path):
        with pytest.raises(SettingError, match="plain JSON"):
            maker.writer(provenance={"class_names": [], "x": wrong})
    assert not maker.path.exists()


def test_reading_a_store_loads_no_torch():
    code = "import sys, cspipe.store, cspipe.store.writer, cspipe.store.verify; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
