"""The transformers family of backbones: any vision model of the hub or of a folder, by its own image processor.

Weights are read from safetensors alone. Code of a repository runs only where the caller allows it and names
the exact commit.

Legend: ``B`` batch, ``L`` length of a sequence, ``P`` class tokens and registers, ``D`` width of the network.
"""

import hashlib
import inspect
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cspipe.extract.specs import BackboneSpec, LoadedNetwork, Preprocessing, check_patches
from cspipe.extract.tokens import blocks_wanted, class_or_mean, sequence_token, sequence_widths
from cspipe.extract.transforms import triple
from cspipe.extract.weights import WeightsFile, file_sha256, hub_commit, shortened
from cspipe.store.errors import MismatchError, MissingDataError, SettingError

PATTERNS = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
CODE = ("*.py",)
COMMIT = re.compile(r"[0-9a-f]{40}")
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
OWN_TOKENS = {"pooled": "pooler_output", "summary": "summary"}
LAST_NORMS = ("layernorm", "norm", "post_layernorm", "post_layer_norm")


def hf_spec(name: str, *, trust_remote_code: bool = False) -> BackboneSpec:
    """The spec of a repository on the hub or of a folder; the rest is in its files."""
    return BackboneSpec(
        name=f"hf:{name}",
        family="hf",
        architecture=name,
        image_px=0,
        token="",
        licence="not told by the files: see the model's page",
        hub_repo=None if Path(name).expanduser().is_dir() else name,
        trust_remote_code=trust_remote_code,
    )


def check_trust(spec: BackboneSpec, revision: str | None) -> None:
    """Code of a repository may only run from a commit that the user names.

    Raises:
        SettingError: it is allowed, but not pinned.
    """
    if spec.trust_remote_code and spec.hub_repo is None:
        raise SettingError(f"--trust-remote-code is for repositories of the hub: the code in {spec.name} is not run")
    if spec.trust_remote_code and not COMMIT.fullmatch(revision or ""):
        raise SettingError(
            f"--trust-remote-code runs Python of huggingface.co/{spec.hub_repo}: name the commit that you have read, "
            "40 hexadecimal digits, with --revision"
        )


def _snapshot(spec: BackboneSpec, repo: str, revision: str | None) -> Path:
    """The repository's files in the hub's cache; without a connection, those that are there."""
    from huggingface_hub import snapshot_download

    patterns = [*PATTERNS, *(CODE if spec.trust_remote_code else ())]
    try:
        commit = hub_commit(repo, "config.json", revision)
        pinned = revision if spec.trust_remote_code else commit  # code runs from the named commit, whatever is told
        return Path(snapshot_download(repo, revision=pinned, allow_patterns=patterns))
    except Exception as error:  # the hub's client lets the errors of whatever transport it uses through
        try:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        except (OSError, ValueError):
            raise MissingDataError(
                f"{spec.name} is not on this machine and huggingface.co/{repo} does not give it ({shortened(error)}): "
                "check the connection and --revision, or download its files elsewhere and name their folder hf:FOLDER"
            ) from error


def find_folder(spec: BackboneSpec, path: Path | None, revision: str | None) -> WeightsFile:
    """The folder of a model; its hash is that of the configuration and of every file of weights.

    Raises:
        MissingDataError: no such folder, or it lacks a file.
        SettingError: settings that do not go together.
    """
    if path is not None:
        raise SettingError(f"--weights is not read for {spec.name}: name a folder with all its files as hf:FOLDER")
    check_trust(spec, revision)
    if spec.hub_repo is None:
        if revision is not None:
            raise SettingError(f"--revision is of weights on the hub; {spec.name} is a folder: leave it out")
        folder, commit, source = Path(spec.architecture).expanduser(), None, f"folder {Path(spec.architecture).name}"
    else:
        folder = _snapshot(spec, spec.hub_repo, revision or spec.revision)
        commit, source = folder.name, f"huggingface.co/{spec.hub_repo}"
    files = sorted(folder.glob("model*.safetensors"))
    missing = [name for name in PATTERNS[:2] if not (folder / name).is_file()]
    if missing := missing + ([] if files else ["model.safetensors"]):
        raise MissingDataError(
            f"{folder} holds no {' and no '.join(missing)}: {spec.name} needs config.json, preprocessor_config.json "
            "and model.safetensors (weights of another kind are not read)"
        )
    lines = [f"{file.name} {file_sha256(file)}" for file in (folder / "config.json", *files)]
    return WeightsFile(folder, hashlib.sha256("\n".join(lines).encode()).hexdigest(), source, commit)


def _squares(processor: Any) -> tuple[dict[str, int], dict[str, int]]:  # noqa: ANN401 - no common class
    """What a processor resizes to and what it crops, as plain mappings to pixels; empty where it does not."""
    told = processor.to_dict()
    size, crop = told.get("size") or {}, told.get("crop_size") or {}
    if not told.get("do_resize", True):
        size = {}
    if not told.get("do_center_crop"):
        crop = {}
    size, crop = ({"height": value, "width": value} if isinstance(value, int) else value for value in (size, crop))
    return {key: int(value) for key, value in size.items() if value}, {key: int(v) for key, v in crop.items() if v}


def native_side(processor: Any) -> int:  # noqa: ANN401
    """Side of the squares that a processor gives, pixels.

    Raises:
        SettingError: it gives other shapes.
    """
    size, crop = _squares(processor)
    sides = set((crop or size).values())
    if len(sides) != 1 or not (crop or "height" in size):
        raise SettingError(f"the image processor gives no squares (size {size}, crop {crop}), which a store needs")
    return sides.pop()


def _resized(processor: Any, image_px: int) -> dict[str, Any]:  # noqa: ANN401
    """Arguments that make a processor give squares of this side, in its own proportion of resize to crop."""
    size, crop = _squares(processor)
    scale = image_px / native_side(processor)
    if scale == 1:
        return {}
    given = {"size": {key: round(value * scale) for key, value in size.items()}} if size else {}
    return given | ({"crop_size": {"height": image_px, "width": image_px}} if crop else {})


def _geometry(image: Image.Image, *, processor: Any, arguments: dict[str, Any]) -> Image.Image:  # noqa: ANN401
    """A processor's resize and crop alone, 8-bit pixels in and out."""
    told = processor(
        images=image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np", **arguments
    )
    pixels_3HW = np.asarray(told["pixel_values"][0])
    return Image.fromarray(np.clip(np.rint(pixels_3HW), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def preprocessing(processor: Any, image_px: int) -> Preprocessing:  # noqa: ANN401
    """An image processor, taken apart into its geometry and its normalisation of pixels in [0, 1].

    Rescaling by another factor than 1/255, or none, becomes part of mean and deviation.
    """
    arguments = _resized(processor, image_px)
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = triple(processor.image_mean), triple(processor.image_std)
    scaled = [tuple(value / (255 * factor) for value in values) for values in (mean, std)]
    size, crop = _squares(processor)
    size, crop = arguments.get("size", size), arguments.get("crop_size", crop)
    told = processor.to_dict()
    words = "; ".join(
        (f"{type(processor).__name__} of transformers", f"resize {size}, filter {told.get('resample')}", f"crop {crop}")
    )
    geometry = partial(_geometry, processor=processor, arguments=arguments)
    return Preprocessing(geometry, words, triple(scaled[0]), triple(scaled[1]))


def _network(model: Any) -> Any:  # noqa: ANN401 - transformers' models have no common vision class
    """The vision part of a model of images and text, else the model."""
    return getattr(model, "vision_model", model)


def _run(network: Any, pixels_B3HW: Tensor, *, hidden: bool = False) -> Any:  # noqa: ANN401
    """One forward pass; position embeddings follow the side where the model can do that."""
    more: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
    if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
        more["interpolate_pos_encoding"] = True
    return network(pixel_values=pixels_B3HW, **more)


@dataclass(frozen=True)
class Reading:
    """How the sequence of a model is made up.

    Attributes:
        prefix: class tokens and registers before the patches.
        class_token: whether the first of them is one.
        norm: name of the last norm, or None where none is known.
        normed: ``last_hidden_state`` has gone through it already.
        depth: its blocks, 0 where their outputs cannot be told apart.
    """

    prefix: int
    class_token: bool
    norm: str | None
    normed: bool
    depth: int


def read_tokens(
    network: Any, pixels_B3HW: Tensor, tokens: tuple[str, ...], *, reading: Reading  # noqa: ANN401
) -> dict[str, Tensor]:  # fmt: skip
    """Named tokens of a transformers model from one forward pass."""
    wanted = blocks_wanted(tokens)
    told = _run(network, pixels_B3HW, hidden=bool(wanted))
    norm = network.get_submodule(reading.norm) if reading.norm else nn.Identity()
    last = told.last_hidden_state
    last = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last if reading.normed else norm(last)
    blocks = {}
    for number in wanted:  # the last of the hidden states is normed in some models and not in others
        sequence = last if number == reading.depth else norm(told.hidden_states[number])
        first = sequence[:, : reading.prefix] if reading.class_token else None
        blocks[number] = class_or_mean(first, sequence[:, reading.prefix :])
    own = {name: value.flatten(1) for name, value in _own(told).items()}
    return {
        token: own[token] if token in own
        else sequence_token(token, last[:, : reading.prefix], last[:, reading.prefix :], blocks=blocks)
        for token in tokens
    }  # fmt: skip


def _own(told: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The vectors that a model itself calls its output, by the names of tokens."""
    found = {name: getattr(told, key, None) for name, key in OWN_TOKENS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _try_out(network: Any, image_px: int) -> tuple[Any, Reading]:  # noqa: ANN401
    """What one grey image gives, and how the sequence is made up."""
    name = next((name for name in LAST_NORMS if isinstance(getattr(network, name, None), nn.LayerNorm)), None)
    seen: list[int] = []
    hooks = [getattr(network, name).register_forward_hook(lambda m, i, out: seen.append(out.ndim))] if name else []
    try:
        with torch.inference_mode():
            told = _run(network, torch.zeros(1, 3, image_px, image_px), hidden=True)
    finally:
        for hook in hooks:
            hook.remove()
    last, between = told.last_hidden_state, getattr(told, "hidden_states", None) or ()
    names = {key.rpartition(".")[2] for key, _ in network.named_parameters()}
    class_token = last.ndim == 3 and not names.isdisjoint(CLASS_TOKENS)
    registers = int(getattr(network.config, "num_register_tokens", 0) or 0) if class_token else 0
    even = name is not None and last.ndim == 3 and all(value.shape == last.shape for value in between)
    depth = max(len(between) - 1, 0) if even else 0
    extra = registers + ("distillation_token" in names)
    return told, Reading(class_token + extra, class_token, name, name is None or 3 in seen, depth)


def _widths(told: Any, reading: Reading) -> dict[str, int]:  # noqa: ANN401
    """Tokens of a model and their widths."""
    widths = {name: int(value.flatten(1).shape[1]) for name, value in _own(told).items()}
    last = told.last_hidden_state
    if "summary" in widths:  # its sequence mixes class tokens, registers and patches in a way that it does not tell
        return widths
    if last.ndim == 3:
        return widths | sequence_widths(last.shape[-1], reading.depth, class_token=reading.class_token)
    return widths | {"mean-patch": int(last.shape[1])}


def load_hf(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    """A transformers vision model from a folder.

    Args:
        spec: which one.
        file: its folder.
        image_px: side of the input, pixels; 0 for the image processor's own.

    Raises:
        MismatchError: transformers cannot build it from the folder.
    """
    from transformers import AutoImageProcessor, AutoModel

    code = {"code_revision": file.revision} if spec.trust_remote_code else {}
    trust: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code, "local_files_only": True} | code
    try:
        processor = AutoImageProcessor.from_pretrained(file.path, **trust)  # type: ignore[no-untyped-call]
        model, info = AutoModel.from_pretrained(file.path, use_safetensors=True, output_loading_info=True, **trust)
    except Exception as error:  # whatever the model's own code raises on a folder that does not fit it
        raise MismatchError(f"transformers cannot build {spec.name} from {file.path} ({shortened(error)})") from error
    side, network = image_px or native_side(processor), _network(model)
    patch = getattr(network.config, "patch_size", 1)
    check_patches(spec, patch if isinstance(patch, int) else 1, side)
    if missing := sorted(info["missing_keys"]):
        raise MismatchError(f"{file.path} lacks weights of {spec.name}: missing {', '.join(missing[:4])}")
    try:
        told, reading = _try_out(network.float().eval(), side)
    except Exception as error:  # a side that the model cannot take, or a model that takes no images
        raise SettingError(f"{spec.name} cannot take images of {side} px ({shortened(error)})") from error
    widths, read = _widths(told, reading), partial(read_tokens, reading=reading)
    default = next(token for token in ("summary", "cls", "pooled", "mean-patch") if token in widths)
    return LoadedNetwork(network, read, widths, default, None, preprocessing(processor, side), side)
