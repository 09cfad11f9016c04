"""Opening a store for writing: create or compare, then settle what a killed writer left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.commits import roll_back
from cspipe.store.errors import MismatchError, SettingError, StoreError
from cspipe.store.files import left_overs, make_folders
from cspipe.store.layout import DTYPES, StoreKey, chunk_rows
from cspipe.store.meta import FORMAT, check_format, read_group, write_group
from cspipe.store.plan import ChunkTask
from cspipe.store.table import Shape, replay


def _check_same(path: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to write into a store of another key, width, backbone or data set."""
    for name, value in wanted.items():
        if recorded.get(name) != value:
            raise MismatchError(
                f"{path} was made with {name} {recorded.get(name)!r}, this run has {value!r}: "
                "give the same options, or another --stores folder"
            )


def open_root(
    path: Path,
    key: StoreKey,
    width: int,
    batch_size: int,
    names: Mapping[str, str],
    provenance: Mapping[str, Any],
    sources: Mapping[str, Any],
) -> tuple[dict[str, Any], Shape]:
    """Create the group or check that it is the one meant; finish or undo what was interrupted.

    Args:
        path: the Zarr group, locked by the caller.
        key: what changes the numbers for a given image.
        width: values of a token.
        batch_size: rows of a batch.
        names: recorded names of ``backbone`` and ``dataset``.
        provenance: recorded where the store is created.
        sources: recorded where the store is created.

    Returns:
        The root's attributes, and what the arrays of every split share.
    """
    dtype = DTYPES[key.dtype]
    wanted = {"format": FORMAT, "key": asdict(key), "key_sha256": key.sha256(), **names}
    wanted |= {"width": width, "dtype": dtype}
    if (path / "zarr.json").is_file():
        root = read_group(path)
        check_format(path, root)
        _check_same(path, root, wanted)
    else:
        per_chunk = chunk_rows(width, np.dtype(dtype).itemsize)
        root = {**wanted, "chunk_rows": per_chunk, "batch_size": min(batch_size, per_chunk)}
        root |= {"provenance": dict(provenance), "sources": dict(sources), "splits": []}
        if path.is_dir() and set(path.iterdir()) - set(left_overs(path)):
            raise StoreError(f"{path} exists and is not a store: move it away, or give another --stores")
        make_folders(path)
        write_group(path, root)
    shape = Shape(width, dtype, int(root["chunk_rows"]))
    settle(path, shape)
    return root, shape


def settle(path: Path, shape: Shape) -> None:
    """Remove left-over partial files, finish table rewrites, undo extensions."""
    for partial in left_overs(path):
        partial.unlink()
    for split in sorted(folder for folder in path.iterdir() if folder.is_dir()):
        replay(split, shape)
        roll_back(split, shape)


def checked_tokens(
    task: ChunkTask, embedding: NDArray[Any], bad: Sequence[tuple[int, str]], shape: Shape
) -> tuple[NDArray[Any], dict[int, str]]:
    """Tokens in the stored type with bad rows as NaN, and the reason of each bad row by its offset.

    Raises:
        SettingError: the tokens are of another shape or no floating numbers, or an offset is outside.
    """
    count = task.end_row - task.first_row
    if embedding.shape != (count, shape.width) or embedding.dtype.kind != "f":
        raise SettingError(
            f"this store takes floating tokens of shape ({count}, {shape.width}) for rows {task.first_row} "
            f"to {task.end_row}; got {embedding.shape} {embedding.dtype}: embed all images of this task, "
            "and no others, with the backbone of the store"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        tokens: NDArray[Any] = np.array(embedding, dtype=shape.dtype, order="C")
    reasons = {int(row): f"the token is not finite in {shape.dtype}" for row in _not_finite(tokens)}
    for offset, reason in bad:
        if not 0 <= offset < count:
            raise SettingError(f"a bad image's offset is within the task's {count} rows; got {offset}")
        reasons[int(offset)] = str(reason)
    tokens[list(reasons)] = np.nan
    return tokens, reasons


def _not_finite(tokens: NDArray[Any]) -> NDArray[np.intp]:
    """Rows with a value that is NaN or infinite."""
    return np.flatnonzero(~np.isfinite(tokens).all(axis=1))
