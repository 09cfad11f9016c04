"""Kills one extraction again and again; run as a program, so that children are forked before any thread is there.

    python killing.py STORES IMAGES WEIGHTS KILLS SEED

Each child goes on with the extraction and is killed with SIGKILL at a random moment after it has committed at least
one more chunk; the last one is left alone. Prints one JSON document.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from cspipe.extract.run import extract
from cspipe.store import commits, opening
from cspipe.store.meta import read_group
from cspipe.store.repair import shape_of
from cspipe.store.writer import StoreWriter

CHUNK_ROWS, PAUSE, BACKBONE, SIDE_PX = 16, 0.01, "timm:test_vit", 16


def run(stores: Path, images: Path, weights: Path, log: Path | None = None) -> None:
    """The extraction; each chunk that is planned is logged, and each commit takes a while longer."""
    opening.chunk_rows = lambda width, itemsize: CHUNK_ROWS
    plan, commit = StoreWriter.plan, StoreWriter.commit

    def logged_plan(writer, split, table, *, whole):
        tasks = plan(writer, split, table, whole=whole)
        if log:
            with log.open("a") as file:
                file.write("".join(f"{split}/{task.chunk}\n" for task in tasks))
        return tasks

    def slow_commit(*given, **named):
        commit(*given, **named)
        time.sleep(PAUSE)

    if log:
        StoreWriter.plan, StoreWriter.commit = logged_plan, slow_commit
    extract(BACKBONE, str(images), stores=stores, weights=weights, image_px=SIDE_PX, batch_size=16, views=1)


def committed(stores: Path) -> set[str]:
    """Chunks that are committed now, as ``split/chunk``."""
    found = set()
    for store in stores.glob("*.zarr"):
        for split in (path.parent for path in store.glob("*/zarr.json")):
            shape = shape_of(read_group(store))
            for chunk in commits.recorded_chunks(split):
                if commits.committed_end(split, chunk, shape) > chunk * shape.per_chunk:
                    found.add(f"{split.name}/{chunk}")
    return found


def records(stores: Path) -> int:
    """How many commit records there are."""
    return sum(1 for _ in stores.glob("*.zarr/*/commit/c/*/0"))


def start(stores: Path, images: Path, weights: Path, log: Path) -> int:
    """Fork a child that goes on with the extraction."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(stores, images, weights, log)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def main() -> None:
    """Kill, resume, kill; then let it finish."""
    stores, images, weights = (Path(place) for place in sys.argv[1:4])
    kills, chance = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    twice, gained, lost, log = [], [], [], stores.parent / "planned.log"
    before: set[str] = set()
    for number in range(kills + 1):
        log.unlink(missing_ok=True)
        held = records(stores)
        child = start(stores, images, weights, log)
        if number < kills:
            while records(stores) <= held and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 3 * PAUSE))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        planned = log.read_text().split() if log.is_file() else []
        twice += sorted(before & set(planned))
        now = committed(stores)
        gained.append(len(now - before))
        lost += sorted(before - now)
        before = now
        if number < kills:
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "it ended before it was killed"
    print(json.dumps({"gained": gained, "twice": twice, "lost": lost, "status": status, "chunks": len(before)}))


if __name__ == "__main__":
    main()
