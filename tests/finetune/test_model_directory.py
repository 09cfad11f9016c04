"""Model directories: what is written, what is refused when it is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cspipe.extract.datasets import load_dataset
from cspipe.finetune.make_model import model_folder
from cspipe.finetune.model_directory import load_model
from cspipe.headtrain import HeadSettings, load_head
from cspipe.headtrain.run import run_head
from cspipe.store import open_store
from cspipe.store.errors import MismatchError, MissingDataError, StoreError


@pytest.fixture(scope="module")
def frozen(digits):
    """Model directory of the head run."""
    return model_folder(digits.head_run, stores=digits.stores)


@pytest.fixture
def copy(tuned, tmp_path):
    """A tuned model directory that may be written to."""
    return Path(shutil.copytree(tuned["model_dir"], tmp_path / "model"))


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_tuned_model_gives_its_own_accuracy_from_the_image_files(tuned, digits, tmp_path):
    model = load_model(tuned["model_dir"])
    test, split = open_store(digits.store)["test"], load_dataset("digits").splits["test"]
    images = [split.load(split.paths.index(path)) for path in test.path()]
    right = np.mean([int(name) == label for name, label in zip(model.predict(images), test.label(), strict=True)])
    assert right == tuned["accuracy_after"]
    Image.fromarray(images[0]).save(tmp_path / "digit.png")
    from_file = model.probabilities([tmp_path / "digit.png", str(tmp_path / "digit.png"), images[0]])
    np.testing.assert_allclose(from_file, from_file[[0, 0, 0]], atol=1e-6)


def test_tokens_of_many_images_are_those_of_each_alone_in_order(frozen, digits):
    model, split = load_model(frozen), load_dataset("digits").splits["test"]
    images = [split.load(number) for number in range(2 * model.backbone.spec.batch_size + 3)]
    threads = torch.get_num_threads()
    together = model.tokens(images)
    assert torch.get_num_threads() == threads
    np.testing.assert_allclose(together, np.concatenate([model.tokens([image]) for image in images]), atol=1e-4)
    assert model.tokens([]).shape == (0, model.backbone.width) and model.predict([]) == []


def test_a_frozen_model_holds_no_weights_but_says_which_they_are(frozen, digits):
    assert {path.name for path in frozen.iterdir()} == {"config.json", "head.safetensors", "README.md"}
    config = json.loads((frozen / "config.json").read_text())
    store = open_store(digits.store)
    assert config["weights"]["sha256"] == store.key.weights_sha256 and not config["trained_backbone"]
    assert config["weights"]["source"] == store.provenance["weights_source"]
    tokens = torch.from_numpy(store["test"].embedding())
    saved = load_head(digits.head_run / "heads" / "content-style-0.safetensors")
    model = load_model(frozen)
    assert np.array_equal(model.probabilities_of_tokens(tokens).argmax(1), saved.head.predict(tokens))
    assert config["accuracy"] == digits.head["results"][0]["accuracy"]


def test_the_temperature_comes_from_labelled_rows_alone(frozen, digits, monkeypatch, tmp_path):
    """Other labels of the test rows, and other tokens: the same temperature."""
    config = json.loads((frozen / "config.json").read_text())
    assert config["calibration_rows"] == 10 and config["temperature"] >= 1
    read = __import__("cspipe.headtrain.rows", fromlist=["read_test"]).read_test
    monkeypatch.setattr("cspipe.headtrain.rows.read_test", lambda store: tuple(-part for part in read(store)))
    run = Path(shutil.copytree(digits.head_run, tmp_path / digits.head_run.name))
    shutil.rmtree(run / "model")
    (run / "heads" / "content-style-0.calibration.json").unlink()
    again = json.loads((model_folder(run, stores=digits.stores) / "config.json").read_text())
    assert again["temperature"] == config["temperature"]


def test_the_temperature_is_fitted_once_by_a_head_whose_training_is_told(frozen, digits, tmp_path):
    run = Path(shutil.copytree(digits.head_run, tmp_path / digits.head_run.name))
    shutil.rmtree(run / "model")
    told, said = [], []

    def make():
        folder = model_folder(
            run, stores=digits.stores, on_message=said.append, on_progress=lambda name, done: told.append((name, done))
        )
        return json.loads((folder / "config.json").read_text())["temperature"]

    kept = make()
    assert told == [] and said == []
    shutil.rmtree(run / "model")
    (run / "heads" / "content-style-0.calibration.json").unlink()
    assert make() == kept
    assert told[-1] == ("calibration", 1) and len(told) > 10 and told == sorted(told)
    assert len(said) == 1 and "a second head is trained without a quarter of the labelled rows" in said[0]


def test_no_second_head_is_trained_where_labels_are_too_few_to_hold_out(digits, tmp_path, monkeypatch):
    quick = HeadSettings(components=16, hidden=16, style=4, discriminator=8, steps=10, batch=32)
    told = run_head(
        store=digits.store, runs=tmp_path, labels=30, seeds=1, methods=("content-style",), settings=quick
    )  # fmt: skip
    run = Path(told["run"])
    monkeypatch.setattr("cspipe.finetune.make_model.calibrate", lambda *a, **b: pytest.fail("trained again"))
    config = json.loads((model_folder(run, stores=digits.stores) / "config.json").read_text())
    assert (config["temperature"], config["calibration_rows"]) == (1, 0)


def test_a_model_is_made_once(frozen, digits, monkeypatch):
    monkeypatch.setattr("cspipe.finetune.make_model.freeze", lambda *a, **b: pytest.fail("made again"))
    assert model_folder(digits.head_run, stores=digits.stores) == frozen


def test_the_run_of_a_tuned_model_stands_for_it(tuned, digits):
    assert model_folder(Path(tuned["run"]), stores=digits.stores) == Path(tuned["model_dir"])


def keys(document, before=""):
    """Every key of a document, with those of its parts behind a dot, `[]` for the parts of a list."""
    found = []
    if isinstance(document, dict):
        for name, value in document.items():
            found += [f"{before}{name}", *keys(value, f"{before}{name}.")]
    for part in document if isinstance(document, list) else ():
        found += keys(part, f"{before.removesuffix('.')}[].")
    return sorted(set(found))


def test_the_layout_of_a_model_directory_is_the_recorded_one(frozen, tuned):
    """Others read these names. Where one changes on purpose, change the file too, and FORMAT if old readers break."""
    golden = json.loads((Path(__file__).parent.parent / "golden" / "model-directory.json").read_text())
    for kind, folder in (("frozen", frozen), ("tuned", Path(tuned["model_dir"]))):
        assert sorted(path.name for path in folder.iterdir()) == golden["files"][kind]
        config = json.loads((folder / "config.json").read_text())
        assert keys(config) == golden["config"][kind] and config["cspipe_model"] == golden["format"]
        front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert keys(front) == golden["card"]
        with safe_open(folder / "head.safetensors", "pt") as head:
            assert sorted(json.loads(head.metadata()["cspipe"])) == golden["head"]


def test_changed_weights_are_refused(copy):
    state = load_file(copy / "backbone.safetensors")
    state["conv_stem.weight"][0] += 1
    save_file(state, copy / "backbone.safetensors")
    with pytest.raises(MismatchError, match="was made with weights"):
        load_model(copy)


def test_the_probe_finds_a_backbone_that_gives_other_tokens(copy, monkeypatch):
    from cspipe.finetune import model_directory

    load_model(copy)
    probe = model_directory.probe
    monkeypatch.setattr(model_directory, "probe", lambda lane: probe(lane) + np.float32(0.05))
    with pytest.raises(MismatchError, match="does not give here what it gave where it was made"):
        load_model(copy)


def test_another_preprocessing_is_refused_in_words(copy):
    change(copy, transform="shorter side to 999 px")
    with pytest.raises(MismatchError, match="was made with the preprocessing 'shorter side to 999 px'"):
        load_model(copy)


def test_damaged_and_foreign_folders_are_refused(copy, tmp_path):
    with pytest.raises(MissingDataError, match="is no model: give a head run"):
        load_model(tmp_path / "nowhere")
    change(copy, cspipe_model=99)
    with pytest.raises(MismatchError, match="is not of a model that this version reads"):
        load_model(copy)
    change(copy, cspipe_model=1)
    (copy / "backbone.safetensors").unlink()
    with pytest.raises((StoreError, MissingDataError)):
        load_model(copy)
    (copy / "config.json").write_text('{"cut')
    with pytest.raises(StoreError, match=r"config.json is damaged"):
        load_model(copy)
