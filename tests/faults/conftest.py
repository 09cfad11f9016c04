"""A real extraction small enough to be killed and damaged many times: random pixels, a tiny random network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BACKBONE = "timm:test_vit"
SIDE_PX = 16
CHUNK_ROWS = 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64 rows, so that few images make many; no waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: CHUNK_ROWS)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights, the same in every process."""
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=SIDE_PX)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state, path)
    return path


def draw_images(folder: Path, train: int, test: int) -> Path:
    """A data set of random images of 8 pixels a side, two of them no images."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            path = folder / split / "ab"[number % 2] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (folder / "train/a/00004.png").write_bytes(b"no image")
    (folder / "train/b/00077.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """300 training and 70 test images."""
    return draw_images(tmp_path_factory.mktemp("images") / "dots", 300, 70)


@pytest.fixture
def extract(weights, tmp_path) -> Callable[..., dict[str, Any]]:
    """extract() of the tiny backbone into one folder of stores."""
    from cspipe.extract.run import extract as run

    def call(dataset: Path, **options: Any) -> dict[str, Any]:
        options = {"stores": tmp_path / "stores", "weights": weights, "image_px": SIDE_PX, "batch_size": 16, **options}
        return run(BACKBONE, str(dataset), **options)

    return call


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture(scope="session")
def finished(images, weights, tmp_path_factory) -> Path:
    """A finished store of those images with one view of each, not to be written to."""
    from cspipe.extract.run import extract as run

    stores = tmp_path_factory.mktemp("finished") / "stores"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: CHUNK_ROWS)
        document = run(BACKBONE, str(images), stores=stores, weights=weights, image_px=SIDE_PX, batch_size=16, views=1)
    return Path(document["store"])


@pytest.fixture
def store(finished, tmp_path) -> Path:
    """A copy of the finished store."""
    import shutil

    shutil.copytree(finished.parent, tmp_path / "stores")
    return tmp_path / "stores" / finished.name
