"""`cspipe sweep`: the cells of the grid one by one, each kept as soon as it is done; one table at the end.

A sweep's folder holds plan.json (names of its cells), cells/<name>.json (one file a cell, written whole or not at all),
runs/ (the head and fine-tuning runs of the cells), and in the end report.json, table.csv and report.html.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cspipe import stages
from cspipe.common import Common
from cspipe.comparison import compare_cells, print_comparison, write_csv
from cspipe.config import Config
from cspipe.grid import Cell, make_cells
from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.evaluate import summarise
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.headtrain.study import METHODS, Memory
from cspipe.store.errors import CspipeError, MissingDataError, StoreError, unknown_name
from cspipe.store.lock import StoreLock
from cspipe.store.remote import local_path
from cspipe.terminal import message
from cspipe.verdicts import counted

Document = dict[str, Any]
Record = dict[str, Any]


@dataclass
class Bench:
    """What the cells of one sweep share while it runs.

    Attributes:
        common: options of the command.
        run: the sweep's folder.
        stores: store of each backbone and data set that was extracted, or why that failed: it is tried once.
        memory: what runs on the newest store need not compute again.
    """

    common: Common
    run: Path
    stores: dict[tuple[str, str], Path | CspipeError] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)


def run_sweep(common: Common, config: Config, *, fresh: bool = False) -> Document:
    """Runs what is missing of the newest sweep of this grid, or a new one.

    Args:
        common: options of the command.
        config: the grid is its section [sweep].
        fresh: begin a new sweep in any case.

    Returns:
        The JSON document: `cells`, `table`, `failed`, `run`, `page`, `seconds` (of all cells, over all starts).

    Raises:
        CspipeError: a grid that makes no sense, or another process at work on the same sweep. A cell that fails with
            one is recorded and tried again by the next start; the sweep goes on.
    """
    cells = make_cells(config)
    for method in sorted({method for cell in cells for method in cell.config.head.methods}):
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    say = (lambda text: None) if common.quiet else message
    found = None if fresh else find_sweep(config.runs, cells)
    run = found or new_sweep(config, cells)
    with working_on(run):
        missing = [cell for cell in cells if not is_done(read_record(run, cell))]
        if found:
            say(f"{run}: {len(cells) - len(missing)} of {len(cells)} cells are there already")
        bench = Bench(common, run)
        for cell in missing:
            say(f"cell {cells.index(cell) + 1} of {len(cells)}: {cell.words}")
            run_folders.write_json(record_file(run, cell), run_cell(cell, bench))
        document = gather(run, cells)
        if missing or not (run / "report.html").is_file():
            conclude(document, config)
    return document


def new_sweep(config: Config, cells: Sequence[Cell]) -> Path:
    """A new sweep's folder."""
    run = run_folders.new_run(config.runs, "sweep", config.toml())
    (run / "cells").mkdir()
    run_folders.write_json(run / "plan.json", {"cells": [cell.name for cell in cells]})
    return run


def find_sweep(runs: Path, cells: Sequence[Cell]) -> Path | None:
    """The newest sweep of exactly these cells, finished or not."""
    wanted = {"cells": [cell.name for cell in cells]}
    for run in reversed(run_folders.all_runs(runs, "sweep")):
        plan = run / "plan.json"
        if plan.is_file() and json.loads(plan.read_text(encoding="utf-8")) == wanted:
            return run
    return None


@contextmanager
def working_on(run: Path) -> Iterator[None]:
    """Keeps other processes from the same sweep."""
    try:
        lock = StoreLock(run)
    except StoreError as error:
        raise StoreError(f"another cspipe sweep is at work on {run}: wait for it, or add --fresh.") from error
    try:
        yield
    finally:
        lock.release()


def record_file(run: Path, cell: Cell) -> Path:
    """Where a cell's result is kept."""
    return run / "cells" / f"{cell.name}.json"


def read_record(run: Path, cell: Cell) -> Record:
    """A cell's result; empty where there is none yet."""
    path = record_file(run, cell)
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Remove it and run the sweep again.") from error
    return record


def is_done(record: Mapping[str, Any]) -> bool:
    """True for a cell that need not run again."""
    return record.get("state") == "done"


def run_cell(cell: Cell, bench: Bench) -> Record:
    """A cell's result, or why it has none."""
    begun = time.perf_counter()
    record: Record = {"cell": cell.name, **cell.place, "state": "done", "message": None}
    try:
        record |= frozen(cell, bench) if cell.regime == "frozen" else trainable(cell, bench)
    except CspipeError as error:
        record |= {"state": "failed", "message": str(error)}
        message(f"cspipe: {cell.words} failed: {error}")
    return record | {"seconds": round(time.perf_counter() - begun, 2), "identity": cell.identity}


def own_config(cell: Cell, bench: Bench) -> Config:
    """The cell's configuration with its runs inside the sweep's folder."""
    return cell.config.model_copy(update={"runs": bench.run / "runs"})


def store_of(cell: Cell, bench: Bench) -> Path:
    """The cell's store, brought up to date by the first cell that needs it."""
    key = (cell.config.extract.backbone, cell.config.extract.dataset)
    if key not in bench.stores:
        bench.memory = Memory()
        try:
            bench.stores[key] = local_path(stages.extract(bench.common, cell.config)["store"])
        except CspipeError as error:
            bench.stores[key] = error
    store = bench.stores[key]
    if isinstance(store, CspipeError):
        raise store
    return store


def frozen(cell: Cell, bench: Bench) -> Record:
    """All methods and splits on the cached tokens, in one head run."""
    told = stages.head(bench.common, own_config(cell, bench), store_of(cell, bench), bench.memory)
    kept = ("store", "labels", "evaluation", "rows", "results", "summary", "paired", "diagnostics")
    return {name: told[name] for name in kept} | {"run": Path(told["run"]).name}


def trainable(cell: Cell, bench: Bench) -> Record:
    """Backbone and head trained from the frozen cell's head of every split; each split is kept when it is done."""
    start = read_record(bench.run, replace(cell, regime="frozen"))
    if not is_done(start):
        raise MissingDataError("the frozen cell that it starts from failed.")
    head_run = bench.run / "runs" / start["run"]
    seeds = sorted({row["split_seed"] for row in start["results"]})
    splits = [seed for seed in seeds if (head_run / "heads" / f"{MAIN_METHOD}-{seed}.safetensors").is_file()]
    place = bench.run / "cells" / f"{cell.name}.splits"
    told: list[Document] = json.loads(place.read_text(encoding="utf-8"))["splits"] if place.is_file() else []
    for seed in splits[len(told) :]:
        told.append(stages.finetune(bench.common, finetune_config(cell, bench, seed), head_run, None))
        run_folders.write_json(place, {"splits": told})
    place.unlink(missing_ok=True)
    results = [
        {"method": MAIN_METHOD, "labels": one["labels"], "split_seed": one["split_seed"],
         "train_seed": cell.config.head.train_seed, "accuracy": one["accuracy_after"], "cka": one["cka"]}
        for one in told
    ]  # fmt: skip
    kept = {name: start[name] for name in ("store", "evaluation")} | {"labels": told[0]["labels"]}
    runs = [Path(one["run"]).name for one in told]
    return kept | {"results": results, "summary": summarise(results), "runs": runs}


def finetune_config(cell: Cell, bench: Bench, split_seed: int) -> Config:
    """The cell's configuration for one split; weights and images lie where extraction found them."""
    config = own_config(cell, bench)
    extract, stage = config.extract, config.finetune
    stage = replace(
        stage, split_seed=split_seed, labels=None, weights=extract.weights or stage.weights,
        data_dir=extract.data_dir or stage.data_dir,
    )  # fmt: skip
    return config.model_copy(update={"finetune": stage})


def gather(run: Path, cells: Sequence[Cell]) -> Document:
    """The document, from what the cells left."""
    records = [read_record(run, cell) | {"setting": cell.setting} for cell in cells]
    failed = [
        {"cell": cell.words, "message": record["message"]}
        for cell, record in zip(cells, records, strict=True) if not is_done(record)
    ]  # fmt: skip
    return {
        "run": str(run), "page": str(run / "report.html"), "cells": records, "table": compare_cells(records),
        "failed": failed, "seconds": round(sum(record["seconds"] for record in records), 2),
    }  # fmt: skip


def conclude(document: Document, config: Config) -> None:
    """Writes table.csv, report.json and the page."""
    from cspipe.report import write_page

    run = Path(document["run"])
    write_csv(run / "table.csv", document["table"])
    listed = {
        key: ", ".join(dict.fromkeys(str(record[key]) for record in document["cells"]))
        for key in ("backbone", "dataset", "labels")
    }
    facts = {"command": "sweep", "environment": run_folders.environment(), **listed}
    run_folders.write_json(run / "report.json", document | facts)
    write_page([run], Path(document["page"]), stores=config.stores)


def print_sweep(document: Document) -> None:
    """The table, what failed, and where all is kept."""
    print_comparison(document["table"])
    for fault in document["failed"]:
        print(f"failed: {fault['cell']}: {fault['message']}")
    print(f"{document['run']}  {document['seconds']} s in {counted(len(document['cells']), 'cell')}")
    print(f"report: {document['page']}")
