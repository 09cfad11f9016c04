"""One round of self-training on the soft votes of several heads, after V-PET (arXiv 2503.09707).

Legend: `N` rows that may be looked at, `L` labelled rows, `K` classes, `P` projected width, `B` batch rows.
"""

from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.batches import Pools, draw_batches, head_generators
from cspipe.headtrain.chunked import resident
from cspipe.headtrain.given import Floats, Given
from cspipe.headtrain.heads import Head, fit_several
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.settings import LABELLED_ROWS_ALONE, MAIN_METHOD, HeadSettings, method_settings
from cspipe.headtrain.tasks import HeadTask
from cspipe.headtrain.train import Averaged, adam, apply_gradients

TEACHERS = 4
STUDENT_SEED = 7_919


def self_training(given: Given) -> Floats:
    """Four supervised heads vote on every row; one student learns the votes and the true labels. `(M, K)`.

    There is no threshold, the votes stay soft (the mean of the heads' probabilities), and there is one round. The
    source's voters are different backbones and adapters; ours are one architecture with four seeds on one backbone's
    tokens, so they agree more. The student starts anew, and learns from a batch of votes and one of true labels a
    step. Rate and memory of Adam are those of a content-style head, which sees as many rows. Rows to predict take no
    part in the training.
    """
    settings = replace(method_settings(MAIN_METHOD, given.settings), **LABELLED_ROWS_ALONE)
    stored_ND = resident(given.rows.stored_ND, "self-training")
    teachers = fit_teachers(given, settings)
    votes_NK = torch.stack([head.probabilities(stored_ND) for head in teachers]).mean(0)
    student = fit_student(given, votes_NK, teachers[0], settings)
    probability_MK: Floats = student.probabilities(given.rows.judged_MD).cpu().numpy()
    return probability_MK


def fit_teachers(given: Given, settings: HeadSettings) -> list[Head]:
    """Supervised heads on the labelled rows alone, which differ in their weights and batches."""
    stored_ND = given.rows.stored_ND
    label_N = torch.full((len(stored_ND),), -1)
    label_N[torch.from_numpy(given.at_L)] = torch.from_numpy(given.label_L)
    task = HeadTask(given.at_L, np.arange(len(stored_ND)), given.seed)
    (teachers,) = fit_several(
        TEACHERS, stored_ND, label_N, [task], settings, classes=given.classes, device=given.rows.device
    )
    return teachers


def fit_student(given: Given, votes_NK: Tensor, teacher: Head, settings: HeadSettings) -> Head:
    """One head of the teachers' architecture: cross-entropy with the votes of a batch, and with the true labels.

    Args:
        given: the trial.
        votes_NK: class probabilities that are learned, on the device.
        teacher: whose projection it shares.
        settings: steps, batches and learning rate; every batch has `labelled_batch` labelled rows and `batch` others.
    """
    device, seeds = votes_NK.device, [given.seed + STUDENT_SEED]
    table_NP = teacher.projection.rows(resident(given.rows.stored_ND, "self-training"))
    at_L, label_L = torch.from_numpy(given.at_L).to(device), torch.from_numpy(given.label_L).to(device)
    target_NK = votes_NK.clone()
    target_NK[at_L] = F.one_hot(label_L, given.classes).to(votes_NK)
    stack = ContentStyle(
        width=teacher.stack.width, classes=given.classes, style=settings.style, hidden=settings.hidden,
        norm=settings.norm, critics={}, seeds=seeds,
    ).to(device).train()  # fmt: skip
    prior_HK = torch.full((1, given.classes), 1 / given.classes, device=device)
    pools = Pools([at_L], [torch.arange(len(table_NP), device=device)], prior_HK)
    batches = draw_batches(pools, settings, head_generators(seeds, device), len(table_NP), table_NP.dtype)
    optimiser = adam(stack.generator_parameters(), settings.lr, settings.beta2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, settings.lr * settings.lr_end)
    averaged = Averaged(stack, settings)
    for step, batch in enumerate(islice(batches, settings.steps), 1):
        labelled_L, others_B = batch.labelled_HL[0], batch.unlabelled_HB[0]
        logits_XK = stack.encode(table_NP[torch.cat([labelled_L, others_B])][None])[0][0]
        known_LK, voted_BK = logits_XK[: len(labelled_L)], logits_XK[len(labelled_L) :]
        loss = F.cross_entropy(known_LK, target_NK[labelled_L]) + F.cross_entropy(voted_BK, target_NK[others_B])
        apply_gradients(loss, optimiser)
        schedule.step()
        averaged.look(step)
    averaged.put_back()
    return Head(stack.eval(), teacher.projection, settings)
