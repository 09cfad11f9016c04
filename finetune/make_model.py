"""Model directories from what the stages leave: a head run on its frozen backbone, or a fine-tuned network.

Legend: `K` classes.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.extract.recorded import recorded_backbone
from cspipe.finetune.load import Loaded, choose_head, prior_of_head, store_of_head
from cspipe.finetune.model import Joined
from cspipe.finetune.model_directory import CONFIG, Origin, save_model
from cspipe.headtrain.calibration import Calibration, calibrate, held_out
from cspipe.headtrain.chunked import resident
from cspipe.headtrain.headfile import SavedHead
from cspipe.headtrain.heads import Head
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.runs import read_report, write_json
from cspipe.headtrain.tasks import HeadTask
from cspipe.store import Store
from cspipe.store.errors import MissingDataError

MODEL = "model"
"""Where in its run folder a model lies."""

OnMessage = Callable[[str], None]
OnProgress = Callable[[str, float], None]


def silent(*told: object) -> None:
    """Tells nobody."""


def model_folder(
    path: Path,
    *,
    stores: Path,
    weights: Path | None = None,
    device: str = "cpu",
    on_message: OnMessage = silent,
    on_progress: OnProgress = silent,
) -> Path:
    """The model directory that a user means: one itself, that of a fine-tuning run, or that of a head run.

    A head run's is made when it is first asked for, which trains a second head, see `temperature_of`.

    Args:
        path: model directory or run folder.
        stores: folder of the stores.
        weights: file of the backbone's weights, where they are no longer where they were.
        device: torch device.
        on_message: told what is done.
        on_progress: told what takes a while and the share of it that is done.

    Raises:
        MissingDataError: neither of the three; or the run's store or weights are gone.
        MismatchError: they are not those that the head was trained on.
    """
    if (path / CONFIG).is_file():
        return path
    if (path / MODEL / CONFIG).is_file():
        return path / MODEL
    if not (path / "heads").is_dir():
        raise MissingDataError(
            f"{path} is no model: give a head run (runs/...-head-...), a finished fine-tuning run, or a folder that "
            "cspipe export wrote."
        )
    return freeze(
        path, stores=stores, weights=weights, device=device, on_message=on_message, on_progress=on_progress
    )  # fmt: skip


def freeze(
    run: Path, *, stores: Path, weights: Path | None, device: str, on_message: OnMessage, on_progress: OnProgress
) -> Path:
    """Writes the model directory of a head run: split 0's head, never the best one's."""
    report = read_report(run)
    saved = choose_head(run, run.parent, None, 0, device)
    store = store_of_head(saved, None, stores)
    backbone = recorded_backbone(store, weights=weights, device=device)
    found = temperature_of(saved, store, device, on_message, on_progress)
    file = weights or store.attributes.get("sources", {}).get("weights")
    origin = Origin(
        card=saved.card, labelled_row_id=saved.labelled_row_id, temperature=found.temperature,
        calibration_rows=found.rows, accuracy=float(saved.card["accuracy"]), judged_rows=report["rows"]["judged"],
        over_splits=over_splits(report, saved.card["method"]), dtype=store.key.dtype,
        weights_path=str(Path(file).resolve()) if file else None,
    )  # fmt: skip
    return save_model(run / MODEL, backbone, saved.head, origin, trained=False)


def over_splits(report: dict[str, Any], method: str) -> dict[str, Any]:
    """Mean accuracy of a method over the run's splits, with its interval and how many they were."""
    told = report["summary"][method]
    splits = {row["split_seed"] for row in report["results"] if row["method"] == method}
    return {"mean": told["mean"], "ci95": told["ci95"], "splits": len(splits)}


def temperature_of(
    saved: SavedHead, store: Store, device: str, on_message: OnMessage = silent, on_progress: OnProgress = silent
) -> Calibration:
    """The temperature of a saved head, fitted when it is first asked for and kept beside the head.

    The head itself cannot tell: it was trained on every labelled row, and is surer of those than of any other. So a
    second one is trained on three quarters of them and asked about the rest.
    """
    kept = saved.path.with_suffix(".calibration.json")
    with suppress(OSError, ValueError, TypeError):
        return Calibration(**json.loads(kept.read_text(encoding="utf-8")))
    found = calibration_of(saved, store, device, on_message, on_progress)
    with suppress(OSError):  # of a run that may only be read, it is fitted again
        write_json(kept, asdict(found))
    return found


def calibration_of(
    saved: SavedHead, store: Store, device: str, on_message: OnMessage, on_progress: OnProgress
) -> Calibration:
    """The temperature of a saved head, from its own labelled rows; no judged row is looked at."""
    settings = saved.head.settings
    dev_rows = int(saved.card.get("dev_rows", 0))
    rows = read_rows(store.path, dev_rows=dev_rows, views=settings.views, given=saved.given_labels)
    token_ND = resident(rows.token_ND, "predict")
    views = [resident(view_ND, "predict") for view_ND in rows.view_VND]
    labelled = np.flatnonzero(np.isin(rows.row_id_N, saved.labelled_row_id))
    every, classes = np.arange(len(rows.label_N)), len(saved.card["class_names"])
    train_seed = int(saved.card["train_seed"])
    if not len(held_out(rows.label_N[labelled], train_seed)):
        return Calibration(1.0, 0)
    on_message(
        f"once for {saved.path.parent.parent}: a second head is trained without a quarter of the labelled rows, which "
        "then tell how far probabilities can be trusted"
    )
    prior_K = None
    if settings.lambda_c:
        prior_K = prior_of_head(saved.head, token_ND, rows.label_N, labelled, every, classes)
    return calibrate(
        token_ND, torch.from_numpy(rows.label_N), HeadTask(labelled, every, train_seed, prior_K), settings,
        classes=classes, view_VND=views, device=device,
        on_step=lambda step: on_progress("calibration", step / settings.steps),
    )  # fmt: skip


def save_tuned(
    directory: Path, loaded: Loaded, model: Joined, accuracy: float, prior_K: NDArray[np.float64], device: torch.device
) -> Path:  # fmt: skip
    """The model directory of a fine-tuned network.

    Its temperature is that of the frozen head: training has seen every labelled row, so none is left to judge by.

    Args:
        directory: where to.
        loaded: what the run worked on; its backbone is the trained one.
        model: backbone and head.
        accuracy: of the trained network on the judged rows.
        prior_K: class prior of the head.
        device: torch device.
    """
    rows, saved = loaded.train, loaded.saved
    task = HeadTask(rows.labelled, rows.unlabelled, int(saved.card["train_seed"]), prior_K)
    found = calibrate(
        rows.cached_ND, rows.label_N, task, loaded.head.settings, classes=len(loaded.class_names), device=device
    )
    origin = Origin(
        card=saved.card, labelled_row_id=loaded.labelled_row_id, temperature=found.temperature,
        calibration_rows=found.rows, accuracy=accuracy, judged_rows=len(loaded.judged.rows),
        dtype=loaded.store.key.dtype,
    )  # fmt: skip
    head = Head(model.stack, model.projection, loaded.head.settings, loaded.head.prior_K)
    return save_model(directory, loaded.backbone, head, origin, trained=True)
