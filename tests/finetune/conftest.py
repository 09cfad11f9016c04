"""A real backbone at 32 px on few digits: store and head run made once, fine-tuned in a second or two."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cspipe.extract.run import extract
from cspipe.finetune.run import run_finetune
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain import HeadSettings
from cspipe.headtrain.run import run_head

QUICK = HeadSettings(style_term="adversarial", components=32, hidden=32, style=4, discriminator=16, steps=100, batch=64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that two runs can agree to the bit."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@dataclass(frozen=True)
class Place:
    """Where stores and head runs lie, and what they say."""

    stores: Path
    runs: Path
    extracted: dict[str, Any]
    head: dict[str, Any]

    @property
    def store(self) -> Path:
        return Path(self.extracted["store"])

    @property
    def head_run(self) -> Path:
        return Path(self.head["run"])


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """96 training and 96 test digits at 32 px under lite0, and a head run of two splits on 40 labels."""
    root = tmp_path_factory.mktemp("digits")
    extracted = extract("lite0", "digits", stores=root / "stores", image_px=32, limit=96)
    head = run_head(
        store=Path(extracted["store"]), runs=root / "runs", labels=40, seeds=2,
        methods=("content-style", "supervised"),
        settings=QUICK,
    )  # fmt: skip
    return Place(root / "stores", root / "runs", extracted, head)


def _settings(**changes: Any) -> FinetuneSettings:
    """Two blocks, three steps an epoch, a checkpoint every second step."""
    small = {"unfreeze_blocks": 2, "batch": 32, "labelled_batch": 8, "lr": 5e-5, "checkpoint_steps": 2, "epochs": 1}
    return FinetuneSettings(**{**small, **changes})


@pytest.fixture(scope="session")
def settings():
    """A function (changes) -> settings of a run of three steps."""
    return _settings


@pytest.fixture
def tune(digits: Place, tmp_path: Path):
    """run_finetune on the digits, into a folder of runs of the test's own."""

    def call(runs: str = "runs", **options: Any) -> dict[str, Any]:
        chosen = options.pop("settings", None) or _settings()
        options = {"head_run": digits.head_run, "stores": digits.stores, "runs": tmp_path / runs, **options}
        return run_finetune(settings=chosen, **options)

    return call


@pytest.fixture(scope="session")
def tuned(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One finished run with RIFT, from the newest head run, never interrupted; not to be written to."""
    torch.set_num_threads(1)
    settings = _settings(regularisers={"rift": 0.1})
    return run_finetune(
        head_run=digits.head_run, runs=tmp_path_factory.mktemp("tuned"), stores=digits.stores, settings=settings,
        config_toml="epochs = 1\n",
    )  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """36 small pictures, 24 of them in two class folders: dark ones and bright ones; no test folder."""
    root = tmp_path / "pictures"
    for number in range(36):
        name = "unlabelled" if number >= 24 else ("dark", "bright")[number % 2]
        level = np.random.default_rng(number).integers(0, 110, (40, 32, 3), dtype=np.uint8)
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(level + np.uint8(130 * (number % 2))).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def script_of():
    """A function (file name) -> that script of benchmarks/, imported as it is when it runs."""

    def load(name: str):
        folder = Path(__file__).resolve().parents[2] / "benchmarks"
        spec = importlib.util.spec_from_file_location(f"script_{name}", folder / f"{name}.py")
        module = sys.modules[f"script_{name}"] = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            spec.loader.exec_module(module)
        return module

    return load
