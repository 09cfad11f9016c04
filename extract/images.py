"""From the bytes of a file, or an array, to a normalised batch: the backbone's own preprocessing.

Legend: ``B`` batch, ``H`` and ``W`` height and width, pixels.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cspipe.store.errors import CspipeError

if TYPE_CHECKING:
    import torch

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class BadImageError(CspipeError, ValueError):
    """An image that cannot be decoded; the message is the reason alone."""


def _from_array(array: np.ndarray) -> Image.Image:
    """An array ``(H, W)`` or ``(H, W, 3)`` of uint8 as an image."""
    plane = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not plane or array.size == 0:
        raise BadImageError(f"an array of {array.dtype} {array.shape}, not of uint8 (H, W) or (H, W, 3)")
    return Image.fromarray(array)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode ``L`` (grey) or ``RGB``, transparency dropped, 16-bit grey scaled to 8 bits."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImageError("grey values of more than 16 bits")
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def decode(source: bytes | Path | np.ndarray) -> Image.Image:
    """One image, upright (EXIF), in mode ``RGB``, or ``L`` where it is grey.

    A grey image stays one plane: resizing is three times cheaper and gives the same pixels as resizing three
    equal planes; :func:`to_uint8` makes the three planes. Of several frames the first is taken.

    Args:
        source: the bytes of a file, its path, or an array ``(H, W)`` or ``(H, W, 3)`` of uint8.

    Raises:
        BadImageError: it cannot be decoded whole.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return _eight_bit(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly every kind of error on damaged files
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImageError(" ".join(reason.split()) or type(error).__name__) from error


def to_uint8(image: Image.Image, geometry: Callable[[Image.Image], Image.Image]) -> Pixels:
    """``(3, H, W)`` uint8 pixels after the backbone's own resize and crop; grey becomes three planes."""
    pixels = np.asarray(geometry(image))
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (3, *pixels.shape))
    return pixels.transpose(2, 0, 1)


def normalise(
    batch_B3HW: "torch.Tensor", mean: tuple[float, float, float], std: tuple[float, float, float]
) -> "torch.Tensor":
    """uint8 ``(B, 3, H, W)`` to float32 on the batch's device: ``(pixel / 255 - mean) / std``.

    The same operations in the same order as torchvision's ToTensor and Normalize, hence the same numbers.
    """
    import torch

    mean_3 = torch.tensor(mean, device=batch_B3HW.device).reshape(3, 1, 1)
    std_3 = torch.tensor(std, device=batch_B3HW.device).reshape(3, 1, 1)
    return batch_B3HW.to(torch.float32).div_(255).sub_(mean_3).div_(std_3)
