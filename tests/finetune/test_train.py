"""Order of batches, learning rates, which parameters an optimiser holds, metric records, early stopping."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from cspipe.finetune.model import Joined
from cspipe.finetune.optimise import apply, gradients, norm_of, optimisers
from cspipe.finetune.plan import TrainRows, learning_rate_share, plan_batches, plan_probe
from cspipe.finetune.rift import learned_rotation
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.train import best_epoch, logged, read_records, rows_that_teach, set_rates, stops, told_of_skip
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.runs import write_metrics
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError, StoreError


def rows(count: int = 96, labelled: int = 10) -> TrainRows:
    """Row positions alone."""
    every = np.arange(count) * 2 + 1
    return TrainRows(None, torch.zeros(0), torch.zeros(0), every[:labelled], every)  # type: ignore[arg-type]


def planned(seed: int = 0, count: int = 96, **changes) -> list[np.ndarray]:
    return plan_batches(
        rows(count), FinetuneSettings(**{"batch": 16, "labelled_batch": 4, "epochs": 1, **changes}), seed
    )


def test_batches_are_a_function_of_the_seed_alone():
    first, again, other = planned(3), planned(3), planned(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_epochs_that_are_not_given_make_sixty_steps_or_one_pass():
    assert len(planned(epochs=None)) == 60
    assert len(planned(epochs=None, batch=13)) == 9 * 7
    assert len(planned(epochs=None, count=2000)) == len(planned(count=2000)) == 125
    assert len(planned(epochs=None, accumulate=2)) == 2 * 60


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
        ({"backbone.1.weight", "backbone.1.bias", "backbone.2.bias"}, 1e-5, 0.0),
        ({"backbone.2.weight"}, 1e-5, 0.05),
        (head, 1e-3, 0.0),
    ]
    critics = {name_of[id(p)] for group in made["critics"].param_groups for p in group["params"]}
    assert critics == {name for name, _ in model.named_parameters() if name.startswith("stack.critics")}


def test_without_discriminators_there_is_one_optimiser():
    assert optimisers(joined({}), FinetuneSettings()).keys() == {"main"}


def test_a_learned_rotation_learns_at_the_heads_rate():
    model = joined({})
    model.rotation = learned_rotation(4)
    made = optimisers(model, FinetuneSettings(head_lr=1e-3))
    *_, head = made["main"].param_groups
    turning = [id(parameter) for parameter in model.rotation.parameters()]
    assert len(turning) == 1
    assert {id(p) for p in head["params"]} >= set(turning)
    assert head["peak"] == 1e-3


@pytest.fixture
def transformer() -> Joined:
    backbone = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    return Joined(backbone, ContentStyle(width=64, classes=2, style=2, hidden=4, critics={}, seeds=[0]), None)  # type: ignore[arg-type]


def test_with_a_layer_decay_each_block_learns_at_a_share_of_the_rate_of_the_block_behind_it(transformer):
    made = optimisers(transformer, FinetuneSettings(lr=1.0, layer_decay=0.5))
    name_of = {id(parameter): name for name, parameter in transformer.named_parameters()}
    rate = {name_of[id(p)]: group["peak"] for group in made["main"].param_groups for p in group["params"]}
    assert rate.keys() == {name for name, _ in transformer.named_parameters()} - {
        name for name in rate if name.startswith("stack.critics")
    }
    last = len(transformer.backbone.blocks) - 1
    for number in range(last):
        behind = rate[f"backbone.blocks.{number + 1}.mlp.fc1.weight"]
        assert rate[f"backbone.blocks.{number}.mlp.fc1.weight"] == pytest.approx(0.5 * behind)
        assert rate[f"backbone.blocks.{number}.norm1.bias"] == pytest.approx(0.5 * behind)
    assert rate["backbone.patch_embed.proj.weight"] == pytest.approx(0.5 * rate["backbone.blocks.0.mlp.fc1.weight"])
    assert rate["backbone.norm.weight"] == 1.0
    plain = optimisers(transformer, FinetuneSettings(lr=1.0))["main"].param_groups
    assert {group["peak"] for group in plain} == {1.0, 3e-4}


def test_a_layer_decay_needs_a_model_that_tells_its_blocks_apart():
    with pytest.raises(SettingError, match=r"does not tell its blocks apart: leave finetune\.layer_decay at 1"):
        optimisers(joined({}), FinetuneSettings(layer_decay=0.7))


def test_the_optimiser_is_adamw_and_its_first_step_is_as_long_as_the_rate():
    model = joined({})
    made = optimisers(model, FinetuneSettings(lr=0.01, weight_decay=0.0))["main"]
    assert isinstance(made, torch.optim.AdamW)
    for group in made.param_groups:
        group["lr"] = group["peak"]
    before = model.backbone[2].weight.detach().clone()
    parameters = [p for group in made.param_groups for p in group["params"]]
    found = gradients(model.backbone[2].weight.sum(), parameters, None)
    apply(made, found, norm_of(found))
    torch.testing.assert_close(model.backbone[2].weight, before - 0.01, atol=1e-6, rtol=0)


def test_gradients_are_summed_over_passes_clipped_as_a_whole_and_left_on_no_parameter():
    first, second = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    idle = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([first, second, idle], lr=1.0)
    found = gradients(3 * first[0], [first, second, idle], None)
    assert found[1] is None
    found = gradients(4 * second[1], [first, second, idle], found)
    assert norm_of(found) == pytest.approx(5)
    apply(optimiser, found, norm_of(found), clip=1.0)
    assert first.tolist() == pytest.approx([-0.6, 0, 0])
    assert second.tolist() == pytest.approx([0, -0.8])
    assert idle.tolist() == [0]
    assert first.grad is None
    assert not norm_of([torch.tensor([torch.inf])]).isfinite()


def test_in_the_probe_the_backbone_stands_still_and_then_warms_up_by_itself():
    made = optimisers(joined({}), FinetuneSettings(lr=1.0, head_lr=1.0))
    rates = []
    for step in range(60):
        set_rates(made, FinetuneSettings(head_lr=1.0), step, 60, probe=20)
        *backbone, head = [group["lr"] for group in made["main"].param_groups]
        assert len(set(backbone)) == 1
        rates.append((backbone[0], head))
    assert all(rate == 0 for rate, _ in rates[:20])
    assert [rate for rate, _ in rates[20:]] == pytest.approx([learning_rate_share(step, 40) for step in range(40)])
    assert [rate for _, rate in rates] == pytest.approx([learning_rate_share(step, 60) for step in range(60)])


def test_passes_of_a_step_share_the_unlabelled_rows_of_an_epoch():
    passes = planned(accumulate=3, epochs=2)
    assert len(passes) == 12
    for start in (0, 6):
        seen = np.concatenate([batch[4:] for batch in passes[start : start + 6]])
        assert sorted(seen) == rows().unlabelled.tolist()
    few = planned(count=12, accumulate=3)
    assert [len(batch) for batch in few] == [8, 8, 8]
    with pytest.raises(SettingError, match=r"a step of 7 forward passes .* there are 12: lower finetune\.accumulate"):
        planned(count=12, accumulate=7)


def test_supervised_passes_hold_labelled_rows_alone_and_are_as_many():
    passes = planned(method="supervised", epochs=2)
    assert len(passes) == len(planned(epochs=2))
    assert {len(batch) for batch in passes} == {4}
    assert set(np.concatenate(passes)) == set(rows().labelled)


def test_the_probe_has_batches_of_its_own_and_changes_none_of_the_others():
    settings = FinetuneSettings(batch=16, labelled_batch=4, probe_steps=5, epochs=1)
    probe = plan_probe(rows(), settings, 0)
    assert len(probe) == 5
    assert {len(batch) for batch in probe} == {20}
    assert plan_probe(rows(), FinetuneSettings(batch=16, labelled_batch=4), 0) == []
    assert all(np.array_equal(a, b) for a, b in zip(plan_batches(rows(), settings, 0), planned(), strict=True))


def test_unlabelled_rows_are_left_out_only_where_no_term_looks_at_them():
    plain, kept = FinetuneSettings(), FinetuneSettings(regularisers={"rift": 0.1})
    alone = HeadSettings().without_clusters()
    assert rows_that_teach(HeadSettings(), plain) == plain
    assert rows_that_teach(alone, kept) == kept
    assert rows_that_teach(alone, plain).method == "supervised"


def epochs(*criteria: float | None) -> list[dict]:
    return [{"event": "epoch", "epoch": n, "criterion": value, "step": n} for n, value in enumerate(criteria, 1)]


def test_the_best_epoch_is_the_earliest_of_the_lowest_and_one_without_a_number_is_never_best():
    looked = FinetuneSettings(stop="held-out")
    assert best_epoch(epochs(3.0, 1.0, 2.0, 1.0), looked) == 2
    assert best_epoch(epochs(None, -1.0, None), looked) == 2
    assert best_epoch(epochs(3.0, 1.0, 2.0), FinetuneSettings()) == 3
    assert best_epoch([], looked) == 0


def test_training_stops_after_patience_epochs_without_an_improvement():
    looked = FinetuneSettings(stop="unsupervised", patience=2)
    assert not stops([], looked)
    assert not stops(epochs(3.0, 1.0, 2.0), looked)
    assert stops(epochs(3.0, 1.0, 2.0, 1.5), looked)
    assert not stops(epochs(3.0, 1.0, 2.0, 0.5), looked)
    assert not stops(epochs(3.0, 4.0, 5.0, 6.0), FinetuneSettings())


def test_a_step_that_is_not_finite_is_told_and_ten_in_a_row_end_the_run():
    said = []
    told_of_skip(9, 12, Path("run"), said.append)
    assert said == ["step 12: loss or gradient is no finite number, the step is left out"]
    with pytest.raises(StoreError, match=r"in the 10 steps up to step 13\. Lower finetune\.lr; run keeps"):
        told_of_skip(10, 13, Path("run"), said.append)


def test_a_metric_that_is_no_number_is_null():
    told = logged(
        {"total": torch.tensor(0.5), "L_c": torch.tensor(torch.nan), "D_c": torch.tensor(torch.inf)}, 10, 0.25
    )
    assert told == {"step": 10, "epoch": 0.25, "total": 0.5, "L_c": None, "D_c": None}


def test_metric_records_come_back_and_a_run_without_any_has_none(tmp_path):
    assert list(read_records(tmp_path)) == []
    write_metrics(tmp_path, [])
    assert list(read_records(tmp_path)) == []
    records = [{"step": 10, "total": 0.5}, {"event": "epoch", "step": 12, "cka": 0.9}]
    write_metrics(tmp_path, records)
    assert list(read_records(tmp_path)) == records
