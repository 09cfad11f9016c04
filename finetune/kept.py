"""Kept knowledge: how well nearest neighbours classify another data set's images, before and after fine-tuning.

Legend: `N` images, `D` token width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cspipe.extract.backbones import Backbone
from cspipe.extract.datasets import load_dataset
from cspipe.extract.hashing import hash_images, pixel_reader
from cspipe.finetune.images import READERS, RowImages, live_tokens
from cspipe.headtrain.baselines import knn
from cspipe.headtrain.evaluate import accuracy
from cspipe.store.errors import SettingError
from cspipe.store.split import labelled_folds

MOST_IMAGES, FOLDS = 2_000, 5


@dataclass(frozen=True)
class OtherImages:
    """Labelled images of another data set: how to read them, classes `(N,)`, what they are called."""

    images: RowImages
    label_N: NDArray[np.int64]
    name: str


def other_images(name: str, data_dir: Path | None, backbone: Backbone) -> OtherImages:
    """At most 2,000 labelled images, evenly spaced, of the test split, or of the training split where there is none.

    Raises:
        CspipeError: there is no such data set here.
        SettingError: too few labelled images.
    """
    dataset = load_dataset(name, data_dir=data_dir)
    source = dataset.splits.get("test") or dataset.splits["train"]
    labelled = np.flatnonzero(np.asarray(source.labels) >= 0)
    if len(labelled) < 2 * FOLDS:
        raise SettingError(
            f"{name} has {len(labelled)} labelled images, too few to tell what the backbone knows of it."
        )
    chosen = labelled[np.unique(np.linspace(0, len(labelled) - 1, MOST_IMAGES).round().astype(np.int64))]
    table = hash_images(source, chosen, READERS)
    reader = pixel_reader(source, chosen, table, backbone.geometry)
    return OtherImages(RowImages(np.arange(len(chosen)), reader), np.asarray(source.labels)[chosen], dataset.name)


def knn_accuracy(other: OtherImages, backbone: Backbone, device: torch.device) -> float:
    """Accuracy of 20 nearest neighbours by cosine among the images themselves, in five folds."""
    token_ND = live_tokens(backbone, other.images, np.arange(len(other.label_N)), device).numpy()
    classes, predicted = int(other.label_N.max()) + 1, np.empty(len(other.label_N), np.int64)
    for held in labelled_folds(other.label_N, FOLDS, 0):
        rest = np.setdiff1d(np.arange(len(other.label_N)), held)
        votes = knn(token_ND[rest], other.label_N[rest], token_ND[held], classes=classes)
        predicted[held] = votes.argmax(1)
    return accuracy(predicted, other.label_N)


def kept_knowledge(other: OtherImages, frozen: Backbone, tuned: Backbone, device: torch.device) -> dict[str, Any]:
    """Accuracy of both backbones' neighbours: `dataset`, `images`, `frozen`, `tuned`."""
    return {
        "dataset": other.name, "images": len(other.label_N),
        "frozen": knn_accuracy(other, frozen, device), "tuned": knn_accuracy(other, tuned, device),
    }  # fmt: skip
