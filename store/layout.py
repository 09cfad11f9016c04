"""What lies where: the cache key, the names of stores, which store is meant.

A store holds the tokens of one backbone on one data set: ``stores/<dataset>--<backbone>--<key8>.zarr``.
Its key covers everything that changes the numbers for a given image, and nothing else.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from cspipe.store.errors import MissingDataError, SettingError, StoreError
from cspipe.store.files import write_atomic
from cspipe.store.meta import canonical, read_group
from cspipe.store.remotes import shown

DTYPES = {"fp16": "float16", "fp32": "float32"}
LATEST = "latest.json"
_CHUNK_BYTES = 4 * 2**20
_NAME_CHARACTERS = 64


@dataclass(frozen=True)
class StoreKey:
    """What changes the numbers for a given image.

    Attributes:
        transform: the preprocessing in words.
        image_px: side of the square image the backbone sees, pixels.
        weights_sha256: hash of the weights, hexadecimal.
        token: which token is stored, e.g. ``"cls"``.
        dtype: ``"fp16"`` or ``"fp32"``.
    """

    transform: str
    image_px: int
    weights_sha256: str
    token: str
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SettingError(f"a store holds fp16 or fp32, not {self.dtype!r}: give --dtype fp16 or fp32")

    def sha256(self) -> str:
        """Hash of the key's canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()


def chunk_rows(width: int, itemsize: int) -> int:
    """Rows of a chunk: the largest power of two of at most 4 MiB, at least 64 and at most 2,048 rows.

    A chunk is what a crash loses and what is read at once; smaller ones read several times slower.

    >>> chunk_rows(384, 2), chunk_rows(1280, 2), chunk_rows(1_000_000, 4)
    (2048, 1024, 64)
    """
    rows = 64
    while rows < 2048 and 2 * rows * width * itemsize <= _CHUNK_BYTES:
        rows *= 2
    return rows


def _file_name(name: str) -> str:
    """``name`` as a part of a file name; one that had to change keeps apart from others by a hash."""
    clean = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", name)).strip("-.")[:_NAME_CHARACTERS]
    if clean == name:
        return name
    return f"{clean or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def store_path(stores: Path, dataset: str, backbone: str, key: StoreKey) -> Path:
    """Where the store of this data set, backbone and key lies; nothing is created."""
    return stores / f"{_file_name(dataset)}--{_file_name(backbone)}--{key.sha256()[:8]}.zarr"


def list_stores(stores: Path) -> list[Path]:
    """Every store under ``stores``, sorted by name; empty where the folder does not exist."""
    return sorted(path for path in stores.glob("*.zarr") if (path / "zarr.json").is_file())


def record_latest(stores: Path, store: Path) -> None:
    """Remember ``store`` as the one that was extracted last, in one atomic step."""
    write_atomic(stores / LATEST, json.dumps({"store": store.name}).encode() + b"\n")


def latest_store(stores: Path) -> Path | None:
    """The store that was extracted last, or None where there is none (any more)."""
    try:
        name = json.loads((stores / LATEST).read_bytes())["store"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = stores / str(name)
    return path if (path / "zarr.json").is_file() else None


def _has_names(path: Path, dataset: str | None, backbone: str | None) -> bool:
    """Whether the store records these names; a damaged one has none."""
    try:
        attributes = read_group(path)
    except StoreError:
        return False
    same_dataset = dataset is None or attributes.get("dataset") == dataset
    return same_dataset and (backbone is None or attributes.get("backbone") == backbone)


def find_store(stores: Path, *, dataset: str | None = None, backbone: str | None = None) -> Path:
    """The store that is meant: by its recorded names, or the latest where none is named.

    Args:
        stores: folder of the stores.
        dataset: recorded name of the data set, or None for any.
        backbone: recorded name of the backbone, or None for any.

    Returns:
        Path of the Zarr group.

    Raises:
        MissingDataError: there is no such store; the message names the command that makes one.
        SettingError: several fit and none of them is the latest.
    """
    latest = latest_store(stores)
    again = f"cspipe extract {backbone or 'BACKBONE'} {dataset or 'DATASET'}"
    if dataset is None and backbone is None:
        if latest is None:
            raise MissingDataError(f"no store was completed under {shown(stores)}: run {again} first")
        return latest
    found = [path for path in list_stores(stores) if _has_names(path, dataset, backbone)]
    if latest in found:
        return latest
    given = (("backbone", backbone), ("dataset", dataset))
    wanted = " and ".join(f"{kind} {name!r}" for kind, name in given if name is not None)
    if not found:
        there = ", ".join(path.name for path in list_stores(stores)) or "no store at all"
        raise MissingDataError(f"no store of {wanted} under {shown(stores)} (it holds {there}): run {again} first")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SettingError(
            f"{len(found)} stores hold {wanted}: {names}. Run {again} with the options of the one you mean; "
            "what is complete is not computed again"
        )
    return found[0]
