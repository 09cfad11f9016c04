"""Synthetic stores: Gaussian blobs whose classes differ in few directions and vary in many."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspipe.headtrain import HeadSettings
from cspipe.store.layout import StoreKey, store_path
from cspipe.store.plan import ImageTable
from cspipe.store.writer import StoreWriter

WIDTH = 24
CLASSES = 3


@dataclass(frozen=True)
class Rows:
    """Tokens `(N, D)` and their classes `(N,)`, -1 for unlabelled."""

    token: np.ndarray
    label: np.ndarray


def draw_blobs(count: int, seed: int, *, gap: float = 3.0) -> Rows:
    """Class means apart by `gap`, six shared directions of style with as much variance, a little noise."""
    world, draw = np.random.default_rng(0), np.random.default_rng(seed)
    means = world.normal(size=(CLASSES, WIDTH)) * gap * 2 / WIDTH**0.5
    mixing = world.normal(size=(6, WIDTH)) * 4 / WIDTH**0.5
    label = np.arange(count) % CLASSES
    token = means[label] + draw.normal(size=(count, 6)) @ mixing + 0.3 * draw.normal(size=(count, WIDTH))
    return Rows(token.astype(np.float32), label)


def write_store(
    stores: Path, splits: Mapping[str, Rows], *, bad: tuple[int, ...] = (), dataset: str = "blobs",
    same_images: Sequence[str] = (), class_names: Sequence[str] = ("red", "green", "blue"), **key_changes: Any,
) -> Path:  # fmt: skip
    """A store of these rows; `bad` are rows of `train`, and of splits of the same images, that cannot be read."""
    width = splits["train"].token.shape[1] if "train" in splits else WIDTH
    plain = {"transform": "none", "image_px": 8, "weights_sha256": "ab" * 32, "token": "cls", "dtype": "fp32"}
    key = StoreKey(**plain | key_changes)
    path = store_path(stores, dataset, "lite0", key)
    provenance = {"class_names": list(class_names), "torch": "2"}
    with StoreWriter(
        path, key=key, width=width, batch_size=64, backbone="lite0", dataset=dataset, provenance=provenance,
        sources={"data": "blobs", "weights": None},
    ) as writer:  # fmt: skip
        for name, rows in splits.items():
            image_of = "train" if name in same_images else name
            digests = [hashlib.sha256(f"{image_of} {row}".encode()).digest() for row in range(len(rows.label))]
            table = ImageTable(
                np.stack([np.frombuffer(digest, np.uint8) for digest in digests]),
                rows.label.astype(np.int64),
                [f"{name}/{row}" for row in range(len(rows.label))],
            )
            for task in writer.plan(name, table, whole=True):
                wrong = [
                    (i, "not an image") for i, image in enumerate(task.images) if image_of == "train" and image in bad
                ]
                writer.commit(name, task, rows.token[task.images], wrong)
            writer.finish(name)
    return path


@pytest.fixture(scope="session")
def blobs():
    """A function (count, seed, gap=) -> tokens and classes."""
    return draw_blobs


@pytest.fixture
def make_store(tmp_path, monkeypatch):
    """A function (splits, bad=, dataset=, class_names=, dtype=, ...) -> path of a store."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    return lambda splits, **options: write_store(tmp_path / "stores", splits, **options)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """240 training rows, all labelled, and 150 test rows; not to be written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        splits = {"train": draw_blobs(240, 1), "test": draw_blobs(150, 2)}
        return write_store(tmp_path_factory.mktemp("blobs") / "stores", splits)


@pytest.fixture
def quick() -> HeadSettings:
    """Settings that train in a fraction of a second."""
    return HeadSettings(
        components=0, hidden=16, style=4, discriminator=8, steps=60, batch=32, labelled_batch=12
    )  # fmt: skip
