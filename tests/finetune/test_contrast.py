"""Contrastive terms on labelled rows: known values, margins, balance, gradients."""

import math

import pytest
import torch
from torch import Tensor

from cspipe.finetune.contrast import class_means, proco, supcon
from cspipe.store.errors import SettingError

AXES = torch.tensor([[1.0, 0], [2.0, 0], [0, 1.0], [0, 3.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1])
PLAIN = {"positive_margin": 0.0, "negative_margin": 0.0}


def drawn(rows: int = 6, width: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_supcon_of_two_pairs_on_two_axes():
    """Each row has one partner at cosine 1 and two others at cosine 0."""
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert supcon(labelled_LP=AXES, label_L=LABELS, temperature=0.5, **PLAIN).item() == pytest.approx(expected)


def test_margins_lower_the_positives_and_raise_the_negatives_each_by_its_own():
    value = supcon(labelled_LP=AXES, label_L=LABELS, temperature=0.5, positive_margin=0.3, negative_margin=0.1)
    expected = -math.log(math.exp(0.7 / 0.5) / (math.exp(0.7 / 0.5) + 2 * math.exp(0.1 / 0.5)))
    assert value.item() == pytest.approx(expected)


def test_supcon_means_over_partners_and_leaves_rows_without_one_out():
    labels = torch.tensor([0, 0, 0, 1])
    rows = drawn(4)
    unit = rows / rows.norm(dim=1, keepdim=True)
    score = unit @ unit.T / 0.1
    terms = []
    for i in range(3):
        others = [a for a in range(4) if a != i]
        bottom = torch.logsumexp(score[i, others], 0)
        terms.append(-sum(score[i, p] - bottom for p in range(3) if p != i) / 2)
    expected = (sum(terms) / 3).item()
    assert supcon(labelled_LP=rows, label_L=labels, **PLAIN).item() == pytest.approx(expected)


def test_supcon_is_free_of_length_and_0_with_a_gradient_where_no_rows_share_a_class():
    rows = drawn()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert supcon(labelled_LP=5 * rows, label_L=labels).item() == pytest.approx(
        supcon(labelled_LP=rows, label_L=labels).item()
    )
    leaf = rows.clone().requires_grad_()
    lonely = supcon(labelled_LP=leaf, label_L=torch.arange(6))
    lonely.backward()
    assert lonely.item() == 0
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_proco_is_the_cross_entropy_of_cosines_with_the_prototypes():
    prototypes = torch.tensor([[4.0, 0], [0, 0.5]], dtype=torch.float64)
    value = proco(labelled_LP=AXES, label_L=LABELS, prototypes_KP=prototypes, temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_proco_gives_a_rare_class_the_weight_of_a_frequent_one():
    prototypes = torch.eye(2, dtype=torch.float64)
    rows = torch.tensor([[1.0, 0]] * 9 + [[1.0, 0]], dtype=torch.float64)  # the row of class 1 lies wrong
    labels = torch.tensor([0] * 9 + [1])
    right, wrong = math.log(1 + math.exp(-10)), math.log(1 + math.exp(10))
    value = proco(labelled_LP=rows, label_L=labels, prototypes_KP=prototypes)
    assert value.item() == pytest.approx((right + wrong) / 2)


def test_a_class_without_a_labelled_row_is_no_rival():
    two = torch.eye(2, dtype=torch.float64)
    three = torch.cat([two, torch.full((1, 2), torch.nan, dtype=torch.float64)])
    told = [proco(labelled_LP=AXES, label_L=LABELS, prototypes_KP=p).item() for p in (two, three)]
    assert told[0] == pytest.approx(told[1])


def test_class_means_are_means_and_nan_where_there_is_no_row():
    means = class_means(labelled_LP=AXES, label_L=LABELS, classes=3)
    assert means[:2].tolist() == [[1.5, 0], [0, 2]]
    assert means[2].isnan().all()


def test_gradients_are_derivatives():
    rows, labels = drawn().requires_grad_(), torch.tensor([0, 0, 1, 1, 1, 2])
    prototypes = class_means(labelled_LP=drawn().flip(0), label_L=labels, classes=4)
    assert torch.autograd.gradcheck(lambda x: supcon(labelled_LP=x, label_L=labels), [rows])
    assert torch.autograd.gradcheck(lambda x: proco(labelled_LP=x, label_L=labels, prototypes_KP=prototypes), [rows])


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(SettingError, match=r"supcon wants .* it was given \(6, 5\) and \(4,\)"):
        supcon(labelled_LP=drawn(), label_L=LABELS)
    with pytest.raises(SettingError, match=r"proco wants .* \(6, 5\), \(6,\) and \(2, 2\)"):
        proco(labelled_LP=drawn(), label_L=torch.zeros(6, dtype=torch.long), prototypes_KP=torch.eye(2))
