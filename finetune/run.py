"""`cspipe finetune`: from a head run to a model directory.

Legend: `N` rows, `M` judged rows, `D` token width, `K` classes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from cspipe.extract.backbones import Backbone
from cspipe.extract.embed import pick_device
from cspipe.finetune.images import Ints, RowImages, images_of_rows, live_tokens, reload_backbone, reload_dataset
from cspipe.finetune.model import Joined, unfreeze
from cspipe.finetune.regularisers import REGULARISERS
from cspipe.finetune.train import FinetuneSettings, Parts, TrainRows, drift, train
from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.evaluate import accuracy, confusion
from cspipe.headtrain.heads import Head, HeadTask, SavedHead, fit_heads, load_head, save_head
from cspipe.headtrain.prior import class_prior
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.run import provenance
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.study import MAIN_METHOD
from cspipe.store import Store, open_store
from cspipe.store.errors import MismatchError, MissingDataError, unknown_name
from cspipe.store.layout import list_stores
from cspipe.store.split import labelled_folds

OnProgress = Callable[[str, float], None]
HELD_FOLDS = 5
PROBE_ROWS = 32
PROBE_COSINE = 0.999


def choose_head(head_run: Path | None, runs: Path, labels: int | None, split_seed: int, device: str) -> SavedHead:
    """The content-style head to start from: of the named run, else of the newest (with so many labels).

    Raises:
        MissingDataError: no such run, or it keeps no content-style head of this split.
        MismatchError: the named run has another number of labels.
    """
    if head_run is None:
        finished = run_folders.finished_runs(runs, "head")
        fitting = [run for run in finished if labels in (None, run_folders.read_report(run)["labels"])]
        if not fitting:
            which = f" with {labels} labels" if labels and finished else ""
            raise MissingDataError(f"no finished head run{which} under {runs}. Run cspipe head first, or name --runs.")
        head_run = fitting[-1]
    told = run_folders.read_report(head_run)
    if labels not in (None, told["labels"]):
        raise MismatchError(
            f"{head_run} has {told['labels']} labels, not {labels}: leave out --labels or name another run."
        )
    path = head_run / "heads" / f"{MAIN_METHOD}-{split_seed}.safetensors"
    if not path.is_file():
        kept = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors"))) or "none"
        raise MissingDataError(
            f"{head_run} keeps no head {path.stem} (it keeps {kept}). Give another --split-seed or --head."
        )
    return load_head(path, device=device)


def store_of_head(saved: SavedHead, store: Path | None, stores: Path) -> Store:
    """The store that the head belongs to, or the named one if it fits.

    Raises:
        MissingDataError: the head's store is no longer there.
        MismatchError: the head was trained on another store's tokens.
    """
    card = saved.card
    if store is None:
        there = [path for path in list_stores(stores) if path.name == Path(card["store"]).name]
        recorded = Path(card["store"])
        if not there and not recorded.exists():
            raise MissingDataError(
                f"{saved.path} was trained on {recorded.name}, which is not under {stores}: name its folder with "
                "--stores."
            )
        store = there[0] if there else recorded
    opened = open_store(store)
    if opened.attributes["key_sha256"] != card["store_key"] or opened.dataset != card["dataset"]:
        raise MismatchError(
            f"{saved.path.name} expects tokens {card['token_width']} wide of {card['backbone']} on {card['dataset']}, "
            f"but {opened.path.name} holds {opened.width} ({opened.backbone} on {opened.dataset}). Train a head on "
            "this store, or name the other with --backbone and --dataset."
        )
    return opened


@dataclass(frozen=True)
class Judged:
    """Rows that accuracy is measured on: images, their positions, cached tokens `(M, D)`, labels `(M,)`."""

    images: RowImages
    rows: Ints
    cached_MD: torch.Tensor
    label_M: Ints


@dataclass(frozen=True)
class Loaded:
    """Everything that one run works on."""

    saved: SavedHead
    head: Head
    store: Store
    backbone: Backbone
    train: TrainRows
    judged: Judged
    class_names: list[str]


def load_all(
    saved: SavedHead,
    store: Store,
    settings: FinetuneSettings,
    *,
    weights: Path | None,
    data_dir: Path | None,
    device: str,
) -> Loaded:
    """Backbone, images and rows, checked against the store and the head."""
    dev_rows = int(saved.card.get("dev_rows", 0))
    rows = read_rows(store.path, dev_rows=dev_rows)
    backbone = reload_backbone(store, weights=weights, device=device)
    dataset = reload_dataset(store, data_dir)
    images = images_of_rows(store, "train", dataset, backbone)
    labelled = np.flatnonzero(np.isin(rows.row_id_N, saved.labelled_row_id))
    head, every = saved.head, np.arange(len(rows.label_N))
    if rows.eval_token_MD is not None and rows.eval_label_M is not None:
        judged_images, at = images, np.arange(len(rows.label_N), len(rows.label_N) + dev_rows)
        if rows.evaluation == "test":
            judged_images = images_of_rows(store, "test", dataset, backbone)
            at = np.flatnonzero(store["test"].label() >= 0)
        else:
            at = at[store["train"].label()[at] >= 0]
        judged = Judged(judged_images, at, rows.eval_token_MD, rows.eval_label_M)
    else:
        folds = min(HELD_FOLDS, int(np.bincount(rows.label_N[labelled]).min()))  # two of each class at least
        held = labelled[labelled_folds(rows.label_N[labelled], folds, settings.split_seed)[0]]
        labelled, every = np.setdiff1d(labelled, held), np.setdiff1d(every, held)
        head = refit(saved, rows.token_ND, rows.label_N, labelled, every, device)
        judged = Judged(images, held, rows.token_ND[torch.from_numpy(held)], rows.label_N[held])
    if settings.limit is not None and settings.limit < len(every):
        room = max(settings.batch, settings.limit - len(labelled))
        chosen = np.linspace(0, len(every) - 1, min(room, len(every))).round().astype(np.int64)
        every = np.union1d(every[chosen], labelled)
    train_rows = TrainRows(images, rows.token_ND, torch.from_numpy(rows.label_N), labelled, every)
    return Loaded(saved, head, store, backbone, train_rows, judged, rows.class_names)


def refit(saved: SavedHead, token_ND: torch.Tensor, label_N: Ints, labelled: Ints, every: Ints, device: str) -> Head:
    """The head again without the rows that are held out, with the settings that it was trained with."""
    settings, classes = saved.head.settings, len(saved.card["class_names"])
    projection = fit_projection(token_ND[torch.from_numpy(every)], 0)
    prior_K = prior_of(settings, projection, token_ND, label_N, labelled, every, classes)
    task = HeadTask(labelled, every, int(saved.card["train_seed"]), prior_K)
    fit = fit_heads(token_ND, torch.from_numpy(label_N), [task], settings, classes=classes, device=device)
    return fit.heads[0]


def prior_of(
    settings: HeadSettings, projection: Projection, token_ND: torch.Tensor, label_N: Ints, labelled: Ints, every: Ints,
    classes: int,
) -> NDArray[np.float64]:  # fmt: skip
    """Class prior `(K,)` that the head's settings name, from the rows that training looks at alone."""
    seen, known = (projection.rows(token_ND[torch.from_numpy(at)]).cpu().numpy() for at in (every, labelled))
    return class_prior(
        settings.prior, given=settings.prior_given, token_ND=seen, token_LD=known, label_L=label_N[labelled],
        classes=classes,
    )  # fmt: skip


def check_probe(loaded: Loaded, device: torch.device) -> None:
    """Refuses to train where the live backbone does not give the cached tokens.

    Raises:
        MismatchError: weights or preprocessing are not those of the store.
    """
    rows = loaded.judged.rows[np.linspace(0, len(loaded.judged.rows) - 1, PROBE_ROWS).round().astype(np.int64)]
    at = np.searchsorted(loaded.judged.rows, rows)
    live = live_tokens(loaded.backbone, loaded.judged.images, rows, device)
    cached = loaded.judged.cached_MD[torch.from_numpy(at)].float()
    cosine = float(torch.nn.functional.cosine_similarity(live, cached).min())
    if cosine < PROBE_COSINE:
        raise MismatchError(
            f"the live backbone gives tokens with a cosine of {cosine:.4f} to the cached ones: weights or "
            f"preprocessing differ from those of {loaded.store.path.name}. Extract again."
        )


def resumable_run(runs: Path, identity: dict[str, Any]) -> Path | None:
    """An unfinished fine-tuning of exactly this kind, to go on with."""
    for run in reversed(run_folders.all_runs(runs, "finetune")):
        plan = run / "plan.json"
        if not (run / "report.json").is_file() and plan.is_file() and json.loads(plan.read_text()) == identity:
            return run
    return None


def predicted(head: Head, token_MD: torch.Tensor) -> Ints:
    """Classes `(M,)` of tokens."""
    return head.probabilities(token_MD).argmax(1).cpu().numpy()


def run_finetune(
    *,
    head_run: Path | None,
    runs: Path,
    stores: Path,
    settings: FinetuneSettings,
    labels: int | None = None,
    store: Path | None = None,
    weights: Path | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    config_toml: str = "",
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains backbone and head from a head run; the same call goes on where it was interrupted.

    Args:
        head_run: run folder; None: the newest head run (with `labels` labels).
        runs: folder of the runs.
        stores: folder of the stores.
        settings: of stage three.
        labels: number of labels that the head run must have.
        store: store to read; None: the head's own.
        weights: file of the backbone's weights; None: where they were.
        data_dir: where the images lie; None: where they were.
        device: torch device.
        config_toml: resolved settings as text, kept in the run folder.
        on_progress: told what is being done and the share of it that is done.
        on_message: told what a user should know.

    Returns:
        The JSON document: accuracy before and after, cka, model directory, seconds.

    Raises:
        CspipeError: no head, moved images or weights, a head of another store, an unknown regulariser.
    """
    start = time.perf_counter()
    place = pick_device(device)
    for name in settings.regularisers:
        if name not in REGULARISERS:
            raise unknown_name("regulariser", name, REGULARISERS)
    saved = choose_head(head_run, runs, labels, settings.split_seed, device)
    opened = store_of_head(saved, store, stores)
    loaded = load_all(saved, opened, settings, weights=weights, data_dir=data_dir, device=device)
    check_probe(loaded, place)
    if loaded.backbone.spec.convolutional:
        loaded.backbone.model.to(memory_format=torch.channels_last)
    learning = unfreeze(loaded.backbone.model, settings.unfreeze_blocks)
    identity = {"head": str(saved.path), "settings": json.loads(json.dumps(asdict(settings))), "device": place.type}
    run = resumable_run(runs, identity)
    say = on_message or (lambda text: None)
    if run is not None:
        say(f"going on with {run}")
    else:
        run = run_folders.new_run(runs, "finetune", config_toml)
        run_folders.write_json(run / "plan.json", identity)
    say(f"{learning:,} numbers of {loaded.backbone.name} learn, from {len(loaded.train.labelled)} labelled and "
        f"{len(loaded.train.unlabelled)} images in all")  # fmt: skip
    document = tune(loaded, settings, run, place, on_progress)
    document["seconds"] = round(time.perf_counter() - start, 2)
    facts = {"command": "finetune", "head_run": str(saved.path.parent.parent), "class_names": loaded.class_names,
             "provenance": provenance(opened.path), "environment": run_folders.environment()}  # fmt: skip
    run_folders.write_json(run / "report.json", document | facts)
    return {key: value for key, value in document.items() if key != "confusion"}


def tune(
    loaded: Loaded, settings: FinetuneSettings, run: Path, device: torch.device, on_progress: OnProgress | None
) -> dict[str, Any]:
    """Accuracy before, training, accuracy after, the model directory."""
    card, judged, head = loaded.saved.card, loaded.judged, loaded.head
    classes = len(loaded.class_names)
    before = predicted(head, judged.cached_MD)
    rows = loaded.train
    prior_K = prior_of(
        head.settings, head.projection, rows.cached_ND, rows.label_N.numpy(), rows.labelled, rows.unlabelled, classes
    )
    model = Joined(loaded.backbone.model, head.stack, head.projection).to(device)
    prior_1K = torch.from_numpy(prior_K).float().to(device)[None]
    parts = Parts(model, loaded.backbone, head.settings, prior_1K, device)

    def told(done: int, steps: int) -> None:
        if on_progress:
            on_progress("finetune", done / steps)

    train(parts, loaded.train, settings, run, seed=int(card["train_seed"]), on_step=told)
    tokens = live_tokens(loaded.backbone, judged.images, judged.rows, device)
    after = predicted(head, tokens)
    directory = save_model(run / "model", loaded, model, accuracy(after, judged.label_M))
    return {
        "method": card["method"], "labels": len(loaded.train.labelled), "split_seed": card["split_seed"],
        "backbone": loaded.backbone.name, "dataset": loaded.store.dataset, "store": str(loaded.store.path),
        "images": len(loaded.train.unlabelled), "judged_rows": len(judged.rows),
        "accuracy_before": accuracy(before, judged.label_M), "accuracy_after": accuracy(after, judged.label_M),
        "confusion": {"before": confusion(before, judged.label_M, classes).tolist(),
                      "after": confusion(after, judged.label_M, classes).tolist()},
        **drift(parts, loaded.train), "model_dir": str(directory), "run": str(run),
    }  # fmt: skip


def save_model(directory: Path, loaded: Loaded, model: Joined, final_accuracy: float) -> Path:
    """Writes the model: backbone under its library's own names, head, preprocessing and class names."""
    directory.mkdir(exist_ok=True)
    backbone = {name: value.detach().cpu().contiguous() for name, value in model.backbone.state_dict().items()}
    partial = directory / ".backbone.safetensors.partial"
    save_file(backbone, partial)
    partial.replace(directory / "backbone.safetensors")
    card = {key: value for key, value in loaded.saved.card.items() if key not in ("format", "settings", "shape")}
    head = Head(model.stack, model.projection, loaded.head.settings)
    save_head(directory / "head.safetensors", head, loaded.saved.labelled_row_id, card | {"accuracy": final_accuracy})
    run_folders.write_json(directory / "config.json", {
        "backbone": loaded.backbone.name, "architecture": loaded.backbone.spec.architecture,
        "token": loaded.backbone.token, "image_px": loaded.backbone.image_px,
        "transform": loaded.backbone.transform_words, "mean": list(loaded.backbone.mean),
        "std": list(loaded.backbone.std), "class_names": loaded.class_names, "licence": loaded.backbone.licence,
        "dataset": loaded.store.dataset, "labels": len(loaded.train.labelled), "accuracy": final_accuracy,
    })  # fmt: skip
    return directory
