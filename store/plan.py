"""Which rows are missing, and which image goes into which: arithmetic on hashes, no files.

Rows are matched to images by the hash of the image, the k-th image of a hash to the k-th row of it, in
whatever folder they lie. A row's number is never reused once a finished run has shown it. A **void** row
is one whose image is gone before its token was ever kept (interrupted, or its chunk damaged, then the
image deleted): it holds no hash, is not present, and is written as NaN, so that its chunk can complete.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import SettingError, StoreError
from cspipe.store.table import Rows, storable_paths

Int = NDArray[np.int64]
VOID_REASON = "the image was gone before its token was kept"


@dataclass(frozen=True)
class ImageTable:
    """What a data set shows now, for one split, in its order.

    Attributes:
        sha256: `(N, 32)` uint8, hash of each image.
        label: `(N,)` int64, -1 for unlabelled.
        path: N names.
    """

    sha256: NDArray[np.uint8]
    label: NDArray[np.int64]
    path: list[str]

    def __post_init__(self) -> None:
        count = len(self.path)
        if self.sha256.shape != (count, 32) or self.sha256.dtype != np.uint8:
            raise SettingError(
                f"sha256 is (N, 32) uint8 for N = {count} paths; got {self.sha256.shape} {self.sha256.dtype}"
            )
        if self.label.shape != (count,) or self.label.dtype != np.int64:
            raise SettingError(f"label is (N,) int64 for N = {count} paths; got {self.label.shape} {self.label.dtype}")
        if count and int(self.label.min()) < -1:
            raise SettingError(f"a label is a class number or -1 for none; got {int(self.label.min())}")

    def __len__(self) -> int:
        return len(self.path)


@dataclass(frozen=True)
class ChunkTask:
    """Rows of one chunk to be computed.

    Attributes:
        chunk: number of the chunk.
        first_row: first row to compute; rows of the chunk before it are committed and will be kept.
        end_row: row after the last.
        images: `(end_row - first_row,)` int64, image numbers in the :class:`ImageTable`. A void row
            names some other image; what is computed for it is not stored.
    """

    chunk: int
    first_row: int
    end_row: int
    images: Int


@dataclass(frozen=True)
class Plan:
    """The table as it should be, and what is missing.

    Attributes:
        rows: the new table.
        tasks: what to compute, chunk by chunk.
        kept_rows: rows of the former table that kept their number.
        matched: how many images were known already.
    """

    rows: Rows
    tasks: list[ChunkTask]
    kept_rows: int
    matched: int


def _occurrence(keys: Int) -> Int:
    """For each key, how many equal ones come before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]] if len(keys) else np.zeros(0, np.bool_)
    place = np.arange(len(keys), dtype=np.int64)
    start = np.maximum.accumulate(np.where(is_first, place, 0))
    result = np.empty_like(place)
    result[order] = place - start
    return result


def match(rows_sha256: NDArray[np.uint8], images_sha256: NDArray[np.uint8]) -> Int:
    """Which image each row holds.

    Args:
        rows_sha256: `(N, 32)` hashes of the rows; an all-zero one matches nothing.
        images_sha256: `(M, 32)` hashes of the images.

    Returns:
        `(N,)` image numbers, -1 where the row's image is not among them.
    """
    count = len(rows_sha256)
    if np.array_equal(rows_sha256, images_sha256[:count]):  # a data set in its former order, grown at its end or not
        return np.where(rows_sha256.any(axis=1), np.arange(count, dtype=np.int64), -1)
    both = np.ascontiguousarray(np.concatenate([rows_sha256, images_sha256])).view("S32").reshape(-1)
    _, keys = np.unique(both, return_inverse=True)
    numbers = keys.astype(np.int64)
    base = len(both) + 1
    of_row = numbers[:count] * base + _occurrence(numbers[:count])
    of_image = numbers[count:] * base + _occurrence(numbers[count:])
    order = np.argsort(of_image, kind="stable")
    place = np.searchsorted(of_image, of_row, sorter=order)
    found = np.full(count, -1, np.int64)
    inside = place < len(of_image)
    candidate = order[place[inside]]
    found[inside] = np.where(of_image[candidate] == of_row[inside], candidate, -1)
    found[~rows_sha256.any(axis=1)] = -1
    return found


def committed_rows(ends: Int, count: int, per_chunk: int) -> NDArray[np.bool_]:
    """Which of ``count`` rows are committed, `(count,)`, given the committed end of each chunk."""
    done = np.zeros(count, np.bool_)
    for chunk, end in enumerate(ends):
        done[chunk * per_chunk : int(end)] = True
    return done


def _updated(former: Rows, image_of_row: Int, table: ImageTable, whole: bool) -> Rows:
    """Rows that stay, with label, path and presence as the data set has them now."""
    matched = image_of_row >= 0
    label = former.label.copy()
    label[matched] = table.label[image_of_row[matched]]
    path = list(former.path)
    names = storable_paths(table.path)
    for row in np.flatnonzero(matched):
        path[row] = names[image_of_row[row]]
    present = matched.copy() if whole else former.present | matched
    return Rows(former.sha256, label, path, present)


def _appended(rows: Rows, table: ImageTable, new: Int) -> Rows:
    """The rows followed by the new images, in the table's order."""
    names = storable_paths([table.path[image] for image in new])
    return Rows(
        np.concatenate([rows.sha256, table.sha256[new]]),
        np.concatenate([rows.label, table.label[new]]),
        rows.path + names,
        np.concatenate([rows.present, np.ones(len(new), np.bool_)]),
    )


def _voided(rows: Rows, lost: NDArray[np.bool_]) -> Rows:
    """The rows with those that can no longer be computed made void."""
    sha256, label = rows.sha256.copy(), rows.label.copy()
    sha256[lost] = 0
    label[lost] = -1
    return Rows(sha256, label, rows.path, rows.present & ~lost)


def _tasks(image_of_row: Int, ends: Int, per_chunk: int) -> list[ChunkTask]:
    """One task for every chunk that is not committed to its end."""
    total = len(image_of_row)
    tasks = []
    for chunk in range(-(-total // per_chunk)):
        first = int(ends[chunk]) if chunk < len(ends) else chunk * per_chunk
        end = min(total, (chunk + 1) * per_chunk)
        if first < end:
            tasks.append(ChunkTask(chunk, first, end, np.maximum(image_of_row[first:end], 0)))
    return tasks


def make_plan(former: Rows, ends: Int, settled: int, table: ImageTable, *, whole: bool, per_chunk: int) -> Plan:
    """Match rows to images, append the new images, list what has to be computed.

    Args:
        former: the split's table so far.
        ends: `(C,)` committed end row of each chunk up to the last committed one.
        settled: rows that a finished run has shown; they keep their number whatever happens.
        table: what the data set shows now.
        whole: the table is the whole data set, so a row not in it is gone.
        per_chunk: rows of a chunk.

    Raises:
        StoreError: rows are missing whose images are not in the table.
    """
    last = max((int(end) for c, end in enumerate(ends) if end > c * per_chunk), default=0)
    keep = max(last, settled)
    if keep > len(former):
        raise StoreError(f"{keep} rows are committed but the row table has {len(former)}: it is damaged")
    kept = Rows(former.sha256[:keep], former.label[:keep], former.path[:keep], former.present[:keep])
    image_of_row = match(kept.sha256, table.sha256)
    missing = ~committed_rows(ends, keep, per_chunk)
    lost = missing & (image_of_row < 0)
    unknown = int((lost & kept.sha256.any(axis=1)).sum())
    if unknown and not whole:
        raise StoreError(
            f"{unknown} rows of an interrupted run are not among the images asked for: "
            "run the same cspipe extract without --limit first"
        )
    if lost.any() and not len(table):
        raise StoreError(f"{int(lost.sum())} rows are not complete and the data set has no image left")
    is_new = np.ones(len(table), np.bool_)
    is_new[image_of_row[image_of_row >= 0]] = False
    new = np.flatnonzero(is_new)
    rows = _appended(_voided(_updated(kept, image_of_row, table, whole), lost), table, new)
    images = np.concatenate([image_of_row, new])
    matched = int((image_of_row >= 0).sum())
    return Plan(rows, _tasks(images, ends, per_chunk), keep, matched)
