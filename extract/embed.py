"""The only forward pass of stage one: a batch of pixels to tokens.

Legend: ``B`` batch, ``D`` width of the token, ``H`` and ``W`` height and width, pixels.

Two backends agree to rounding, not to the bit: on a CPU a convolutional backbone runs channels-last with its
batch norms folded into the convolutions, which takes two thirds of the time and changes a token by 1e-7 in
cosine. Batches always have the same shape, short ones are filled up: a token's bits then do not depend on
which images share its batch.
"""

import contextlib
import copy
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cspipe.extract.images import normalise, to_uint8
from cspipe.store.errors import SettingError

if TYPE_CHECKING:
    from cspipe.extract.backbones import Backbone

MOST_AT_ONCE = 512
"""Images of a batch on a GPU, at most: more fill no GPU better."""


@dataclass(frozen=True)
class Lane:
    """One device with the model on it; on CUDA ``turn`` lets one forward pass run at a time."""

    backbone: "Backbone"
    model: nn.Module
    device: torch.device
    half: bool
    turn: AbstractContextManager[object]


@dataclass(frozen=True)
class Seat:
    """What one worker keeps: a batch of pixels ``(B, 3, H, W)`` uint8, and its own stream on CUDA."""

    pixels_B3HW: torch.Tensor
    stream: "torch.cuda.Stream | None"


def pick_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        SettingError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"--device {name} cannot be used here ({reason}): use --device cpu") from error
    return device


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy for evaluation whose batch norms are folded into the convolution before each.

    In the networks that ask for it (``BackboneSpec.convolutional``) a batch norm, with or without an
    activation, directly follows its convolution among the children of a module.
    """
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            if norm.running_mean is None or norm.running_var is None:
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            parent.register_module(name, getattr(norm, "act", None) or nn.Identity())
    return folded


def make_lane(backbone: "Backbone", device: torch.device, dtype: str, model: nn.Module | None = None) -> Lane:
    """The backbone as it runs on ``device``; autocast to fp16 only on CUDA and only for fp16 stores.

    Args:
        backbone: whose preprocessing is used.
        device: where it runs.
        dtype: of the store, ``"fp16"`` or ``"fp32"``.
        model: what runs in place of the backbone's own model, from normalised pixels to ``(B, any width)``.
    """
    model = backbone.model if model is None else model
    if backbone.spec.convolutional:
        model = fold_batch_norm(model).to(memory_format=torch.channels_last)
    cuda = device.type == "cuda"
    turn = threading.Lock() if cuda else contextlib.nullcontext()
    return Lane(backbone, model.to(device), device, half=cuda and dtype == "fp16", turn=turn)


def default_batch_size(lane: Lane) -> int:
    """Images of a batch, a power of two: what fits the caches of one core, or the memory of a GPU."""
    return largest_batch(lane) if lane.device.type == "cuda" else lane.backbone.spec.batch_size


def largest_batch(lane: Lane, most: int = MOST_AT_ONCE) -> int:
    """The largest batch that the device's memory holds, found by halving from ``most``, a power of two.

    Raises:
        SettingError: not even one image fits.
    """
    size = most
    while size:
        try:
            embed(lane, make_seat(lane, size))
            return size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
    raise SettingError(
        f"{lane.device} has no memory left for one image of {lane.backbone.image_px} px: use a smaller backbone or "
        "side, or --device cpu"
    )


def make_seat(lane: Lane, batch_size: int) -> Seat:
    """Room for one batch on the host, pinned where it goes to a GPU."""
    side, cuda = lane.backbone.image_px, lane.device.type == "cuda"
    pixels = torch.zeros((batch_size, side, side, 3), dtype=torch.uint8, pin_memory=cuda).permute(0, 3, 1, 2)
    return Seat(pixels, torch.cuda.Stream(lane.device) if cuda else None)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Forward passes on one thread each; the former number comes back at the end.

    Workers that each run whole batches on one thread do not wait for each other at every layer, and a
    token does not depend on how many there are. Each new thread has to ask for it again.
    """
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def probe_image() -> Image.Image:
    """A fixed image, 96 x 64, RGB: slopes and noise, so that every step of a preprocessing shows in its token."""
    rows, columns = np.mgrid[0:64, 0:96]
    slopes_HW3 = np.stack([rows * 4, columns * 2, (rows + columns) % 64 * 4], -1)
    noise_HW3 = np.random.default_rng(0).integers(-40, 41, slopes_HW3.shape)
    return Image.fromarray((slopes_HW3 + noise_HW3).clip(0, 255).astype(np.uint8))


def probe(lane: Lane) -> NDArray[np.float32]:
    """What the lane makes of :func:`probe_image`, `(width,)`: tells whether a backbone is still the same."""
    seat = make_seat(lane, 1)
    seat.pixels_B3HW.numpy()[0] = to_uint8(probe_image(), lane.backbone.geometry)
    with single_threaded():
        (token_D,) = embed(lane, seat)
    return np.asarray(token_D)


def embed(lane: Lane, seat: Seat) -> NDArray[np.float32]:
    """Tokens `(B, D)` float32 of the batch that lies in the seat."""
    stream: AbstractContextManager[object] = contextlib.nullcontext()
    if seat.stream is not None:
        stream = torch.cuda.stream(seat.stream)
    layout = torch.channels_last if lane.backbone.spec.convolutional else torch.contiguous_format
    with torch.inference_mode(), stream:
        batch = seat.pixels_B3HW.to(lane.device, non_blocking=True)
        batch = normalise(batch, lane.backbone.mean, lane.backbone.std).contiguous(memory_format=layout)
        with lane.turn, torch.autocast("cuda", torch.float16, enabled=lane.half):
            tokens_BD: NDArray[np.float32] = lane.model(batch).float().cpu().numpy()
    return tokens_BD
