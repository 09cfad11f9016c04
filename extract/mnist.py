"""MNIST from its four published files, and the same digits under stripes.

The striped sets re-create those of arXiv 2410.02069 (github.com/MariiaDrozdova/MNIST_variants) by a seeded
generator of our own: the published images carry one geometry each, width, angle and spacing (for example 3.0,
-41.45 degrees, 9.0), the same for both colours; from what ranges they were drawn is not published, so the
ranges here are ours, and no image is identical to a published one.
"""

import contextlib
import gzip
import os
import socket
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cspipe.extract.datasets import Dataset, ImageSplit
from cspipe.store.errors import MissingDataError, SettingError

FILES = MappingProxyType(
    {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }
)
COLOURS = MappingProxyType({"white": (255, 255, 255), "yellow": (255, 165, 79)})
STRIPE_WIDTHS = (2, 4)
STRIPE_SPACINGS = (7, 11)
STRIPE_ANGLES = (-45.0, 45.0)
_DOWNLOAD_SECONDS = 10.0
_MAGIC = {1: 0x801, 3: 0x803}
_NAMES = ", ".join(f"{name}.gz" for pair in FILES.values() for name in pair)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises:
        SettingError: another kind of file, or one cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SettingError(f"{path} cannot be read ({error}): fetch the file again") from error
    header = np.frombuffer(content[: 4 + 4 * dimensions], dtype=">u4")
    if len(header) != 1 + dimensions or header[0] != _MAGIC[dimensions]:
        raise SettingError(f"{path} is no IDX file of {dimensions} dimensions: fetch the file again")
    shape = tuple(int(size) for size in header[1:])
    body = np.frombuffer(content, dtype=np.uint8)[4 + 4 * dimensions :]
    if len(body) != np.prod(shape):
        raise SettingError(f"{path} announces {np.prod(shape):,} bytes and holds {len(body):,}: fetch the file again")
    return body.reshape(shape)


def _find(data_dir: Path) -> dict[str, Path] | None:
    """The four files in ``data_dir``, or in ``MNIST/raw`` or ``raw`` below it; None where one is missing."""
    found: dict[str, Path] = {}
    for name in (name for pair in FILES.values() for name in pair):
        places = [data_dir / sub / f"{name}{end}" for sub in ("", "MNIST/raw", "raw") for end in (".gz", "")]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            return None
        found[name] = there
    return found


def _cache() -> Path:
    """Where downloaded data sets are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cspipe" / "mnist"


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)


def _download(cache: Path) -> dict[str, Path]:
    """The four files by torchvision's own downloader, which checks their sums; kept in the cache."""
    from torchvision.datasets import MNIST

    try:
        with _socket_timeout(_DOWNLOAD_SECONDS), contextlib.redirect_stdout(sys.stderr):
            MNIST(str(cache), download=True)
        found = _find(cache)
    except Exception as error:  # the downloader lets urllib's many errors through
        reason = " ".join(str(error).split())[:200]
        raise MissingDataError(
            f"MNIST is not on this machine and cannot be downloaded ({reason}): give a folder with {_NAMES} "
            "as --data-dir"
        ) from error
    if found is None:
        raise MissingDataError(f"no MNIST in {cache} after the download: give a folder with {_NAMES} as --data-dir")
    return found


def _located(data_dir: Path | None) -> tuple[dict[str, Path], Path]:
    """The four files and the folder they were found in, downloaded where no folder is given."""
    folder = Path(os.path.abspath(_cache() if data_dir is None else data_dir))  # noqa: PTH100 - keeps links
    found = _find(folder)
    if found is None and data_dir is not None:
        raise MissingDataError(f"{folder} does not hold MNIST: --data-dir takes a folder with {_NAMES}")
    return found or _download(folder), folder


def _read_split(name: str, files: dict[str, Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels `(N, 28, 28)` and labels `(N,)` of one split."""
    images, labels = (files[part] for part in FILES[name])
    pixels, label = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
    if len(pixels) != len(label):
        raise SettingError(f"{images} holds {len(pixels)} images, {labels} {len(label)} labels: fetch both again")
    if len(label) and label.max() > 9:
        raise SettingError(f"{labels} holds the label {label.max()}, but MNIST has the classes 0 to 9")
    return pixels, label


def _dataset(name: str, data_dir: Path | None, colour: tuple[int, int, int] | None) -> Dataset:
    files, folder = _located(data_dir)
    splits = {}
    for split in FILES:
        pixels, label = _read_split(split, files)
        paths = [f"{split}-images/{image:05d}" for image in range(len(label))]
        load = pixels.__getitem__ if colour is None else Striped(pixels, split, colour).image
        splits[split] = ImageSplit(split, label, paths, load)
    return Dataset(name, [str(digit) for digit in range(10)], splits, str(folder))


def read_mnist(data_dir: Path | None) -> Dataset:
    """60,000 and 10,000 digits of 28 x 28 grey pixels.

    Args:
        data_dir: folder of the four files, as published or unpacked, or None to download them once.

    Raises:
        MissingDataError: a file is missing, or the download failed.
        SettingError: a file is damaged.
    """
    return _dataset("mnist", data_dir, None)


def read_striped(data_dir: Path | None, colour: str) -> Dataset:
    """MNIST under stripes of a colour in ``COLOURS``; our re-creation, see the head of this file."""
    return _dataset(f"mnist-{colour}-stripes", data_dir, COLOURS[colour])


@dataclass(frozen=True)
class Stripes:
    """Geometry of one image: width and spacing (from stripe to stripe) in pixels, angle in degrees."""

    width: float
    angle: float
    spacing: float


def draw_stripes(seed: int, split: str, image: int) -> Stripes:
    """The geometry of one image, from (seed, split, image number) alone: the same for every colour."""
    generator = np.random.default_rng([seed, list(FILES).index(split), image])
    width, spacing = (generator.integers(*ends, endpoint=True) for ends in (STRIPE_WIDTHS, STRIPE_SPACINGS))
    return Stripes(float(width), float(generator.uniform(*STRIPE_ANGLES)), float(spacing))


def stripes_mask(height: int, width: int, stripe_width: float, angle: float, spacing: float) -> NDArray[np.bool_]:
    """Which pixels stripes cover, `(height, width)`.

    A pixel at (x, y) from the centre is covered where ``(x cos a + y sin a) mod spacing < stripe_width``: at
    0 degrees stripes are upright, at 90 they lie flat.

    Args:
        height: pixels.
        width: pixels.
        stripe_width: pixels across one stripe.
        angle: ``a`` in degrees.
        spacing: pixels from the start of one stripe to the start of the next, across.
    """
    turn = np.deg2rad(angle)
    x = (np.arange(width) - (width - 1) / 2) * np.cos(turn)
    y = (np.arange(height) - (height - 1) / 2) * np.sin(turn)
    covered: NDArray[np.bool_] = (x[None, :] + y[:, None]) % spacing < stripe_width
    return covered


@dataclass(frozen=True)
class Striped:
    """Digits `(N, H, W)` of one split under stripes, painted when asked for."""

    pixels: NDArray[np.uint8]
    split: str
    colour: tuple[int, int, int]
    seed: int = 0

    def image(self, number: int) -> NDArray[np.uint8]:
        """Image ``number``, `(H, W, 3)`: stripes overwrite the digit."""
        digit, stripes = self.pixels[number], draw_stripes(self.seed, self.split, number)
        painted = np.repeat(digit[:, :, None], 3, axis=2)
        height, width = digit.shape
        painted[stripes_mask(height, width, stripes.width, stripes.angle, stripes.spacing)] = self.colour
        return painted
