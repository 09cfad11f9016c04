"""`cspipe predict`: images through a model, tokens cached in a store, answers streamed into a file.

Legend: `N` images, `K` classes.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cspipe.answers import Answer, CsvSink, Format, JsonSink, Sink, format_of, sink_of
from cspipe.common import Common
from cspipe.config import Config
from cspipe.extract.progress import ProgressLike, console_progress
from cspipe.extract.run import extract
from cspipe.finetune.model_directory import BACKBONE, Model, load_model
from cspipe.images_named import PREDICTED, as_dataset, find_images
from cspipe.model_named import model_named
from cspipe.stages import calm
from cspipe.store import open_store
from cspipe.store.errors import SettingError
from cspipe.store.reader import Split
from cspipe.store.remote import local_path
from cspipe.store.table import storable_paths
from cspipe.terminal import message, print_json

Document = dict[str, Any]
AT_ONCE = 4096
"""Images whose tokens and answers are in memory at a time."""


def predict(
    common: Common,
    config: Config,
    model: Path,
    named: Sequence[str],
    *,
    out: Path | None,
    wanted: str | None,
    abstain_below: float,
    weights: Path | None,
) -> Document:
    """Says what is on the images.

    Args:
        common: options of every command.
        config: where stores are, and the device.
        model: head run, fine-tuning run, model directory, or `latest`.
        named: files, folders and patterns.
        out: file of the answers; None: standard output.
        wanted: csv, json or parquet; None: as the file's suffix says.
        abstain_below: a likeliest class with a lower probability is flagged.
        weights: file of the backbone's weights, where they are no longer where they were.

    Returns:
        A JSON document: how many images, classes, bad images and why, throughput; the answers too where no file is
        named and --json is given.

    Raises:
        CspipeError: no model, no images, or a model that does not give here what it gave where it was made.
    """
    if not 0 <= abstain_below <= 1:
        raise SettingError(f"--abstain-below is a probability from 0 to 1; {abstain_below} was given.")
    calm(common)
    begun, kind, paths = time.perf_counter(), format_of(out, wanted), find_images(named)
    folder = model_named(common, config, model, weights)
    loaded = load_model(folder, weights=weights, device=config.device)
    with nullcontext() if common.quiet else console_progress() as progress:
        extracted = embed(loaded, paths, config.stores, weights, config.device, progress)
    answers = answer(loaded, paths, local_path(extracted["store"]), abstain_below)
    told, kept = write(answers, out, kind, common.json)
    seconds = time.perf_counter() - begun
    return {
        "model": str(folder), "store": extracted["store"], "images": len(paths), **told,
        "computed": extracted["splits"][PREDICTED]["computed"], "abstain_below": abstain_below,
        "temperature": loaded.config["temperature"], "out": str(out) if out else None, "format": kind,
        "embedded_per_second": extracted["images_per_second"], "images_per_second": len(paths) / seconds,
        "seconds": round(seconds, 2), **({"predictions": kept} if kept is not None else {}),
    }  # fmt: skip


def embed(
    model: Model, paths: Sequence[str], stores: Path, weights: Path | None, device: str, progress: ProgressLike | None
) -> Document:
    """Tokens of the images in a store of everything that this backbone was ever asked to predict.

    It lies in a folder of its own below the stores: it is no data set, and never the latest store.
    """
    config, spec = model.config, model.backbone.spec
    path = config["weights"]["path"]
    file = model.directory / BACKBONE if config["trained_backbone"] else weights or (Path(path) if path else None)
    if config["trained_backbone"] and spec.family == "hf":
        raise SettingError(
            f"{model.directory} holds a trained {spec.name}, whose weights have no file of their own: use it from "
            "Python, load_model(FOLDER).probabilities(IMAGES)."
        )
    return extract(
        spec, as_dataset(paths), stores=stores / PREDICTED, weights=file,
        revision=None if file else config["weights"]["revision"], image_px=config["image_px"], token=config["token"],
        dtype=config["dtype"], device=device, progress=progress,
    )  # fmt: skip


def answer(model: Model, paths: Sequence[str], store: Path, below: float) -> Iterator[list[Answer]]:
    """Answers in the order of `paths`, some at a time."""
    split = open_store(store)[PREDICTED]
    place = {path: number for number, path in enumerate(split.path())}
    reason = reasons(split)
    for start in range(0, len(paths), AT_ONCE):
        part = storable_paths(paths[start : start + AT_ONCE])
        good = [path for path in part if path in place]
        told: dict[str, Answer] = {}
        if good:
            tokens = torch.from_numpy(split.take(np.array([place[path] for path in good])))
            probability_NK = model.probabilities_of_tokens(tokens)
            for path, row_K in zip(good, probability_NK, strict=True):
                likeliest = int(row_K.argmax())
                told[path] = Answer(
                    path, model.class_names[likeliest], float(row_K[likeliest]), bool(row_K[likeliest] < below)
                )  # fmt: skip
        yield [told.get(path) or Answer(path, None, None, True, reason.get(path, "no token")) for path in part]


def reasons(split: Split) -> dict[str, str]:
    """Why an image could not be used, by the path that it has now."""
    path = split.path(all_rows=True)
    return {path[entry["row"]]: str(entry["reason"]) for entry in split.attributes["bad_images"]}


def write(
    answers: Iterator[list[Answer]], out: Path | None, kind: Format, as_json: bool
) -> tuple[Document, list[Document] | None]:  # fmt: skip
    """Writes the answers: counts of them, and the answers themselves where they belong into the document."""
    if out is not None:
        with sink_of(out, kind) as sink:
            return pour(answers, sink), None
    if as_json:
        kept: list[Document] = []
        return pour(answers, Kept(kept)), kept
    sink = CsvSink(sys.stdout) if kind == "csv" else JsonSink(sys.stdout)
    told = pour(answers, sink)
    sink.close()
    return told, None


class Kept:
    """Answers kept as records."""

    def __init__(self, records: list[Document]) -> None:
        self.records = records

    def write(self, answers: Sequence[Answer]) -> None:
        """Adds some."""
        self.records += [told.record() for told in answers]

    def close(self) -> None:
        """Nothing is left to do."""


def pour(answers: Iterator[list[Answer]], sink: Sink) -> Document:
    """All answers into the sink; what is counted on the way."""
    classes, bad, abstained = Counter[str](), [], 0
    for part in answers:
        sink.write(part)
        classes.update(told.name for told in part if told.name is not None)
        bad += [{"path": told.path, "reason": told.problem} for told in part if told.problem is not None]
        abstained += sum(told.abstain for told in part)
    return {"classes": dict(classes.most_common()), "abstained": abstained, "bad_images": bad}


def show(document: Document, common: Common) -> None:
    """The document as JSON, or some lines on standard error: standard output holds the answers if no file is named."""
    if common.json:
        print_json(document)
    elif not common.quiet:
        tell(document)
    if document["out"] and not common.json:
        print(document["out"])


def tell(document: Document) -> None:
    """Bad images, classes, throughput."""
    for entry in document["bad_images"]:
        message(f"{entry['path']}: {entry['reason']}")
    shares = ", ".join(f"{name} {count:,}" for name, count in document["classes"].items())
    message(f"{document['images']:,} images: {shares or 'none could be read'}")
    speed = document["embedded_per_second"]
    how = f"{document['computed']:,} embedded at {speed:,.0f} images/s" if speed else "all tokens were cached"
    message(
        f"{document['abstained']:,} below {document['abstain_below']:g} or unreadable, {len(document['bad_images'])} "
        f"bad; {how}; {document['images_per_second']:,.0f} images/s in all, {document['seconds']} s"
    )
