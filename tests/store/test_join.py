"""Tokens of several backbones side by side: which rows, how they are scaled, what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from cspipe.extract.recompute import repair
from cspipe.extract.recorded import recorded_backbone
from cspipe.store import open_store
from cspipe.store.errors import CspipeError, MismatchError, SettingError, StoreError
from cspipe.store.join import join_stores, scale_of
from cspipe.store.verify import verify_store
from cspipe.store.views import view_name

IMAGES, OTHERS = list(range(40)), list(range(47, 7, -1))
BOTH = list(range(8, 40))


@pytest.fixture
def two(maker, tmp_path):
    """Stores of two backbones; the second lacks some images, holds others, and has them in another order."""
    other = replace(maker, stores=tmp_path / "other")
    maker.extract(IMAGES)
    maker.extract(range(50, 60), split="test")
    other.extract(OTHERS, backbone="vit")
    other.extract(range(50, 60), split="test", backbone="vit")
    return maker, other


def join(makers, tmp_path):
    return join_stores([made.path for made in makers], stores=tmp_path / "joined")


def test_rows_are_the_images_that_all_hold_and_tokens_lie_side_by_side(two, tmp_path):
    told = join(two, tmp_path)
    store = open_store(told["store"])
    assert told["splits"]["train"] == {"rows": 32, "written": 32, "left_out": 8}
    assert (store.backbone, store.dataset, store.width, store.class_names) == ("lite0+vit", "toy", 12, ["a", "b", "c"])
    train = store["train"]
    assert train.path() == [f"a/{image}.png" for image in BOTH] and train.label().tolist() == [i % 3 for i in BOTH]
    scales = [part["scale"] for part in store.provenance["joined"]]
    token_ND = two[0].open()["train"].embedding()[BOTH].astype(np.float32)
    known = np.concatenate([token_ND / scale for scale in scales], axis=1)
    np.testing.assert_allclose(train.embedding(), known, rtol=1e-3)
    assert verify_store(store.path) == []


@pytest.mark.parametrize(("width", "deviation", "mean"), [(6, 1e-2, 0.0), (6, 3.0, 50.0), (60, 20.0, -5.0)])
def test_every_backbone_is_given_the_same_total_deviation(make_split, width, deviation, mean):
    token_ND = np.random.default_rng(0).normal(mean, deviation, (500, width)).astype(np.float32)
    total = np.sqrt((token_ND / scale_of(make_split(token_ND))).var(0).sum())
    assert total == pytest.approx(32, rel=0.08)


def test_tokens_that_do_not_vary_are_left_as_they_are(make_split):
    assert scale_of(make_split(np.full((20, 4), 7, np.float32))) == 1


@pytest.fixture
def make_split(maker):
    """A function tokens -> a split that holds them."""

    def make(token_ND):
        with maker.writer(width=token_ND.shape[1]) as writer:
            for task in writer.plan("train", maker.table(range(len(token_ND))), whole=True):
                writer.commit("train", task, token_ND[task.images])
            writer.finish("train")
        return maker.open()["train"]

    return make


def test_joining_again_writes_nothing_and_grown_stores_add_their_new_rows(two, tmp_path, files):
    first = join(two, tmp_path)
    before = files(tmp_path / "joined")
    assert join(two, tmp_path)["splits"]["train"]["written"] == 0 and files(tmp_path / "joined") == before
    two[0].extract([*IMAGES, 41])
    grown = join(two, tmp_path)
    assert grown["store"] == first["store"] and grown["splits"]["train"]["rows"] == 33
    assert open_store(grown["store"])["train"].path()[-1] == "a/41.png"


def test_views_are_joined_where_all_hold_them_for_every_row(two, tmp_path):
    both, one, short = (view_name("train", "affine", number) for number in (1, 2, 3))
    for name, images in ((both, IMAGES), (one, IMAGES), (short, IMAGES)):
        two[0].extract(images, split=name)
    two[1].extract(OTHERS, split=both, backbone="vit")
    two[1].extract(OTHERS[:20], split=short, backbone="vit")
    told = join(two, tmp_path)
    store = open_store(told["store"])
    assert told["views"] == [both] == store.views("train") and store.splits == ["test", "train"]
    assert np.array_equal(store.view_embedding("train", both), store["train"].embedding())


def spoil_class_names(one, other):
    other.extract(OTHERS, backbone="vit", provenance={"class_names": ["x", "y"]})


def spoil_labels(one, other):
    other.extract(OTHERS, backbone="vit", table=other.table(OTHERS, [0] * len(OTHERS)))


def leave_unfinished(one, other):
    with other.writer(backbone="vit") as writer:
        writer.plan("train", other.table(OTHERS), whole=True)


@pytest.mark.parametrize(("write", "error", "says"), [
    (lambda one, other: None, CspipeError, "not a store"),
    (spoil_class_names, MismatchError, "join stores of one data set"),
    (lambda one, other: other.extract(OTHERS, backbone="vit", dataset="toys"), MismatchError, "one data set"),
    (lambda one, other: other.extract(OTHERS, backbone="vit", split="test"), MismatchError, "extract what is missing"),
    (lambda one, other: other.extract(range(100, 120), backbone="vit"), MismatchError, "no image of the split train"),
    (spoil_labels, MismatchError, "labels of"),
    (leave_unfinished, StoreError, "not finished"),
])  # fmt: skip
def test_stores_that_do_not_belong_together_are_refused_and_nothing_is_made(maker, tmp_path, write, error, says):
    other = replace(maker, stores=tmp_path / "other")
    maker.extract(IMAGES)
    write(maker, other)
    with pytest.raises(error, match=says):
        join((maker, other), tmp_path)
    assert not (tmp_path / "joined").exists()


def test_one_store_alone_or_twice_is_refused(maker, tmp_path):
    maker.extract(IMAGES)
    for makers in ([maker], [maker, maker]):
        with pytest.raises(SettingError, match="two or more different stores"):
            join(makers, tmp_path)


def test_no_backbone_is_looked_for_behind_joined_tokens(two, tmp_path):
    store = open_store(join(two, tmp_path)["store"])
    with pytest.raises(MismatchError, match="lite0 and vit side by side"):
        recorded_backbone(store, weights=None, device="cpu")


def test_a_damaged_chunk_is_taken_out_and_joined_anew(two, tmp_path):
    told = join(two, tmp_path)
    path = open_store(told["store"]).path
    chunk = path / "train/embedding/c/1/0"
    good = chunk.read_bytes()
    chunk.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    mended = repair(path)["mended"]
    assert [entry["how"] for entry in mended] == ["taken out: join the same stores again"]
    assert join(two, tmp_path)["splits"]["train"]["written"] == 8
    assert chunk.read_bytes() == good and verify_store(path) == []
