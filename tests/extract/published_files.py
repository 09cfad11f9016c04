"""Writers of tiny data sets in the exact published formats, each with the spec that expects these very files."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from small_files import Written, finish, hub_table, images_of, png, sums

from cspipe.extract.datasets import DATASETS


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> Written:
    files, splits = [], {}
    for split, stem, count in (("train", "train", 12), ("test", "t10k", 5)):
        images, labels = images_of(count, 28, count, 1), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            files.append(folder / f"{stem}-{kind}-ubyte.gz")
            files[-1].write_bytes(gzip.compress(idx(array)))
        splits[split] = images, labels
    return finish("mnist", folder, splits, files, files=DATASETS["mnist"].files)


def _python2_text(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def _python2(value: object) -> bytes:
    """A value as the opcodes that Python 2 wrote, protocol 2; texts are byte strings."""
    if isinstance(value, str):
        return _python2_text(value.encode())
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _python2_text(value.tobytes()) + b"tb"


def python2_pickle(table: dict[str, object]) -> bytes:
    """The bytes of a pickle file as CIFAR's authors wrote them."""
    return b"\x80\x02" + _python2(table) + b"."


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_NAMES = [f"class_{number}" for number in range(100)]


def _cifar_parts(names: list[str], classes: int) -> dict[str, tuple[np.ndarray, list[int]]]:
    return {
        name: (images_of(3, 32, seed), [(7 * seed + 31 * i) % classes for i in range(3)])
        for seed, name in enumerate(names)
    }


def _planes(images: np.ndarray) -> np.ndarray:
    """Rows of 3,072 bytes, plane by plane."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def _cifar_splits(parts: dict[str, tuple[np.ndarray, list[int]]]) -> dict[str, tuple]:
    splits = {}
    for split in ("train", "test"):
        mine = [part for name, part in parts.items() if (split == "test") == name.startswith("test")]
        splits[split] = np.concatenate([part[0] for part in mine]), [label for part in mine for label in part[1]]
    return splits


CIFAR10_PARTS = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def write_cifar10_python(folder: Path) -> Written:
    parts = _cifar_parts(CIFAR10_PARTS, 10)
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    files = []
    for name, (images, labels) in parts.items():
        names = [f"{name}_{i}.png" for i in range(len(images))]
        table = {"batch_label": name, "labels": labels, "data": _planes(images), "filenames": names}
        files.append(inner / name)
        files[-1].write_bytes(python2_pickle(table))
    files.append(inner / "batches.meta")
    files[-1].write_bytes(python2_pickle({"num_cases_per_batch": 3, "label_names": CIFAR10_NAMES, "num_vis": 3072}))
    return finish("cifar10", folder, _cifar_splits(parts), files)


def write_cifar10_binary(folder: Path) -> Written:
    parts = _cifar_parts(CIFAR10_PARTS, 10)
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir()
    files = []
    for name, (images, labels) in parts.items():
        files.append(inner / f"{name}.bin")
        files[-1].write_bytes(np.column_stack([np.array(labels, np.uint8), _planes(images)]).tobytes())
    files.append(inner / "batches.meta.txt")
    files[-1].write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    return finish("cifar10", folder, _cifar_splits(parts), files)


def write_cifar100_python(folder: Path) -> Written:
    parts = _cifar_parts(["train", "test"], 100)
    inner = folder / "cifar-100-python"
    inner.mkdir()
    files = []
    for name, (images, labels) in parts.items():
        coarse = [label // 5 for label in labels]
        table = {"filenames": ["a.png"] * 3, "batch_label": "", "fine_labels": labels, "coarse_labels": coarse}
        files.append(inner / name)
        files[-1].write_bytes(python2_pickle(table | {"data": _planes(images)}))
    files.append(inner / "meta")
    files[-1].write_bytes(python2_pickle({"fine_label_names": CIFAR100_NAMES, "coarse_label_names": ["fish"]}))
    return finish("cifar100", folder, _cifar_splits(parts), files)


def write_cifar100_binary(folder: Path) -> Written:
    parts = _cifar_parts(["train", "test"], 100)
    inner = folder / "cifar-100-binary"
    inner.mkdir()
    files = []
    for name, (images, labels) in parts.items():
        fine = np.array(labels, np.uint8)
        files.append(inner / f"{name}.bin")
        files[-1].write_bytes(np.column_stack([fine // 5, fine, _planes(images)]).tobytes())
    files.append(inner / "fine_label_names.txt")
    files[-1].write_text("\n".join(CIFAR100_NAMES) + "\n")
    return finish("cifar100", folder, _cifar_splits(parts), files)


def _write_svhn(folder: Path, name: str, counts: dict[str, int]) -> Written:
    from scipy.io import savemat

    files, splits = [], {}
    for seed, (part, count) in enumerate(counts.items()):
        images, digits = images_of(count, 32, seed), np.arange(count) % 10
        published = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        files.append(folder / f"{part}_32x32.mat")
        savemat(files[-1], {"X": images.transpose(1, 2, 3, 0), "y": published}, do_compression=True)
        splits[part] = images, list(digits)
    if "extra" in splits:
        images, digits = splits.pop("extra")
        splits["train"] = [*splits["train"][0], *images], [*splits["train"][1], *([-1] * len(digits))]
    return finish(name, folder, splits, files)


def write_svhn(folder: Path) -> Written:
    return _write_svhn(folder, "svhn", {"train": 12, "test": 11})


def write_svhn_extra(folder: Path) -> Written:
    return _write_svhn(folder, "svhn-extra", {"train": 12, "test": 11, "extra": 4})


def write_stl10(folder: Path) -> Written:
    inner = folder / "stl10_binary"
    inner.mkdir()
    files, parts = [], {}
    for seed, (part, count) in enumerate((("train", 4), ("test", 3), ("unlabeled", 5))):
        images, labels = images_of(count, 96, seed), [(3 * i + seed) % 10 for i in range(count)]
        files.append(inner / f"{part}_X.bin")
        files[-1].write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if part != "unlabeled":
            files.append(inner / f"{part}_y.bin")
            files[-1].write_bytes(bytes(label + 1 for label in labels))
        parts[part] = images, labels
    train = [*parts["train"][0], *parts["unlabeled"][0]], [*parts["train"][1], *([-1] * 5)]
    return finish("stl10", folder, {"train": train, "test": parts["test"]}, files)


EUROSAT_NAMES = [
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
]


def _jpeg(image: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=90)
    return packed.getvalue()


def write_eurosat_zip(folder: Path) -> Written:
    """The zip as published; which images are test is not asked here, so images and labels are left empty."""
    archive = folder / "EuroSAT.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("2750/", b"")
        for number, name in enumerate(EUROSAT_NAMES):
            packed.writestr(f"2750/{name}/", b"")
            for i in range(1, 11):
                packed.writestr(f"2750/{name}/{name}_{i}.jpg", _jpeg(images_of(1, 64, 11 * number + i)[0]))
    spec = replace(DATASETS["eurosat"], train=80, test=20, files=sums([archive]))
    return Written(folder, spec, {}, {}, [archive])


def _galaxies() -> dict[str, tuple[np.ndarray, list[int]]]:
    return {"train": (images_of(8, 64, 1), [0, 1, 2, 3] * 2), "test": (images_of(4, 64, 2), [3, 2, 1, 0])}


def write_galaxymnist_hdf5(folder: Path, *, packed: bool = True) -> Written:
    import h5py

    inner = folder / "GalaxyMNIST" / "raw"
    inner.mkdir(parents=True)
    splits, files = _galaxies(), []
    for split, (images, labels) in splits.items():
        file = inner / f"{split}_dataset.hdf5"
        with h5py.File(file, "w") as out:
            out.create_dataset("images", data=images)
            out.create_dataset("labels", data=np.array(labels, np.uint8))
        if packed:
            content = file.read_bytes()
            file.unlink()
            file = file.with_name(f"{file.name}.gz")
            file.write_bytes(gzip.compress(content))
        files.append(file)
    return finish("galaxymnist", folder, splits, files)


def write_galaxymnist_unpacked(folder: Path) -> Written:
    return write_galaxymnist_hdf5(folder, packed=False)


def write_galaxymnist_parquet(folder: Path) -> Written:
    from pyarrow import parquet

    inner = folder / "data"
    inner.mkdir()
    splits, files = _galaxies(), []
    for split, (images, labels) in splits.items():
        names = [f"{split}_galaxy_{i}" for i in range(len(images))]
        features = {"label": {"dtype": "int64", "_type": "Value"}, "id_str": {"dtype": "string", "_type": "Value"}}
        table = hub_table([png(image) for image in images], {"label": labels, "id_str": names}, features)
        files.append(inner / f"{split}-00000-of-00001.parquet")
        parquet.write_table(table, files[-1], row_group_size=3)
    return finish("galaxymnist", folder, splits, files, files=DATASETS["galaxymnist"].files)


WRITERS: dict[str, Callable[[Path], Written]] = {
    "mnist": write_mnist,
    "cifar10, Python version": write_cifar10_python,
    "cifar10, binary version": write_cifar10_binary,
    "cifar100, Python version": write_cifar100_python,
    "cifar100, binary version": write_cifar100_binary,
    "svhn": write_svhn,
    "svhn-extra": write_svhn_extra,
    "stl10": write_stl10,
    "eurosat": write_eurosat_zip,
    "galaxymnist, HDF5 as published": write_galaxymnist_hdf5,
    "galaxymnist, HDF5 unpacked": write_galaxymnist_unpacked,
    "galaxymnist, parquet": write_galaxymnist_parquet,
}
