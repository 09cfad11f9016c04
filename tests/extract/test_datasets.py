"""Named data sets from tiny files in the published format, and folders of a user's own."""

import gzip

import numpy as np
import pytest
from PIL import Image

from cspipe.extract.datasets import DATASETS, load_dataset
from cspipe.extract.splits import array_split, joined
from cspipe.store.errors import MissingDataError, SettingError, UnknownNameError


def test_digits_split_is_stratified_fixed_and_covers_every_image_once():
    data = load_dataset("digits")
    train, test = data.splits["train"], data.splits["test"]
    assert (len(train), len(test)) == (1437, 360)
    assert len(set(train.paths) | set(test.paths)) == 1797
    assert test.paths == load_dataset("digits").splits["test"].paths
    share = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.all(np.abs(share - 0.2) < 0.01)
    image = train.load(0)
    assert image.shape == (8, 8)
    assert image.dtype == np.uint8
    assert max(train.load(i).max() for i in range(50)) == 255


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_found_as_published_unpacked_or_as_torchvision_keeps_it(mnist_dir, tmp_path, place, packed):
    folder = tmp_path / "elsewhere"
    (folder / place).mkdir(parents=True)
    for file in mnist_dir.iterdir():
        name = file.name if packed else file.stem
        content = file.read_bytes() if packed else gzip.decompress(file.read_bytes())
        (folder / place / name).write_bytes(content)
    data = load_dataset("mnist", data_dir=folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "test": 10}
    assert data.splits["train"].load(39).shape == (28, 28)
    assert data.splits["train"].paths[7] == "train-images/00007"
    assert data.splits["test"].labels.tolist() == list(range(10))
    assert data.source == str(folder)


def test_a_missing_mnist_file_names_the_four(mnist_dir):
    (mnist_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingDataError, match=r"train-images-idx3-ubyte.gz.*t10k-labels-idx1-ubyte.gz"):
        load_dataset("mnist", data_dir=mnist_dir)


def test_a_failed_download_is_told_in_one_line_and_writes_nothing_to_standard_output(monkeypatch, tmp_path, capsys):
    import torchvision

    def fail(root, download):
        print("Downloading ...")
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"--data-dir") as caught:
        load_dataset("mnist")
    assert "t10k-images-idx3-ubyte.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("train-images-idx3-ubyte.gz", lambda b: gzip.compress(gzip.decompress(b)[:-1]), "announces 31,360"),
        ("train-images-idx3-ubyte.gz", lambda b: b[:-20], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"\0\0\x08\x03" + bytes(44)), "no IDX file of 1"),
        ("train-labels-idx1-ubyte.gz", lambda b: b"not gzip", "cannot be read"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b""), "no IDX file"),
    ],
)
def test_a_damaged_mnist_file_is_named(mnist_dir, name, change, says):
    file = mnist_dir / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(SettingError, match=says) as caught:
        load_dataset("mnist", data_dir=mnist_dir)
    assert name in str(caught.value)


def test_images_and_labels_of_different_releases_are_refused(mnist_dir, idx):
    labels = gzip.compress(idx(np.zeros(39, np.uint8)))
    (mnist_dir / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(SettingError, match=r"40 images.*39 labels"):
        load_dataset("mnist", data_dir=mnist_dir)


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 0, 0)).save(path)


def test_a_folder_with_train_and_test_gives_both_with_sorted_classes(tmp_path):
    for path in ("train/b/1.png", "train/a/2.JPG", "train/a/deep/3.png", "test/a/4.png", "test/c/5.png"):
        picture(tmp_path / "pets" / path)
    picture(tmp_path / "pets/unlabelled/6.png")
    picture(tmp_path / "pets/train/unlabelled/7.png")
    data = load_dataset(str(tmp_path / "pets"))
    train, test = data.splits["train"], data.splits["test"]
    assert (data.name, data.class_names) == ("pets", ["a", "b", "c"])
    assert train.paths[:3] == ["train/a/2.JPG", "train/a/deep/3.png", "train/b/1.png"]
    assert train.labels.tolist() == [0, 0, 1, -1, -1]
    assert (test.paths, test.labels.tolist()) == (["test/a/4.png", "test/c/5.png"], [0, 2])
    assert train.load(0) == (tmp_path / "pets/train/a/2.JPG").read_bytes()
    assert data.source == str(tmp_path / "pets")


def test_a_folder_of_classes_alone_is_the_train_split(tmp_path):
    picture(tmp_path / "cat/1.png")
    picture(tmp_path / "dog/2.png")
    picture(tmp_path / "unlabelled/3.png")
    data = load_dataset(tmp_path)
    assert list(data.splits) == ["train"]
    assert data.class_names == ["cat", "dog"]
    assert data.splits["train"].labels.tolist() == [0, 1, -1]


def test_hidden_files_and_files_that_are_no_images_are_passed_over(tmp_path):
    picture(tmp_path / "cat/1.png")
    picture(tmp_path / "cat/.hidden.png")
    picture(tmp_path / ".thumbs/2.png")
    (tmp_path / "cat/notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    data = load_dataset(tmp_path)
    assert (data.class_names, data.splits["train"].paths) == (["cat"], ["cat/1.png"])


def test_a_link_that_leads_back_does_not_hang_and_a_linked_class_counts(tmp_path):
    picture(tmp_path / "elsewhere/1.png")
    picture(tmp_path / "data/cat/2.png")
    (tmp_path / "data/cat/loop").symlink_to(tmp_path / "data/cat")
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    assert load_dataset(tmp_path / "data").splits["train"].paths == ["cat/2.png", "dog/1.png"]


def test_a_folder_without_classes_shows_the_layout(tmp_path):
    picture(tmp_path / "1.png")
    with pytest.raises(MissingDataError, match=r"train/CLASS/image.jpg .* or .*/CLASS/image.jpg alone"):
        load_dataset(tmp_path)


def test_a_name_that_is_neither_data_set_nor_folder_names_the_nearest_and_mentions_folders(tmp_path):
    with pytest.raises(UnknownNameError, match=r"did you mean 'mnist'.*folder of images works too"):
        load_dataset("mnits")
    with pytest.raises(MissingDataError, match="nothing at"):
        load_dataset(tmp_path / "gone")


def test_a_misspelt_folder_is_answered_with_the_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textiles").mkdir()
    with pytest.raises(UnknownNameError, match=r"none at textile: did you mean the folder textiles\?$"):
        load_dataset("textile")


def test_the_registry_names_every_data_set_by_its_own_name_and_says_what_is_known():
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert min(spec.train, spec.test, spec.classes, spec.side_px) > 0
        assert spec.where and spec.words


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_an_empty_folder_is_told_with_the_files_that_belong_there(tmp_path, name):
    with pytest.raises(MissingDataError, match="--data-dir takes a folder with") as caught:
        load_dataset(name, data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_another_kind_names_the_kinds_that_are_read(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"")
    with pytest.raises(SettingError, match=r"a folder of images, a \.csv, a \.npz, a \.tar, or hf:OWNER/NAME"):
        load_dataset(tmp_path / "pets.zip")


def test_joined_lists_ask_each_part_for_its_own_numbers():
    asked = []

    def part(name, count):
        labels = np.zeros(count, np.int64)
        return array_split(name, labels, lambda i: asked.append((name, i)) or b"")

    whole = joined([part("a", 2), part("b", 0), part("c", 3)])
    for image in range(len(whole)):
        whole.load(image)
    assert asked == [("a", 0), ("a", 1), ("c", 0), ("c", 1), ("c", 2)]
    assert (whole.name, whole.paths[2]) == ("a", "c/00000")
