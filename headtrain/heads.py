"""Trained heads: fitting many at once, using one, keeping one in a file.

Legend: `N` rows, `D` token width, `K` classes, `S` style, `H` heads.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.projection import Projection, fit_projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.train import Pools, critics_in_use, train_heads
from cspipe.store.errors import MismatchError, MissingDataError, SettingError

ROWS_AT_ONCE = 4096
FORMAT = 1


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
    token_ND: Tensor,
    label_N: Tensor,
    tasks: Sequence[HeadTask],
    settings: HeadSettings,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> Fit:
    """Trains one content-style head a task, all at once.

    Args:
        token_ND: stored tokens of any float type.
        label_N: classes; only the entries that a task names as labelled are looked at.
        tasks: rows and seed of each head.
        settings: shared by all heads.
        classes: K.
        device: where tables and heads live.
        on_step: called with the number of steps done, some fifty times.

    Raises:
        SettingError: a task without labelled rows or with a label outside 0..K-1, or without unlabelled rows.
    """
    for task in tasks:
        check_task(task, label_N, classes)
    pools_seen, group = group_tasks(tasks)
    projections: list[Projection] = []
    tables: list[Tensor] = []
    offsets: list[int] = []
    for rows in pools_seen:
        pool_ND = token_ND if len(rows) == len(token_ND) else token_ND[torch.from_numpy(rows)]
        projections.append(fit_projection(pool_ND, settings.components, device=device))
        offsets.append(sum(len(table) for table in tables))
        tables.append(projections[-1].rows(pool_ND))
    label_T = torch.cat([label_N[torch.from_numpy(rows)] for rows in pools_seen]).to(device)
    unlabelled = [torch.arange(len(pools_seen[g]), device=device) + offsets[g] for g in group]
    labelled = [
        torch.from_numpy(np.searchsorted(pools_seen[g], task.labelled)).to(device) + offsets[g]
        for g, task in zip(group, tasks, strict=True)
    ]
    prior_HK = torch.stack([torch.full((classes,), 1 / classes) if task.prior_K is None
                            else torch.from_numpy(task.prior_K).float() for task in tasks])  # fmt: skip
    seeds = [task.seed for task in tasks]
    stack = ContentStyle(
        width=projections[0].width, classes=classes, style=settings.style, hidden=settings.hidden,
        critics=critics_in_use(settings), seeds=seeds,
    ).to(device)  # fmt: skip
    pools = Pools(labelled, unlabelled, prior_HK.to(device))
    table_TP = tables[0] if len(tables) == 1 else torch.cat(tables)
    history = train_heads(stack, table_TP, label_T, pools, settings, seeds=seeds, on_step=on_step)
    heads = [Head(stack.one(h), projections[g], settings) for h, g in enumerate(group)]
    return Fit(heads, history)


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


def save_head(path: Path, head: Head, labelled_row_id: NDArray[np.int64], card: Mapping[str, Any]) -> None:
    """Writes one head as safetensors, atomically.

    Args:
        path: the file.
        head: what to keep.
        labelled_row_id: the store's row ids of the labelled rows it was trained with.
        card: JSON facts that belong to it: method, store key, backbone, dataset, class names, split.
    """
    tensors = {f"stack.{name}": value.detach().cpu().contiguous() for name, value in head.stack.state_dict().items()}
    tensors |= {
        "projection.mean": head.projection.mean_D.cpu(),
        "projection.scale": head.projection.scale_D.cpu(),
    }
    if head.projection.basis_DP is not None:
        tensors["projection.basis"] = head.projection.basis_DP.cpu().contiguous()
    tensors["labelled_row_id"] = torch.from_numpy(np.ascontiguousarray(labelled_row_id))
    shape = {"classes": head.stack.classes, "width": head.stack.width}
    facts = {"format": FORMAT, "settings": asdict(head.settings), "shape": shape, **card}
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={"cspipe": json.dumps(facts, allow_nan=False)})
    partial.replace(path)


@dataclass(frozen=True)
class SavedHead:
    """A head from a file with what was recorded beside it."""

    head: Head
    labelled_row_id: NDArray[np.int64]
    card: dict[str, Any]
    path: Path


def load_head(path: Path, *, device: torch.device | str = "cpu") -> SavedHead:
    """Reads a head file.

    Raises:
        MissingDataError: there is no such file.
        MismatchError: the file is not a head of this program.
    """
    if not path.is_file():
        raise MissingDataError(f"no head at {path}. Train one with cspipe head, or name another run.")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["cspipe"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise MismatchError(f"{path} is not a head written by cspipe head ({error}).") from error
    if facts.get("format") != FORMAT:
        raise MismatchError(f"{path} has head format {facts.get('format')}; this version reads format {FORMAT}.")
    try:
        head = build_head(facts, tensors, device)
        return SavedHead(head, tensors["labelled_row_id"].numpy(), facts, path)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise MismatchError(
            f"{path} does not hold a whole head ({reason}). Train it again with cspipe head."
        ) from error


def build_head(facts: dict[str, Any], tensors: Mapping[str, Tensor], device: torch.device | str) -> Head:
    """A head from what its file says and holds."""
    settings = HeadSettings(**facts["settings"] | {"prior_given": tuple(facts["settings"]["prior_given"])})
    stack = ContentStyle(
        width=facts["shape"]["width"], classes=facts["shape"]["classes"], style=settings.style,
        hidden=settings.hidden, critics=critics_in_use(settings), seeds=[0],
    )  # fmt: skip
    weights = {name.removeprefix("stack."): t for name, t in tensors.items() if name.startswith("stack.")}
    stack.load_state_dict(weights)
    basis = tensors.get("projection.basis")
    projection = Projection(
        tensors["projection.mean"].to(device), tensors["projection.scale"].to(device),
        None if basis is None else basis.to(device),
    )  # fmt: skip
    return Head(stack.to(device).eval(), projection, settings)
