"""A checkpoint is one safetensors file: weights, optimisers and the step, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cspipe.store.errors import StoreError

FILE, BEST = "checkpoint.safetensors", "best.safetensors"
"""The last state, from which a run goes on; the weights of the best epoch, where one is looked for."""


def save_checkpoint(
    run: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], facts: Mapping[str, Any]
) -> None:
    """Writes `run/checkpoint.safetensors`; the one before stays until the new one is whole and on disk.

    Args:
        run: the run's folder.
        model: whose state is kept.
        optimisers: theirs too.
        facts: JSON facts; `step` among them.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, optimiser in optimisers.items():
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{name}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(run / FILE, tensors, {name: json.dumps(value) for name, value in facts.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whole, on disk, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, dict(metadata))
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def save_weights(path: Path, model: nn.Module) -> None:
    """Writes a model's state alone."""
    write_tensors(path, model.state_dict(), {})


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts a state that `save_weights` wrote back into the model.

    Raises:
        StoreError: the file is damaged or gone.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoreError(f"{path} is damaged ({error}): remove the run folder and start again.") from error


def load_checkpoint(run: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Puts a checkpoint back into model and optimisers.

    Returns:
        The facts that were kept with it; none where the run has no checkpoint yet.

    Raises:
        StoreError: the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            facts = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            facts["step"] = int(facts["step"])
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
    return facts
