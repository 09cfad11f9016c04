"""``cspipe store repair, import, export, rm and gc`` as a user meets them."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cspipe.store import open_store
from cspipe.store.errors import StoreError
from cspipe.store.lock import StoreLock
from cspipe.store.verify import verify_store


@pytest.fixture
def own(tmp_path):
    """Embeddings of two classes and their labels, as files."""
    random = np.random.default_rng(0)
    for name, count in (("emb", 120), ("more", 40)):
        label = np.arange(count) % 2
        np.save(tmp_path / f"{name}.npy", (random.standard_normal((count, 16)) + 3 * label[:, None]).astype(np.float32))
        words = ["" if k >= 100 else ("hen", "cock")[c] for k, c in enumerate(label)]
        rows = "".join(f"img-{k},{word}\n" for k, word in enumerate(words))
        (tmp_path / f"{name}.csv").write_text("id,label\n" + rows)
    return tmp_path


@pytest.fixture
def imported(own, document):
    """The store of those files, and its document."""
    told = document("store", "import", own / "emb.npy", "--labels", own / "emb.csv", "--test", own / "more.npy",
                    "--test-labels", own / "more.csv", "--stores", own / "stores")  # fmt: skip
    return Path(told["store"]), told


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_repair_brings_a_damaged_chunk_back_and_verify_is_clean(made, tmp_path, cspipe, document):
    shutil.copytree(made / "stores", tmp_path / "stores")
    store = next((tmp_path / "stores").glob("*.zarr"))
    chunk = store / "train/embedding/c/0/0"
    before = chunk.read_bytes()
    damage(chunk)
    assert cspipe("store", "verify", store)[0] == 1
    told = document("store", "repair", store, "--quiet")
    assert told["problems"] == [] and [entry["same_bytes"] for entry in told["recomputed"]] == [True]
    assert chunk.read_bytes() == before
    code, out, _ = cspipe("store", "repair", store, "--quiet")
    assert code == 0 and "every byte is as it was written" in out


def test_repair_says_what_it_left_and_exits_1(made, tmp_path, cspipe):
    shutil.copytree(made / "stores", tmp_path / "stores")
    store = next((tmp_path / "stores").glob("*.zarr"))
    (store / "notes.txt").write_text("mine")
    code, out, _ = cspipe("store", "repair", store, "--quiet")
    assert code == 1 and "notes.txt" in out and "move it away" in out


def test_own_embeddings_become_a_store_with_row_ids_labels_and_ids(imported, own):
    path, told = imported
    assert told["class_names"] == ["cock", "hen"] and told["dtype"] == "fp32"
    assert told["splits"]["train"] == {"rows": 120, "written": 120, "flagged": 0}
    train = open_store(path)["train"]
    assert np.array_equal(train.embedding(), np.load(own / "emb.npy"))
    assert train.row_id().tolist() == list(range(120)) and train.path()[7] == "img-7"
    assert train.label()[:3].tolist() == [1, 0, 1] and (train.label()[100:] == -1).all()
    assert verify_store(path) == []


def test_head_works_on_imported_embeddings(imported, own, document):
    told = document("head", "--labels", "20", "--seeds", "1", "--set", "steps=50", "--set", "components=8", "--method",
                    "logistic", "--stores", own / "stores", "--runs", own / "runs", "--quiet")  # fmt: skip
    assert (told["dataset"], told["backbone"]) == ("emb", "own")
    assert told["summary"]["logistic"]["mean"] > 0.9


def test_importing_a_grown_file_writes_the_new_rows_alone(imported, own, document):
    grown = np.concatenate([np.load(own / "emb.npy"), np.ones((5, 16), np.float32)])
    np.save(own / "emb.npy", grown)
    with (own / "emb.csv").open("a") as file:
        file.write("".join(f"new-{k},hen\n" for k in range(5)))
    told = document("store", "import", own / "emb.npy", "--labels", own / "emb.csv", "--stores", own / "stores")
    assert told["store"] == str(imported[0]) and told["splits"]["train"] == {"rows": 125, "written": 5, "flagged": 0}
    assert np.array_equal(open_store(imported[0])["train"].embedding(), grown)


def test_a_column_of_splits_and_plain_lists_of_labels_are_understood(own, document):
    rows = "".join(f"{k % 10},{'test' if k % 3 == 0 else 'train'}\n" for k in range(120))
    (own / "split.csv").write_text("label,split\n" + rows)
    told = document("store", "import", own / "emb.npy", "--labels", own / "split.csv", "--stores", own / "a")
    assert {name: part["rows"] for name, part in told["splits"].items()} == {"train": 80, "test": 40}
    assert told["class_names"] == [str(number) for number in range(10)]
    assert open_store(told["store"])["test"].path()[:3] == ["0", "3", "6"]
    (own / "plain.csv").write_text("".join(f"{k % 3 - 1}\n" for k in range(120)))
    told = document("store", "import", own / "emb.npy", "--labels", own / "plain.csv", "--stores", own / "b")
    assert told["class_names"] == ["0", "1"]
    assert open_store(told["store"])["train"].label()[:3].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda own: (own / "emb.csv").write_text("hen\n" * 3), "has 3 rows, but"),
        (lambda own: (own / "emb.csv").write_text("name,class\n" * 121), "has no column `label`"),
        (lambda own: np.save(own / "emb.npy", np.zeros(5)), "floating (rows, width) array"),
        (lambda own: (own / "emb.npy").write_bytes(b"PK"), "is not an .npy file"),
        (lambda own: np.save(own / "emb.npy", np.array([{}], object), allow_pickle=True), "is not an .npy file"),
        (lambda own: (own / "emb.npy").unlink(), "there is no file"),
        (lambda own: np.save(own / "emb.npy", np.full((120, 16), 1e5, np.float32)), "use --dtype fp32"),
    ],
)
def test_files_that_cannot_be_imported_are_told_in_one_line(own, cspipe, write, says):
    write(own)
    code, _, err = cspipe("store", "import", own / "emb.npy", "--labels", own / "emb.csv", "--stores", own / "stores",
                          "--dtype", "fp16")  # fmt: skip
    assert code == 1 and says in err and len(err.splitlines()) == 1
    assert not list((own / "stores").glob("*.zarr"))


def test_a_damaged_chunk_of_an_imported_store_is_taken_out_for_the_next_import(imported, own, document, cspipe):
    damage(imported[0] / "train/embedding/c/0/0")
    code, out, _ = cspipe("store", "repair", imported[0], "--quiet")
    assert code == 1 and "import the same" in out
    document("store", "import", own / "emb.npy", "--labels", own / "emb.csv", "--stores", own / "stores")
    assert verify_store(imported[0]) == []


def test_what_is_exported_can_be_imported_again(imported, own, document):
    told = document("store", "export", imported[0], "--to", own / "out")
    assert [Path(file).name for file in told["files"]] == ["test.npy", "test.csv", "train.npy", "train.csv"]
    out = own / "out"
    again = document("store", "import", out / "train.npy", "--labels", out / "train.csv", "--test", out / "test.npy",
                     "--test-labels", out / "test.csv", "--stores", own / "again")  # fmt: skip
    for name in ("train", "test"):
        mine, its = open_store(imported[0])[name], open_store(again["store"])[name]
        assert np.array_equal(mine.embedding(), its.embedding()) and np.array_equal(mine.label(), its.label())
        assert mine.path() == its.path() and np.array_equal(mine.sha256(), its.sha256())


def test_export_leaves_flagged_rows_out_and_never_overwrites(own, document, cspipe):
    array = np.load(own / "emb.npy")
    array[7, 3] = np.nan
    np.save(own / "emb.npy", array)
    told = document("store", "import", own / "emb.npy", "--labels", own / "emb.csv", "--stores", own / "stores")
    assert told["splits"]["train"]["flagged"] == 1
    document("store", "export", told["store"], "--to", own / "out")
    assert np.load(own / "out/train.npy").shape == (119, 16)
    lines = (own / "out/train.csv").read_text().splitlines()
    assert lines[0] == "row_id,label,class_number,id,sha256" and lines[8].startswith("8,hen,1,img-8,")
    assert "is there already" in cspipe("store", "export", told["store"], "--to", own / "out")[2]


def test_rm_removes_a_store_after_asking(imported, cspipe, monkeypatch):
    path = imported[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert cspipe("store", "rm", path)[0] == 1 and path.is_dir()
    code, out, _ = cspipe("store", "rm", path, "--yes", "--json")
    assert code == 0 and json.loads(out)["removed"][0]["bytes"] > 120 * 16 * 4
    assert not path.exists() and {p.name for p in path.parent.iterdir()} == {"latest.json", ".locks"}
    assert "is not a store" in cspipe("store", "rm", path, "--yes")[2]


def test_rm_refuses_a_store_that_is_being_written_and_folders_that_are_none(imported, cspipe, tmp_path):
    lock = StoreLock(imported[0])
    assert "being written" in cspipe("store", "rm", imported[0], "--yes")[2]
    lock.release()
    (tmp_path / "precious").mkdir()
    assert cspipe("store", "rm", tmp_path / "precious", "--yes")[0] == 1
    assert (tmp_path / "precious").is_dir() and imported[0].is_dir()


def test_gc_removes_what_nobody_needs_and_never_a_finished_chunk(imported, own, cspipe, document):
    path, stores = imported[0], own / "stores"
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    (path / "train/embedding/c/0/0.99.partial").write_bytes(b"half")
    (path / "train/embedding/c/7").mkdir()
    (path / "train/embedding/c/7/0").write_bytes(b"orphan")
    (stores / "begun.zarr").mkdir()
    (stores / ".removed-old.zarr").mkdir()
    (stores / ".removed-old.zarr" / "zarr.json").write_text("{}")
    found = document("store", "gc", "--stores", stores)
    assert len(found["garbage"]) == 4 and not found["removed"] and (stores / "begun.zarr").is_dir()
    assert cspipe("store", "gc", "--stores", stores, "--yes")[0] == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert not (stores / "begun.zarr").exists() and not (stores / ".removed-old.zarr").exists()
    assert document("store", "gc", "--stores", stores)["garbage"] == []


def test_gc_keeps_the_finished_chunks_of_an_unfinished_store_and_passes_over_busy_ones(imported, own, document):
    from cspipe.store.repair import take_out

    path, stores = imported[0], own / "stores"
    take_out(path, "test", [0])
    damage(path / "zarr.json")
    chunk = (path / "train/embedding/c/0/0").read_bytes()
    assert document("store", "gc", "--stores", stores, "--yes")["garbage"] == []
    assert (path / "train/embedding/c/0/0").read_bytes() == chunk
    lock = StoreLock(path)
    assert document("store", "gc", "--stores", stores, "--yes")["busy"] == [str(path)]
    lock.release()
    with pytest.raises(StoreError):
        open_store(path)


def test_tokens_of_two_backbones_are_joined_for_head_and_for_head_alone(made, tmp_path, cspipe, document):
    (first,) = (made / "stores").glob("*.zarr")
    here = ["--stores", tmp_path / "stores", "--runs", tmp_path / "runs", "--quiet"]
    second = document("extract", "conv-small", "digits", "--image-px", "32", "--limit", "120", *here)["store"]
    told = document("store", "join", first, second, *here)
    assert told["backbone"] == "lite0+conv-small"
    assert {name: split["rows"] for name, split in told["splits"].items()} == {"train": 120, "test": 120}
    code, out, _ = cspipe("store", "join", first, second, *here)
    assert code == 0 and "lite0+conv-small" in out and Path(told["store"]).name in out
    code, out, _ = cspipe("store", "info", told["store"], *here[:2])
    assert code == 0 and "tokens of lite0" in out and "tokens of conv-small" in out and "sha256" not in out
    small = ["--labels", "20", "--seeds", "1", "--set", "steps=10"]
    assert document("head", *small, "--backbone", "lite0+conv-small", *here)["store"] == told["store"]
    code, _, error = cspipe("finetune", "--unfreeze", *here)
    assert code == 1 and "side by side" in error and "the store of one of them" in error
