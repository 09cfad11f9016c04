"""Trained heads: fitting many at once, using one.

Legend: `N` rows, `D` token width, `K` classes, `S` style, `H` heads.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.headtrain.batches import Pools, Table
from cspipe.headtrain.chunked import ChunkedTokens, Tokens
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critics_in_use
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.streaming import streamed_table
from cspipe.headtrain.train import train_heads
from cspipe.store.errors import SettingError

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class HeadTask:
    """One head to train.

    Attributes:
        labelled: positions of the labelled rows.
        unlabelled: positions of all training rows that it may look at, the labelled ones among them.
        seed: training seed (weights, batches, noise).
        prior_K: class prior; None is uniform.
    """

    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    seed: int = 0
    prior_K: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Head:
    """A trained head: projection and networks (a stack of one, in evaluation mode)."""

    stack: ContentStyle
    projection: Projection
    settings: HeadSettings

    @torch.no_grad()
    def encode(self, token_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Content logits `(N, K)` and style `(N, S)` of stored tokens `(N, D)`, on the head's device."""
        self.stack.eval()
        parts = [self.stack.encode(self.projection.rows(part)[None]) for part in torch.split(token_ND, ROWS_AT_ONCE)]
        return torch.cat([p[0][0] for p in parts]), torch.cat([p[1][0] for p in parts])

    def probabilities(self, token_ND: Tensor) -> Tensor:
        """Class probabilities `(N, K)`."""
        return self.encode(token_ND)[0].softmax(-1)

    def predict(self, token_ND: Tensor) -> NDArray[np.int64]:
        """Classes `(N,)`."""
        return self.probabilities(token_ND).argmax(1).cpu().numpy()


@torch.no_grad()
def probabilities_of(heads: Sequence[Head], token_ND: Tensor) -> list[Tensor]:
    """Class probabilities `(N, K)` of each head; rows are projected once for all heads that share a projection."""
    said: list[list[Tensor]] = [[] for _ in heads]
    for part in torch.split(token_ND, ROWS_AT_ONCE):
        projected: dict[int, Tensor] = {}
        for head, parts in zip(heads, said, strict=True):
            number = id(head.projection)
            if number not in projected:
                projected[number] = head.projection.rows(part)
            parts.append(head.stack.eval().encode(projected[number][None])[0][0].softmax(-1))
    return [torch.cat(parts) for parts in said]


@dataclass(frozen=True)
class Fit:
    """What `fit_heads` gives back.

    Attributes:
        heads: one trained head a task, in order.
        history: about fifty records of every term `(H,)`, mean since the record before, with `step`.
    """

    heads: list[Head]
    history: list[dict[str, Tensor]]


def fit_heads(
    token_ND: Tokens,
    label_N: Tensor,
    tasks: Sequence[HeadTask],
    settings: HeadSettings,
    *,
    classes: int,
    view_VND: Sequence[Tokens] = (),
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> Fit:
    """Trains one content-style head a task, all at once.

    Args:
        token_ND: stored tokens of any float type, in memory, or in their store (then all tasks look at all rows).
        label_N: classes; only the entries that a task names as labelled are looked at.
        tasks: rows and seed of each head.
        settings: shared by all heads; the batch is that of the task with the fewest rows, see `HeadSettings.on_rows`.
        classes: K.
        view_VND: tokens of augmented views of the same rows, `(N, D)` each, kept where those of the rows are.
        device: where tables and heads live.
        on_step: called with the number of steps done, some fifty times.

    Raises:
        SettingError: a task without labelled rows or with a label outside 0..K-1, or without unlabelled rows;
            tokens in their store and a task that may not look at all of them, or too low a memory limit.
        StoreError: tokens in their store are damaged.
    """
    for task in tasks:
        check_task(task, label_N, classes)
    view_VND = view_VND[: settings.views]
    given, settings = settings, settings.on_rows(min(len(task.unlabelled) for task in tasks), classes)
    prior_HK = torch.stack([torch.full((classes,), 1 / classes) if task.prior_K is None
                            else torch.from_numpy(task.prior_K).float() for task in tasks])  # fmt: skip
    seeds = [task.seed for task in tasks]
    opened: AbstractContextManager[Table]
    if isinstance(token_ND, ChunkedTokens):
        parts = [token_ND, *(view for view in view_VND if isinstance(view, ChunkedTokens))]
        opened = streamed_table(
            parts, label_N, [task.labelled for task in tasks], [task.unlabelled for task in tasks], settings,
            seed=seeds[0], device=device,
        )  # fmt: skip
    else:
        resident = [view for view in view_VND if isinstance(view, Tensor)]
        opened = nullcontext(table_of_tasks(token_ND, label_N, resident, tasks, settings, device))
    with opened as table:
        stack = ContentStyle(
            width=table.projections[0].width, classes=classes, style=settings.style, hidden=settings.hidden,
            norm=settings.norm, critics=critics_in_use(settings), seeds=seeds, precision=settings.precision,
        ).to(device)  # fmt: skip
        pools = Pools(table.labelled, table.unlabelled, prior_HK.to(device), len(view_VND))
        history = train_heads(
            stack, table.table_TP, table.label_T, pools, settings, seeds=seeds, on_step=on_step,
            before_step=table.renew,
        )  # fmt: skip
    heads = [Head(stack.one(h), table.projections[g], given) for h, g in enumerate(table.group)]
    return Fit(heads, history)


def table_of_tasks(
    token_ND: Tensor,
    label_N: Tensor,
    view_VND: Sequence[Tensor],
    tasks: Sequence[HeadTask],
    settings: HeadSettings,
    device: torch.device | str,
) -> Table:
    """All rows that the tasks look at, projected; tasks that look at the same rows share them."""
    pools, group = group_tasks(tasks)
    projections, table_TP = resident_table(token_ND, view_VND, pools, settings, device)
    offsets = np.cumsum([0, *map(len, pools)]).tolist()
    label_T = torch.cat([label_N[torch.from_numpy(rows)] for rows in pools]).to(device)
    unlabelled = [torch.arange(len(pools[g]), device=device) + offsets[g] for g in group]
    labelled = [
        torch.from_numpy(np.searchsorted(pools[g], task.labelled)).to(device) + offsets[g]
        for g, task in zip(group, tasks, strict=True)
    ]
    return Table(projections, group, table_TP, label_T, labelled, unlabelled)


def resident_table(
    token_ND: Tensor,
    view_VND: Sequence[Tensor],
    pools: Sequence[NDArray[np.int64]],
    settings: HeadSettings,
    device: torch.device | str,
) -> tuple[list[Projection], Tensor]:
    """One projection a pool of rows, fitted on its clean rows, and the table that training looks at.

    The table holds the clean rows of all pools, then their first view, and so on: `(T (V + 1), P)`.
    """
    projections: list[Projection] = []
    table_TP = torch.empty(0)
    starts = np.cumsum([0, *map(len, pools)]).tolist()
    for start, rows in zip(starts, pools, strict=False):
        whole, at = len(rows) == len(token_ND), torch.from_numpy(rows)
        pool_ND = token_ND if whole else token_ND[at]
        projection = fit_projection(
            pool_ND, settings.components, scale_floor=settings.scale_floor, anchors=settings.anchors, device=device
        )
        if not projections:
            table_TP = torch.empty(starts[-1] * (1 + len(view_VND)), projection.width, device=device)
        for number, view_ND in enumerate([pool_ND, *view_VND]):
            part_ND = view_ND if whole or number == 0 else view_ND[at]
            first = starts[-1] * number + start
            table_TP[first : first + len(rows)] = projection.rows(part_ND)
        projections.append(projection)
    return projections, table_TP


def check_task(task: HeadTask, label_N: Tensor, classes: int) -> None:
    """Refuses a task that cannot be trained."""
    if len(task.labelled) == 0 or len(task.unlabelled) < 2:
        raise SettingError(
            f"a head needs labelled rows and at least two training rows; this one has {len(task.labelled)} and "
            f"{len(task.unlabelled)}."
        )
    seen = label_N[torch.from_numpy(task.labelled)]
    if int(seen.min()) < 0 or int(seen.max()) >= classes:
        raise SettingError(
            f"labels of labelled rows must be from 0 to {classes - 1}; found {int(seen.min())} to {int(seen.max())}."
        )


def group_tasks(tasks: Sequence[HeadTask]) -> tuple[list[NDArray[np.int64]], list[int]]:
    """Distinct sorted row pools, and the pool of each task: heads that look at the same rows share one table."""
    pools: list[NDArray[np.int64]] = []
    group: list[int] = []
    number: dict[bytes, int] = {}
    for task in tasks:
        rows = np.union1d(task.unlabelled, task.labelled).astype(np.int64)
        key = rows.tobytes()
        if key not in number:
            number[key] = len(pools)
            pools.append(rows)
        group.append(number[key])
    return pools, group
