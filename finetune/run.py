"""`cspipe finetune`: from a head run to a model directory.

Legend: `N` rows, `M` judged rows, `D` token width, `K` classes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cspipe.extract.embed import pick_device
from cspipe.finetune.images import live_tokens
from cspipe.finetune.load import Loaded, check_probe, choose_head, load_all, prior_of, store_of_head
from cspipe.finetune.model import Joined, unfreeze
from cspipe.finetune.regularisers import REGULARISERS
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.train import DRIFT, Parts, train
from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.evaluate import accuracy, confusion
from cspipe.headtrain.headfile import save_head
from cspipe.headtrain.heads import Head
from cspipe.headtrain.run import provenance
from cspipe.store.errors import unknown_name

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""


def resumable_run(runs: Path, identity: dict[str, Any]) -> Path | None:
    """An unfinished fine-tuning of exactly this kind, to go on with."""
    for run in reversed(run_folders.all_runs(runs, "finetune")):
        plan = run / "plan.json"
        if not (run / "report.json").is_file() and plan.is_file() and json.loads(plan.read_text()) == identity:
            return run
    return None


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
    identity = {
        "head": str(saved.path.resolve()),
        "settings": json.loads(json.dumps(asdict(settings))),
        "device": place.type,
    }
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
    before = head.predict(judged.cached_MD)
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

    records = train(parts, loaded.train, settings, run, seed=int(card["train_seed"]), on_step=told)
    last_epoch = next(record for record in reversed(records) if record.get("event") == "epoch")
    tokens = live_tokens(loaded.backbone, judged.images, judged.rows, device)
    after = head.predict(tokens)
    directory = save_model(run / "model", loaded, model, accuracy(after, judged.label_M))
    return {
        "method": card["method"], "labels": len(loaded.train.labelled), "split_seed": card["split_seed"],
        "backbone": loaded.backbone.name, "dataset": loaded.store.dataset, "store": str(loaded.store.path),
        "images": len(loaded.train.unlabelled), "judged_rows": len(judged.rows),
        "accuracy_before": accuracy(before, judged.label_M), "accuracy_after": accuracy(after, judged.label_M),
        "confusion": {"before": confusion(before, judged.label_M, classes).tolist(),
                      "after": confusion(after, judged.label_M, classes).tolist()},
        **{name: last_epoch[name] for name in DRIFT}, "model_dir": str(directory), "run": str(run),
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
    save_head(directory / "head.safetensors", head, loaded.labelled_row_id, card | {"accuracy": final_accuracy})
    run_folders.write_json(directory / "config.json", {
        "backbone": loaded.backbone.name, "architecture": loaded.backbone.spec.architecture,
        "token": loaded.backbone.token, "image_px": loaded.backbone.image_px,
        "transform": loaded.backbone.transform_words, "mean": list(loaded.backbone.mean),
        "std": list(loaded.backbone.std), "class_names": loaded.class_names, "licence": loaded.backbone.licence,
        "dataset": loaded.store.dataset, "labels": len(loaded.train.labelled), "accuracy": final_accuracy,
    })  # fmt: skip
    return directory
