"""Stage one on the workers of a `dask.distributed` scheduler that runs already.

The work is dealt out in ranges of rows that hold whole chunks. A worker decodes and embeds; its tokens come back, and
the process that asked stays the only writer of the stores: what holds for one machine about kills and power cuts holds
here too, workers need to see the images and nothing else, and the work of a worker that is lost is done by another.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.datasets import load_dataset
from cspipe.extract.embed import pick_device, probe
from cspipe.extract.hashing import image_reader
from cspipe.extract.parallel import Work, run_parts
from cspipe.extract.pieces import Draw, Output, Part
from cspipe.extract.targets import Network, Request, Target, key_of, load_networks
from cspipe.extract.wanted import Options, drawer
from cspipe.store.errors import MismatchError, MissingDataError, SettingError
from cspipe.store.probe import MOST_APART, apart
from cspipe.store.writer import ChunkTask, ImageTable

Result = tuple[NDArray[np.float32], list[tuple[int, str]]]
"""Tokens `(n, D)` of a part, and the place and reason of each bad image."""

UNITS_AHEAD = 2
"""Units that each worker thread has in hand or in its queue: enough that none waits, few enough to bound memory."""


@dataclass(frozen=True)
class Job:
    """What every unit of one extraction has in common; it reaches a worker as plain data.

    Attributes:
        requests: the backbones. dataset, data_dir: where the images are, on the workers too.
        dtype: ``"fp16"`` or ``"fp32"``. device: on each worker. strict: stop at a bad image. augment: of views.
        batch_sizes: of every store.
        keys: of every store, and probes: what each network makes of the probe image, so that a worker with other
            weights or libraries is refused.
    """

    requests: tuple[Request, ...]
    dataset: str
    data_dir: Path | None
    dtype: str
    device: str
    strict: bool
    augment: str
    batch_sizes: tuple[int, ...]
    keys: tuple[str, ...]
    probes: tuple[bytes, ...]


@dataclass(frozen=True)
class Unit:
    """Parts of a range of rows: images of a split by their number in the data set, with their hashes.

    ``parts`` are (number of the store, view number or None, task whose images count in ``images``).
    """

    split: str
    images: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    paths: list[str]
    parts: list[tuple[int, int | None, ChunkTask]]


def make_job(
    networks: Sequence[Network], targets: Sequence[Target], dataset: str, data_dir: Path | None, options: Options,
    device: str,
) -> Job:  # fmt: skip
    """The job that these networks and stores stand for; folders and files by their absolute names."""
    requests = [
        replace(network.request, weights=network.request.weights and network.request.weights.resolve())
        for network in networks
    ]
    return Job(
        requests=tuple(requests), dataset=str(Path(dataset).resolve()) if Path(dataset).exists() else dataset,
        data_dir=data_dir and data_dir.resolve(), dtype=options.dtype, device=device, strict=options.strict,
        augment=options.augment, batch_sizes=tuple(target.output.batch_size for target in targets),
        keys=tuple(key_of(target.backbone, options.dtype).sha256() for target in targets),
        probes=tuple(probe(network.lanes[0]).tobytes() for network in networks),
    )  # fmt: skip


@lru_cache(maxsize=2)
def _prepared(pickled: bytes) -> tuple[Job, list[Network], Any]:
    """Networks and data set of a job, once a process.

    Raises:
        MismatchError: this worker's weights or libraries give other tokens.
    """
    job: Job = pickle.loads(pickled)
    networks = load_networks(job.requests, [pick_device(job.device)], job.dtype)
    keys = tuple(key_of(backbone, job.dtype).sha256() for network in networks for backbone in network.tokens)
    probes = [np.frombuffer(given, np.float32) for given in job.probes]
    distance = max(apart(probe(n.lanes[0]), given) for n, given in zip(networks, probes, strict=True))
    if keys != job.keys or distance > MOST_APART:
        raise MismatchError(
            "a worker's backbone is not that of the process that asked (other weights, or libraries that compute "
            f"otherwise; its tokens are apart by {distance:.2g}): give the workers the same files and versions"
        )
    return job, networks, load_dataset(job.dataset, data_dir=job.data_dir)


def compute(pickled: bytes, unit: Unit) -> list[Result]:
    """What a worker does with a unit.

    Args:
        pickled: the :class:`Job`.
        unit: which rows.

    Returns:
        A result for each of the unit's parts.
    """
    job, networks, dataset = _prepared(pickled)
    table = ImageTable(unit.sha256, np.full(len(unit.images), -1, np.int64), unit.paths)
    columns = [(network, number) for network in networks for number in range(len(network.tokens))]
    views = {view for _, view, _ in unit.parts if view is not None}
    draws: dict[int | None, Draw | None] = {None: None} | {view: drawer(job.augment, table, view) for view in views}
    results: dict[int, Result] = {}

    def part(place: int, store: int, view: int | None, task: ChunkTask) -> Part:
        network, number = columns[store]

        def keep(split: str, task: ChunkTask, tokens_nD: NDArray[np.float32], bad: list[tuple[int, str]]) -> None:
            results[place] = tokens_nD, bad

        output = Output(network.lanes, network.columns(number), job.batch_sizes[store], keep)
        return Part(output, unit.split, task, draws[view])

    work = Work(
        job.dtype, job.strict, unit.paths, image_reader(dataset.splits[unit.split], unit.images, table),
        lambda count: None,
    )  # fmt: skip
    run_parts([part(place, *given) for place, given in enumerate(unit.parts)], work, workers=1)
    return [results[place] for place in range(len(unit.parts))]


@dataclass(frozen=True)
class Planned:
    """A part as the asking process knows it: number of its store, view number or None, and the part itself."""

    store: int
    view: int | None
    part: Part


def _units(
    split: str, planned: Sequence[Planned], images: NDArray[np.int64], table: ImageTable
) -> Iterator[tuple[list[Planned], Unit]]:
    """Ranges of rows as long as the longest chunk, each with all parts that begin in it."""
    longest = max(each.part.task.end_row - each.part.task.first_row for each in planned)
    size = 1 << (longest - 1).bit_length()
    in_order = sorted(planned, key=lambda each: each.part.task.first_row)
    for _, group in groupby(in_order, key=lambda each: each.part.task.first_row // size):
        members = list(group)
        wanted, place = np.unique(np.concatenate([each.part.task.images for each in members]), return_inverse=True)
        ends = np.cumsum([0, *(len(each.part.task.images) for each in members)])
        parts = [
            (each.store, each.view, replace(each.part.task, images=place[first:end].astype(np.int64)))
            for each, first, end in zip(members, ends[:-1], ends[1:], strict=True)
        ]
        paths = [table.path[number] for number in wanted]
        yield members, Unit(split, images[wanted], table.sha256[wanted], paths, parts)


class Cluster:
    """A connection to a scheduler; a context manager.

    Args:
        address: of the scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises:
        MissingDataError: the package ``distributed`` is not installed, or nothing answers there.
    """

    def __init__(self, address: str) -> None:
        self._client: Any
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingDataError(
                "--scheduler needs dask.distributed: pip install 'content-style-pipeline[cluster]'"
            ) from error
        try:
            self._client = Client(address, timeout=10, set_as_default=False)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise MissingDataError(
                f"no dask scheduler answers at {address} ({error}): start one with `dask scheduler`, and workers with "
                "`dask worker ADDRESS`"
            ) from error

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def _workers(self) -> tuple[int, bool]:
        """Threads of all workers, and whether some of them offer the resource ``GPU``."""
        told = self._client.scheduler_info(n_workers=-1)["workers"]
        if not told:
            raise SettingError("the scheduler has no worker: start some with `dask worker ADDRESS`")
        return sum(each["nthreads"] for each in told.values()), any(
            each["resources"].get("GPU") for each in told.values()
        )

    def run(
        self, job: Job, split: str, planned: Sequence[Planned], images: NDArray[np.int64], table: ImageTable,
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Have all parts computed, and commit each as it comes back; what is committed stays, whatever happens.

        A unit whose worker is lost goes to another. Where workers offer the resource ``GPU``, each unit takes one.

        Raises:
            CspipeError: as on one machine; or units whose workers were lost again and again.
        """
        from distributed import KilledWorker, as_completed

        threads, gpu = self._workers()
        pickled, units = pickle.dumps(job), _units(split, planned, images, table)
        waiting: dict[Any, list[Planned]] = {}

        def submit(members: list[Planned], unit: Unit) -> Any:  # noqa: ANN401
            future = self._client.submit(compute, pickled, unit, pure=False, resources={"GPU": 1} if gpu else None)
            waiting[future.key] = members
            return future

        first = [submit(*unit) for unit in islice(units, UNITS_AHEAD * threads)]
        running: Any = as_completed(first, loop=self._client.loop)  # type: ignore[no-untyped-call]
        try:
            for future in running:
                members = waiting.pop(future.key)
                for each, (tokens_nD, bad) in zip(members, future.result(), strict=True):
                    part = each.part
                    part.output.commit(part.split, part.task, tokens_nD, bad)
                    advance(len(tokens_nD))
                future.release()
                running.update([submit(*unit) for unit in islice(units, 1)])
        except KilledWorker as error:
            raise SettingError(
                f"several workers were lost over the same images ({error}): look into their logs; fewer threads a "
                "worker or a smaller --batch-size take less memory. What is finished is kept"
            ) from error
        finally:
            self._client.cancel([future for future in running.futures])
