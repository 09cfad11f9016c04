"""Repairing a store from its images: only the chunks that are damaged or missing are computed again.

Legend: ``D`` width of the token, ``n`` rows of a chunk, ``N`` rows of a split.

An image must have the hash that its row records, the weights those of the key, the probe of the backbone that
of the store; a chunk whose images are not all there is left as it is and told. Tokens do not depend on which
images share a batch, so on the device and libraries of the extraction a chunk comes back bit for bit; its
commit record tells.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.extract.augment import draw_view, words_of
from cspipe.extract.datasets import Dataset
from cspipe.extract.embed import Lane, embed, make_lane, make_seat, pick_device, probe, single_threaded
from cspipe.extract.hashing import pixel_reader
from cspipe.extract.images import BadImageError, Pixels
from cspipe.extract.parallel import worker_count
from cspipe.extract.progress import ProgressLike, Silent
from cspipe.extract.recorded import find_images, own_split, rebuild_tables, recorded_backbone, recorded_dataset
from cspipe.store import commits
from cspipe.store.errors import DamageError, MismatchError
from cspipe.store.foreign import IMPORTED
from cspipe.store.join import JOINED
from cspipe.store.lock import StoreLock
from cspipe.store.meta import read_group
from cspipe.store.opening import checked_tokens
from cspipe.store.plan import VOID_REASON, ChunkTask, ImageTable
from cspipe.store.probe import check_probe
from cspipe.store.reader import Store, open_store
from cspipe.store.remotes import shown
from cspipe.store.repair import Mended, damaged_chunks, damaged_tables, mend, take_out
from cspipe.store.table import read_rows
from cspipe.store.verify import Problem, verify_store
from cspipe.store.views import parse_view

Chunks = dict[str, list[int]]
_READERS = 2


@dataclass(frozen=True)
class Refused:
    """A chunk that was not computed, and why."""

    split: str
    chunk: int
    why: str


@dataclass(frozen=True)
class Recomputed:
    """A chunk that is sound again, rows ``[first_row, end_row)``.

    ``same_bytes``: whether its tokens are the lost ones to the bit; None where nothing is left to tell.
    """

    split: str
    chunk: int
    first_row: int
    end_row: int
    same_bytes: bool | None


@dataclass(frozen=True)
class _Job:
    """One chunk to compute: its rows' pixels, which rows were bad images, which never had one."""

    split: str
    task: ChunkTask
    pixels: Callable[[int], Pixels]
    known_bad: frozenset[int]


def _draw(store: Store, name: str, table: ImageTable) -> Callable[[int, Pixels], Pixels]:
    """How the pixels of a split's images become those that were embedded.

    Raises:
        MismatchError: the augmentation of a view is no longer the one that was recorded.
    """
    if parse_view(name, store.names) is None:
        return lambda image, pixels: pixels
    facts = store.split_attributes(name)["facts"]
    augment, number = str(facts["augment"]), int(facts["view"]) - 1
    if facts["augment_words"] != words_of(augment):
        raise MismatchError(
            f"{store.path / name} was made by {augment} as {facts['augment_words']!r}, which is now "
            f"{words_of(augment)!r}: install the version of cspipe that it was made with"
        )
    return lambda image, pixels: draw_view(augment, pixels, table.sha256[image].tobytes(), number)


def _jobs(
    store: Store, name: str, chunks: list[int], dataset: Dataset, geometry: Callable[..., Any]
) -> tuple[list[_Job], list[Refused]]:
    """What can be computed of the damaged chunks of a split, and what cannot."""
    own = own_split(store, name)
    try:
        rows = read_rows(store.path / name, read_group(store.path / name))
    except DamageError as error:
        return [], [Refused(name, chunk, f"the row table is damaged ({error.path.name})") for chunk in chunks]
    if own not in dataset.splits:
        return [], [Refused(name, chunk, f"{dataset.source} has no split {own}") for chunk in chunks]
    per_chunk, split = store.shape.per_chunk, dataset.splits[own]
    spans = [np.arange(c * per_chunk, min((c + 1) * per_chunk, len(rows)), dtype=np.int64) for c in chunks]
    found = find_images(split, rows, np.concatenate(spans), _READERS)
    image = dict(zip(np.concatenate(spans).tolist(), found.image.tolist(), strict=True))
    jobs, refused = [], []
    for chunk, span in zip(chunks, spans, strict=True):
        reasons = [found.why[row] for row in span.tolist() if row in found.why]
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            refused.append(Refused(name, chunk, reasons[0] + more))
            continue
        images = np.array([image[row] for row in span.tolist()], np.int64)
        table = ImageTable(rows.sha256[span], rows.label[span], [rows.path[row] for row in span])
        read = pixel_reader(split, images, table, geometry)
        jobs.append(_job(store, name, ChunkTask(chunk, int(span[0]), int(span[-1]) + 1, images), table, read))
    return jobs, refused


def _job(store: Store, name: str, task: ChunkTask, table: ImageTable, read: Callable[[int], Pixels]) -> _Job:
    """A chunk whose images are all there."""
    draw = _draw(store, name, table)

    def pixels(place: int) -> Pixels:
        if task.images[place] < 0:
            raise BadImageError(VOID_REASON)
        return draw(place, read(place))

    bad = [int(entry["row"]) - task.first_row for entry in store.split_attributes(name)["bad_images"]]
    count = task.end_row - task.first_row
    return _Job(name, task, pixels, frozenset(place for place in bad if 0 <= place < count))


def _tokens(lane: Lane, batch_size: int, job: _Job) -> tuple[NDArray[np.float32], list[tuple[int, str]]]:
    """Tokens `(n, D)` of a chunk, and the place of each bad image with the reason."""
    if lane.device.type == "cpu":
        torch.set_num_threads(1)
    seat, count = make_seat(lane, batch_size), job.task.end_row - job.task.first_row
    tokens_nD = np.full((count, lane.backbone.width), np.nan, np.float32)
    bad: list[tuple[int, str]] = []
    for start in range(0, count, batch_size):
        places = range(start, min(start + batch_size, count))
        into = seat.pixels_B3HW.numpy()
        into[:] = 0
        for place in places:
            try:
                into[place - start] = job.pixels(place)
            except BadImageError as error:
                bad.append((place, str(error)))
        tokens_nD[start : start + len(places)] = embed(lane, seat)[: len(places)]
    return tokens_nD, bad


def _compute(store: Store, lane: Lane, job: _Job) -> Recomputed | Refused:
    """Compute a chunk and put it in its place, where the same images are bad ones as at the extraction."""
    tokens_nD, bad = _tokens(lane, int(store.attributes["batch_size"]), job)
    tokens, reasons = checked_tokens(job.task, tokens_nD, bad, store.shape)
    chunk, folder = job.task.chunk, store.path / job.split
    other = job.known_bad.symmetric_difference(reasons)
    if other:
        place = min(other)
        why = reasons.get(place, "it can be decoded now, and could not be then")
        return Refused(job.split, chunk, f"row {job.task.first_row + place} is not as it was: {why}")
    former = commits.read_record(folder, chunk)
    first, end = chunk * store.shape.per_chunk, job.task.end_row
    commits.write_embedding(folder, chunk, first, tokens, store.shape)
    known = former is not None and former[:2] == (first, end)
    same = former == commits.read_record(folder, chunk) if known else None
    return Recomputed(job.split, chunk, first, end, same)


def _recompute(
    store: Store,
    wanted: Chunks,
    dataset: Dataset,
    weights: Path | None,
    device: str,
    progress: ProgressLike,
) -> Iterator[Recomputed | Refused]:
    """Compute the wanted chunks of each split, several at a time."""
    place = pick_device(device)
    lane = make_lane(recorded_backbone(store, weights=weights, device=device), place, store.key.dtype)
    check_probe(store.path, store.attributes, probe(lane))
    jobs: list[_Job] = []
    for name, chunks in wanted.items():
        mine, refused = _jobs(store, name, chunks, dataset, lane.backbone.geometry)
        jobs += mine
        yield from refused
    line = progress.add_task(f"{store.path.stem} repair", total=len(jobs))
    with single_threaded(), ThreadPoolExecutor(worker_count([lane]), thread_name_prefix="repair") as pool:
        for result in pool.map(partial(_compute, store, lane), jobs):
            progress.update(line, advance=1)
            yield result


def _split_damage(store: Store, problems: list[Problem]) -> tuple[Chunks, Chunks]:
    """Damaged chunks that are computed now, and those that extract, import or join brings again."""
    every = damaged_chunks(store.path, problems)
    if of_no_images(store):
        return {}, every
    finished = {name: chunks for name, chunks in every.items() if store.split_attributes(name)["complete"]}
    return finished, {name: chunks for name, chunks in every.items() if name not in finished}


def repair(
    path: Path,
    *,
    data_dir: Path | None = None,
    weights: Path | None = None,
    device: str = "cpu",
    progress: ProgressLike | None = None,
) -> dict[str, Any]:
    """Mend a store: what it can by itself, then tables and chunks from the images it was made from.

    Args:
        path: the Zarr group.
        data_dir: where the images are, if not where they were.
        weights: file of the weights, likewise.
        device: where the backbone runs; bytes are the same on the kind of device of the extraction.
        progress: told of each chunk.

    Returns:
        A JSON document: what was mended, recomputed, refused, and the problems that are left.

    Raises:
        CspipeError: weights or images are not there, another process writes the store, its description is lost.
    """
    lock = StoreLock(path)
    try:
        mended = mend(path)
        store, problems = open_store(path), verify_store(path)
        wanted, unfinished = _split_damage(store, problems)
        again = of_no_images(store)
        tables = [name for name in store.names if not again and _tables_damaged(store, name)]
        results: list[Recomputed | Refused] = []
        if wanted or tables:
            dataset = recorded_dataset(store, data_dir)
            for name in tables:
                mended += rebuild_tables(store, name, dataset)
        if wanted:
            results += _recompute(store, wanted, dataset, weights, device, progress or Silent())
        for name, chunks in unfinished.items():
            take_out(path, name, chunks)
            how = f"taken out: {again or 'run the same cspipe extract'} again"
            mended += [Mended(f"{name}/embedding/c/{chunk}/0", how) for chunk in chunks]
    finally:
        lock.release()
    left = verify_store(path)
    return {
        "store": shown(path),
        "mended": [asdict(entry) for entry in mended],
        "recomputed": [asdict(entry) for entry in results if isinstance(entry, Recomputed)],
        "refused": [asdict(entry) for entry in results if isinstance(entry, Refused)],
        "problems": [asdict(problem) for problem in left],
    }


def of_no_images(store: Store) -> str | None:
    """How a store comes about that no images were embedded for; None of one that was extracted."""
    if IMPORTED in store.provenance:
        return "import the same file"
    return "join the same stores" if JOINED in store.provenance else None


def _tables_damaged(store: Store, name: str) -> bool:
    """Whether a split has tables that cannot be read."""
    try:
        attributes = store.split_attributes(name)
    except DamageError:
        return False
    return "array_sha256" in attributes and bool(damaged_tables(store.path / name))
