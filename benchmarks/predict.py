"""Predicting: how near `cspipe predict` and a model's own Python call come to the bare forward pass.

    python benchmarks/predict.py [--part pngs jpegs] [--data-dir DIR] [--jpegs DIR] [--images N] [--out FILE]

pngs     MNIST as PNG files of 28 px; without --data-dir scikit-learn's digits, 8 px
jpegs    the textiles of the package conformal-clip-data, or --jpegs

In every round, one after the other: decoding alone and the bare forward pass on batches that lie ready, both as in
benchmarks/extract.py; `cspipe predict` as a call in this process, from the model's folder to the CSV file, with no
token cached; and `load_model(FOLDER).probabilities(PATHS)` of a model that is loaded already. The backbone is lite0.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from extract_bench import (
    Bench,
    alternate,
    introduce,
    make_bench,
    make_folder,
    on_workers,
    processor,
    summary,
    tell,
    textiles,
)
from extract_forward import TITLES, _batches, _decode, _forward, _ready
from head_bench import heading
from PIL import Image

from cspipe.common import Common
from cspipe.config import Config
from cspipe.extract.datasets import load_dataset
from cspipe.extract.run import extract
from cspipe.extract.wanted import evenly_spaced
from cspipe.finetune.make_model import model_folder
from cspipe.finetune.model_directory import Model, load_model
from cspipe.headtrain.run import run_head
from cspipe.headtrain.runs import environment, write_json
from cspipe.headtrain.settings import HeadSettings
from cspipe.predict import predict
from cspipe.store.errors import CspipeError, MismatchError

Document = dict[str, Any]
AGREE = 1e-3
"""The two ways to a probability may differ by so much: one of them stores tokens in fp16."""


def make_model(bench: Bench) -> Path:
    """A model directory. Its head is hardly trained, which takes no less time to ask."""
    told = extract("lite0", "digits", stores=bench.folder / "stores", image_px=bench.backbone.image_px, limit=100)
    head = run_head(
        store=Path(told["store"]), runs=bench.folder / "runs", labels=50, seeds=1, methods=("content-style",),
        settings=HeadSettings(steps=10),
    )  # fmt: skip
    return model_folder(Path(head["run"]), stores=bench.folder / "stores")


def make_pngs(bench: Bench, data_dir: Path | None, count: int) -> Path:
    """A folder of images of MNIST, or of the digits, as PNG files."""
    split = load_dataset("mnist" if data_dir else "digits", data_dir=data_dir).splits["train"]
    folder = bench.folder / "pngs" / "all"
    folder.mkdir(parents=True)
    for number in evenly_spaced(len(split), min(count, len(split)) // bench.batch_size * bench.batch_size):
        image: Any = split.load(int(number))
        Image.fromarray(image).save(folder / f"{number:05d}.png")
    return folder.parent


def make_jpegs(bench: Bench, source: Path | None, count: int) -> Path:
    """A folder of JPEGs in whole batches."""
    found = sorted(source.glob("*/*.jp*g")) if source else textiles()
    return make_folder(found, min(count, len(found)) // bench.batch_size * bench.batch_size, bench.folder / "jpegs")


def run_predict(bench: Bench, model: Path, folder: Path) -> Document:
    """`cspipe predict MODEL FOLDER --out answers.csv --quiet` with an empty cache: its document and its seconds."""
    with TemporaryDirectory(dir=bench.folder) as name:
        config, out = Config(stores=Path(name) / "stores", runs=Path(name) / "runs"), Path(name) / "answers.csv"
        begun = time.perf_counter()
        document = predict(
            Common(quiet=True), config, model, [str(folder)], out=out, wanted=None, abstain_below=0.9, weights=None
        )
        seconds = time.perf_counter() - begun
        lines = out.read_text().splitlines()[1:]
    return document | {"seconds": seconds, "probability": [float(line.split(",")[-3]) for line in lines]}


def check_agreement(document: Document, model: Model, paths: Sequence[Path]) -> float:
    """Largest difference between the two ways on some images.

    Raises:
        MismatchError: they do not say the same.
    """
    some = [int(at) for at in evenly_spaced(len(paths), min(len(paths), 32))]
    asked = model.probabilities([paths[at] for at in some]).max(1)
    apart = max(abs(document["probability"][at] - float(one)) for at, one in zip(some, asked, strict=True))
    if document["images"] != len(paths) or document["bad_images"] or not apart <= AGREE:
        raise MismatchError(
            f"{document['images']} of {len(paths)} images, {len(document['bad_images'])} bad, probabilities "
            f"{apart:.2g} apart ({AGREE:g} is rounding): the ways do not do the same, so they are not timed"
        )
    return apart


def measure(bench: Bench, model_directory: Path, folder: Path, title: str) -> Document:
    """All ways on one folder, alternating; prints the table."""
    split, model = load_dataset(folder).splits["train"], load_model(model_directory)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    batches = _batches(bench, split, len(split))
    ready, count = [_ready(bench.lane, split, images) for images in batches], len(paths)
    documents = [run_predict(bench, model_directory, folder)]
    apart = check_agreement(documents[0], model, paths)
    rates = alternate(bench.rounds, {
        "decode": lambda: count / on_workers(bench, lambda images: _decode(bench.lane, split, images), batches),
        "forward": lambda: count / on_workers(bench, lambda batch: _forward(bench.lane, batch), ready),
        "predict": lambda: keep(documents, run_predict(bench, model_directory, folder)),
        "call": lambda: count / timed(lambda: model.probabilities(paths)),
    })  # fmt: skip
    kept = documents[2:]  # one compared the ways, one warmed up
    embedding = [document["embedded_per_second"] for document in kept]
    rest = statistics.median(document["seconds"] - count / document["embedded_per_second"] for document in kept)
    forward = rates["forward"]
    bound = [1 / (1 / one + 1 / other) for one, other in zip(rates["decode"], forward, strict=True)]
    heading(f"{title}, {count} images, {words(bench)}", *TITLES)
    rows = [
        summary("bare forward", forward), summary("decode alone", rates["decode"]),
        summary("1 / (1 / decode + 1 / forward)", bound, forward),
        summary("cspipe predict", rates["predict"], forward),
        summary("cspipe predict, to that bound", rates["predict"], bound),
        summary("its embedding alone, to that bound", embedding, bound),
        summary("probabilities(PATHS)", rates["call"], forward),
        summary("probabilities(PATHS), to that bound", rates["call"], bound),
    ]  # fmt: skip
    for row in rows:
        tell(row)
    print(
        f"\ncspipe predict spends {rest:.2f} s beside its embedding: loading, probing, the head, the file", flush=True
    )
    return {"images": count, "rows": rows, "seconds_beside_embedding": rest, "probabilities_apart": apart}


def keep(documents: list[Document], document: Document) -> float:
    """Images a second of a call, whose document is kept."""
    documents.append(document)
    return float(document["images"] / document["seconds"])


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def words(bench: Bench) -> str:
    """What is measured."""
    return (
        f"lite0 at {bench.backbone.image_px} px, batches of {bench.batch_size}, {bench.workers} workers, "
        f"{torch.get_num_threads()} threads in probabilities(), n = {bench.rounds} alternating runs, medians; the "
        "ratio, to the bare forward pass where nothing else is said, is the median of the rounds' ratios"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("pngs", "jpegs"), default=["pngs", "jpegs"])
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's four files")
    parser.add_argument("--jpegs", type=Path, help="folder of CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=2000, help="images of a run, rounded down to whole batches")
    parser.add_argument("--image-px", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each, alternating")
    parser.add_argument("--folder", type=Path, help="where stores and images are written; default: the system's own")
    parser.add_argument("--out", type=Path, help="keep all figures in this JSON file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    told, found = parse(arguments), {}
    with TemporaryDirectory(dir=told.folder, prefix="predict-") as name:
        try:
            bench = make_bench(Path(name), image_px=told.image_px, rounds=told.rounds)
            introduce(bench)
            model = make_model(bench)
            if "pngs" in told.part:
                title = "MNIST as PNG files" if told.data_dir else "digits as PNG files"
                found["pngs"] = measure(bench, model, make_pngs(bench, told.data_dir, told.images), title)
            if "jpegs" in told.part:
                found["jpegs"] = measure(bench, model, make_jpegs(bench, told.jpegs, told.images), "JPEGs")
        except CspipeError as error:
            sys.exit(f"benchmarks/predict.py: {error}")
    if told.out:
        write_json(told.out, {
            "command": sys.argv, "image_px": told.image_px, "rounds": told.rounds, "cores": os.cpu_count(),
            "environment": environment() | {"processor": processor()}, "parts": found,
        })  # fmt: skip


if __name__ == "__main__":
    main()
