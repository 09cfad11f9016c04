"""Every published data set from a tiny file in its exact format; missing, changed and truncated files."""

import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_files import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    EUROSAT_NAMES,
    WRITERS,
    python2_pickle,
    write_cifar10_python,
    write_eurosat_zip,
    write_galaxymnist_hdf5,
    write_galaxymnist_parquet,
    write_svhn,
)
from small_files import sums

from cspipe.extract.datasets import DATASETS, load_dataset
from cspipe.extract.images import decode
from cspipe.extract.splits import PublishedFile
from cspipe.store.errors import MissingDataError, SettingError

CHECKED = [
    "cifar10, Python version", "cifar100, Python version", "svhn", "svhn-extra", "stl10", "eurosat",
    "galaxymnist, HDF5 as published",
]  # fmt: skip


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    return WRITERS[request.param](tmp_path)


def pixels(split, image):
    return np.asarray(decode(split.load(image)))


def test_every_published_format_gives_back_its_images_and_labels_from_several_threads(written):
    data = load_dataset(written.spec, data_dir=written.folder)
    assert (data.name, data.source) == (written.spec.name, str(written.folder))
    assert len(data.class_names) == written.spec.classes
    for name, split in data.splits.items():
        assert split.name == name
        assert len(set(split.paths)) == len(split)
        if name not in written.images:
            continue
        assert split.labels.tolist() == written.labels[name]
        assert split.labels.dtype == np.int64
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda i, split=split: pixels(split, i), range(len(split))))
        assert all(np.array_equal(mine, its) for mine, its in zip(read, written.images[name], strict=True))


def test_every_data_set_of_the_registry_is_written_here_or_made_from_one_that_is():
    covered = {name.split(",")[0] for name in WRITERS}
    others = {"digits", "mnist-white-stripes", "mnist-yellow-stripes", "galaxymnist-224"}
    assert covered | others == set(DATASETS)


def test_a_missing_file_is_named_with_what_to_do(written):
    for file in written.files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises((MissingDataError, SettingError), match=r"--data-dir|fetch") as caught:
            load_dataset(written.spec, data_dir=written.folder)
        assert file.name.split("-00000")[0].split(".")[0] in str(caught.value)
        file.write_bytes(content)


@pytest.mark.parametrize("name", CHECKED)
def test_a_changed_byte_is_found_by_the_published_sum(tmp_path, name):
    written = WRITERS[name](tmp_path)
    for file in written.files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SettingError, match=r"not the file that was published.*fetch it again") as caught:
            load_dataset(written.spec, data_dir=written.folder)
        assert str(file) in str(caught.value)
        file.write_bytes(content)
    load_dataset(written.spec, data_dir=written.folder)


def test_a_truncated_file_is_told_plainly_even_where_no_sum_is_known(written):
    spec = replace(written.spec, files=tuple(PublishedFile(file.name) for file in written.spec.files))
    load_dataset(spec, data_dir=written.folder)
    for file in written.files:
        if file.suffix == ".txt":
            continue
        content = file.read_bytes()
        for kept in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:kept])
            with pytest.raises(SettingError, match="fetch") as caught:
                load_dataset(spec, data_dir=written.folder)
            assert file.name in str(caught.value)
            assert "\n" not in str(caught.value)
        file.write_bytes(content)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "mnist"])
def test_too_few_images_are_told_even_where_the_file_is_whole(tmp_path, name):
    written = WRITERS[name](tmp_path)
    spec = replace(written.spec, test=written.spec.test + 1)
    with pytest.raises(SettingError, match=r"test images of .* were published"):
        load_dataset(spec, data_dir=written.folder)


def test_sums_in_the_registry_are_those_that_torchvision_lists():
    from torchvision import datasets as theirs

    listed = {
        "cifar10": [*theirs.CIFAR10.train_list, *theirs.CIFAR10.test_list,
                    [theirs.CIFAR10.meta["filename"], theirs.CIFAR10.meta["md5"]]],
        "cifar100": [*theirs.CIFAR100.train_list, *theirs.CIFAR100.test_list,
                     [theirs.CIFAR100.meta["filename"], theirs.CIFAR100.meta["md5"]]],
        "svhn": [theirs.SVHN.split_list[part][1:] for part in ("train", "test")],
        "svhn-extra": [theirs.SVHN.split_list[part][1:] for part in ("train", "test", "extra")],
        "stl10": [*theirs.STL10.train_list, *theirs.STL10.test_list],
    }  # fmt: skip
    for name, files in listed.items():
        assert {(file.name, file.md5) for file in DATASETS[name].files} == {tuple(file) for file in files}


@pytest.mark.parametrize(("name", "classes"), [("cifar10", CIFAR10_NAMES), ("cifar100", CIFAR100_NAMES)])
@pytest.mark.parametrize("version", ["Python", "binary"])
def test_cifar_class_names_come_from_the_files(tmp_path, name, classes, version):
    written = WRITERS[f"{name}, {version} version"](tmp_path)
    assert load_dataset(written.spec, data_dir=written.folder).class_names == classes


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("trap", ["code", "an object array"])
def test_a_pickle_that_names_more_than_arrays_is_refused_even_with_the_right_sum(tmp_path, monkeypatch, trap):
    import pickle

    monkeypatch.chdir(tmp_path)
    written = write_cifar10_python(tmp_path)
    file = written.files[0]
    file.write_bytes(pickle.dumps({"data": Bomb() if trap == "code" else np.array([Path()], object)}, protocol=2))
    with pytest.raises(SettingError, match=r"data_batch_1 is damaged or of another kind \(it names"):
        load_dataset(replace(written.spec, files=sums(written.files)), data_dir=tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"labels": [1, 2, 3]}, "its data are no rows of 3072 bytes"),
        ({"data": np.zeros((3, 9), np.uint8), "labels": [1, 2, 3]}, "its data are no rows of 3072 bytes"),
        ({"data": np.zeros((3, 3072), np.uint8), "labels": [1]}, "holds 3 images and no list of as many labels"),
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path, table, says):
    written = write_cifar10_python(tmp_path)
    written.files[0].write_bytes(python2_pickle(table))
    with pytest.raises(SettingError, match=says):
        load_dataset(replace(written.spec, files=sums(written.files)), data_dir=tmp_path)


def test_the_binary_version_of_cifar_is_taken_before_the_pickles(tmp_path):
    binary = WRITERS["cifar10, binary version"](tmp_path)
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    (inner / "data_batch_1").write_bytes(b"never read")
    assert len(load_dataset(binary.spec, data_dir=tmp_path).splits["train"]) == 15


def test_the_label_10_of_svhn_is_the_digit_0(tmp_path):
    written = write_svhn(tmp_path)
    train = load_dataset(written.spec, data_dir=tmp_path).splits["train"]
    assert train.labels[:12].tolist() == [*range(10), 0, 1]


def test_svhn_leaves_the_extra_file_alone_and_svhn_extra_needs_it(tmp_path):
    written = WRITERS["svhn-extra"](tmp_path)
    plain = replace(written.spec, name="svhn", unlabelled=0)
    assert (load_dataset(plain, data_dir=tmp_path).splits["train"].labels >= 0).all()
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(MissingDataError, match=r"extra_32x32\.mat of svhn-extra is not in"):
        load_dataset(written.spec, data_dir=tmp_path)


def test_the_split_of_eurosat_is_stratified_fixed_and_the_same_from_zip_and_folder(tmp_path):
    written = write_eurosat_zip(tmp_path)
    packed = load_dataset(written.spec, data_dir=tmp_path)
    (tmp_path / "unpacked").mkdir()
    with zipfile.ZipFile(written.files[0]) as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = load_dataset(written.spec, data_dir=tmp_path / "unpacked")
    assert packed.class_names == unpacked.class_names == EUROSAT_NAMES
    for name in ("train", "test"):
        mine, other = packed.splits[name], unpacked.splits[name]
        assert [path.split("/")[-1] for path in mine.paths] == [path.split("/")[-1] for path in other.paths]
        assert [mine.load(i) for i in range(len(mine))] == [other.load(i) for i in range(len(other))]
        assert np.bincount(mine.labels).tolist() == [len(mine) // 10] * 10
    names = [path.split("/")[-1] for path in unpacked.splits["test"].paths]
    assert names[:4] == ["AnnualCrop_10.jpg", "AnnualCrop_3.jpg", "Forest_4.jpg", "Forest_5.jpg"]


def test_a_zip_that_names_a_file_outside_itself_is_refused(tmp_path):
    written = write_eurosat_zip(tmp_path)
    with zipfile.ZipFile(written.files[0], "a") as archive:
        archive.writestr("../evil.jpg", b"x")
    with pytest.raises(SettingError, match=r"leads out of the archive"):
        load_dataset(replace(written.spec, files=sums(written.files)), data_dir=tmp_path)


def test_a_damaged_image_in_the_zip_is_an_image_that_cannot_be_read(tmp_path):
    written = write_eurosat_zip(tmp_path)
    with zipfile.ZipFile(written.files[0]) as archive:
        start = archive.infolist()[2].header_offset + 300
    content = bytearray(written.files[0].read_bytes())
    content[start] ^= 255
    written.files[0].write_bytes(content)
    data = load_dataset(replace(written.spec, files=sums(written.files)), data_dir=tmp_path)
    failed = 0
    for split in data.splits.values():
        for i in range(len(split)):
            try:
                split.load(i)
            except OSError as error:
                assert "is damaged" in str(error)
                failed += 1
    assert failed == 1


@pytest.mark.parametrize("write", [write_galaxymnist_hdf5, write_galaxymnist_parquet])
def test_galaxies_of_the_other_side_name_the_other_data_set(tmp_path, write):
    written = write(tmp_path)
    spec = replace(written.spec, name="galaxymnist-224", side_px=224)
    with pytest.raises(SettingError, match=r"images of 64 px, galaxymnist-224 is those of 224 px: use galaxymnist"):
        load_dataset(spec, data_dir=tmp_path)


def test_galaxies_of_64_px_cannot_be_downloaded_and_the_hub_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"train_dataset.hdf5.gz.*--data-dir, or use galaxymnist-224"):
        load_dataset("galaxymnist")


@pytest.mark.parametrize(
    ("write", "library"), [(write_galaxymnist_hdf5, "h5py"), (write_galaxymnist_parquet, "pyarrow")]
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, write, library):
    written = write(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        MissingDataError, match=rf"needs {library}: run pip install 'content-style-pipeline\[datasets\]'"
    ):
        load_dataset(written.spec, data_dir=tmp_path)


def test_without_a_folder_torchvision_downloads_into_the_cache_and_the_second_time_nothing_is_fetched(
    monkeypatch, tmp_path
):
    import torchvision

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def fetch(root, download, split):
        calls.append(split)
        if split == "test":
            write_svhn(Path(root))

    (tmp_path / "cspipe" / "svhn").mkdir(parents=True)
    monkeypatch.setattr(torchvision.datasets, "SVHN", fetch)
    sample = tmp_path / "sample"
    sample.mkdir()
    spec = write_svhn(sample).spec
    assert len(load_dataset(spec).splits["train"]) == 12
    assert load_dataset(spec).source == str(tmp_path / "cspipe" / "svhn")
    assert calls == ["train", "test"]


def test_a_damaged_file_in_the_cache_is_fetched_again(monkeypatch, tmp_path):
    import torchvision

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "cspipe" / "svhn"
    folder.mkdir(parents=True)
    spec = write_svhn(folder).spec
    (folder / "train_32x32.mat").write_bytes(b"cut")
    monkeypatch.setattr(torchvision.datasets, "SVHN", lambda root, download, split: write_svhn(Path(root)))
    assert len(load_dataset(spec).splits["test"]) == 11
