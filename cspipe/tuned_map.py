"""The same judged rows before and after fine-tuning: tokens, content and style as each model makes them."""

from pathlib import Path
from typing import Any

import numpy as np

from cspipe.extract.recorded import recorded_dataset
from cspipe.finetune.model_directory import load_model
from cspipe.headtrain import load_head
from cspipe.store import Store
from cspipe.store.errors import MissingDataError
from cspipe.thumbnails import image_reader
from cspipe.token_map import TokenMap, judged_places, place_rows

MOST_ROWS = 300
"""Images that go through the tuned backbone for the picture: seconds for a small one, a minute for a large one."""


def map_tuned(
    run: Path, told: dict[str, Any], store: Store, *, data_dir: Path | None = None
) -> tuple[TokenMap, TokenMap]:
    """Judged rows by the cached tokens and the head that the run began with, then by the tuned model.

    Args:
        run: a fine-tuning run.
        told: its report.
        store: where the cached tokens are.
        data_dir: where the images lie; None: where they were.

    Raises:
        CspipeError: no model, head or images; the message can be shown.
    """
    directory = next((place for place in (Path(told["model_dir"]), run / "model") if place.is_dir()), None)
    if directory is None:
        raise MissingDataError(f"the tuned model is no longer at {told['model_dir']}.")
    start = load_head(Path(told["head_run"]) / "heads" / f"{told['method']}-{told['split_seed']}.safetensors")
    card = start.card
    name, at_N = judged_places(store, card["evaluation"], int(card.get("dev_rows", 0)), MOST_ROWS)
    read = image_reader(store, name, recorded_dataset(store, data_dir))
    pictures = [read(int(at)) for at in at_N]
    there = np.array([picture is not None for picture in pictures], np.bool_)
    model = load_model(directory)
    if not there.any():
        raise MissingDataError(f"none of the {len(at_N)} images can be read where they were: name --data-dir.")
    cached_ND = store[name].embedding()[at_N[there]].astype(np.float32)
    label_N, names = store[name].label()[at_N[there]], told["class_names"]
    tuned_ND = model.tokens([np.asarray(image) for image in pictures if image is not None])
    return place_rows(start.head, cached_ND, label_N, names), place_rows(model.head, tuned_ND, label_N, names)
