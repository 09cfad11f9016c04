"""A checkpoint is one safetensors file: weights, optimisers and the step, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cspipe.store.errors import StoreError

FILE = "checkpoint.safetensors"


def save_checkpoint(run: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], step: int) -> None:
    """Writes `run/checkpoint.safetensors`; the one before stays until the new one is whole and on disk."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, optimiser in optimisers.items():
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{name}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    partial = run / f".{FILE}.partial"
    save_file(tensors, partial, metadata={"step": json.dumps(step)})
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(run / FILE)


def load_checkpoint(run: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]) -> int:
    """Puts a checkpoint back into model and optimisers.

    Returns:
        Steps done; 0 where the run has no checkpoint yet.

    Raises:
        StoreError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = int(json.loads((file.metadata() or {})["step"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): remove the run folder and start again.") from error
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser.{name}."):
                number, field = key.removeprefix(f"optimiser.{name}.").split(".", 1)
                state.setdefault(int(number), {})[field] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step
