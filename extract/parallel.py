"""Rows still missing: decode, forward and write at the same time, in a bounded amount of memory.

Legend: ``B`` batch, ``D`` width of the token, ``n`` rows of a chunk's task.

Every worker takes the next batch, decodes it, embeds it and, where it was the chunk's last, writes the chunk.
So decoding, forward passes and writing overlap without queues, and memory holds one batch a worker and the
chunks under way. On CUDA the forward passes take turns, the other workers decode ahead. Chunks of several
splits that are made of the same images, as a split's and its views' are, are filled from one decoding.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.extract.embed import Lane, Seat, embed, make_seat, single_threaded
from cspipe.extract.images import BadImageError, Pixels
from cspipe.store.errors import SettingError
from cspipe.store.writer import ChunkTask

ReadPixels = Callable[[int], Pixels]
Draw = Callable[[int, Pixels], Pixels]
Commit = Callable[[str, ChunkTask, NDArray[np.float32], list[tuple[int, str]]], None]


@dataclass(frozen=True)
class Part:
    """Rows of one split to compute; ``draw(image, pixels)`` gives a view of the image, None the image itself."""

    split: str
    task: ChunkTask
    draw: Draw | None = None


@dataclass(frozen=True)
class Work:
    """What the workers do: ``pixels(image)`` gives `(3, H, W)`, ``commit`` stores a chunk's rows in a split.

    ``paths`` names the images; ``advance`` is told how many are done; ``strict`` stops at the first bad one.
    """

    lane: Lane
    batch_size: int
    dtype: str
    strict: bool
    paths: Sequence[str]
    pixels: ReadPixels
    commit: Commit
    advance: Callable[[int], None]


class _Chunk:
    """The rows of one part while batches of it are under way."""

    def __init__(self, part: Part, width: int, batches: int) -> None:
        self.part = part
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
class _Batch:
    """Images `(B,)` that lie from row ``start`` on in each of the chunks."""

    images: NDArray[np.int64]
    start: int
    chunks: list[_Chunk]


Batches = Iterator[_Batch]


def _batches(parts: Sequence[Part], work: Work) -> Batches:
    """Each batch with all chunks that it fills; chunks come into being one group after the other."""
    groups: dict[bytes, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.task.images.tobytes(), []).append(part)
    for group in groups.values():
        images = group[0].task.images
        starts = range(0, len(images), work.batch_size)
        chunks = [_Chunk(part, work.lane.backbone.width, len(starts)) for part in group]
        for start in starts:
            yield _Batch(images[start : start + work.batch_size], start, chunks)


def _decode(work: Work, images: NDArray[np.int64]) -> tuple[list[Pixels | None], dict[int, str]]:
    """Pixels of each image, None for a bad one; places of the bad ones and the reasons."""
    decoded: list[Pixels | None] = []
    bad: dict[int, str] = {}
    for place, image in enumerate(images):
        try:
            decoded.append(work.pixels(int(image)))
        except BadImageError as error:
            if work.strict:
                advice = "Mend or remove it, or leave --strict out to go on without it"
                raise BadImageError(f"{work.paths[image]} cannot be used: {error}. {advice}") from error
            decoded.append(None)
            bad[place] = str(error)
    return decoded, bad


def _fill(seat: Seat, batch: _Batch, decoded: Sequence[Pixels | None], draw: Draw | None) -> None:
    """Put the images, or a view of each, into the seat; bad images and empty places are left black."""
    into = seat.pixels_B3HW.numpy()
    into[len(decoded) :] = 0
    for place, (image, pixels) in enumerate(zip(batch.images, decoded, strict=True)):
        if pixels is None:
            into[place] = 0
        else:
            into[place] = pixels if draw is None else draw(int(image), pixels)


def _check_finite(work: Work, tokens_BD: NDArray[np.float32], bad: dict[int, str]) -> None:
    """Refuse tokens of good images that the stored type cannot hold."""
    limit = float(np.finfo(np.float16 if work.dtype == "fp16" else np.float32).max)
    good = np.ones(len(tokens_BD), np.bool_)
    good[list(bad)] = False
    wrong = good & ~np.all(np.abs(tokens_BD) <= limit, axis=1)
    if wrong.any():
        name, largest = work.lane.backbone.name, float(np.abs(tokens_BD[wrong]).max())
        advice = "use --dtype fp32" if work.dtype == "fp16" else "the weights may be damaged: give others"
        raise SettingError(
            f"{name} gives tokens that {work.dtype} cannot hold (largest value {largest:.3g}, limit "
            f"{limit:.3g}): {advice}"
        )


def _embed_batch(work: Work, seat: Seat, batch: _Batch, stop: threading.Event) -> None:
    """Decode a batch once and fill every chunk's rows from it; chunks that are then whole are stored."""
    decoded, bad = _decode(work, batch.images)
    for chunk in batch.chunks:
        if stop.is_set():
            return
        part = chunk.part
        _fill(seat, batch, decoded, part.draw)
        tokens = embed(work.lane, seat)[: len(decoded)]
        _check_finite(work, tokens, bad)
        tokens[list(bad)] = np.nan
        if chunk.put(batch.start, tokens, bad):
            work.commit(part.split, part.task, chunk.tokens_nD, sorted(chunk.bad))
        work.advance(len(decoded))


def _work(work: Work, batches: Batches, turn: threading.Lock, stop: threading.Event) -> None:
    """One worker: batch after batch until none is left or another worker failed."""
    if work.lane.device.type == "cpu":
        torch.set_num_threads(1)
    seat = make_seat(work.lane, work.batch_size)
    while not stop.is_set():
        with turn:
            batch = next(batches, None)
        if batch is None:
            return
        _embed_batch(work, seat, batch, stop)


def worker_count(lane: Lane) -> int:
    """One worker a core that this process may use; on CUDA at least two, to decode ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if lane.device.type == "cpu" else max(2, cores)


def run_parts(parts: Sequence[Part], work: Work, workers: int) -> None:
    """Compute and store all parts; on an error or an interrupt the chunks that are whole stay stored.

    Args:
        parts: what is missing, each chunk of a split once; those of the same images share one decoding.
        work: how.
        workers: threads; tokens do not depend on it, nor on which parts are computed together.

    Raises:
        SettingError: tokens that the stored type cannot hold.
        BadImageError: a bad image, where strict.
    """
    batches, turn, stop = _batches(parts, work), threading.Lock(), threading.Event()
    with single_threaded(), ThreadPoolExecutor(workers, thread_name_prefix="extract") as pool:
        futures = [pool.submit(_work, work, batches, turn, stop) for _ in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
