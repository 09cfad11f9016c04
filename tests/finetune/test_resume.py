"""An interrupted fine-tuning goes on in its own folder and ends where it would have ended."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cspipe.finetune.checkpoint import save_checkpoint
from cspipe.finetune.run import run_finetune
from cspipe.finetune.train import train as real_train


class StoppedError(Exception):
    """Stands for Ctrl-C and for power cuts."""


@pytest.fixture
def stop_after(monkeypatch):
    """A function (steps or None): training then stops right after so many steps, or no more."""

    def patch(steps: int | None) -> None:
        def train(*positional, on_step, **named):
            def told(done: int, count: int) -> None:
                on_step(done, count)
                if done == steps:
                    raise StoppedError

            return real_train(*positional, on_step=told, **named)

        monkeypatch.setattr("cspipe.finetune.run.train", train)

    return patch


def model_files(document: dict) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in Path(document["model_dir"]).glob("*.safetensors")}


@pytest.fixture
def chosen(settings):
    """Two epochs of three steps with discriminator and regulariser; checkpoints at 2, 4 and 6."""
    return settings(epochs=2, regularisers={"rift": 0.1})


@pytest.fixture(scope="module")
def whole(digits, settings, tmp_path_factory):
    """The same run, never interrupted."""
    torch.set_num_threads(1)
    return run_finetune(
        head_run=digits.head_run, runs=tmp_path_factory.mktemp("whole"), stores=digits.stores,
        settings=settings(epochs=2, regularisers={"rift": 0.1}),
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 4, 5, 6], ids=["before any", "at a", "past a", "at the last"])
def test_interrupted_before_at_or_past_a_checkpoint_the_same_call_ends_bit_for_bit_the_same(
    tune, chosen, stop_after, whole, tmp_path, steps
):
    stop_after(steps)
    with pytest.raises(StoppedError):
        tune(settings=chosen)
    (run,) = (tmp_path / "runs").iterdir()
    kept = run / "checkpoint.safetensors"
    assert kept.is_file() is (steps > 1)
    if kept.is_file():
        with safe_open(kept, "pt") as file:
            assert json.loads(file.metadata()["step"]) == steps // 2 * 2
    assert not (run / "report.json").exists()
    stop_after(None)
    said = []
    document = tune(settings=chosen, on_message=said.append)
    assert document["run"] == str(run)
    assert said[0] == f"going on with {run}"
    assert list((tmp_path / "runs").iterdir()) == [run]
    same = {"accuracy_before", "accuracy_after", "cka", "token_variance", "effective_rank"}
    assert {key: document[key] for key in same} == {key: whole[key] for key in same}
    assert (run / "metrics.jsonl").read_text() == (Path(whole["run"]) / "metrics.jsonl").read_text()
    mine, theirs = model_files(document), model_files(whole)
    for file in ("backbone.safetensors", "head.safetensors"):
        assert mine[file].keys() == theirs[file].keys()
        assert all(torch.equal(value, theirs[file][name]) for name, value in mine[file].items())


EVERYTHING = {
    "average, two passes a step, views and early stopping": {
        "ema": 0.9, "accumulate": 2, "batch": 16, "augment": "affine", "stop": "unsupervised",
    },
    "the image rebuilt, average and early stopping": {
        "target": "image", "ema": 0.9, "stop": "unsupervised", "regularisers": {"rift": 0.1},
    },
    "learned rotation, noise and probe": {
        "probe_steps": 3, "regularisers": {"rift-learned": 0.1, "r4f": 1.0, "masked": 0.1, "l2sp": 0.01},
    },
    "adapter, average and adversarial directions": {
        "adapter": "lora", "lora_rank": 2, "ema": 0.5, "lr": 1e-3,
        "regularisers": {"pdr-js-adversarial": 1.0, "supcon": 0.1, "proco": 0.1},
    },
    "supervised, layer decay, activations recomputed, labels held out": {
        "method": "supervised", "layer_decay": 0.8, "grad_checkpointing": True, "stop": "held-out",
        "regularisers": {"rift-procrustes": 0.1, "pdr-hellinger": 1.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_with_every_option_an_interrupted_run_ends_bit_for_bit_the_same(tune, settings, stop_after, name):
    chosen = settings(epochs=2, **EVERYTHING[name])
    whole = tune(runs="whole", settings=chosen)
    stop_after(5)
    with pytest.raises(StoppedError):
        tune(settings=chosen)
    stop_after(None)
    document = tune(settings=chosen)
    assert (Path(document["run"]) / "metrics.jsonl").read_text() == (Path(whole["run"]) / "metrics.jsonl").read_text()
    mine, theirs = model_files(document), model_files(whole)
    for file in ("backbone.safetensors", "head.safetensors"):
        assert mine[file].keys() == theirs[file].keys()
        assert all(torch.equal(value, theirs[file][name]) for name, value in mine[file].items())


KILLED = """
import sys, os, signal, torch
from pathlib import Path
from cspipe.finetune.run import run_finetune
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune import run
head, stores, runs = map(Path, sys.argv[1:4])
real, last = run.train, int(sys.argv[4])
def train(*positional, on_step, **named):
    def told(done, count):
        on_step(done, count)
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*positional, on_step=told, **named)
run.train = train
torch.set_num_threads(1)
settings = FinetuneSettings(unfreeze_blocks=2, batch=32, labelled_batch=8, lr=5e-5, checkpoint_steps=2, epochs=2,
                            regularisers={"rift": 0.1})
run_finetune(head_run=head, runs=runs, stores=stores, settings=settings)
"""


def test_a_process_that_was_killed_is_gone_on_with_by_another_and_ends_bit_for_bit_the_same(digits, whole, tmp_path):
    command = [sys.executable, "-c", KILLED, str(digits.head_run), str(digits.stores), str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([*command, "5"], env=environment, capture_output=True, check=False)
    assert first.returncode == -signal.SIGKILL
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "report.json").exists()
    subprocess.run([*command, "-1"], env=environment, capture_output=True, check=True)
    document = json.loads((run / "report.json").read_text())
    mine, theirs = model_files(document), model_files(whole)
    for file, tensors in mine.items():
        assert all(torch.equal(value, theirs[file][name]) for name, value in tensors.items())


@pytest.mark.slow
def test_interrupted_twice_it_still_ends_the_same(tune, chosen, stop_after, whole):
    for steps in (3, 5):
        stop_after(steps)
        with pytest.raises(StoppedError):
            tune(settings=chosen)
    stop_after(None)
    mine, theirs = model_files(tune(settings=chosen)), model_files(whole)
    for file, tensors in mine.items():
        assert all(torch.equal(value, theirs[file][name]) for name, value in tensors.items())


def test_metrics_written_before_a_checkpoint_that_failed_are_not_told_twice(tune, chosen, whole, monkeypatch):
    """Step 3 ends an epoch and its record is on disk when the checkpoint of step 4 fails: step 3 is done again."""

    def full(run: Path, model, made, facts: dict) -> None:
        if facts["step"] == 4:
            raise StoppedError
        save_checkpoint(run, model, made, facts)

    with monkeypatch.context() as patch:
        patch.setattr("cspipe.finetune.train.save_checkpoint", full)
        with pytest.raises(StoppedError):
            tune(settings=chosen)
    run = Path(tune(settings=chosen)["run"])
    assert (run / "metrics.jsonl").read_text() == (Path(whole["run"]) / "metrics.jsonl").read_text()


def test_other_settings_and_finished_runs_are_not_gone_on_with(tune, settings, stop_after, tmp_path):
    small = settings(limit=64, epochs=1)
    stop_after(1)
    with pytest.raises(StoppedError):
        tune(settings=small)
    (interrupted,) = (tmp_path / "runs").iterdir()
    stop_after(None)
    assert tune(settings=replace(small, lr=2 * small.lr))["run"] != str(interrupted)
    finished = tune(settings=small)
    assert finished["run"] == str(interrupted)
    assert tune(settings=small)["run"] not in (str(interrupted), finished["run"])
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_another_split_of_the_same_head_run_is_another_run(tune, settings, stop_after, tmp_path):
    stop_after(1)
    with pytest.raises(StoppedError):
        tune(settings=settings(limit=64))
    stop_after(None)
    document = tune(settings=settings(limit=64, split_seed=1))
    assert document["split_seed"] == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2
