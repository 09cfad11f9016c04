"""`cspipe explore`: the rows of a head run's store on a map, in one HTML page that fetches nothing.

The map is drawn by regl-scatterplot (see scatterplot.NOTICE). All names travel in one packed block of data and are set
as text by the page's script, so no name is ever read as HTML; the page runs only the two scripts whose hashes it names.
Legend: `N` rows, `D` token width, `K` classes, `S` style.
"""

import base64
import gzip
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from cspipe.extract.recorded import recorded_dataset
from cspipe.finetune.make_model import temperature_of
from cspipe.headtrain import load_head
from cspipe.headtrain.headfile import SavedHead
from cspipe.headtrain.runs import read_report, write_atomic
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.page import EXPLORER, link_explorer, packaged, page_template
from cspipe.store import Store
from cspipe.store.errors import CspipeError, SettingError
from cspipe.suggest import rows_to_label
from cspipe.terminal import plain
from cspipe.thumbnails import PER_SHEET, ReadImage, image_reader, sheets, tile_side
from cspipe.token_map import run_store, spaced, tsne

Document = dict[str, Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
OnProgress = Callable[[str, float], None]
MOST_ROWS = 100_000
SUGGESTED = 20
GRID = 65_535
"""Places on the map are whole numbers from 0 to this."""

LOOKED_AT = 32
"""Images that tell how large tiles need be."""


@dataclass(frozen=True)
class Rows:
    """Rows that are shown, `(N,)` each.

    Attributes:
        split_names: of the store.
        split_N: number of the row's split.
        at_N: its position among the split's good rows.
        row_id_N: its id there.
        label_N: its class, -1 for none.
        roles: what a row can be to the head.
        role_N: number of the row's role.
        token_ND: its token.
        total: rows that the store has.
    """

    split_names: list[str]
    split_N: Ints
    at_N: Ints
    row_id_N: Ints
    label_N: Ints
    roles: list[str]
    role_N: Ints
    token_ND: Floats
    total: int


def write_explorer(
    run: Path, *, stores: Path, limit: int = MOST_ROWS, data_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Document:  # fmt: skip
    """Writes `explorer.html` into a head run's folder and links it from the run's report, if that is there.

    Args:
        run: a head run.
        stores: where its store is looked for, if it moved.
        limit: rows on the map at most: the labelled ones and others evenly spaced.
        data_dir: where the images lie; None: where they were.
        on_progress: told what is being done and the share of it that is done.

    Returns:
        A JSON document: page, its size in bytes, rows shown and in all, thumbnails or why there are none.

    Raises:
        SettingError: not a head run.
        CspipeError: no store, no content-style head.
    """
    told = read_report(run)
    if told["command"] != "head":
        other = f": name the head run that it began from, {told['head_run']}" if "head_run" in told else ""
        raise SettingError(f"cspipe explore shows head runs, and {run} is a {told['command']} run{other}.")
    say = on_progress or (lambda name, done: None)
    seed = told["results"][0]["split_seed"]
    saved = load_head(run / "heads" / f"{MAIN_METHOD}-{seed}.safetensors")
    store = run_store(told, stores)
    rows = choose_rows(store, saved, limit)
    pictures, side, problem = read_pictures(store, rows, data_dir, say)
    about = {"run": run.name, "seed": seed, "shown": len(rows.at_N), "total": rows.total, "problem": problem}
    temperature = temperature_of(saved, store, "cpu", on_progress=say).temperature
    block = pack(describe(store, rows, saved, temperature, say) | {"tile": side, "perSheet": PER_SHEET})
    page = write_page(run / EXPLORER, told, about, block, pictures)
    link_explorer(run / "report.html")
    return {
        "page": str(page), "bytes": page.stat().st_size, "rows": len(rows.at_N), "rows_in_store": rows.total,
        "thumbnails": not problem, "problem": problem or None,
    }  # fmt: skip


def choose_rows(store: Store, saved: SavedHead, limit: int) -> Rows:
    """At most `limit` rows of all splits, evenly spaced; the head's labelled ones are always among them."""
    dev_rows, roles = int(saved.card.get("dev_rows", 0)), ["labelled", "train", "dev", "test"]
    split_N, at_N, id_N, label_N, role_N = [], [], [], [], []
    for number, name in enumerate(store.splits):
        split = store[name]
        rows, row_id = len(split), split.row_id()
        role_of = np.full(rows, roles.index("test" if name == "test" else "train"))
        if name == "train":
            role_of[rows - dev_rows :] = roles.index("dev")
            role_of[np.isin(row_id, saved.labelled_row_id)] = roles.index("labelled")
        split_N.append(np.full(rows, number))
        at_N.append(np.arange(rows))
        id_N.append(row_id)
        label_N.append(split.label())
        role_N.append(role_of)
    columns = [np.concatenate(part) for part in (split_N, at_N, id_N, label_N, role_N)]
    is_labelled = columns[-1] == roles.index("labelled")
    labelled = np.flatnonzero(is_labelled)
    others = spaced(np.flatnonzero(~is_labelled), max(limit - len(labelled), 1))
    chosen = np.sort(np.concatenate([labelled, others]))
    in_split, at, row_id, label, role = (column[chosen] for column in columns)
    tokens = [store[name].embedding()[at[in_split == number]] for number, name in enumerate(store.splits)]
    token_ND = np.concatenate(tokens).astype(np.float32)
    return Rows(store.splits, in_split, at, row_id, label, roles, role, token_ND, len(columns[0]))


def describe(store: Store, rows: Rows, saved: SavedHead, temperature: float, say: OnProgress) -> Document:
    """What the page's script works on: columns of rows, three maps, rows to label next; confidence is calibrated."""
    content_NK, style_NS = saved.head.encode(torch.from_numpy(rows.token_ND))
    probability_NK = (content_NK / temperature).softmax(-1).numpy()
    spaces = {"[CLS] tokens": rows.token_ND, "content": content_NK.numpy(), "style": style_NS.numpy()}
    maps = []
    for number, (name, value_NX) in enumerate(spaces.items()):
        say("t-SNE", number / len(spaces))
        x_N, y_N = on_grid(tsne(value_NX, threads=os.cpu_count() or 1)).T
        maps.append({"name": name, "x": x_N.tolist(), "y": y_N.tolist()})
    say("t-SNE", 1.0)
    paths = [store[name].path() for name in rows.split_names]
    return {
        "classes": [plain(name) for name in store.class_names], "splits": rows.split_names, "roles": rows.roles,
        "maps": maps, "split": rows.split_N.tolist(), "id": rows.row_id_N.tolist(), "label": rows.label_N.tolist(),
        "role": rows.role_N.tolist(), "guess": probability_NK.argmax(1).tolist(),
        "confidence": [round(value, 4) for value in probability_NK.max(1).tolist()],
        "path": [plain(paths[s][a]) for s, a in zip(rows.split_N, rows.at_N, strict=True)],
        "suggested": suggested(store, rows, saved),
    }  # fmt: skip


def suggested(store: Store, rows: Rows, saved: SavedHead) -> list[int]:
    """Places among the shown rows of the training rows to label next, the least certain first."""
    try:
        found = rows_to_label(saved, store, SUGGESTED)
    except SettingError:  # fewer rows have no label
        return []
    train = rows.split_N == rows.split_names.index("train")
    place = {int(rows.row_id_N[at]): int(at) for at in np.flatnonzero(train)}
    return [place[told["row"]] for told in found if told["row"] in place]


def on_grid(place_N2: Floats) -> Ints:
    """Places as whole numbers from 0 to `GRID`, the map's shape kept and its middle in the middle."""
    low_2, high_2 = place_N2.min(0), place_N2.max(0)
    half = max(float((high_2 - low_2).max()) / 2, 1e-9)
    share_N2 = (place_N2 - (low_2 + high_2) / 2) / half
    grid_N2: Ints = np.rint((share_N2 + 1) / 2 * GRID).astype(np.int64)
    return grid_N2


def read_pictures(store: Store, rows: Rows, data_dir: Path | None, say: OnProgress) -> tuple[list[str], int, str]:
    """Sheets of thumbnails, the side of a tile in pixels, and why there are none where that is so."""
    try:
        dataset = recorded_dataset(store, data_dir)
        readers = {n: image_reader(store, name, dataset) for n, name in enumerate(rows.split_names)}
    except CspipeError as error:
        return [], 0, plain(str(error))
    looked_at = spaced(np.arange(len(rows.at_N)), LOOKED_AT)
    seen = [picture for row in looked_at if (picture := read_row(readers, rows, row)) is not None]
    if not seen:
        return [], 0, f"None of {len(looked_at)} images of {store.path.name} that were looked for can be read."
    side, made, of = tile_side(len(rows.at_N), seen), [], -(-len(rows.at_N) // PER_SHEET)
    for sheet in sheets(readers, rows.split_N, rows.at_N, side):
        made.append(sheet)
        say("thumbnails", len(made) / of)
    return made, side, ""


def read_row(readers: dict[int, ReadImage], rows: Rows, row: int) -> Any:  # noqa: ANN401
    """The image of one of the shown rows, or None."""
    return readers[int(rows.split_N[row])](int(rows.at_N[row]))


def pack(document: Document) -> str:
    """A document as text for the middle of a page: JSON, gzip, base64."""
    told = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(told.encode(), 6, mtime=0)).decode("ascii")


def write_page(page: Path, told: Document, about: Document, block: str, pictures: list[str]) -> Path:
    """The page, whole or not at all."""
    scripts = [packaged("scatterplot.min.js"), packaged("explorer.js")]
    allowed = " ".join(f"'sha256-{digest(script)}'" for script in scripts)
    text = page_template("explorer.html").render(
        told=told, about=about, block=block, sheets=pictures, scripts=[Markup(script) for script in scripts],
        allowed=Markup(allowed), megabytes=(len(block) + sum(map(len, pictures)) + sum(map(len, scripts))) / 1e6,
    )  # fmt: skip
    write_atomic(page, text)
    return page


def digest(script: str) -> str:
    """SHA-256 of a script as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
