"""Images of a store's rows, read again for the live backbone. Legend: `N` rows, `B` batch, `D` token width."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.extract.augment import draw_view
from cspipe.extract.backbones import Backbone
from cspipe.extract.datasets import Dataset
from cspipe.extract.embed import make_lane, single_threaded
from cspipe.extract.hashing import hash_images, pixel_reader
from cspipe.extract.images import Pixels, normalise
from cspipe.store import Store
from cspipe.store.errors import MissingDataError

Ints = NDArray[np.int64]
READERS = 2
EVALUATED_AT_ONCE = 16
MOST_KEPT_BYTES = 2**28
"""Decoded images of a split stay in memory where all of them together take no more."""


@dataclass(frozen=True)
class RowImages:
    """Pixels of chosen rows of one split: `read(image)` gives `(3, H, W)` uint8 of image number `image`."""

    image_N: Ints
    read: Callable[[int], Pixels]

    def batch(self, rows: Ints) -> Tensor:
        """uint8 pixels `(B, 3, H, W)` of these positions."""
        return torch.from_numpy(np.stack([self.read(int(self.image_N[row])) for row in rows]))

    def augmented(self, rows: Ints, augment: str, number: int) -> Tensor:
        """As `batch`, each image under a view drawn from its row and the number of the batch alone."""
        pixels = self.batch(rows)
        if augment:
            for place, row in enumerate(rows):
                name = f"{number}/{row}".encode()
                drawn = draw_view(augment, pixels[place].numpy(), hashlib.sha256(name).digest(), 0)
                pixels[place] = torch.from_numpy(drawn)
        return pixels

    def batches(self, order: Sequence[Ints], *, augment: str = "", first: int = 0) -> Iterator[Tensor]:
        """The batches of `order`, each decoded while the one before is in use; the first has number `first`."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="decode") as pool:
            ahead = [pool.submit(self.augmented, rows, augment, first + n) for n, rows in enumerate(order[:2])]
            for number in range(len(order)):
                yield ahead.pop(0).result()
                if number + 2 < len(order):
                    ahead.append(pool.submit(self.augmented, order[number + 2], augment, first + number + 2))


def images_of_rows(store: Store, split: str, dataset: Dataset, backbone: Backbone) -> RowImages:
    """Pixels of all good rows of a split, matched by the image's hash wherever the files lie now.

    Raises:
        MissingDataError: images of the store are no longer in the data set.
    """
    if split not in dataset.splits:
        raise MissingDataError(
            f"{dataset.source} has no split {split}, which {store.path.name} was made from: name the folder of its "
            "images with --data-dir DIR."
        )
    source = dataset.splits[split]
    every = np.arange(len(source))
    table = hash_images(source, every, READERS)
    number = {digest.tobytes(): image for image, digest in enumerate(table.sha256)}
    wanted = [digest.tobytes() for digest in store[split].sha256()]
    missing = [place for place, digest in enumerate(wanted) if digest not in number]
    if missing:
        first = store[split].path()[missing[0]]
        raise MissingDataError(
            f"{len(missing)} of {len(wanted)} images of {store.path.name} are not in {dataset.source}, the first "
            f"{first}: name their folder with --data-dir DIR, or extract again."
        )
    image_N = np.array([number[digest] for digest in wanted], np.int64)
    read = pixel_reader(source, every, table, backbone.geometry)
    return RowImages(image_N, keep_small(read, len(source), backbone.image_px))


def keep_small(read: Callable[[int], Pixels], images: int, image_px: int) -> Callable[[int], Pixels]:
    """`read` that decodes each image once and keeps it, where all of them take at most `MOST_KEPT_BYTES`.

    Decoding small images takes as long as training a small network on them.
    """
    shape = (images, 3, image_px, image_px)
    if int(np.prod(shape, dtype=np.int64)) > MOST_KEPT_BYTES:
        return read
    kept, there = np.empty(shape, np.uint8), np.zeros(images, bool)

    def again(number: int) -> Pixels:
        if not there[number]:
            kept[number] = read(number)
            there[number] = True
        pixels: Pixels = kept[number]
        return pixels

    return again


def to_batch(pixels_B3HW: Tensor, backbone: Backbone, device: torch.device) -> Tensor:
    """uint8 pixels as the normalised batch of the backbone, in the memory layout that it runs fastest in."""
    layout = torch.channels_last if backbone.spec.convolutional else torch.contiguous_format
    batch = normalise(pixels_B3HW.to(device, non_blocking=True), backbone.mean, backbone.std)
    return batch.contiguous(memory_format=layout)


def live_tokens(
    backbone: Backbone, images: RowImages, rows: Ints, device: torch.device, *, batch: int = EVALUATED_AT_ONCE
) -> Tensor:
    """Tokens `(N, D)` float32 of these rows by the backbone's model as it is now, run as extraction runs it."""
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    lane = make_lane(backbone, device, "fp32")

    def embed(part: Ints) -> Tensor:
        torch.set_num_threads(1)
        with torch.inference_mode():
            tokens: Tensor = lane.model(to_batch(images.batch(part), backbone, device)).float().cpu()
            return tokens

    with single_threaded(), ThreadPoolExecutor(READERS) as pool:
        return torch.cat(list(pool.map(embed, parts)))
