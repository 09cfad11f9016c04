"""What a head is to be trained on, and the table of rows in memory that many heads train on at once.

Legend: `N` rows, `D` token width, `P` projected width, `T` clean rows of the table, `V` views.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.headtrain.batches import Table
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError


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
            pool_ND,
            settings.components,
            scale_floor=settings.scale_floor,
            power=settings.power,
            anchors=settings.anchors,
            device=device,
        )
        if not projections:
            table_TP = torch.empty(starts[-1] * (1 + len(view_VND)), projection.width, device=device)
        for number, view_ND in enumerate([pool_ND, *view_VND]):
            part_ND = view_ND if whole or number == 0 else view_ND[at]
            first = starts[-1] * number + start
            table_TP[first : first + len(rows)] = projection.rows(part_ND)
        projections.append(projection)
    return projections, table_TP


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
