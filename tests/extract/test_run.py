"""The whole of stage one into a real store: bad images, limits, interrupts, growing folders."""

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_stores import recorded
from PIL import Image

from cspipe.extract.backbones import load_backbone
from cspipe.extract.images import BadImageError, decode, normalise, to_uint8
from cspipe.extract.run import evenly_spaced, extract
from cspipe.store.errors import SettingError, UnknownNameError
from cspipe.store.layout import latest_store
from cspipe.store.reader import open_store
from cspipe.store.verify import verify_store
from cspipe.store.writer import StoreWriter


@pytest.fixture
def folder(tmp_path):
    """Thirty images of two classes, three of them bad: empty, cut short and a link to nowhere."""
    root = tmp_path / "pets"
    for number in range(30):
        path = root / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "cat/05.png").write_bytes(b"")
    (root / "dog/10.png").write_bytes((root / "dog/10.png").read_bytes()[:200])
    (root / "dog/12.png").unlink()
    (root / "dog/12.png").symlink_to(tmp_path / "nowhere.png")
    return root


BAD = ["cat/05.png", "dog/10.png", "dog/12.png"]


def test_the_document_is_json_and_the_store_is_whole_and_the_latest(run, tmp_path):
    document = run(limit=40)
    json.dumps(document, allow_nan=False)
    assert document["splits"] == {
        name: {"rows": 40, "computed": 40, "reused": 0, "flagged": 0, "removed": 0} for name in ("train", "test")
    }
    assert (document["width"], document["image_px"], document["token"], document["dtype"]) == (64, 32, "cls", "fp16")
    assert document["images_per_second"] > 0
    assert verify_store(document["store"]) == []
    assert latest_store(tmp_path / "stores") == Path(document["store"])


def test_rows_are_the_librarys_own_forward_on_the_same_images(run, tiny, tiny_weights):
    from cspipe.extract.datasets import load_dataset

    stored = open_store(run(limit=50, dtype="fp32")["store"])["test"]
    backbone, split = load_backbone(tiny, weights=tiny_weights), load_dataset("digits").splits["test"]
    images = evenly_spaced(len(split), 50)
    batch = np.stack([to_uint8(decode(split.load(int(i))), backbone.geometry) for i in images])
    with torch.inference_mode():
        plain = backbone.model(normalise(torch.from_numpy(batch), backbone.mean, backbone.std))
    np.testing.assert_allclose(stored.embedding(), plain.numpy(), rtol=1e-4, atol=1e-4)
    assert np.array_equal(stored.label(), split.labels[images])
    assert stored.path() == [split.paths[i] for i in images]


def test_provenance_says_how_the_tokens_came_about(run, tiny_weights):
    store = open_store(run(limit=4)["store"])
    about = store.provenance
    assert (about["backbone"], about["architecture"], about["licence"]) == ("tiny", "test_vit", "none")
    assert about["class_names"] == store.class_names == [str(digit) for digit in range(10)]
    assert about["images"] == {"train": 1437, "test": 360}
    assert about["versions"]["torch"] in torch.__version__
    assert store.attributes["sources"]["weights"] == str(tiny_weights)


def test_limit_takes_evenly_spaced_rows_and_the_whole_run_reuses_them(run):
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(3, 9).tolist() == [0, 1, 2]
    assert evenly_spaced(5, 1).tolist() == [0]
    some = run(limit=100)
    before = open_store(some["store"])["train"].embedding()
    whole = run()
    assert whole["splits"]["train"] == {"rows": 1437, "computed": 1337, "reused": 100, "flagged": 0, "removed": 0}
    assert np.array_equal(open_store(whole["store"])["train"].embedding()[:100], before)
    again = run()
    assert again["splits"]["train"]["computed"] == 0
    assert again["images_per_second"] is None


def test_a_limited_run_and_a_whole_run_give_an_image_the_same_bits(run, tmp_path):
    limited = open_store(run("digits", split="test", limit=37)["store"])["test"]
    whole = open_store(run("digits", split="test", stores=tmp_path / "others")["store"])["test"]
    row = {sha.tobytes(): token for sha, token in zip(whole.sha256(), whole.embedding(), strict=True)}
    assert all(
        np.array_equal(row[sha.tobytes()], token)
        for sha, token in zip(limited.sha256(), limited.embedding(), strict=True)
    )


def test_tokens_do_not_depend_on_the_number_of_workers(run, tmp_path, monkeypatch):
    tokens = []
    for workers in (1, 4):
        monkeypatch.setattr("cspipe.extract.run.worker_count", lambda lane, workers=workers: workers)
        document = run(split="test", stores=tmp_path / str(workers))
        tokens.append(open_store(document["store"])["test"].embedding())
    assert np.array_equal(*tokens)


def test_bad_images_are_flagged_listed_and_leave_the_others_alone(run, folder):
    document = run(folder)
    assert document["splits"]["train"] == {"rows": 30, "computed": 30, "reused": 0, "flagged": 3, "removed": 0}
    assert [entry["path"] for entry in document["bad_images"]] == BAD
    assert all(entry["reason"] and entry["split"] == "train" for entry in document["bad_images"])
    split = open_store(document["store"])["train"]
    assert len(split) == 27
    assert np.isfinite(split.embedding()).all()
    assert np.isnan(split.embedding(all_rows=True)).all(axis=1).sum() == 3
    assert not set(BAD) & set(split.path())
    assert verify_store(document["store"]) == []


def test_strict_stops_at_a_bad_image_and_names_it(run, folder):
    with pytest.raises(BadImageError, match=r"(cat|dog)/\d\d.png cannot be used: .*--strict"):
        run(folder, strict=True)


def test_an_image_that_is_put_right_later_is_embedded_and_a_removed_one_leaves(run, folder):
    run(folder)
    Image.new("RGB", (9, 9)).save(folder / "cat/05.png")
    (folder / "cat/07.png").unlink()
    document = run(folder)
    assert document["splits"]["train"]["computed"] == 1
    assert document["splits"]["train"]["removed"] == 2
    paths = open_store(document["store"])["train"].path()
    assert "cat/05.png" in paths
    assert "cat/07.png" not in paths


def test_an_image_that_changes_while_it_is_read_does_not_get_the_old_ones_name(run, folder, monkeypatch):
    plan = StoreWriter.plan

    def change_then_plan(self, *args, **kwargs):
        Image.new("RGB", (9, 9)).save(folder / "cat/01.png")
        return plan(self, *args, **kwargs)

    monkeypatch.setattr(StoreWriter, "plan", change_then_plan)
    reasons = {entry["path"]: entry["reason"] for entry in run(folder)["bad_images"]}
    assert "changed" in reasons["cat/01.png"]


def test_tokens_too_large_for_fp16_are_refused_naming_fp32(run, tiny_weights, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_weights)
    state["norm.weight"] *= 1e7
    save_file(state, tmp_path / "large.safetensors")
    with pytest.raises(SettingError, match=r"fp16 cannot hold.*--dtype fp32"):
        run(weights=tmp_path / "large.safetensors", limit=4)
    assert run(weights=tmp_path / "large.safetensors", limit=4, dtype="fp32")["dtype"] == "fp32"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "bf16"}, "--dtype"),
        ({"limit": 0}, "--limit"),
        ({"batch_size": 24}, "power of two"),
        ({"image_px": 33}, "multiples of 16"),
        ({"device": "nowhere"}, "--device"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_before_any_work(run, tmp_path, options, says):
    with pytest.raises(SettingError, match=says):
        run(**options)
    assert not list((tmp_path / "stores").glob("*.zarr"))


def test_an_unknown_split_is_answered_with_those_there_are(run):
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        run(split="tran")


def test_every_option_that_changes_a_token_makes_another_store(run):
    first = run(limit=4)["store"]
    assert run(limit=4, dtype="fp32")["store"] != first
    assert run(limit=4, image_px=48)["store"] != first
    assert run(limit=4, batch_size=4)["store"] == first


def test_the_batch_size_of_the_first_start_is_kept(run):
    store = run(limit=4, batch_size=8)["store"]
    run(limit=8, batch_size=32)
    assert open_store(store).attributes["batch_size"] == 8


def test_progress_counts_every_image_once(run, small_chunks):
    class Counter:
        def __init__(self):
            self.total, self.done = [], 0

        def add_task(self, description, *, total):
            self.total.append(total)
            return 0

        def update(self, task_id, *, advance):
            self.done += advance

    counter = Counter()
    run(limit=90, progress=counter)
    assert counter.total == [90, 90]
    assert counter.done == 180


SCRIPT = textwrap.dedent("""
    import os, signal, sys, threading
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    from pathlib import Path
    import cspipe.store.opening
    cspipe.store.opening.chunk_rows = lambda width, itemsize: 64
    from cspipe.extract.backbones import BackboneSpec
    from cspipe.extract.run import extract
    from cspipe.store.writer import StoreWriter
    weights, stores, kill, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    commit, lock, done = StoreWriter.commit, threading.Lock(), []
    def counted(self, split, task, *args):
        commit(self, split, task, *args)
        with lock:
            done.append((split, task.chunk))
            if len(done) == after:
                os.kill(os.getpid(), kill)
    StoreWriter.commit = counted
    spec = BackboneSpec(name="tiny", family="timm", architecture="test_vit", image_px=32, token="cls",
                        licence="none", side_multiple=16, smallest_px=16, batch_size=16)
    extract(spec, "digits", stores=stores, weights=weights)
""")


def interrupted(weights, stores, kill, after):
    """Run an extraction in a process of its own that gets a signal after so many chunks."""
    command = [sys.executable, "-c", SCRIPT, str(weights), str(stores), str(int(kill)), str(after)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def array_bytes(store):
    """Every file of the store below its splits."""
    return {path.relative_to(store): path.read_bytes() for path in sorted(store.glob("*/*/**/*")) if path.is_file()}


def resume(run, monkeypatch, stores):
    """Go on, and return the document, the chunks that were there before and those computed now."""
    (store,) = stores.glob("*.zarr")
    before = recorded(store)
    commit, now = StoreWriter.commit, []

    def noted(self, split, task, *args):
        now.append((split, task.chunk))
        commit(self, split, task, *args)

    monkeypatch.setattr(StoreWriter, "commit", noted)
    return run(stores=stores), before, now


def test_a_killed_run_goes_on_where_it_stopped_and_ends_byte_identical(
    run, small_chunks, tiny_weights, tmp_path, monkeypatch
):
    stores = tmp_path / "killed"
    assert interrupted(tiny_weights, stores, signal.SIGKILL, 7).returncode == -signal.SIGKILL
    record, *_ = stores.glob("*.zarr/train/commit/c/*/0")
    unfinished = record.parents[1] / "22/0.1.partial"  # as where the process was killed before the rename
    unfinished.parent.mkdir()
    unfinished.write_bytes(record.read_bytes())
    document, before, now = resume(run, monkeypatch, stores)
    assert len(before) >= 7
    assert not before & set(now)
    assert len(now) == len(set(now)) == 23 + 6 - len(before)
    assert document["splits"]["train"]["reused"] >= 64 * 6
    whole = run(stores=tmp_path / "whole")
    assert array_bytes(Path(document["store"])) == array_bytes(Path(whole["store"]))
    assert verify_store(document["store"]) == []


def test_ctrl_c_stops_soon_and_leaves_every_finished_chunk(run, small_chunks, tiny_weights, tmp_path, monkeypatch):
    stores = tmp_path / "interrupted"
    ended = interrupted(tiny_weights, stores, signal.SIGINT, 3)
    assert "KeyboardInterrupt" in ended.stderr
    document, before, now = resume(run, monkeypatch, stores)
    assert 3 <= len(before) < 23
    assert not before & set(now)
    assert document["splits"]["train"]["computed"] == 1437 - 64 * len(before)


def test_lite0_on_digits_through_the_store(tmp_path):
    document = extract("lite0", "digits", stores=tmp_path, image_px=32, limit=30)
    assert (document["width"], document["splits"]["train"]["rows"]) == (1280, 30)
    assert open_store(document["store"])["train"].embedding().dtype == np.float16


def test_striped_digits_through_the_store(run, mnist_dir):
    white = run("mnist-white-stripes", data_dir=mnist_dir)
    yellow = run("mnist-yellow-stripes", data_dir=mnist_dir)
    assert white["splits"]["train"]["rows"] == 40
    assert white["store"] != yellow["store"]


def test_a_spec_of_ones_own_may_stand_for_a_name(tiny, tiny_weights, tmp_path):
    spec = replace(tiny, name="mine")
    document = extract(spec, "digits", stores=tmp_path, weights=tiny_weights, limit=4)
    assert document["backbone"] == "mine"
