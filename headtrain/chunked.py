"""Tokens that stay in their store because they do not fit into memory, and how that is decided.

Legend: `N` rows, `D` token width.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.headtrain.settings import HEAD_METHODS, HeadSettings, method_settings
from cspipe.store import Split, Store
from cspipe.store.errors import SettingError

Ints = NDArray[np.int64]

ALL_AT_ONCE = ("label-propagation", "self-training")
"""Methods that look at all rows at once."""

WITHOUT_ALL_ROWS = (*(method for method in HEAD_METHODS if method not in ALL_AT_ONCE), "logistic", "knn")
"""Methods that do not."""

MEMORY_TOLD = Path("/proc/meminfo")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class ChunkedTokens:
    """Tokens `(N, D)` that stay in their store; they are read when they are asked for.

    Attributes:
        split: what they are read from; flagged rows are left out.
        rows: N, the first so many of them.
        limit_bytes: how much memory a training on them may take, see `peak_bytes`.
        place_N: place of each row in `split`; None where it is the row's own number.
    """

    split: Split
    rows: int
    limit_bytes: int
    place_N: Ints | None = None

    def __len__(self) -> int:
        return self.rows

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.rows, self.split.shape.width

    @property
    def itemsize(self) -> int:
        """Bytes of a stored number."""
        return np.dtype(self.split.shape.dtype).itemsize

    def __getitem__(self, at: Tensor) -> Tensor:
        """Tokens of the named rows, in the order named; one chunk after the other is read.

        Raises:
            StoreError: a chunk is damaged; the message names its file.
        """
        row = at.numpy()
        return torch.from_numpy(self.split.take(row if self.place_N is None else self.place_N[row]))

    def first(self, rows: int) -> Self:
        """The first so many rows."""
        return replace(self, rows=rows, place_N=None if self.place_N is None else self.place_N[:rows])

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First row and end of each chunk that holds rows."""
        ends = np.minimum(self.split.chunk_ends, self.rows).tolist()
        return [(start, end) for start, end in pairwise([0, *ends]) if end > start]

    def blocks(self) -> Iterator[Tensor]:
        """All tokens, chunk by chunk."""
        return (self[torch.arange(start, end)] for start, end in self.ranges)


Tokens = Tensor | ChunkedTokens


def chunked_split(store: Store, split: str, views: Sequence[str], limit_bytes: int) -> list[ChunkedTokens]:
    """A split's tokens and those of its views, row by row of the same images.

    A view whose rows lie in another order than the split's is read in several chunks a block: right, but slower.

    Raises:
        StoreError: a view lacks some row of the split.
    """
    own = store[split]
    views_of_it = [ChunkedTokens(store[name], len(own), limit_bytes, store.view_rows(split, name)) for name in views]
    return [ChunkedTokens(own, len(own), limit_bytes), *views_of_it]


def resident(tokens: Tokens, what: str) -> Tensor:
    """Tokens that `what` needs all at once.

    Raises:
        SettingError: they stay in their store, for they are larger than the memory limit.
    """
    if isinstance(tokens, Tensor):
        return tokens
    raise SettingError(
        f"{what} looks at all {len(tokens)} training rows at once, and they are read chunk by chunk because they do "
        f"not fit into {tokens.limit_bytes / 1e9:.3g} GB. Leave it out, or set head.memory_gb higher; "
        f"{', '.join(WITHOUT_ALL_ROWS)} work so, judged on a test split or on dev rows."
    )


def resident_bytes(split: Split, views: int, methods: Sequence[str], settings: HeadSettings) -> int:
    """What a split and its views take in memory, bytes: as stored, and projected for the method that keeps most.

    Voters, who see whole tokens, and dev rows are counted too.
    """
    width, itemsize = split.shape.width, np.dtype(split.shape.dtype).itemsize
    chosen = [method_settings(method, settings) for method in methods if method in HEAD_METHODS]
    own = [min(each.components or width, width) + width * each.voted for each in chosen]
    projected = max(own, default=width)
    return len(split) * (1 + views) * (width * itemsize + 4 * projected)


def available_bytes() -> int | None:
    """Three quarters of the memory that is free, bytes; None where the system does not tell.

    Linux tells what a new program can have and what a container may take, others how much is built in.
    """
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else ""
    found = [int(limit)] if limit.isdigit() else []
    lines = MEMORY_TOLD.read_text().splitlines() if MEMORY_TOLD.is_file() else []
    found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found) * 3 // 4 if found else None


def check_streamed(tokens: Tokens, methods: Sequence[str], settings: HeadSettings, evaluation: str) -> None:
    """Refuses what needs all training rows at once where they are read chunk by chunk.

    Raises:
        SettingError: such a method, or cross-validation.
    """
    for method in methods:
        if method in ALL_AT_ONCE:
            resident(tokens, method)
    if evaluation == "cross-validation":
        resident(tokens, "cross-validation (the store has no labelled test split, and head.dev_rows is 0)")
