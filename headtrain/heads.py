"""Trained heads: fitting many at once, using one.

Legend: `N` rows, `D` token width, `K` classes, `S` style, `H` heads.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from cspipe.headtrain.batches import Pools, Table, Votes
from cspipe.headtrain.chunked import ChunkedTokens, Tokens
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critics_in_use
from cspipe.headtrain.projection import Projection
from cspipe.headtrain.settings import HeadSettings
from cspipe.headtrain.streaming import streamed_table
from cspipe.headtrain.tasks import HeadTask, check_task, group_tasks, table_of_tasks
from cspipe.headtrain.train import train_heads

ROWS_AT_ONCE = 4096

VOTED_ROWS, VOTERS_STEPS = 50_000, 300
"""Of so many unlabelled rows votes are kept at most, as many as a head sees eight times; and steps of a voter.

On standardised tokens heads of 300 steps are as good as those of 1,000 (1.2, .9, -.3 points above a supervised head
for 1.2, .9, -.6; MNIST under yellow stripes, ViT-S/14, 100, 250 and 1,000 labels, dev rows).
"""


@dataclass(frozen=True)
class Head:
    """A trained head: projection and networks (a stack of one, in evaluation mode).

    `prior_K` are the class shares that D_c held it to; None where none are known.
    """

    stack: ContentStyle
    projection: Projection
    settings: HeadSettings
    prior_K: Tensor | None = None

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
        on_step: called with the number of steps done, some fifty times; voters' steps count in proportion.

    Raises:
        SettingError: a task without labelled rows or with a label outside 0..K-1, or without unlabelled rows;
            tokens in their store and a task that may not look at all of them, or too low a memory limit.
        StoreError: tokens in their store are damaged.
    """
    for task in tasks:
        check_task(task, label_N, classes)
    view_VND = view_VND[: settings.views]
    if isinstance(token_ND, ChunkedTokens):
        settings = settings.unvoted()
    given, settings = settings, settings.on_rows(min(len(task.unlabelled) for task in tasks), classes)
    prior_HK = torch.stack([torch.full((classes,), 1 / classes) if task.prior_K is None
                            else torch.from_numpy(task.prior_K).float() for task in tasks])  # fmt: skip
    seeds = [task.seed for task in tasks]
    before = voters_steps(settings) if settings.voted else 0

    def told(done: int) -> None:
        if on_step:
            on_step(done * settings.steps // (before + settings.steps))

    opened: AbstractContextManager[Table]
    if isinstance(token_ND, ChunkedTokens):
        parts = [token_ND, *(view for view in view_VND if isinstance(view, ChunkedTokens))]
        opened = streamed_table(
            parts, label_N, [task.labelled for task in tasks], [task.unlabelled for task in tasks], settings,
            seed=seeds[0], device=device,
        )  # fmt: skip
    else:
        resident = [view for view in view_VND if isinstance(view, Tensor)]
        own = replace(settings, anchors=0) if settings.voted else settings
        held = table_of_tasks(token_ND, label_N, resident, tasks, own, device)
        opened = nullcontext(
            polled(held, token_ND, label_N, resident, tasks, given, classes, told) if own.voted else held
        )
    with opened as table:
        stack = ContentStyle(
            width=table.projections[0].width, classes=classes, style=settings.style, hidden=settings.hidden,
            norm=settings.norm, critics=critics_in_use(settings), seeds=seeds, precision=settings.precision,
        ).to(device)  # fmt: skip
        pools = Pools(table.labelled, table.unlabelled, prior_HK.to(device), len(view_VND), table.votes)
        history = train_heads(
            stack, table.table_TP, table.label_T, pools, settings, seeds=seeds,
            on_step=lambda step: told(before + step), before_step=table.renew,
        )  # fmt: skip
    heads = [Head(stack.one(h), table.projections[g], given, prior_HK[h]) for h, g in enumerate(table.group)]
    return Fit(heads, history)


def polled(
    table: Table,
    token_ND: Tensor,
    label_N: Tensor,
    view_VND: Sequence[Tensor],
    tasks: Sequence[HeadTask],
    settings: HeadSettings,
    classes: int,
    on_step: Callable[[int], None],
) -> Table:
    """The table with the mean votes of supervised heads on unlabelled rows: soft-vote self-training (arXiv 2503.09707).

    Each task has `voters` voters, which differ in their weights and batches. With `anchors` they see the tokens
    standardised with their neighbourhood, and the head that follows them does not: what it learns from both is better
    than either (points above a supervised head with 100, 250 and 1,000 labels: MNIST under yellow stripes, ViT-S/14,
    dev rows, the voters 1.2, .9, -.6, the head 1.9, 2.0, 1.8). A labelled row has its own class. Of many rows a fixed
    draw is voted on and looked at.
    """
    device = table.table_TP.device
    rows, group = group_tasks(tasks)
    drawn = [np.sort(np.random.default_rng(0).permutation(len(pool))[:VOTED_ROWS]) for pool in rows]
    alone = replace(settings.without_clusters(), steps=voters_steps(settings), compile=False)
    voters = fit_several(
        settings.voters, token_ND, label_N, tasks, alone, classes=classes, view_VND=view_VND, device=device,
        on_step=on_step,
    )  # fmt: skip
    vote_HVK = torch.zeros(len(tasks), max(map(len, drawn)), classes, dtype=torch.float16, device=device)
    for number, (pool, places) in enumerate(zip(rows, drawn, strict=True)):
        asked = [head for head, of in enumerate(group) if of == number]
        stored_VD, label_V = token_ND[torch.from_numpy(pool[places])], label_N[torch.from_numpy(pool[places])]
        for first in range(0, len(places), ROWS_AT_ONCE):
            part = slice(first, min(first + ROWS_AT_ONCE, len(places)))
            said = iter(probabilities_of([voter for head in asked for voter in voters[head]], stored_VD[part]))
            for head in asked:
                vote_HVK[head, part] = torch.stack([next(said) for _ in voters[head]]).mean(0).half()
        for head in asked:
            known_V = torch.from_numpy(np.isin(pool[places], tasks[head].labelled))
            vote_HVK[head, : len(places)][known_V.to(device)] = one_hot(label_V[known_V], classes).to(vote_HVK)
    place_T = torch.zeros_like(table.label_T)
    places_V = [torch.from_numpy(places).to(device) for places in drawn]
    seen = [own[places_V[number]] for own, number in zip(table.unlabelled, group, strict=True)]
    for row_V in seen:
        place_T[row_V] = torch.arange(len(row_V), device=device)
    return replace(table, unlabelled=seen, votes=Votes(vote_HVK, place_T))


def voters_steps(settings: HeadSettings) -> int:
    """Steps of a voter."""
    return min(settings.steps, VOTERS_STEPS)


def fit_several(
    number: int,
    token_ND: Tokens,
    label_N: Tensor,
    tasks: Sequence[HeadTask],
    settings: HeadSettings,
    *,
    classes: int,
    view_VND: Sequence[Tokens] = (),
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> list[list[Head]]:
    """So many heads of each task, which differ in their weights and batches; for the rest see `fit_heads`."""
    several = [replace(task, seed=task.seed * number + which) for task in tasks for which in range(number)]
    fit = fit_heads(
        token_ND, label_N, several, settings, classes=classes, view_VND=view_VND, device=device, on_step=on_step
    )
    return [fit.heads[first : first + number] for first in range(0, len(several), number)]
