"""Order of batches, learning rate, which parameters an optimiser holds, metric records."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from cspipe.finetune.model import Joined
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.train import (
    TrainRows,
    learning_rate_share,
    logged,
    optimisers,
    plan_batches,
    read_records,
)
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.runs import write_metrics
from cspipe.store.errors import StoreError


def rows(count: int = 96, labelled: int = 10) -> TrainRows:
    """Row positions alone."""
    every = np.arange(count) * 2 + 1
    return TrainRows(None, torch.zeros(0), torch.zeros(0), every[:labelled], every)  # type: ignore[arg-type]


def planned(seed: int = 0, count: int = 96, **changes) -> list[np.ndarray]:
    return plan_batches(rows(count), FinetuneSettings(**{"batch": 16, "labelled_batch": 4, **changes}), seed)


def test_batches_are_a_function_of_the_seed_alone():
    first, again, other = planned(3), planned(3), planned(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_row_is_seen_once_an_epoch_and_epochs_differ_in_order():
    batches = planned(epochs=3)
    assert len(batches) == 18
    epochs = [np.concatenate([batch[4:] for batch in batches[start : start + 6]]) for start in (0, 6, 12)]
    for order in epochs:
        assert sorted(order) == rows().unlabelled.tolist()
    assert not np.array_equal(epochs[0], epochs[1])


def test_rows_that_fill_no_batch_wait_for_the_next_epoch():
    batches = planned(count=100)
    seen = Counter(np.concatenate([batch[4:] for batch in batches]).tolist())
    assert len(batches) == 6
    assert set(seen.values()) == {1}
    assert len(seen) == 96


def test_labelled_rows_come_first_and_equally_often():
    batches = planned(epochs=5)
    counts = Counter(np.concatenate([batch[:4] for batch in batches]).tolist())
    assert counts == dict.fromkeys(rows().labelled.tolist(), 12)
    assert {len(batch) for batch in batches} == {20}


def test_fewer_rows_than_a_batch_are_one_batch():
    (batch,) = planned(count=12)
    assert sorted(batch[4:]) == rows(12).unlabelled.tolist()


def test_learning_rate_rises_over_a_twentieth_then_falls_along_a_cosine_towards_0():
    share = [learning_rate_share(step, 100) for step in range(100)]
    assert share[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert share[10] == 1
    assert share[55] == pytest.approx(0.5)
    assert all(later < sooner for sooner, later in pairwise(share[10:]))
    assert 0 < share[-1] < 2e-3


def test_learning_rate_of_a_run_of_one_or_two_steps_is_not_0():
    assert learning_rate_share(0, 1) == 1
    assert [learning_rate_share(step, 2) for step in range(2)] == [1, 1]


def joined(critics: dict[str, int]) -> Joined:
    backbone = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    backbone[0].requires_grad_(False)
    return Joined(backbone, ContentStyle(width=4, classes=2, style=2, hidden=4, critics=critics, seeds=[0]), None)  # type: ignore[arg-type]


def test_optimisers_hold_what_learns_and_only_the_backbones_matrices_decay():
    model = joined({"style": 4})
    made = optimisers(model, FinetuneSettings(lr=1e-5, head_lr=1e-3, weight_decay=0.05))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [({name_of[id(p)] for p in g["params"]}, g["peak"], g["weight_decay"]) for g in made["main"].param_groups]
    head = {name_of[id(p)] for p in model.stack.generator_parameters()}
    assert groups == [
        ({"backbone.2.weight"}, 1e-5, 0.05),
        ({"backbone.1.weight", "backbone.1.bias", "backbone.2.bias"}, 1e-5, 0.0),
        (head, 1e-3, 0.0),
    ]
    critics = {name_of[id(p)] for group in made["critics"].param_groups for p in group["params"]}
    assert critics == {name for name, _ in model.named_parameters() if name.startswith("stack.critics")}


def test_without_discriminators_there_is_one_optimiser():
    assert optimisers(joined({}), FinetuneSettings()).keys() == {"main"}


def test_a_loss_that_is_no_number_stops_the_run_and_says_what_to_do(tmp_path):
    assert logged({"total": torch.tensor(0.5)}, 10, 0.25, tmp_path) == {"step": 10, "epoch": 0.25, "total": 0.5}
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(StoreError, match=r"the loss is (nan|inf) at step 10\. Lower finetune\.lr"):
            logged({"total": torch.tensor(wrong)}, 10, 0.25, tmp_path)


def test_metric_records_come_back_and_a_run_without_any_has_none(tmp_path):
    assert list(read_records(tmp_path)) == []
    write_metrics(tmp_path, [])
    assert list(read_records(tmp_path)) == []
    records = [{"step": 10, "total": 0.5}, {"event": "epoch", "step": 12, "cka": 0.9}]
    write_metrics(tmp_path, records)
    assert list(read_records(tmp_path)) == records
