"""A tiny random backbone, MNIST-like files in the published format, and the real inputs where they are."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cspipe.extract.backbones import BackboneSpec


@pytest.fixture
def real_data() -> Path:
    """Folder with data/ and weights/, see the environment variable CSPIPE_TEST_DATA."""
    place = os.environ.get("CSPIPE_TEST_DATA")
    if not place:
        pytest.skip("CSPIPE_TEST_DATA is not set: the real inputs are not here")
    return Path(place)


@pytest.fixture
def tiny() -> BackboneSpec:
    """A ViT of width 64 that timm keeps for tests, at 32 pixels; its weights are in `tiny_weights`."""
    return BackboneSpec(
        name="tiny",
        family="timm",
        architecture="test_vit",
        image_px=32,
        token="cls",
        licence="none",
        side_multiple=16,
        smallest_px=16,
        batch_size=16,
    )


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny backbone, the same in every process."""
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 rows, so that few images make many."""
    monkeypatch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: 64)


@pytest.fixture
def run(tiny, tiny_weights, tmp_path):
    """extract() with the tiny backbone, into a folder of stores below the test's own."""
    from cspipe.extract.run import extract

    def call(dataset="digits", stores="stores", **options):
        return extract(tiny, str(dataset), stores=tmp_path / stores, **{"weights": tiny_weights, **options})

    return call


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx():
    """A function from a uint8 array to the bytes of an IDX file."""
    return _idx


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """The four gzipped files as published, with 40 and 10 images."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, count in (("train", 40), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    return folder
