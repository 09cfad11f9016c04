"""A model on disk, whether its backbone was trained or not: one folder that predicts, and that can be handed over.

    config.json            backbone, preprocessing, class names, temperature, where all of it came from, and the probe:
                           what the backbone gives for a fixed image, compared whenever the model is loaded
    head.safetensors       the head
    backbone.safetensors   the backbone under its library's own names; left out where it was not trained
    README.md              the model card

Legend: `N` images, `D` token width, `K` classes.
"""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cspipe.extract.backbones import Backbone, load_backbone, resolve_spec
from cspipe.extract.embed import Lane, embed, make_lane, make_seat, pick_device, probe, single_threaded
from cspipe.extract.images import decode as decode_image
from cspipe.extract.images import to_uint8
from cspipe.extract.parallel import worker_count
from cspipe.extract.weights import file_sha256
from cspipe.finetune.model_card import card_text
from cspipe.headtrain.headfile import load_head, save_head
from cspipe.headtrain.heads import Head
from cspipe.headtrain.runs import write_atomic, write_json
from cspipe.store.errors import MismatchError, MissingDataError, StoreError
from cspipe.store.probe import MOST_APART, apart, decode, encode

FORMAT = 1
LOCAL = frozenset({"format", "settings", "shape", "store", "test_store"})
"""What a head's file says that is written anew here, or is a place on the machine where it was trained."""
CONFIG, HEAD, BACKBONE, CARD = "config.json", "head.safetensors", "backbone.safetensors", "README.md"

Doubles = NDArray[np.float64]
ImageLike = str | Path | bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Origin:
    """What a model came from.

    Attributes:
        card: what the head file says: method, store key, backbone, data set, class names, split.
        labelled_row_id: the store's ids of the labelled rows `(L,)`.
        temperature: what logits are divided by before the softmax.
        calibration_rows: held-out labelled rows that it was fitted on; 0 where it was not.
        accuracy: share of the judged rows that this very model gets right.
        judged_rows: how many those are.
        over_splits: mean accuracy of all splits of the run with its interval, `{"mean", "ci95", "splits"}`, or None.
        dtype: how tokens were stored, fp16 or fp32.
        weights_path: file of the untrained backbone's weights on this machine, if they came from a file.
    """

    card: dict[str, Any]
    labelled_row_id: NDArray[np.int64]
    temperature: float
    calibration_rows: int
    accuracy: float
    judged_rows: int
    over_splits: dict[str, Any] | None = None
    dtype: str = "fp16"
    weights_path: str | None = None


@dataclass(frozen=True)
class Model:
    """A backbone under a head, ready to run; see `load_model`. The lane is the backbone as it runs on the device."""

    directory: Path
    backbone: Backbone
    head: Head
    config: dict[str, Any]
    device: torch.device
    lane: Lane

    @property
    def class_names(self) -> list[str]:
        """Name of each class number."""
        return [str(name) for name in self.config["class_names"]]

    def probabilities_of_tokens(self, token_ND: torch.Tensor) -> Doubles:
        """Calibrated class probabilities `(N, K)` of tokens."""
        logits_NK = self.head.encode(token_ND.to(self.device))[0].double() / float(self.config["temperature"])
        probability_NK: Doubles = logits_NK.softmax(-1).cpu().numpy()
        return probability_NK

    def probabilities(self, images: Sequence[ImageLike]) -> Doubles:
        """Calibrated class probabilities `(N, K)` of images: paths, bytes of files, or uint8 arrays `(H, W[, 3])`.

        Raises:
            BadImageError: an image that cannot be decoded.
        """
        return self.probabilities_of_tokens(torch.from_numpy(self.tokens(images)))

    def tokens(self, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Tokens `(N, D)` of images, in fp32; of several batches each worker decodes and embeds one at a time.

        Raises:
            BadImageError: an image that cannot be decoded.
        """
        size = self.backbone.spec.batch_size
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        if len(parts) < 2:
            return tokens_of(self.lane, images)
        with (
            single_threaded(),
            ThreadPoolExecutor(worker_count([self.lane]), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            return np.concatenate(list(pool.map(lambda part: tokens_of(self.lane, part), parts)))

    def predict(self, images: Sequence[ImageLike]) -> list[str]:
        """The likeliest class of each image."""
        return [self.class_names[number] for number in self.probabilities(images).argmax(1)]


def tokens_of(lane: Lane, images: Sequence[ImageLike]) -> NDArray[np.float32]:
    """Tokens `(N, D)` of one batch of images, in fp32, by the backbone's own preprocessing."""
    seat = make_seat(lane, len(images))
    for number, image in enumerate(images):
        decoded = decode_image(Path(image) if isinstance(image, str) else image)
        seat.pixels_B3HW.numpy()[number] = to_uint8(decoded, lane.backbone.geometry)
    return embed(lane, seat)


def save_model(directory: Path, backbone: Backbone, head: Head, origin: Origin, *, trained: bool) -> Path:
    """Writes a model directory, whole or not at all; one that is there is replaced.

    Args:
        directory: the folder.
        backbone: as it runs now.
        head: the head on it.
        origin: where both came from.
        trained: the backbone's weights are no longer the published ones, so they are kept too.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if trained:
        state = {name.removeprefix("network."): value for name, value in backbone.model.state_dict().items()}
        save_file({name: v.detach().cpu().contiguous() for name, v in state.items()}, partial / BACKBONE)
    facts = {key: value for key, value in origin.card.items() if key not in LOCAL}
    save_head(partial / HEAD, head, origin.labelled_row_id, facts | {"accuracy": origin.accuracy})
    config = describe(backbone, origin, file_sha256(partial / BACKBONE) if trained else None)
    device = next(backbone.model.parameters()).device
    write_json(partial / CONFIG, config | {"probe": encode(probe(make_lane(backbone, device, "fp32")))})
    write_atomic(partial / CARD, card_text(config))
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)
    return directory


def describe(backbone: Backbone, origin: Origin, trained_sha256: str | None) -> dict[str, Any]:
    """The content of config.json."""
    card = origin.card
    return {
        "cspipe_model": FORMAT, "method": card["method"], "trained_backbone": trained_sha256 is not None,
        "backbone": backbone.name, "architecture": backbone.spec.architecture, "token": backbone.token,
        "image_px": backbone.image_px, "transform": backbone.transform_words, "mean": list(backbone.mean),
        "std": list(backbone.std), "dtype": origin.dtype, "licence": backbone.licence,
        "hub_repo": backbone.spec.hub_repo,
        "weights": {
            "sha256": trained_sha256 or backbone.weights_sha256, "published_sha256": backbone.weights_sha256,
            "source": backbone.weights_source, "revision": backbone.revision,
            "path": None if trained_sha256 else origin.weights_path,
        },
        "class_names": card["class_names"], "temperature": origin.temperature,
        "calibration_rows": origin.calibration_rows, "dataset": card["dataset"], "store_key": card["store_key"],
        "labels": len(origin.labelled_row_id), "split_seed": card["split_seed"], "evaluation": card["evaluation"],
        "judged_on": card.get("test_dataset") or card["dataset"], "accuracy": origin.accuracy,
        "judged_rows": origin.judged_rows, "over_splits": origin.over_splits,
    }  # fmt: skip


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory.

    Raises:
        MissingDataError: the folder is no model.
        MismatchError: it is one of another format.
        StoreError: it is damaged.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise MissingDataError(
            f"{directory} is no model: give a head run (runs/...-head-...), a fine-tuning run, or a folder that "
            "cspipe export wrote."
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): write the model again with cspipe export.") from error
    if not isinstance(config, dict) or config.get("cspipe_model") != FORMAT:
        raise MismatchError(f"{path} is not of a model that this version reads: write it again with cspipe export.")
    return config


def load_model(directory: Path | str, *, weights: Path | None = None, device: str = "cpu") -> Model:
    """Loads a model directory and checks that it does here what it did where it was written.

    Args:
        directory: the folder.
        weights: file of the backbone's weights, where the folder holds none and they are not where they were.
        device: torch device.

    Raises:
        MissingDataError: no model there, or its weights are gone.
        MismatchError: other weights or another preprocessing than it was made with.
        StoreError: a file is damaged.
    """
    folder, place = Path(directory), pick_device(device)
    config = read_config(folder)
    try:
        backbone, recorded_D = load_network(folder, config, weights, device), decode(config["probe"])
    except (SafetensorError, FileNotFoundError, KeyError) as error:
        if isinstance(error, MissingDataError):
            raise
        raise StoreError(f"{folder} is no whole model ({error}): write it again with cspipe export.") from error
    if config["transform"] != backbone.transform_words:
        raise MismatchError(
            f"{folder} was made with the preprocessing {config['transform']!r}, and here {backbone.name} has "
            f"{backbone.transform_words!r}: use the versions of the libraries that it was made with."
        )
    lane = make_lane(backbone, place, "fp32")
    check_probe(folder, probe(lane), recorded_D)
    return Model(folder, backbone, load_head(folder / HEAD, device=device).head, config, place, lane)


def load_network(folder: Path, config: dict[str, Any], weights: Path | None, device: str) -> Backbone:
    """The backbone of a model directory, its weights checked against their hash."""
    spec, told = resolve_spec(config["backbone"]), config["weights"]
    own = folder / BACKBONE if config["trained_backbone"] else None
    file = own or weights or (Path(told["path"]) if told["path"] else None)
    where = {"image_px": config["image_px"], "token": config["token"], "device": device}
    if own is not None and spec.family == "hf":
        backbone = load_backbone(spec, revision=told["revision"], **where)
        state = load_file(own)
        prefix = "network." if all(name.startswith("network.") for name in backbone.model.state_dict()) else ""
        backbone.model.load_state_dict({prefix + name: value for name, value in state.items()})
        backbone = replace(backbone, weights_sha256=file_sha256(own))
    else:
        if file is not None and not file.is_file():
            raise MissingDataError(f"the weights of {spec.name} are not at {file}: name them with --weights FILE.")
        backbone = load_backbone(spec, weights=file, revision=None if file else told["revision"], **where)
    if backbone.weights_sha256 != told["sha256"]:
        raise MismatchError(
            f"{folder} was made with weights {told['sha256'][:12]} ({told['source']}), but {backbone.weights_source} "
            f"holds {backbone.weights_sha256[:12]}: name the right file with --weights FILE."
        )
    return backbone


def check_probe(folder: Path, probe_D: NDArray[np.float32], recorded_D: NDArray[np.float32]) -> None:
    """Compares what the backbone gives for the probe image with what it gave where the model was made.

    Raises:
        MismatchError: they are further apart than devices are.
    """
    distance = apart(recorded_D, probe_D)
    if not distance <= MOST_APART:
        raise MismatchError(
            f"{folder} does not give here what it gave where it was made (its probe image is apart by {distance:.2g}, "
            f"at most {MOST_APART:g} is rounding): weights, preprocessing or a library differ, and predictions would "
            "be wrong. Use the versions of the libraries that it was made with, or write it again with cspipe export."
        )
