"""`cspipe suggest`: the unlabelled images whose labels would help most, as a CSV to be filled in."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.common import Common
from cspipe.config import Config
from cspipe.finetune.load import choose_head, store_of_head
from cspipe.finetune.make_model import silent, temperature_of
from cspipe.headtrain.cells import safe_cell
from cspipe.headtrain.chunked import resident
from cspipe.headtrain.headfile import SavedHead
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.suggestion import suggest
from cspipe.stages import calm
from cspipe.store import Store
from cspipe.store.errors import SettingError
from cspipe.store.remotes import shown
from cspipe.terminal import message, plain, print_table, stage_progress

Document = dict[str, Any]
Ints = NDArray[np.int64]
COLUMNS = ("row", "path", "guess", "probability", "label")


def run_suggest(common: Common, config: Config, run: Path | None, count: int, out: Path) -> Document:
    """Writes the images that a person should label next.

    Args:
        common: options of every command.
        config: where runs and stores are, and the device.
        run: head run; None: the newest.
        count: how many images.
        out: the CSV file; one that is there is never written over, for it may hold labels.

    Returns:
        A JSON document: the rows, each with its image's path, the head's guess and its calibrated probability, the
        least certain first; the temperature, and how many labelled rows it was fitted on.

    Raises:
        SettingError: the file is there, or fewer images have no label.
    """
    calm(common)
    if out.exists():
        raise SettingError(f"{out} is there and may hold labels: name another file with --out, or remove it.")
    saved = choose_head(run, config.runs, None, 0, config.device)
    store = store_of_head(saved, None, config.stores)
    with stage_progress(common.quiet) as step:
        fitted = temperature_of(saved, store, config.device, silent if common.quiet else message, step)
    found = rows_to_label(saved, store, count, fitted.temperature)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for told in found:
            names = (safe_cell(told["path"]), safe_cell(told["guess"]))
            writer.writerow((told["row"], *names, f"{told['probability']:.4f}", ""))
    return {
        "run": str(saved.path.parent.parent), "store": shown(store.path), "class_names": store.class_names,
        "temperature": fitted.temperature, "calibration_rows": fitted.rows,
        "images": store.attributes["sources"].get("data"), "rows": found, "out": str(out),
        "next": f"cspipe head --labels-from {out}",
    }  # fmt: skip


def rows_to_label(saved: SavedHead, store: Store, count: int, temperature: float = 1.0) -> list[Document]:
    """Row id, path and the head's guess of the rows to label; its own labelled and its dev rows are left out.

    Which rows they are does not depend on the temperature, by which their probabilities are told: `suggest` was
    measured on the head's own.
    """
    rows = read_rows(store.path, dev_rows=int(saved.card.get("dev_rows", 0)))
    token_ND = resident(rows.token_ND, "suggest")
    free = np.flatnonzero(~np.isin(rows.row_id_N, saved.labelled_row_id))
    token_UD = token_ND if len(free) == len(token_ND) else token_ND[free]
    logits_UK = saved.head.encode(token_UD)[0].double()
    probability_UK = logits_UK.softmax(-1).cpu().numpy()
    picked = suggest(probability_UK, saved.head.projection.rows(token_UD).cpu().numpy(), count)
    path = dict(zip(store["train"].row_id().tolist(), store["train"].path(), strict=True))
    found = []
    for place in picked:
        row, row_K = int(rows.row_id_N[free[place]]), (logits_UK[place] / temperature).softmax(-1)
        guess = store.class_names[int(row_K.argmax())]
        found.append({"row": row, "path": path[row], "guess": guess, "probability": float(row_K.max())})
    return found


def print_suggest(document: Document) -> None:
    """The rows, and what to do with them."""
    rows = [(told["row"], told["path"], told["guess"], told["probability"]) for told in document["rows"]]
    print_table("images to label", ("row", "path", "guess", "probability"), rows)
    if document["images"]:
        print(plain(f"The paths are of {document['images']}."))
    print(plain(f"Fill in the column label of {document['out']} ({', '.join(document['class_names'])}), then run"))
    print(plain(document["next"]))
