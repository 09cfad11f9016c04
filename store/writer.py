"""The one writer of a store: plans what is missing, commits chunk by chunk, survives a kill at any instant.

Order of events, each durable before the next: ``complete`` becomes false; the row table is rewritten
through a journal; a chunk's file is renamed into place; its commit record follows; ``complete`` becomes
true when every chunk has a record. :mod:`cspipe.store.commits` says how an extension is undone.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cspipe.store import commits
from cspipe.store.copies import HAS_COPY, drop_copy, refresh_copies
from cspipe.store.errors import MismatchError, SettingError, StoreError
from cspipe.store.layout import StoreKey
from cspipe.store.lock import StoreLock
from cspipe.store.meta import canonical, read_group, write_group
from cspipe.store.opening import checked_tokens, open_root
from cspipe.store.plan import VOID_REASON, ChunkTask, ImageTable, Plan, make_plan
from cspipe.store.probe import check_probe, encode
from cspipe.store.table import Rows, read_rows, rewrite

__all__ = ["ChunkTask", "ImageTable", "StoreWriter"]


class StoreWriter:
    """Creates or opens a store for writing; a context manager that holds the store's lock.

    Args:
        path: the Zarr group, as :func:`cspipe.store.layout.store_path` gives it.
        key: what changes the numbers for a given image.
        width: values of a token.
        batch_size: rows of a batch, a power of two; what an existing store records wins.
        backbone: recorded name of the backbone.
        dataset: recorded name of the data set.
        provenance: plain JSON, with ``class_names``; no times or host names, for they would make
            equal stores differ.
        sources: where weights and images were (``weights``, ``data``); advisory.

    Raises:
        StoreError: another process writes this store, or it is damaged.
        MismatchError: the store is of another key, width, backbone or data set.
        SettingError: the batch size is no power of two.

    Attributes:
        path: the Zarr group.
        width: values of a token.
        batch_size: rows of a batch, fixed at the first start; a chunk is a multiple of it.
        chunk_rows: rows of a chunk.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: StoreKey,
        width: int,
        batch_size: int,
        backbone: str,
        dataset: str,
        provenance: Mapping[str, Any],
        sources: Mapping[str, Any],
    ) -> None:
        """Open the store, repair what a killed writer left, create it where there is none."""
        self.path = Path(path)
        self._provenance, self._sources = dict(provenance), dict(sources)
        canonical([self._provenance, self._sources])
        if width < 1 or batch_size < 1 or batch_size & (batch_size - 1):
            raise SettingError(
                f"tokens are at least 1 wide and batches a power of two, so that none straddles a chunk; "
                f"got width {width}, batch size {batch_size}: give e.g. --batch-size 32"
            )
        names = {"backbone": backbone, "dataset": dataset}
        self._lock = StoreLock(self.path)
        try:
            self._root, self._shape = open_root(
                self.path, key, width, batch_size, names, self._provenance, self._sources
            )
        except BaseException:
            self._lock.release()
            raise
        self.width, self.chunk_rows = width, self._shape.per_chunk
        self.batch_size = int(self._root["batch_size"])
        self._mutex = threading.Lock()
        self._attributes: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, Rows] = {}
        self._tasks: dict[str, dict[int, ChunkTask]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what was committed stays."""
        self._lock.release()

    def check_probe(self, probe: NDArray[np.floating[Any]]) -> None:
        """Compare what the backbone makes of the probe image with what it made of it first, or record that.

        Args:
            probe: `(width,)` token of the probe image.

        Raises:
            MismatchError: this backbone gives other tokens than the store holds.
        """
        check_probe(self.path, self._root, probe)
        if "probe" not in self._root:
            self._root["probe"] = encode(probe)
            write_group(self.path, self._root)

    def plan(self, split: str, table: ImageTable, *, whole: bool) -> list[ChunkTask]:
        """Bring the split's rows up to date and list what has to be computed.

        Rows are matched by hash, the k-th image of a hash to the k-th row of it; label and path of
        matched rows follow the table, new images are appended in its order. Rows after the last
        committed one that no finished run has shown are dropped and planned anew. Nothing is written
        where nothing changes.

        Args:
            split: name of the split.
            table: what the data set shows now.
            whole: no limit was asked for: rows that are not in the table are gone and leave the
                results; they come back when their image does.

        Raises:
            MismatchError: no image is known and the data lie elsewhere: another folder of the same name.
            StoreError: the split is damaged, or rows of an interrupted run are not in the table.
        """
        former = self._load(split)
        ends = commits.committed_ends(self.path / split, self._shape)
        settled = int(self._attributes[split].get("settled", 0))
        plan = make_plan(former, ends, settled, table, whole=whole, per_chunk=self.chunk_rows)
        self._refuse_other_data(split, plan, whole)
        changed = not plan.rows.same_as(former) or "array_sha256" not in self._attributes[split]
        if changed or plan.tasks or self._other_classes(self._attributes[split]):
            self._begin(split)
            self._discard(split, ends)
        if changed:
            self._rows[split] = plan.rows
            folder, attributes = self.path / split, self._attributes[split]
            self._attributes[split] = rewrite(folder, plan.rows, attributes, self._shape)
        self._tasks[split] = {task.chunk: task for task in plan.tasks}
        return plan.tasks

    def _load(self, split: str) -> Rows:
        """Read the split's attributes and row table; both empty where it does not exist."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", split):
            raise SettingError(f"a split's name is letters, digits, - and _; got {split!r}")
        folder = self.path / split
        attributes = read_group(folder) if (folder / "zarr.json").is_file() else {}
        self._attributes[split] = attributes
        self._rows[split] = read_rows(folder, attributes) if "array_sha256" in attributes else Rows.none()
        return self._rows[split]

    def _other_classes(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a split's labels count in another list of classes than the data set's now."""
        given = self._provenance.get("class_names")
        return bool(attributes) and attributes.get("class_names") != given

    def _refuse_other_data(self, split: str, plan: Plan, whole: bool) -> None:
        """Stop where the images are other ones altogether, or labels would count in two lists."""
        recorded, given = self._root["sources"].get("data"), self._sources.get("data")
        if plan.kept_rows and not plan.matched and recorded != given:
            raise MismatchError(
                f"{self.path} holds {plan.kept_rows} {split} images from {recorded}, and none of them is in "
                f"{given}: another data set of the same name. Rename the folder, or remove the store first"
            )
        if self._other_classes(self._attributes[split]) and plan.matched < plan.kept_rows and not whole:
            raise MismatchError(
                f"the classes are no longer those {self.path} was made with, so every label changes: "
                "run the same cspipe extract without --limit first"
            )

    def _begin(self, split: str) -> None:
        """Declare the split unfinished, and record with what the rest of it is computed."""
        for other in (folder.parent for folder in self.path.glob("*/zarr.json")):
            attributes = read_group(other)
            if attributes.get("complete") and self._other_classes(attributes):
                drop_copy(other)
                write_group(other, {**attributes, "complete": False})
        blank = {"rows": 0, "settled": 0, "bad_images": []}
        attributes = {**blank, **self._attributes[split], "complete": False}
        attributes["class_names"] = self._provenance.get("class_names")
        if attributes != self._attributes[split]:
            drop_copy(self.path / split)
            write_group(self.path / split, attributes)
        self._attributes[split] = attributes
        root = dict(self._root)
        if self._provenance != root["provenance"]:
            root["earlier_provenance"] = [*root.get("earlier_provenance", []), root["provenance"]]
            root["provenance"] = self._provenance
        root["splits"] = sorted({*root["splits"], split})
        if root != self._root:
            write_group(self.path, root)
            refresh_copies(self.path)
            self._root = root

    def _discard(self, split: str, ends: NDArray[np.int64]) -> None:
        """Remove what is left of chunks that are not committed, and what was noted of their images."""
        first = [chunk * self.chunk_rows for chunk in range(len(ends))]
        done = {chunk for chunk, end in enumerate(ends) if end > first[chunk]}
        folder = self.path / split
        commits.discard(folder, [c for c in commits.recorded_chunks(folder) if c not in done])
        bad = self._attributes[split]["bad_images"]
        kept = [entry for entry in bad if entry["row"] // self.chunk_rows in done]
        kept = [entry for entry in kept if entry["row"] < ends[entry["row"] // self.chunk_rows]]
        if kept != bad:
            self._attributes[split] = {**self._attributes[split], "bad_images": kept}
            write_group(folder, self._attributes[split])

    def commit(self, split: str, task: ChunkTask, embedding: NDArray[Any], bad: Sequence[tuple[int, str]] = ()) -> None:
        """Store the tokens of one task, durably; may be called from several threads.

        A row whose tokens are not finite in the stored type is kept as NaN and listed with the bad ones.

        Args:
            split: name of the split.
            task: as :meth:`plan` gave it.
            embedding: `(n, D)` floating tokens of the task's rows.
            bad: offset in the task and reason of each image that could not be used.

        Raises:
            SettingError: another shape, or a task that the last plan did not give.
            StoreError: the rows to be kept are damaged.
        """
        tokens, reasons = checked_tokens(task, embedding, bad, self._shape)
        with self._mutex:
            planned = self._tasks.get(split, {}).pop(task.chunk, None)
        if planned is None or (planned.first_row, planned.end_row) != (task.first_row, task.end_row):
            raise SettingError(
                f"chunk {task.chunk} of {split}, rows {task.first_row} to {task.end_row}, is not in the last "
                "plan, or committed already: commit each task of plan() once"
            )
        try:
            self._store(split, task, tokens, reasons)
        except BaseException:
            self._tasks[split][task.chunk] = planned
            raise

    def _store(self, split: str, task: ChunkTask, tokens: NDArray[Any], reasons: dict[int, str]) -> None:
        """Write chunk and record in their order; see :mod:`cspipe.store.commits`."""
        rows = self._rows[split]
        void = ~rows.sha256[task.first_row : task.end_row].any(axis=1)
        tokens[void] = np.nan
        reasons |= dict.fromkeys(np.flatnonzero(void).tolist(), VOID_REASON)
        with self._mutex:
            former = self._attributes[split]
            mine = range(task.first_row, task.end_row)
            noted = [entry for entry in former["bad_images"] if entry["row"] not in mine]
            for offset, reason in reasons.items():
                row = task.first_row + offset
                noted.append({"row": row, "path": rows.path[row], "reason": reason})
            noted.sort(key=lambda entry: int(entry["row"]))
            if noted != former["bad_images"]:
                self._attributes[split] = {**former, "bad_images": noted}
                write_group(self.path / split, self._attributes[split])
        commits.write_embedding(self.path / split, task.chunk, task.first_row, tokens, self._shape)

    def finish(self, split: str, **facts: Any) -> None:  # noqa: ANN401 - any plain JSON
        """Declare the split complete; it keeps its attributes byte for byte where it was already.

        Args:
            split: name of the split, planned before.
            facts: plain JSON to keep with the split.

        Raises:
            StoreError: chunks are missing.
        """
        if self._sources != self._root["sources"]:
            self._root["sources"] = self._sources
            write_group(self.path, self._root)
        attributes, rows = self._attributes.get(split) or read_group(self.path / split), self._rows.get(split)
        if attributes["complete"]:
            refresh_copies(self.path)
            return
        rows = self._load(split) if rows is None else rows
        done, count = commits.progress(self.path / split, len(rows), self._shape)
        if done < count:
            raise StoreError(f"{split} has {done} of {count} chunks: commit the others before finish()")
        attributes = {**attributes, "complete": True, "settled": len(rows), "facts": facts, HAS_COPY: True}
        attributes["dataset_fingerprint"] = rows.fingerprint()
        write_group(self.path / split, attributes)
        refresh_copies(self.path)
        self._attributes[split] = attributes

    def write(self, split: str, table: ImageTable, tokens_of: Callable[[NDArray[np.int64]], NDArray[Any]]) -> int:
        """Plan, commit and finish a split whose tokens are there already.

        Args:
            split: name of the split.
            table: all of its rows.
            tokens_of: `(n, D)` floating tokens of these rows of the table, `(n,)`.

        Returns:
            Rows written now.

        Raises:
            MismatchError: as :meth:`plan` tells.
            StoreError: as :meth:`plan` tells.
            SettingError: as :meth:`commit` tells.
        """
        tasks = self.plan(split, table, whole=True)
        for task in tasks:
            self.commit(split, task, tokens_of(task.images))
        self.finish(split)
        return sum(len(task.images) for task in tasks)

    def removed(self, split: str) -> int:
        """Rows whose image is gone from the data set."""
        rows = self._rows[split] if split in self._rows else self._load(split)
        return int((~rows.present).sum())
