"""The drawn family of backbones: small networks whose weights are drawn from a seed, to be trained from scratch.

No file holds the weights: the seed is part of the program. Their hash is that of the drawn numbers, so a store knows
them as it knows any other weights. They are uniform draws of torch's generator for CPUs, scaled without any function
that processors compute differently, so that machines with one version of torch agree to the bit.

Legend: ``B`` batch, ``D`` width of the token.
"""

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import transforms

from cspipe.extract.specs import BackboneSpec, LoadedNetwork, Preprocessing
from cspipe.extract.transforms import split_transform
from cspipe.extract.weights import StateDict, WeightsFile, differences, find_weights, misfit, read_weights
from cspipe.store.errors import SettingError

SEED = 0
CHANNELS = (16, 32, 64)
MAP_PX = 4
"""Side of the last map, which is flattened; images of more than 28 to 32 px are averaged down to it."""


class ConvSmall(nn.Module):
    """Three strided convolutions and a linear layer, normalised `(B, 3, H, W)` -> token `(B, D)`.

    Each convolution is followed by a group norm of one group and a ReLU: no row's token depends on the rows beside it,
    so there are no statistics that would have to be frozen while it learns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        wide, layers = 3, []
        for number, channels in enumerate(CHANNELS):
            side = 5 if number == 0 else 3
            layers.append(nn.Sequential(
                nn.Conv2d(wide, channels, side, stride=2, padding=side // 2), nn.GroupNorm(1, channels), nn.ReLU()
            ))  # fmt: skip
            wide = channels
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(MAP_PX)
        self.final = nn.Linear(wide * MAP_PX**2, width)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The token, never negative."""
        token: Tensor = self.final(self.pool(self.blocks(pixels_B3HW)).flatten(1)).relu()
        return token

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, None]]]:
        """timm's way to tell blocks apart: the first convolution is the stem, the linear layer belongs to the end."""
        return {"stem": r"^blocks\.0\.", "blocks": [(r"^blocks\.(\d+)\.", None)]}


def draw_weights(network: nn.Module, seed: int) -> StateDict:
    """Uniform weights of variance 2 / inputs (He et al. 2015, arXiv 1502.01852); biases 0, scales of norms 1."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            bound = math.sqrt(6 / tensor[0].numel())
            drawn[name] = (torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound
        else:
            drawn[name] = torch.full(tensor.shape, 1.0 if name.endswith(".1.weight") else 0.0)
    return drawn


def state_sha256(state: StateDict) -> str:
    """SHA-256 of named tensors: names, shapes and numbers in order, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def build(spec: BackboneSpec, image_px: int) -> nn.Module:
    """The network before its weights; it is the same for every side `image_px`, pixels."""
    return ConvSmall(spec.width)


def find_drawn(spec: BackboneSpec, path: Path | None, revision: str | None) -> WeightsFile:
    """The drawn weights, for which this module stands as the file they come from; or a file of trained ones.

    Raises:
        SettingError: a revision, or a kind of file that is not read.
        MissingDataError: there is no such file.
    """
    if path is not None:
        return find_weights(spec, path, revision)
    if revision is not None:
        raise SettingError(f"the weights of {spec.name} are drawn from a seed and have no revision: leave it out")
    state = draw_weights(build(spec, spec.image_px), SEED)
    return WeightsFile(Path(__file__), state_sha256(state), f"drawn from seed {SEED}", None)


def load_drawn(spec: BackboneSpec, file: WeightsFile, image_px: int) -> LoadedNetwork:
    """The network with drawn weights, or with trained ones of a file.

    Args:
        spec: which network.
        file: its weights.
        image_px: side of the input, pixels.

    Raises:
        MismatchError: the file's weights are not this network's.
    """
    network = build(spec, image_px)
    drawn = file.path == Path(__file__)
    state = draw_weights(network, SEED) if drawn else read_weights(file.path)
    wrong = differences(state, network.state_dict())
    if wrong:
        raise misfit(spec, file, wrong)
    network.load_state_dict(state)
    return LoadedNetwork(
        network, read_tokens, {"pooled": spec.width}, "pooled", "pooled", preprocessing(spec, image_px), image_px
    )


def read_tokens(network: nn.Module, pixels_B3HW: Tensor, tokens: tuple[str, ...]) -> dict[str, Tensor]:
    """The only token there is."""
    return {"pooled": network(pixels_B3HW)}


def preprocessing(spec: BackboneSpec, image_px: int) -> Preprocessing:
    """Shorter side to `image_px`, the centre of it, pixels from -1 to 1."""
    half = (0.5, 0.5, 0.5)
    steps = [
        transforms.Resize(image_px), transforms.CenterCrop(image_px), transforms.ToTensor(),
        transforms.Normalize(half, half),
    ]  # fmt: skip
    return split_transform(steps, spec.name)
