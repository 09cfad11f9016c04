"""The open_clip family of backbones: the image towers of CLIP, SigLIP and their kin, by open_clip's own classes.

The text tower is neither built nor read. Whether the activation is QuickGELU is decided by the weights' tag:
OpenAI's weights need it even under an architecture whose name does not say so.
"""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import open_clip
from open_clip.model import _build_vision_tower, resize_pos_embed
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from cspipe.extract import timm_models
from cspipe.extract.registry import OPEN_CLIP_FILES
from cspipe.extract.specs import BackboneSpec, LoadedNetwork, Preprocessing, check_patches
from cspipe.extract.tokens import blocks_wanted, sequence_token, sequence_widths
from cspipe.extract.transforms import split_transform
from cspipe.extract.weights import WeightsFile, differences, misfit, read_weights
from cspipe.store.errors import SettingError, unknown_name


def _config(spec: BackboneSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of the model, and what open_clip knows of the tag; ``options`` go over the former."""
    config: dict[str, Any] = deepcopy(open_clip.get_model_config(spec.architecture) or {})
    config |= dict(spec.options)
    if "vision_cfg" not in config:
        raise unknown_name("open_clip architecture", spec.architecture, open_clip.list_models())
    return config, dict(get_pretrained_cfg(spec.architecture, spec.tag) or {})


def build(spec: BackboneSpec, image_px: int) -> nn.Module:
    """The image tower without weights, for this side in pixels.

    Raises:
        UnknownNameError: open_clip has no such architecture.
    """
    config, tag = _config(spec)
    vision = dict(config["vision_cfg"])
    if "timm_model_name" not in vision:  # timm's towers are resized after their weights are in
        vision["image_size"] = image_px
    quick_gelu = bool(tag.get("quick_gelu") or config.get("quick_gelu"))
    tower: nn.Module = _build_vision_tower(config["embed_dim"], vision, quick_gelu)
    return tower


def preprocessing(spec: BackboneSpec, image_px: int) -> Preprocessing:
    """open_clip's own evaluation transform for these weights, at this side in pixels."""
    _, tag = _config(spec)
    config = PreprocessCfg(**(merge_preprocess_dict(PreprocessCfg(), tag) | {"size": image_px}))
    return split_transform(image_transform_v2(config, is_train=False).transforms, spec.name)


def _fill(tower: nn.Module, spec: BackboneSpec, file: WeightsFile) -> None:
    """Put the image tower's part of a file into the tower: its keys ``visual.*``, or all where none is so named."""
    state = read_weights(file.path)
    if any(key.startswith("visual.") for key in state):
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    else:
        state = {f"visual.{key}": value for key, value in state.items()}
    resize_pos_embed(state, SimpleNamespace(visual=tower))
    state = {key.removeprefix("visual."): value for key, value in state.items()}
    wrong = differences(state, tower.state_dict())
    if wrong:
        raise misfit(spec, file, wrong)
    tower.load_state_dict(state, strict=True)


def _clip_tokens(tower: VisionTransformer, pixels_B3HW: Tensor, tokens: tuple[str, ...]) -> dict[str, Tensor]:
    """Named tokens of open_clip's own transformer from one forward pass."""
    wanted = blocks_wanted(tokens)
    last = len(tower.transformer.resblocks)
    numbers = sorted({*wanted, last})
    told = tower.forward_intermediates(
        pixels_B3HW, [number - 1 for number in numbers], normalize_intermediates=True, output_fmt="NLC",
        output_extra_tokens=True,
    )  # fmt: skip
    prefix, patches = told["image_intermediates_prefix"], told["image_intermediates"]
    blocks = {number: prefix[place][:, 0] for place, number in enumerate(numbers)}
    own = {"projected": told["image_features"]}
    return {
        token: own[token] if token in own else sequence_token(token, prefix[-1], patches[-1], blocks=blocks)
        for token in tokens
    }


def _timm_tokens(tower: TimmModel, pixels_B3HW: Tensor, tokens: tuple[str, ...]) -> dict[str, Tensor]:
    """Named tokens of a tower that timm builds; the projection is open_clip's."""
    inner = tuple(dict.fromkeys("pooled" if token == "projected" else token for token in tokens))
    found = timm_models.read_tokens(tower.trunk, pixels_B3HW, inner)
    return {token: tower.head(found["pooled"]) if token == "projected" else found[token] for token in tokens}


def _forward_only(tower: nn.Module, pixels_B3HW: Tensor, tokens: tuple[str, ...]) -> dict[str, Tensor]:
    return {"projected": tower(pixels_B3HW)}


def reading_of(tower: nn.Module, embed_dim: int) -> tuple[Any, dict[str, int], str]:
    """How tokens are read from a tower, their widths, the default one."""
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None and tower.pool_type == "tok":
        depth, width = len(tower.transformer.resblocks), int(tower.ln_post.normalized_shape[0])
        widths = sequence_widths(width, depth, class_token=True) | {"projected": embed_dim}
        return _clip_tokens, widths, "cls"
    if isinstance(tower, TimmModel) and getattr(tower.trunk, "num_classes", 0) == 0:
        widths = timm_models.widths_of(tower.trunk)
        if len(tower.head) and "pooled" in widths:
            widths |= {"projected": embed_dim}
        return _timm_tokens, widths, "pooled" if "pooled" in widths else "cls"
    return _forward_only, {"projected": embed_dim}, "projected"


def load_open_clip(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    """An image tower with these weights.

    Args:
        spec: architecture and tag.
        file: weights of the whole model in open_clip's layout, the keys of the image tower under ``visual.``.
        image_px: side of the input, pixels.

    Raises:
        MismatchError: the weights are not this network's.
        SettingError: a side that the network cannot take.
    """
    tower: Any = build(spec, image_px)
    _fill(tower, spec, file)
    if isinstance(tower, TimmModel):
        check_patches(spec, getattr(getattr(tower.trunk, "patch_embed", None), "patch_size", 1), image_px)
        if image_px != tower.image_size[0]:
            tower.set_input_size(image_px)
    elif isinstance(tower, VisionTransformer):
        check_patches(spec, tower.patch_size, image_px)
    read, widths, default = reading_of(tower, _config(spec)[0]["embed_dim"])
    native = "projected" if "projected" in widths else default
    return LoadedNetwork(tower, read, widths, default, native, preprocessing(spec, image_px), image_px)


def open_clip_spec(pair: str) -> BackboneSpec:
    """The spec of ``ARCHITECTURE/TAG``, as open_clip lists them.

    Raises:
        SettingError: not a pair, or weights that lie in no hub repository.
        UnknownNameError: no such architecture, or no such training of it.
    """
    architecture, slash, tag = pair.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise unknown_name("open_clip architecture", architecture, open_clip.list_models())
    known = get_pretrained_cfg(architecture, tag)
    if not slash or not known:
        raise unknown_name(f"tag of {architecture}", tag, list_pretrained_tags_by_model(architecture))
    repo, _, file = (known.get("hf_hub") or "").rpartition("/")
    if not repo and not known.get("url"):
        raise SettingError(f"open_clip does not say where the weights of {pair} lie")
    return BackboneSpec(
        name=f"open_clip:{pair}",
        family="open_clip",
        architecture=architecture,
        tag=tag,
        image_px=int(config["vision_cfg"]["image_size"]),
        token="",
        licence="not told by open_clip: see the model's page",
        hub_repo=repo or None,
        hub_files=(file,) if file else OPEN_CLIP_FILES,
    )
