"""Images that say what a head does not know: its most confident mistakes and what it is least certain of.

Legend: `N` rows, `K` classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cspipe import verdicts
from cspipe.extract.recorded import recorded_dataset
from cspipe.headtrain import load_head
from cspipe.store import Store
from cspipe.terminal import plain
from cspipe.thumbnails import ReadImage, data_uri, image_reader
from cspipe.token_map import judged_places

SHOWN = 12
SIDE_PX = 96


@dataclass(frozen=True)
class Example:
    """One image: `src` of its thumbnail (empty where the image cannot be read), true class (None where it has no
    label), predicted class, its probability as text, path, and whether the prediction is wrong."""

    src: str
    actual: str | None
    guess: str
    confidence: str
    path: str

    @property
    def wrong(self) -> bool:
        """True where it has a label and another one was predicted."""
        return self.actual is not None and self.actual != self.guess


@dataclass(frozen=True)
class Examples:
    """Mistakes, the most confident first, how many there are in all; and the least certain images, least first."""

    mistakes: list[Example]
    wrong: int
    unsure: list[Example]
    rows: int


def find_examples(
    run: Path, told: dict[str, Any], store: Store, *, dev_rows: int, data_dir: Path | None = None
) -> Examples:
    """Judged images of the first content-style head; after cross-validation those it did not learn the label of.

    Args:
        run: a head run.
        told: its report, `evaluation` that of the store.
        store: what was judged.
        dev_rows: of the run.
        data_dir: where the images lie; None: where they were.

    Raises:
        CspipeError: no such head, no rows, or no images; the message can be shown.
    """
    saved = load_head(run / "heads" / "content-style-0.safetensors")
    name, at_N = judged_places(store, told["evaluation"], dev_rows, len(store[store.splits[0]]) + 10**9)
    if told["evaluation"] == "cross-validation":
        at_N = at_N[~np.isin(store[name].row_id()[at_N], saved.labelled_row_id)]
    token_ND, label_N = store[name].embedding()[at_N].astype(np.float32), store[name].label()[at_N]
    probability_NK = saved.head.probabilities(torch.from_numpy(token_ND)).numpy()
    guess_N, sure_N = probability_NK.argmax(1), probability_NK.max(1)
    wrong_N = (label_N >= 0) & (label_N != guess_N)
    order = np.argsort(sure_N, kind="stable")
    wrong = order[::-1][wrong_N[order[::-1]]][:SHOWN]
    read = image_reader(store, name, recorded_dataset(store, data_dir))
    paths, names = store[name].path(), told["class_names"]

    def example(row: int) -> Example:
        actual = None if label_N[row] < 0 else names[label_N[row]]
        confidence = verdicts.percent(float(sure_N[row]))
        return Example(picture(read, int(at_N[row])), actual, names[guess_N[row]], confidence, plain(paths[at_N[row]]))

    mistakes, unsure = ([example(int(row)) for row in rows] for rows in (wrong, order[:SHOWN]))
    return Examples(mistakes, int(wrong_N.sum()), unsure, len(at_N))


def picture(read: ReadImage, row: int) -> str:
    """The thumbnail of a row, empty where its image cannot be read."""
    image = read(row)
    return "" if image is None else data_uri(image, min(SIDE_PX, max(image.size)))
