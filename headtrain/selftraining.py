"""One round of self-training on the soft votes of several heads, after V-PET (arXiv 2503.09707).

Legend: `N` rows that may be looked at, `L` labelled rows, `K` classes, `D` token width, `P` projected width,
`B` batch rows.
"""

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.batches import Pools, draw_batches, head_generators
from cspipe.headtrain.given import Floats, Given
from cspipe.headtrain.heads import ROWS_AT_ONCE, VOTERS_STEPS
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.settings import MAIN_METHOD, HeadSettings, method_settings
from cspipe.headtrain.train import Averaged, adam, apply_gradients, train_heads

TEACHERS = 4
STUDENT_SEED = 7_919
STUDENT_STEPS = 400


def self_training(given: Given) -> Floats:
    """Four supervised heads vote on every row; one student learns the votes and the true labels. `(M, K)`.

    There is no threshold, the votes stay soft (the mean of the heads' probabilities), and there is one round. The
    source's voters are different backbones and adapters; ours are one architecture with four seeds on one backbone's
    tokens, so they agree more. The student starts anew, and learns from a batch of votes and one of true labels a
    step. Rows to predict take no part in the training.

    Teachers are supervised heads of 300 steps. The student sees principal components, for 400 steps, with the rate and
    memory of Adam of a content-style head. With 1,000 labels that is .932 on plain digits and .504 under yellow
    stripes; teachers of 700 steps .933 and .502; those with a short memory too, and a student of the whole token for
    700 steps, .935 and .493 (lite0, dev rows, 5 and 4 splits). Its batches are smaller where rows are few, as a
    content-style head's are: .865 for .860 (digits, 100 labels, 10 splits, dev rows).
    """
    settings = method_settings("supervised", given.settings)
    teachers = fit_teachers(given, replace(settings, steps=min(settings.steps, VOTERS_STEPS)))
    seen_NP, judged_MP = given.rows.principal
    votes_NK = mean_vote(teachers, given.rows.table_ND)
    own = method_settings(MAIN_METHOD, given.settings).on_rows(len(seen_NP), given.classes)
    student = fit_student(given, seen_NP, votes_NK, replace(own, steps=min(own.steps, STUDENT_STEPS)))
    probability_MK: Floats = mean_vote(student, judged_MP).cpu().numpy()
    return probability_MK


@torch.no_grad()
def mean_vote(stack: ContentStyle, token_ND: Tensor) -> Tensor:
    """Mean of the heads' class probabilities of standardised rows `(N, K)`, on the heads' device."""
    first = next(stack.parameters())
    parts = [part.to(first.device).expand(len(first), -1, -1) for part in torch.split(token_ND, ROWS_AT_ONCE)]
    return torch.cat([stack.encode(part)[0].softmax(-1).mean(0) for part in parts])


def drawn_stack(given: Given, rows_ND: Tensor, settings: HeadSettings, seeds: list[int]) -> ContentStyle:
    """Heads of such rows, just drawn."""
    return ContentStyle(
        width=rows_ND.shape[1], classes=given.classes, style=settings.style, hidden=settings.hidden,
        norm=settings.norm, critics={}, seeds=seeds, precision=settings.precision,
    ).to(rows_ND.device)  # fmt: skip


def pools_of(given: Given, rows_ND: Tensor, heads: int) -> Pools:
    """Every head may look at all rows."""
    device = rows_ND.device
    every_N, at_L = torch.arange(len(rows_ND), device=device), torch.from_numpy(given.at_L).to(device)
    prior_HK = torch.full((heads, given.classes), 1 / given.classes, device=device)
    return Pools([at_L] * heads, [every_N] * heads, prior_HK)


def fit_teachers(given: Given, settings: HeadSettings) -> ContentStyle:
    """Supervised heads on the labelled rows alone, which differ in their weights and batches: one stack."""
    table_ND, seeds = given.rows.table_ND, [given.seed * TEACHERS + which for which in range(TEACHERS)]
    label_N = torch.full((len(table_ND),), -1, device=table_ND.device)
    label_N[torch.from_numpy(given.at_L)] = torch.from_numpy(given.label_L).to(table_ND.device)
    stack = drawn_stack(given, table_ND, settings, seeds)
    train_heads(stack, table_ND, label_N, pools_of(given, table_ND, TEACHERS), settings, seeds=seeds)
    return stack


def fit_student(given: Given, seen_NP: Tensor, votes_NK: Tensor, settings: HeadSettings) -> ContentStyle:
    """One head: cross-entropy with the votes of a batch, and with the true labels.

    Args:
        given: the trial.
        seen_NP: rows that it looks at, on the device.
        votes_NK: class probabilities that are learned, on the device.
        settings: steps, batches and learning rate; every batch has `labelled_batch` labelled rows and `batch` others.
    """
    device, seeds = seen_NP.device, [given.seed + STUDENT_SEED]
    target_NK = votes_NK.clone()
    at_L, label_L = torch.from_numpy(given.at_L).to(device), torch.from_numpy(given.label_L).to(device)
    target_NK[at_L] = F.one_hot(label_L, given.classes).to(votes_NK)
    stack = drawn_stack(given, seen_NP, settings, seeds).train()
    generators, pools = head_generators(seeds, device), pools_of(given, seen_NP, 1)
    batches = draw_batches(pools, settings, generators, len(seen_NP), seen_NP.dtype)
    optimiser = adam(stack.generator_parameters(), settings.lr, settings.beta2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, settings.lr * settings.lr_end)
    averaged = Averaged(stack, settings)
    for step, batch in enumerate(islice(batches, settings.steps), 1):
        labelled_L, others_B = batch.labelled_HL[0], batch.unlabelled_HB[0]
        logits_XK = stack.encode(seen_NP[torch.cat([labelled_L, others_B])][None])[0][0]
        known_LK, voted_BK = logits_XK[: len(labelled_L)], logits_XK[len(labelled_L) :]
        loss = F.cross_entropy(known_LK, target_NK[labelled_L]) + F.cross_entropy(voted_BK, target_NK[others_B])
        apply_gradients(loss, optimiser)
        schedule.step()
        averaged.look(step)
    averaged.put_back()
    return stack.eval()
