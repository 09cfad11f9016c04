"""Which image is which: its SHA-256, and how one is read again for the backbone."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from cspipe.extract.datasets import ImageSplit
from cspipe.extract.images import BadImageError, Pixels, decode, to_uint8
from cspipe.store.writer import ImageTable

_BLOCK = 256


def image_sha256(source: bytes | NDArray[np.uint8]) -> bytes:
    """Hash of what is decoded: the bytes of a file, or an array's shape and pixels; 32 bytes.

    >>> image_sha256(np.zeros((2, 3), np.uint8)) == image_sha256(np.zeros((3, 2), np.uint8))
    False
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    return hashlib.sha256(f"{source.dtype} {source.shape}\n".encode() + source.tobytes()).digest()


def _sha256(split: ImageSplit, image: int) -> bytes:
    """Hash of an image; one that cannot be read is known by its path."""
    try:
        return image_sha256(split.load(image))
    except OSError:
        name = split.paths[image].encode("utf-8", "surrogateescape")
        return hashlib.sha256(b"unreadable\0" + name).digest()


def hash_images(split: ImageSplit, images: NDArray[np.int64], workers: int) -> ImageTable:
    """The wanted images of a split as the store knows them, files read by several threads.

    Args:
        split: where they are.
        images: `(N,)` image numbers.
        workers: threads.
    """
    hashes = np.zeros((len(images), 32), np.uint8)

    def block(start: int) -> None:
        for place, image in enumerate(images[start : start + _BLOCK], start):
            hashes[place] = np.frombuffer(_sha256(split, int(image)), np.uint8)

    with ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool:
        list(pool.map(block, range(0, len(images), _BLOCK)))
    paths = [split.paths[image] for image in images]
    return ImageTable(sha256=hashes, label=split.labels[images], path=paths)


def image_reader(split: ImageSplit, images: NDArray[np.int64], table: ImageTable) -> Callable[[int], Image]:
    """A function from a number in the table to the decoded image; it raises BadImageError.

    An image that is no longer the one that was hashed counts as bad: its token would get a wrong name.
    """

    def read(number: int) -> Image:
        try:
            source = split.load(int(images[number]))
        except OSError as error:
            raise BadImageError(f"the file cannot be read ({error.strerror or error})") from error
        if image_sha256(source) != table.sha256[number].tobytes():
            raise BadImageError("the file changed while it was read")
        return decode(source)

    return read


def pixel_reader(
    split: ImageSplit, images: NDArray[np.int64], table: ImageTable, geometry: Callable[[Image], Image]
) -> Callable[[int], Pixels]:
    """As :func:`image_reader`, but to `(3, H, W)` pixels as one backbone wants them."""
    read = image_reader(split, images, table)
    return lambda number: to_uint8(read(number), geometry)
