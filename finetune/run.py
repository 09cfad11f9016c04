"""`cspipe finetune`: from a head run to a model directory.

Legend: `N` rows, `M` judged rows, `D` token width, `K` classes.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cspipe.extract.augment import parts_of
from cspipe.extract.embed import pick_device
from cspipe.extract.recorded import recorded_backbone
from cspipe.finetune.adapter import add_lora, merge_lora
from cspipe.finetune.drift import DRIFT
from cspipe.finetune.gain import paired_gain
from cspipe.finetune.image_decoder import channels_of, put_back, put_image_decoder, rebuilds_image
from cspipe.finetune.images import live_tokens
from cspipe.finetune.kept import OtherImages, kept_knowledge, other_images
from cspipe.finetune.load import Loaded, check_probe, choose_head, load_all, prior_of_head, store_of_head
from cspipe.finetune.make_model import MODEL, save_tuned
from cspipe.finetune.model import Joined, checkpoint_activations, unfreeze
from cspipe.finetune.regularisers import check_names, check_regularisers
from cspipe.finetune.rift import learned_rotation
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.step import Parts
from cspipe.finetune.supply import make_anchors
from cspipe.finetune.train import Trained, train
from cspipe.finetune.world import World, join_world, own_device
from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.evaluate import accuracy, confusion
from cspipe.headtrain.run import provenance
from cspipe.store.remotes import shown

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
    kept_dataset: str | None = None,
    kept_data_dir: Path | None = None,
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
        kept_dataset: another data set, on whose images the frozen and the tuned backbone's neighbours are judged.
        kept_data_dir: where those lie.
        device: torch device; the processes of torchrun share the work.
        config_toml: resolved settings as text, kept in the run folder.
        on_progress: told what is being done and the share of it that is done.
        on_message: told what a user should know.

    Returns:
        The JSON document: accuracy before and after, cka, model directory, seconds.

    Raises:
        CspipeError: no head, moved images or weights, a head of another store, an unknown regulariser.
    """
    start, device = time.perf_counter(), own_device(device)
    place, world = pick_device(device), join_world(device)
    say = on_message if on_message and world.first else (lambda text: None)
    check_names(settings.regularisers)
    if settings.augment:
        parts_of(settings.augment)
    saved = choose_head(head_run, runs, labels, settings.split_seed, device, settings.method)
    opened = store_of_head(saved, store, stores)
    loaded = load_all(saved, opened, settings, weights=weights, data_dir=data_dir, device=device)
    check_probe(loaded, place)
    other = other_images(kept_dataset, kept_data_dir, loaded.backbone) if kept_dataset else None
    learning = prepare(loaded, settings)
    run = open_run(runs, config_toml, saved.path, settings, place, world, say)
    say(f"{learning:,} numbers of {loaded.backbone.name} learn, from {len(loaded.train.labelled)} labelled and "
        f"{len(loaded.train.unlabelled)} images in all")  # fmt: skip
    parts = make_parts(loaded, settings, place, world)

    def told(done: int, steps: int) -> None:
        if on_progress and world.first:
            on_progress("finetune", done / steps)

    trained = train(
        parts, loaded.train, settings, run, seed=int(saved.card["train_seed"]), on_step=told, on_message=say
    )
    tuned = with_model(loaded, settings, trained)
    document = judge(tuned, trained, parts, run) if world.first else {}
    if other is not None and world.first:
        document["kept"] = kept(tuned, other, weights, place)
    document["seconds"] = round(time.perf_counter() - start, 2)
    document["training_hours"] = trained.seconds / 3600
    facts = {"command": "finetune", "head_run": str(saved.path.parent.parent), "class_names": loaded.class_names,
             "provenance": provenance(opened.path), "environment": run_folders.environment()}  # fmt: skip
    if world.first:
        run_folders.write_json(run / "report.json", document | facts)
    document = json.loads(str(world.agree(json.dumps(document))))
    return {key: value for key, value in document.items() if key != "confusion"}


def prepare(loaded: Loaded, settings: FinetuneSettings) -> int:
    """Unfreezes what learns, puts an adapter on it where one is asked for, and refuses terms that make no sense.

    Returns:
        How many numbers of the backbone learn.
    """
    network = loaded.backbone.model
    if loaded.backbone.spec.convolutional:
        network.to(memory_format=torch.channels_last)
    learning = unfreeze(network, settings.unfreeze_blocks)
    adapter = settings.adapter == "lora"
    if adapter:
        learning = add_lora(network, settings.lora_rank, int(loaded.saved.card["train_seed"]))
    if settings.grad_checkpointing:
        checkpoint_activations(network)
    labelled = loaded.train.label_N[torch.from_numpy(loaded.train.labelled)]
    check_regularisers(
        settings.regularisers, learning=learning, labelled_classes=len(set(labelled.tolist())), adapter=adapter
    )
    return learning


def open_run(
    runs: Path, config_toml: str, head: Path, settings: FinetuneSettings, device: torch.device, world: World,
    say: Callable[[str], None],
) -> Path:  # fmt: skip
    """The folder of an unfinished run of exactly this kind, else a new one; the same for all processes."""
    identity = {
        "head": str(head.resolve()), "settings": json.loads(json.dumps(asdict(settings))), "device": device.type,
        "processes": world.size,
    }  # fmt: skip
    run = resumable_run(runs, identity) if world.first else None
    if run is not None:
        say(f"going on with {run}")
    elif world.first:
        run = run_folders.new_run(runs, "finetune", config_toml)
        run_folders.write_json(run / "plan.json", identity)
    return Path(str(world.agree(str(run))))


def make_parts(loaded: Loaded, settings: FinetuneSettings, device: torch.device, world: World) -> Parts:
    """Backbone and head as one model, and what its training works with."""
    rows, head = loaded.train, loaded.head
    prior_K = prior_of_head(
        head, rows.cached_ND, rows.label_N.numpy(), rows.labelled, rows.unlabelled, len(loaded.class_names)
    )
    rotation = learned_rotation(loaded.backbone.width) if "rift-learned" in settings.regularisers else None
    stack, channels = copy.deepcopy(head.stack), 0  # the head itself is judged beside the tuned one
    if rebuilds_image(settings, head.settings):
        channels = channels_of(rows.images, rows.labelled)
        put_image_decoder(stack, loaded.backbone.image_px, channels, int(loaded.saved.card["train_seed"]))
    model = Joined(loaded.backbone.model, stack, head.projection, rotation).to(device)
    at = torch.from_numpy(rows.labelled)
    anchors = make_anchors(settings.regularisers, model, rows.cached_ND[at], rows.label_N[at], len(loaded.class_names))
    prior_1K = torch.from_numpy(prior_K).float().to(device)[None]
    objective = replace(
        head.settings.unvoted(), mix_temperature=settings.mix_temperature, entropy_weight=settings.entropy_weight,
        rebuilt_batch=0,
    )  # fmt: skip
    return Parts(model, loaded.backbone, objective, prior_1K, device, anchors, world, channels)


def with_model(loaded: Loaded, settings: FinetuneSettings, trained: Trained) -> Loaded:
    """What was loaded, with the trained network and head in place of the first ones; an adapter is merged."""
    if settings.adapter == "lora":
        merge_lora(trained.backbone)
    if rebuilds_image(settings, loaded.head.settings):
        put_back(trained.stack, loaded.head.stack)
    backbone = replace(loaded.backbone, model=trained.backbone.eval())
    return replace(loaded, backbone=backbone, head=replace(loaded.head, stack=trained.stack.eval()))


def judge(loaded: Loaded, trained: Trained, parts: Parts, run: Path) -> dict[str, Any]:
    """Accuracy of the frozen head and of the tuned model, the gain, drift; writes the model directory."""
    card, judged, classes = loaded.saved.card, loaded.judged, len(loaded.class_names)
    before = loaded.frozen.predict(judged.cached_MD)
    after = loaded.head.predict(live_tokens(loaded.backbone, judged.images, judged.rows, parts.device))
    model = Joined(loaded.backbone.model, loaded.head.stack, loaded.head.projection)
    prior_K = parts.prior_1K[0].double().cpu().numpy()
    directory = save_tuned(run / MODEL, loaded, model, accuracy(after, judged.label_M), prior_K, parts.device)
    moved = epoch_record(trained)
    return {
        "method": card["method"], "labels": len(loaded.labelled_row_id), "split_seed": card["split_seed"],
        "backbone": loaded.backbone.name, "dataset": loaded.store.dataset, "store": shown(loaded.store.path),
        "images": len(loaded.train.unlabelled), "judged_rows": len(judged.rows),
        "accuracy_before": accuracy(before, judged.label_M), "accuracy_after": accuracy(after, judged.label_M),
        **paired_gain(before, after, judged.label_M),
        "confusion": {"before": confusion(before, judged.label_M, classes).tolist(),
                      "after": confusion(after, judged.label_M, classes).tolist()},
        **{name: moved[name] for name in DRIFT}, "epoch": trained.epoch,
        "skipped_steps": sum(bool(record.get("skipped")) for record in trained.records),
        "model_dir": str(directory), "run": str(run),
    }  # fmt: skip


def epoch_record(trained: Trained) -> Mapping[str, Any]:
    """What was told of the epoch that is kept."""
    epochs = [record for record in trained.records if record.get("event") == "epoch"]
    return next(record for record in epochs if record["epoch"] == trained.epoch)


def kept(loaded: Loaded, other: OtherImages, weights: Path | None, device: torch.device) -> dict[str, Any]:
    """What the frozen and the tuned backbone know of another data set."""
    frozen = recorded_backbone(loaded.store, weights=weights, device=str(device))
    return kept_knowledge(other, frozen, loaded.backbone, device)
