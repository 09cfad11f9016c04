"""Run folders: `runs/<UTC time>-<command>-<6 hex>/` with report.json, config.toml, metrics.jsonl and weights."""

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cspipe
from cspipe.store import files
from cspipe.store.errors import MissingDataError, StoreError

PACKAGES = ("torch", "timm", "zarr", "numpy", "scikit-learn")


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    files.write_atomic(path, text.encode())


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes valid JSON (a NaN is our bug and raises)."""
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def new_run(runs: Path, command: str, config_toml: str) -> Path:
    """Creates a run folder and its config.toml (the resolved settings)."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{command}-{secrets.token_hex(3)}"
    run = runs / name
    run.mkdir(parents=True)
    write_atomic(run / "config.toml", config_toml)
    return run


def all_runs(runs: Path, command: str | None = None) -> list[Path]:
    """Run folders, oldest first; of one command where it is named. A file's time settles ties of one second."""
    if not runs.is_dir():
        return []
    found = [path.parent for path in runs.glob("*-*-*/config.toml")]
    wanted = [path for path in found if command is None or path.name.split("-")[1:-1] == command.split("-")]
    return sorted(wanted, key=lambda run: (run.name.split("-")[0], (run / "config.toml").stat().st_mtime_ns))


def finished_runs(runs: Path, command: str | None = None) -> list[Path]:
    """Run folders that ended with a report, oldest first."""
    return [run for run in all_runs(runs, command) if (run / "report.json").is_file()]


def newest_run(runs: Path, command: str) -> Path:
    """The newest finished run of a command.

    Raises:
        MissingDataError: there is none.
    """
    finished = finished_runs(runs, command)
    if not finished:
        raise MissingDataError(
            f"no finished cspipe {command} run under {runs}. Run cspipe {command} first, or name --runs."
        )
    return finished[-1]


def read_report(run: Path) -> dict[str, Any]:
    """A run's report.json.

    Raises:
        MissingDataError: the folder has none.
        StoreError: it cannot be read as JSON.
    """
    path = run / "report.json"
    if not path.is_file():
        raise MissingDataError(f"{run} has no report.json: it is not a finished run of cspipe.")
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Remove the folder and run the command again.") from error
    return document


def write_metrics(run: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes metrics.jsonl, one JSON object a line; numbers that are not finite become null."""
    lines = (json.dumps({k: _finite(v) for k, v in record.items()}, allow_nan=False) for record in records)
    write_atomic(run / "metrics.jsonl", "\n".join(lines) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value


def environment() -> dict[str, Any]:
    """What a result may depend on: versions, git commit of the program, machine."""
    return {
        "cspipe": cspipe.__version__, "git_commit": git_commit(), "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES}, "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(), "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def git_commit() -> str | None:
    """Commit of the checkout that the program runs from; None where it is installed from a wheel."""
    here = Path(cspipe.__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
