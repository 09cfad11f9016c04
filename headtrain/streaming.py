"""Training on tokens that stay in their store: a window of them in memory, renewed chunk by chunk.

Legend: `N` training rows, `D` token width, `P` projected width, `V` views, `L` labelled rows, `W` rows of the window,
`C` rows of a chunk, `T` rows of the table (L + W).

What stays in memory is the table: the projected labelled rows at fixed places, and W unlabelled rows. Another thread
reads and projects the next chunk while a step runs. Chunks come in shuffled order, each once before any comes again,
and as many rows come in as a step draws: a row is drawn once a stay in the mean, as in a shuffled pass over all rows.
The rows of all views of a chunk come and go with it. `peak_bytes` states what this takes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.headtrain.batches import Table
from cspipe.headtrain.chunked import ChunkedTokens
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError

Ints = NDArray[np.int64]

FEWEST_CHUNKS = 2
"""A window holds at least so many chunks, or all rows."""


def peak_bytes(
    *, window: int, labelled: int, chunk: int, width: int, projected: int, views: int, itemsize: int, anchors: int = 0
) -> int:
    """Most that the training rows take at any time, bytes; judged rows and the heads themselves come on top.

    4 P (1 + V) (L + W + 2 C)  +  D itemsize L  +  D C (3 itemsize + 12)  +  80 D^2  +  24 D (A + C, where there are A)

    These are the table and two chunks on their way into it; the labelled rows as stored; one chunk as it is read
    and standardised; the moments and principal directions of the projection; and the statistics of neighbourhoods.
    A row's label, number and hash, some 170 bytes, come on top, and before any of it the sample that tells how the
    rows lie, see `clusters`: 2,000 rows. N is in no other term: that is the point.

    Args:
        window: W. labelled: L, distinct rows over all heads. chunk: C.
        width: D. projected: P. views: V. itemsize: bytes of a stored number. anchors: A.
    """
    table = 4 * projected * (1 + views) * (labelled + window + 2 * chunk)
    around = 24 * width * (anchors + chunk) if anchors else 0
    return table + around + width * itemsize * labelled + width * chunk * (3 * itemsize + 12) + 80 * width**2


def window_rows(tokens: ChunkedTokens, labelled: int, projected: int, views: int, settings: HeadSettings) -> int:
    """W: what the memory limit leaves room for, at most all rows, and at most as many as a head draws in all.

    0 where no term looks at unlabelled rows.

    Raises:
        SettingError: there is no room for the labelled rows and two chunks.
    """
    (rows, width), chunk = tokens.shape, tokens.split.shape.per_chunk
    fewest = min(rows, FEWEST_CHUNKS * chunk) if settings.semi_supervised else 0
    fixed = peak_bytes(
        window=0, labelled=labelled, chunk=chunk, width=width, projected=projected, views=views,
        itemsize=tokens.itemsize, anchors=settings.anchors,
    )  # fmt: skip
    row_bytes = 4 * projected * (1 + views)
    room = (tokens.limit_bytes - fixed) // row_bytes
    if room < fewest:
        raise SettingError(
            f"{labelled} labelled rows with {views} views and a window of {fewest} rows take "
            f"{(fixed + fewest * row_bytes) / 1e9:.3g} GB, and training may take {tokens.limit_bytes / 1e9:.3g} GB: "
            "set head.memory_gb higher, or head.labels, head.settings.components or head.settings.views lower."
        )
    return min(rows, room, max(fewest, settings.steps * settings.batch)) if settings.semi_supervised else 0


@dataclass
class Window:
    """The window's rows inside the table, `(V + 1, T, P)`: new rows take the place of those there longest.

    Attributes:
        table_VTP: whose rows from `first` on are the window.
        first: its first row.
        rows: W.
        blocks: `(V + 1, C, P)` each, in the order in which they come in.
        block_VCP: the one at hand. used: how many of its rows are in.
        at: place in the window where the next row goes.
    """

    table_VTP: Tensor
    first: int
    rows: int
    blocks: Iterator[Tensor]
    block_VCP: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    used: int = 0
    at: int = 0

    def advance(self, rows: int) -> None:
        """Lets the next so many rows in; waits for their chunk where it is not read yet."""
        while rows > 0:
            if self.used == self.block_VCP.shape[1]:
                self.block_VCP = torch.empty(0, 0, 0)  # its memory is free before the next one is there
                self.block_VCP, self.used = next(self.blocks), 0
            part_VXP = self.block_VCP[:, self.used : self.used + rows]
            count = part_VXP.shape[1]
            slot_X = (torch.arange(count, device=part_VXP.device) + self.at) % self.rows
            self.table_VTP.index_copy_(1, slot_X + self.first, part_VXP)
            self.at, self.used, rows = (self.at + count) % self.rows, self.used + count, rows - count


def shuffled_passes(count: int, generator: torch.Generator) -> Iterator[int]:
    """0..count-1 in another order each time, without end."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def read_ahead(reader: ThreadPoolExecutor, read: Callable[[int], Tensor], numbers: Iterator[int]) -> Iterator[Tensor]:
    """`read(number)` of each number in turn, the next one while this one is used; what it raises is raised here."""
    pending = reader.submit(read, next(numbers))
    for number in numbers:
        block = pending.result()
        pending = reader.submit(read, number)
        yield block
    yield pending.result()


def projected_block(parts: Sequence[ChunkedTokens], projection: Projection, at: Tensor) -> Tensor:
    """Projected rows of the split and of each of its views, `(V + 1, rows, P)`."""
    block_VCP = torch.empty(len(parts), len(at), projection.width, device=projection.mean_D.device)
    for view, tokens in enumerate(parts):
        block_VCP[view] = projection.rows(tokens[at])
    return block_VCP


@contextmanager
def streamed_table(
    parts: Sequence[ChunkedTokens],
    label_N: Tensor,
    labelled: Sequence[Ints],
    unlabelled: Sequence[Ints],
    settings: HeadSettings,
    *,
    seed: int,
    device: torch.device | str,
) -> Iterator[Table]:
    """The table of labelled rows and window, for as long as heads train on it.

    Args:
        parts: the rows' tokens, then those of each view.
        label_N: classes of all rows.
        labelled: positions of each head's labelled rows.
        unlabelled: positions of the rows that each head may look at: all of them.
        settings: shared by the heads.
        seed: of the order of the chunks, which all heads share.
        device: where the table lives.

    Raises:
        SettingError: a head may not look at all rows, or the memory limit is too low.
        StoreError: a chunk is damaged.
    """
    tokens, count = parts[0], len(parts[0])
    if any(len(rows) != count for rows in unlabelled):
        raise SettingError(
            "heads that train on tokens read chunk by chunk look at the same unlabelled rows, all of them: judge them "
            "on a test split or on dev rows, not by cross-validation."
        )
    known_L = np.unique(np.concatenate(labelled))
    projected = min(settings.components or tokens.shape[1], tokens.shape[1])
    window = window_rows(tokens, len(known_L), projected, len(parts) - 1, settings)
    projection = fit_projection(
        tokens,
        settings.components,
        scale_floor=settings.scale_floor,
        power=settings.power,
        anchors=settings.anchors,
        device=device,
    )
    table_VTP = torch.empty(len(parts), len(known_L) + window, projection.width, device=device)
    for view, part in enumerate(parts):
        table_VTP[view, : len(known_L)] = projection.rows(part[torch.from_numpy(known_L)])
    table = table_of_heads(table_VTP, label_N, labelled, known_L, projection)
    if not window:
        yield table
        return
    ranges = tokens.ranges
    numbers = shuffled_passes(len(ranges), torch.Generator().manual_seed(seed))

    def read(number: int) -> Tensor:
        return projected_block(parts, projection, torch.arange(*ranges[number]))

    with ThreadPoolExecutor(1, "cspipe-tokens") as reader:
        chosen = islice(numbers, len(ranges)) if window == count else numbers
        held = Window(table_VTP, len(known_L), window, read_ahead(reader, read, chosen))
        held.advance(window)
        yield table if window == count else replace(table, renew=partial(held.advance, settings.batch))


def table_of_heads(
    table_VTP: Tensor, label_N: Tensor, labelled: Sequence[Ints], known_L: Ints, projection: Projection
) -> Table:
    """Which rows of a table each head may look at: its labelled rows, and the window that follows those of all heads.

    Without a window rows are drawn from the labelled ones, and no term looks at them.
    """
    label_T = torch.full(table_VTP.shape[1:2], -1, dtype=label_N.dtype)
    label_T[: len(known_L)] = label_N[torch.from_numpy(known_L)]
    device = table_VTP.device
    own = [torch.from_numpy(np.searchsorted(known_L, rows)).to(device) for rows in labelled]
    window = torch.arange(len(known_L), len(label_T), device=device)
    unlabelled = [window] * len(own) if len(window) else own
    return Table([projection], [0] * len(own), table_VTP.flatten(0, 1), label_T.to(device), own, unlabelled)
