"""Embeddings that were made elsewhere, into a store; and a store's rows out of it, as plain .npy and .csv.

Legend: `N` rows, `D` width.

Rows of an imported store are known by the hash of the embedding itself, so importing a grown file again adds
the new rows alone, and importing other labels rewrites labels alone.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import MissingDataError, SettingError
from cspipe.store.layout import DTYPES, StoreKey, record_latest, store_path
from cspipe.store.reader import Store, open_store
from cspipe.store.remotes import shown
from cspipe.store.writer import ImageTable, StoreWriter

UNLABELLED = ("", "-1")
IMPORTED = "imported"
_BLOCK = 8192


@dataclass(frozen=True)
class LabelledFile:
    """A file of embeddings `(N, D)` as it lies on disk; of each row its split, label (or "") and id."""

    embedding_ND: NDArray[Any]
    split: list[str]
    label: list[str]
    ids: list[str]


def _open_embeddings(path: Path) -> NDArray[Any]:
    """The array of an .npy file, not read yet.

    Raises:
        MissingDataError: there is no such file.
        SettingError: it holds no floating `(N, D)` array.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}: name an .npy with one embedding a row")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SettingError(f"{path} is not an .npy file of numbers ({error}): write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        given = f"{getattr(array, 'shape', '')} {getattr(array, 'dtype', type(array).__name__)}"
        raise SettingError(f"embeddings are a floating (rows, width) array; {path} holds {given}")
    return array


def read_labelled(embeddings: Path, labels: Path, split: str) -> LabelledFile:
    """An .npy file and the table that belongs to it, row by row.

    Args:
        embeddings: `(N, D)` floating numbers.
        labels: CSV with a column ``label``, and ``id`` and ``split`` where it has them; or labels alone, one a
            line. No label is "" or -1.
        split: of the rows where the table has no such column.

    Raises:
        MissingDataError: a file is not there.
        SettingError: files that cannot be used, or of other lengths.
    """
    array = _open_embeddings(embeddings)
    if not labels.is_file():
        raise MissingDataError(f"there is no file {labels}: name a .csv with one label a row")
    with labels.open(newline="", encoding="utf-8-sig") as file:
        lines = [row for row in csv.reader(file) if row]
    names = [name.strip().lower() for name in lines[0]] if lines else []
    if "label" in names:
        lines = lines[1:]
    elif {len(row) for row in lines} == {1}:
        names = ["label"]
    else:
        raise SettingError(f"{labels} has no column `label`, and more columns than one: its first line names them")
    if len(lines) != len(array):
        raise SettingError(f"{labels} has {len(lines)} rows, but {embeddings} holds {len(array)} embeddings")
    if any(len(row) != len(names) for row in lines):
        raise SettingError(f"{labels} has rows of another length than its {len(names)} columns")
    table = {name: [row[place].strip() for row in lines] for place, name in enumerate(names)}
    numbers = [str(number) for number in range(len(array))]
    return LabelledFile(array, table.get("split", [split] * len(array)), table["label"], table.get("id", numbers))


def class_numbers(labels: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Class names, by number where all are numbers, else by name; and the number of each label, -1 for none.

    >>> class_numbers(["10", "9", "", "9"])
    (['9', '10'], {'9': 0, '10': 1, '': -1, '-1': -1})
    """
    names = set(labels).difference(UNLABELLED)
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    ordered = sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))
    return ordered, {name: k for k, name in enumerate(ordered)} | dict.fromkeys(UNLABELLED, -1)


def _hashes(array_ND: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """SHA-256 of each row as it is stored, `(N, 32)`.

    Raises:
        SettingError: numbers that the stored type cannot hold.
    """
    hashes = np.zeros((len(array_ND), 32), np.uint8)
    for start in range(0, len(array_ND), _BLOCK):
        given = np.asarray(array_ND[start : start + _BLOCK])
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(given, dtype=DTYPES[dtype])
        if (np.isfinite(given) & ~np.isfinite(stored)).any():
            raise SettingError(f"some embeddings are larger than {dtype} can hold: use --dtype fp32")
        for place, row in enumerate(stored, start):
            hashes[place] = np.frombuffer(hashlib.sha256(b"embedding\0" + row.tobytes()).digest(), np.uint8)
    return hashes


@dataclass(frozen=True)
class _Rows:
    """A split's table, and where each row's embedding lies: number of the part and row in it, `(N, 2)`."""

    table: ImageTable
    place: NDArray[np.int64]

    def tokens(self, parts: Sequence[LabelledFile], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Embeddings `(n, D)` of these rows of the table."""
        return np.stack([np.asarray(parts[n].embedding_ND[k], np.float64) for n, k in self.place[rows]])


def _rows(split: str, parts: Sequence[LabelledFile], number: Mapping[str, int], dtype: str) -> _Rows:
    """The rows of one split, as a store knows them."""
    rows = [np.flatnonzero(np.array(part.split) == split) for part in parts]
    pairs = list(zip(parts, rows, strict=True))
    table = ImageTable(
        np.concatenate([_hashes(part.embedding_ND[mine], dtype) for part, mine in pairs]),
        np.array([number[part.label[k]] for part, mine in pairs for k in mine], np.int64),
        [part.ids[k] for part, mine in pairs for k in mine],
    )
    return _Rows(table, np.concatenate([np.stack([np.full(len(mine), n), mine], 1) for n, mine in enumerate(rows)]))


def import_embeddings(
    parts: Sequence[LabelledFile], *, stores: Path, dataset: str, backbone: str, dtype: str | None, source: Path
) -> dict[str, Any]:
    """Make a store of embeddings, or bring one up to date, so that ``cspipe head`` can work on it.

    Args:
        parts: the rows, with ``train`` among their splits.
        stores: folder of the stores.
        dataset: recorded name of the data set.
        backbone: recorded name of what made the embeddings.
        dtype: ``"fp16"`` or ``"fp32"`` as stored; None for the file's own, fp64 as fp32.
        source: recorded as where they were.

    Returns:
        A JSON document.

    Raises:
        SettingError: other widths, no training rows, numbers that the stored type cannot hold.
    """
    widths = sorted({part.embedding_ND.shape[1] for part in parts})
    if len(widths) > 1:
        raise SettingError(f"all embeddings of a store are of the same width; these are {widths[0]} and {widths[-1]}")
    names = list(dict.fromkeys(name for part in parts for name in part.split))
    if "train" not in names:
        raise SettingError(f"a store has rows of the split train; these are of {', '.join(names)}")
    dtype = dtype or ("fp16" if parts[0].embedding_ND.dtype == np.float16 else "fp32")
    classes, number = class_numbers([label for part in parts for label in part.label])
    key = StoreKey(transform=IMPORTED, image_px=0, weights_sha256="0" * 64, token=IMPORTED, dtype=dtype)
    rows = {name: _rows(name, parts, number, dtype) for name in names}
    about = {"backbone": backbone, "class_names": classes, IMPORTED: True}
    path = store_path(stores, dataset, backbone, key)
    with StoreWriter(
        path, key=key, width=widths[0], batch_size=64, backbone=backbone, dataset=dataset, provenance=about,
        sources={"weights": None, "data": str(source)},
    ) as writer:  # fmt: skip
        written = {name: writer.write(name, rows[name].table, partial(rows[name].tokens, parts)) for name in names}
    record_latest(stores, path)
    store = open_store(path)
    told = {name: {"rows": store[name].rows, "written": written[name], "flagged": store[name].flagged()}
            for name in names}  # fmt: skip
    return {"store": shown(path), "dataset": dataset, "backbone": backbone, "width": widths[0], "dtype": dtype,
            "class_names": classes, "splits": told}  # fmt: skip


def export_split(store: Store, split: str, folder: Path) -> list[Path]:
    """Write ``<split>.npy`` `(N, D)` and ``<split>.csv`` with ``row_id, label, class_number, id, sha256``.

    Rows are those of ``store[split].embedding()``: flagged ones are left out. One chunk is in memory at a time.

    Raises:
        SettingError: a file is there already.
    """
    files = [folder / f"{split}.npy", folder / f"{split}.csv"]
    for path in files:
        if path.exists():
            raise SettingError(f"{path} is there already: name another folder with --to, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    rows, names = store[split], store.class_names
    if len(rows):
        out = np.lib.format.open_memmap(files[0], mode="w+", dtype=store.dtype, shape=(len(rows), store.width))
        rows.embedding(out)
        out.flush()
    else:
        np.save(files[0], np.zeros((0, store.width), store.dtype))
    columns = (rows.row_id().tolist(), rows.label().tolist(), rows.path(), rows.sha256())
    with files[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row_id", "label", "class_number", "id", "sha256"])
        for row, label, name_of_image, sha in zip(*columns, strict=True):
            name = "" if label < 0 else names[label] if label < len(names) else str(label)
            writer.writerow([row, name, label, name_of_image, sha.tobytes().hex()])
    return files
