"""A user's own images as .csv and .npz."""

import numpy as np
import pytest
from small_files import images_of, png

from cspipe.extract.datasets import load_dataset
from cspipe.store.errors import MissingDataError, SettingError


@pytest.fixture
def table(tmp_path):
    """A function that writes a table beside six images and returns its path."""
    for i, image in enumerate(images_of(6, 8, 0)):
        (tmp_path / "pets").mkdir(exist_ok=True)
        (tmp_path / "pets" / f"{i}.png").write_bytes(png(image))

    def write(text, encoding="utf-8"):
        file = tmp_path / "pets.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


def test_a_table_gives_train_and_test_and_an_empty_label_is_unlabelled(table, tmp_path):
    file = table("label,split,path\ndog,train,pets/0.png\n,,pets/1.png\ncat,test,pets/2.png\ncat,, pets/3.png \n")
    data = load_dataset(file)
    train, test = data.splits["train"], data.splits["test"]
    assert (data.name, data.class_names, data.source) == ("pets", ["cat", "dog"], str(file))
    assert (train.paths, train.labels.tolist()) == (["pets/0.png", "pets/1.png", "pets/3.png"], [1, -1, 0])
    assert (test.paths, test.labels.tolist()) == (["pets/2.png"], [0])
    assert [train.load(i) for i in range(3)] == [(tmp_path / path).read_bytes() for path in train.paths]
    assert test.load(0) == (tmp_path / "pets/2.png").read_bytes()


def test_class_numbers_in_a_table_are_sorted_as_numbers(table):
    data = load_dataset(table("path,label\npets/0.png,10\npets/1.png,9\npets/2.png,2\n"))
    assert (data.class_names, data.splits["train"].labels.tolist()) == (["2", "9", "10"], [2, 1, 0])


def test_a_table_saved_by_a_spreadsheet_with_a_mark_at_its_start_is_read(table):
    data = load_dataset(table("Path,Label\r\npets/0.png,a\r\n", encoding="utf-8-sig"))
    assert data.splits["train"].paths == ["pets/0.png"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("file,label\npets/0.png,a\n", SettingError, r"columns path and label; it has file, label"),
        ("", SettingError, "it has none"),
        ("path,label\n", MissingDataError, "lists no training image"),
        ("path,label\n,a\n", SettingError, "line 2, has no path"),
        ("path,label,split\npets/0.png,a,val\n", SettingError, "line 2, has the split 'val': train, test or nothing"),
        ("path,label,split\npets/0.png,a,test\n", MissingDataError, "lists no training image"),
        ("path,label\npets/0.png,a\npets/0.png,b\n", SettingError, r"lists pets/0\.png twice"),
        ("path,label\npets/0.png,a\npets/9.png,b\n", MissingDataError, r"1 of 2 images .* such as pets/9\.png"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(table, text, error, says):
    file = table(text)
    with pytest.raises(error, match=says) as caught:
        load_dataset(file)
    assert str(file) in str(caught.value)


def test_a_table_that_is_no_text_is_told_plainly(tmp_path):
    (tmp_path / "pets.csv").write_bytes(b"path,label\n\xff\xfe\n")
    with pytest.raises(SettingError, match=r"pets\.csv is damaged or of another kind"):
        load_dataset(tmp_path / "pets.csv")
    with pytest.raises(MissingDataError, match=r"nothing at gone\.csv"):
        load_dataset("gone.csv")


@pytest.fixture
def npz(tmp_path):
    """A function that writes arrays and returns the file's path."""

    def write(**arrays):
        np.savez_compressed(tmp_path / "pets.npz", **arrays)
        return tmp_path / "pets.npz"

    return write


@pytest.mark.parametrize("planes", [1, 3])
def test_arrays_give_train_and_test(npz, planes):
    images, tests = images_of(5, 9, 0, planes), images_of(2, 9, 1, planes)
    file = npz(images=images, labels=[0, -1, 3, 1, 0], test_images=tests, test_labels=np.array([[3], [2]], np.uint8))
    data = load_dataset(file)
    train, test = data.splits["train"], data.splits["test"]
    assert (data.name, data.class_names, data.source) == ("pets", ["0", "1", "2", "3"], str(file))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, -1, 3, 1, 0], [3, 2])
    assert all(np.array_equal(train.load(i), images[i]) for i in range(5))
    assert np.array_equal(test.load(1), tests[1])
    assert train.paths[4] == "train/00004"


def test_arrays_take_names_of_classes_and_labels_that_are_texts(npz):
    images = images_of(3, 8, 0)
    named = load_dataset(npz(images=images, labels=[1, 0, -1], class_names=["cat", "dog"]))
    assert (named.class_names, list(named.splits)) == (["cat", "dog"], ["train"])
    texts = load_dataset(npz(images=images, labels=["dog", "", "cat"]))
    assert (texts.class_names, texts.splits["train"].labels.tolist()) == (["cat", "dog"], [1, -1, 0])


GOOD = images_of(3, 8, 0)


@pytest.mark.parametrize(
    ("arrays", "error", "says"),
    [
        ({"images": GOOD}, MissingDataError, "has no array labels; it has images"),
        ({"x": GOOD, "y": [0, 1, 2]}, MissingDataError, "has no array images; it has x, y"),
        ({"images": GOOD, "labels": [0, 1, 2], "test_images": GOOD}, MissingDataError, "no array test_labels"),
        ({"images": GOOD / 255, "labels": [0, 1, 2]}, SettingError, r"images is uint8 .* it is float64 \(3, 8, 8, 3\)"),
        ({"images": GOOD.transpose(0, 3, 1, 2), "labels": [0, 1, 2]}, SettingError, r"it is uint8 \(3, 3, 8, 8\)"),
        ({"images": GOOD, "labels": [0, 1]}, SettingError, r"labels is \(3,\) whole numbers or texts.* \(2,\)"),
        ({"images": GOOD, "labels": [0.5, 1, 2]}, SettingError, "it is float64"),
        ({"images": GOOD, "labels": [0, -2, 1]}, SettingError, "labels holds -2"),
        (
            {"images": GOOD, "labels": [0, 5, 1], "class_names": ["a"]},
            SettingError,
            "a label is 5, but class_names has 1",
        ),
        (
            {"images": GOOD, "labels": [0, 10**12, 1]},
            SettingError,
            "holds the label 1000000000000: class numbers count",
        ),
        (
            {"images": GOOD, "labels": [0, 1, 2], "test_images": GOOD, "test_labels": ["a", "b", "c"]},
            SettingError,
            "both splits are numbers, or both are texts",
        ),
        ({"images": np.array([{}, {}], object), "labels": [0, 1]}, SettingError, "is damaged or of another kind"),
    ],
)
def test_arrays_that_cannot_be_used_say_why(npz, arrays, error, says):
    file = npz(**arrays)
    with pytest.raises(error, match=says) as caught:
        load_dataset(file)
    assert str(file) in str(caught.value)


def test_a_truncated_npz_is_told_plainly(npz):
    file = npz(images=GOOD, labels=[0, 1, 2])
    content = file.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 5):
        file.write_bytes(content[:kept])
        with pytest.raises(SettingError, match=r"pets\.npz is damaged"):
            load_dataset(file)
