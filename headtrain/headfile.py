"""One trained head in a file: safetensors, with what it belongs to as JSON in its header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cspipe.headtrain.heads import Head
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.neighbourhood import Neighbourhood
from cspipe.headtrain.objective import critics_in_use
from cspipe.headtrain.power import PowerTransform
from cspipe.headtrain.projection import Projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import MismatchError, MissingDataError

FORMAT = 2
AROUND = "projection.around."
BEFORE_2 = {"style_term": "adversarial", "scale_floor": 0.0, "lambda_mix": 0.0, "views": 0, "norm": "batch"}
"""What heads of format 1 did besides."""

BEFORE_ADDED = {"power": 1.0, "beta2": 0.999}
"""What heads did before these were added to format 2."""


def save_head(path: Path, head: Head, labelled_row_id: NDArray[np.int64], card: Mapping[str, Any]) -> None:
    """Writes one head as safetensors, atomically.

    Args:
        path: the file.
        head: what to keep.
        labelled_row_id: the store's row ids of the labelled rows it was trained with.
        card: JSON facts that belong to it: method, store key, backbone, dataset, class names, split.
    """
    tensors = {f"stack.{name}": value.detach().cpu().contiguous() for name, value in head.stack.state_dict().items()}
    tensors |= {
        "projection.mean": head.projection.mean_D.cpu(),
        "projection.scale": head.projection.scale_D.cpu(),
    }
    if head.projection.basis_DP is not None:
        tensors["projection.basis"] = head.projection.basis_DP.cpu().contiguous()
    if head.projection.raised is not None:
        tensors["projection.offset"] = head.projection.raised.offset_D.cpu()
    if head.projection.around is not None:
        around = vars(head.projection.around.to("cpu"))
        tensors |= {f"{AROUND}{name}": value.contiguous() for name, value in around.items()}
    if head.prior_K is not None:
        tensors["prior"] = head.prior_K.cpu().contiguous()
    tensors["labelled_row_id"] = torch.from_numpy(np.ascontiguousarray(labelled_row_id))
    shape = {"classes": head.stack.classes, "width": head.stack.width}
    facts = {"format": FORMAT, "settings": asdict(head.settings), "shape": shape, **card}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={"cspipe": json.dumps(facts, allow_nan=False)})
    partial.replace(path)


@dataclass(frozen=True)
class SavedHead:
    """A head from a file with what was recorded beside it."""

    head: Head
    labelled_row_id: NDArray[np.int64]
    card: dict[str, Any]
    path: Path

    @property
    def given_labels(self) -> dict[int, int]:
        """Row id -> class number of the labels that were given beside the store."""
        return {int(row): int(label) for row, label in self.card.get("given_labels", {}).items()}


def load_head(path: Path, *, device: torch.device | str = "cpu") -> SavedHead:
    """Reads a head file.

    Raises:
        MissingDataError: there is no such file.
        MismatchError: the file is not a head of this program.
    """
    if not path.is_file():
        raise MissingDataError(f"no head at {path}. Train one with cspipe head, or name another run.")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["cspipe"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise MismatchError(f"{path} is not a head written by cspipe head ({error}).") from error
    if facts.get("format") not in (1, FORMAT):
        raise MismatchError(f"{path} has head format {facts.get('format')}; this version reads format 1 and {FORMAT}.")
    try:
        head = build_head(facts, tensors, device)
        return SavedHead(head, tensors["labelled_row_id"].numpy(), facts, path)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise MismatchError(
            f"{path} does not hold a whole head ({reason}). Train it again with cspipe head."
        ) from error


def build_head(facts: dict[str, Any], tensors: Mapping[str, Tensor], device: torch.device | str) -> Head:
    """A head from what its file says and holds."""
    told = BEFORE_ADDED | (BEFORE_2 if facts["format"] == 1 else {}) | facts["settings"]
    settings = HeadSettings(**told | {"prior_given": tuple(told["prior_given"])})
    stack = ContentStyle(
        width=facts["shape"]["width"], classes=facts["shape"]["classes"], style=settings.style,
        hidden=settings.hidden, norm=settings.norm, critics=critics_in_use(settings), seeds=[0],
    )  # fmt: skip
    weights = {name.removeprefix("stack."): t for name, t in tensors.items() if name.startswith("stack.")}
    stack.load_state_dict(weights)
    around = {name.removeprefix(AROUND): t for name, t in tensors.items() if name.startswith(AROUND)}
    projection = Projection(
        tensors["projection.mean"], tensors["projection.scale"], tensors.get("projection.basis"),
        Neighbourhood(**around) if around else None,
        PowerTransform(tensors["projection.offset"], settings.power) if "projection.offset" in tensors else None,
    )  # fmt: skip
    prior_K = tensors["prior"].to(device) if "prior" in tensors else None
    return Head(stack.to(device).eval(), projection.to(device), settings, prior_K)
