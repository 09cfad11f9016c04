"""What a step sees: rows drawn for many heads at once, their tokens gathered and mixed.

Legend: `H` heads, `B` unlabelled batch rows, `L` labelled batch rows, `T` clean rows of the resident table, `V` views,
`P` projected width, `K` classes, `S` style, `Q` steps drawn ahead, `X` all rows of a step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cspipe.headtrain.objective import critics_in_use
from cspipe.headtrain.projection import Projection
from cspipe.headtrain.settings import HeadSettings

STEPS_DRAWN_AHEAD = 50


@dataclass(frozen=True)
class Votes:
    """Class probabilities that others give unlabelled rows, which L_mix follows.

    Attributes:
        vote_HVK: of each head's voted rows, in half precision.
        place_T: where the votes of a row of the table lie among those of its head.
    """

    vote_HVK: Tensor
    place_T: Tensor

    def of(self, row_HB: Tensor) -> Tensor:
        """Votes `(H, B, K)` on clean rows of the table, in single precision."""
        head_H1 = torch.arange(len(self.vote_HVK), device=row_HB.device)[:, None]
        return self.vote_HVK[head_H1, self.place_T[row_HB]].float()


@dataclass(frozen=True)
class Pools:
    """Which rows of the resident table each head may look at.

    Attributes:
        labelled: one vector of row numbers a head.
        unlabelled: one vector of row numbers a head; all training rows, the labelled ones too.
        prior_HK: class prior of each head.
        views: V, augmented views of each row. The table holds the clean rows first, then all rows' first view, and
            so on: view v of row r is row r + v T.
        votes: what L_mix follows in place of a head's own content; `unlabelled` are then voted rows.
    """

    labelled: Sequence[Tensor]
    unlabelled: Sequence[Tensor]
    prior_HK: Tensor
    views: int = 0
    votes: Votes | None = None


@dataclass(frozen=True)
class Table:
    """The rows that a training looks at, resident on its device.

    Attributes:
        projections: one a group of heads, which look at the same rows.
        group: number of each head's group.
        table_TP: all clean rows, then their first view, and so on: `(T (V + 1), P)`.
        label_T: classes of the clean rows; only those of labelled rows are looked at.
        labelled: row numbers of each head, see `Pools`.
        unlabelled: likewise.
        renew: called before each step where the table holds a part of the rows at a time.
        votes: on the unlabelled rows, see `Pools`.
    """

    projections: list[Projection]
    group: list[int]
    table_TP: Tensor
    label_T: Tensor
    labelled: Sequence[Tensor]
    unlabelled: Sequence[Tensor]
    renew: Callable[[], None] | None = None
    votes: Votes | None = None


@dataclass(frozen=True)
class Real:
    """What the discriminators take for real, and MMD compares with: draws of both priors, rows of tokens."""

    class_HB: Tensor
    style_HBS: Tensor
    row_HB: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step sees: row numbers, and where a term compares with them, draws of the priors.

    `view_HB` is for each unlabelled row itself or one of its views, None where there are none; `share_HB1` is what each
    of them keeps when it is mixed with the one before it.
    """

    labelled_HL: Tensor
    unlabelled_HB: Tensor
    view_HB: Tensor | None
    share_HB1: Tensor
    real: Real | None


def head_generators(seeds: Sequence[int], device: torch.device | str) -> list[torch.Generator]:
    """One generator a head, so that a head draws the same rows whatever trains beside it."""
    return [torch.Generator(device).manual_seed(seed + 1_000_003) for seed in seeds]


def draw_passes(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` entries of `pool` in whole shuffled passes: every row is seen equally often."""
    passes = -(-count // len(pool))
    order = [torch.randperm(len(pool), generator=generator, device=pool.device) for _ in range(passes)]
    return pool[torch.cat(order)[:count]]


def draw_prior(prior_K: Tensor, draws: int, generator: torch.Generator, steps: int) -> Tensor:
    """Classes `(steps, draws)` of the prior by systematic sampling: each count is its expectation to within one.

    With a uniform prior the draws of a step are exactly balanced, as in the predecessor.
    """
    start_Q1 = torch.rand(steps, 1, generator=generator, device=prior_K.device, dtype=prior_K.dtype)
    point_QB = (torch.arange(draws, device=prior_K.device) + start_Q1) / draws
    edges_K = prior_K.cumsum(0)
    edges_K = edges_K / edges_K[-1]
    return torch.searchsorted(edges_K, point_QB, right=True).clamp_max(len(prior_K) - 1)


def draw_shares(
    steps: int, rows: int, settings: HeadSettings, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """What each row keeps when it is mixed with the one before it `(steps, rows, 1)`: all, where it is not mixed."""
    drawn = torch.rand(steps, rows, 1, generator=generator, device=generator.device, dtype=dtype)
    mixed = drawn < settings.mix_share
    return torch.where(mixed, drawn / (settings.mix_share or 1.0), torch.ones_like(drawn))


def draw_views(row_QB: Tensor, pools: Pools, rows: int, generator: torch.Generator) -> Tensor:
    """For each row itself, half of the time, or one of its views; the rows where there are none.

    What is judged is no view: with four and 1,000 labels half is .2 points better than a fifth (MNIST, dev rows).
    """
    if not pools.views:
        return row_QB
    drawn_QB = torch.randint(2 * pools.views, row_QB.shape, generator=generator, device=row_QB.device)
    return row_QB + rows * (drawn_QB - pools.views + 1).clamp_min(0)


def draw_batches(
    pools: Pools, settings: HeadSettings, generators: Sequence[torch.Generator], table_rows: int, dtype: torch.dtype
) -> Iterator[Batch]:
    """Batches without end; the draws of many steps are made together, so no step runs Python a head.

    Args:
        pools: rows of each head.
        settings: sizes of the batches.
        generators: one a head.
        table_rows: rows of the table, views included.
        dtype: of the draws.
    """
    ahead, rows, clean_rows = STEPS_DRAWN_AHEAD, settings.batch, table_rows // (pools.views + 1)
    compares = bool(critics_in_use(settings)) or (settings.lambda_s > 0 and settings.style_term == "mmd")
    while True:
        parts: list[tuple[Tensor, ...]] = []
        reals: list[tuple[Tensor, ...]] = []
        for head, generator in enumerate(generators):
            pool, labels = pools.unlabelled[head], pools.labelled[head]
            known = draw_passes(labels, ahead * settings.labelled_batch, generator).view(ahead, -1)
            labelled = draw_views(known, pools, clean_rows, generator)
            unlabelled = draw_passes(pool, ahead * rows, generator).view(ahead, rows)
            views = [draw_views(unlabelled, pools, clean_rows, generator)] if pools.views else []
            share = draw_shares(ahead, rows, settings, generator, dtype)
            parts.append((labelled, unlabelled, share, *views))
            if compares:
                prior = draw_prior(pools.prior_HK[head], rows, generator, ahead)
                style = torch.randn(ahead, rows, settings.style, generator=generator, device=pool.device, dtype=dtype)
                reals.append((prior, style, draw_passes(pool, ahead * rows, generator).view(ahead, rows)))
        drawn = [torch.stack(part, 1) for part in zip(*parts, strict=True)]
        real = [torch.stack(part, 1) for part in zip(*reals, strict=True)]
        for step in range(ahead):
            now = Real(*(part[step] for part in real)) if real else None
            labelled, unlabelled, share, *view = (part[step] for part in drawn)
            yield Batch(labelled, unlabelled, view[0] if view else None, share, now)


def gather(table_TP: Tensor, batch: Batch, settings: HeadSettings) -> tuple[Tensor, Tensor | None]:
    """Tokens of a step, `(H, X, P)`: labelled rows, unlabelled rows and their views; and shares where rows are mixed.

    Every row is copied out of the table once, straight to its place.
    """
    if not settings.semi_supervised:
        return table_TP[batch.labelled_HL], None
    mixes = settings.lambda_mix > 0
    views = [batch.view_HB] if mixes and batch.view_HB is not None else []
    row_HX = torch.cat([batch.labelled_HL, batch.unlabelled_HB, *views], 1)
    token_HXP = table_TP.index_select(0, row_HX.view(-1)).view(*row_HX.shape, table_TP.shape[1])
    return token_HXP, batch.share_HB1 if mixes else None
