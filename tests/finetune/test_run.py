"""`cspipe finetune` as a function: from a head run on real tokens to a model directory."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from cspipe.extract.backbones import load_backbone
from cspipe.extract.recorded import recorded_backbone, recorded_dataset
from cspipe.finetune.images import images_of_rows, live_tokens
from cspipe.finetune.load import choose_head, load_all, store_of_head
from cspipe.finetune.run import run_finetune
from cspipe.headtrain import HeadSettings, load_head
from cspipe.headtrain.evaluate import accuracy
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.run import run_head
from cspipe.store import open_store
from cspipe.store.errors import UnknownNameError


def weights(document: dict) -> dict[str, torch.Tensor]:
    return load_file(Path(document["model_dir"]) / "backbone.safetensors")


def pretrained() -> dict[str, torch.Tensor]:
    return load_backbone("lite0", image_px=32).model.state_dict()


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def learns(name: str) -> bool:
    """Of the last two blocks of lite0, or of what follows."""
    return name.startswith(("blocks.5.3.", "blocks.6.0.", "conv_head.", "bn2.")) and not is_statistic(name)


def test_the_document_has_the_fields_that_the_outside_relies_on(tuned, digits):
    told = json.loads(json.dumps(tuned, allow_nan=False))
    assert told.keys() >= {"method", "labels", "split_seed", "backbone", "dataset", "accuracy_before",
                           "accuracy_after", "cka", "model_dir", "seconds"}  # fmt: skip
    assert (told["method"], told["labels"], told["split_seed"]) == ("content-style", 40, 0)
    assert (told["backbone"], told["dataset"], told["store"]) == ("lite0", "digits", str(digits.store))
    assert (told["images"], told["judged_rows"]) == (96, 96)
    assert 0 <= told["accuracy_after"] <= 1
    assert 0.9 < told["cka"] < 1
    assert told["token_variance"] > 0
    assert told["effective_rank"] > 1


def test_accuracy_before_is_the_heads_own_accuracy_of_its_split(tuned, digits):
    mine = [row for row in digits.head["results"] if row["method"] == "content-style"]
    of_split = {row["split_seed"]: row["accuracy"] for row in mine}
    assert tuned["accuracy_before"] == of_split[0]


def test_live_tokens_before_the_first_step_are_the_cached_ones_and_give_the_heads_accuracy(digits, settings):
    saved = choose_head(digits.head_run, digits.runs, None, 0, "cpu")
    store = store_of_head(saved, None, digits.stores)
    loaded = load_all(saved, store, settings(), weights=None, data_dir=None, device="cpu")
    judged = loaded.judged
    live = live_tokens(loaded.backbone, judged.images, judged.rows, torch.device("cpu"))
    torch.testing.assert_close(live, judged.cached_MD.float(), rtol=2e-3, atol=2e-3)
    assert np.array_equal(loaded.head.predict(live), loaded.head.predict(judged.cached_MD))
    assert accuracy(loaded.head.predict(live), judged.label_M) == digits.head["results"][0]["accuracy"]


def test_the_run_folder_is_whole_and_its_json_valid(tuned, digits):
    run = Path(tuned["run"])
    assert {path.name for path in run.iterdir()} == {
        "checkpoint.safetensors", "config.toml", "metrics.jsonl", "model", "plan.json", "report.json",
    }  # fmt: skip
    assert tomllib.loads((run / "config.toml").read_text()) == {"epochs": 1}
    report = json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)
    assert {key: report[key] for key in tuned} == tuned
    assert (report["command"], report["head_run"]) == ("finetune", str(digits.head_run))
    assert np.sum(report["confusion"]["before"]) == np.sum(report["confusion"]["after"]) == 96
    assert np.trace(report["confusion"]["after"]) / 96 == pytest.approx(tuned["accuracy_after"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    *steps, epoch = records
    step = steps[-1]
    assert [record["step"] for record in records] == [2, 3, 3]
    assert step.keys() >= {"L_c", "D_c", "D_s", "L_y", "rift", "total", "critic_style"}
    assert (epoch["event"], epoch["cka"]) == ("epoch", tuned["cka"])


def test_the_model_directory_loads_in_plain_timm_and_with_its_head_gives_the_accuracy_after(tuned, digits):
    directory = Path(tuned["model_dir"])
    assert {path.name for path in directory.iterdir()} == {
        "backbone.safetensors", "config.json", "head.safetensors", "README.md",
    }  # fmt: skip
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    plain.load_state_dict(load_file(directory / "backbone.safetensors"))
    told = json.loads((directory / "config.json").read_text())
    assert (told["architecture"], told["image_px"]) == ("tf_efficientnet_lite0", 32)
    assert told["class_names"] == [str(digit) for digit in range(10)]
    store = open_store(digits.store)
    backbone = recorded_backbone(store, weights=None, device="cpu")
    assert (told["mean"], told["std"]) == (list(backbone.mean), list(backbone.std))
    images = images_of_rows(store, "test", recorded_dataset(store, None), backbone)
    tokens = live_tokens(replace(backbone, model=plain), images, np.arange(96), torch.device("cpu"))
    saved = load_head(directory / "head.safetensors")
    right = accuracy(saved.head.predict(tokens), store["test"].label())
    assert right == tuned["accuracy_after"] == saved.card["accuracy"] == told["accuracy"]


def test_frozen_blocks_stay_bit_for_bit_the_rest_learns_and_no_statistic_moves(tuned):
    before, after = pretrained(), weights(tuned)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if learns(name)}


def test_unfreezing_everything_moves_the_stem_and_still_no_statistic(tune, settings):
    before, after = pretrained(), weights(tune(settings=settings(unfreeze_blocks=None, limit=64)))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not is_statistic(name)}


def test_the_head_learns_too_and_its_projection_stays(tuned, digits):
    before = load_file(digits.head_run / "heads/content-style-0.safetensors")
    after = load_file(Path(tuned["model_dir"]) / "head.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "stack.encoder.0.weight" in changed
    assert "stack.critics.style.0.weight" in changed
    assert not changed & {"projection.mean", "projection.scale", "projection.basis", "labelled_row_id"}


def test_rift_holds_the_covariance_of_the_tokens_nearer_to_the_cached_ones(tune, settings, digits):
    """Ten times the usual learning rate, with and without the term."""
    distance = {}
    for weight in (0.0, 100.0):
        changes = {"lr": 2e-4, "epochs": 2, "regularisers": {"rift": weight}, "checkpoint_steps": 100}
        document = tune(settings=settings(**changes))
        records = [json.loads(line) for line in (Path(document["run"]) / "metrics.jsonl").read_text().splitlines()]
        distance[weight] = [record["rift"] for record in records if "rift" in record][-1]
    assert 0 <= distance[100.0] < 0.5 * distance[0.0]


@pytest.mark.parametrize("target", ["cached", "live"])
def test_training_on_the_labelled_rows_lowers_their_cross_entropy(tune, settings, monkeypatch, target):
    monkeypatch.setattr("cspipe.finetune.train.LOG_EVERY", 1)
    document = tune(settings=settings(target=target, epochs=14, labelled_batch=40, lr=1e-4))
    records = [json.loads(line) for line in (Path(document["run"]) / "metrics.jsonl").read_text().splitlines()]
    values = [record["L_c"] for record in records if "L_c" in record]
    assert len(values) == 42
    assert values[-1] < 0.95 * values[0]  # every step sees all 40 labelled rows, which the head knows well already
    assert document["accuracy_after"] >= document["accuracy_before"] - 0.1  # no collapse


def test_limit_keeps_the_labelled_images_and_so_many_in_all(tune, settings):
    document = tune(settings=settings(limit=80))
    assert document["labels"] == 40
    assert 60 <= document["images"] <= 80


def test_an_unknown_regulariser_is_refused_before_any_work(tune, settings, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown regulariser 'riff': did you mean 'rift'"):
        tune(settings=settings(regularisers={"riff": 1.0}), head_run=tmp_path / "nowhere")
    assert not (tmp_path / "runs").exists()


def test_messages_say_how_much_learns_and_from_what(tune, settings):
    said = []
    tune(settings=settings(limit=64, unfreeze_blocks=1), on_message=said.append)
    expected = sum(value.numel() for name, value in pretrained().items()
                   if learns(name) and not name.startswith("blocks.5"))  # fmt: skip
    assert said[-1].startswith(f"{expected:,} numbers of lite0 learn, from 40 labelled and ")


def test_dev_rows_of_the_head_run_are_judged_and_never_trained_on(digits, settings, tmp_path):
    quick = HeadSettings(components=16, hidden=16, style=4, discriminator=8, steps=40, batch=32)
    head = run_head(store=digits.store, runs=tmp_path, labels=20, seeds=1, methods=["content-style"], settings=quick,
                    dev_rows=48)  # fmt: skip
    document = run_finetune(head_run=None, runs=tmp_path, stores=digits.stores, settings=settings())
    assert (document["judged_rows"], document["images"], document["labels"]) == (48, 48, 20)
    assert document["accuracy_before"] == head["results"][0]["accuracy"]
    saved = choose_head(None, tmp_path, None, 0, "cpu")
    loaded = load_all(saved, open_store(digits.store), settings(), weights=None, data_dir=None, device="cpu")
    assert loaded.judged.rows.tolist() == list(range(48, 96))
    assert loaded.train.unlabelled.max() < 48
    assert loaded.judged.label_M.tolist() == read_rows(digits.store).label_N[48:].tolist()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_head_that_followed_votes_goes_on_with_its_labelled_rows_alone(digits, settings, tmp_path, norm):
    quick = HeadSettings(components=16, hidden=16, style=4, steps=40, batch=32, cluster_terms="always", norm=norm)
    head = run_head(store=digits.store, runs=tmp_path, labels=40, seeds=1, methods=["content-style"],
                    settings=quick.by_votes())  # fmt: skip
    assert choose_head(None, tmp_path, None, 0, "cpu").head.settings.voted
    document = run_finetune(head_run=None, runs=tmp_path, stores=digits.stores, settings=settings())
    assert document["accuracy_before"] == pytest.approx(head["results"][0]["accuracy"])
    assert 0 < document["accuracy_after"] <= 1
    records = [json.loads(line) for line in (Path(document["run"]) / "metrics.jsonl").read_text().splitlines()]
    told = set().union(*records)
    assert "L_c" in told and not told & {"L_mix", "D_c", "L_y"}
