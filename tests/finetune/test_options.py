"""Each option of stage three on real runs of a few steps: what it changes and what it must leave alone."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from cspipe.finetune.images import live_tokens
from cspipe.finetune.load import choose_head, load_all
from cspipe.finetune.regularisers import REGULARISERS
from cspipe.headtrain import load_head
from cspipe.store import open_store
from cspipe.store.errors import MissingDataError, SettingError


def weights(document: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(document["model_dir"]) / "backbone.safetensors")


def records(document: dict) -> list[dict]:
    return [json.loads(line) for line in (Path(document["run"]) / "metrics.jsonl").read_text().splitlines()]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_every_regulariser_trains_and_is_told_and_those_that_compare_with_the_start_begin_at_0(
    tune, settings, monkeypatch
):
    monkeypatch.setattr("cspipe.finetune.train.LOG_EVERY", 1)
    document = tune(settings=settings(regularisers=dict.fromkeys(REGULARISERS, 0.01), noise_scale=0.01, radius=0.3))
    first, *rest = [record for record in records(document) if "total" in record]
    assert first.keys() >= REGULARISERS.keys()
    assert all(math.isfinite(record[name]) for record in (first, *rest) for name in REGULARISERS)
    for name in ("rift", "rift-procrustes", "rift-learned", "distillation", "masked", "l2sp"):
        assert abs(first[name]) < 1e-4
        assert rest[-1][name] > first[name]
    for name in REGULARISERS:
        if name.startswith("pdr") and not name.endswith("-adversarial"):
            assert first[f"{name}-adversarial"] > first[name] > 0
    assert first["r4f"] == pytest.approx(first["r3f"], rel=0.5)


def test_supervised_fine_tuning_starts_from_the_supervised_head_and_sees_no_unlabelled_row(tune, settings, digits):
    document = tune(settings=settings(method="supervised"))
    of_split = {row["split_seed"]: row["accuracy"] for row in digits.head["results"] if row["method"] == "supervised"}
    assert document["method"] == "supervised"
    assert document["accuracy_before"] == of_split[0]
    last = [record for record in records(document) if "total" in record][-1]
    assert last["total"] == last["L_c"]
    assert not last.keys() & {"D_c", "D_s", "L_y", "L_mix"}


def test_content_style_mixes_live_tokens_as_the_head_does(tuned):
    last = [record for record in records(tuned) if "total" in record][-1]
    assert last["L_mix"] > 0
    weighted = last["L_c"] + last["D_c"] + 0.03 * last["D_s"] + 3 * last["L_y"] + last["L_mix"] + 0.1 * last["rift"]
    assert last["total"] == pytest.approx(weighted, rel=1e-5)


def test_a_probe_moves_the_head_and_not_the_backbone(tune, settings, monkeypatch, digits):
    monkeypatch.setattr("cspipe.finetune.train.LOG_EVERY", 1)
    seen = []
    from cspipe.finetune import train as loop

    def watched(parts, *rest):
        terms = loop_step(parts, *rest)
        state = parts.model.backbone.state_dict()
        seen.append((state["conv_head.weight"].clone(), parts.model.stack.encoder[0].weight.detach().clone()))
        return terms

    loop_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", watched)
    document = tune(settings=settings(probe_steps=4))
    backbones, heads = zip(*seen, strict=True)
    assert len(seen) == 4 + 3
    assert all(torch.equal(backbones[0], value) for value in backbones[:4])
    assert not torch.equal(backbones[3], backbones[4])
    assert all(not torch.equal(a, b) for a, b in pairwise(heads))
    assert [record["epoch"] for record in records(document) if "total" in record][:5] == [
        0,
        0,
        0,
        0,
        pytest.approx(1 / 3, abs=1e-3),
    ]


def test_two_passes_of_half_a_batch_are_a_step_of_the_mean_gradient(tune, settings, monkeypatch):
    """Supervised, so that no term is of the whole batch: two passes of 20 labelled rows are one of all 40."""
    monkeypatch.setattr("cspipe.finetune.train.LOG_EVERY", 1)
    common = {"method": "supervised", "lr": 1e-3}
    whole = tune(runs="a", settings=settings(labelled_batch=40, batch=96, **common))
    halves = tune(runs="b", settings=settings(labelled_batch=20, batch=48, accumulate=2, **common))
    one, two = records(whole)[0], records(halves)[0]
    assert one["L_c"] == pytest.approx(two["L_c"], rel=1e-5)
    assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
    assert one["gradient_norm"] > 0


def test_the_moving_average_is_what_is_judged_and_kept(tune, settings, monkeypatch):
    from timm.utils.model_ema import ModelEmaV3

    from cspipe.finetune import train as loop

    trail = []

    class Watched(ModelEmaV3):
        def update(self, model, step=None):
            super().update(model, step)
            trail.append(({k: v.clone() for k, v in model.backbone.state_dict().items()}, self.get_decay(step)))

    monkeypatch.setattr(loop, "ModelEmaV3", Watched)
    kept = weights(tune(settings=settings(ema=0.5)))
    live, name = trail[-1][0], "conv_head.weight"
    assert not torch.equal(kept[name], live[name])
    assert trail[0][1] == 0
    average = trail[0][0][name]
    for state, decay in trail[1:]:
        average = decay * average + (1 - decay) * state[name]
    torch.testing.assert_close(kept[name], average)


def test_recomputed_activations_change_memory_and_not_the_result(tune, settings):
    plain, again = tune(runs="a", settings=settings()), tune(runs="b", settings=settings(grad_checkpointing=True))
    mine, theirs = weights(plain), weights(again)
    assert all(torch.allclose(value, theirs[name], atol=1e-6) for name, value in mine.items())


def test_a_lower_layer_decay_holds_earlier_blocks_back(tune, settings):
    def way(document: dict, name: str) -> float:
        from cspipe.extract.backbones import load_backbone

        return float((weights(document)[name] - load_backbone("lite0", image_px=32).model.state_dict()[name]).norm())

    runs = {decay: tune(runs=str(decay), settings=settings(layer_decay=decay)) for decay in (1.0, 0.1)}
    early, late = "blocks.5.3.conv_pw.weight", "conv_head.weight"
    assert way(runs[0.1], early) < 0.3 * way(runs[1.0], early)
    assert way(runs[0.1], late) > 0.5 * way(runs[1.0], late)


def test_lora_ends_in_a_file_that_plain_timm_loads_and_moves_only_layers_of_the_blocks_that_learn(tune, settings):
    document = tune(settings=settings(adapter="lora", lora_rank=2, lr=1e-2, regularisers={"rift": 0.1}))
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    plain.load_state_dict(weights(document))
    from cspipe.extract.backbones import load_backbone

    before = load_backbone("lite0", image_px=32).model.state_dict()
    changed = {name for name, value in weights(document).items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.5.3.conv_pw.weight", "blocks.5.3.conv_pwl.weight", "blocks.6.0.conv_pw.weight",
                       "blocks.6.0.conv_pwl.weight", "conv_head.weight"}  # fmt: skip
    assert document["cka"] < 1


def test_augmented_images_are_other_images_and_a_function_of_the_seed(tune, settings):
    first, again = (weights(tune(runs=name, settings=settings(augment="affine"))) for name in "ab")
    assert same(first, again)
    assert not same(first, weights(tune(runs="c", settings=settings())))


def test_early_stopping_keeps_the_best_epoch_and_both_files(tune, settings, monkeypatch):
    from cspipe.finetune import train as loop

    criteria, real = iter([3.0, 1.0, 2.0, 4.0, 0.0, 0.0]), loop.watch_epoch
    monkeypatch.setattr(loop, "watch_epoch", lambda *given: real(*given) | {"criterion": next(criteria)})
    document = tune(settings=settings(stop="held-out", patience=2, epochs=6, lr=1e-3))
    run, epochs = Path(document["run"]), [r for r in records(document) if r.get("event") == "epoch"]
    assert [record["criterion"] for record in epochs] == [3, 1, 2, 4]
    assert document["epoch"] == 2
    assert {"best.safetensors", "checkpoint.safetensors"} <= {path.name for path in run.iterdir()}
    best, last = load_file(run / "best.safetensors"), load_file(run / "checkpoint.safetensors")
    assert all(torch.equal(value, best[f"backbone.{name}"]) for name, value in weights(document).items())
    assert not torch.equal(weights(document)["conv_head.weight"], last["model.joined.backbone.conv_head.weight"])
    assert document["cka"] == epochs[1]["cka"] != epochs[3]["cka"]


def test_the_criterion_is_the_cross_entropy_of_labelled_rows_that_nothing_learnt_from(tune, settings, digits):
    chosen = settings(stop="held-out")
    document = tune(settings=chosen)
    saved = choose_head(digits.head_run, digits.runs, None, 0, "cpu")
    loaded = load_all(saved, open_store(digits.store), chosen, weights=None, data_dir=None, device="cpu")
    held, labelled = loaded.train.held, loaded.train.labelled
    assert len(held) + len(labelled) == 40 and not set(held) & set(labelled)
    assert set(loaded.train.label_N[torch.from_numpy(held)].tolist()) == set(range(10))
    assert document["labels"] == len(labelled)
    loaded.backbone.model.load_state_dict(weights(document))
    live = live_tokens(loaded.backbone, loaded.train.images, held, torch.device("cpu"))
    shares = load_head(Path(document["model_dir"]) / "head.safetensors").head.probabilities(live)
    right = shares[torch.arange(len(held)), loaded.train.label_N[torch.from_numpy(held)]]
    (epoch,) = [record for record in records(document) if record.get("event") == "epoch"]
    assert epoch["criterion"] == pytest.approx(-right.log().mean().item(), rel=1e-4)
    frozen = {row["split_seed"]: row["accuracy"] for row in digits.head["results"] if row["method"] == "content-style"}
    assert document["accuracy_before"] == frozen[0]  # the frozen head keeps all its labels


def test_a_step_that_is_not_finite_moves_nothing_and_is_told(tune, settings, monkeypatch):
    from cspipe.finetune import step as steps

    calls = []

    def broken(*arguments):
        losses, told = real(*arguments)
        calls.append(1)
        if len(calls) == 2:
            losses = {name: value * torch.inf for name, value in losses.items()}
        return losses, told

    real = steps.forward
    monkeypatch.setattr(steps, "forward", broken)
    said = []
    document = tune(settings=settings(), on_message=said.append)
    assert "step 2: loss or gradient is no finite number, the step is left out" in said
    assert document["skipped_steps"] == 1
    assert all(value.isfinite().all() for value in weights(document).values())
    assert records(document)[0]["gradient_norm"] is None


def test_a_label_of_a_single_class_refuses_contrasts_before_training(tune, settings, monkeypatch):
    from cspipe.finetune import run

    def one_class(*arguments, **named):
        loaded = real(*arguments, **named)
        loaded.train.label_N.zero_()
        return loaded

    real = run.load_all
    monkeypatch.setattr(run, "load_all", one_class)
    with pytest.raises(SettingError, match="supcon contrasts classes, but the labelled rows are of 1 class"):
        tune(settings=settings(regularisers={"supcon": 1.0}))


def test_kept_knowledge_is_judged_on_another_data_sets_images(tune, settings, pictures, tmp_path):
    document = tune(settings=settings(lr=0.02), kept_dataset=str(pictures))
    kept = document["kept"]
    assert (kept["dataset"], kept["images"]) == ("pictures", 24)
    assert kept["frozen"] > 0.8  # dark against bright pictures
    assert 0 <= kept["tuned"] <= 1
    with pytest.raises(MissingDataError):
        tune(settings=settings(), kept_dataset=str(tmp_path / "nowhere"))


def test_the_document_tells_gain_cost_and_drift(tuned):
    assert tuned["gain"] == pytest.approx(tuned["accuracy_after"] - tuned["accuracy_before"])
    low, high = tuned["gain_ci95"]
    assert low < tuned["gain"] < high
    assert 0 < 3600 * tuned["training_hours"] < tuned["seconds"]
    assert 0 < tuned["knn_overlap"] <= 1
    assert 0.9 < tuned["cosine"] <= 1
