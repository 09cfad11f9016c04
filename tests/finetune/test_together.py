"""Several processes give what one gives on the same whole batch."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cspipe.finetune.world import World
from cspipe.store.errors import SettingError

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def start_all(command: list[str], processes: int) -> None:
    """Real processes under torchrun's variables; all have to end well."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "WORLD_SIZE": str(processes)}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, *command], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]  # fmt: skip
    ends = [process.communicate(timeout=110) for process in started]
    assert [process.returncode for process in started] == [0] * processes, ends


def seen(name: str, value: torch.Tensor) -> torch.Tensor:
    """Without the keys' bias: softmax takes it out again, so its gradient is rounding, which Adam blows up."""
    if not name.endswith("attn.qkv.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


@pytest.fixture(scope="module")
def together():
    spec = importlib.util.spec_from_file_location("together", HERE / "together.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["together"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rebuild", [False, True], ids=["token", "image"])
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_weights_of_one_after_five_steps_in_float64(together, tmp_path, processes, rebuild):
    """With every term of a batch on: covariances, marginal, discriminators, contrasts, second passes."""
    alone, told = together.run(World(), rebuild=rebuild)
    assert (3 * 32**2 in {value.shape[-1] for name, value in alone.items() if "decoder" in name}) is rebuild
    assert not torch.allclose(alone["rotation.parametrizations.weight.original"].float(), torch.zeros(64, 64))
    assert told[-1]["skipped"] == 0
    assert {"D_c", "D_s", "D_y", "L_y", "L_mix", "critic_token"} <= told[0].keys()
    start_all([str(HERE / "together.py"), str(tmp_path), *(["rebuild"] if rebuild else [])], processes)
    for rank in range(processes):
        theirs = load_file(tmp_path / f"{rank}.safetensors")
        assert theirs.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(seen(name, theirs[name]), seen(name, value), rtol=1e-5, atol=1e-10)


def test_rows_are_shared_out_evenly_or_refused():
    rows = np.arange(12)
    parts = [World(rank, 3).mine(rows) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), rows)
    assert {len(part) for part in parts} == {4}
    with pytest.raises(
        SettingError, match=r"12 rows of a batch cannot be shared by 5 processes: change finetune\.batch"
    ):
        World(0, 5).mine(rows)


@pytest.mark.slow
def test_the_command_by_two_processes_leaves_one_run_and_the_result_of_one_process(digits, tune, settings, tmp_path):
    alone = tune(runs="alone", settings=settings(batch=32, labelled_batch=8, regularisers={"rift": 0.1}))
    options = ["--head", str(digits.head_run), "--stores", str(digits.stores), "--runs", str(tmp_path / "runs"),
               "--unfreeze-blocks", "2", "--regulariser", "rift=0.1", "--json", "--set", "batch=32",
               "--set", "labelled_batch=8", "--set", "lr=5e-5", "--set", "checkpoint_steps=2",
               "--epochs", "1"]  # fmt: skip
    start_all(["-m", "cspipe.finetune", *options], 2)
    (run,) = (tmp_path / "runs").glob("*-finetune-*")
    document = json.loads((run / "report.json").read_text())
    assert document["accuracy_after"] == pytest.approx(alone["accuracy_after"], abs=0.03)
    mine, theirs = (load_file(Path(told["model_dir"]) / "backbone.safetensors") for told in (document, alone))
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=2e-4)
