"""Views in a store: which split is one, which are finished, and their rows in the order of the split's."""

import numpy as np
import pytest

from cspipe.store.errors import SettingError, StoreError, UnknownNameError
from cspipe.store.meta import write_group
from cspipe.store.repair import repair_store
from cspipe.store.verify import verify_store
from cspipe.store.views import parse_view, view_name

IMAGES = list(range(30))
FIRST, SECOND = view_name("train", "affine", 1), view_name("train", "affine", 2)


@pytest.fixture
def viewed(store):
    """The finished extraction with two affine views of its training images."""
    for name in (FIRST, SECOND):
        store.extract(IMAGES, split=name, bad=[11])
    return store


def test_a_views_name_gives_back_whose_it_is_and_how_it_was_made():
    name = view_name("train", "affine+flips", 12)
    view = parse_view(name, ["train", name])
    assert (view.split, view.augment, view.number) == ("train", "affine+flips", 12)


@pytest.mark.parametrize("name", ["train", "train-affine", "train-affine-0", "train-affine-01", "other-affine-1"])
def test_a_split_of_another_name_is_no_view(name):
    assert parse_view(name, ["train", name]) is None


def test_views_are_not_among_the_splits_and_come_by_augmentation_and_number(viewed):
    for name in (view_name("train", "affine", 10), view_name("train", "affine+flips", 1), "train-flips-1"):
        viewed.extract(IMAGES[:3], split=name)
    store = viewed.open()
    assert store.splits == ["test", "train"]
    assert store.views("train") == [FIRST, SECOND, "train-affine-10", "train-affine_flips-1", "train-flips-1"]
    assert store.views("test") == []
    assert set(store.names) == {"test", "train", *store.views("train")}


def test_an_unfinished_view_is_not_listed_and_not_read_and_its_split_is(viewed):
    viewed.extract(IMAGES[:9], split="train-flips-1")
    attributes = viewed.open().split_attributes("train-flips-1")
    write_group(viewed.path / "train-flips-1", {**attributes, "complete": False})
    store = viewed.open()
    assert store.views("train") == [FIRST, SECOND]
    with pytest.raises(StoreError, match=r"train-flips-1: extraction is not finished"):
        store.view_embedding("train", "train-flips-1")
    assert len(store["train"]) == 29


def test_a_view_in_the_order_of_its_split_is_read_as_it_lies(viewed):
    store = viewed.open()
    out = np.zeros((29, store.width), store.dtype)
    assert store.view_embedding("train", SECOND, out) is out
    assert np.array_equal(out, store[SECOND].embedding())
    assert np.array_equal(out, store["train"].embedding())


def test_a_view_in_another_order_is_put_in_the_order_of_its_split(maker, tokens):
    maker.extract(IMAGES[::3], whole=False)
    maker.extract(IMAGES, bad=[11])
    maker.extract([*IMAGES[20:], *IMAGES[:20]], split=FIRST, bad=[11])
    store = maker.open()
    wanted = [*IMAGES[::3], *(image for image in IMAGES if image % 3 and image != 11)]
    assert store["train"].label().tolist() == [image % 3 for image in wanted]
    assert not np.array_equal(store[FIRST].embedding(), store["train"].embedding())
    assert np.array_equal(store.view_embedding("train", FIRST), tokens(wanted).astype(np.float16))
    out = np.zeros((29, 2 * store.width), store.dtype)[:, ::2]
    assert np.array_equal(store.view_embedding("train", FIRST, out), store["train"].embedding())
    assert np.array_equal(out, store["train"].embedding())


def test_equal_images_are_matched_one_to_one(maker, tokens):
    maker.extract([1, 2, 1, 3, 1])
    maker.extract([3, 1, 1, 2, 1], split=FIRST)
    assert np.array_equal(maker.open().view_embedding("train", FIRST), tokens([1, 2, 1, 3, 1]).astype(np.float16))
    maker.extract([1, 2, 1, 3, 1, 1])
    with pytest.raises(StoreError, match="1 of 6 rows of train are not in its view train-affine-1"):
        maker.open().view_embedding("train", FIRST)


def test_images_that_are_gone_from_the_split_are_left_out_of_its_view(viewed):
    viewed.extract(IMAGES[5:], bad=[11])
    store = viewed.open()
    assert len(store["train"]) == 24 and len(store[FIRST]) == 29
    assert np.array_equal(store.view_embedding("train", FIRST), store["train"].embedding())


@pytest.mark.parametrize("images", [range(34), range(30)])
def test_a_row_without_a_view_is_an_error_that_names_the_command(store, images):
    store.extract(IMAGES, split=FIRST, bad=[11, 7])
    store.extract(IMAGES[:4], split="train-affine-3")
    store.extract(images, bad=[11])
    missing = len(images) - 30 + 1
    told = (
        f"{missing} of {len(images) - 1} rows of train are not in its view train-affine-1: "
        "run cspipe extract lite0 toy --views 3 --augment affine with"
    )
    with pytest.raises(StoreError, match=told):
        store.open().view_embedding("train", FIRST)


def test_a_view_that_is_not_known_is_answered_with_the_nearest(viewed):
    with pytest.raises(UnknownNameError, match=r"unknown view of train 'train-afine-1': did you mean 'train-affine-1'"):
        viewed.open().view_embedding("train", "train-afine-1")
    with pytest.raises(UnknownNameError, match="unknown view of test"):
        viewed.open().view_embedding("test", FIRST)
    with pytest.raises(UnknownNameError, match="unknown split 'tran'"):
        viewed.open().view_embedding("tran", FIRST)


@pytest.mark.parametrize("order", [IMAGES, IMAGES[::-1]])
def test_an_array_of_another_shape_is_refused_whatever_the_order(store, order):
    store.extract(order, split=FIRST, bad=[11])
    with pytest.raises(SettingError, match=r"out is a writable \(29, 6\) array of float16"):
        store.open().view_embedding("train", FIRST, np.zeros((30, 6), np.float16))


def test_verify_finds_a_flipped_bit_in_a_view_and_repair_takes_out_that_chunk_alone(viewed, files):
    before = files(viewed.path)
    where = f"{SECOND}/embedding/c/2/0"
    data = bytearray((viewed.path / where).read_bytes())
    data[17] ^= 4
    (viewed.path / where).write_bytes(bytes(data))
    assert [problem.where for problem in verify_store(viewed.path)] == [where]
    with pytest.raises(StoreError, match="do not match their checksum"):
        viewed.open().view_embedding("train", SECOND)
    assert [problem.where for problem in repair_store(viewed.path)] == [SECOND]
    assert viewed.open().views("train") == [FIRST]
    assert [task.chunk for task in viewed.extract(IMAGES, split=SECOND, bad=[11])] == [2]
    assert files(viewed.path) == before
