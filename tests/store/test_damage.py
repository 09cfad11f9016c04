import shutil

import numpy as np
import pytest

from cspipe.store import open_store
from cspipe.store.errors import CspipeError, StoreError
from cspipe.store.repair import repair_store
from cspipe.store.verify import verify_store

IMAGES = list(range(30))


def test_a_finished_store_has_no_problem(store):
    assert verify_store(store.path) == []
    assert len(store.open()["train"]) == 29


def _flip(path, rng) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def _read_everything(path):
    read = []
    for name in ("test", "train"):
        split = open_store(path)[name]
        read += [split.embedding(), split.label(), split.row_id(), np.array(split.path()), split.sha256()]
    return read


@pytest.fixture(scope="module")
def sound(finished):
    """What every reader must give, or refuse."""
    return _read_everything(next(finished.glob("*.zarr")))


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_in_any_file_is_found_and_never_read_as_other_values(store, sound, seed):
    rng = np.random.default_rng(seed)
    everything = sorted(path for path in store.path.rglob("*") if path.is_file())
    path = everything[rng.integers(len(everything))]
    _flip(path, rng)
    found = verify_store(store.path)
    where = str(path.relative_to(store.path))
    assert [problem.where for problem in found if problem.where == where]
    assert all(problem.what and problem.hint for problem in found)
    try:
        read = _read_everything(store.path)
    except CspipeError:
        return
    for mine, its in zip(read, sound, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_an_embedding_chunk_stops_the_reader_with_file_and_command(store, seed):
    rng = np.random.default_rng(seed)
    path = store.path / "train" / "embedding" / "c" / str(rng.integers(4)) / "0"
    _flip(path, rng)
    with pytest.raises(StoreError) as caught:
        store.open()["train"].embedding()
    assert str(caught.value).startswith(f"{path}: the bytes do not match their checksum")
    assert f"`cspipe store verify {store.path}`" in str(caught.value)
    with pytest.raises(StoreError):
        store.open()["train"].dask().compute(scheduler="sync")


@pytest.mark.parametrize(
    "array", ["embedding/c/1/0", "commit/c/1/0", "label/c/0", "path/c/0", "sha256/c/0/0", "row_id/c/0"]
)
@pytest.mark.parametrize("harm", ["remove", "cut", "lengthen", "empty"])
def test_a_missing_cut_or_longer_file_is_found_and_stops_the_reader(store, array, harm):
    path = store.path / "train" / array
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-9], "lengthen": data + b"more", "empty": b""}[harm])
    assert f"train/{array}" in [problem.where for problem in verify_store(store.path)]
    with pytest.raises(StoreError):
        _read_everything(store.path)


@pytest.mark.parametrize("array", ["embedding", "commit"])
def test_swapped_chunks_are_found_though_each_passes_its_own_checksum(store, array):
    folder = store.path / "train" / array / "c"
    (folder / "0").rename(folder / "x")
    (folder / "1").rename(folder / "0")
    (folder / "x").rename(folder / "1")
    assert len(verify_store(store.path)) == 2
    with pytest.raises(StoreError, match="is not the one its commit record names"):
        store.open()["train"].embedding()


def test_a_chunk_of_another_split_in_its_place_is_found(store):
    shutil.copy(store.path / "test/embedding/c/1/0", store.path / "train/embedding/c/1/0")
    assert [problem.where for problem in verify_store(store.path)] == ["train/embedding/c/1/0"]


def test_a_table_of_another_split_in_its_place_is_found_and_not_read(store):
    shutil.copy(store.path / "test/label/c/0", store.path / "train/label/c/0")
    assert [problem.where for problem in verify_store(store.path)] == ["train/label"]
    with pytest.raises(StoreError, match="train/label"):
        store.open()["train"].label()


def test_foreign_files_and_a_split_that_is_gone_are_named(store):
    (store.path / "notes.txt").write_text("mine")
    (store.path / "train" / "embedding" / "c" / "9").mkdir()
    (store.path / "train" / "embedding" / "c" / "9" / "0").write_bytes(b"x")
    shutil.rmtree(store.path / "test")
    found = {problem.where: problem.what for problem in verify_store(store.path)}
    assert set(found) == {"notes.txt", "train/embedding/c/9/0", "test/zarr.json"}
    assert found["notes.txt"] == "this file does not belong to the store"


@pytest.mark.parametrize("where", ["zarr.json", "train/zarr.json", "train/label/zarr.json"])
def test_a_description_that_is_no_description_is_listed_and_never_raised(store, where):
    for text in ("", "[]", "null", '{"attributes": {}}', "\x00\xff", '{"attributes": 3}'):
        (store.path / where).write_text(text, encoding="latin-1")
        assert where in [problem.where for problem in verify_store(store.path)], text


def test_a_folder_where_a_file_should_be_is_listed_and_never_raised(store):
    for where in ("train/embedding/c/0/0", "train/commit/c/1/0", "test/label/c/0", "test/path/zarr.json"):
        (store.path / where).unlink()
        (store.path / where).mkdir()
    assert len(verify_store(store.path)) >= 4


def test_a_store_of_a_newer_format_is_refused(store):
    from cspipe.store.meta import read_group, write_group

    write_group(store.path, {**read_group(store.path), "format": 2})
    with pytest.raises(StoreError, match="has store format 2, this cspipe reads 1: upgrade cspipe"):
        store.open()
    assert [problem.hint for problem in verify_store(store.path)] == ["upgrade cspipe"]


@pytest.mark.parametrize("array", ["embedding", "commit"])
def test_repair_takes_out_a_damaged_chunk_and_extract_computes_it_alone_anew(store, files, array):
    before = files(store.path)
    (store.path / "train" / array / "c" / "2" / "0").write_bytes(b"other")
    left = repair_store(store.path)
    assert [problem.where for problem in left] == ["train"]
    assert [task.chunk for task in store.extract(IMAGES, bad=[11])] == [2]
    assert files(store.path) == before


def _put_bit(path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 16
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("array", "byte"), [("commit", 3), ("commit", 11), ("commit", 17), ("embedding", -2)])
def test_a_bit_of_a_record_or_a_checksum_is_put_back_without_any_image(store, files, array, byte):
    before = files(store.path)
    _put_bit(store.path / "train" / array / "c" / "2" / "0", byte)
    assert verify_store(store.path) != []
    assert repair_store(store.path) == []
    assert files(store.path) == before


def test_a_record_that_is_gone_is_never_made_up_from_the_chunk_that_lies_there(store):
    chunks = store.path / "train" / "embedding" / "c"
    shutil.copy(chunks / "0" / "0", chunks / "2" / "0")
    (store.path / "train" / "commit" / "c" / "2" / "0").unlink()
    assert [problem.what for problem in repair_store(store.path)] == ["extraction is not finished (3 of 4 chunks)"]


def test_a_record_that_is_off_by_one_bit_does_not_vouch_for_another_chunk(store):
    """A record with a flipped bit, beside a chunk that was swapped in: it fits neither."""
    chunks = store.path / "train" / "embedding" / "c"
    shutil.copy(chunks / "0" / "0", chunks / "2" / "0")
    _put_bit(store.path / "train" / "commit" / "c" / "2" / "0", 3)
    assert [problem.where for problem in repair_store(store.path)] == ["train"]


@pytest.mark.parametrize("where", ["zarr.json", "train/zarr.json", "test/zarr.json", "train/commit/zarr.json"])
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_descriptions_are_put_back_from_their_copies(store, files, where, harm):
    before, path = files(store.path), store.path / where
    if harm == "flip":
        _flip(path, np.random.default_rng(3))
    else:
        path.unlink()
    assert repair_store(store.path) == []
    assert files(store.path) == before


def test_a_damaged_copy_is_found_and_written_anew(store, files):
    before, path = files(store.path), store.path / "train" / "row_id" / "descriptions.copy"
    for harm in (path.unlink, lambda: _flip(path, np.random.default_rng(0)), lambda: path.write_bytes(b"")):
        harm()
        found = verify_store(store.path)
        assert [(problem.where, problem.hint) for problem in found] == [
            ("train/row_id/descriptions.copy", "run cspipe store repair")
        ]
        assert repair_store(store.path) == []
        assert files(store.path) == before


def test_a_copy_is_never_made_of_a_damaged_description(store, files):
    before = files(store.path)
    _flip(store.path / "train" / "label" / "zarr.json", np.random.default_rng(0))
    with store.writer() as writer:
        writer.finish("test")
    copy = "train/row_id/descriptions.copy"
    assert files(store.path)[copy] == before[copy]
    assert repair_store(store.path) == [] and files(store.path) == before


def test_tables_that_follow_from_the_row_count_are_made_anew(store, files):
    before = files(store.path)
    (store.path / "train" / "row_id" / "c" / "0").unlink()
    _flip(store.path / "test" / "present" / "c" / "0", np.random.default_rng(0))
    assert repair_store(store.path) == [] and files(store.path) == before


def test_what_repair_cannot_mend_it_still_lists(store):
    (store.path / "train" / "label" / "c" / "0").unlink()
    assert [problem.where for problem in repair_store(store.path)] == ["train/label/c/0"]
    with pytest.raises(StoreError, match="train/label"):
        store.extract(IMAGES)


def test_a_store_finished_before_there_were_copies_is_sound(store):
    from cspipe.store.copies import HAS_COPY, copy_file
    from cspipe.store.meta import read_group, write_group

    for split in (store.path / "train", store.path / "test"):
        attributes = read_group(split)
        del attributes[HAS_COPY]
        write_group(split, attributes)
        copy_file(split).unlink()
    assert verify_store(store.path) == [] and store.extract(IMAGES, bad=[11]) == []
    assert verify_store(store.path) == []
