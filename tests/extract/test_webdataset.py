"""WebDataset tars, read in place."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_files import images_of, png

from cspipe.extract.datasets import load_dataset
from cspipe.store.errors import MissingDataError, SettingError

PICTURES = [png(image) for image in images_of(8, 8, 0)]


def write_tar(file: Path, members: list[tuple[str, bytes]], links: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for link in links:
            tar.addfile(link)
    return file


def samples(numbers: range, label=lambda i: str(i % 3)) -> list[tuple[str, bytes]]:
    return [
        pair
        for i in numbers
        for pair in ((f"{i:04d}.png", PICTURES[i]), (f"{i:04d}.cls", label(i).encode()), (f"{i:04d}.json", b"{}"))
    ]


def test_a_tar_is_read_in_place_from_several_threads(tmp_path):
    file = write_tar(tmp_path / "pets-000.tar", samples(range(8)))
    data = load_dataset(file)
    train = data.splits["train"]
    assert (data.name, data.class_names, list(data.splits)) == ("pets-000", ["0", "1", "2"], ["train"])
    assert (train.paths[0], train.labels.tolist()) == ("pets-000.tar/0000.png", [i % 3 for i in range(8)])
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(train.load, range(8))) == PICTURES
    assert list(tmp_path.iterdir()) == [file]


def test_labels_may_come_before_images_be_missing_or_be_texts(tmp_path):
    members = [
        ("a/1.cls", b"dog\n"), ("a/1.jpg", PICTURES[0]), ("b/1.JPG", PICTURES[1]), ("b/2.png", PICTURES[2]),
        ("b/2.cls", b" cat "), ("b/3.png", PICTURES[3]), ("b/3.cls", b"-1"), ("b/3.left.png", PICTURES[4]),
    ]  # fmt: skip
    data = load_dataset(write_tar(tmp_path / "pets.tar", members))
    assert data.class_names == ["cat", "dog"]
    assert data.splits["train"].paths == [
        "pets.tar/a/1.jpg",
        "pets.tar/b/1.JPG",
        "pets.tar/b/2.png",
        "pets.tar/b/3.png",
    ]
    assert data.splits["train"].labels.tolist() == [1, -1, 0, -1]


def test_class_numbers_count_from_0_to_the_highest(tmp_path):
    data = load_dataset(write_tar(tmp_path / "pets.tar", samples(range(2), label=lambda i: f"0{4 * i + 7}")))
    assert data.class_names == [str(number) for number in range(12)]
    assert data.splits["train"].labels.tolist() == [7, 11]


@pytest.mark.parametrize("pattern", ["shards/pets-train-{000..001}.tar", "shards/pets-train-*.tar"])
def test_a_pattern_means_all_its_tars(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        write_tar(tmp_path / f"shards/pets-train-00{number}.tar", samples(range(4 * number, 4 * number + 4)))
    write_tar(tmp_path / "shards/pets-test-000.tar", samples(range(2)))
    data = load_dataset(pattern)
    assert (data.name, list(data.splits)) == ("pets-train", ["train"])
    assert [data.splits["train"].load(i) for i in range(8)] == PICTURES
    again = load_dataset(data.source)
    assert again.splits["train"].paths == data.splits["train"].paths


def test_a_folder_of_tars_gives_train_and_test_by_their_names(tmp_path):
    write_tar(tmp_path / "pets/train/000.tar", samples(range(4)))
    write_tar(tmp_path / "pets/train/001.tar", samples(range(4, 6)))
    write_tar(tmp_path / "pets/unlabeled-000.tar", [("9.png", PICTURES[7])])
    write_tar(tmp_path / "pets/val/000.tar", samples(range(6, 7)))
    data = load_dataset(tmp_path / "pets")
    assert data.name == "pets"
    assert data.splits["train"].labels.tolist() == [0, 1, 2, 0, 1, 2, -1]
    assert data.splits["test"].load(0) == PICTURES[6]
    assert data.splits["train"].load(6) == PICTURES[7]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:/evil.png"])
def test_a_tar_that_names_a_file_outside_itself_is_refused(tmp_path, name):
    file = write_tar(tmp_path / "pets.tar", [*samples(range(1)), (name, PICTURES[0])])
    with pytest.raises(SettingError, match=r"pets\.tar names .* leads out of the archive: do not use"):
        load_dataset(file)


def test_links_in_a_tar_are_never_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PICTURES[5])
    links = []
    for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, str(tmp_path / "secret.png")
        links.append(link)
    data = load_dataset(write_tar(tmp_path / "pets.tar", samples(range(1)), tuple(links)))
    assert data.splits["train"].paths == ["pets.tar/0000.png"]


def test_a_truncated_tar_is_told_plainly_wherever_it_is_cut(tmp_path):
    file = write_tar(tmp_path / "pets.tar", samples(range(3)))
    content = file.read_bytes()
    for kept in (0, 100, 512, 700, 1024, 1500, 5 * 512, 7 * 512 + 1):
        file.write_bytes(content[:kept])
        with pytest.raises(SettingError, match=r"pets\.tar is damaged.*fetch the file again"):
            load_dataset(file)


def test_a_compressed_tar_is_told_to_be_unpacked_and_another_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "pets.tar", "w:gz") as tar:
        tar.add(__file__, "1.png")
    with pytest.raises(SettingError, match=r"cut short, or compressed \(gunzip it\)"):
        load_dataset(tmp_path / "pets.tar")
    (tmp_path / "pets.tar").write_bytes(b"\0" * 5000)
    with pytest.raises(MissingDataError, match="holds no training images"):
        load_dataset(tmp_path / "pets.tar")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("1.png", b"a"), ("1.jpg", b"b")], "two images of the name 1"),
        ([("1.png", b"a"), ("1.cls", b"\0\1\2")], r"1\.cls is no class"),
        ([("1.png", b"a"), ("1.cls", b"x" * 2000)], r"1\.cls is no class"),
        ([("1.png", b"a"), ("1.cls", b"123456789")], "holds the label 123456789"),
    ],
)
def test_samples_that_cannot_be_used_say_why(tmp_path, members, says):
    with pytest.raises(SettingError, match=says):
        load_dataset(write_tar(tmp_path / "pets.tar", members))


def test_a_tar_that_is_not_there_is_named(tmp_path):
    write_tar(tmp_path / "pets-0.tar", samples(range(1)))
    with pytest.raises(MissingDataError, match=r"no tar at .*pets-1\.tar: check the path and the range"):
        load_dataset(f"{tmp_path}/pets-{{0..1}}.tar")
    with pytest.raises(MissingDataError, match="no tar at"):
        load_dataset(f"{tmp_path}/dogs-*.tar")
    with pytest.raises(MissingDataError, match="nothing at"):
        load_dataset(tmp_path / "dogs.tar")
