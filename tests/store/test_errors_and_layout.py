import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from cspipe.store import errors
from cspipe.store.layout import (
    StoreKey,
    chunk_rows,
    find_store,
    latest_store,
    list_stores,
    record_latest,
    store_path,
)

KEY = StoreKey("resize", 224, "ab", "cls", "fp16")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.UnknownNameError, LookupError),
        (errors.SettingError, ValueError),
        (errors.MissingDataError, FileNotFoundError),
        (errors.MismatchError, ValueError),
        (errors.StoreError, OSError),
    ],
)
def test_an_error_prints_its_message_alone_and_is_also_the_builtin(kind, builtin):
    error = kind("it is 'so': do that")
    assert str(error) == "it is 'so': do that"
    assert isinstance(error, builtin) and isinstance(error, errors.CspipeError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_damage_error_names_file_and_command_and_survives_pickling():
    error = pickle.loads(pickle.dumps(errors.DamageError(Path("s/x.zarr/train/embedding/c/3/0"), "cut short")))
    assert str(error).startswith("s/x.zarr/train/embedding/c/3/0: cut short. ")
    assert "`cspipe store verify s/x.zarr`" in str(error) and error.what == "cut short"


def test_an_unknown_name_is_answered_with_the_nearest_known_one():
    error = errors.unknown_name("backbone", "dinov3x", ["lite0", "dinov2-s"])
    assert str(error) == "unknown backbone 'dinov3x': did you mean 'dinov2-s'? Known: dinov2-s, lite0."
    assert "did you mean" not in str(errors.unknown_name("backbone", "qqq", ["lite0"]))


def test_the_key_changes_with_every_field_and_with_nothing_else():
    changes = [{"transform": "crop"}, {"image_px": 112}, {"weights_sha256": "cd"}, {"token": "mean"}, {"dtype": "fp32"}]
    hashes = {replace(KEY, **change).sha256() for change in changes} | {KEY.sha256()}
    assert len(hashes) == 6
    assert StoreKey("resize", 224, "ab", "cls", "fp16").sha256() == KEY.sha256()


def test_the_key_refuses_a_type_no_store_holds():
    with pytest.raises(errors.SettingError, match="give --dtype fp16 or fp32"):
        replace(KEY, dtype="int8")


@pytest.mark.parametrize(("width", "itemsize"), [(1, 2), (384, 2), (768, 4), (1280, 2), (16_385, 4), (200_000, 4)])
def test_chunk_rows_are_the_largest_power_of_two_within_four_mebibytes(width, itemsize):
    rows = chunk_rows(width, itemsize)
    assert rows & (rows - 1) == 0 and 64 <= rows <= 2048
    assert rows == 64 or rows * width * itemsize <= 4 * 2**20
    assert rows == 2048 or 2 * rows * width * itemsize > 4 * 2**20


def test_store_paths_hold_safe_names_that_never_collide():
    names = ["svhn", "my photos", "my-photos", "my--photos", "../up", "..", "", "ä", "x" * 300]
    paths = [store_path(Path("stores"), name, "lite0", KEY) for name in names]
    assert len({path.name for path in paths}) == len(names)
    for path in paths:
        assert path.parent == Path("stores") and len(path.name) < 120
        assert path.name.count("--") == 2 and path.name.endswith(f"--lite0--{KEY.sha256()[:8]}.zarr")
    assert paths[0].name.startswith("svhn--")


def test_find_store_goes_by_recorded_names_then_by_the_latest(maker, tmp_path):
    with pytest.raises(errors.MissingDataError, match="run cspipe extract BACKBONE DATASET first"):
        find_store(maker.stores)
    maker.extract([1, 2])
    record_latest(maker.stores, maker.path)
    assert latest_store(maker.stores) == find_store(maker.stores) == maker.path == list_stores(maker.stores)[0]
    assert find_store(maker.stores, dataset="toy", backbone="lite0") == maker.path
    with pytest.raises(errors.MissingDataError, match="cspipe extract lite0 svhn"):
        find_store(maker.stores, dataset="svhn", backbone="lite0")


def test_find_store_among_several_takes_the_latest_or_asks(maker):
    maker.extract([1, 2])
    other = maker.path.with_name("toy--lite0--00000000.zarr")
    maker.path.rename(other)
    maker.extract([1, 2])
    with pytest.raises(errors.SettingError, match="2 stores hold backbone 'lite0'"):
        find_store(maker.stores, backbone="lite0")
    record_latest(maker.stores, other)
    assert find_store(maker.stores, backbone="lite0") == other


@pytest.mark.parametrize("text", ["", "{", '{"store": "gone.zarr"}', "[]", "{}"])
def test_a_latest_file_that_names_no_store_counts_as_none(tmp_path, text):
    (tmp_path / "latest.json").write_text(text)
    assert latest_store(tmp_path) is None
