"""`cspipe doctor`: what this machine has for the pipeline, what it lacks, and what to do about it."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import cspipe
from cspipe.config import Config
from cspipe.store.errors import CspipeError
from cspipe.terminal import print_table

Document = dict[str, Any]
ASKED_FOR = "timm/vit_small_patch14_dinov2.lvd142m"
"""Repository of the hub that is asked for."""
LEAST_FREE_GB = 5.0
WORTH_BF16 = 0.7
"""Share of the time in fp32 below which heads train faster in bf16, whose casts take time of their own."""
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "zarr", "numpy", "scikit-learn")
EXTRAS = {"pyarrow": "datasets", "h5py": "datasets", "onnxruntime": "onnx", "onnxscript": "onnx",
          "tensorboard": "tensorboard", "s3fs": "remote"}  # fmt: skip
"""Package that some command needs -> the extra that brings it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, a `note` that some work needs, or a `problem`; and what to do."""

    what: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def examine(config: Config) -> Document:
    """Looks at everything; a check that fails itself is a finding too.

    Returns:
        A JSON document: `findings`, and `problems`, how many of them are problems.
    """
    findings = [*versions(), *devices(config.device), memory(), hub()]
    findings += [stores(config), disk("runs", config.runs), disk("hub cache", hub_cache()), *extras()]
    problems = sum(finding.state == "problem" for finding in findings)
    return {"findings": [asdict(finding) for finding in findings], "problems": problems}


def versions() -> Iterator[Finding]:
    """The program, Python and the libraries that results depend on."""
    yield Finding("cspipe", "ok", f"{cspipe.__version__} on Python {platform.python_version()}, {platform.platform()}")
    for name in LIBRARIES:
        found = version_of(name)
        if found is None:
            yield Finding(name, "problem", "not installed", "run pip install --force-reinstall content-style-pipeline")
        else:
            yield Finding(name, "ok", found)


def version_of(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def devices(chosen: str) -> Iterator[Finding]:
    """What networks can run on, and whether the chosen device is among it."""
    import torch

    from cspipe.extract.embed import pick_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = bf16_share()
    advice = 'heads train faster with precision = "bf16" in head.settings' if share < WORTH_BF16 else ""
    told = f"{cores} cores for this process, torch uses {torch.get_num_threads()} threads"
    yield Finding("cpu", "ok", f"{told}; products in bf16 take {share:.1f} times as long as in fp32", advice)
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield Finding(f"cuda:{number}", "ok", f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        advice = "" if built else "for an NVIDIA GPU install a CUDA build of torch, see pytorch.org"
        found = f"none; torch is built {f'for CUDA {built}' if built else 'without CUDA'}"
        yield Finding("cuda", "note", found, advice)
    try:
        pick_device(chosen)
    except CspipeError as error:
        yield Finding("device", "problem", str(error), "set device in pipeline.toml, or give --device cpu")


def bf16_share() -> float:
    """Seconds of a product of head training in bf16, as a share of those in fp32, measured here.

    What the processor says it has does not tell: of two with AVX512-BF16 one took .2, the other 1.8.
    """
    import torch
    from torch.utils.benchmark import Timer

    def seconds(dtype: torch.dtype) -> float:
        factors = {"x": torch.ones(4, 484, 512, dtype=dtype), "weight": torch.ones(4, 512, 256, dtype=dtype)}
        timer = Timer("x @ weight", globals=factors, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=0.05).median

    return seconds(torch.bfloat16) / seconds(torch.float32)


def memory() -> Finding:
    """Memory that is free; rows beyond it are read from their store while heads train."""
    from cspipe.headtrain.chunked import available_bytes

    free = available_bytes()
    if free is None:
        return Finding("memory", "note", "this system does not tell", "set head.memory_gb for stores larger than it")
    return Finding("memory", "ok", f"{free / 1e9:.1f} GB may be used for training rows")


def hub() -> Finding:
    """Whether the Hugging Face hub answers; without it weights must be here already."""
    from huggingface_hub import constants

    from cspipe.extract.weights import hub_commit, shortened

    lacking = "lite0 needs no hub; for others run cspipe prefetch where there is a network, or give --weights FILE"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "switched off by HF_HUB_OFFLINE", f"unset it to download weights; {lacking}")
    try:
        hub_commit(ASKED_FOR, "config.json", None)
    except Exception as error:  # the hub's client lets the errors of whatever transport it uses through
        return Finding("hub", "note", f"{constants.ENDPOINT} cannot be reached ({shortened(error)})", lacking)
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers")


def hub_cache() -> Path:
    """Where the hub's client keeps weights."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def stores(config: Config) -> Finding:
    """Whether a URL of stores can be read, and the disk on which they or their mirror lie."""
    try:
        return disk("stores", config.stores)
    except CspipeError as error:
        return Finding("stores", "problem", str(error), "give another --stores, or do as it says")


def disk(what: str, folder: Path) -> Finding:
    """Free space where a folder is or will be, and whether it can be written to."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding(what, "problem", f"{folder} cannot be written to", f"choose another folder or mend {there}")
    free = shutil.disk_usage(there).free / 1e9
    state: Literal["ok", "note"] = "ok" if free >= LEAST_FREE_GB else "note"
    advice = "" if state == "ok" else "make room, or name a folder on another disk; cspipe store ls shows what is kept"
    return Finding(what, state, f"{free:,.1f} GB free at {folder}", advice)


def extras() -> Iterator[Finding]:
    """Packages that single commands need."""
    for name, extra in EXTRAS.items():
        found = version_of(name)
        advice = "" if found else f"for it run {sys.executable} -m pip install 'content-style-pipeline[{extra}]'"
        yield Finding(name, "ok" if found else "note", found or "not installed", advice)


def print_doctor(document: Document) -> None:
    """A table, then what to do."""
    findings = [Finding(**told) for told in document["findings"]]
    print_table("this machine", ("what", "state", "found"), [(f.what, f.state, f.found) for f in findings])
    todo = [(f.what, f.advice) for f in findings if f.advice]
    if todo:
        print_table("what to do where it matters to you", ("what", "advice"), todo)
    print(f"{document['problems']} problems" if document["problems"] else "nothing stands in the way")
