"""`cspipe export`: ONNX that says what PyTorch says, and a folder that others can load."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from cspipe.export import Pixels, example_pixels
from cspipe.finetune.make_model import model_folder
from cspipe.finetune.model_card import as_text, card_text, sampling_interval
from cspipe.finetune.model_directory import load_model
from cspipe.onnx_use import use_onnx


@pytest.fixture(scope="module")
def model(made, head_run):
    return load_model(model_folder(head_run, stores=made / "stores"))


def example_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def write_image(folder):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "image.png")


def test_onnx_gives_the_probabilities_of_pytorch_for_any_batch(document, places, head_run, model, tmp_path):
    told = document("export", head_run, *places, "--to", tmp_path / "net")
    assert told["largest_difference"] < 1e-4
    assert set(told["files"]) == {"README.md", "config.json", "model.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "net" / "model.onnx")
    for count in (1, 2, 7):
        pixels = example_pixels(model, count)
        (theirs,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
        with torch.no_grad():
            ours = Pixels(model).eval()(pixels).numpy()
        assert theirs.shape == (count, 10)
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
        np.testing.assert_allclose(theirs.sum(1), 1, atol=1e-5)


def test_the_network_agrees_with_the_model_that_predict_uses(model, tmp_path):
    write_image(tmp_path)
    scaled = np.asarray(model.backbone.geometry(Image.open(tmp_path / "image.png"))).transpose(2, 0, 1)[None].copy()
    with torch.no_grad():
        network = Pixels(model).eval()(torch.from_numpy(scaled)).numpy()
    np.testing.assert_allclose(model.probabilities([tmp_path / "image.png"]), network, atol=1e-4)
    assert model.predict([tmp_path / "image.png"]) == [str(network[0].argmax())]


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_the_example_of_the_card_runs_as_it_stands(document, places, head_run, tmp_path, monkeypatch, capsys, kind):
    folder = tmp_path / kind
    document("export", head_run, *places, "--to", folder, "--format", kind)
    write_image(folder)
    monkeypatch.chdir(folder)
    exec(example_of((folder / "README.md").read_text()), {})
    name, probability = capsys.readouterr().out.split()
    assert name in [str(digit) for digit in range(10)] and 0.1 <= float(probability) <= 1


@pytest.mark.parametrize("size", [(90, 60), (61, 200), (112, 112)])
def test_the_example_of_the_onnx_card_prepares_an_image_as_the_model_does(size, model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    before_network = example_of(use_onnx(model.config)).split("session =")[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(before_network, names)
    expected = np.asarray(model.backbone.geometry(Image.fromarray(pixels))).transpose(2, 0, 1)
    np.testing.assert_array_equal(names["pixels"][0], expected)


def test_the_onnx_card_of_an_unknown_geometry_says_that_the_example_is_not_all(model):
    odd = model.config | {"transform": "upright by EXIF; RGB; Pad(4); pixel / 255"}
    assert "in place of the resizing above" in use_onnx(odd)
    squashed = (
        "RGB; both sides to 224 x 224 px whatever the shape, bilinear on 8-bit pixels with antialias; pixel / 255"
    )
    told = use_onnx(model.config | {"image_px": 224, "transform": squashed})
    assert "resize((side, side), Image.Resampling.BILINEAR)\n" in told and "in place of" not in told


def test_the_card_is_laid_out_as_the_hub_expects(document, places, head_run, tmp_path):
    document("export", head_run, *places, "--to", tmp_path / "out", "--format", "safetensors")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.datasets) == (
        "apache-2.0", "image-classification", ["digits"],
    )  # fmt: skip
    (result,) = card.data.eval_results
    report = json.loads((head_run / "report.json").read_text())
    right = next(r["accuracy"] for r in report["results"] if r["method"] == "content-style" and r["split_seed"] == 0)
    assert result.metric_value == pytest.approx(right, abs=1e-4) and "95 % interval" in result.metric_name
    for words in ("Licence of the weights | Apache-2.0", "| Labelled images | 40 |", "mean of 2 draws", "frozen"):
        assert words in card.text


def test_no_path_of_this_machine_leaves_with_the_export(document, places, head_run, made, tmp_path):
    document("export", head_run, *places, "--to", tmp_path / "out", "--format", "safetensors")
    for path in (tmp_path / "out").iterdir():
        assert str(made).encode() not in path.read_bytes()


def test_a_folder_that_holds_something_is_not_written_over(cspipe, places, head_run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for flags in ([], ["--fresh"]):
        code, _, err = cspipe("export", head_run, *places, "--to", tmp_path / "mine", "--format", "safetensors", *flags)
        assert code == 1 and "is not empty" in err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert cspipe("export", head_run, *places, "--to", tmp_path / "new", "--format", "safetensors")[0] == 0
    assert cspipe("export", head_run, *places, "--to", tmp_path / "new", "--format", "safetensors")[0] == 1
    assert cspipe("export", head_run, *places, "--to", tmp_path / "new", "--format", "safetensors", "--fresh")[0] == 0


def test_missing_onnx_packages_are_told_with_the_extra(cspipe, places, head_run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    code, _, err = cspipe("export", head_run, *places, "--to", tmp_path / "net")
    assert code == 1 and "content-style-pipeline[onnx]" in err and not (tmp_path / "net").exists()


def test_names_in_the_card_are_text(model):
    names = ["<script>alert(1)</script>", "a|b", "[x](javascript:1)", "red\x1b[31m", "---\nlicense: mit"]
    config = model.config | {"class_names": names, "dataset": "<b>: {evil}\n---", "judged_on": "<b>"}
    card = card_text(config)
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["datasets"] == ["<b>: {evil}\n---"]
    assert "<script>" not in body and "\x1b" not in card and "[x](" not in body and "a|b" not in body
    assert as_text("<i>") == "&lt;i&gt;"


def test_the_interval_of_the_card_is_wilsons():
    low, high = sampling_interval(0.9, 100)
    centre = (0.9 + 1.96**2 / 200) / (1 + 1.96**2 / 100)
    half = 1.96 * np.sqrt(0.9 * 0.1 / 100 + 1.96**2 / 40000) / (1 + 1.96**2 / 100)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-4)
