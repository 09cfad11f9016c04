"""Training of many heads at once on resident tokens: one step, the loop.

Legend: `H` heads, `T` clean rows of the resident table, `V` views of each, `P` projected width, `X` all rows of a step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from cspipe.headtrain.allocator import freed_memory_kept
from cspipe.headtrain.batches import Batch, Pools, draw_batches, gather, head_generators
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critic_losses, objective, total
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError

Objective = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


def compiled(function: Objective) -> Objective:
    """The function through torch.compile, as one graph.

    Raises:
        SettingError: when it is first called, there is no compiler that torch can use.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    graph = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*given: object, **named: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        try:
            return graph(*given, **named)
        except BackendCompilerFailed as error:
            cause = str(getattr(error, "inner_exception", error)).partition("\n")[0]
            raise SettingError(f"torch.compile failed ({cause}): leave head.settings.compile at false.") from error

    return call


def undecorated(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a decorator was put on."""
    wrapped: Callable[..., Any] = getattr(method, "__wrapped__", method)
    return wrapped


class Adam(torch.optim.Adam):
    """torch's own, without the decorators that serve torch.compile on optimisers: they import torch._dynamo, which
    takes a second of every run, and nothing here compiles a step."""

    add_param_group = undecorated(torch.optim.Adam.add_param_group)
    step = torch.no_grad()(undecorated(torch.optim.Adam.step))


def adam(parameters: list[torch.nn.Parameter], lr: float, beta2: float = 0.999) -> torch.optim.Adam:
    """Adam with the fused kernel; steps of stacked heads are independent of one another."""
    return Adam(parameters, lr=lr, betas=(0.9, beta2), fused=True)


def apply_gradients(
    loss: Tensor, optimiser: torch.optim.Optimizer, *, clip: float | None = None, again: bool = False
) -> None:
    """One step on exactly the optimiser's own parameters: other weights in the graph gather no gradient.

    Args:
        loss: a number.
        optimiser: whose parameters are moved.
        clip: largest norm of the whole gradient.
        again: part of the graph is followed once more, for another optimiser's parameters.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=again)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()


def train_heads(
    stack: ContentStyle,
    table_TP: Tensor,
    label_T: Tensor,
    pools: Pools,
    settings: HeadSettings,
    *,
    seeds: Sequence[int],
    on_step: Callable[[int], None] | None = None,
    before_step: Callable[[], None] | None = None,
) -> list[dict[str, Tensor]]:
    """Trains every head of `stack` in place on the resident table.

    Args:
        stack: H heads on the table's device.
        table_TP: standardised, projected tokens of all training rows.
        label_T: their classes; only the entries named by `pools.labelled` are looked at.
        pools: rows and class prior of each head.
        settings: shared by the heads.
        seeds: one training seed a head.
        on_step: called with the number of steps done, some fifty times.
        before_step: called before each step; it may change rows of the table.

    Returns:
        Some fifty records of the mean of each term `(H,)` since the record before, with `step` and `restarts`, how
        often each head had to go back to its last good state so far.
    """
    stack.train()
    batches = draw_batches(pools, settings, head_generators(seeds, table_TP.device), len(table_TP), table_TP.dtype)
    generator = adam(stack.generator_parameters(), settings.lr, settings.beta2)
    critic = adam(list(stack.critics.parameters()), settings.discriminator_lr) if stack.critics else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(generator, settings.steps, settings.lr * settings.lr_end)
    every = records_every(settings.steps)
    history: list[dict[str, Tensor]] = []
    sums: dict[str, Tensor] = {}
    watch = Watch(stack, [generator] if critic is None else [generator, critic])
    of = compiled(objective) if settings.compile else objective
    averaged = Averaged(stack, settings)
    with freed_memory_kept(table_TP.device):
        for step in range(1, settings.steps + 1):
            if before_step:
                before_step()
            terms = train_step(stack, table_TP, label_T, pools, settings, next(batches), generator, critic, of=of)
            schedule.step()
            sums = {name: sums[name] + value if name in sums else value for name, value in terms.items()}
            if step % every == 0:
                means = {name: value / every for name, value in sums.items()}
                history.append(means | {"step": torch.tensor(step), "restarts": watch.look(means).clone()})
                sums = {}
                if on_step:
                    on_step(step)
            averaged.look(step)
    averaged.put_back()
    stack.eval()
    return history


class Averaged:
    """The mean of a stack's weights over the last steps; some fifty times in a training they are looked at."""

    def __init__(self, stack: ContentStyle, settings: HeadSettings) -> None:
        self.stack, self.every = stack, records_every(settings.steps)
        self.after = settings.steps * (1 - settings.averaged)
        self.mean = AveragedModel(stack, use_buffers=True) if settings.averaged else None

    def look(self, step: int) -> None:
        """Takes the weights in, where the step is one of the last ones."""
        if self.mean is not None and step > self.after and step % self.every == 0:
            self.mean.update_parameters(self.stack)

    def put_back(self) -> None:
        """Puts the mean in the place of the last weights; those stay where none was taken in."""
        if self.mean is not None and self.mean.n_averaged > 0:
            self.stack.load_state_dict(self.mean.module.state_dict())


def records_every(steps: int) -> int:
    """Steps from one record of a training to the next."""
    return max(1, steps // 50)


class Watch:
    """Keeps the last state of every head that was good, and puts a head back there when it was lost.

    A head is lost when a term, a weight or a moment of it is no longer finite. It goes on from the good state with
    other batches; a head that is lost again and again ends in it. The other heads notice nothing.
    """

    def __init__(self, stack: ContentStyle, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.stack, self.optimisers = stack, optimisers
        weights = self.tensors()
        self.good = [tensor.clone() for tensor in weights]
        self.restarts = torch.zeros(len(weights[0]), dtype=torch.int64, device=weights[0].device)

    def tensors(self) -> list[Tensor]:
        """Weights, running statistics and Adam's moments, each with the heads first."""
        moments = [state[name] for optimiser in self.optimisers for state in optimiser.state.values()
                   for name in ("exp_avg", "exp_avg_sq")]  # fmt: skip
        return [*(weight.data for weight in self.stack.parameters()), *self.stack.buffers(), *moments]

    def look(self, terms: dict[str, Tensor]) -> Tensor:
        """Puts lost heads back and keeps the state of the others: restarts of each head so far, `(H,)`."""
        now = self.tensors()
        self.good += [torch.zeros_like(moment) for moment in now[len(self.good) :]]
        fine = torch.stack([*(value.isfinite() for value in terms.values()),
                            *(tensor.flatten(1).sum(1).isfinite() for tensor in now)]).all(0)  # fmt: skip
        nothing_lost = fine.device.type == "cpu" and bool(fine.all())  # other devices would be waited for
        for tensor, kept in zip(now, self.good, strict=True):
            if not nothing_lost:
                tensor.copy_(torch.where(fine.view(-1, *[1] * (tensor.ndim - 1)), tensor, kept))
            kept.copy_(tensor)
        self.restarts += ~fine
        return self.restarts


def train_step(
    stack: ContentStyle,
    table_TP: Tensor,
    label_T: Tensor,
    pools: Pools,
    settings: HeadSettings,
    batch: Batch,
    generator: torch.optim.Optimizer,
    critic: torch.optim.Optimizer | None,
    *,
    of: Objective = objective,
) -> dict[str, Tensor]:
    """One step of encoder and decoder, then one of the discriminators on the same forward pass; detached terms.

    `of` is `objective`, or what torch.compile made of it.
    """
    token_HXP, share_HB1 = gather(table_TP, batch, settings)
    terms, samples = of(
        stack, token_HXP, label_T[batch.labelled_HL % len(label_T)], pools.prior_HK, settings, share_HB1=share_HB1,
        vote_HBK=None if pools.votes is None else pools.votes.of(batch.unlabelled_HB),
        prior_HBS=None if batch.real is None else batch.real.style_HBS,
    )  # fmt: skip
    apply_gradients(total(terms, settings).sum(), generator, again=critic is not None)
    told = {name: value.detach() for name, value in terms.items()}
    if critic is not None and batch.real is not None:
        reals = {
            "content": torch.nn.functional.one_hot(batch.real.class_HB, stack.classes).to(table_TP.dtype),
            "style": batch.real.style_HBS,
        }
        if "token" in samples:
            reals["token"] = table_TP[batch.real.row_HB[:, : settings.rebuilt_batch or None]]
        judged = critic_losses(stack, samples, reals)
        apply_gradients(torch.stack(list(judged.values())).sum(), critic)
        told |= {f"critic_{name}": value.detach() for name, value in judged.items()}
    return told
