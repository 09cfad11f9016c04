"""What a fine-tuning run works on: the head, its store, the live backbone, images and rows, checked to belong together.

Legend: `N` rows, `M` judged rows, `D` token width, `K` classes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.extract.backbones import Backbone
from cspipe.extract.recorded import recorded_backbone, recorded_dataset
from cspipe.finetune.images import Ints, RowImages, images_of_rows, live_tokens
from cspipe.finetune.plan import TrainRows
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.chunked import resident
from cspipe.headtrain.clusters import draw_sample
from cspipe.headtrain.headfile import SavedHead, load_head
from cspipe.headtrain.heads import Head, fit_heads
from cspipe.headtrain.prior import prior_of_rows
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.headtrain.tasks import HeadTask
from cspipe.store import Store, open_store
from cspipe.store.errors import MismatchError, MissingDataError, SettingError
from cspipe.store.layout import list_stores
from cspipe.store.remote import local_path
from cspipe.store.remotes import shown
from cspipe.store.split import labelled_folds

HELD_FOLDS = 5
PROBE_ROWS = 32
PROBE_COSINE = 0.999


def choose_head(
    head_run: Path | None, runs: Path, labels: int | None, split_seed: int, device: str, method: str = MAIN_METHOD
) -> SavedHead:
    """The method's head to start from: of the named run, else of the newest (with so many labels).

    Raises:
        MissingDataError: no such run, or it keeps no such head of this split.
        MismatchError: the named run has another number of labels.
    """
    if head_run is None:
        newest_first = reversed(run_folders.finished_runs(runs, "head"))
        fitting = (run for run in newest_first if labels in (None, run_folders.read_report(run)["labels"]))
        head_run = next(fitting, None)
        if head_run is None:
            which = f" with {labels} labels" if labels else ""
            raise MissingDataError(f"no finished head run{which} under {runs}. Run cspipe head first, or name --runs.")
    told = run_folders.read_report(head_run)
    if labels not in (None, told["labels"]):
        raise MismatchError(
            f"{head_run} has {told['labels']} labels, not {labels}: leave out --labels or name another run."
        )
    path = head_run / "heads" / f"{method}-{split_seed}.safetensors"
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
        recorded = there[0] if there else local_path(card["store"])
        if not recorded.exists():
            raise MissingDataError(
                f"{saved.path} was trained on {recorded.name}, which is not under {shown(stores)}: name its folder "
                "with --stores."
            )
        store = recorded
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
    """Everything that one run works on.

    Attributes:
        saved: the head file.
        head: what training starts from: the saved head, or one refitted without the rows that are held out.
        frozen: what the tuned model is compared with: the best head of the frozen backbone that may be judged.
        labelled_row_id: the store's ids of the labelled rows that are learnt from.
        store, backbone, train, judged, class_names: as their names say.
    """

    saved: SavedHead
    head: Head
    frozen: Head
    labelled_row_id: Ints
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
    rows = read_rows(store.path, dev_rows=dev_rows, given=saved.given_labels)
    token_ND = resident(rows.token_ND, "fine-tuning")
    backbone = recorded_backbone(store, weights=weights, device=device)
    dataset = recorded_dataset(store, data_dir)
    images = images_of_rows(store, "train", dataset, backbone)
    labelled = np.flatnonzero(np.isin(rows.row_id_N, saved.labelled_row_id))
    head, every, stop = saved.head, np.arange(len(rows.label_N)), np.empty(0, np.int64)
    if rows.eval_token_MD is not None and rows.eval_label_M is not None:
        judged_images, at = images, np.arange(len(rows.label_N), len(rows.label_N) + dev_rows)
        if rows.evaluation == "test":
            judged_images = images_of_rows(store, "test", dataset, backbone)
            at = np.flatnonzero(store["test"].label() >= 0)
        else:
            at = at[store["train"].label()[at] >= 0]
        judged = Judged(judged_images, at, rows.eval_token_MD, rows.eval_label_M)
    else:
        labelled, held = hold_out(labelled, rows.label_N, settings.split_seed)
        every = np.setdiff1d(every, held)
        head = refit(saved, token_ND, rows.label_N, labelled, every, device)
        judged = Judged(images, held, token_ND[torch.from_numpy(held)], rows.label_N[held])
    frozen = head
    if settings.stop == "held-out":
        labelled, stop = hold_out(labelled, rows.label_N, settings.split_seed)
        head = refit(saved, token_ND, rows.label_N, labelled, every, device)
    if settings.limit is not None and settings.limit < len(every):
        room = max(settings.batch, settings.limit - len(labelled))
        chosen = np.linspace(0, len(every) - 1, min(room, len(every))).round().astype(np.int64)
        every = np.union1d(every[chosen], labelled)
    train_rows = TrainRows(images, token_ND, torch.from_numpy(rows.label_N), labelled, every, stop)
    return Loaded(saved, head, frozen, rows.row_id_N[labelled], store, backbone, train_rows, judged, rows.class_names)


def hold_out(labelled: Ints, label_N: Ints, seed: int) -> tuple[Ints, Ints]:
    """A fifth of the labelled rows taken out, of each class alike; a larger part where a class has fewer than five.

    Returns:
        The rows that are left, and those taken out.

    Raises:
        SettingError: a class has a single labelled row.
    """
    count_K = np.bincount(label_N[labelled])
    if count_K[count_K > 0].min() < 2:
        raise SettingError(
            "a labelled row of each class has to be held out and one kept, but a class has a single one: label more, "
            "or leave finetune.stop at 'never' and give the data set a test split."
        )
    folds = min(HELD_FOLDS, int(count_K[count_K > 0].min()))
    held = labelled[labelled_folds(label_N[labelled], folds, seed)[0]]
    return np.setdiff1d(labelled, held), held


def refit(saved: SavedHead, token_ND: torch.Tensor, label_N: Ints, labelled: Ints, every: Ints, device: str) -> Head:
    """The head again without the rows that are held out, with the settings that it was trained with."""
    settings, classes = saved.head.settings, len(saved.card["class_names"])
    prior_K = None
    if settings.lambda_c:
        draw = partial(draw_sample, token_ND, every, settings)
        prior_K = prior_of_rows(settings, draw, token_ND, labelled, label_N[labelled], classes=classes)
    task = HeadTask(labelled, every, int(saved.card["train_seed"]), prior_K)
    fit = fit_heads(token_ND, torch.from_numpy(label_N), [task], settings, classes=classes, device=device)
    return fit.heads[0]


def prior_of_head(
    head: Head, token_ND: torch.Tensor, label_N: Ints, labelled: Ints, every: Ints, classes: int
) -> NDArray[np.float64]:
    """Class prior `(K,)` that the head was held to; where it keeps none, of the rows that training looks at."""
    if head.prior_K is not None:
        kept_K: NDArray[np.float64] = head.prior_K.double().cpu().numpy()
        return kept_K
    return prior_of_rows(
        head.settings, partial(draw_sample, token_ND, every, head.settings), token_ND, labelled,
        label_N[labelled], classes=classes,
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
