"""The stores that one run fills: several backbones, several tokens of each, one store a token."""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cspipe.extract.backbones import Backbone, BackboneSpec, load_tokens
from cspipe.extract.datasets import Dataset
from cspipe.extract.embed import Lane, default_batch_size, make_lane, probe
from cspipe.extract.pieces import Output
from cspipe.extract.tokens import SideBySide
from cspipe.store.errors import SettingError
from cspipe.store.layout import StoreKey, store_path
from cspipe.store.writer import StoreWriter

_LIBRARIES = (
    "torch", "torchvision", "timm", "open_clip_torch", "transformers", "zarr", "numpy", "pillow",
    "content-style-pipeline",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A backbone that shall look at the images.

    Attributes:
        backbone: a name as :func:`cspipe.extract.backbones.resolve_spec` takes it, or a spec.
        tokens: which of its vectors are kept, a store each, all from one forward pass; None is its own.
        weights: file of its weights, in place of the hub. revision: of the weights on the hub.
        image_px: side of the input, pixels; None is its own.
    """

    backbone: str | BackboneSpec
    tokens: tuple[str | None, ...] = (None,)
    weights: Path | None = None
    revision: str | None = None
    image_px: int | None = None


@dataclass(frozen=True)
class Network:
    """A loaded backbone on every device, and the tokens that it gives side by side."""

    request: Request
    tokens: tuple[Backbone, ...]
    lanes: tuple[Lane, ...]

    def columns(self, number: int) -> slice:
        """Where token ``number`` lies among the values of a lane."""
        starts = np.cumsum([0, *(backbone.width for backbone in self.tokens)]).tolist()
        first, end = list(pairwise(starts))[number]
        return slice(first, end)


@dataclass(frozen=True)
class Target:
    """One store being filled: the token that it holds, its writer, and where its values come from."""

    backbone: Backbone
    writer: StoreWriter
    output: Output


def load_networks(requests: Sequence[Request], devices: Sequence[torch.device], dtype: str) -> list[Network]:
    """Build every backbone once, and copy it to each further device.

    Raises:
        SettingError: the same backbone or token twice.
        CspipeError: as :func:`cspipe.extract.backbones.load_tokens`.
    """
    networks: list[Network] = []
    for request in requests:
        reader, tokens = load_tokens(
            request.backbone, tokens=request.tokens, weights=request.weights, revision=request.revision,
            image_px=request.image_px, device=str(devices[0]),
        )  # fmt: skip
        twin = next((other for other in networks if key_of(other.tokens[0], dtype) == key_of(tokens[0], dtype)), None)
        if twin is not None and twin.tokens[0].name == tokens[0].name:
            raise SettingError(f"{twin.tokens[0].name} was named twice with the same weights and side: name it once")
        names = tuple(backbone.token for backbone in tokens)
        if len(set(names)) < len(names):
            raise SettingError(f"each token of {tokens[0].name} is stored once; got {', '.join(names)}")
        model = tokens[0].model if len(tokens) == 1 else SideBySide(reader, names).eval()
        networks.append(Network(request, tokens, tuple(_lanes(tokens[0], devices, dtype, model))))
    return networks


def _lanes(backbone: Backbone, devices: Sequence[torch.device], dtype: str, model: nn.Module) -> Iterator[Lane]:
    """The model on each device, copies on all but the first."""
    for number, device in enumerate(devices):
        yield make_lane(backbone, device, dtype, copy.deepcopy(model) if number else model)


def provenance(backbone: Backbone, dataset: Dataset, device: str) -> dict[str, Any]:
    """How the tokens came about, as plain JSON without times or places."""
    return {
        "backbone": backbone.name,
        "architecture": backbone.spec.architecture,
        "weights_sha256": backbone.weights_sha256,
        "weights_source": backbone.weights_source,
        "revision": backbone.revision,
        "licence": backbone.licence,
        "transform": backbone.transform_words,
        "transform_sha256": hashlib.sha256(backbone.transform_words.encode()).hexdigest(),
        "device": device,
        "class_names": dataset.class_names,
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }


def key_of(backbone: Backbone, dtype: str) -> StoreKey:
    """What changes the numbers of an image's token."""
    return StoreKey(
        transform=backbone.transform_words,
        image_px=backbone.image_px,
        weights_sha256=backbone.weights_sha256,
        token=backbone.token,
        dtype=dtype,
    )


@contextmanager
def open_targets(
    networks: Sequence[Network], dataset: Dataset, stores: Path, dtype: str, batch_size: int | None
) -> Iterator[list[Target]]:
    """The stores of all tokens, created where there are none, locked until the end.

    Raises:
        StoreError: another process writes one of them, or it is damaged.
        MismatchError: one was made with other options, or by a backbone that gave other tokens.
    """
    with ExitStack() as stack:
        targets = []
        for network in networks:
            probed = probe(network.lanes[0])
            for number, backbone in enumerate(network.tokens):
                writer = stack.enter_context(
                    _writer(network, backbone, dataset, stores, dtype=dtype, batch_size=batch_size)
                )
                writer.check_probe(probed[network.columns(number)])
                output = Output(network.lanes, network.columns(number), writer.batch_size, writer.commit)
                targets.append(Target(backbone, writer, output))
        yield targets


def _writer(
    network: Network, backbone: Backbone, dataset: Dataset, stores: Path, *, dtype: str, batch_size: int | None
) -> StoreWriter:
    """The store of one token."""
    lane, key, weights = network.lanes[0], key_of(backbone, dtype), network.request.weights
    path = store_path(stores, dataset.name, backbone.name, key)
    known = backbone.spec.batch_size if (path / "zarr.json").is_file() else None
    sources: Mapping[str, Any] = {"weights": str(weights.resolve()) if weights else None, "data": dataset.source}
    return StoreWriter(
        path, key=key, width=backbone.width, batch_size=batch_size or known or default_batch_size(lane),
        backbone=backbone.name, dataset=dataset.name, provenance=provenance(backbone, dataset, lane.device.type),
        sources=sources,
    )  # fmt: skip
