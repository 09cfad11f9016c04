"""Heads judged on another data set's store: which rows, and which stores are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.headtrain import load_head
from cspipe.headtrain.rows import read_rows
from cspipe.headtrain.run import run_head
from cspipe.headtrain.shift import find_test_store, judge_elsewhere
from cspipe.store.errors import MismatchError, MissingDataError, SettingError


@pytest.fixture
def pair(make_store, blobs):
    """Two stores of the same backbone: what is trained on, and the same blobs pushed aside."""
    shifted = blobs(90, 5)
    trained = make_store({"train": blobs(120, 1), "test": blobs(60, 2)})
    moved = type(shifted)(shifted.token + 0.5, shifted.label)
    return trained, make_store({"train": blobs(30, 4), "test": moved}, dataset="moved"), moved


def test_training_rows_stay_and_the_other_stores_labelled_test_rows_are_judged(pair):
    trained, other, moved = pair
    own, rows = read_rows(trained), judge_elsewhere(read_rows(trained), trained, other)
    assert torch.equal(rows.token_ND, own.token_ND) and rows.label_N.tolist() == own.label_N.tolist()
    assert torch.equal(rows.eval_token_MD, torch.from_numpy(moved.token))
    assert rows.eval_label_M.tolist() == moved.label.tolist() and rows.evaluation == "test"


def test_without_labelled_test_rows_the_labelled_training_rows_of_the_other_store_are_judged(make_store, blobs):
    trained = make_store({"train": blobs(60, 1)})
    train, test = blobs(40, 4), blobs(20, 5)
    train.label[::2], test.label[:] = -1, -1
    rows = judge_elsewhere(read_rows(trained), trained, make_store({"train": train, "test": test}, dataset="moved"))
    assert rows.evaluation == "test"
    assert torch.equal(rows.eval_token_MD, torch.from_numpy(train.token[1::2]))
    assert rows.eval_label_M.tolist() == train.label[1::2].tolist()


def test_a_store_without_any_label_cannot_judge(make_store, blobs):
    unknown = blobs(20, 5)
    unknown.label[:] = -1
    trained, other = make_store({"train": blobs(60, 1)}), make_store({"train": unknown}, dataset="moved")
    with pytest.raises(SettingError, match="holds no labelled row to judge on: name another --test-dataset"):
        judge_elsewhere(read_rows(trained), trained, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_px": 16}, r"made otherwise: image_px 16 against 8\. Extract moved with the options of blobs"),
        ({"token": "mean"}, "token mean against cls"),
        ({"transform": "crop"}, "transform crop against none"),
        ({"dtype": "fp16"}, "dtype fp16 against fp32"),
        ({"weights_sha256": "cd" * 32, "token": "mean"}, f"weights_sha256 {'cd' * 30} against {'ab' * 30}, token m"),
    ],
)
def test_tokens_that_were_made_otherwise_are_refused_with_the_difference(make_store, blobs, changes, told):
    trained = make_store({"train": blobs(60, 1)})
    other = make_store({"test": blobs(20, 5)}, dataset="moved", **changes)
    with pytest.raises(MismatchError, match=told):
        judge_elsewhere(read_rows(trained), trained, other)


def test_other_class_names_are_refused_and_named(make_store, blobs):
    trained = make_store({"train": blobs(60, 1)})
    other = make_store({"test": blobs(20, 5)}, dataset="moved", class_names=["red", "blue", "green"])
    with pytest.raises(MismatchError, match=r"has the classes red, blue, green, but .* has red, green, blue: "):
        judge_elsewhere(read_rows(trained), trained, other)


def test_the_store_that_is_trained_on_is_no_other_one(pair):
    trained, _, _ = pair
    with pytest.raises(SettingError, match="is the store that is trained on: leave out --test-dataset"):
        judge_elsewhere(read_rows(trained), trained, trained)


def test_the_store_of_the_same_key_is_found_among_several_of_a_name(make_store, blobs, pair):
    trained, other, _ = pair
    make_store({"test": blobs(20, 5)}, dataset="moved", image_px=16)
    assert find_test_store(trained.parent, trained, "moved") == other


def test_a_store_of_another_key_is_found_where_there_is_no_better_so_that_the_difference_can_be_told(make_store, blobs):
    trained = make_store({"train": blobs(60, 1)})
    other = make_store({"test": blobs(20, 5)}, dataset="moved", image_px=16)
    assert find_test_store(trained.parent, trained, "moved") == other
    with pytest.raises(MissingDataError, match="no store of backbone 'lite0' and dataset 'elsewhere'"):
        find_test_store(trained.parent, trained, "elsewhere")


def test_document_report_and_heads_name_what_was_judged(pair, quick, tmp_path):
    trained, other, moved = pair
    options = {"runs": tmp_path / "runs", "labels": 12, "seeds": 2, "settings": quick, "methods": ["content-style"]}
    told = run_head(store=trained, test_store=other, **options)
    assert (told["dataset"], told["test_dataset"], told["test_store"]) == ("blobs", "moved", str(other))
    assert told["rows"] == {"train": 120, "views": 0, "judged": 90, "flagged": 0}
    saved = load_head(Path(told["run"]) / "heads" / "content-style-0.safetensors")
    assert saved.card["test_dataset"] == "moved" and saved.card["dataset"] == "blobs"
    predicted = saved.head.predict(torch.from_numpy(moved.token))
    assert told["results"][0]["accuracy"] == np.mean(predicted == moved.label)
    report = json.loads((Path(told["run"]) / "report.json").read_text())
    assert set(report["test_provenance"]["dataset_fingerprint"]) == {"train", "test"}
    own = run_head(store=trained, **options)
    assert own["test_dataset"] is own["test_store"] is None and own["rows"]["judged"] == 60


def test_dev_rows_and_another_data_set_are_refused_together(pair, quick, tmp_path):
    trained, other, _ = pair
    with pytest.raises(SettingError, match=r"set dev_rows = 0, or leave out --test-dataset"):
        run_head(store=trained, test_store=other, dev_rows=20, runs=tmp_path / "runs", settings=quick)
    assert not (tmp_path / "runs").exists()
