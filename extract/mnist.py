"""MNIST from its four published files, the same digits under stripes, and all three as saved by their authors."""

import gzip
import zlib
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.hub_images import SAVED, read_saved
from cspipe.extract.published import download, find_file, local_or_downloaded
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit
from cspipe.extract.stripes import COLOURS, Striped
from cspipe.store.errors import MissingDataError, SettingError

FILES = MappingProxyType(
    {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }
)
_BELOW = ("MNIST/raw", "raw")
_MAGIC = {1: 0x801, 3: 0x803}
_NAMES = ", ".join(f"{name}.gz" for pair in FILES.values() for name in pair)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises:
        SettingError: another kind of file, or one cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SettingError(f"{path} cannot be read ({error}): fetch the file again") from error
    header = np.frombuffer(content[: 4 + 4 * dimensions], dtype=">u4")
    if len(header) != 1 + dimensions or header[0] != _MAGIC[dimensions]:
        raise SettingError(f"{path} is no IDX file of {dimensions} dimensions: fetch the file again")
    shape = tuple(int(size) for size in header[1:])
    body = np.frombuffer(content, dtype=np.uint8)[4 + 4 * dimensions :]
    if len(body) != np.prod(shape):
        raise SettingError(f"{path} announces {np.prod(shape):,} bytes and holds {len(body):,}: fetch the file again")
    return body.reshape(shape)


def _find(spec: DatasetSpec, folder: Path) -> dict[str, Path]:
    """The four files, gzipped or not, in the folder or where torchvision keeps them below it."""
    found = {}
    for name in (name for pair in FILES.values() for name in pair):
        path = find_file(folder, f"{name}.gz", _BELOW) or find_file(folder, name, _BELOW)
        if path is None:
            raise MissingDataError(
                f"{folder} does not hold {name} of {spec.name}: --data-dir takes a folder with {_NAMES}"
            )
        found[name] = path
    return found


def _read_split(name: str, files: dict[str, Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels `(N, 28, 28)` and labels `(N,)` of one split."""
    images, labels = (files[part] for part in FILES[name])
    pixels, label = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
    if len(pixels) != len(label):
        raise SettingError(f"{images} holds {len(pixels)} images, {labels} {len(label)} labels: fetch both again")
    if len(label) and label.max() > 9:
        raise SettingError(f"{labels} holds the label {label.max()}, but MNIST has the classes 0 to 9")
    return pixels, label


def _read_digits(spec: DatasetSpec, folder: Path, colour: tuple[int, int, int] | None) -> Dataset:
    files = _find(spec, folder)
    splits = {}
    for split in FILES:
        pixels, label = _read_split(split, files)
        paths = [f"{split}-images/{image:05d}" for image in range(len(label))]
        load = pixels.__getitem__ if colour is None else Striped(pixels, split, colour).image
        splits[split] = ImageSplit(split, label, paths, load)
    return Dataset(spec.name, [str(digit) for digit in range(10)], splits, str(folder))


def _saved(spec: DatasetSpec, folder: Path) -> Path | None:
    """The authors' saved folder, ``mnist``, ``mnist_white_stripes`` or ``mnist_yellow_stripes``: it or one in it."""
    name = spec.name.replace("-", "_")
    places = (folder / name, folder) if folder.name == name else (folder / name,)
    return next((place for place in places if (place / SAVED).is_file() or next(place.glob("*.parquet"), None)), None)


def _read(spec: DatasetSpec, data_dir: Path | None, colour: tuple[int, int, int] | None) -> Dataset:
    def read(folder: Path) -> Dataset:
        saved = _saved(spec, folder)
        if saved is None:
            return _read_digits(spec, folder, colour)
        found = read_saved(saved, name=spec.name, class_names=[str(digit) for digit in range(10)])
        return Dataset(found.name, found.class_names, found.splits, str(folder))

    return local_or_downloaded(spec, data_dir, read, lambda folder: download(spec, folder, "MNIST"))


def read_mnist(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """60,000 and 10,000 digits of 28 x 28 grey pixels.

    Args:
        spec: its entry in the registry.
        data_dir: folder of the four files, as published or unpacked, or with the folder ``mnist`` of the striped
            sets' authors, or None to download the files once.

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is damaged.
    """
    return _read(spec, data_dir, None)


def read_striped(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """MNIST under white or yellow stripes.

    Args:
        spec: its entry in the registry; the colour is in the name.
        data_dir: folder with ``mnist_white_stripes`` or ``mnist_yellow_stripes`` as the authors saved them, which
            are read as they are; else as in :func:`read_mnist`, and the stripes are our re-creation, see
            :mod:`cspipe.extract.stripes`.

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is damaged.
    """
    return _read(spec, data_dir, COLOURS[spec.name.split("-")[1]])
