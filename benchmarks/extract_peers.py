"""Extraction of a folder of JPEGs against other ways to the same embeddings, each with its best settings.

loop          what a user would write: DataLoader with timm's transform, model, torch.cat, np.save
transformers  the pipeline image-feature-extraction on a local model folder that timm wrote
imagededup    its CNN encoder with the same timm model, in a process of the Python that has it

Timed of each: from the loaded model to embeddings in one array (the loop also saves it). A way counts only where its
embeddings are those of `cspipe extract`.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract_bench import Bench, alternate, listed, make_folder, run_extract, summary, tell
from head_bench import heading
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from torch.utils.data import DataLoader, Dataset

from cspipe.extract.backbones import Backbone
from cspipe.store.errors import SettingError

SAME_COSINE = 0.999
"""Embeddings are the same from here on; fp16 alone costs less than 1e-6."""

Settings = Mapping[str, int]


@dataclass(frozen=True)
class Answer:
    """Seconds that a way took, and its embeddings `(N, D)` in the order of `listed`."""

    seconds: float
    token_ND: NDArray[np.generic]


@dataclass(frozen=True)
class Way:
    """A way to embeddings: `run(folder, settings)`, and the settings that are tried."""

    name: str
    settings: Sequence[Settings]
    run: Callable[[Path, Settings], Answer]


class _Images(Dataset[torch.Tensor]):
    """Files as a user would read them."""

    def __init__(self, files: Sequence[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.files[number]) as image:
            return self.transform(image.convert("RGB"))


def compare(bench: Bench, folder: Path, ways: Sequence[Way], title: str) -> list[dict[str, Any]]:
    """Measures and prints every way beside extraction on the same images."""
    count = len(listed(folder))
    few = make_folder(listed(folder), max(bench.batch_size, count // 4), bench.folder / "few")
    ours_ND = run_extract(bench, str(folder)).token_ND
    heading(
        f"{title}, {count} JPEGs, lite0 at {bench.backbone.image_px} px, n = {bench.rounds} alternating runs, "
        "medians; the ratio is the way's speed over that of cspipe extract in the same round",
        "what", "images/s", "lowest to highest", "ratio", "lowest to highest",
    )  # fmt: skip
    return [_measure(bench, folder, few, way, ours_ND) for way in ways]


def _measure(bench: Bench, folder: Path, few: Path, way: Way, ours_ND: NDArray[np.generic]) -> dict[str, Any]:
    """One way: its best settings on few images, whether its embeddings are ours, and its speed."""
    count = len(listed(folder))
    tried = [
        {"settings": settings, "images_per_second": len(listed(few)) / way.run(few, settings).seconds}
        for settings in way.settings
    ]
    best: Any = max(tried, key=lambda trial: float(str(trial["images_per_second"])))["settings"]
    cosine = lowest_cosine(way.run(folder, best).token_ND, ours_ND)
    told = {"way": way.name, "settings": best, "tried": tried, "lowest_cosine": cosine}
    if cosine < SAME_COSINE:
        print(f"\n{way.name} gives other embeddings (lowest cosine {cosine:.4f}): not counted\n", flush=True)
        return told
    rates = alternate(bench.rounds, {
        "ours": lambda: run_extract(bench, str(folder)).images_per_second,
        "other": lambda: count / way.run(folder, best).seconds,
    })  # fmt: skip
    words = ", ".join(f"{name} {value}" for name, value in best.items())
    rows = [
        summary("cspipe extract", rates["ours"]),
        summary(f"{way.name} ({words}; cosine {cosine:.6f})", rates["other"], rates["ours"]),
    ]
    for row in rows:
        tell(row)
    return told | {"rows": rows}


def lowest_cosine(one_ND: NDArray[np.generic], other_ND: NDArray[np.generic]) -> float:
    """Between the same rows of both; 1 for two rows of zeros, 0 for one, or where a value is no number.

    Raises:
        SettingError: they have other shapes.
    """
    if one_ND.shape != other_ND.shape:
        raise SettingError(
            f"embeddings {one_ND.shape} and {other_ND.shape} of the same images: they cannot be compared"
        )
    one, other = one_ND.astype(np.float64), other_ND.astype(np.float64)
    product = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = np.asarray((one == other).all(axis=1), np.float64)
    np.divide((one * other).sum(axis=1), product, out=cosine, where=product > 0)
    return float(cosine.min())


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """The keywords of timm's own transform for the backbone."""
    side = {"input_size": (3, backbone.image_px, backbone.image_px)}
    config: dict[str, Any] = resolve_model_data_config(  # type: ignore[no-untyped-call]
        backbone.model, args=side
    )
    return config | {"mean": backbone.mean, "std": backbone.std}


def loop(bench: Bench) -> Way:
    """The loop that a user would write, around timm's network as timm builds it."""
    transform, cores = create_transform(**timm_config(bench.backbone), is_training=False), bench.workers
    pairs = dict.fromkeys([(0, cores), (1, cores), (cores, 1), (cores, cores)])

    def run(folder: Path, settings: Settings) -> Answer:
        torch.set_num_threads(settings["threads"])
        begun = time.perf_counter()
        loader = DataLoader(
            _Images(listed(folder), transform), batch_size=settings["batch"], num_workers=settings["workers"]
        )  # fmt: skip
        with torch.inference_mode():
            token_ND = torch.cat([bench.backbone.model(batch) for batch in loader]).numpy()
        np.save(bench.folder / "loop.npy", token_ND)
        return Answer(time.perf_counter() - begun, token_ND)

    settings = [{"batch": size, "workers": few, "threads": threads} for size in (16, 64) for few, threads in pairs]
    return Way("loop", settings, run)


def write_model(bench: Bench) -> Path:
    """The backbone as a model folder of the hub: config.json and model.safetensors, written by timm.

    timm lists `num_classes` among the model's arguments; transformers sets it itself and refuses a second one.
    """
    folder = bench.folder / "model"
    config = {key: timm_config(bench.backbone)[key] for key in ("input_size", "mean", "std")}
    save_for_hf(bench.backbone.model, str(folder), safe_serialization=True, data_config=config)
    written = json.loads((folder / "config.json").read_text())
    written.get("model_args", {}).pop("num_classes", None)
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def transformers_pipeline(bench: Bench, model: Path) -> Way:
    """transformers' pipeline on a local model folder."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from transformers import pipeline

    extractor = pipeline("image-feature-extraction", model=str(model), device="cpu")

    def run(folder: Path, settings: Settings) -> Answer:
        torch.set_num_threads(bench.workers)
        begun = time.perf_counter()
        tokens = extractor(
            [str(file) for file in listed(folder)], pool=True, return_tensors=True,
            batch_size=settings["batch"], num_workers=settings["workers"],
        )  # fmt: skip
        token_ND = torch.cat([token.reshape(1, -1) for token in tokens]).numpy()
        return Answer(time.perf_counter() - begun, token_ND)

    pairs = [(1, 0), (16, 0), (16, 1), (16, bench.workers), (64, bench.workers)]
    name = f"transformers {version('transformers')} pipeline"
    return Way(name, [{"batch": size, "workers": few} for size, few in dict.fromkeys(pairs)], run)


def imagededup(bench: Bench, model: Path, python: Path) -> Way:
    """imagededup's CNN encoder, each run in a process of that Python.

    Raises:
        SettingError: that Python has no imagededup.
    """
    script = Path(__file__).with_name("extract_imagededup.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    call = partial(subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    found = call([str(python), str(script), "--version"])
    if found.returncode:
        raise SettingError(f"{python} cannot run imagededup ({found.stderr.strip().splitlines()[-1]})")

    def run(folder: Path, settings: Settings) -> Answer:
        out = bench.folder / "imagededup.npy"
        numbers = [str(settings[name]) for name in ("batch", "workers", "threads")]
        done = call([str(python), str(script), str(model), str(folder), str(out), *numbers])
        if done.returncode:
            raise SettingError(f"imagededup failed: {done.stderr.strip()[-500:]}")
        return Answer(json.loads(done.stdout.splitlines()[-1])["seconds"], np.load(out))

    cores = bench.workers
    triples = dict.fromkeys([(64, 0, cores), (64, cores, 1), (64, cores, cores), (16, cores, cores)])
    settings = [{"batch": size, "workers": few, "threads": threads} for size, few, threads in triples]
    return Way(f"imagededup {found.stdout.strip()}", settings, run)
