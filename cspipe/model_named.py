"""The model that a command names: a run, a model directory, or the newest run."""

from pathlib import Path

from cspipe.common import Common
from cspipe.config import Config
from cspipe.finetune.make_model import MODEL, OnMessage, model_folder, silent
from cspipe.finetune.model_directory import CONFIG
from cspipe.headtrain.runs import finished_runs, read_report
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.store.errors import MissingDataError
from cspipe.terminal import message, stage_progress

LATEST = Path("latest")
"""What a user writes for the newest run; a file or folder of that name comes first."""


def model_named(common: Common, config: Config, named: Path, weights: Path | None) -> Path:
    """The model directory of what a user named, made first where it is a head run's and not there yet.

    Args:
        common: options of every command.
        config: where runs and stores are, and the device.
        named: head run, fine-tuning run, model directory, or `latest`.
        weights: file of the backbone's weights, where they are no longer where they were.

    Raises:
        MissingDataError: no such model; or the run's store or weights are gone.
        MismatchError: they are not those that the head was trained on.
    """
    say = silent if common.quiet else message
    found = named if named != LATEST or named.exists() else latest_model(config.runs, say)
    with stage_progress(common.quiet) as step:
        return model_folder(
            found, stores=config.stores, weights=weights, device=config.device, on_message=say, on_progress=step
        )  # fmt: skip


def latest_model(runs: Path, on_message: OnMessage = silent) -> Path:
    """The newest finished run that holds a model, or the head that one is made of.

    Args:
        runs: folder of the runs.
        on_message: told which run it is.

    Raises:
        MissingDataError: no such run.
    """
    for run in reversed(finished_runs(runs)):
        if (run / MODEL / CONFIG).is_file() or (run / "heads" / f"{MAIN_METHOD}-0.safetensors").is_file():
            told = read_report(run)
            what = f"{told['command']}, {told['backbone']} on {told['dataset']}, {told['labels']:,} labels"
            on_message(f"model: {run} ({what})")
            return run
    raise MissingDataError(
        f"no finished run under {runs} holds a model. Run cspipe head first, name --runs, or name the model: a head "
        "run, a fine-tuning run, or a folder that cspipe export wrote."
    )
