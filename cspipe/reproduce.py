"""Where a run's numbers come from, and the commands that give them again."""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cspipe.extract.datasets import DATASETS
from cspipe.store import Store

Report = Mapping[str, Any]
TITLES = {
    "backbone": "Backbone", "architecture": "Architecture", "weights_sha256": "Weights, SHA-256",
    "weights_source": "Weights from", "revision": "Revision", "licence": "Licence of the weights",
    "transform": "Preprocessing", "transform_sha256": "Preprocessing, SHA-256", "images": "Images",
    "device": "Extraction on", "store_key": "Store key", "dataset_fingerprint": "Data set fingerprint",
    "versions": "Versions at extraction",
}  # fmt: skip
COLUMNS = 72
MACHINE = {"cspipe", "git_commit", "python", "machine", "cores", "time"}


def read_config(run: Path) -> dict[str, Any]:
    """The run's resolved settings; empty where it kept none that can be read."""
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


def words(value: object) -> str:
    """A fact as text: tables as `name value` pairs, nothing as `not recorded`."""
    if isinstance(value, Mapping):
        told = [f"{name} {words(part)}" for name, part in value.items() if part is not None]
        return ", ".join(told) or "not recorded"
    if isinstance(value, list | tuple):
        return ", ".join(words(part) for part in value)
    return "not recorded" if value is None else str(value)


def facts(run: Path, told: Report) -> list[tuple[str, str]]:
    """Title and text of everything that the numbers depend on."""
    provenance, machine = told["provenance"], told["environment"]
    rows = [("Run", run.name), ("Finished", words(machine.get("time"))), ("Data set", told["dataset"])]
    if "head_run" in told:
        rows += [("From the head run", told["head_run"]), ("Model", words(told.get("model_dir")))]
    rows += [(title, words(provenance[key])) for key, title in TITLES.items() if key in provenance]
    rows += [(key, words(value)) for key, value in provenance.items() if key not in TITLES and key != "class_names"]
    rows += [("Store", told["store"])]
    if told.get("test_dataset"):
        rows += [("Judged on", told["test_dataset"]), ("Store that was judged on", told["test_store"])]
    if "images" in told:
        rows += [("Images trained on", words(told["images"]))]
    if "rows" in told:
        rows += [("Rows", words(told["rows"]))]
    if "split_hash" in told:
        rows += [("Labelled rows, hash by split", words(told["split_hash"]))]
    libraries = {name: value for name, value in machine.items() if name not in MACHINE}
    return [
        *rows, ("cspipe", f"{words(machine.get('cspipe'))}, git commit {words(machine.get('git_commit'))}"),
        ("Versions", words({"python": machine.get("python"), **libraries})),
        ("Machine", f"{words(machine.get('machine'))}, {words(machine.get('cores'))} cores"),
        ("Time taken", f"{told['seconds']:,.1f} s"),
    ]  # fmt: skip


def commands(run: Path, told: Report, store: Store | None) -> list[str]:
    """Shell lines that give the run again; what extraction was given is known where the store is there."""
    told_config = ["--config", str(run / "config.toml")] if read_config(run) else []
    if told["command"] == "finetune":
        blocks = read_config(run).get("finetune", {}).get("unfreeze_blocks")
        depth = ["--unfreeze-blocks", str(blocks)] if blocks else ["--unfreeze"]
        own = ["cspipe", "finetune", "--head", told["head_run"], "--split-seed", str(told["split_seed"]), *depth]
        return [shell([*own, *told_config])]
    seeds = {row["split_seed"] for row in told["results"]}
    own = [
        "cspipe", "head", "--backbone", told["backbone"], "--dataset", told["dataset"],
        "--labels", str(told["labels"]), "--seeds", str(len(seeds)),
        "--train-seed", str(told["results"][0]["train_seed"]), "--method", ",".join(told["summary"]),
    ]  # fmt: skip
    other = ["--test-dataset", told["test_dataset"]] if told.get("test_dataset") else []
    return [shell(extraction(told, store)), shell([*own, *other, *told_config])]


def shell(arguments: Sequence[str]) -> str:
    """Arguments as a command for a shell, in lines of about `COLUMNS` that begin with an option."""
    lines = [""]
    for place, argument in enumerate(arguments):
        value = arguments[place + 1] if place + 1 < len(arguments) else ""
        if argument.startswith("--") and len(f"{lines[-1]} {argument} {value}") > COLUMNS:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + shlex.quote(argument)
    return " \\\n".join(lines)


def extraction(told: Report, store: Store | None) -> list[str]:
    """The command that fills the store."""
    sources = store.attributes.get("sources", {}) if store else {}
    data, known = sources.get("data"), told["dataset"] in DATASETS
    line = ["cspipe", "extract", told["backbone"], told["dataset"] if known or not data else data]
    if store is not None:
        key = store.key
        line += ["--image-px", str(key.image_px), "--token", key.token, "--dtype", key.dtype]
    if told["provenance"].get("revision"):
        line += ["--revision", told["provenance"]["revision"]]
    if sources.get("weights"):
        line += ["--weights", sources["weights"]]
    return [*line, "--data-dir", data] if known and data and Path(data).is_dir() else line
