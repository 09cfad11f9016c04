"""Stage one on real worker processes: the same bytes as alone, also where one of them is killed midway."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cspipe.extract.images import BadImageError
from cspipe.extract.run import extract_all
from cspipe.extract.targets import Request
from cspipe.store.errors import MismatchError, MissingDataError, SettingError
from cspipe.store.verify import verify_store

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("small_chunks")

WORKER = textwrap.dedent("""
    import asyncio, sys
    from distributed import Worker
    async def work():
        async with Worker(sys.argv[1], nthreads=1, name=sys.argv[2], dashboard=False) as worker:
            await worker.finished()
    asyncio.run(work())
""")


@pytest.fixture
def scheduler(monkeypatch):
    """A scheduler of this process without workers."""
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster:
        yield cluster


@pytest.fixture
def workers(scheduler, tmp_path):
    """A function that starts worker processes and waits until they are there."""
    started = []

    def start(count):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        for number in range(count):
            command = [sys.executable, "-c", WORKER, scheduler.scheduler_address, f"worker-{number}"]
            started.append(subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 100
        while len(scheduler.scheduler.workers) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(scheduler.scheduler.workers) == count
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def requests(tiny, tiny_weights):
    """One backbone, two tokens."""
    return [Request(tiny, ("cls", "cls+mean"), tiny_weights)]


def files_of(store):
    """Every file of a store's splits with its bytes."""
    return {path.relative_to(store): path.read_bytes() for path in sorted(Path(store).glob("*/**/*")) if path.is_file()}


def test_three_workers_one_of_them_killed_give_the_bytes_of_one_process(
    requests, scheduler, workers, tmp_path, monkeypatch
):
    processes, rows = workers(3), 0

    class Killer:
        def add_task(self, description, *, total):
            return 0

        def update(self, task_id, *, advance):
            nonlocal rows
            rows += advance
            if rows > 600 and processes[0].poll() is None:
                processes[0].send_signal(signal.SIGKILL)
                processes[0].wait()

    options = {"split": "train", "views": 1, "limit": 700}
    spread = extract_all(requests, "digits", stores=tmp_path / "spread", scheduler=scheduler.scheduler_address,
                         progress=Killer(), **options)  # fmt: skip
    assert processes[0].returncode == -signal.SIGKILL
    assert rows == 4 * 700
    alone = extract_all(requests, "digits", stores=tmp_path / "alone", **options)
    for first, second in zip(spread["stores"], alone["stores"], strict=True):
        assert files_of(first["store"]) == files_of(second["store"])
        assert first["splits"] == second["splits"]
        assert verify_store(first["store"]) == []


def test_bad_images_come_back_with_their_reasons_and_strict_stops(requests, scheduler, workers, tmp_path):
    from PIL import Image

    for number in range(12):
        path = tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 3 * number, 5 * number)).save(path)
    (tmp_path / "pets/cat/07.png").write_bytes(b"no picture")
    workers(1)
    address = {"scheduler": scheduler.scheduler_address}
    told = extract_all(requests, str(tmp_path / "pets"), stores=tmp_path / "stores", **address)
    assert [bad["path"] for bad in told["stores"][1]["bad_images"]] == ["cat/07.png"]
    with pytest.raises(BadImageError, match=r"cat/07\.png cannot be used"):
        extract_all(requests, str(tmp_path / "pets"), stores=tmp_path / "strict", strict=True, **address)


def test_a_worker_with_another_backbone_is_refused(requests, scheduler, workers, tmp_path, monkeypatch):
    workers(1)
    monkeypatch.setattr("cspipe.extract.cluster.probe", lambda lane: _reversed(lane))
    with pytest.raises(MismatchError, match="not that of the process that asked"):
        extract_all(requests, "digits", stores=tmp_path, scheduler=scheduler.scheduler_address, limit=4)


def _reversed(lane):
    """What another network might make of the probe image."""
    from cspipe.extract.embed import probe

    return probe(lane)[::-1].copy()


def test_no_scheduler_and_no_worker_are_told_apart(requests, scheduler, tmp_path):
    with pytest.raises(MissingDataError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        extract_all(requests, "digits", stores=tmp_path, scheduler="tcp://127.0.0.1:9", limit=4)
    with pytest.raises(SettingError, match="has no worker"):
        extract_all(requests, "digits", stores=tmp_path, scheduler=scheduler.scheduler_address, limit=4)
