"""Cached views through the whole of stage one: the same tokens however, whenever and wherever they are computed."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.cli import main
from cspipe.extract.augment import draw_view
from cspipe.extract.backbones import load_backbone
from cspipe.extract.datasets import load_dataset
from cspipe.extract.hashing import image_sha256
from cspipe.extract.images import decode, normalise, to_uint8
from cspipe.extract.run import evenly_spaced, extract
from cspipe.store.errors import SettingError, UnknownNameError
from cspipe.store.reader import open_store
from cspipe.store.verify import verify_store

VIEWS = ["train-affine-1", "train-affine-2"]


pytestmark = pytest.mark.usefixtures("small_chunks")


def files_of(store, name):
    """Every file of a split below its description."""
    folder = Path(store) / name
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("*/**/*")) if path.is_file()}


def by_image(store, name):
    """Token of each image of a split, by its hash."""
    split = open_store(store)[name]
    return {sha.tobytes(): token.tobytes() for sha, token in zip(split.sha256(), split.embedding(), strict=True)}


def test_views_of_training_images_are_splits_beside_the_data_sets_own(run):
    document = run(limit=40, views=2)
    json.dumps(document, allow_nan=False)
    part = {"rows": 40, "computed": 40, "reused": 0, "flagged": 0, "removed": 0}
    assert document["splits"] == {"train": part, **dict.fromkeys(VIEWS, part), "test": part}
    assert (document["views"], document["augment"]) == (2, "affine")
    store = open_store(document["store"])
    assert (store.splits, store.views("train"), store.views("test")) == (["test", "train"], VIEWS, [])
    facts = store.split_attributes(VIEWS[1])["facts"]
    assert (facts["augment"], facts["view"]) == ("affine", 2)
    assert "15 degrees" in facts["augment_words"]
    assert verify_store(store.path) == []


def test_without_views_nothing_is_added(run):
    document = run(limit=10)
    assert (document["views"], document["augment"]) == (0, None)
    assert open_store(document["store"]).names == ["test", "train"]


def test_a_views_tokens_are_the_librarys_own_forward_on_the_drawn_pixels(run, tiny, tiny_weights):
    store = open_store(run(limit=30, views=2, augment="affine+flips", dtype="fp32")["store"])
    backbone, split = load_backbone(tiny, weights=tiny_weights), load_dataset("digits").splits["train"]
    sources = [split.load(int(i)) for i in evenly_spaced(len(split), 30)]
    for k, name in enumerate(["train-affine_flips-1", "train-affine_flips-2"]):
        drawn = [
            draw_view("affine+flips", to_uint8(decode(source), backbone.geometry), image_sha256(source), k)
            for source in sources
        ]
        with torch.inference_mode():
            plain = backbone.model(normalise(torch.from_numpy(np.stack(drawn)), backbone.mean, backbone.std))
        np.testing.assert_allclose(store.view_embedding("train", name), plain.numpy(), rtol=1e-4, atol=1e-4)


def test_a_view_is_the_same_made_alone_or_with_others_now_or_later(run):
    few = run(limit=100, views=1, stores="few")["store"]
    more = run(limit=100, views=3, stores="few")
    computed = {name: part["computed"] for name, part in more["splits"].items()}
    assert computed == {"train": 0, "train-affine-1": 0, "train-affine-2": 100, "train-affine-3": 100, "test": 0}
    bare = run(limit=100, stores="bare")["store"]
    clean = files_of(bare, "train")
    assert run(limit=100, views=2, stores="bare")["splits"]["train"]["computed"] == 0
    together = run(limit=100, views=3, stores="together")["store"]
    for name in ("train", *VIEWS):
        assert files_of(together, name) == files_of(few, name) == files_of(bare, name)
    assert files_of(together, "train") == clean
    tokens = [by_image(together, name) for name in ("train", *VIEWS, "train-affine-3")]
    assert all(len(set(rows)) == 4 for rows in zip(*(each.values() for each in tokens), strict=True))


def test_a_views_tokens_do_not_depend_on_the_number_of_workers(run, monkeypatch):
    made = []
    for workers in (1, 4):
        monkeypatch.setattr("cspipe.extract.run.worker_count", lambda lane, workers=workers: workers)
        made.append(run(limit=200, split="train", views=2, stores=str(workers))["store"])
    for name in ("train", *VIEWS):
        assert files_of(made[0], name) == files_of(made[1], name)


@pytest.mark.parametrize("backbone", ["tiny", "lite0"])
def test_a_limited_run_and_a_whole_one_give_a_view_the_same_bits_and_its_splits_order(
    run, backbone, tmp_path, monkeypatch
):
    def make(stores, **options):
        if backbone == "tiny":
            return run(split="train", views=1, stores=stores, **options)["store"]
        return extract("lite0", "digits", stores=tmp_path / stores, image_px=32, views=1, split="train", **options)[
            "store"
        ]

    digits = load_dataset("digits")
    part = digits.splits["train"]
    few = replace(part, labels=part.labels[:150], paths=part.paths[:150])
    monkeypatch.setattr("cspipe.extract.run.load_dataset", lambda *_, **__: replace(digits, splits={"train": few}))
    whole = make("whole")
    make("limited", limit=37)
    limited = make("limited")
    assert by_image(whole, "train") == by_image(limited, "train")
    assert by_image(whole, VIEWS[0]) == by_image(limited, VIEWS[0])
    store = open_store(limited)
    assert store["train"].path() != open_store(whole)["train"].path()
    expected = by_image(whole, VIEWS[0])
    aligned = store.view_embedding("train", VIEWS[0])
    assert [token.tobytes() for token in aligned] == [expected[sha.tobytes()] for sha in store["train"].sha256()]


def test_views_made_after_a_limited_and_a_whole_run_are_in_the_order_of_their_split(run):
    run(limit=30, split="train")
    run(split="train")
    store = open_store(run(split="train", views=1)["store"])
    assert not np.array_equal(store[VIEWS[0]].sha256(), store["train"].sha256())
    held = by_image(store.path, VIEWS[0])
    aligned = store.view_embedding("train", VIEWS[0])
    assert [token.tobytes() for token in aligned] == [held[sha.tobytes()] for sha in store["train"].sha256()]


@pytest.fixture
def work_done(monkeypatch):
    """How often each thing happened: images decoded, forward passes, chunks stored by split."""
    counts = Counter()

    def counted(place, name):
        function = getattr(sys.modules[place], name)

        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(f"{place}.{name}", call)

    counted("cspipe.extract.hashing", "decode")
    counted("cspipe.extract.parallel", "embed")
    return counts


def test_a_split_and_its_views_are_decoded_once(run, work_done, monkeypatch):
    loads = Counter()

    def counting(*args, **kwargs):
        data = load_dataset(*args, **kwargs)
        split = data.splits["train"]

        def load(image):
            loads[image] += 1
            return split.load(image)

        return replace(data, splits={"train": replace(split, load=load)})

    monkeypatch.setattr("cspipe.extract.run.load_dataset", counting)
    run(limit=80, views=3)
    assert work_done == {"decode": 80, "embed": 4 * 5}
    assert len(loads) == 80 and set(loads.values()) == {2}  # once to hash it, once to decode it
    run(limit=80, views=4)
    assert work_done == {"decode": 160, "embed": 5 * 5}


def test_progress_counts_every_image_and_every_view_once(run):
    class Bar:
        def __init__(self):
            self.total, self.done = {}, 0

        def add_task(self, description, *, total):
            self.total[description.split(" ", 1)[1]] = total
            return 0

        def update(self, task_id, *, advance):
            self.done += advance

    bar = Bar()
    run(limit=90, views=2, progress=bar)
    assert bar.total == {"train and 2 views": 270, "test": 90}
    assert bar.done == 360


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"views": -1}, SettingError, "--views"),
        ({"augment": "affin"}, UnknownNameError, "did you mean 'affine'"),
        ({"views": 1, "augment": "affine+afine"}, UnknownNameError, "did you mean 'affine'"),
    ],
)
def test_views_that_cannot_be_made_are_refused_before_any_work(run, tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        run(**options)
    assert not (tmp_path / "stores").exists()


def test_the_command_line_makes_and_shows_views(tmp_path, capsys):
    places = ["--stores", str(tmp_path), "--quiet", "--json"]
    told = []
    for command in (
        ["extract", "lite0", "digits", "--image-px", "32", "--limit", "20", "--views", "2", "--augment", "flips"],
        ["store", "ls"],
        ["store", "info"],
        ["store", "verify"],
    ):
        with pytest.raises(SystemExit) as end:
            main([*command, *places])
        assert not end.value.code
        told.append(json.loads(capsys.readouterr().out))
    extracted, listed, about, verified = told
    assert set(extracted["splits"]) == {"train", "train-flips-1", "train-flips-2", "test"}
    assert (extracted["views"], extracted["augment"]) == (2, "flips")
    (line,) = listed["stores"]
    assert (line["rows"], line["views"]) == ({"test": 20, "train": 20}, {"test": 0, "train": 2})
    assert set(about["splits"]) == {"test", "train"}
    assert about["views"]["train-flips-2"]["facts"]["augment_words"].startswith("mirrored")
    assert verified["problems"] == []
    store = open_store(extracted["store"])
    assert store.view_embedding("train", "train-flips-2").shape == (20, 1280)
