"""Small pictures of a store's rows, read again from the data set and packed for a page that fetches nothing.

Legend: `N` rows.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cspipe.extract.hashing import hash_images, image_sha256
from cspipe.extract.images import BadImageError, decode
from cspipe.extract.splits import Dataset, ImageSplit
from cspipe.store import Store
from cspipe.store.errors import MissingDataError

Ints = NDArray[np.int64]
READERS = 2
PER_SHEET = 1024
"""Tiles in one picture: what a browser decodes when the pointer comes upon the first of them."""

SIDES = ((4_000, 64), (15_000, 48))
SMALLEST_SIDE = 32
"""Side of a tile in pixels: 64 for up to 4,000 rows, 48 for up to 15,000, else 32; never more than the images have."""

GROUND = (128, 128, 128)
QUALITY = 70

ReadImage = Callable[[int], Image.Image | None]
"""Position in a split -> its image; None where it can no longer be read."""


def image_reader(store: Store, split: str, dataset: Dataset) -> ReadImage:
    """Images of a split's rows, each found by its path and known by its hash; by the hash alone where files moved.

    Args:
        store: where path and hash of each row are.
        split: name of the split.
        dataset: the images, see `extract.recorded.recorded_dataset`.

    Raises:
        MissingDataError: the data set has no such split.
    """
    if split not in dataset.splits:
        raise MissingDataError(f"{dataset.source} has no split {split}: name the images' folder with --data-dir DIR.")
    source, path_N, sha256_N = dataset.splits[split], store[split].path(), store[split].sha256()
    by_path = {path: number for number, path in enumerate(source.paths)}
    by_hash, hashing = dict[bytes, int](), Lock()

    def read(row: int) -> Image.Image | None:
        wanted = sha256_N[row].tobytes()
        found = load(source, by_path.get(path_N[row]), wanted)
        if found is not None:
            return found
        with hashing:
            if not by_hash:
                table = hash_images(source, np.arange(len(source)), READERS)
                by_hash.update((digest.tobytes(), number) for number, digest in enumerate(table.sha256))
        return load(source, by_hash.get(wanted), wanted)

    return read


def load(source: ImageSplit, number: int | None, wanted: bytes) -> Image.Image | None:
    """One image, upright and in RGB; None where it is not there, is another or cannot be decoded."""
    if number is None:
        return None
    try:
        given = source.load(number)
        return decode(given).convert("RGB") if image_sha256(given) == wanted else None
    except (OSError, BadImageError):
        return None


def tile_side(rows: int, images: Sequence[Image.Image]) -> int:
    """Side of a tile in pixels for so many rows, some of whose images are given."""
    wanted = next((side for most, side in SIDES if rows <= most), SMALLEST_SIDE)
    return min(wanted, max((max(image.size) for image in images), default=wanted))


def tile(image: Image.Image, side: int) -> Image.Image:
    """The whole image on a square ground of that side."""
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=GROUND)


def webp(image: Image.Image) -> str:
    """A picture as WebP in base64."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(file.getvalue()).decode("ascii")


def data_uri(image: Image.Image, side: int) -> str:
    """One thumbnail as the `src` of an image."""
    return f"data:image/webp;base64,{webp(tile(image, side))}"


def sheets(readers: Mapping[int, ReadImage], split_N: Ints, at_N: Ints, side: int) -> Iterator[str]:
    """Pictures of `PER_SHEET` tiles each, row by row from the left; the tile of a row that cannot be read is grey.

    Args:
        readers: number of a split -> its reader.
        split_N: `(N,)` number of each row's split.
        at_N: `(N,)` its position in that split.
        side: of a tile, pixels.
    """
    across = int(PER_SHEET**0.5)

    def small(row: int) -> Image.Image | None:
        image = readers[int(split_N[row])](int(at_N[row]))
        return None if image is None else tile(image, side)

    with ThreadPoolExecutor(READERS, thread_name_prefix="thumbnail") as pool:
        for start in range(0, len(at_N), PER_SHEET):
            rows = range(start, min(start + PER_SHEET, len(at_N)))
            sheet = Image.new("RGB", (side * across, side * -(-len(rows) // across)), GROUND)
            for place, picture in enumerate(pool.map(small, rows)):
                if picture is not None:
                    sheet.paste(picture, (side * (place % across), side * (place // across)))
            yield webp(sheet)
