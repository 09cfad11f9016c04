"""Image data sets of the hub, from local files in its formats; the hub itself is played by a folder."""

import shutil
from pathlib import Path

import pytest
from small_files import hub_table, images_of, png

from cspipe.extract.datasets import load_dataset
from cspipe.store.errors import MissingDataError, SettingError

PICTURES = [png(image) for image in images_of(12, 8, 0)]
NAMED = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def write(file: Path, numbers: range, columns: dict[str, list] | None = None, features: dict | None = None) -> None:
    from pyarrow import parquet

    labels = {"label": [i % 2 for i in numbers]} if columns is None else columns
    told = NAMED if columns is None else features or {}
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(hub_table([PICTURES[i] for i in numbers], labels, told), file, row_group_size=2)


@pytest.fixture
def repository(tmp_path):
    """A folder as the hub keeps a data set: two training files and a test file."""
    folder = tmp_path / "repository"
    write(folder / "data/train-00000-of-00002-abc.parquet", range(5))
    write(folder / "data/train-00001-of-00002-def.parquet", range(5, 8))
    write(folder / "data/test-00000-of-00001.parquet", range(8, 11))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that makes a folder the hub; calls are kept in its list."""
    import huggingface_hub

    calls = []

    def play(folders: dict[str | None, Path]) -> list:
        def listed(self, repo, *, repo_type, revision):
            assert repo_type == "dataset"
            if revision not in folders:
                raise OSError(f"no revision {revision} of {repo}")
            return [path.relative_to(folders[revision]).as_posix() for path in folders[revision].rglob("*.*")]

        def downloaded(repo, *, repo_type, revision, allow_patterns=None, local_files_only=False):
            calls.append((repo, revision, allow_patterns))
            if local_files_only:
                raise OSError("not kept")
            target = tmp_path / f"snapshot{len(calls)}"
            for name in allow_patterns:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folders[revision] / name, target / name)
            return str(target)

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
        return calls

    return play


def check(data, name):
    assert (data.name, data.class_names) == (name, ["cat", "dog"])
    train, test = data.splits["train"], data.splits["test"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([i % 2 for i in range(8)], [i % 2 for i in range(8, 11)])
    assert [train.load(i) for i in range(8)] == PICTURES[:8]
    assert [test.load(i) for i in (2, 0, 1)] == [PICTURES[i] for i in (10, 8, 9)]


def test_a_data_set_of_the_hub_is_its_parquet_files_and_nothing_else_is_fetched(repository, hub):
    (repository / "loader.py").write_text("raise SystemExit('never run')")
    (repository / "README.md").write_text("")
    calls = hub({None: repository})
    data = load_dataset("hf:someone/pets")
    check(data, "someone/pets")
    assert data.source == "hf:someone/pets"
    assert len(calls) == 1
    assert all(name.endswith(".parquet") for name in calls[0][2])


def test_a_local_copy_is_read_in_place_of_the_hub_and_as_a_folder(repository):
    check(load_dataset("hf:someone/pets", data_dir=repository), "someone/pets")
    check(load_dataset(repository), "repository")


def test_without_parquet_files_those_that_the_hub_converted_are_taken(repository, hub, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "loader.py").write_text("")
    converted = tmp_path / "converted"
    for split in ("train", "test"):
        for number, file in enumerate(sorted((repository / "data").glob(f"{split}*"))):
            target = converted / "default" / split / f"{number:04d}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    hub({None: code, "refs/convert/parquet": converted})
    check(load_dataset("hf:someone/pets"), "someone/pets")


def test_a_data_set_that_needs_its_own_code_is_refused(hub, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "loader.py").write_text("")
    hub({None: tmp_path / "code", "refs/convert/parquet": tmp_path / "code"})
    with pytest.raises(MissingDataError, match="has no parquet files, and data sets that need code of their own"):
        load_dataset("hf:someone/pets")


def test_a_revision_is_asked_for(repository, hub):
    calls = hub({"v1.0": repository})
    check(load_dataset("hf:someone/pets@v1.0"), "someone/pets@v1.0")
    assert calls[0][1] == "v1.0"


def test_several_configurations_are_listed_and_one_can_be_named(tmp_path, hub):
    write(tmp_path / "r/small/train-0.parquet", range(2))
    write(tmp_path / "r/large/train-0.parquet", range(6))
    calls = hub({None: tmp_path / "r"})
    with pytest.raises(SettingError, match=r"configurations large, small: name one of them, as in hf:OWNER/NAME/"):
        load_dataset("hf:someone/pets")
    assert not calls
    assert len(load_dataset("hf:someone/pets/large").splits["train"]) == 6
    assert calls[0][2] == ["large/train-0.parquet"]
    assert len(load_dataset("hf:someone/pets/small", data_dir=tmp_path / "r").splits["train"]) == 2


def test_without_a_connection_what_was_fetched_before_is_read(repository, hub, monkeypatch):
    import huggingface_hub

    hub({})
    with pytest.raises(MissingDataError, match=r"pets is not on this machine .* or give a folder .* --data-dir"):
        load_dataset("hf:someone/pets")

    def kept(repo, *, repo_type, revision, local_files_only):
        assert local_files_only
        return str(repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", kept)
    check(load_dataset("hf:someone/pets"), "someone/pets")


@pytest.mark.parametrize("name", ["hf:", "hf:pets", "hf:a/b@", "hf:../../etc", "hf:a/b/../c", "hf:a b/c"])
def test_a_name_of_another_form_is_refused_before_anything_is_asked(name, hub):
    calls = hub({})
    with pytest.raises(SettingError, match="a data set of the hub is hf:OWNER/NAME"):
        load_dataset(name)
    assert not calls


def test_validation_is_the_test_split_where_test_has_no_labels_and_unlabelled_files_join_train(tmp_path):
    write(tmp_path / "train-0.parquet", range(4))
    write(tmp_path / "unsupervised-0.parquet", range(4, 6), {"note": ["", ""]})
    write(tmp_path / "validation-0.parquet", range(6, 8))
    write(tmp_path / "test-0.parquet", range(8, 10), {"label": [-1, -1]}, NAMED)
    data = load_dataset(tmp_path)
    assert data.splits["train"].labels.tolist() == [0, 1, 0, 1, -1, -1]
    assert data.splits["train"].load(5) == PICTURES[5]
    assert [data.splits["test"].load(i) for i in range(2)] == PICTURES[6:8]


def test_labels_without_names_texts_and_nulls(tmp_path):
    write(tmp_path / "n/train.parquet", range(3), {"label": [3, None, 0]})
    write(tmp_path / "t/train.parquet", range(3), {"label": ["dog", None, "cat"]})
    numbers, texts = load_dataset(tmp_path / "n"), load_dataset(tmp_path / "t")
    assert (numbers.class_names, numbers.splits["train"].labels.tolist()) == (["0", "1", "2", "3"], [3, -1, 0])
    assert (texts.class_names, texts.splits["train"].labels.tolist()) == (["cat", "dog"], [1, -1, 0])


def test_columns_may_be_called_otherwise_where_the_file_says_what_they_are(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = hub_table(PICTURES[:2], {"kind": [1, 0]}, {"kind": {"names": ["a", "b"], "_type": "ClassLabel"}})
    plain = pa.table({"img": pa.array(PICTURES[2:4], pa.binary()), "labels": [0, 1]})
    for name, content in (("marked", table), ("plain", plain)):
        (tmp_path / name).mkdir()
        parquet.write_table(content, tmp_path / name / "train.parquet")
    marked = load_dataset(tmp_path / "marked")
    assert (marked.class_names, marked.splits["train"].labels.tolist()) == (["a", "b"], [1, 0])
    assert load_dataset(tmp_path / "plain").splits["train"].load(1) == PICTURES[3]


@pytest.mark.parametrize(
    ("columns", "features", "says"),
    [
        ({"text": ["a", "b"]}, {}, "no column of labels: one must be called label"),
        ({"label": [0.5, 1.5]}, {}, "labels are whole numbers or texts"),
        ({"label": [0, 7]}, NAMED, "has the label 7, but there are 2 classes"),
        (
            {"a": [0, 1], "b": [0, 1]},
            {"a": {"names": ["x", "y"], "_type": "ClassLabel"}, "b": {"names": ["x", "y"], "_type": "ClassLabel"}},
            r"several label columns \(a, b\)",
        ),
    ],
)
def test_labels_that_cannot_be_used_say_why(tmp_path, columns, features, says):
    write(tmp_path / "train.parquet", range(2), columns, features)
    with pytest.raises(SettingError, match=says):
        load_dataset(tmp_path)


def test_a_file_without_images_names_its_columns(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(SettingError, match=r"no column of images \(its columns: x, label\)"):
        load_dataset(tmp_path)


def test_an_image_that_is_only_a_path_is_one_that_cannot_be_read_and_the_path_is_not_opened(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}], kind)
    parquet.write_table(pa.table({"image": cells, "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(OSError, match="the image's bytes are not in"):
        load_dataset(tmp_path).splits["train"].load(0)


def test_a_damaged_part_of_a_file_is_told_when_it_is_read(repository):
    file = next((repository / "data").glob("train-00000*"))
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    train = load_dataset(repository).splits["train"]
    with pytest.raises((SettingError, OSError), match=r"train-00000-of-00002-abc\.parquet"):
        train.load(0)
    assert train.load(7) == PICTURES[7]
