"""Damage of every kind, found by verify and mended by repair to the very bytes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cspipe.extract.recompute import repair
from cspipe.store.errors import MissingDataError, StoreError
from cspipe.store.lock import StoreLock
from cspipe.store.verify import verify_store


def flip(path: Path, random: np.random.Generator) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(data))


def remove_or_cut(path: Path, random: np.random.Generator) -> None:
    """Remove a file, or cut it at any byte."""
    size = int(random.integers(-path.stat().st_size, path.stat().st_size))
    if size < 0:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])


def any_file(store: Path, random: np.random.Generator) -> Path:
    """Any file of a store."""
    everything = sorted(path for path in store.rglob("*") if path.is_file())
    return everything[random.integers(len(everything))]


def check_found_and_mended(store: Path, harmed: Path, before: dict[str, bytes], after) -> None:
    """Verify names the file (or its table), repair brings its bytes back and no other change."""
    where = str(harmed.relative_to(store))
    found = [problem.where for problem in verify_store(store)]
    assert any(where == name or where.startswith(f"{name}/") for name in found), (where, found)
    document = repair(store)
    json.dumps(document, allow_nan=False)
    assert document["problems"] == [] and document["refused"] == [], (where, document)
    assert all(entry["same_bytes"] is not False for entry in document["recomputed"])
    now = after(store)
    assert [name for name in {*now, *before} if now.get(name) != before.get(name)] == [], where


KINDS = [
    "zarr.json", "train/zarr.json", "train/embedding/zarr.json", "train/label/zarr.json", "train/embedding/c/1/0",
    "train/commit/c/2/0", "train/label/c/0", "train/path/c/0", "train/sha256/c/0/0", "train/row_id/c/0",
    "test/present/c/0", "test/sha256/c/0/0", "test/label/c/0", "train-affine-1/embedding/c/4/0",
    "train-affine-1/zarr.json", "test/row_id/descriptions.copy",
]  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "where"), [*((flip, where) for where in KINDS), *((remove_or_cut, where) for where in KINDS[::3])]
)
def test_damage_to_every_kind_of_file_is_found_and_mended_to_the_same_bytes(store, finished, files, harm, where):
    harm(store / where, np.random.default_rng(len(where)))
    check_found_and_mended(store, store / where, files(finished), files)


def test_only_the_damaged_chunks_are_computed_again(store, monkeypatch):
    random = np.random.default_rng(0)
    flip(store / "train/embedding/c/1/0", random)
    (store / "train-affine-1/embedding/c/3/0").unlink()
    document = repair(store)
    assert [(entry["split"], entry["chunk"]) for entry in document["recomputed"]] == [
        ("train", 1),
        ("train-affine-1", 3),
    ]
    assert [entry["same_bytes"] for entry in document["recomputed"]] == [True, True]
    assert repair(store)["recomputed"] == []


def test_both_descriptions_and_chunks_and_tables_are_mended_at_once(store, finished, files):
    for where in KINDS[::2]:
        (store / where).unlink()
    document = repair(store)
    assert document["problems"] == [] and files(store) == files(finished)


def test_a_swapped_pair_of_chunks_is_computed_anew(store, finished, files):
    chunks = store / "train/embedding/c"
    chunks.joinpath("0").rename(chunks / "x")
    chunks.joinpath("1").rename(chunks / "0")
    chunks.joinpath("x").rename(chunks / "1")
    assert [entry["chunk"] for entry in repair(store)["recomputed"]] == [0, 1]
    assert files(store) == files(finished)


def test_a_chunk_whose_image_changed_is_refused_and_left_while_the_others_are_mended(store, images, tmp_path):
    random = np.random.default_rng(0)
    moved = tmp_path / "dots"
    shutil.copytree(images, moved)
    changed = sorted((moved / "train/a").glob("*.png"))[10]
    changed.write_bytes(changed.read_bytes() + b"more")
    for chunk in (0, 2):
        flip(store / "train/embedding/c" / str(chunk) / "0", random)
    before = (store / "train/embedding/c/0/0").read_bytes()
    document = repair(store, data_dir=moved)
    (refused,) = document["refused"]
    assert refused["chunk"] == 0 and refused["why"].startswith(f"train/a/{changed.name} is no longer the image")
    assert [entry["chunk"] for entry in document["recomputed"]] == [2]
    assert [problem["where"] for problem in document["problems"]] == ["train/embedding/c/0/0"]
    assert (store / "train/embedding/c/0/0").read_bytes() == before


def test_images_that_moved_are_named_by_data_dir_and_found_under_other_paths(store, images, tmp_path, finished, files):
    moved = tmp_path / "elsewhere"
    shutil.copytree(images, moved)
    for number, path in enumerate(sorted((moved / "train/a").glob("*.png"))):
        path.rename(path.with_name(f"x{number:04d}.png"))
    flip(store / "train/embedding/c/1/0", np.random.default_rng(0))
    assert repair(store, data_dir=moved)["problems"] == []
    assert files(store) == files(finished)


def test_places_that_are_gone_are_told_with_the_option_that_names_them(store, tmp_path):
    flip(store / "test/embedding/c/0/0", np.random.default_rng(0))
    with pytest.raises(MissingDataError, match="--data-dir DIR"):
        repair(store, data_dir=tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match="--weights FILE"):
        repair(store, weights=tmp_path / "nowhere.safetensors")


def test_a_root_without_any_copy_cannot_be_repaired_and_that_is_said(store):
    for path in store.glob("*/row_id/descriptions.copy"):
        path.unlink()
    flip(store / "zarr.json", np.random.default_rng(1))
    with pytest.raises(StoreError, match=r"no split holds a copy of it: .* cannot be repaired"):
        repair(store)


def test_a_table_that_nothing_can_give_back_is_still_listed(store, images, tmp_path):
    moved = tmp_path / "dots"
    shutil.copytree(images, moved)
    next((moved / "test/a").glob("*.png")).unlink()
    (store / "test/label/c/0").unlink()
    document = repair(store, data_dir=moved)
    assert [problem["where"] for problem in document["problems"]] == ["test/label/c/0"]


def test_repair_refuses_a_store_that_is_being_written(store):
    lock = StoreLock(store)
    with pytest.raises(StoreError, match="being written by another writer"):
        repair(store)
    lock.release()


def test_weights_of_the_same_name_with_other_numbers_are_refused(store, weights, tmp_path):
    from safetensors.torch import load_file, save_file

    from cspipe.store.errors import MismatchError

    other = tmp_path / "other.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, other)
    flip(store / "test/embedding/c/0/0", np.random.default_rng(0))
    with pytest.raises(MismatchError, match="name the right file with --weights FILE"):
        repair(store, weights=other)


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "count"), [(flip, 200), (remove_or_cut, 50)])
def test_many_random_harms_are_each_found_and_mended(store, finished, files, harm, count):
    random, before = np.random.default_rng(count), files(finished)
    for _ in range(count):
        path = any_file(store, random)
        harm(path, random)
        check_found_and_mended(store, path, before, files)


def test_a_store_of_a_pass_over_several_tokens_is_mended_to_the_same_bytes(images, weights, tmp_path, files):
    from cspipe.extract.run import extract_all
    from cspipe.extract.targets import Request

    request = Request("timm:test_vit", ("cls", "mean-patch"), weights, None, 16)
    told = extract_all([request], str(images), stores=tmp_path / "stores", batch_size=16)
    for store in (Path(entry["store"]) for entry in told["stores"]):
        before = files(store)
        flip(store / "train/embedding/c/1/0", np.random.default_rng(0))
        assert [entry["same_bytes"] for entry in repair(store)["recomputed"]] == [True]
        assert files(store) == before
