"""A second copy of every ``zarr.json`` of a finished split and of the root, to mend descriptions from.

Tokens can be computed again and tables be read from the images again; what a description says of them
(key, order of the rows, checksums) is known nowhere else. So each finished split keeps the texts of its own
descriptions and of the root's in one small file with a checksum, where no reader looks for arrays. Splits
that were finished before there were copies have none, which their attributes tell.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cspipe.store.errors import DamageError
from cspipe.store.files import TRAILER_BYTES, read_chunk_into, remove, with_trailer, write_atomic
from cspipe.store.meta import ARRAYS, canonical, read_group

HAS_COPY = "descriptions_copied"
ROOT = "zarr.json"


def copy_file(split: Path) -> Path:
    """Where a split keeps the copy."""
    return split / "row_id" / "descriptions.copy"


def described(split: Path) -> list[Path]:
    """The descriptions that a split's copy holds as they are: its own, and those of its arrays."""
    return [split / "zarr.json", *(split / name / "zarr.json" for name in ARRAYS)]


def _root_text(store: Path) -> str:
    """The root's attributes as a copy holds them."""
    return canonical({name: value for name, value in read_group(store).items() if name != "splits"}).decode()


def write_copy(split: Path) -> None:
    """Copy the descriptions as they are now, durably; nothing is written where the copy is the same."""
    texts = {str(path.relative_to(split.parent)): path.read_text(encoding="utf-8") for path in described(split)}
    texts[ROOT] = _root_text(split.parent)
    data, path = with_trailer(canonical(texts)), copy_file(split)
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def drop_copy(split: Path) -> None:
    """Remove a copy that is about to be out of date."""
    remove(copy_file(split))


def read_copy(split: Path) -> dict[str, bytes] | None:
    """Content of each description by its path relative to the store; None where there is no sound copy."""
    path = copy_file(split)
    try:
        body = np.empty(max(path.stat().st_size - TRAILER_BYTES, 0), np.uint8)
        read_chunk_into(path, body)
        return {str(name): str(text).encode() for name, text in json.loads(body.tobytes()).items()}
    except (OSError, ValueError, AttributeError):
        return None


def refresh_copies(store: Path) -> None:
    """Bring the copies of every finished split that has one up to date; damaged descriptions are never copied."""
    for split in sorted(path.parent for path in store.glob("*/zarr.json")):
        try:
            read_group(store)
            attributes = read_group(split)
        except DamageError:
            continue
        if attributes.get("complete") and attributes.get(HAS_COPY) and _are_sound(split, attributes):
            write_copy(split)


def _are_sound(split: Path, attributes: Mapping[str, Any]) -> bool:
    """Whether the descriptions of a split's arrays are the ones that were written."""
    recorded, files = attributes["metadata_sha256"], {name: split / name / "zarr.json" for name in ARRAYS}
    return all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == recorded[name]
        for name, path in files.items()
    )


def copied(store: Path, relative: str) -> list[bytes]:
    """What the sound copies of all splits hold of one description, each content once."""
    found = [copy.get(relative) for folder in sorted(store.iterdir()) if (copy := read_copy(folder)) is not None]
    return list(dict.fromkeys(text for text in found if text is not None))


def copy_problem(split: Path) -> str | None:
    """What is wrong with a finished split's copy, or None; the descriptions themselves may be damaged too."""
    copy = read_copy(split)
    if copy is None:
        return "the copy of the descriptions is missing or damaged"
    try:
        texts = {ROOT: _root_text(split.parent).encode(), f"{split.name}/zarr.json": (split / "zarr.json").read_bytes()}
        read_group(split)
    except (DamageError, OSError):
        return None
    others = [name for name, text in texts.items() if copy.get(name) != text]
    return f"the copy of {others[0]} is not that description" if others else None


def root_from_copies(store: Path) -> dict[str, Any] | None:
    """The root's attributes, with the splits that lie there; None where no split holds a sound copy."""
    texts = copied(store, ROOT)
    if not texts:
        return None
    names = {path.parent.name for path in store.glob("*/zarr.json")}
    names |= {path.parent.parent.name for path in store.glob("*/row_id/descriptions.copy")}
    return {**json.loads(texts[0]), "splits": sorted(names)}
