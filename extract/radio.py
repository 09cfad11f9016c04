"""The RADIO family of backbones: NVIDIA's published weights in timm's transformer, without NVIDIA's code.

RADIO (arXiv 2312.06709, 2412.07679) puts a class token for each teacher and some registers before the patches,
has no last norm, and keeps position embeddings on a grid for 2048 px that it resamples to the image. Its own
model takes pixels in [0, 1] and normalises inside; here that is left to the preprocessing, so it happens once.

Legend: ``P`` class tokens and registers, ``N`` patches, ``D`` width of the network, ``G`` side of a grid.
"""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cspipe.extract import timm_models
from cspipe.extract.specs import BackboneSpec, LoadedNetwork
from cspipe.extract.tokens import blocks_wanted, class_or_mean, sequence_token, sequence_widths
from cspipe.extract.transforms import triple
from cspipe.extract.weights import StateDict, WeightsFile, differences, in_fp32, misfit, read_weights, unreadable
from cspipe.store.errors import MismatchError

# RADIO's .pth.tar checkpoints keep their training options beside the tensors, in this class and no other
SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
CONDITIONER = "input_conditioner."
PREFIXES = ("radio_model.model.", "base_model.")  # the hub's safetensors, the checkpoints


@dataclass(frozen=True)
class RadioWeights:
    """What a published file holds.

    Attributes:
        state: tensors of the transformer, under NVIDIA's names without their prefix.
        summary: numbers of the class tokens that make up the summary, or None where the file does not tell.
        norm: mean and deviation `(3,)` of pixels in [0, 1], or None.
    """

    state: StateDict
    summary: tuple[int, ...] | None
    norm: tuple[Tensor, Tensor] | None


def _checkpoint(path: Path) -> tuple[dict[str, Any], Any]:
    """Tensors and training options of a .pth.tar, read without running code.

    Raises:
        MismatchError: it cannot be read, or holds other classes than the known one.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or a class that is not on the list
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise MismatchError(f"{path} does not hold a checkpoint: give other weights with --weights FILE")
    return content.get("state_dict_ema") or content.get("state_dict") or content, content.get("args")


def _summary_of(options: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - training options of a checkpoint
    """Numbers of the class tokens whose teacher counts for the summary, one for each name."""
    teachers = getattr(options, "teachers", None)
    if teachers is None:
        return None
    if not getattr(options, "cls_token_per_teacher", True):
        return (0,)
    first: dict[str, int] = {}
    for number, teacher in enumerate(teachers):
        if teacher.get("use_summary", True):
            first.setdefault(teacher["name"], number)
    return tuple(sorted(first.values()))


def read_radio(path: Path) -> RadioWeights:
    """A published file: the hub's safetensors, or a checkpoint.

    Raises:
        MismatchError: it cannot be read, or keeps its weights in the factored form of training.
    """
    options = None
    if path.name.endswith(".safetensors"):
        state = read_weights(path)
    else:
        tensors, options = _checkpoint(path)
        state = in_fp32(path, {key.removeprefix("module."): value for key, value in tensors.items()})
    if any(".parametrizations." in key for key in state):
        raise MismatchError(
            f"{path} keeps its weights in the factored form of training: give model.safetensors of the model's "
            "own repository on huggingface.co/nvidia with --weights FILE"
        )
    indices = state.get("radio_model.summary_idxs")
    summary = _summary_of(options) if indices is None else tuple(int(number) for number in indices)
    mean, std = (
        next((value.flatten() for key, value in state.items() if key.endswith(f"{CONDITIONER}{name}")), None)
        for name in ("norm_mean", "norm_std")
    )
    prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)), "")
    kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return RadioWeights(kept, summary, None if mean is None or std is None else (mean, std))


def resample(grid_1GGD: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Position embeddings `(1, side x side, D)` as RADIO resamples them: bilinear, without antialias."""
    grid_1DGG = grid_1GGD.permute(0, 3, 1, 2)
    if grid_1DGG.shape[-1] != side:
        grid_1DGG = interpolate(grid_1DGG, size=(side, side), mode="bilinear", align_corners=align_corners)
    return grid_1DGG.flatten(2).transpose(1, 2)


def to_timm(state: StateDict, side: int, *, align_corners: bool) -> StateDict:
    """NVIDIA's tensors under timm's names; a file under timm's names keeps them, its grid is resampled.

    The linear projection of flattened patches (channel, row, column) becomes a convolution with bias 0; the
    first class token becomes timm's class token, the others and the registers timm's registers.

    Args:
        state: tensors without a prefix.
        side: of the patch grid, patches.
        align_corners: of the resampling.
    """
    out: StateDict = {}
    for key, value in state.items():
        name = key.removeprefix("patch_generator.")
        if name == "embedder.weight" and value.ndim == 2:
            patch = math.isqrt(value.shape[1] // 3)
            out["patch_embed.proj.weight"] = value.reshape(len(value), 3, patch, patch)
            out.setdefault("patch_embed.proj.bias", torch.zeros(len(value)))
        elif name == "embedder.bias":
            out["patch_embed.proj.bias"] = value
        elif name == "pos_embed":
            old = math.isqrt(value.shape[1])
            grid = value.reshape(1, old, old, -1) if old * old == value.shape[1] else None
            out["pos_embed"] = value if grid is None else resample(grid, side, align_corners=align_corners)
        elif name == "cls_token.token":
            out["cls_token"], out["reg_token"] = value[None, :1], value[None, 1:]
        else:
            out[re.sub(r"\.grandma$", ".gamma", key)] = value
    return out


def read_tokens(
    network: Any, pixels_B3HW: Tensor, tokens: tuple[str, ...], *, summary: tuple[int, ...]  # noqa: ANN401
) -> dict[str, Tensor]:  # fmt: skip
    """Named tokens of a RADIO network from one forward pass."""
    wanted = blocks_wanted(tokens)
    last, between = network.forward_intermediates(
        pixels_B3HW, [number - 1 for number in wanted], return_prefix_tokens=True, norm=True, output_fmt="NLC"
    ) if wanted else (network.forward_features(pixels_B3HW), [])  # fmt: skip
    blocks = {n: class_or_mean(prefix, patches) for n, (patches, prefix) in zip(wanted, between, strict=True)}
    first = network.num_prefix_tokens
    return {token: sequence_token(token, last[:, :first], last[:, first:], summary, blocks) for token in tokens}


def _as_the_file_has_it(spec: BackboneSpec, state: StateDict) -> BackboneSpec:
    """The spec with as many registers, and layer scale or none, as the weights have."""
    tokens = state.get("patch_generator.cls_token.token")
    registers = state.get("reg_token")
    options = dict(spec.options)
    if tokens is not None:
        options["reg_tokens"] = len(tokens) - 1
    elif registers is not None:
        options["reg_tokens"] = registers.shape[1]
    scaled = any(key.startswith("blocks.0.ls1.") for key in state)
    return replace(spec, options=options | {"init_values": 1e-5 if scaled else 0.0})


def load_radio(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    """A RADIO network with these weights.

    Args:
        spec: timm's name of a transformer of the same shape; registers and layer scale follow the weights.
        file: the hub's safetensors, a checkpoint, or weights under timm's names.
        image_px: side of the input, pixels.

    Raises:
        MismatchError: the weights are not this network's.
    """
    weights = read_radio(file.path)
    network: Any = timm_models.build(_as_the_file_has_it(spec, weights.state), image_px)
    state = to_timm(weights.state, network.patch_embed.grid_size[0], align_corners=spec.align_corners)
    wrong = differences(state, network.state_dict())
    summary = weights.summary or spec.summary
    if not wrong and max(summary) >= network.num_prefix_tokens:
        wrong = [f"a summary of class tokens {summary}, but {network.num_prefix_tokens} tokens before the patches"]
    if wrong:
        raise misfit(spec, file, wrong)
    network.load_state_dict(state, strict=True)
    widths = sequence_widths(network.num_features, len(network.blocks), class_token=True, summary=len(summary))
    preprocessing = timm_models.timm_preprocessing(spec, network, image_px)
    if weights.norm is not None:
        mean, std = (triple(values.tolist()) for values in weights.norm)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    read = partial(read_tokens, summary=summary)
    return LoadedNetwork(network, read, widths, "summary", "cls", preprocessing, image_px)


def build(spec: BackboneSpec, image_px: int) -> nn.Module:
    """The network without weights, for this side in pixels."""
    return timm_models.build(spec, image_px)
