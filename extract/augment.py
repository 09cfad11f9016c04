"""Named augmentations for cached views: what may change in an image without changing its class.

A view is drawn from the image's hash and the view's number alone, so a resumed run, another number of workers or
views added later give the same pixels. Empty borders take the mean colour of the image's own border.

Legend: ``H`` and ``W`` height and width, pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cspipe.extract.images import Pixels
from cspipe.store.errors import SettingError, unknown_name

Draw = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
_BLUR = 0.008  # largest standard deviation, of the image's side


@dataclass(frozen=True)
class Augmentation:
    """One entry of the registry: what it does in words, and one draw of it on `(3, H, W)` uint8."""

    words: str
    draw: Draw


def border_colour(pixels_3HW: torch.Tensor) -> list[float]:
    """Mean of the outermost rows and columns, one value a channel."""
    rows_3 = pixels_3HW[:, [0, -1]].float().mean((1, 2))
    columns_3 = pixels_3HW[:, :, [0, -1]].float().mean((1, 2))
    return ((rows_3 + columns_3) / 2).round().tolist()


def affine(pixels_3HW: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Turned by up to 15 degrees, scaled by 0.85 to 1.15, shifted by up to 12 % and sheared by up to 8.5 degrees."""
    height, width = pixels_3HW.shape[-2:]
    shift_x, shift_y = random.uniform(-0.12, 0.12, 2) * (width, height)
    border_3 = torch.tensor(border_colour(pixels_3HW)).reshape(3, 1, 1)
    moved: torch.Tensor = F.affine(
        pixels_3HW.float() - border_3,
        angle=float(random.uniform(-15, 15)),
        translate=[float(shift_x), float(shift_y)],
        scale=float(random.uniform(0.85, 1.15)),
        shear=random.uniform(-8.5, 8.5, 2).tolist(),
        interpolation=InterpolationMode.BILINEAR,
    )
    return (moved + border_3).round().clamp(0, 255).to(torch.uint8)


def photometric(pixels_3HW: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation by 0.75 to 1.25, hue by up to 11 degrees, then a slight blur."""
    brightness, contrast, saturation = random.uniform(0.75, 1.25, 3).tolist()
    changed = F.adjust_contrast(F.adjust_brightness(pixels_3HW, brightness), contrast)
    changed = F.adjust_hue(F.adjust_saturation(changed, saturation), float(random.uniform(-0.03, 0.03)))
    side = min(pixels_3HW.shape[-2:])
    taps = 2 * min(int(np.ceil(3 * _BLUR * side)), side - 1) + 1
    blur = _BLUR * side * float(random.uniform(0.05, 1))
    blurred: torch.Tensor = F.gaussian_blur(changed, [taps, taps], [blur, blur])
    return blurred


def flips(pixels_3HW: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Mirrored left to right, top to bottom, or both, each as likely; never left as it is."""
    return pixels_3HW.flip(([-1], [-2], [-1, -2])[random.integers(3)])


def rotations(pixels_3HW: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Turned about the middle by any angle, each as likely."""
    border_3 = torch.tensor(border_colour(pixels_3HW)).reshape(3, 1, 1)
    angle = float(random.uniform(0, 360))
    turned: torch.Tensor = F.rotate(pixels_3HW.float() - border_3, angle, interpolation=InterpolationMode.BILINEAR)
    return (turned + border_3).round().clamp(0, 255).to(torch.uint8)


AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType(
    {
        "affine": Augmentation("turned by up to 15 degrees, scaled by 0.85 to 1.15, shifted by up to 12 %, "
                               "sheared by up to 8.5 degrees", affine),
        "photometric": Augmentation("brightness, contrast and saturation by 0.75 to 1.25, hue by up to 11 degrees, "
                                    "blurred by up to 0.8 % of the side", photometric),
        "flips": Augmentation("mirrored left to right, top to bottom or both", flips),
        "rotations": Augmentation("turned by any angle", rotations),
    }
)  # fmt: skip


def parts_of(name: str) -> list[Augmentation]:
    """The augmentations that a name stands for, ``affine+flips`` for one after the other.

    Raises:
        UnknownNameError: a part that is not known.
        SettingError: a part that is there twice.
    """
    parts = name.split("+")
    for part in parts:
        if part not in AUGMENTATIONS:
            raise unknown_name("augmentation", part, AUGMENTATIONS)
    if len(set(parts)) < len(parts):
        raise SettingError(f"--augment takes each augmentation once; got {name!r}: leave the second one out")
    return [AUGMENTATIONS[part] for part in parts]


def words_of(name: str) -> str:
    """What an augmentation does, in words that a store records."""
    return "; then ".join(part.words for part in parts_of(name))


def draw_view(name: str, pixels_3HW: Pixels, sha256: bytes, view: int) -> Pixels:
    """View number ``view`` (0 is the first) of an image, `(3, H, W)` uint8."""
    random = np.random.default_rng([*np.frombuffer(sha256, ">u4").tolist(), view])
    pixels = torch.from_numpy(np.ascontiguousarray(pixels_3HW))
    for part in parts_of(name):
        pixels = part.draw(pixels, random)
    return pixels.numpy()
