"""`cspipe suggest` and `cspipe head --labels-from`: images to label, and their labels back."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from cspipe.finetune.make_model import model_folder
from cspipe.finetune.model_directory import load_model
from cspipe.headtrain import load_head
from cspipe.store import open_store


@pytest.fixture
def train(made):
    (store,) = (made / "stores").glob("digits--*.zarr")
    return open_store(store)["train"]


def read_lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_suggested_rows_have_no_label_yet_and_the_file_waits_for_one(document, places, head_run, train, tmp_path):
    told = document("suggest", head_run, *places, "--n", "7", "--out", tmp_path / "todo.csv")
    lines = read_lines(tmp_path / "todo.csv")
    assert [int(line["row"]) for line in lines] == [entry["row"] for entry in told["rows"]]
    assert len({line["row"] for line in lines}) == 7 and {line["label"] for line in lines} == {""}
    known = load_head(head_run / "heads" / "content-style-0.safetensors").labelled_row_id
    assert not set(known.tolist()) & {int(line["row"]) for line in lines}
    path = dict(zip(train.row_id().tolist(), train.path(), strict=True))
    assert [line["path"] for line in lines] == [path[int(line["row"])] for line in lines]


def test_probabilities_are_those_of_predict_and_the_choice_is_the_heads_own(
    document, places, made, head_run, train, tmp_path
):
    run = Path(shutil.copytree(head_run, tmp_path / "runs" / head_run.name))
    told = document("suggest", run, *places, "--n", "6", "--out", tmp_path / "a.csv")
    model = load_model(model_folder(run, stores=made / "stores"))
    assert told["temperature"] == model.config["temperature"]
    (run / "heads" / "content-style-0.calibration.json").write_text('{"temperature": 3.0, "rows": 12}')
    warm = document("suggest", run, *places, "--n", "6", "--out", tmp_path / "b.csv")
    assert (warm["temperature"], warm["calibration_rows"]) == (3.0, 12)
    assert [entry["row"] for entry in warm["rows"]] == [entry["row"] for entry in told["rows"]]
    place = {row: at for at, row in enumerate(train.row_id().tolist())}
    token_ND = torch.from_numpy(train.embedding()[[place[entry["row"]] for entry in told["rows"]]])
    for entries, temperature in ((told["rows"], told["temperature"]), (warm["rows"], 3.0)):
        expected = softmax(model.head.encode(token_ND)[0].double().numpy() / temperature, axis=1).max(1)
        np.testing.assert_allclose([entry["probability"] for entry in entries], expected, atol=1e-6)


def test_what_was_filled_in_is_learnt_from(document, places, head_run, train, tmp_path):
    out = tmp_path / "todo.csv"
    document("suggest", head_run, *places, "--n", "5", "--out", out)
    label = dict(zip(train.row_id().tolist(), train.label().tolist(), strict=True))
    lines = read_lines(out)
    for line in lines[:4]:
        line["label"] = str(label[int(line["row"])])
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    quick = ["--seeds", "1", "--set", "steps=10", "--set", "components=16", "--method", "content-style"]
    told = document("head", "--labels", "40", "--labels-from", out, *quick, *places, "--runs", tmp_path / "runs")
    assert (told["labels"], told["given_labels"]) == (44, 4)
    saved = load_head(next(Path(told["run"]).glob("heads/*.safetensors")))
    assert set(saved.labelled_row_id.tolist()) >= {int(line["row"]) for line in lines[:4]}
    again = document("suggest", told["run"], *places, "--n", "5", "--out", tmp_path / "next.csv")
    assert not {entry["row"] for entry in again["rows"]} & {int(line["row"]) for line in lines[:4]}


def test_a_file_that_may_hold_labels_is_never_written_over(cspipe, places, head_run, tmp_path):
    (tmp_path / "todo.csv").write_text("my labels")
    code, _, err = cspipe("suggest", head_run, *places, "--out", tmp_path / "todo.csv")
    assert code == 1 and "is there and may hold labels" in err
    assert (tmp_path / "todo.csv").read_text() == "my labels"


def test_a_label_of_no_class_is_refused_before_anything_is_trained(cspipe, places, tmp_path):
    (tmp_path / "labels.csv").write_text("row,label\n0,cat\n")
    code, _, err = cspipe("head", *places, "--labels-from", tmp_path / "labels.csv", "--runs", tmp_path / "runs")
    assert code == 1 and "unknown class in" in err and "'cat'" in err and not (tmp_path / "runs").exists()


def test_the_table_says_what_to_do_next(cspipe, places, head_run, tmp_path):
    code, out, _ = cspipe("suggest", head_run, *places, "--n", "3", "--out", tmp_path / "todo.csv")
    assert code == 0 and "images to label" in out
    assert "cspipe head --labels-from" in out and np.all([str(digit) in out for digit in range(10)])
