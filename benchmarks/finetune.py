"""Is training the backbone worth it? Frozen heads against fine-tuning, each with and without RIFT, cell by cell.

    python benchmarks/finetune.py --work DIR --mnist DIR [--labels 100 1000] [--splits 3] [--out FILE]

A cell is a data set, a number of labels, a split and a regime: `frozen` heads (content-style and supervised), and
fine-tuning that starts from either, with and without the regulariser. RIFT is a constant on a frozen backbone, so
frozen heads have one row. Every finished cell is a line of JSON in --out; the same command goes on where it was stopped
and ends with tables over the splits: accuracy, CKA with the frozen tokens, minutes, and the difference from the frozen
content-style head, paired by split. Stores and runs lie under --work. The last data set at the most labels is last.

Accuracy is on --test rows of the test split. Nothing is chosen here: the settings are the defaults and what --set says.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from row_file import Row, finish_cells, read_rows

from cspipe.config import Config, override, parse_settings
from cspipe.extract.run import extract
from cspipe.finetune.run import run_finetune
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain.evaluate import difference, interval
from cspipe.headtrain.run import run_head
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import CspipeError

Told = argparse.Namespace
Method = Literal["content-style", "supervised"]
METHODS: tuple[Method, ...] = ("content-style", "supervised")


@dataclass(frozen=True)
class Cell:
    """One line of the file: where, how many labels, which split, which regime, weight of the regulariser."""

    dataset: str
    labels: int
    split_seed: int
    regime: str
    method: Method
    weight: float


@dataclass(frozen=True)
class Study:
    """What all cells share: options, settings of heads and of fine-tuning, and a hash of all that changes numbers."""

    told: Told
    head: HeadSettings
    tuning: FinetuneSettings
    key: str

    @property
    def stores(self) -> Path:
        """Folder of the stores."""
        return Path(self.told.work) / "stores"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return Path(self.told.work) / "runs"


def parse(arguments: list[str] | None) -> Told:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of stores, runs and the file of rows")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's four files")
    parser.add_argument("--datasets", nargs="+", default=["mnist", "mnist-yellow-stripes"])
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--weights", type=Path, help="file of the backbone's weights")
    parser.add_argument("--image-px", type=int, default=64)
    parser.add_argument("--unlabelled", type=int, default=10_000, help="training images, evenly spaced")
    parser.add_argument("--test", type=int, default=2_000, help="judged test images, evenly spaced")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--regulariser", default="rift")
    parser.add_argument("--weight", type=float, default=0.1, help="of the regulariser, where it is on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of fine-tuning")
    parser.add_argument("--head-set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the heads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file of rows [default: WORK/finetune.jsonl]")
    told = parser.parse_args(arguments)
    told.out = told.out or told.work / "finetune.jsonl"
    return told


def make_study(told: Told) -> Study:
    """Settings checked as the commands check them.

    Raises:
        SettingError: a setting that does not exist or cannot be used.
    """
    changes = parse_settings(told.set, "finetune.") | parse_settings(told.head_set)
    config = override(Config(), changes)
    own = {name: value for name, value in asdict(config.finetune).items() if name in FinetuneSettings.__annotations__}
    tuning, head = FinetuneSettings(**own), config.head.settings
    sizes = {name: getattr(told, name) for name in ("backbone", "image_px", "unlabelled", "test", "regulariser")}
    text = json.dumps([sizes, asdict(tuning), asdict(head)], sort_keys=True, default=str)
    return Study(told, HeadSettings(**asdict(head)), tuning, hashlib.sha256(text.encode()).hexdigest()[:12])


def all_cells(told: Told) -> Iterator[Cell]:
    """Every cell; the data sets in order at few labels first, the last data set at the most labels last of all."""
    places = [(dataset, labels) for labels in sorted(told.labels) for dataset in told.datasets]
    for dataset, labels in places:
        for split in range(told.splits):
            for method in METHODS:
                yield Cell(dataset, labels, split, "frozen", method, 0.0)
            for method in METHODS:
                for weight in (0.0, told.weight):
                    yield Cell(dataset, labels, split, "fine-tuned", method, weight)


def store_of(study: Study, dataset: str) -> Path:
    """The data set's store; what is there already is not computed again."""
    told = study.told
    data_dir = told.mnist if dataset.startswith("mnist") else None
    for split, limit in (("train", told.unlabelled), ("test", told.test)):
        document = extract(
            told.backbone, dataset, stores=study.stores, split=split, limit=limit, weights=told.weights,
            data_dir=data_dir, image_px=told.image_px, device=told.device,
        )  # fmt: skip
    return Path(document["store"])


def head_run(study: Study, store: Path, cell: Cell) -> Row:
    """The report of the head run of this data set and number of labels, run where it was not."""
    mark = study.runs / f"{cell.dataset}-{cell.labels}-{study.told.splits}-{study.key}.json"
    if not mark.is_file():
        begun = time.perf_counter()
        document = run_head(
            store=store, runs=study.runs, labels=cell.labels, seeds=study.told.splits, methods=METHODS,
            settings=study.head, device=study.told.device,
        )  # fmt: skip
        heads = study.told.splits * len(METHODS)
        minutes = (time.perf_counter() - begun) / 60 / heads
        mark.write_text(json.dumps({"run": document["run"], "results": document["results"], "minutes": minutes}))
    told: Row = json.loads(mark.read_text())
    return told


def measure(cell: Cell, study: Study) -> Row:
    """The numbers of one cell."""
    store = store_of(study, cell.dataset)
    heads = head_run(study, store, cell)
    if cell.regime == "frozen":
        same = (row for row in heads["results"]
                if (row["method"], row["split_seed"]) == (cell.method, cell.split_seed))  # fmt: skip
        return {"accuracy": next(same)["accuracy"], "cka": 1.0, "minutes": heads["minutes"]}
    own = {study.told.regulariser: cell.weight} if cell.weight else {}
    settings = replace(
        study.tuning, method=cell.method, split_seed=cell.split_seed,
        regularisers={**study.tuning.regularisers, **own},
    )  # fmt: skip
    document = run_finetune(
        head_run=Path(heads["run"]), runs=study.runs, stores=study.stores, store=store, settings=settings,
        data_dir=study.told.mnist if cell.dataset.startswith("mnist") else None, weights=study.told.weights,
        device=study.told.device, on_message=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )  # fmt: skip
    kept = ("cka", "knn_overlap", "cosine", "gain", "gain_ci95", "images", "judged_rows", "skipped_steps")
    return {"accuracy": document["accuracy_after"], "minutes": 60 * document["training_hours"],
            **{name: document[name] for name in kept}}  # fmt: skip


def tables(rows: list[Row], study: Study) -> None:
    """Markdown tables over the splits, one a data set and number of labels."""
    mine = [row for row in rows if row["key"] == study.key]
    for dataset, labels in dict.fromkeys((row["dataset"], row["labels"]) for row in mine):
        print(f"\n{dataset}, {labels:,} labels, {study.told.backbone} at {study.told.image_px} px\n")
        print("| regime | method | regulariser | splits | accuracy | 95 % | minus frozen content-style | 95 % | CKA "
              "| minutes |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        here = [row for row in mine if (row["dataset"], row["labels"]) == (dataset, labels)]
        groups: dict[tuple[str, str, float], list[Row]] = {}
        for row in here:
            groups.setdefault((row["regime"], row["method"], row["weight"]), []).append(row)
        frozen = by_split(groups.get(("frozen", "content-style", 0.0), []))
        for (regime, method, weight), found in groups.items():
            accuracy = by_split(found)
            versus = difference(accuracy, frozen) if (regime, method) != ("frozen", "content-style") else None
            minutes, cka = (mean(row[key] for row in found) for key in ("minutes", "cka"))
            name = f"{study.told.regulariser}={weight:g}" if weight else "none"
            print(f"| {regime} | {method} | {name} | {len(accuracy)} | {mean(accuracy.values()):.3f} | "
                  f"{span(interval(list(accuracy.values())))} | {versus_text(versus)} | "
                  f"{cka:.3f} | {minutes:.2f} |")  # fmt: skip


def by_split(rows: list[Row]) -> dict[int, float]:
    """Split seed -> accuracy."""
    return {row["split_seed"]: row["accuracy"] for row in rows}


def mean(values: Any) -> float:  # noqa: ANN401 - any iterable of numbers
    """Mean."""
    return float(np.mean(list(values)))


def span(ci95: list[float] | None) -> str:
    """An interval, or a dash."""
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "-"


def versus_text(versus: Mapping[str, Any] | None) -> str:
    """A difference in points and its interval, as two cells."""
    if versus is None:
        return "- | -"
    ci95 = versus["ci95"]
    bounds = f"[{100 * ci95[0]:+.1f}, {100 * ci95[1]:+.1f}]" if ci95 else "-"
    return f"{100 * versus['mean_difference']:+.1f} | {bounds}"


def main(arguments: list[str] | None = None) -> None:
    """Measures what is missing, then prints the tables."""
    told = parse(arguments)
    torch.set_num_threads(told.threads)
    try:
        study = make_study(told)
        finish_cells(told.out, all_cells(told), study.key, lambda cell: measure(cell, study))
    except CspipeError as error:
        sys.exit(f"benchmarks/finetune.py: {error}")
    tables(read_rows(told.out), study)


if __name__ == "__main__":
    main()
