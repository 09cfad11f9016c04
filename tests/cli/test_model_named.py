"""`latest`: the newest run that holds a model, for `cspipe predict` and `cspipe export`."""

import json
import shutil

import pytest
from PIL import Image


@pytest.fixture
def runs(head_run, tmp_path):
    """The head run, a later one without a content-style head, and one that never ended."""
    shutil.copytree(head_run, tmp_path / "runs" / "20300101T000000Z-head-aaaaaa")
    other = shutil.copytree(head_run, tmp_path / "runs" / "20300102T000000Z-head-bbbbbb")
    shutil.rmtree(other / "model", ignore_errors=True)
    for head in (other / "heads").glob("content-style-*"):
        head.unlink()
    unfinished = tmp_path / "runs" / "20300103T000000Z-head-cccccc"
    unfinished.mkdir()
    (unfinished / "config.toml").touch()
    return tmp_path / "runs"


@pytest.fixture
def places(made, runs):
    return ["--stores", made / "stores", "--runs", runs]


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (32, 32), (9, 90, 200)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_latest_is_the_newest_finished_run_with_a_model_or_its_head_and_is_told(cspipe, places, runs, image):
    code, out, err = cspipe("predict", "latest", image, *places, "--json")
    assert code == 0 and json.loads(out)["model"] == str(runs / "20300101T000000Z-head-aaaaaa" / "model")
    assert f"model: {runs / '20300101T000000Z-head-aaaaaa'} (head, lite0 on digits, 40 labels)" in err


def test_a_tuned_model_made_later_is_the_latest(document, places, runs, image):
    first = document("predict", "latest", image, *places, "--quiet")
    tuned = runs / "20300104T000000Z-finetune-dddddd"
    shutil.copytree(first["model"], tuned / "model")
    shutil.copy(runs / "20300101T000000Z-head-aaaaaa" / "report.json", tuned)
    (tuned / "config.toml").touch()
    assert document("predict", "latest", image, *places, "--quiet")["model"] == str(tuned / "model")


def test_a_folder_called_latest_comes_first(document, places, runs, image, tmp_path, monkeypatch):
    document("export", *places, "--quiet", "--to", tmp_path / "latest", "--format", "safetensors")
    monkeypatch.chdir(tmp_path)
    assert document("predict", "latest", image, *places, "--quiet")["model"] == "latest"


def test_export_takes_the_latest_where_no_model_is_named(document, places, runs, tmp_path):
    told = document("export", *places, "--quiet", "--to", tmp_path / "out", "--format", "safetensors")
    assert told["model"] == str(runs / "20300101T000000Z-head-aaaaaa" / "model")


def test_without_a_run_that_holds_a_model_the_error_says_what_to_do(cspipe, image, tmp_path):
    code, out, err = cspipe("predict", "latest", image, "--runs", tmp_path / "none")
    assert code == 1 and not out and "none holds a model. Run cspipe head first, name --runs, or" in err
