"""TensorBoard's event files of a finished run, from its metrics.jsonl: `tensorboard --logdir runs`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cspipe.headtrain.runs import read_report
from cspipe.store.errors import MissingDataError

FOLDER = "tensorboard"
NAMES = ("method", "split_seed", "train_seed", "fold")
"""What tells the curves of one run apart; the other numbers of a record are curves."""


def check_installed() -> None:
    """Asks for the package before hours of work.

    Raises:
        MissingDataError: tensorboard is not installed.
    """
    try:
        import tensorboard  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise MissingDataError(
            "--tensorboard needs a package: run pip install 'content-style-pipeline[tensorboard]', or leave it out; "
            "metrics.jsonl of the run holds the same numbers."
        ) from error


def with_events(wanted: bool, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does the work, a run of head or finetune, and writes its event files where they are wanted."""
    if not wanted:
        return work()
    check_installed()
    document = work()
    write_events(Path(document["run"]))
    return document


def write_events(run: Path) -> Path:
    """Writes the curves of every head, and accuracies at their end.

    Args:
        run: finished run of head or finetune.

    Returns:
        The folder of the event files.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    told = read_report(run)
    writers: dict[str, SummaryWriter] = {}

    def writer_of(record: dict[str, Any]) -> SummaryWriter:
        name = name_of(record, told.get("method"))
        if name not in writers:
            writers[name] = SummaryWriter(str(run / FOLDER / name))
        return writers[name]

    last = 0
    for record in records(run):
        last = int(record["step"])
        for key, value in record.items():
            if key not in (*NAMES, "step") and isinstance(value, int | float):
                writer_of(record).add_scalar(key, value, last)
    for result in told.get("results", []):
        writer_of(result).add_scalar("accuracy", result["accuracy"], last)
    if "accuracy_after" in told:
        for key in ("accuracy_before", "accuracy_after"):
            writer_of({}).add_scalar(key, told[key], last)
    for writer in writers.values():
        writer.close()
    return run / FOLDER


def records(run: Path) -> Iterator[dict[str, Any]]:
    """Records of metrics.jsonl that belong to a step."""
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line) if line else {}
        if "step" in record:
            yield record


def name_of(record: dict[str, Any], method: str | None) -> str:
    """Folder of one head's curves, such as content-style-split-0; seeds and folds are told where they are not 0."""
    parts = [str(record.get("method") or method or "run")]
    if "split_seed" in record:
        parts.append(f"split-{record['split_seed']}")
    parts += [f"{word}-{record[key]}" for key, word in (("train_seed", "seed"), ("fold", "fold")) if record.get(key)]
    return "-".join(parts)
