"""Rows still missing: decode, forward and write at the same time, in a bounded amount of memory.

Legend: ``B`` batch, ``D`` width of the token.

Every worker takes the next batch, decodes it, embeds it and, where it was the chunk's last, writes the chunk.
So decoding, forward passes and writing overlap without queues, and memory holds one batch a worker and the
chunks under way. On CUDA the forward passes take turns, the other workers decode ahead. What is made of the
same images, a split and its views, by one backbone or several, into one store or several, is filled from one
decoding.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from cspipe.extract.embed import Lane, Seat, embed, make_seat, single_threaded
from cspipe.extract.images import BadImageError, Pixels, to_uint8
from cspipe.extract.pieces import Batch, Draw, Output, Part, Piece, batches
from cspipe.store.errors import SettingError

STAGES = ("decode", "forward", "write")
"""Where the workers' time goes."""


class Clock:
    """Seconds of all workers, by stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what is done inside."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begun


@dataclass(frozen=True)
class Work:
    """What the workers do: ``image(number)`` decodes one.

    ``paths`` names the images; ``advance`` is told how many are done; ``strict`` stops at the first bad one.
    """

    dtype: str
    strict: bool
    paths: Sequence[str]
    image: Callable[[int], Image]
    advance: Callable[[int], None]
    clock: Clock = field(default_factory=Clock)


class _Worker:
    """One thread: batch after batch on its device until none is left or another worker failed."""

    def __init__(self, number: int, work: Work, stop: threading.Event) -> None:
        self.number, self.work, self.stop = number, work, stop
        self._seats: dict[tuple[int, int], Seat] = {}

    def run(self, todo: Iterator[Batch], turn: threading.Lock) -> None:
        """Take batches in turn with the other workers."""
        torch.set_num_threads(1)
        while not self.stop.is_set():
            with turn:
                batch = next(todo, None)
            if batch is None:
                return
            self._embed(batch)

    def _lane(self, output: Output) -> Lane:
        return output.lanes[self.number % len(output.lanes)]

    def _seat(self, lane: Lane, batch_size: int) -> Seat:
        key = id(lane), batch_size
        if key not in self._seats:
            self._seats[key] = make_seat(lane, batch_size)
        return self._seats[key]

    def _embed(self, batch: Batch) -> None:
        """Decode a batch once and fill every piece from it; chunks that are then whole are stored."""
        passes: dict[tuple[int, int, int], list[Piece]] = {}
        for piece in batch:
            part = piece.chunk.part
            key = id(self._lane(part.output)), part.output.batch_size, id(part.draw)
            passes.setdefault(key, []).append(piece)
        lanes = {id(lane): lane for piece in batch for lane in [self._lane(piece.chunk.part.output)]}
        images = batch[0].images
        with self.work.clock("decode"):
            decoded, bad = _decode(self.work, images, lanes)
        for (number, size, _), pieces in passes.items():
            if self.stop.is_set():
                return
            tokens = self._tokens(lanes[number], size, images, decoded[number], pieces[0].chunk.part.draw)
            for piece in pieces:
                self._keep(piece, tokens[:, piece.chunk.part.output.columns], bad)

    def _tokens(
        self, lane: Lane, size: int, images: NDArray[np.int64], decoded: Sequence[Pixels | None], draw: Draw | None
    ) -> NDArray[np.float32]:
        """All values `(B, lane's width)` of the images, or of a view of each, by forward passes of ``size``."""
        seat, parts = self._seat(lane, size), []
        for start in range(0, len(images), size):
            some = slice(start, start + size)
            with self.work.clock("decode"):
                _fill(seat, images[some], decoded[some], draw)
            with self.work.clock("forward"):
                parts.append(embed(lane, seat)[: len(images[some])])
        return np.concatenate(parts)

    def _keep(self, piece: Piece, tokens_BD: NDArray[np.float32], bad: dict[int, str]) -> None:
        """Put tokens into their chunk, and store it where it is whole."""
        chunk, part = piece.chunk, piece.chunk.part
        _check_finite(self._lane(part.output).backbone.name, self.work.dtype, tokens_BD, bad)
        tokens_BD = tokens_BD.copy()
        tokens_BD[list(bad)] = np.nan
        if chunk.put(piece.start, tokens_BD, bad):
            with self.work.clock("write"):
                part.output.commit(part.split, part.task, chunk.tokens_nD, sorted(chunk.bad))
        self.work.advance(len(tokens_BD))


def _decode(
    work: Work, images: NDArray[np.int64], lanes: dict[int, Lane]
) -> tuple[dict[int, list[Pixels | None]], dict[int, str]]:
    """Pixels of each image as each lane wants them, None for a bad one; places of the bad ones and the reasons."""
    decoded: dict[int, list[Pixels | None]] = {number: [] for number in lanes}
    bad: dict[int, str] = {}
    for place, image in enumerate(images):
        try:
            picture = work.image(int(image))
            for number, lane in lanes.items():
                decoded[number].append(to_uint8(picture, lane.backbone.geometry))
        except BadImageError as error:
            if work.strict:
                advice = "Mend or remove it, or leave --strict out to go on without it"
                raise BadImageError(f"{work.paths[image]} cannot be used: {error}. {advice}") from error
            for pixels in decoded.values():
                pixels[place:] = [None]
            bad[place] = str(error)
    return decoded, bad


def _fill(seat: Seat, images: NDArray[np.int64], decoded: Sequence[Pixels | None], draw: Draw | None) -> None:
    """Put the images, or a view of each, into the seat; bad images and empty places are left black."""
    into = seat.pixels_B3HW.numpy()
    into[len(decoded) :] = 0
    for place, (image, pixels) in enumerate(zip(images, decoded, strict=True)):
        if pixels is None:
            into[place] = 0
        else:
            into[place] = pixels if draw is None else draw(int(image), pixels)


def _check_finite(name: str, dtype: str, tokens_BD: NDArray[np.float32], bad: dict[int, str]) -> None:
    """Refuse tokens of good images that the stored type cannot hold."""
    limit = float(np.finfo(np.float16 if dtype == "fp16" else np.float32).max)
    good = np.ones(len(tokens_BD), np.bool_)
    good[list(bad)] = False
    wrong = good & ~np.all(np.abs(tokens_BD) <= limit, axis=1)
    if wrong.any():
        largest = float(np.abs(tokens_BD[wrong]).max())
        advice = "use --dtype fp32" if dtype == "fp16" else "the weights may be damaged: give others"
        raise SettingError(
            f"{name} gives tokens that {dtype} cannot hold (largest value {largest:.3g}, limit {limit:.3g}): {advice}"
        )


def worker_count(lanes: Sequence[Lane]) -> int:
    """One worker a core that this process may use; at least two a GPU, to decode ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = {lane.device for lane in lanes if lane.device.type != "cpu"}
    return max(cores, 2 * len(devices))


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
    todo, turn, stop = batches(parts), threading.Lock(), threading.Event()
    with single_threaded(), ThreadPoolExecutor(workers, thread_name_prefix="extract") as pool:
        futures = [pool.submit(_Worker(number, work, stop).run, todo, turn) for number in range(workers)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
