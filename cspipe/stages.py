"""Between the command line and the packages: settings in, a JSON document out, and how a document is shown."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspipe.common import Common
from cspipe.config import Config
from cspipe.store.errors import SettingError
from cspipe.store.remotes import shown
from cspipe.terminal import message, stage_progress

if TYPE_CHECKING:
    from cspipe.extract.targets import Request
    from cspipe.headtrain.study import Memory

Document = dict[str, Any]


def calm(common: Common) -> None:
    """Keeps the libraries' warnings and log lines off the terminal unless --verbose asks for them."""
    if not common.verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def extract(common: Common, config: Config, *, dry_run: bool = False) -> Document:
    """Stage one: one backbone and token give the document of their store, several a list of such.

    With `dry_run` nothing is written, and the document tells what would be done.
    """
    from contextlib import nullcontext

    from cspipe.extract.progress import console_progress
    from cspipe.extract.rehearsal import rehearse
    from cspipe.extract.run import extract_all

    calm(common)
    settings = config.extract.model_dump()
    requests = requests_of(config)
    for name in ("backbone", "token", "weights", "revision", "image_px", "trust_remote_code"):
        settings.pop(name)
    devices = settings.pop("devices") or (config.device,)
    if dry_run:
        settings.pop("strict"), settings.pop("scheduler")
        return rehearse(requests, settings.pop("dataset"), stores=config.stores, devices=devices, **settings)
    with nullcontext() if common.quiet else console_progress() as progress:
        told = extract_all(
            requests, settings.pop("dataset"), stores=config.stores, devices=devices, progress=progress, **settings
        )
    if len(told["stores"]) > 1:
        return told
    one: Document = told["stores"][0]
    return one | {name: value for name, value in told.items() if name != "stores"}


def requests_of(config: Config) -> "list[Request]":
    """The backbones that [extract] names, separated by commas, with the tokens of each and its weights.

    Raises:
        SettingError: not as many weights as backbones, or a revision for several.
    """
    from cspipe.extract.backbones import resolve_spec
    from cspipe.extract.targets import Request

    settings = config.extract
    names = [name.strip() for name in settings.backbone.split(",")]
    tokens = tuple(settings.token.split(",")) if settings.token else (None,)
    if len(names) == 1:
        files = [settings.weights]
    else:
        files = [Path(text) if text else None for text in str(settings.weights or "").split(",")]
        files = files if settings.weights else [None] * len(names)
    if len(files) != len(names):
        raise SettingError(
            f"{len(names)} backbones and {len(files)} files of weights were named: give one file a backbone, in the "
            "same order and separated by commas, with nothing between two commas for weights of the hub"
        )
    if settings.revision and len(names) > 1:
        raise SettingError("--revision belongs to one backbone: extract each with its own, one after the other")
    code = settings.trust_remote_code
    return [
        Request(resolve_spec(name, trust_remote_code=True) if code else name, tokens, file, settings.revision,
                settings.image_px)
        for name, file in zip(names, files, strict=True)
    ]  # fmt: skip


def choose_store(config: Config, *, backbone: str | None, dataset: str | None) -> Path:
    """The store that is named, else the one extracted last, else the one that pipeline.toml names."""
    from cspipe.store.layout import find_store, latest_store

    if backbone or dataset or latest_store(config.stores):
        return find_store(config.stores, backbone=backbone, dataset=dataset)
    if "extract" in config.model_fields_set:
        first = config.extract.backbone.split(",")[0].strip()
        return find_store(config.stores, backbone=first, dataset=config.extract.dataset)
    return find_store(config.stores)


def store_at(config: Config, place: Path | None) -> Path:
    """The store of a path or URL, else the one that :func:`choose_store` finds where none is named."""
    from cspipe.store.remote import local_path

    return local_path(place) if place else choose_store(config, backbone=None, dataset=None)


def head(common: Common, config: Config, store: Path, memory: "Memory | None" = None) -> Document:
    """Stage two on one store; runs on the same store can share a memory."""
    from cspipe.headtrain.run import run_head
    from cspipe.headtrain.shift import find_test_store

    calm(common)
    if not common.quiet:
        message(f"store: {shown(store)}")
    settings, other = config.head, config.head.test_dataset
    test_store = find_test_store(config.stores, store, other) if other else None
    with stage_progress(common.quiet) as told:
        return run_head(
            store=store, runs=config.runs, labels=settings.labels, seeds=settings.seeds,
            train_seed=settings.train_seed, train_seeds=settings.train_seeds, draw=settings.draw,
            methods=settings.methods, settings=settings.settings, dev_rows=settings.dev_rows, test_store=test_store,
            device=config.device, config_toml=config.toml(), on_progress=told, memory=memory,
            memory_gb=settings.memory_gb, labels_from=settings.labels_from,
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
    where = {name: settings.pop(name) for name in ("labels", "weights", "data_dir", "kept_dataset", "kept_data_dir")}
    with stage_progress(common.quiet) as told:
        return run_finetune(
            head_run=head_run, store=store, stores=config.stores, runs=config.runs, **where,
            settings=FinetuneSettings(**settings), device=config.device, config_toml=config.toml(), on_progress=told,
            on_message=(lambda text: None) if common.quiet else message,
        )  # fmt: skip


def run(common: Common, config: Config) -> Document:
    """The stages that the configuration lists, then the report on what they gave."""
    document: Document = {}
    runs: list[Path] = []
    if "extract" in config.stages:
        document["extract"] = extract(common, config)
        store = store_at(config, document["extract"]["store"])
    else:
        first = config.extract.backbone.split(",")[0].strip()
        store = choose_store(config, backbone=first, dataset=config.extract.dataset)
    if "head" in config.stages:
        document["head"] = head(common, config, store)
        runs.append(Path(document["head"]["run"]))
    if "finetune" in config.stages:
        document["finetune"] = finetune(common, config, runs[0] if runs else None, None)
        runs.append(Path(document["finetune"]["run"]))
    if runs:
        document |= report(config, runs)
    return document


def report(config: Config, runs: Sequence[Path], data_dir: Path | None = None) -> Document:
    """Writes the page about the named runs, or about the newest."""
    from cspipe.headtrain.runs import newest_run
    from cspipe.report import write_page

    chosen = list(runs) or [newest_run(config.runs, "head")]
    page = write_page(chosen, chosen[-1] / "report.html", stores=config.stores, data_dir=data_dir)
    return {"page": str(page), "runs": [str(run) for run in chosen]}


def explore(common: Common, config: Config, run: Path | None, *, limit: int, data_dir: Path | None) -> Document:
    """Writes the map of a head run's rows, of the newest one where none is named."""
    from cspipe.explorer import write_explorer
    from cspipe.headtrain.runs import newest_run

    calm(common)
    chosen = run or newest_run(config.runs, "head")
    with stage_progress(common.quiet) as told:
        return write_explorer(chosen, stores=config.stores, limit=limit, data_dir=data_dir, on_progress=told)


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

    store = open_store(store_at(config, path))
    told = {name: store.split_attributes(name) for name in store.names}
    splits = {name: told.pop(name) for name in store.splits}
    return {"store": shown(store.path), **store.attributes, "splits": splits, "views": told}


def verify(config: Config, path: Path | None) -> Document:
    """Problems of a store."""
    from cspipe.store.verify import verify_store

    store = store_at(config, path)
    return {"store": shown(store), "problems": [asdict(problem) for problem in verify_store(store)]}
