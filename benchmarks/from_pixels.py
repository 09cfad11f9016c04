"""The predecessor's table: MNIST from pixels, a small network from scratch, few labels, the image rebuilt.

    python benchmarks/from_pixels.py --work DIR --mnist DIR [--minutes 15 | --epochs N] [--dev] [--out FILE]

A cell is a method and a labelled split. `content-style` is the default objective, `predecessor` the predecessor's own
terms (Entropy 22(9):943: D_c and D_s adversarial, balanced one-hot draws, batches of 100, its discriminators; D_y,
which gave it .07 points, is left out for the time it takes), both with a decoder to pixels in place of the token's;
`supervised` learns from the labelled rows alone, as many steps as content-style. Backbone, encoder and decoder start
from drawn weights and learn together. Every finished cell is a line of JSON in --out; the same command goes on where it
was stopped and ends with a table over the splits.

With --minutes a method's passes over the unlabelled rows are as many as fit, judged by a short training that is timed
once, on one idle machine. The error is that of the last pass, on the test rows, or with --dev on the last 10,000
training rows, which are then neither labelled nor unlabelled: settings are chosen there. The published figure beside
ours is the best pass on test rows, with labels that never vary.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
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
from cspipe.headtrain.evaluate import interval
from cspipe.headtrain.run import run_head
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import CspipeError

Told = argparse.Namespace
Method = Literal["content-style", "supervised"]

PUBLISHED = {
    "supervised": {100: 26.3, 1000: 7.2},
    "D_c, D_s and the image rebuilt": {100: 1.48, 1000: 1.30},
    "these and D_y on the image": {100: 1.41, 1000: 1.16},
}
"""The predecessor's terms -> labels -> its test error %, the best of 100 passes on test rows."""
DEV_ROWS = 10_000
TIMED_ROWS, TIMED_PASSES = 12_800, 4
"""Images and passes of the training that is timed; the first pass decodes the images too."""

FRESH: dict[str, Any] = {
    "components": 0, "power": 1.0, "cluster_terms": "always", "steps": 1, "views": 0, "lambda_yy": 10.0,
}  # fmt: skip
"""An untrained head on an affine map of the whole token; tokens of drawn weights tell nothing of clusters. Pixels'
cross-entropies are smaller than tokens' cosines, hence the weight of L_y, chosen on dev rows."""
PREDECESSOR = {
    "content_term": "adversarial", "style_term": "adversarial", "norm": "batch", "style": 10, "discriminator": 500,
    "lambda_c": 1.0, "lambda_s": 1.0, "lambda_y": 0.0, "lambda_yy": 1.0, "lambda_mix": 0.0,
}  # fmt: skip
HEADS: dict[str, tuple[Method, dict[str, Any], dict[str, Any]]] = {
    "content-style": ("content-style", {}, {}),
    "predecessor": ("content-style", PREDECESSOR, {"batch": 100, "labelled_batch": 100}),
    "supervised": ("supervised", {}, {}),
}
"""Row of the table -> the method that is trained, its own settings of the head and of fine-tuning."""
TUNING: dict[str, Any] = {
    "target": "image", "batch": 128, "labelled_batch": 32, "lr": 1e-3, "head_lr": 1e-3, "checkpoint_steps": 500,
    "mix_temperature": 1.0, "entropy_weight": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One line of the file: a row of the table and a labelled split."""

    method: str
    split_seed: int


@dataclass(frozen=True)
class Study:
    """What all cells share: options, settings, and a hash of all that changes numbers."""

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
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST's four files")
    parser.add_argument("--backbone", default="conv-small")
    parser.add_argument("--image-px", type=int, default=28)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, a cell that sees unlabelled rows")
    parser.add_argument("--epochs", type=int, help="passes over the unlabelled rows, in place of --minutes")
    parser.add_argument("--dev", action="store_true", help="judge the last 10,000 training rows, for choosing settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of fine-tuning")
    parser.add_argument("--head-set", action="append", default=[], metavar="KEY=VALUE", help="of content-style's head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file of rows [default: WORK/from_pixels.jsonl]")
    told = parser.parse_args(arguments)
    told.out = told.out or told.work / "from_pixels.jsonl"
    return told


def make_study(told: Told) -> Study:
    """Settings checked as the commands check them.

    Raises:
        SettingError: a setting that does not exist or cannot be used.
    """
    config = override(Config(), parse_settings(told.set, "finetune.") | parse_settings(told.head_set))
    given, of_head = parse_settings(told.set, ""), parse_settings(told.head_set, "")
    own = {name: value for name, value in asdict(config.finetune).items() if name in FinetuneSettings.__annotations__}
    tuning = FinetuneSettings(**own | {name: value for name, value in TUNING.items() if name not in given})
    fresh = {name: value for name, value in FRESH.items() if name not in of_head}
    head = replace(HeadSettings(**asdict(config.head.settings)), **fresh)
    names = ("backbone", "image_px", "labels", "minutes", "epochs", "dev", "threads")
    text = json.dumps([{name: getattr(told, name) for name in names}, asdict(tuning), asdict(head), HEADS],
                      sort_keys=True)  # fmt: skip
    return Study(told, head, tuning, hashlib.sha256(text.encode()).hexdigest()[:12])


def all_cells(told: Told) -> Iterator[Cell]:
    """Every cell, one split of all methods after the other."""
    for split in range(told.splits):
        for method in told.methods:
            yield Cell(method, split)


def head_run(study: Study, store: Path, method: str) -> Path:
    """The run of untrained heads of all splits, made where it was not."""
    told, mark = study.told, study.runs / f"{method}-{study.told.splits}-{study.key}.json"
    if not mark.is_file():
        trained, own, _ = HEADS[method]
        document = run_head(
            store=store, runs=study.runs, labels=told.labels, seeds=told.splits, methods=[trained],
            settings=replace(study.head, **own), dev_rows=DEV_ROWS if told.dev else 0, device=told.device,
        )  # fmt: skip
        mark.write_text(json.dumps(document["run"]))
    return Path(json.loads(mark.read_text()))


def tune(study: Study, store: Path, cell: Cell, **changes: Any) -> Row:  # noqa: ANN401 - settings of every type
    """The document of one training."""
    method, _, own = HEADS[cell.method]
    settings = replace(study.tuning, method=method, split_seed=cell.split_seed, **own | changes)
    return run_finetune(
        head_run=head_run(study, store, cell.method), runs=study.runs, stores=study.stores, store=store,
        settings=settings, data_dir=study.told.mnist, device=study.told.device,
        on_message=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )  # fmt: skip


def passes_of(study: Study, store: Path, cell: Cell) -> int:
    """Passes over the unlabelled rows: as told, or as many as fit into the minutes, measured once a method.

    `supervised` sees no unlabelled row: it takes the steps of content-style.
    """
    if study.told.epochs is not None:
        return int(study.told.epochs)
    timed = "content-style" if cell.method == "supervised" else cell.method
    mark = study.runs / f"passes-{timed}-{study.key}.json"
    if not mark.is_file():
        document = tune(study, store, Cell(timed, 0), epochs=TIMED_PASSES, limit=TIMED_ROWS)
        rows = 60_000 - (DEV_ROWS if study.told.dev else 0)
        seconds = 3600 * document["training_hours"] * rows / document["images"] / TIMED_PASSES
        mark.write_text(json.dumps(max(1, int(60 * study.told.minutes / seconds))))
    return int(json.loads(mark.read_text()))


def measure(cell: Cell, study: Study) -> Row:
    """The numbers of one cell."""
    told = study.told
    for split in ("train", "test"):
        extracted = extract(
            told.backbone, "mnist", stores=study.stores, split=split, data_dir=told.mnist, image_px=told.image_px,
            device=told.device,
        )  # fmt: skip
    store = Path(extracted["store"])
    passes = passes_of(study, store, cell)
    document = tune(study, store, cell, epochs=passes)
    return {
        "passes": passes, "error": 1 - document["accuracy_after"], "minutes": 60 * document["training_hours"],
        "images": document["images"], "judged_rows": document["judged_rows"], "labels": document["labels"],
        "skipped_steps": document["skipped_steps"], "tuning": asdict(replace(study.tuning, **HEADS[cell.method][2])),
        "head": asdict(replace(study.head, **HEADS[cell.method][1])),
    }  # fmt: skip


def table(rows: list[Row], study: Study) -> None:
    """A Markdown table over the splits, the published figure last."""
    told = study.told
    judged = f"the last {DEV_ROWS:,} training rows" if told.dev else "the test rows"
    print(f"\nMNIST, {told.labels:,} labels, {told.backbone} from scratch, error on {judged} after the last pass\n")
    print("| method | splits | error % | 95 % | passes | minutes |\n|---|---|---|---|---|---|")
    for method in told.methods:
        mine = [row for row in rows if row["key"] == study.key and row["method"] == method]
        if not mine:
            continue
        errors, minutes = [100 * row["error"] for row in mine], float(np.mean([row["minutes"] for row in mine]))
        ci95 = interval(errors)
        bounds = f"[{ci95[0]:.2f}, {ci95[1]:.2f}]" if ci95 else "-"
        print(f"| {method} | {len(mine)} | {float(np.mean(errors)):.2f} | {bounds} | {mine[0]['passes']} | "
              f"{minutes:.1f} |")  # fmt: skip
    for name, errors_L in PUBLISHED.items():
        if told.labels in errors_L:
            print(f"| published, best pass on test rows: {name} | - | {errors_L[told.labels]:.2f} | - | 100 | - |")


def main(arguments: list[str] | None = None) -> None:
    """Measures what is missing, then prints the table."""
    told = parse(arguments)
    torch.set_num_threads(told.threads)
    try:
        study = make_study(told)
        finish_cells(told.out, all_cells(told), study.key, lambda cell: measure(cell, study))
    except CspipeError as error:
        sys.exit(f"benchmarks/from_pixels.py: {error}")
    table(read_rows(told.out), study)


if __name__ == "__main__":
    main()
