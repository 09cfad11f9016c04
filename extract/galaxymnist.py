"""GalaxyMNIST: 10,000 galaxies of Galaxy Zoo DECaLS in four shapes, at 64 or 224 px, from HDF5 or parquet.

Its authors' links are dead. The HDF5 files hold ``images`` `(N, side, side, 3)` uint8 and ``labels`` `(N,)`; on the
hub the 224 px images lie as parquet, in the same split.
"""

import gzip
import io
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.published import (
    check_counts,
    checked_bytes,
    damaged,
    find_file,
    local_or_downloaded,
    need_file,
    two_splits,
)
from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit, array_split
from cspipe.store.errors import MissingDataError, SettingError

CLASSES = ("smooth_round", "smooth_cigar", "edge_on_disk", "unbarred_spiral")
HUB_NAME = "matthieulel/galaxy_mnist"
_HUB_PX = 224
_BELOW = ("GalaxyMNIST/raw", "raw")


def _open(spec: DatasetSpec, path: Path) -> Any:  # noqa: ANN401 - h5py has no types
    """The HDF5 file, unpacked in memory where it is gzipped."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDataError(f"{path} needs h5py: run pip install 'content-style-pipeline[datasets]'") from error
    try:
        if path.suffix != ".gz":
            return h5py.File(path, "r")
        return h5py.File(io.BytesIO(gzip.decompress(checked_bytes(spec, path))), "r")
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, " ".join(str(error).split())[:200]) from error


def _check_side(spec: DatasetSpec, path: Path, side: int) -> None:
    if side != spec.side_px:
        other = "galaxymnist-224" if side == _HUB_PX else "galaxymnist"
        raise SettingError(f"{path} holds images of {side} px, {spec.name} is those of {spec.side_px} px: use {other}")


def _hdf5_split(spec: DatasetSpec, path: Path, name: str) -> ImageSplit:
    """One split, its images read when asked for."""
    file = _open(spec, path)
    try:
        images, labels = file["images"], file["labels"][...].astype(np.int64)
        shape, kind = tuple(images.shape), images.dtype
    except (KeyError, OSError, AttributeError) as error:
        raise damaged(path, "it does not hold the arrays images and labels") from error
    if len(shape) != 4 or shape[0] != len(labels) or shape[1] != shape[2] or shape[3] != 3 or kind != np.uint8:
        raise damaged(path, f"images are {kind} {shape} for {len(labels)} labels, not uint8 (N, side, side, 3)")
    _check_side(spec, path, shape[1])
    lock = threading.Lock()

    def load(image: int) -> NDArray[np.uint8]:
        with lock:
            pixels: NDArray[np.uint8] = images[image]
        return pixels

    return array_split(name, labels, load)


def _read_hdf5(spec: DatasetSpec, folder: Path) -> Dataset:
    """The two HDF5 files, unpacked or as published."""
    names = [f"{split}_dataset.hdf5" for split in ("train", "test")]
    paths = [find_file(folder, name, _BELOW) or need_file(spec, folder, f"{name}.gz", _BELOW) for name in names]
    train, test = (_hdf5_split(spec, path, name) for path, name in zip(paths, ("train", "test"), strict=True))
    return two_splits(spec, list(CLASSES), (train, test), folder)


def _read_parquet(spec: DatasetSpec, folder: Path) -> Dataset:
    """The hub's parquet files."""
    from cspipe.extract.hub_images import read_saved
    from cspipe.extract.images import decode

    found = read_saved(folder, name=spec.name, class_names=list(CLASSES))
    if set(found.splits) != {"train", "test"}:
        raise MissingDataError(f"{folder} lacks train or test files of {spec.name}: fetch both ({spec.url})")
    _check_side(spec, folder, decode(found.splits["train"].load(0)).width)
    return check_counts(spec, found)


def read_galaxymnist(spec: DatasetSpec, data_dir: Path | None) -> Dataset:
    """8,000 and 2,000 galaxies in the published split, of the side that the spec names.

    Args:
        spec: its entry in the registry, with the published sums of the gzipped HDF5 files.
        data_dir: folder with ``train_dataset.hdf5`` and ``test_dataset.hdf5``, gzipped or not, or with the hub's
            parquet files; None takes those from the hub, which has 224 px alone.

    Raises:
        MissingDataError: a file or a library is missing, or nothing can be downloaded.
        SettingError: a file is not the published one, or holds images of the other side.
    """

    def read(folder: Path) -> Dataset:
        parquet = next(folder.rglob("*.parquet"), None) if folder.is_dir() else None
        return _read_hdf5(spec, folder) if parquet is None else _read_parquet(spec, folder)

    if data_dir is None and spec.side_px == _HUB_PX:
        from cspipe.extract.hub_images import snapshot

        return _read_parquet(spec, snapshot(HUB_NAME))

    def fetch(folder: Path) -> None:
        names = ", ".join(file.name for file in spec.files)
        raise MissingDataError(
            f"{spec.name} cannot be downloaded any more: give a folder with {names} as --data-dir, or use "
            "galaxymnist-224, which the hub has"
        )

    return local_or_downloaded(spec, data_dir, read, fetch)
