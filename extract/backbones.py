"""From the name of a backbone to a network that is ready to run, with its own preprocessing and its tokens.

Legend: ``B`` batch, ``D`` width of the token.

The preprocessing is always the library's own: the geometry is taken out of the transform that the library
builds for the model, and only its last two steps (to tensor, mean and deviation) are done on the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from cspipe.extract.registry import BACKBONES
from cspipe.extract.specs import BackboneSpec, LoadedNetwork, Preprocessing, Triple
from cspipe.extract.weights import WeightsFile, find_weights
from cspipe.store.errors import SettingError, unknown_name

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["BACKBONES", "Backbone", "BackboneSpec", "load_backbone", "load_tokens", "resolve_spec"]

PREFIXES = ("timm:", "open_clip:", "hf:")


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


def _timm(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    from cspipe.extract.timm_models import load_timm

    return load_timm(spec, file, image_px)


def _open_clip(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    from cspipe.extract.open_clip_models import load_open_clip

    return load_open_clip(spec, file, image_px)


def _radio(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    from cspipe.extract.radio import load_radio

    return load_radio(spec, file, image_px)


def _hf(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    from cspipe.extract.hf_models import load_hf

    return load_hf(spec, file, image_px)


def _drawn(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    from cspipe.extract.drawn import load_drawn

    return load_drawn(spec, file, image_px)


FAMILIES: Mapping[str, Callable[[BackboneSpec, WeightsFile, int], LoadedNetwork]] = MappingProxyType(
    {"timm": _timm, "open_clip": _open_clip, "radio": _radio, "hf": _hf, "drawn": _drawn}
)


def _words(pre: Preprocessing) -> str:
    """The whole way from a decoded image to the network's input, in words."""
    mean, std = (" ".join(f"{value:.6f}" for value in values) for values in (pre.mean, pre.std))
    return f"upright by EXIF; RGB; {pre.words}; pixel / 255; minus {mean}; over {std}"


def resolve_spec(backbone: str | BackboneSpec, *, trust_remote_code: bool = False) -> BackboneSpec:
    """The spec of a name; a spec is handed through.

    Args:
        backbone: a name in ``BACKBONES``, ``timm:NAME``, ``open_clip:ARCHITECTURE/TAG``, ``hf:NAME`` (a repository
            of the hub or a folder), or a spec.
        trust_remote_code: a repository's own Python may run (``hf:NAME`` alone, with a pinned revision).

    Raises:
        UnknownNameError: there is no backbone of this name.
        SettingError: remote code is allowed for a backbone that has none.
    """
    name = backbone.name if isinstance(backbone, BackboneSpec) else backbone
    if trust_remote_code and not name.startswith("hf:"):
        raise SettingError(f"--trust-remote-code is for hf:NAME; {name} needs no code of others: leave it out")
    if isinstance(backbone, BackboneSpec):
        return replace(backbone, trust_remote_code=trust_remote_code) if trust_remote_code else backbone
    prefix, _, rest = backbone.partition(":")
    if prefix == "timm" and rest:
        from cspipe.extract.timm_models import timm_spec

        return timm_spec(rest)
    if prefix == "open_clip" and rest:
        from cspipe.extract.open_clip_models import open_clip_spec

        return open_clip_spec(rest)
    if prefix == "hf" and rest:
        from cspipe.extract.hf_models import hf_spec

        return hf_spec(rest, trust_remote_code=trust_remote_code)
    if backbone not in BACKBONES:
        raise unknown_name("backbone", backbone, [*BACKBONES, "timm:NAME", "open_clip:ARCHITECTURE/TAG", "hf:NAME"])
    return BACKBONES[backbone]


def find_files(spec: BackboneSpec, weights: Path | None, revision: str | None) -> WeightsFile:
    """The files of a backbone's weights on this machine, brought here from the hub where they are not.

    Raises:
        MissingDataError: there are none, or the hub cannot be reached.
        SettingError: settings that do not go together.
    """
    if spec.family == "hf":
        from cspipe.extract.hf_models import find_folder

        return find_folder(spec, weights, revision)
    if spec.family == "drawn":
        from cspipe.extract.drawn import find_drawn

        return find_drawn(spec, weights, revision)
    return find_weights(spec, weights, revision)


def _check_tokens(spec: BackboneSpec, tokens: Sequence[str], known: Sequence[str], depth: int) -> None:
    """Refuse tokens that the network does not have, naming those that it has."""
    for token in tokens:
        number = token.removeprefix("block-")
        block = token.startswith("block-") and number.isdecimal() and 1 <= int(number) <= depth
        if token not in known and not block:
            raise unknown_name(
                f"token of {spec.name}", token, [*known, *(["block-1", f"block-{depth}"] if depth else [])]
            )


def load_tokens(
    name: str | BackboneSpec,
    *,
    tokens: Sequence[str | None] = (None,),
    weights: Path | None = None,
    revision: str | None = None,
    image_px: int | None = None,
    device: str = "cpu",
) -> "tuple[torch.nn.Module, tuple[Backbone, ...]]":
    """Build a backbone once for several of its tokens, all from one forward pass.

    Args:
        name: as in :func:`load_backbone`.
        tokens: which vectors; None is the backbone's own.
        weights: as in :func:`load_backbone`; so are ``revision``, ``image_px`` and ``device``.

    Returns:
        A module from normalised ``(B, 3, H, W)`` to a dict of ``(B, width)``, one for each token, and a backbone
        for each token in the same order; their models share the module's network.

    Raises:
        CspipeError: as :func:`load_backbone`.
    """
    spec = resolve_spec(name)
    side = spec.image_px if image_px is None else image_px
    if side or image_px is not None:
        _check_side(spec, side)
    if spec.tokens:
        _check_tokens(spec, [token for token in tokens if token], spec.tokens, spec.depth)
    file = find_files(spec, weights, revision)
    loaded = FAMILIES[spec.family](spec, file, side)
    loaded.network.float().eval().to(device)
    return _with_tokens(spec, file, loaded, [token or spec.token or loaded.default for token in tokens])


def _with_tokens(
    spec: BackboneSpec, file: WeightsFile, loaded: LoadedNetwork, tokens: Sequence[str]
) -> "tuple[torch.nn.Module, tuple[Backbone, ...]]":
    """A loaded network as a reader of these tokens, and as a backbone for each."""
    from cspipe.extract.tokens import OneToken, TokenReader, block_number

    plain = [token for token in loaded.widths if block_number(token) is None]
    _check_tokens(spec, tokens, plain, len(loaded.widths) - len(plain))
    own = {token: OneToken(loaded.network, loaded.read, token).eval() for token in tokens if token != loaded.native}
    backbones = tuple(_backbone(spec, file, loaded, token, own.get(token, loaded.network)) for token in tokens)
    return TokenReader(loaded.network, loaded.read, tuple(dict.fromkeys(tokens))).eval(), backbones


def _backbone(
    spec: BackboneSpec, file: WeightsFile, loaded: LoadedNetwork, token: str, model: "torch.nn.Module"
) -> Backbone:
    """One token of a loaded network, with all that is recorded of it."""
    pre = loaded.preprocessing
    return Backbone(
        name=spec.name,
        spec=spec,
        model=model,
        geometry=pre.geometry,
        mean=pre.mean,
        std=pre.std,
        width=loaded.widths[token],
        image_px=loaded.image_px,
        token=token,
        weights_sha256=file.sha256,
        weights_source=file.source,
        revision=file.revision,
        licence=spec.licence,
        transform_words=_words(pre),
    )


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
        name: a name as :func:`resolve_spec` takes it, or a spec of one's own.
        weights: file to read (.safetensors, or .pth, .pth.tar, .pt, .bin without code in it) in place of the hub.
        revision: branch, tag or commit on the hub.
        image_px: side of the square input, pixels; None for the backbone's own.
        token: which vector, see :mod:`cspipe.extract.tokens`; None for the backbone's own.
        device: where the model goes.

    Returns:
        The backbone, the SHA-256 of its weights file and its preprocessing.

    Raises:
        UnknownNameError: unknown backbone or token.
        SettingError: a side that the network cannot take.
        MissingDataError: no such file, or the hub cannot be reached.
        MismatchError: the weights are not this backbone's.
    """
    _, (backbone,) = load_tokens(
        name, tokens=(token,), weights=weights, revision=revision, image_px=image_px, device=device
    )
    return backbone
