"""Small images and the files that hold them, for the tests of data sets."""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cspipe.extract.datasets import DATASETS, DatasetSpec
from cspipe.extract.splits import PublishedFile


@dataclass(frozen=True)
class Written:
    """A data set on disk: the spec that expects it, and the images and labels that were written."""

    folder: Path
    spec: DatasetSpec
    images: dict[str, list[np.ndarray]]
    labels: dict[str, list[int]]
    files: list[Path]


def images_of(count: int, side: int, seed: int, planes: int = 3) -> np.ndarray:
    shape = (count, side, side, planes) if planes > 1 else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sums(files: list[Path]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files)


def finish(name: str, folder: Path, splits: dict[str, tuple], paths: list[Path], **changes: object) -> Written:
    """``splits``: images and labels of train and test; the registry's entry with the counts and sums of the files."""
    labels = {split: [int(label) for label in told[1]] for split, told in splits.items()}
    unlabelled = labels["train"].count(-1)
    spec = replace(
        DATASETS[name], train=len(labels["train"]) - unlabelled, test=len(labels["test"]), unlabelled=unlabelled,
        **{"files": sums(paths), **changes},
    )  # fmt: skip
    return Written(folder, spec, {split: list(told[0]) for split, told in splits.items()}, labels, paths)


def png(image: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    return packed.getvalue()


def hub_table(images: list[bytes], columns: dict[str, list], features: dict[str, dict] | None = None):
    """An arrow table as the hub's library makes it; ``features`` are of the columns beside the image."""
    import pyarrow as pa

    cells = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), **columns})
    told = {"info": {"features": {"image": {"_type": "Image"}, **(features or {})}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(told)})
