"""Between the command line and the packages: settings in, a JSON document out, and how a document is shown."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspipe.common import Common
from cspipe.config import Config
from cspipe.store.errors import SettingError
from cspipe.terminal import cell, message, print_json, print_table, share, span, stage_progress

if TYPE_CHECKING:
    from cspipe.headtrain.study import Memory

Document = dict[str, Any]


def show(document: Document, common: Common, pretty: Callable[[Document], None]) -> None:
    """Prints a document as JSON or for a person."""
    if common.json:
        print_json(document)
    else:
        pretty(document)


def calm(common: Common) -> None:
    """Keeps the libraries' warnings and log lines off the terminal unless --verbose asks for them."""
    if not common.verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def extract(common: Common, config: Config) -> Document:
    """Stage one."""
    from contextlib import nullcontext

    from cspipe.extract.backbones import resolve_spec
    from cspipe.extract.progress import console_progress
    from cspipe.extract.run import extract as run_extract

    calm(common)
    settings = config.extract.model_dump()
    backbone = settings.pop("backbone")
    if settings.pop("trust_remote_code"):
        backbone = resolve_spec(backbone, trust_remote_code=True)
    with nullcontext() if common.quiet else console_progress() as progress:
        return run_extract(
            backbone, settings.pop("dataset"), stores=config.stores, device=config.device,
            progress=progress, **settings,
        )  # fmt: skip


def choose_store(config: Config, *, backbone: str | None, dataset: str | None) -> Path:
    """The store that is named, else the one extracted last, else the one that pipeline.toml names."""
    from cspipe.store.layout import find_store, latest_store

    if backbone or dataset or latest_store(config.stores):
        return find_store(config.stores, backbone=backbone, dataset=dataset)
    if "extract" in config.model_fields_set:
        return find_store(config.stores, backbone=config.extract.backbone, dataset=config.extract.dataset)
    return find_store(config.stores)


def head(common: Common, config: Config, store: Path, memory: "Memory | None" = None) -> Document:
    """Stage two on one store; runs on the same store can share a memory."""
    from cspipe.headtrain.run import run_head
    from cspipe.headtrain.shift import find_test_store

    calm(common)
    if not common.quiet:
        message(f"store: {store}")
    settings, other = config.head, config.head.test_dataset
    test_store = find_test_store(config.stores, store, other) if other else None
    with stage_progress(common.quiet) as told:
        return run_head(
            store=store, runs=config.runs, labels=settings.labels, seeds=settings.seeds,
            train_seed=settings.train_seed, train_seeds=settings.train_seeds, draw=settings.draw,
            methods=settings.methods, settings=settings.settings, dev_rows=settings.dev_rows, test_store=test_store,
            device=config.device, config_toml=config.toml(), on_progress=told, memory=memory,
            memory_gb=settings.memory_gb,
        )  # fmt: skip


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """`NAME=WEIGHT` texts as a table."""
    weights = {}
    for text in texts:
        name, _, weight = text.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise SettingError(
                f"--regulariser expects NAME=WEIGHT, such as rift=0.1; it was given {text!r}."
            ) from error
    return weights


def finetune(common: Common, config: Config, head_run: Path | None, store: Path | None) -> Document:
    """Stage three from a head run."""
    from cspipe.finetune.run import run_finetune
    from cspipe.finetune.settings import FinetuneSettings

    calm(common)
    settings = asdict(config.finetune)
    settings.pop("unfreeze")
    weights, data_dir, labels = settings.pop("weights"), settings.pop("data_dir"), settings.pop("labels")
    with stage_progress(common.quiet) as told:
        return run_finetune(
            head_run=head_run, labels=labels, store=store, stores=config.stores, runs=config.runs,
            settings=FinetuneSettings(**settings), weights=weights, data_dir=data_dir, device=config.device,
            config_toml=config.toml(), on_progress=told, on_message=(lambda text: None) if common.quiet else message,
        )  # fmt: skip


def run(common: Common, config: Config) -> Document:
    """The stages that the configuration lists, then the report on what they gave."""
    document: Document = {}
    runs: list[Path] = []
    if "extract" in config.stages:
        document["extract"] = extract(common, config)
        store = Path(document["extract"]["store"])
    else:
        store = choose_store(config, backbone=config.extract.backbone, dataset=config.extract.dataset)
    if "head" in config.stages:
        document["head"] = head(common, config, store)
        runs.append(Path(document["head"]["run"]))
    if "finetune" in config.stages:
        document["finetune"] = finetune(common, config, runs[0] if runs else None, None)
        runs.append(Path(document["finetune"]["run"]))
    if runs:
        document |= report(config, runs)
    return document


def report(config: Config, runs: Sequence[Path]) -> Document:
    """Writes the page about the named runs, or about the newest."""
    from cspipe.headtrain.runs import newest_run
    from cspipe.report import write_page

    chosen = list(runs) or [newest_run(config.runs, "head")]
    page = write_page(chosen, chosen[-1] / "report.html", stores=config.stores)
    return {"page": str(page), "runs": [str(run) for run in chosen]}


def listing(config: Config) -> Document:
    """Backbones, data sets, stores and runs."""
    from cspipe.data import datasets
    from cspipe.headtrain.runs import finished_runs, read_report
    from cspipe.networks import backbones

    runs = []
    for run in finished_runs(config.runs):
        told = read_report(run)
        runs.append({"run": str(run), "command": told["command"], "backbone": told["backbone"],
                     "dataset": told["dataset"], "labels": told["labels"]})  # fmt: skip
    return {"backbones": backbones(), "datasets": datasets(), "stores": list_of_stores(config), "runs": runs}


def list_of_stores(config: Config) -> list[Document]:
    """Every store with its size; a damaged one is listed as such."""
    from cspipe.store import open_store
    from cspipe.store.errors import CspipeError
    from cspipe.store.layout import list_stores

    told = []
    for path in list_stores(config.stores):
        try:
            store = open_store(path)
            rows = {name: store.split_attributes(name)["rows"] for name in store.splits}
            done = all(store.split_attributes(name)["complete"] for name in store.names)
            views = {name: len(store.views(name)) for name in store.splits}
            told.append({"store": path.name, "backbone": store.backbone, "dataset": store.dataset,
                         "width": store.width, "rows": rows, "views": views, "complete": done})  # fmt: skip
        except CspipeError as error:
            told.append({"store": path.name, "backbone": None, "dataset": None, "width": None, "rows": {},
                         "views": {}, "complete": False, "problem": str(error)})  # fmt: skip
    return told


def store_info(config: Config, path: Path | None) -> Document:
    """A store's attributes and splits."""
    from cspipe.store import open_store

    store = open_store(path or choose_store(config, backbone=None, dataset=None))
    told = {name: store.split_attributes(name) for name in store.names}
    splits = {name: told.pop(name) for name in store.splits}
    return {"store": str(store.path), **store.attributes, "splits": splits, "views": told}


def verify(config: Config, path: Path | None) -> Document:
    """Problems of a store."""
    from cspipe.store.verify import verify_store

    path = path or choose_store(config, backbone=None, dataset=None)
    return {"store": str(path), "problems": [asdict(problem) for problem in verify_store(path)]}


def print_extract(document: Document) -> None:
    """Rows of each split, bad images, speed."""
    rows = [(name, *(part[key] for key in ("rows", "computed", "reused", "flagged", "removed")))
            for name, part in document["splits"].items()]  # fmt: skip
    title = f"{document['backbone']} on {document['dataset']} ({document['width']} wide, licence {document['licence']})"
    print_table(title, ("split", "rows", "computed", "reused", "flagged", "removed"), rows)
    if document["bad_images"]:
        bad = [(entry["split"], entry["row"], entry["path"], entry["reason"]) for entry in document["bad_images"]]
        print_table("images that could not be read", ("split", "row", "path", "reason"), bad)
    speed = document["images_per_second"]
    print(f"{document['store']}" + (f"  {speed:,.0f} images/s" if speed else "  nothing to compute"))


def print_head(document: Document) -> None:
    """Accuracy of each method with its interval and the paired difference."""
    rows = []
    for name, told in document["summary"].items():
        versus = document["paired"].get(name)
        rows.append((
            name, share(told["mean"]), span(told["ci95"]),
            f"{100 * versus['mean_difference']:+.1f}" if versus else "-",
            span(versus["ci95"], signed=True) if versus else "-",
        ))  # fmt: skip
    splits = len({row["split_seed"] for row in document["results"]})
    judged = document["rows"]["judged"]
    where = document["test_dataset"] or document["evaluation"]
    title = (
        f"{document['backbone']} on {document['dataset']}, {document['labels']} labels, {splits} splits, "
        f"accuracy on {judged} rows ({where})"
    )
    print_table(title, ("method", "accuracy", "95 % interval", "content-style minus it", "95 % interval"), rows)
    print(f"{document['run']}  {document['seconds']} s")


def print_finetune(document: Document) -> None:
    """Accuracy before and after, drift, where the model is."""
    before, after = document["accuracy_before"], document["accuracy_after"]
    title = (
        f"{document['backbone']} on {document['dataset']}, backbone trained, {document['labels']} labels, "
        f"accuracy on {document['judged_rows']} rows"
    )
    row = (share(before), share(after), f"{100 * (after - before):+.1f}", f"{document['cka']:.3f}")
    print_table(title, ("before", "after", "difference", "CKA with the cached tokens"), [row])
    if after < before:
        print("The frozen head was better: keep it, or lower finetune.lr.")
    print(f"{document['model_dir']}  {document['seconds']} s")


def print_run(document: Document) -> None:
    """Every stage's own table, then the page."""
    for stage, pretty in (("extract", print_extract), ("head", print_head), ("finetune", print_finetune)):
        if stage in document:
            pretty(document[stage])
    if "page" in document:
        print_report(document)


def print_report(document: Document) -> None:
    """Path of the page."""
    print(f"report: {document['page']}")


def print_listing(document: Document) -> None:
    """A table for each kind of thing."""
    from cspipe.data import print_datasets
    from cspipe.networks import print_backbones

    print_backbones(document["backbones"])
    print_datasets(document["datasets"])
    print_records("runs", document["runs"])
    print_stores(document)


def print_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Records of the same keys as a table."""
    if records:
        print_table(title, list(records[0]), [list(record.values()) for record in records])


def print_stores(document: Document) -> None:
    """One line a store."""
    rows = [
        (told["store"], cell(told["width"]), ", ".join(f"{name} {n}" for name, n in told["rows"].items()),
         ", ".join(f"{name} {n}" for name, n in told["views"].items() if n),
         "complete" if told["complete"] else "unfinished or damaged")
        for told in document["stores"]
    ]  # fmt: skip
    print_table("stores", ("store", "width", "rows", "views", "state"), rows)


def print_store_info(document: Document) -> None:
    """Attributes, one a line."""
    provenance = document.get("provenance", {})
    facts = {key: document[key] for key in ("store", "width", "dtype", "chunk_rows", "batch_size")} | provenance
    facts |= {f"split {name}": f"{told['rows']} rows, complete: {told['complete']}"
              for name, told in {**document["splits"], **document["views"]}.items()}  # fmt: skip
    print_table("store", ("fact", "value"), [(key, str(value)) for key, value in facts.items()])


def print_verify(document: Document) -> None:
    """Problems, or that there are none."""
    problems = document["problems"]
    if problems:
        rows = [(p["where"], p["what"], p["hint"]) for p in problems]
        print_table(f"{len(problems)} problems", ("where", "what", "what to do"), rows)
    else:
        print(f"{document['store']}: every byte is as it was written")
