"""`cspipe export`: a model as a folder for others, with its own weights or as one ONNX network.

Legend: `B` batch, `H` and `W` height and width in pixels, `D` token width, `K` classes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cspipe.common import Common
from cspipe.config import Config
from cspipe.extract.embed import probe_image
from cspipe.extract.images import to_uint8
from cspipe.finetune.model_card import card_text
from cspipe.finetune.model_directory import (
    BACKBONE,
    CARD,
    CONFIG,
    HEAD,
    Model,
    load_model,
    read_config,
)  # fmt: skip
from cspipe.headtrain.runs import write_atomic, write_json
from cspipe.model_named import model_named
from cspipe.onnx_use import use_onnx
from cspipe.stages import calm
from cspipe.store.errors import MissingDataError, SettingError, StoreError
from cspipe.terminal import message, print_table

Document = dict[str, Any]
Kind = Literal["onnx", "safetensors"]
NETWORK = "model.onnx"
LARGEST_DIFFERENCE = 1e-3
"""Between probabilities in onnxruntime and in PyTorch; more is refused."""


class Pixels(nn.Module):
    """A model as one network: uint8 pixels `(B, 3, H, W)` to calibrated probabilities `(B, K)` in fp32."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone, self.stack = model.backbone.model, model.head.stack
        self.projection, self.temperature = model.head.projection, float(model.config["temperature"])
        self.register_buffer("mean_3", torch.tensor(model.backbone.mean).reshape(3, 1, 1))
        self.register_buffer("std_3", torch.tensor(model.backbone.std).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalises, embeds, projects, classifies."""
        batch_B3HW = (pixels.float() / 255 - self.mean_3) / self.std_3
        token_BD = self.backbone(batch_B3HW).float()
        logits_1BK, _ = self.stack.encode(self.projection(token_BD)[None])
        return (logits_1BK[0] / self.temperature).softmax(-1)


def export(
    common: Common, config: Config, model: Path, to: Path, *, kind: str, weights: Path | None, fresh: bool
) -> Document:
    """Writes a model into a folder of its own.

    Args:
        common: options of every command.
        config: where stores are, and the device.
        model: head run, fine-tuning run, model directory, or `latest`.
        to: folder to write; an empty or missing one.
        kind: `onnx`, one network from pixels to probabilities, or `safetensors`, the model directory.
        weights: file of the backbone's weights, where they are no longer where they were.
        fresh: replace what lies there, if it is a model.

    Returns:
        A JSON document: files with their bytes and, for ONNX, the largest difference from PyTorch.

    Raises:
        SettingError: an unknown format, or a folder that holds something else.
        MissingDataError: packages for ONNX are not installed.
    """
    if kind not in ("onnx", "safetensors"):
        raise SettingError(f"--format is onnx or safetensors; {kind!r} was given.")
    calm(common)
    check_target(to, fresh)
    say: Callable[[str], None] = (lambda text: None) if common.quiet else message
    folder = model_named(common, config, model, weights)
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        told = {} if kind == "safetensors" else write_network(load_model(folder, weights=weights), partial, say)
        copy_facts(folder, partial, onnx=kind == "onnx")
        if to.exists():
            shutil.rmtree(to)
        partial.replace(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = {path.name: path.stat().st_size for path in sorted(to.iterdir())}
    return {"model": str(folder), "to": str(to), "format": kind, "files": files, **told}


def check_target(to: Path, fresh: bool) -> None:
    """Refuses to write over anything that is not asked to be replaced.

    Raises:
        SettingError: the folder holds something.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not (fresh and (to / CONFIG).is_file()):
        raise SettingError(f"{to} is not empty: name a new folder with --to, or replace a model there with --fresh.")
    read_config(to)


def copy_facts(folder: Path, to: Path, *, onnx: bool) -> None:
    """Card, configuration and, without ONNX, all other files; no path of this machine goes along."""
    config = read_config(folder)
    config["weights"] = config["weights"] | {"path": None}
    write_json(to / CONFIG, config)
    write_atomic(to / CARD, card_text(config, use_onnx(config)) if onnx else card_text(config))
    for name in () if onnx else (HEAD, BACKBONE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


def write_network(model: Model, to: Path, say: Callable[[str], None]) -> Document:
    """Writes model.onnx with any number of images a batch, runs it and compares it with PyTorch.

    Raises:
        MissingDataError: onnx, onnxscript or onnxruntime is not installed.
        StoreError: the network does not give what PyTorch gives.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401 - torch's exporter needs it and would tell so in many lines
    except ImportError as error:
        raise MissingDataError(
            f"ONNX needs a package that is not installed ({error.name}): run pip install "
            "'content-style-pipeline[onnx]'."
        ) from error
    network, path = Pixels(model).eval(), to / NETWORK
    example = example_pixels(model, 2)
    say(f"exporting {model.config['backbone']}")
    with torch.no_grad():
        torch.onnx.export(
            network, (example,), path, dynamo=True, input_names=["pixels"], output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}}, external_data=False, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = max(difference(network, session, example_pixels(model, count)) for count in (1, 3, 8))
    if not worst <= LARGEST_DIFFERENCE:
        raise StoreError(f"the ONNX network differs from PyTorch by {worst:.2g} in probability: it was not kept.")
    return {"largest_difference": worst}


def example_pixels(model: Model, count: int) -> Tensor:
    """uint8 pixels `(count, 3, H, W)`: the probe image, turned."""
    turned = [probe_image().rotate(30 * number) for number in range(count)]
    return torch.from_numpy(np.stack([to_uint8(image, model.backbone.geometry) for image in turned]))


def difference(network: nn.Module, session: Any, pixels: Tensor) -> float:  # noqa: ANN401 - onnxruntime has no types
    """Largest absolute difference of the probabilities of a batch."""
    with torch.no_grad():
        ours: NDArray[np.float32] = network(pixels).numpy()
    (theirs,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    return float(np.abs(ours - theirs).max())


def print_export(document: Document) -> None:
    """Files, and how near ONNX is to PyTorch."""
    print_table(document["to"], ("file", "bytes"), list(document["files"].items()))
    if "largest_difference" in document:
        print(f"largest difference from PyTorch in onnxruntime: {document['largest_difference']:.2g} in probability")
