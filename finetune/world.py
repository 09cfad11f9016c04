"""Several processes, one step: each embeds its share of a batch, and all see the whole batch behind the backbone.

Tokens are gathered with gradients before the head, so covariances, the marginal of the content and every other term of
a batch are those of the global batch. Head and discriminators are small: each process computes them on all rows and
gets the same gradients to the bit, so only the backbone's gradients travel, and they are summed. Legend: `B` rows of
the global batch, `D` token width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cspipe.store.errors import SettingError

Ints = NDArray[np.int64]


class _Gather(torch.autograd.Function):
    """All rows forward; backward, the gradient of one's own rows: every process has the gradient of the whole."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, rank: int, size: int) -> Tensor:  # noqa: ANN401
        ctx.own = slice(rank * len(mine), (rank + 1) * len(mine))
        parts = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return gradients[0][ctx.own], None, None


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True for the one that writes files and speaks."""
        return self.rank == 0

    def mine(self, rows: Ints) -> Ints:
        """This process's share of a batch's rows, in order.

        Raises:
            SettingError: the rows cannot be shared out evenly.
        """
        if len(rows) % self.size:
            raise SettingError(
                f"{len(rows)} rows of a batch cannot be shared by {self.size} processes: change finetune.batch or "
                "finetune.labelled_batch so that their sum is a multiple."
            )
        share = len(rows) // self.size
        return rows[self.rank * share : (self.rank + 1) * share]

    def own(self, whole_BX: Tensor) -> Tensor:
        """This process's rows of something that every process has all of."""
        share = len(whole_BX) // self.size
        return whole_BX[self.rank * share : (self.rank + 1) * share]

    def gather(self, mine_BX: Tensor) -> Tensor:
        """All processes' rows, in order, with gradients."""
        if self.size == 1:
            return mine_BX
        gathered: Tensor = _Gather.apply(mine_BX, self.rank, self.size)
        return gathered

    def add(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The sum over all processes of each gradient; which are None is the same in all of them."""
        if self.size > 1:
            gradients = [None if gradient is None else gradient.contiguous() for gradient in gradients]
            for gradient in gradients:
                if gradient is not None:
                    dist.all_reduce(gradient)
        return list(gradients)

    def shared(self, value: Tensor) -> Tensor:
        """A term of the backbone's weights themselves, whose gradient every process has whole: each takes its share."""
        return value if self.size == 1 else value / self.size + (value - value / self.size).detach()

    def agree(self, text: str | None) -> str | None:
        """What the first process says."""
        if self.size == 1:
            return text
        told: list[str | None] = [text]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def own_device(device: str) -> str:
    """The device of this process: torchrun's processes have a GPU each."""
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return f"cuda:{os.environ['LOCAL_RANK']}"


def join_world(device: str) -> World:
    """The processes that torchrun started, joined; alone where it did not start this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), size) if size > 1 else ALONE
