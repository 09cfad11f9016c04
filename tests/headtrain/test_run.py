"""`cspipe head` as a function: the document, the run folder, protocols of evaluation."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.headtrain import HeadSettings, load_head
from cspipe.headtrain.baselines import BASELINES
from cspipe.headtrain.evaluate import interval
from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.headtrain.run import run_head
from cspipe.headtrain.settings import HEAD_METHODS
from cspipe.headtrain.study import METHODS, Memory, make_trials
from cspipe.store import open_store
from cspipe.store.errors import SettingError, UnknownNameError
from cspipe.store.split import split_hash


@pytest.fixture
def run(tmp_path, quick):
    """run_head with quick settings into one folder of runs."""
    defaults = {"runs": tmp_path / "runs", "settings": quick, "labels": 12, "seeds": 3}
    return lambda store, **options: run_head(store=store, **{**defaults, **options})


@pytest.fixture(scope="module")
def everything(store, tmp_path_factory):
    """One run of every method on three splits, with the path of its folder."""
    small = {"hidden": 16, "steps": 60}
    settings = HeadSettings(components=0, style=4, discriminator=8, batch=32, labelled_batch=12, **small)
    paper = HEAD_METHODS["content-style-paper"] | small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cspipe.headtrain.settings.HEAD_METHODS", {**HEAD_METHODS, "content-style-paper": paper})
        return run_head(
            store=store, runs=tmp_path_factory.mktemp("runs"), labels=12, seeds=3, methods=METHODS,
            settings=settings, config_toml="seeds = 3\n",
        )  # fmt: skip


@pytest.fixture
def folder(everything):
    return Path(everything["run"])


def test_the_document_has_the_fields_that_the_outside_relies_on(everything, store):
    assert everything.keys() >= {"store", "backbone", "dataset", "labels", "results", "summary", "paired", "seconds"}
    assert (everything["store"], everything["backbone"]) == (str(store), "lite0")
    assert (everything["dataset"], everything["labels"]) == ("blobs", 12)
    assert everything["rows"] == {"train": 240, "views": 0, "judged": 150, "flagged": 0}
    assert len(everything["results"]) == 3 * len(METHODS)
    for row in everything["results"]:
        assert row.keys() == {"method", "labels", "split_seed", "train_seed", "accuracy"}
        assert row["labels"] == 12
        assert 0 <= row["accuracy"] <= 1
    assert {(row["method"], row["split_seed"]) for row in everything["results"]} == {
        (method, seed) for method in METHODS for seed in range(3)
    }


def test_summary_and_differences_follow_from_the_results(everything):
    values = {m: [r["accuracy"] for r in everything["results"] if r["method"] == m] for m in METHODS}
    for method in METHODS:
        assert everything["summary"][method]["mean"] == pytest.approx(np.mean(values[method]))
        assert everything["summary"][method]["ci95"] == pytest.approx(interval(values[method]))
    assert everything["paired"].keys() == set(METHODS) - {"content-style"}
    for method, told in everything["paired"].items():
        differences = np.subtract(values["content-style"], values[method])
        assert told["mean_difference"] == pytest.approx(differences.mean())
        assert told["ci95"] == pytest.approx(interval(differences))


def test_every_method_is_diagnosed_in_the_document_and_in_the_report(everything, folder):
    assert everything["diagnostics"].keys() == set(METHODS)
    for method, told in everything["diagnostics"].items():
        assert told["recall"] == [row[i] / 150 for i, row in enumerate(everything["confusion"][method])]
        assert 0 <= told["calibration_error"] <= 1 and told["seconds"] > 0
    assert json.loads((folder / "report.json").read_text())["diagnostics"] == everything["diagnostics"]


def test_confusion_counts_every_judged_row_of_every_split(everything):
    for method in METHODS:
        counts = np.array(everything["confusion"][method])
        assert counts.sum(1).tolist() == [150, 150, 150]
        assert np.trace(counts) / 450 == pytest.approx(everything["summary"][method]["mean"])


def test_document_report_and_metrics_are_valid_json_without_nan(everything, folder):
    again = json.loads(json.dumps(everything, allow_nan=False))
    report = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert {key: report[key] for key in again} == again
    assert report["command"] == "head"
    assert report["provenance"]["store_key"] == open_store(everything["store"]).attributes["key_sha256"]
    assert report["environment"]["torch"] in torch.__version__
    records = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").open()]
    assert {(r["method"], r["split_seed"], r["fold"]) for r in records} == {
        (method, seed, 0) for method in HEAD_METHODS for seed in range(3)
    }
    assert all(math.isfinite(record["L_c"]) for record in records)


def test_the_run_folder_keeps_settings_and_one_head_a_method_and_split(everything, folder):
    assert tomllib.loads((folder / "config.toml").read_text()) == {"seeds": 3}
    heads = {path.name for path in (folder / "heads").iterdir()}
    assert heads == {f"{method}-{seed}.safetensors" for method in HEAD_METHODS for seed in range(3)}
    assert {path.name for path in folder.iterdir()} == {"config.toml", "heads", "metrics.jsonl", "report.json"}


def test_a_kept_head_gives_the_accuracy_that_was_reported_and_knows_its_labelled_rows(everything, folder, store):
    rows = read_rows(store)
    for row in everything["results"]:
        if row["method"] not in HEAD_METHODS:
            continue
        saved = load_head(folder / "heads" / f"{row['method']}-{row['split_seed']}.safetensors")
        predicted = saved.head.probabilities(rows.eval_token_MD).argmax(1).numpy()
        assert np.mean(predicted == rows.eval_label_M) == row["accuracy"] == saved.card["accuracy"]
        assert len(saved.labelled_row_id) == 12
        assert split_hash(saved.labelled_row_id) == everything["split_hash"][str(row["split_seed"])]
        assert saved.card["split_hash"] == everything["split_hash"][str(row["split_seed"])]


def test_all_methods_of_a_split_learn_from_the_same_rows_and_splits_differ(everything, folder):
    ids = {}
    for path in (folder / "heads").iterdir():
        saved = load_head(path)
        ids.setdefault(saved.card["split_seed"], set()).add(tuple(saved.labelled_row_id))
    assert all(len(kinds) == 1 for kinds in ids.values())
    assert len(set.union(*ids.values())) == 3


def test_two_runs_give_the_same_numbers_and_another_training_seed_gives_others(run, store):
    first, again, other = run(store), run(store), run(store, train_seed=1)
    assert first["run"] != again["run"]
    for key in ("results", "summary", "paired", "confusion", "split_hash"):
        assert first[key] == again[key]
    assert other["split_hash"] == first["split_hash"]
    assert other["confusion"]["content-style"] != first["confusion"]["content-style"]
    assert other["confusion"]["logistic"] == first["confusion"]["logistic"]


def test_content_style_beats_the_supervised_head_where_the_unlabelled_rows_show_the_classes(run, store, quick):
    """Six labels leave 24 dimensions open; the 240 unlabelled rows show three separate clusters."""
    settings = replace(quick, hidden=32, style=6, discriminator=32, steps=300, batch=64)
    told = run(store, labels=6, seeds=5, methods=["content-style", "supervised"], settings=settings)
    assert told["summary"]["content-style"]["mean"] > 0.9
    assert told["paired"]["supervised"]["mean_difference"] > 0.08
    assert told["paired"]["supervised"]["ci95"][0] > 0


def test_the_class_shares_that_heads_were_held_to_are_reported_and_kept(run, store, quick):
    told = run(store, labels=6, seeds=2, methods=["content-style", "supervised"], settings=quick)
    shares = told["class_shares"]
    assert shares["labelled"] == pytest.approx([1 / 3] * 3) and shares["held_to"].keys() == {"0", "1"}
    for seed, held in shares["held_to"].items():
        assert sum(held) == pytest.approx(1, abs=1e-5)
        kept = load_head(Path(told["run"]) / "heads" / f"content-style-{seed}.safetensors").head.prior_K
        assert kept.tolist() == pytest.approx(held)
    assert run(store, labels=6, seeds=1, methods=["supervised"], settings=quick)["class_shares"] is None


def test_unlabelled_rows_are_used_and_their_number_matters(run, make_store, blobs, quick):
    settings = replace(quick, hidden=32, style=6, discriminator=32, steps=300, batch=64)
    rows = blobs(240, 1)
    label = np.where(np.arange(240) < 6, rows.label, -1)
    kind = type(rows)
    many = make_store({"train": kind(rows.token, label), "test": blobs(150, 2)})
    few = make_store({"train": kind(rows.token[:6], label[:6]), "test": blobs(150, 2)}, dtype="fp16")
    mean = {}
    for name, store in (("many", many), ("few", few)):
        told = run(store, labels=None, methods=["content-style"], settings=settings, seeds=5)
        assert (told["labels"], told["evaluation"], len(told["results"])) == (6, "test", 1)
        mean[name] = told["summary"]["content-style"]["mean"]
    assert mean["many"] > mean["few"] + 0.1


@pytest.fixture
def unjudged(make_store, blobs):
    """60 training rows, 24 of them labelled, and no test split."""
    rows = blobs(60, 1)
    label = np.where(np.arange(60) < 24, rows.label, -1)
    return make_store({"train": type(rows)(rows.token, label)})


def test_cross_validation_judges_each_labelled_row_once_a_split_and_never_shows_it_to_its_fold(unjudged):
    rows = read_rows(unjudged)
    trials = make_trials(rows, labelled_positions(rows, "all", 2, "balanced"))
    assert len(trials) == 2 * 5
    for seed in range(2):
        judged = np.concatenate([trial.judged for trial in trials if trial.split_seed == seed])
        assert sorted(judged.tolist()) == list(range(24))
    for trial in trials:
        assert not set(trial.judged) & (set(trial.labelled) | set(trial.unlabelled))
        assert len(trial.unlabelled) == 60 - len(trial.judged)
        assert sorted(np.r_[trial.labelled, trial.judged]) == list(range(24))


def test_after_cross_validation_the_kept_head_is_trained_on_all_labelled_rows(run, unjudged):
    told = run(unjudged, labels=None, seeds=2)
    assert told["evaluation"] == "cross-validation"
    assert (told["labels"], told["rows"]["judged"]) == (24, 24)
    assert len(told["results"]) == 2 * 3
    assert np.array(told["confusion"]["logistic"]).sum() == 48
    heads = Path(told["run"]) / "heads"
    assert {path.name for path in heads.iterdir()} == {"content-style-0.safetensors", "supervised-0.safetensors"}
    saved = load_head(heads / "content-style-0.safetensors")
    assert saved.labelled_row_id.tolist() == list(range(24))
    np.testing.assert_allclose(saved.head.projection.mean_D, read_rows(unjudged).token_ND.mean(0), atol=1e-5)


def test_cross_validation_needs_two_labelled_rows_of_each_class(run, make_store, blobs):
    rows = blobs(30, 1)
    label = np.where(np.arange(30) < 4, rows.label, -1)
    store = make_store({"train": type(rows)(rows.token, label)})
    with pytest.raises(SettingError, match=r"two labelled rows of each class and one class has 1\. Add labels, or a"):
        run(store, labels=None)


def test_dev_rows_are_judged_and_recorded_with_the_head(run, store):
    told = run(store, dev_rows=40, seeds=2, methods=["content-style"])
    assert told["evaluation"] == "dev"
    assert told["rows"] == {"train": 200, "views": 0, "judged": 40, "flagged": 0}
    assert load_head(Path(told["run"]) / "heads/content-style-0.safetensors").card["dev_rows"] == 40


def test_several_training_seeds_of_a_split_are_rows_of_their_own_and_the_first_one_is_kept(run, store):
    told = run(store, seeds=2, train_seed=3, train_seeds=2, methods=["content-style", "logistic", "self-training"])
    assert [(row["split_seed"], row["train_seed"]) for row in told["results"][:4]] == [(0, 3), (1, 3), (0, 4), (1, 4)]
    alone = run(store, seeds=2, train_seed=4, methods=["content-style", "logistic", "self-training"])
    for method in ("content-style", "logistic", "self-training"):
        value = {(r["split_seed"], r["train_seed"]): r["accuracy"] for r in told["results"] if r["method"] == method}
        again = {(r["split_seed"], r["train_seed"]): r["accuracy"] for r in alone["results"] if r["method"] == method}
        assert {key: value[key] for key in again} == again
        means = [(value[split, 3] + value[split, 4]) / 2 for split in range(2)]
        assert told["summary"][method]["ci95"] == pytest.approx(interval(means))
    heads = Path(told["run"]) / "heads"
    kept_heads = {
        f"{method}-{split}.safetensors" for method in ("content-style", "self-training") for split in range(2)
    }
    assert {path.name for path in heads.iterdir()} == kept_heads
    saved, rows = load_head(heads / "content-style-1.safetensors"), read_rows(store)
    right = float(np.mean(saved.head.predict(rows.eval_token_MD) == rows.eval_label_M))
    kept, other = (r["accuracy"] for r in told["results"][1:4:2])
    assert right == saved.card["accuracy"] == kept != other and saved.card["train_seed"] == 3
    assert np.array(told["confusion"]["logistic"]).sum() == 4 * 150


def test_runs_that_share_a_memory_compute_a_baseline_once_and_give_the_same_numbers(run, store, monkeypatch):
    calls = []
    logistic = BASELINES["logistic"]
    counted = {**BASELINES, "logistic": lambda given: calls.append(1) or logistic(given)}
    monkeypatch.setattr("cspipe.headtrain.study.BASELINES", counted)
    memory, methods = Memory(), ["content-style", "logistic", "self-training"]
    first, again = (run(store, methods=methods, memory=memory) for _ in range(2))
    assert len(calls) == 3
    assert first["results"] == again["results"] == run(store, methods=methods)["results"]
    run(store, methods=methods, memory=memory, labels=15)
    assert len(calls) == 9


def test_one_split_has_no_interval(run, store):
    told = run(store, seeds=1, methods=["content-style", "knn"])
    assert told["summary"]["content-style"]["ci95"] is None
    assert told["paired"]["knn"]["ci95"] is None


@pytest.mark.parametrize("prior", ["labelled", "estimated"])
def test_priors_that_are_learned_from_the_rows_can_be_run(run, store, quick, prior):
    told = run(
        store, seeds=2, draw="natural", methods=["content-style", "supervised"], settings=replace(quick, prior=prior)
    )
    assert told["summary"]["content-style"]["mean"] > 0.5


def test_a_single_label_in_all_can_be_run(run, store):
    told = run(store, labels=1, seeds=2, methods=[name for name in METHODS if name != "content-style-paper"])
    assert told["summary"]["logistic"]["mean"] == pytest.approx(1 / 3)


def test_an_unknown_method_is_refused_before_any_work_and_the_nearest_is_named(run, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown method 'logistics': did you mean 'logistic'"):
        run(tmp_path / "no store", methods=["content-style", "logistics"])


def test_a_refused_run_leaves_no_folder_behind(run, store, tmp_path):
    with pytest.raises(SettingError, match="labels were asked for"):
        run(store, labels=999)
    assert not (tmp_path / "runs").exists()


def test_progress_ends_at_1_for_every_method(run, store):
    told = {}
    run(store, on_progress=lambda name, share: told.setdefault(name, []).append(share))
    assert told.keys() == {"content-style", "supervised", "logistic"}
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in told.values())
