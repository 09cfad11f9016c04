"""The ``zarr.json`` files: groups with sealed attributes, arrays as Zarr itself would describe them.

Group attributes carry ``seal``, the SHA-256 of all others, so that a flipped bit in them is seen. A
split's attributes carry the SHA-256 of the ``zarr.json`` of each of its arrays. ``zarr`` is imported
inside the functions: a command's help must not wait for it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cspipe.store.errors import DamageError, SettingError, StoreError
from cspipe.store.files import write_atomic

FORMAT = 1
NO_NUMBER = int(np.iinfo(np.int64).min)
TABLE_CHUNK_ROWS = 65_536
# name -> (data type, fill value, width of a row or None): what is known of each image of a split
TABLES: Mapping[str, tuple[str, Any, int | None]] = MappingProxyType(
    {
        "label": ("int64", NO_NUMBER, None),
        "row_id": ("int64", NO_NUMBER, None),
        "sha256": ("uint8", 0, 32),
        "path": ("string", "", None),
        "present": ("bool", False, None),
    }
)
ARRAYS = ("embedding", "commit", *TABLES)


def canonical(value: object) -> bytes:
    """``value`` as JSON with one spelling only, whatever the order of its keys."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"a store's attributes are plain JSON (text, finite numbers, lists, dictionaries): {error}"
        ) from None


def seal_of(attributes: Mapping[str, Any]) -> str:
    """SHA-256 over everything but the seal itself."""
    return hashlib.sha256(canonical({k: v for k, v in attributes.items() if k != "seal"})).hexdigest()


def write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write the group's ``zarr.json`` with sealed attributes, atomically and durably."""
    sealed = {**attributes, "seal": seal_of(attributes)}
    document = {"attributes": sealed, "zarr_format": 3, "node_type": "group"}
    write_atomic(folder / "zarr.json", json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode())


def read_group(folder: Path) -> dict[str, Any]:
    """Attributes of a group written by :func:`write_group`, without the seal.

    Raises:
        DamageError: the file is missing, is no such JSON, or its attributes do not match their seal.
    """
    path = folder / "zarr.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamageError(path, "the group's description is missing") from None
    except OSError as error:
        raise DamageError(path, f"the group's description cannot be read ({error.strerror})") from error
    except ValueError:
        raise DamageError(path, "the group's description is not JSON") from None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    shell = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    if not isinstance(attributes, dict) or document != shell:
        raise DamageError(path, "this is not the description of a group that cspipe wrote")
    if attributes.pop("seal", None) != seal_of(attributes):
        raise DamageError(path, "the attributes do not match their checksum")
    return attributes


def check_format(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Refuse a store that a newer version wrote."""
    if attributes.get("format") != FORMAT:
        given = attributes.get("format")
        raise StoreError(f"{folder} has store format {given}, this cspipe reads {FORMAT}: upgrade cspipe")


def _settings(name: str, rows: int, width: int, dtype: str, per_chunk: int) -> dict[str, Any]:
    """What ``zarr.create_array`` is told about one array of a split."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    if name == "embedding":
        shape, chunks, plain = (rows, width), (per_chunk, width), [Crc32cCodec()]
        return {"shape": shape, "chunks": chunks, "dtype": dtype, "fill_value": np.nan, "compressors": plain}
    if name == "commit":
        shape, chunks, plain = (-(-rows // per_chunk), 3), (1, 3), [Crc32cCodec()]
        return {"shape": shape, "chunks": chunks, "dtype": "int64", "fill_value": -1, "compressors": plain}
    kind, fill, columns = TABLES[name]
    tail = () if columns is None else (columns,)
    return {
        "shape": (rows, *tail),
        "chunks": (TABLE_CHUNK_ROWS, *tail),
        "dtype": kind,
        "fill_value": fill,
        "compressors": [ZstdCodec(level=3), Crc32cCodec()],
    }


def array_document(name: str, *, rows: int, width: int, dtype: str, per_chunk: int) -> bytes:
    """The array's ``zarr.json`` as Zarr writes it.

    Args:
        name: one of :data:`ARRAYS`.
        rows: rows of the split.
        width: values of a token.
        dtype: ``"float16"`` or ``"float32"``.
        per_chunk: rows of an embedding chunk.
    """
    import zarr
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    written: dict[str, Buffer] = {}
    zarr.create_array(MemoryStore(written), **_settings(name, rows, width, dtype, per_chunk))
    return written["zarr.json"].to_bytes()


def write_documents(split: Path, documents: Mapping[str, bytes]) -> None:
    """Write the ``zarr.json`` of the split's arrays where they are not so already."""
    for name, data in documents.items():
        path = split / name / "zarr.json"
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(path, data)
