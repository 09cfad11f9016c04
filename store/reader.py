"""Reading a store: whole chunk files straight into the caller's rows, checked while they are read.

Legend: `N` rows, `D` width. Flagged rows, whose image could not be used or is gone from the data set, are
left out unless ``all_rows`` is asked for; what is flagged is known from the split's attributes and table,
so every chunk knows its place in the result before it is read and the whole is never copied.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import commits
from cspipe.store.chunks import ends_of_chunks, read_good, read_good_rows, room_for, take_rows
from cspipe.store.errors import MissingDataError, StoreError, unknown_name
from cspipe.store.layout import StoreKey
from cspipe.store.meta import check_format, read_group
from cspipe.store.remote import local_path
from cspipe.store.remotes import bring
from cspipe.store.table import Shape, read_array
from cspipe.store.views import options_for, parse_view, rows_of_view, views_of

_THREADS = 2


@dataclass(frozen=True)
class Split:
    """The rows of one split; get it from a :class:`Store`.

    Attributes:
        folder: the split's group.
        attributes: its attributes.
        shape: width, data type and chunk rows of the store.
    """

    folder: Path
    attributes: dict[str, Any] = field(repr=False)
    shape: Shape

    def __len__(self) -> int:
        """Rows that are not flagged."""
        return int(self._good.sum())

    @property
    def rows(self) -> int:
        """All rows, flagged ones too."""
        return int(self.attributes["rows"])

    def flagged(self) -> int:
        """Rows that are left out: bad images, and images that are gone from the data set."""
        return self.rows - len(self)

    @cached_property
    def _bad(self) -> NDArray[np.int64]:
        """Row numbers of images that could not be used."""
        return np.array([entry["row"] for entry in self.attributes["bad_images"]], np.int64)

    @cached_property
    def _good(self) -> NDArray[np.bool_]:
        """`(all rows,)` whether a row is not flagged."""
        good: NDArray[np.bool_] = read_array(self.folder, "present", self.attributes).astype(np.bool_)
        good[self._bad] = False
        return good

    def _column(self, name: str, all_rows: bool) -> NDArray[Any]:
        values = read_array(self.folder, name, self.attributes)
        return values if all_rows else values[self._good]

    def label(self, *, all_rows: bool = False) -> NDArray[np.int64]:
        """Class numbers `(N,)`, -1 for unlabelled."""
        return self._column("label", all_rows)

    def row_id(self, *, all_rows: bool = False) -> NDArray[np.int64]:
        """Row numbers `(N,)`: the image's place in order first seen, never reused."""
        return self._column("row_id", all_rows)

    def path(self, *, all_rows: bool = False) -> list[str]:
        """The images' paths, as the data set last showed them."""
        return [str(name) for name in self._column("path", all_rows)]

    def sha256(self, *, all_rows: bool = False) -> NDArray[np.uint8]:
        """Hashes of the images `(N, 32)`."""
        return self._column("sha256", all_rows)

    def embedding(self, out: NDArray[Any] | None = None, *, all_rows: bool = False) -> NDArray[Any]:
        """Every token `(N, D)` in the stored type.

        Args:
            out: writable array of that shape and type to fill, e.g. a view of pinned memory.
            all_rows: keep flagged rows; those of bad images are NaN.

        Returns:
            ``out``, or a new array.

        Raises:
            SettingError: ``out`` is of another shape or type.
            StoreError: a chunk is damaged; the message names its file.
        """
        good = np.ones(self.rows, np.bool_) if all_rows else self._good
        out = room_for(int(good.sum()), self.shape, out)
        jobs = self._jobs(good, out)
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result()
        return out

    def _jobs(self, good: NDArray[np.bool_], out: NDArray[Any]) -> Iterator[Callable[[], None]]:
        """One call for every chunk, each filling its own rows of ``out``."""
        place = 0
        for chunk, start in enumerate(range(0, self.rows, self.shape.per_chunk)):
            mine = good[start : start + self.shape.per_chunk]
            count = int(mine.sum())
            target = out[place : place + count]
            place += count
            yield partial(read_good, self.folder, chunk, mine, self._bad, self.shape, target)

    @cached_property
    def chunk_ends(self) -> NDArray[np.int64]:
        """Where the rows of each chunk end in :meth:`embedding`."""
        return ends_of_chunks(self._good, self.shape.per_chunk)

    def take(self, place: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens of the rows at these places of :meth:`embedding`, in the order named; one chunk is read at a time."""
        return take_rows(self.folder, place, self.chunk_ends, self._good, self._bad, self.shape)

    def dask(self, *, all_rows: bool = False) -> Any:  # noqa: ANN401 - dask has no types
        """The tokens as a lazy dask array `(N, D)`, one block a chunk, checked as they are read."""
        from dask import array, delayed  # type: ignore[attr-defined]

        good = np.ones(self.rows, np.bool_) if all_rows else self._good
        blocks, read = [], delayed(read_good_rows, pure=True)
        for chunk, start in enumerate(range(0, self.rows, self.shape.per_chunk)):
            mine = good[start : start + self.shape.per_chunk]
            size = (int(mine.sum()), self.shape.width)
            block = read(self.folder, chunk, mine, self.shape)
            blocks.append(array.from_delayed(block, size, dtype=self.shape.dtype))  # type: ignore[no-untyped-call]
        if not blocks:
            return array.zeros((0, self.shape.width), dtype=self.shape.dtype)
        return array.concatenate(blocks)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Store:
    """An opened store, ``store["train"]`` a split of it; get it from :func:`open_store`.

    Attributes:
        path: the Zarr group.
        attributes: the root's attributes.
    """

    path: Path
    attributes: dict[str, Any] = field(repr=False)

    @property
    def backbone(self) -> str:
        """Recorded name of the backbone."""
        return str(self.attributes["backbone"])

    @property
    def dataset(self) -> str:
        """Recorded name of the data set."""
        return str(self.attributes["dataset"])

    @property
    def key(self) -> StoreKey:
        """What changes the numbers for a given image."""
        return StoreKey(**self.attributes["key"])

    @property
    def width(self) -> int:
        """Values of a token."""
        return int(self.attributes["width"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type of the tokens."""
        stored: np.dtype[Any] = np.dtype(str(self.attributes["dtype"]))
        return stored

    @property
    def provenance(self) -> dict[str, Any]:
        """With what the tokens were made, as the extraction recorded it."""
        return dict(self.attributes["provenance"])

    @property
    def class_names(self) -> list[str]:
        """Name of each class number."""
        return [str(name) for name in self.provenance.get("class_names") or []]

    @property
    def names(self) -> list[str]:
        """Names of everything there is to read: the data set's splits and views of them, finished or not."""
        return sorted(path.parent.name for path in self.path.glob("*/zarr.json"))

    @property
    def splits(self) -> list[str]:
        """Names of the data set's own splits, finished or not."""
        names = self.names
        return [name for name in names if parse_view(name, names) is None]

    def views(self, split: str) -> list[str]:
        """Names of the finished views of a split, by augmentation, then by number."""
        return [name for name in views_of(split, self.names) if self.split_attributes(name)["complete"]]

    @property
    def shape(self) -> Shape:
        """What the arrays of every split share."""
        return Shape(self.width, str(self.attributes["dtype"]), int(self.attributes["chunk_rows"]))

    def split_attributes(self, split: str) -> dict[str, Any]:
        """Attributes of a split or a view, finished or not.

        Raises:
            UnknownNameError: there is no such split.
        """
        if split not in self.names:
            raise unknown_name("split", split, self.splits)
        return read_group(self.path / split)

    def progress(self, split: str) -> tuple[int, int]:
        """``(k, n)``: how many of the split's chunks are complete."""
        bring(self.path / split)
        return commits.progress(self.path / split, int(self.split_attributes(split)["rows"]), self.shape)

    def __getitem__(self, split: str) -> Split:
        """A finished split or view.

        Raises:
            UnknownNameError: there is no such split.
            StoreError: its extraction is not finished.
        """
        attributes = self.split_attributes(split)
        if not attributes["complete"]:
            done, count = self.progress(split)
            raise StoreError(
                f"{self.path / split}: extraction is not finished ({done} of {count} chunks); "
                "run the same cspipe extract again"
            )
        bring(self.path / split)
        return Split(self.path / split, attributes, self.shape)

    def view_embedding(self, split: str, view: str, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Tokens of a view, row by row those of the images of ``store[split].embedding()``.

        Args:
            split: name of a split.
            view: one of ``views(split)``.
            out: as for :meth:`Split.embedding`.

        Returns:
            ``out``, or a new `(N, D)` array in the stored type.

        Raises:
            UnknownNameError: there is no such split or view.
            StoreError: the view lacks some row of the split; the message names the command that makes it.
        """
        row = self.view_rows(split, view)
        if row is None:
            return self[view].embedding(out)
        result = room_for(len(row), self.shape, out)
        return np.take(self[view].embedding(), row, axis=0, out=result, mode="clip")

    def view_rows(self, split: str, view: str) -> NDArray[np.int64] | None:
        """Place in the view of each row of ``store[split].embedding()``; None where it is the same. Raises likewise."""
        own, known = self[split], views_of(split, self.names)
        if view not in known:
            raise unknown_name(f"view of {split}", view, known)
        row = rows_of_view(own.sha256(), self[view].sha256())
        if row is not None and (row < 0).any():
            raise StoreError(
                f"{self.path}: {int((row < 0).sum())} of {len(row)} rows of {split} are not in its view {view}: run "
                f"cspipe extract {self.backbone} {self.dataset} {options_for(view, known)} with the store's options"
            )
        return row


def open_store(path: Path | str) -> Store:
    """Open a store for reading.

    Args:
        path: the Zarr group, or its URL; what is read of a remote one is brought to a local mirror first.

    Raises:
        MissingDataError: there is no store.
        StoreError: its description is damaged, or of a newer format.
    """
    folder = local_path(path)
    if not (folder / "zarr.json").is_file():
        raise MissingDataError(f"{path} is not a store: name a folder *.zarr that cspipe extract made")
    attributes = read_group(folder)
    check_format(folder, attributes)
    return Store(folder, attributes)
