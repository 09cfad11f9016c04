"""Stripes over digits, drawn the way the published images were drawn.

The striped sets of arXiv 2410.02069 (github.com/MariiaDrozdova/MNIST_variants) carry one geometry an image, width,
angle and spacing, the same for both colours. How they were drawn is not published; the rule here was found from the
published example (row 15 of its training split: width 3.0, angle -41.45 degrees, spacing 9.0) and gives it pixel
for pixel. From what ranges the geometries were drawn is not published either: the ranges here are ours, so these
sets are re-creations, and no image is identical to a published one.
"""

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

COLOURS = MappingProxyType({"white": (255, 255, 255), "yellow": (255, 165, 79)})
WIDTHS = (2, 4)
SPACINGS = (7, 11)
ANGLES = (-45.0, 45.0)
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Stripes:
    """Geometry of one image: width and spacing (from stripe to stripe) in pixels, angle in degrees."""

    width: float
    angle: float
    spacing: float


def draw_stripes(seed: int, split: str, image: int) -> Stripes:
    """The geometry of one image, from (seed, split, image number) alone: the same for every colour."""
    generator = np.random.default_rng([seed, _SPLITS.index(split), image])
    width, spacing = (generator.integers(*ends, endpoint=True) for ends in (WIDTHS, SPACINGS))
    return Stripes(float(width), float(generator.uniform(*ANGLES)), float(spacing))


def stripes_mask(height: int, width: int, stripes: Stripes) -> NDArray[np.bool_]:
    """Which pixels stripes cover, `(height, width)`.

    Lines of Pillow, ``stripes.width`` wide, through points that lie ``stripes.spacing`` apart on a line through
    the middle of the image; that line and the first point are fixed by the image's diagonal ``d``, rounded
    down: points from ``-d`` on, lines of ``d`` to either side, ends cut to whole pixels. At 0 degrees stripes
    are upright, at a negative angle they lean to the left. Pillow covers every pixel that a slanted line
    touches with more than its edge, so a stripe of width 3 is about 3.5 pixels across where it is slanted.
    """
    turn = math.radians(stripes.angle)
    across, along = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    diagonal = int(math.hypot(height, width))
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    for offset in np.arange(-diagonal, diagonal + stripes.spacing, stripes.spacing).tolist():
        x, y = width / 2 + offset * across[0], height / 2 + offset * across[1]
        ends = [(int(x + side * along[0]), int(y + side * along[1])) for side in (-diagonal, diagonal)]
        pen.line(ends, fill=255, width=round(stripes.width))
    covered: NDArray[np.bool_] = np.asarray(mask) > 0
    return covered


@dataclass(frozen=True)
class Striped:
    """Digits `(N, H, W)` of one split under stripes, painted when asked for."""

    pixels: NDArray[np.uint8]
    split: str
    colour: tuple[int, int, int]
    seed: int = 0

    def image(self, number: int) -> NDArray[np.uint8]:
        """Image ``number``, `(H, W, 3)`: stripes overwrite the digit."""
        digit, stripes = self.pixels[number], draw_stripes(self.seed, self.split, number)
        painted = np.repeat(digit[:, :, None], 3, axis=2)
        height, width = digit.shape
        painted[stripes_mask(height, width, stripes)] = self.colour
        return painted
