"""`cspipe predict`: answers on images, from a head run and from a model directory."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from cspipe.extract.datasets import load_dataset
from cspipe.headtrain import load_head
from cspipe.store import open_store
from cspipe.store.layout import latest_store

COLUMNS = ["path", "class", "probability", "abstain", "problem"]


@pytest.fixture(scope="module")
def pictures(made, tmp_path_factory):
    """Twelve test digits of the store as PNG files, and one file that is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    split = load_dataset("digits").splits["test"]
    (store,) = (made / "stores").glob("digits--*.zarr")
    for path in open_store(store)["test"].path()[:12]:
        Image.fromarray(split.load(split.paths.index(path))).save(folder / f"{Path(path).name}.png")
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "notes.txt").write_text("no image, and not asked for")
    return folder


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_answers_are_those_of_the_head_on_the_stored_tokens_with_probabilities_at_the_models_temperature(
    document, places, made, head_run, pictures, tmp_path
):
    document("export", head_run, *places, "--to", tmp_path / "warm", "--format", "safetensors")
    config = json.loads((tmp_path / "warm" / "config.json").read_text())
    (tmp_path / "warm" / "config.json").write_text(json.dumps(config | {"temperature": 2.5}))
    (store,) = (made / "stores").glob("digits--*.zarr")
    test = open_store(store)["test"]
    saved = load_head(head_run / "heads" / "content-style-0.safetensors")
    logits = saved.head.encode(torch.from_numpy(test.embedding()[:12]))[0].double().numpy()
    expected = softmax(logits / 2.5, axis=1)
    least = round(float(np.median(expected.max(1))), 3)  # about half of the answers are surer
    told = document("predict", tmp_path / "warm", pictures, *places, "--abstain-below", least)
    by_name = {f"{Path(path).name}.png": row for path, row in zip(test.path()[:12], expected, strict=True)}
    answers = {Path(entry["path"]).name: entry for entry in told["predictions"]}
    assert len(answers) == told["images"] == 13
    for name, row in by_name.items():
        assert answers[name]["class"] == str(row.argmax())
        assert answers[name]["probability"] == pytest.approx(row.max(), abs=2e-3)
        assert answers[name]["abstain"] == (answers[name]["probability"] < least)
    assert len({answers[name]["abstain"] for name in by_name}) == 2


def test_a_bad_image_is_listed_with_its_reason_and_counts_as_abstained(document, places, head_run, pictures):
    told = document("predict", head_run, pictures, *places, "--abstain-below", "0")
    (bad,) = [entry for entry in told["predictions"] if entry["problem"]]
    assert Path(bad["path"]).name == "broken.png" and bad["class"] is None and bad["probability"] is None
    assert told["bad_images"] == [{"path": bad["path"], "reason": "no known image format"}]
    assert told["abstained"] == 1


def test_a_second_predict_reads_the_cache_and_says_the_same(document, places, head_run, pictures):
    first = document("predict", head_run, pictures, *places)
    again = document("predict", head_run, pictures, *places)
    assert again["computed"] == 0 and again["embedded_per_second"] is None
    assert again["predictions"] == first["predictions"]


def test_an_image_is_known_by_its_content_whatever_folder_it_is_in(document, places, head_run, pictures, tmp_path):
    document("predict", head_run, pictures, *places)
    shutil.copytree(pictures, tmp_path / "elsewhere")
    moved = document("predict", head_run, tmp_path / "elsewhere" / "*.png", *places)
    assert moved["computed"] == 0


def test_predictions_never_become_the_store_that_head_takes(document, places, made, head_run, pictures):
    before = latest_store(made / "stores")
    told = document("predict", head_run, pictures, *places)
    assert latest_store(made / "stores") == before
    assert Path(told["store"]).parent == made / "stores" / "predicted"


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_every_format_holds_every_image_in_the_order_named(document, places, head_run, pictures, tmp_path, suffix):
    kept = document("predict", head_run, pictures, *places)["predictions"]
    out = tmp_path / "new" / f"answers.{suffix}"
    told = document("predict", head_run, pictures, *places, "--out", out)
    assert "predictions" not in told and told["out"] == str(out)
    if suffix == "parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
    else:
        rows = read_csv(out) if suffix == "csv" else json.loads(out.read_text())
    assert [list(row) for row in rows] == [COLUMNS] * 13
    assert [row["path"] for row in rows] == [entry["path"] for entry in kept]
    assert [row["class"] or None for row in rows] == [entry["class"] for entry in kept]
    assert list(out.parent.iterdir()) == [out]


def test_answers_are_streamed_in_lots(document, places, head_run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("cspipe.predict.AT_ONCE", 5)
    kept = document("predict", head_run, pictures, *places)["predictions"]
    document("predict", head_run, pictures, *places, "--out", tmp_path / "a.parquet")
    file = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [5, 5, 3]
    assert [row["path"] for row in file.read().to_pylist()] == [entry["path"] for entry in kept]


def test_without_a_file_the_answers_alone_are_on_standard_output(cspipe, places, head_run, pictures):
    code, out, err = cspipe("predict", head_run, pictures, *[place for place in places if place != "--quiet"])
    assert code == 0
    assert [list(row) for row in csv.DictReader(out.splitlines())] == [COLUMNS] * 13
    assert "13 images" in err and "images/s" in err and "broken.png: no known image format" in err


def test_a_model_directory_says_what_its_run_says_without_run_and_store(document, places, head_run, pictures, tmp_path):
    kept = document("predict", head_run, pictures, *places)["predictions"]
    document("export", head_run, *places, "--to", tmp_path / "out", "--format", "safetensors")
    told = document("predict", tmp_path / "out", pictures, "--stores", tmp_path / "stores", "--quiet")
    assert told["predictions"] == kept


def test_weights_that_are_not_the_models_are_refused(cspipe, places, head_run, pictures, tmp_path, document):
    document("export", head_run, *places, "--to", tmp_path / "out", "--format", "safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["weights"]["sha256"] = "0" * 64
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    code, _, err = cspipe("predict", tmp_path / "out", pictures, *places)
    assert code == 1 and "was made with weights 000000000000" in err and "--weights FILE" in err


def test_the_probe_finds_another_preprocessing(cspipe, places, head_run, pictures, tmp_path, document, monkeypatch):
    document("export", head_run, *places, "--to", tmp_path / "out", "--format", "safetensors")
    normalise = __import__("cspipe.extract.embed", fromlist=["normalise"]).normalise
    twice = lambda batch, mean, std: (normalise(batch, mean, std) - mean[0]) / std[0]  # noqa: E731
    monkeypatch.setattr("cspipe.extract.embed.normalise", twice)
    code, _, err = cspipe("predict", tmp_path / "out", pictures, *places)
    assert code == 1 and "does not give here what it gave where it was made" in err


FAULTS = {
    "no images there": (["nothing/at/all"], "there is nothing at nothing/at/all"),
    "a folder without images": (["EMPTY"], "there is no image at"),
    "an unknown format": (["IMAGES", "--format", "xlsx"], "answers are written as csv, json, parquet; 'xlsx'"),
    "parquet to the terminal": (["IMAGES", "--format", "parquet"], "name a file with --out answers.parquet"),
    "no probability": (["IMAGES", "--abstain-below", "1.5"], "--abstain-below is a probability from 0 to 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_plain_line(cspipe, places, head_run, pictures, tmp_path, fault):
    arguments, expected = FAULTS[fault]
    (tmp_path / "empty").mkdir()
    named = {"IMAGES": pictures, "EMPTY": tmp_path / "empty"}
    code, out, err = cspipe("predict", head_run, *[named.get(a, a) for a in arguments], *places)
    assert code == 1 and expected in err and not out and len(err.strip().splitlines()) == 1


def test_what_is_no_model_is_said_to_be_none(cspipe, places, pictures, tmp_path):
    code, _, err = cspipe("predict", tmp_path, pictures, *places)
    assert code == 1 and "is no model: give a head run" in err


def test_images_are_taken_once_in_the_order_named(pictures):
    from cspipe.images_named import find_images

    files = sorted(str(path) for path in pictures.glob("*.png"))
    assert find_images([files[5], str(pictures), str(pictures / "*.png")]) == [files[5], *files[:5], *files[6:]]
    assert find_images([str(pictures / "notes.txt")]) == [str(pictures / "notes.txt")]
    assert np.all([path.endswith(".png") for path in find_images([str(pictures)])])
