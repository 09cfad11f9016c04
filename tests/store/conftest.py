"""A small store: 8 rows a chunk, tokens that say which image they were made from."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from cspipe.store import Store, open_store
from cspipe.store.layout import StoreKey, store_path
from cspipe.store.plan import ChunkTask, ImageTable
from cspipe.store.remote import local_path
from cspipe.store.writer import StoreWriter

_prefix = count()
ROWS_A_CHUNK = 8
WIDTH = 6
KEY = StoreKey(transform="resize 8", image_px=8, weights_sha256="ab" * 32, token="cls", dtype="fp16")


def table_of(images: Sequence[int], label: Sequence[int] | None = None, folder: str = "a") -> ImageTable:
    """A data set whose images are numbers; equal numbers are equal images."""
    hashes = [np.frombuffer(hashlib.sha256(str(image).encode()).digest(), np.uint8) for image in images]
    labels = [image % 3 for image in images] if label is None else label
    names = [f"{folder}/{image}.png" for image in images]
    sha256 = np.stack(hashes) if hashes else np.zeros((0, 32), np.uint8)
    return ImageTable(sha256, np.array(labels, np.int64).reshape(-1), names)


def tokens_of(images: Sequence[int], width: int = WIDTH) -> np.ndarray:
    """The tokens a backbone would give: image number plus column."""
    return np.add.outer(np.array(images, np.float32).reshape(-1), np.arange(width, dtype=np.float32))


@dataclass(frozen=True)
class Maker:
    """Writes stores under one folder."""

    stores: Path

    @property
    def path(self) -> Path:
        return store_path(self.stores, "toy", "lite0", KEY)

    def writer(self, **changes: object) -> StoreWriter:
        settings = {
            "key": KEY,
            "width": WIDTH,
            "batch_size": 4,
            "backbone": "lite0",
            "dataset": "toy",
            "provenance": {"class_names": ["a", "b", "c"], "torch": "2"},
            "sources": {"data": "/data/a", "weights": None},
        }
        return StoreWriter(self.path, **{**settings, **changes})

    def extract(
        self,
        images: Sequence[int],
        *,
        split: str = "train",
        whole: bool = True,
        table: ImageTable | None = None,
        bad: Sequence[int] = (),
        before_commit: Callable[[ChunkTask], None] = lambda task: None,
        **changes: object,
    ) -> list[ChunkTask]:
        """What ``cspipe extract`` does: plan, commit every task, finish. ``bad`` are image numbers."""
        shown = table_of(images) if table is None else table
        with self.writer(**changes) as writer:
            tasks = writer.plan(split, shown, whole=whole)
            for task in tasks:
                before_commit(task)
                mine = [images[number] for number in task.images]
                wrong = [(offset, "not an image") for offset, image in enumerate(mine) if image in bad]
                writer.commit(split, task, tokens_of(mine), wrong)
            writer.finish(split)
        return tasks

    def open(self) -> Store:
        return open_store(self.path)

    def table(self, images: Sequence[int], label: Sequence[int] | None = None) -> ImageTable:
        return table_of(images, label)


def _shrink(patch: pytest.MonkeyPatch) -> None:
    """Small chunks, and no waiting for the disk: what fsync does shows only when the power fails."""
    patch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: ROWS_A_CHUNK)
    patch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    _shrink(monkeypatch)
    return Maker(tmp_path / "stores")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores folder of a finished extraction, to be copied: 30 training images, one bad, 9 test."""
    made = Maker(tmp_path_factory.mktemp("finished") / "stores")
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        made.extract(range(30), bad=[11])
        made.extract(range(9), split="test")
    return made.stores


@pytest.fixture
def store(maker: Maker, finished: Path) -> Maker:
    """A copy of the finished extraction."""
    shutil.copytree(finished, maker.stores)
    return maker


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """Files of a store after extracting some images, then some more, never interrupted."""
    made: dict[str, dict[str, bytes]] = {}

    def files_of(*extractions: Sequence[int], bad: Sequence[int]) -> dict[str, bytes]:
        name = repr((extractions, bad))
        if name not in made:
            one = Maker(tmp_path_factory.mktemp("uninterrupted") / "stores")
            with pytest.MonkeyPatch.context() as patch:
                _shrink(patch)
                for images in extractions:
                    one.extract(images, bad=bad)
            made[name] = tree(one.path)
        return made[name]

    return files_of


@pytest.fixture
def table() -> Callable[..., ImageTable]:
    return table_of


@pytest.fixture
def tokens() -> Callable[..., np.ndarray]:
    return tokens_of


@pytest.fixture(scope="module")
def s3():
    """A client of an S3 server on this machine."""
    from s3_server import serve_s3

    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as client:
        yield client


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Moves to another machine, one with an empty cache folder; called without a name for the first time already."""

    def move(name):
        monkeypatch.setenv("CSPIPE_CACHE", str(tmp_path / name))

    move("here")
    return move


@pytest.fixture
def prefix():
    """A folder of stores that no other test uses."""
    return f"stores-{next(_prefix)}"


@pytest.fixture
def at(s3, cache, prefix):
    """Its URL in the S3 server's bucket."""
    from s3_server import BUCKET

    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture
def memory(cache, prefix):
    """A URL whose files lie in this process: quick, and easily made to fail."""
    return f"memory://{prefix}"


@pytest.fixture
def made(maker):
    """The test's maker of stores, writing behind a URL."""
    return lambda url: type(maker)(local_path(url))
