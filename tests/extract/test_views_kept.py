"""Cached views are as durable as tokens: killed, flipped, added to, made otherwise, they are never mixed or lost."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from killed_stores import recorded
from PIL import Image

from cspipe.extract.images import BadImageError
from cspipe.store.errors import MismatchError, StoreError
from cspipe.store.reader import open_store
from cspipe.store.repair import repair_store
from cspipe.store.verify import verify_store
from cspipe.store.writer import StoreWriter

VIEWS = ["train-affine-1", "train-affine-2"]


pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def folder(tmp_path):
    """Twelve images, one of them cut short."""
    root = tmp_path / "pets"
    for number in range(12):
        path = root / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "dog/04.png").write_bytes((root / "dog/04.png").read_bytes()[:200])
    return root


def files_of(store, name):
    """Every file of a split below its description."""
    folder = Path(store) / name
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("*/**/*")) if path.is_file()}


SCRIPT = textwrap.dedent("""
    import os, signal, sys, threading
    from pathlib import Path
    import cspipe.store.opening
    cspipe.store.opening.chunk_rows = lambda width, itemsize: 64
    from cspipe.extract.backbones import BackboneSpec
    from cspipe.extract.run import extract
    from cspipe.store.writer import StoreWriter
    commit, lock, done = StoreWriter.commit, threading.Lock(), []
    def counted(self, split, task, *args):
        commit(self, split, task, *args)
        with lock:
            done.append((split, task.chunk))
            if len(done) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
    StoreWriter.commit = counted
    spec = BackboneSpec(name="tiny", family="timm", architecture="test_vit", image_px=32, token="cls",
                        licence="none", side_multiple=16, smallest_px=16, batch_size=16)
    extract(spec, "digits", stores=Path(sys.argv[2]), weights=Path(sys.argv[1]), limit=300, views=2)
""")


def test_a_killed_run_goes_on_where_it_stopped_and_ends_byte_identical(run, tiny_weights, tmp_path, monkeypatch):
    command = [sys.executable, "-c", SCRIPT, str(tiny_weights), str(tmp_path / "killed")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (store,) = (tmp_path / "killed").glob("*.zarr")
    before = recorded(store)
    assert 8 <= len(before) < 15 and {split for split, _ in before} == {"train", *VIEWS}
    commit, now = StoreWriter.commit, []

    def noted(self, split, task, *args):
        now.append((split, task.chunk))
        commit(self, split, task, *args)

    monkeypatch.setattr(StoreWriter, "commit", noted)
    assert run(limit=300, views=2, stores="killed")["store"] == str(store)
    assert not before & set(now)
    assert len(now) == len(set(now)) == 4 * 5 - len(before)
    whole = run(limit=300, views=2, stores="whole")["store"]
    assert all(files_of(store, name) == files_of(whole, name) for name in ("train", "test", *VIEWS))
    assert verify_store(store) == []


def test_a_bad_image_is_flagged_in_every_view_and_told_once(run, folder):
    document = run(folder, views=2)
    assert {name: part["flagged"] for name, part in document["splits"].items()} == dict.fromkeys(["train", *VIEWS], 1)
    assert [(entry["split"], entry["path"]) for entry in document["bad_images"]] == [("train", "dog/04.png")]
    store = open_store(document["store"])
    for name in VIEWS:
        assert store.split_attributes(name)["bad_images"] == store.split_attributes("train")["bad_images"]
        tokens = store.view_embedding("train", name)
        assert tokens.shape == (11, 64) and np.isfinite(tokens).all()
    assert verify_store(store.path) == []
    with pytest.raises(BadImageError, match=r"dog/04.png cannot be used: .*--strict"):
        run(folder, views=1, strict=True, stores="strict")


def test_images_added_without_views_are_an_error_until_their_views_are_made(run, folder):
    run(folder, views=2)
    Image.new("RGB", (9, 9), (90, 10, 60)).save(folder / "cat/99.png")
    store = open_store(run(folder)["store"])
    with pytest.raises(
        StoreError, match=r"1 of 12 rows of train .* cspipe extract tiny pets --views 2 --augment affine"
    ):
        store.view_embedding("train", VIEWS[0])
    document = run(folder, views=2)
    assert {name: part["computed"] for name, part in document["splits"].items()} == {
        "train": 0,
        **dict.fromkeys(VIEWS, 1),
    }
    assert open_store(store.path).view_embedding("train", VIEWS[0]).shape == (12, 64)


def test_a_flipped_bit_in_a_view_is_found_and_only_its_chunk_is_computed_again(run):
    store = Path(run(limit=150, views=2)["store"])
    before = {name: files_of(store, name) for name in ("train", *VIEWS)}
    path = store / VIEWS[1] / "embedding/c/1/0"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert [problem.where for problem in verify_store(store)] == [f"{VIEWS[1]}/embedding/c/1/0"]
    repair_store(store)
    document = run(limit=150, views=2)
    assert {name: part["computed"] for name, part in document["splits"].items() if part["computed"]} == {VIEWS[1]: 64}
    assert {name: files_of(store, name) for name in ("train", *VIEWS)} == before


def test_views_that_were_made_in_another_way_under_the_same_name_are_not_mixed(run, monkeypatch):
    store = run(limit=20, views=1)["store"]
    monkeypatch.setattr("cspipe.extract.wanted.words_of", lambda name: "turned by up to 90 degrees")
    with pytest.raises(
        MismatchError, match=r"train-affine-1 was made by affine as .* now 'turned by up to 90 degrees'"
    ):
        run(limit=40, views=2)
    assert open_store(store).names == ["test", "train", "train-affine-1"]
    assert run(limit=40, views=1, augment="flips")["augment"] == "flips"
