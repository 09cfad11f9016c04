"""SVHN, STL-10 and EuroSAT from their published files, with the sums that torchvision lists."""

import hashlib
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.published import (
    check_file,
    damaged,
    download,
    find_file,
    inside,
    local_or_downloaded,
    need_file,
    two_splits,
)
from cspipe.extract.splits import Dataset, DatasetSpec, Image, ImageSplit, Load, array_split, joined
from cspipe.store.errors import MissingDataError

STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_STL10_FOLDER = "stl10_binary"
_STL10_SHAPE = (3, 96, 96)
_EUROSAT_FOLDERS = ("2750", "eurosat/2750", "EuroSAT_RGB")
_EUROSAT_TEST_SHARE = 5


def _svhn_part(spec: DatasetSpec, path: Path, *, split: str, labelled: bool) -> ImageSplit:
    """The images of one file; the published label 10 is the digit 0."""
    from scipy.io import loadmat

    check_file(spec, path)
    try:
        content: dict[str, Any] = loadmat(str(path), variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].astype(np.int64).reshape(-1)
    except Exception as error:  # the reader has its own kinds of error for damaged files
        raise damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise damaged(path, f"X is {pixels.dtype} {pixels.shape} for {len(labels)} labels, not uint8 (32, 32, 3, N)")
    digits = np.where(labels == 10, 0, labels) if labelled else np.full(len(labels), -1, np.int64)

    def load(image: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pixels[..., image])

    return array_split(split, digits, load, folder=path.stem.removesuffix("_32x32"))


def read_svhn(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """House numbers of 32 px, 10 digits; where the spec has unlabelled images, the extra split is they.

    Args:
        spec: its entry in the registry, with the published sums.
        data_dir: folder with the ``.mat`` files, or None to download them once.

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is not the published one.
    """
    parts = ("train", "test", "extra") if spec.unlabelled else ("train", "test")

    def read(folder: Path) -> Dataset:
        files = {part: need_file(spec, folder, f"{part}_32x32.mat") for part in parts}
        found = {
            part: _svhn_part(spec, path, split="test" if part == "test" else "train", labelled=part != "extra")
            for part, path in files.items()
        }
        train = joined([found[part] for part in parts if part != "test"])
        return two_splits(spec, [str(digit) for digit in range(10)], (train, found["test"]), folder)

    def fetch(folder: Path) -> None:
        download(spec, folder, "SVHN", tuple({"split": part} for part in parts))

    return local_or_downloaded(spec, data_dir, read, fetch)


def _stl10_pixels(spec: DatasetSpec, path: Path) -> NDArray[np.uint8]:
    """Images `(N, 3, W, H)`, column by column as published, read from the disk when asked for."""
    check_file(spec, path)
    size = path.stat().st_size
    if size == 0 or size % int(np.prod(_STL10_SHAPE)):
        raise damaged(path, f"its {size:,} bytes are no images of {_STL10_SHAPE}")
    return np.memmap(path, np.uint8, mode="r").reshape(-1, *_STL10_SHAPE)


def _stl10_part(spec: DatasetSpec, folder: Path, name: str, *, labelled: bool = True) -> ImageSplit:
    """The images of one published part, with their labels 1 to 10 as 0 to 9."""
    images = need_file(spec, folder, f"{name}_X.bin", (_STL10_FOLDER,))
    labels_file = need_file(spec, folder, f"{name}_y.bin", (_STL10_FOLDER,)) if labelled else None
    pixels = _stl10_pixels(spec, images)
    labels = np.full(len(pixels), -1, np.int64)
    if labels_file is not None:
        labels = np.fromfile(check_file(spec, labels_file), np.uint8).astype(np.int64) - 1
        if len(labels) != len(pixels) or labels.min() < 0:
            raise damaged(labels_file, f"it is no {len(pixels)} labels from 1 to 10 of {images.name}")

    def load(image: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pixels[image].transpose(2, 1, 0))

    return array_split("test" if name == "test" else "train", labels, load, folder=name)


def read_stl10(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """5,000 and 8,000 colour images of 96 px, 10 classes, and 100,000 unlabelled training images.

    Args:
        spec: its entry in the registry, with the published sums.
        data_dir: folder with ``stl10_binary`` or its files, or None to download it once (2.6 GB).

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is not the published one.
    """

    def read(folder: Path) -> Dataset:
        labelled, unlabelled = (
            _stl10_part(spec, folder, "train"),
            _stl10_part(spec, folder, "unlabeled", labelled=False),
        )
        test = _stl10_part(spec, folder, "test")
        return two_splits(spec, list(STL10_CLASSES), (joined([labelled, unlabelled]), test), folder)

    return local_or_downloaded(spec, data_dir, read, lambda folder: download(spec, folder, "STL10"))


def _zip_members(path: Path) -> tuple[list[str], Load]:
    """Names of a zip's JPEGs, none leading out of it, and a function that reads the i-th without unpacking."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, str(error)) from error
    names = sorted(name for name in archive.namelist() if inside(name, path) and name.lower().endswith(".jpg"))
    lock = threading.Lock()

    def load(image: int) -> Image:
        try:
            with lock:
                return archive.read(names[image])
        except (zipfile.BadZipFile, KeyError) as error:
            raise OSError(f"{names[image]} in {path} is damaged ({error})") from error

    return names, load


def _eurosat_files(spec: DatasetSpec, folder: Path) -> tuple[list[str], Load]:
    """Names CLASS/FILE of all images, from the unpacked folder or from the zip, and how the i-th is read."""
    root = next((folder / sub for sub in _EUROSAT_FOLDERS if (folder / sub).is_dir()), None)
    if root is not None:
        names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.jpg"))
        return names, lambda i: Path(root, names[i]).read_bytes()
    archive = find_file(folder, "EuroSAT.zip", ("eurosat",))
    if archive is None:
        raise MissingDataError(
            f"{spec.name} is not in {folder}: --data-dir takes a folder with EuroSAT.zip or with the folder 2750 that "
            f"it holds (published at {spec.url})"
        )
    return _zip_members(check_file(spec, archive))


def _test_half(names: list[str]) -> NDArray[np.bool_]:
    """Which images are test: of each class the fifth whose names have the smallest hashes, `(N,)`."""
    chosen = np.zeros(len(names), np.bool_)
    by_class: dict[str, list[int]] = {}
    for image, name in enumerate(names):
        by_class.setdefault(PurePosixPath(name).parent.name, []).append(image)
    for images in by_class.values():
        images.sort(key=lambda i: hashlib.sha256(PurePosixPath(names[i]).name.encode()).digest())
        chosen[images[: round(len(images) / _EUROSAT_TEST_SHARE)]] = True
    return chosen


def read_eurosat(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """27,000 Sentinel-2 colour images of 64 px, 10 kinds of land use.

    No split was published: ours is stratified, 80/20, and always the same, as it goes by hashes of file names.

    Args:
        spec: its entry in the registry, with the published sum of the zip.
        data_dir: folder with ``EuroSAT.zip`` (read in place) or with the folder ``2750``, or None to download it.

    Raises:
        MissingDataError: no images, or the download failed.
        SettingError: images are missing, or the zip is not the published one.
    """

    def read(folder: Path) -> Dataset:
        names, load = _eurosat_files(spec, folder)
        class_names = sorted({PurePosixPath(name).parent.name for name in names})
        labels = np.array([class_names.index(PurePosixPath(name).parent.name) for name in names], np.int64)
        test = _test_half(names)

        def part(split: str, images: NDArray[np.int64]) -> ImageSplit:
            return ImageSplit(split, labels[images], [names[i] for i in images], lambda i: load(int(images[i])))

        splits = part("train", np.flatnonzero(~test)), part("test", np.flatnonzero(test))
        return two_splits(spec, class_names, splits, folder)

    return local_or_downloaded(spec, data_dir, read, lambda folder: download(spec, folder, "EuroSAT"))
