"""Training of many heads at once on resident tokens: sampling, one step, the loop.

Legend: `H` heads, `B` unlabelled batch rows, `L` labelled batch rows, `T` rows of the resident table, `P` projected
width, `K` classes, `S` style, `Q` steps drawn ahead.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cspipe.headtrain import losses
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.settings import HeadSettings

STEPS_DRAWN_AHEAD = 50


@dataclass(frozen=True)
class Pools:
    """Which rows of the resident table each head may look at.

    Attributes:
        labelled: one vector of row numbers a head.
        unlabelled: one vector of row numbers a head; all training rows, the labelled ones too.
        prior_HK: class prior of each head.
    """

    labelled: Sequence[Tensor]
    unlabelled: Sequence[Tensor]
    prior_HK: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step sees: row numbers, draws of the priors."""

    labelled_HL: Tensor
    unlabelled_HB: Tensor
    content_prior_HB: Tensor
    style_prior_HBS: Tensor
    real_HB: Tensor


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


def draw_batches(
    pools: Pools, settings: HeadSettings, generators: Sequence[torch.Generator], dtype: torch.dtype
) -> Iterator[Batch]:
    """Batches without end; the draws of many steps are made together, so no step runs Python a head."""
    ahead, rows = STEPS_DRAWN_AHEAD, settings.batch
    while True:
        labelled, unlabelled, content, style, real = [], [], [], [], []
        for head, generator in enumerate(generators):
            pool, labels = pools.unlabelled[head], pools.labelled[head]
            labelled.append(draw_passes(labels, ahead * settings.labelled_batch, generator).view(ahead, -1))
            unlabelled.append(draw_passes(pool, ahead * rows, generator).view(ahead, rows))
            real.append(draw_passes(pool, ahead * rows, generator).view(ahead, rows))
            content.append(draw_prior(pools.prior_HK[head], rows, generator, ahead))
            noise = torch.randn(ahead, rows, settings.style, generator=generator, device=pool.device, dtype=dtype)
            style.append(noise)
        drawn = [torch.stack(part, 1) for part in (labelled, unlabelled, content, style, real)]
        for step in range(ahead):
            yield Batch(*(part[step] for part in drawn))


def objective(
    stack: ContentStyle,
    token_HXP: Tensor,
    label_HL: Tensor,
    prior_HK: Tensor,
    settings: HeadSettings,
    *,
    target_HBP: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every term of L_total that is switched on, one value a head, and the samples the discriminators look at.

    Args:
        stack: the heads.
        token_HXP: the labelled rows, then the unlabelled rows; L is `label_HL.shape[1]`. With no term on
            unlabelled rows the latter may be absent.
        label_HL: class of each labelled row.
        prior_HK: class prior.
        settings: weights and estimators.
        target_HBP: what L_y rebuilds of the unlabelled rows; None: their tokens as given. Never followed backward.

    Returns:
        Terms `(H,)` by their symbol, unweighted, and model samples by discriminator, still attached.
    """
    rows = label_HL.shape[1]
    logits_HXK, style_HXS = stack.encode(token_HXP)
    terms = {"L_c": losses.content_cross_entropy(logits_LK=logits_HXK[:, :rows], label_L=label_HL)}
    samples: dict[str, Tensor] = {}
    if not settings.semi_supervised:
        return terms, samples
    logits_HBK, style_HBS, token_HBP = logits_HXK[:, rows:], style_HXS[:, rows:], token_HXP[:, rows:]
    content_HBK = logits_HBK.softmax(-1)
    if settings.lambda_c and settings.content_term == "entropy":
        terms["D_c"] = losses.content_prior_divergence(
            logits_BK=logits_HBK, prior_K=prior_HK, entropy_weight=settings.entropy_weight
        )
    if settings.lambda_y or settings.lambda_yy:
        rebuilt_HBP = stack.decode(content_HBK, style_HBS)
        target_HBP = token_HBP if target_HBP is None else target_HBP
        terms["L_y"] = losses.token_reconstruction(token_BD=target_HBP.detach(), rebuilt_BD=rebuilt_HBP)
        samples["token"] = rebuilt_HBP
    samples |= {"content": content_HBK, "style": style_HBS}
    samples = {name: sample for name, sample in samples.items() if name in stack.critics}
    for name, sample in samples.items():
        logit_HB = stack.judge(name, sample)
        symbol = {"content": "D_c", "style": "D_s", "token": "D_y"}[name]
        terms[symbol] = losses.adversarial(logit_B=logit_HB, estimator=settings.estimator)
        terms[f"{symbol}_kl"] = losses.density_ratio_kl(logit_B=logit_HB.detach())
    return terms, samples


def total(terms: dict[str, Tensor], settings: HeadSettings) -> Tensor:
    """L_total `(H,)`: the weighted sum of the terms at hand."""
    weights = {
        "L_c": 1.0, "D_c": settings.lambda_c, "D_s": settings.lambda_s, "D_y": settings.lambda_y,
        "L_y": settings.lambda_yy,
    }  # fmt: skip
    return torch.stack([weights[name] * value for name, value in terms.items() if name in weights]).sum(0)


def critic_losses(stack: ContentStyle, samples: dict[str, Tensor], reals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy `(H,)` of every discriminator, prior or real rows against detached model rows."""
    values = {}
    for name, sample in samples.items():
        rows = reals[name].shape[1]
        logit = stack.judge(name, torch.cat([reals[name], sample.detach()], 1))
        values[name] = losses.discriminator_loss(logit_prior_B=logit[:, :rows], logit_model_B=logit[:, rows:])
    return values


def critics_in_use(settings: HeadSettings) -> dict[str, int]:
    """Discriminators that the settings ask for -> hidden width."""
    use = {
        "content": settings.lambda_c > 0 and settings.content_term == "adversarial",
        "style": settings.lambda_s > 0,
        "token": settings.lambda_y > 0,
    }
    return {name: settings.discriminator for name, wanted in use.items() if wanted}


def adam(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam with the fused kernel; steps of stacked heads are independent of one another."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def apply_gradients(loss: Tensor, optimiser: torch.optim.Optimizer, *, clip: float | None = None) -> None:
    """One step on exactly the optimiser's own parameters: other weights in the graph gather no gradient.

    Args:
        loss: a number.
        optimiser: whose parameters are moved.
        clip: largest norm of the whole gradient.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
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

    Returns:
        Some fifty records of the mean of each term `(H,)` since the record before, with `step`.
    """
    stack.train()
    batches = draw_batches(pools, settings, head_generators(seeds, table_TP.device), table_TP.dtype)
    generator = adam(stack.generator_parameters(), settings.lr)
    critic = adam(list(stack.critics.parameters()), settings.discriminator_lr) if stack.critics else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(generator, settings.steps, settings.lr * settings.lr_end)
    every = max(1, settings.steps // 50)
    history: list[dict[str, Tensor]] = []
    sums: dict[str, Tensor] = {}
    for step in range(1, settings.steps + 1):
        terms = train_step(stack, table_TP, label_T, pools, settings, next(batches), generator, critic)
        schedule.step()
        sums = {name: sums[name] + value if name in sums else value for name, value in terms.items()}
        if step % every == 0:
            history.append({name: value / every for name, value in sums.items()} | {"step": torch.tensor(step)})
            sums = {}
            if on_step:
                on_step(step)
    stack.eval()
    return history


def train_step(
    stack: ContentStyle,
    table_TP: Tensor,
    label_T: Tensor,
    pools: Pools,
    settings: HeadSettings,
    batch: Batch,
    generator: torch.optim.Optimizer,
    critic: torch.optim.Optimizer | None,
) -> dict[str, Tensor]:
    """One step of encoder and decoder, then one of the discriminators on the same forward pass; detached terms."""
    rows_HX = batch.labelled_HL
    if settings.semi_supervised:
        rows_HX = torch.cat([batch.labelled_HL, batch.unlabelled_HB], 1)
    terms, samples = objective(stack, table_TP[rows_HX], label_T[batch.labelled_HL], pools.prior_HK, settings)
    apply_gradients(total(terms, settings).sum(), generator)
    told = {name: value.detach() for name, value in terms.items()}
    if critic is not None:
        reals = {
            "content": torch.nn.functional.one_hot(batch.content_prior_HB, stack.classes).to(table_TP.dtype),
            "style": batch.style_prior_HBS,
        }
        if "token" in samples:
            reals["token"] = table_TP[batch.real_HB]
        judged = critic_losses(stack, samples, reals)
        apply_gradients(torch.stack(list(judged.values())).sum(), critic)
        told |= {f"critic_{name}": value.detach() for name, value in judged.items()}
    return told
