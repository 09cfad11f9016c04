"""CIFAR-10 and CIFAR-100, in the binary version or in the Python version.

The binary version is taken where it is there: it is plain bytes. The Python version is pickles: a file is only read
once its MD5 is the published one, and then by an unpickler that can build arrays, lists and texts and nothing else.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.published import (
    checked_bytes,
    damaged,
    download,
    find_file,
    local_or_downloaded,
    need_file,
    two_splits,
)
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit, array_split, joined

_PIXELS = 3 * 32 * 32
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class _Layout:
    """Names inside the two versions; a binary record is ``label_bytes`` bytes, the last the label, then pixels."""

    reader: str
    python_folder: str
    binary_folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    label_key: str
    python_names: tuple[str, str]
    binary_names: str


_CIFAR10 = _Layout(
    reader="CIFAR10",
    python_folder="cifar-10-batches-py",
    binary_folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    label_bytes=1,
    label_key="labels",
    python_names=("batches.meta", "label_names"),
    binary_names="batches.meta.txt",
)
_CIFAR100 = _Layout(
    reader="CIFAR100",
    python_folder="cifar-100-python",
    binary_folder="cifar-100-binary",
    train=("train",),
    test=("test",),
    label_bytes=2,
    label_key="fine_labels",
    python_names=("meta", "fine_label_names"),
    binary_names="fine_label_names.txt",
)


class _Arrays(pickle.Unpickler):
    """An unpickler that knows the four names that arrays need, as numpy called them when the files were made."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - what a pickle names
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding="latin1": str(text).encode(coding)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickled(spec: DatasetSpec, path: Path) -> dict[str, Any]:
    """The table in a file of the Python version."""
    content = checked_bytes(spec, path)
    try:
        table = _Arrays(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly every kind of error
        raise damaged(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(table, dict):
        raise damaged(path, "it holds no table")
    return table


def _python_part(spec: DatasetSpec, layout: _Layout, path: Path) -> Part:
    """Pixels `(N, 3, 32, 32)` and labels `(N,)` of a file of the Python version."""
    table = _unpickled(spec, path)
    pixels, labels = table.get("data"), table.get(layout.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise damaged(path, f"its data are no rows of {_PIXELS} bytes")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise damaged(path, f"it holds {len(pixels)} images and no list of as many {layout.label_key}")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _binary_part(spec: DatasetSpec, layout: _Layout, path: Path) -> Part:
    """Pixels and labels of a file of the binary version."""
    content = np.frombuffer(checked_bytes(spec, path), np.uint8)
    size = layout.label_bytes + _PIXELS
    if len(content) == 0 or len(content) % size:
        raise damaged(path, f"its {len(content):,} bytes are no records of {size:,}")
    records = content.reshape(-1, size)
    pixels = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return pixels, records[:, layout.label_bytes - 1].astype(np.int64)


def _split(name: str, parts: list[Part]) -> ImageSplit:
    def one(file: int, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> ImageSplit:
        folder = f"{name}-{file + 1}" if len(parts) > 1 else name
        return array_split(name, labels, lambda i: np.ascontiguousarray(pixels[i].transpose(1, 2, 0)), folder=folder)

    return joined([one(file, *part) for file, part in enumerate(parts)])


def _read_folder(spec: DatasetSpec, layout: _Layout, folder: Path) -> Dataset:
    """The binary version where it is there, else the Python version."""
    below = (layout.binary_folder,)
    if find_file(folder, f"{layout.train[0]}.bin", below):
        files = {name: need_file(spec, folder, f"{name}.bin", below) for name in (*layout.train, *layout.test)}
        read, names = _binary_part, need_file(spec, folder, layout.binary_names, below)
        class_names = names.read_text(encoding="utf-8", errors="replace").split()
    else:
        below = (layout.python_folder,)
        files = {name: need_file(spec, folder, name, below) for name in (*layout.train, *layout.test)}
        read, (meta, key) = _python_part, layout.python_names
        class_names = [str(name) for name in _unpickled(spec, need_file(spec, folder, meta, below)).get(key, [])]
    train, test = (
        _split(split, [read(spec, layout, files[name]) for name in names])
        for split, names in (("train", layout.train), ("test", layout.test))
    )
    return two_splits(spec, class_names, (train, test), folder)


def _read(spec: DatasetSpec, data_dir: Path | None, layout: _Layout) -> Dataset:
    return local_or_downloaded(
        spec,
        data_dir,
        lambda folder: _read_folder(spec, layout, folder),
        lambda folder: download(spec, folder, layout.reader),
    )


def read_cifar10(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """50,000 and 10,000 colour images of 32 px, 10 classes.

    Args:
        spec: its entry in the registry, with the published sums.
        data_dir: folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` or the files themselves, or None
            to download the Python version once.

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is not the published one.
    """
    return _read(spec, data_dir, _CIFAR10)


def read_cifar100(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """50,000 and 10,000 colour images of 32 px, 100 fine classes; as :func:`read_cifar10`."""
    return _read(spec, data_dir, _CIFAR100)
