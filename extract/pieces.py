"""What is missing, cut into batches that are decoded once for all that is made of them.

Legend: ``B`` batch, ``D`` width of the token, ``n`` rows of a chunk's task.
"""

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.embed import Lane
from cspipe.extract.images import Pixels
from cspipe.store.writer import ChunkTask

Draw = Callable[[int, Pixels], Pixels]
Commit = Callable[[str, ChunkTask, NDArray[np.float32], list[tuple[int, str]]], None]


@dataclass(frozen=True, eq=False)
class Output:
    """One store that is filled.

    Attributes:
        lanes: its backbone on each device; workers are dealt out to them.
        columns: where its token lies among the values that a lane gives at once.
        batch_size: images of a forward pass, always filled up to so many.
        commit: stores a chunk's rows in a split.
    """

    lanes: tuple[Lane, ...]
    columns: slice
    batch_size: int
    commit: Commit


@dataclass(frozen=True)
class Part:
    """Rows of one split of one store; ``draw(image, pixels)`` gives a view of the image, None the image itself."""

    output: Output
    split: str
    task: ChunkTask
    draw: Draw | None = None


class Chunk:
    """The rows of one part while batches of it are under way."""

    def __init__(self, part: Part, batches: int) -> None:
        self.part = part
        width = part.output.columns.stop - part.output.columns.start
        self.tokens_nD = np.full((len(part.task.images), width), np.nan, np.float32)
        self.bad: list[tuple[int, str]] = []
        self._left = batches
        self._lock = threading.Lock()

    def put(self, start: int, tokens_BD: NDArray[np.float32], bad: dict[int, str]) -> bool:
        """Keep one batch; true where it was the last."""
        self.tokens_nD[start : start + len(tokens_BD)] = tokens_BD
        with self._lock:
            self.bad += [(start + place, reason) for place, reason in bad.items()]
            self._left -= 1
            return self._left == 0


@dataclass(frozen=True)
class Piece:
    """A batch's worth of one chunk: images `(B,)` that lie from row ``start`` of the chunk's task on."""

    chunk: Chunk
    start: int
    images: NDArray[np.int64]

    @property
    def row(self) -> int:
        """Its first row in the split."""
        return self.chunk.part.task.first_row + self.start


Batch = list[Piece]
"""Pieces of the same images."""


def _pieces(parts: Sequence[Part], size: int) -> Iterator[Piece]:
    """The pieces of one split of one store in the order of its rows; a chunk comes into being with its first."""
    for part in parts:
        images = part.task.images
        starts = range(0, len(images), size)
        chunk = Chunk(part, len(starts))
        for start in starts:
            yield Piece(chunk, start, images[start : start + size])


def batches(parts: Sequence[Part]) -> Iterator[Batch]:
    """Each batch with all pieces that are made of it, as large as the largest of the forward passes."""
    size = max(part.output.batch_size for part in parts)
    streams: dict[tuple[Output, str], list[Part]] = {}
    for part in parts:
        streams.setdefault((part.output, part.split), []).append(part)
    merged = heapq.merge(*(_pieces(stream, size) for stream in streams.values()), key=lambda piece: piece.row)
    for _, alike in groupby(merged, key=lambda piece: (piece.row, piece.images.tobytes())):
        yield list(alike)
