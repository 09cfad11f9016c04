"""Rows still missing: decode, forward and write at the same time, in a bounded amount of memory.

Legend: ``B`` batch, ``D`` width of the token, ``n`` rows of a chunk's task.

Every worker takes the next batch, decodes it, embeds it and, where it was the chunk's last, writes the chunk.
So decoding, forward passes and writing overlap without queues, and memory holds one batch a worker and the
chunks under way. On CUDA the forward passes take turns, the other workers decode ahead.
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
Commit = Callable[[ChunkTask, NDArray[np.float32], list[tuple[int, str]]], None]


@dataclass(frozen=True)
class Work:
    """What the workers do: ``pixels(image)`` gives `(3, H, W)`, ``commit`` stores a chunk's rows.

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
    """The rows of one task while batches of it are under way."""

    def __init__(self, task: ChunkTask, width: int, batches: int) -> None:
        self.task = task
        self.tokens_nD = np.full((len(task.images), width), np.nan, np.float32)
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


Batches = Iterator[tuple[_Chunk, int]]


def _batches(tasks: Sequence[ChunkTask], work: Work) -> Batches:
    """Each batch as its chunk and its first row there; chunks come into being one after the other."""
    for task in tasks:
        starts = range(0, len(task.images), work.batch_size)
        chunk = _Chunk(task, work.lane.backbone.width, len(starts))
        for start in starts:
            yield chunk, start


def _fill(work: Work, seat: Seat, images: NDArray[np.int64]) -> dict[int, str]:
    """Decode a batch into the seat; places of bad images, which are left black, and the reasons."""
    into = seat.pixels_B3HW.numpy()
    into[len(images) :] = 0
    bad: dict[int, str] = {}
    for place, image in enumerate(images):
        try:
            into[place] = work.pixels(int(image))
        except BadImageError as error:
            if work.strict:
                advice = "Mend or remove it, or leave --strict out to go on without it"
                raise BadImageError(f"{work.paths[image]} cannot be used: {error}. {advice}") from error
            into[place] = 0
            bad[place] = str(error)
    return bad


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


def _work(work: Work, batches: Batches, turn: threading.Lock, stop: threading.Event) -> None:
    """One worker: batch after batch until none is left or another worker failed."""
    if work.lane.device.type == "cpu":
        torch.set_num_threads(1)
    seat = make_seat(work.lane, work.batch_size)
    while not stop.is_set():
        with turn:
            following = next(batches, None)
        if following is None:
            return
        chunk, start = following
        images = chunk.task.images[start : start + work.batch_size]
        bad = _fill(work, seat, images)
        tokens = embed(work.lane, seat)[: len(images)]
        _check_finite(work, tokens, bad)
        tokens[list(bad)] = np.nan
        if chunk.put(start, tokens, bad):
            work.commit(chunk.task, chunk.tokens_nD, sorted(chunk.bad))
        work.advance(len(images))


def worker_count(lane: Lane) -> int:
    """One worker a core that this process may use; on CUDA at least two, to decode ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if lane.device.type == "cpu" else max(2, cores)


def run_tasks(tasks: Sequence[ChunkTask], work: Work, workers: int) -> None:
    """Compute and store all tasks; on an error or an interrupt the chunks that are whole stay stored.

    Args:
        tasks: what is missing, each chunk once.
        work: how.
        workers: threads; tokens do not depend on it.

    Raises:
        SettingError: tokens that the stored type cannot hold.
        BadImageError: a bad image, where strict.
    """
    batches, turn, stop = _batches(tasks, work), threading.Lock(), threading.Event()
    with single_threaded(), ThreadPoolExecutor(workers, thread_name_prefix="extract") as pool:
        futures = [pool.submit(_work, work, batches, turn, stop) for _ in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
