import json
import os
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspipe.cli import main
from cspipe.headtrain.evaluate import paired, summarise
from cspipe.report import write_page

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def cspipe(capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with a small digits store and a head run on it."""
    folder = tmp_path_factory.mktemp("made")
    places = ["--stores", str(folder / "stores"), "--runs", str(folder / "runs"), "--quiet", "--json"]
    for arguments in (
        ["extract", "lite0", "digits", "--image-px", "32", "--limit", "120"],
        ["head", "--labels", "40", "--seeds", "2", "--set", "steps=20", "--set", "components=32"],
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *places])
        assert not end.value.code
    return folder


@pytest.fixture(scope="session")
def head_run(made):
    """The head run in that folder; other tests may add runs of other labels."""
    runs = sorted((made / "runs").glob("*-head-*"))
    return next(run for run in runs if json.loads((run / "report.json").read_text())["labels"] == 40)


@pytest.fixture
def places(made):
    """Flags that name that folder."""
    return ["--stores", made / "stores", "--runs", made / "runs", "--quiet"]


@pytest.fixture
def document(cspipe):
    """Runs a command that must succeed with --json and gives its document."""

    def run(*arguments):
        code, out, _ = cspipe(*arguments, "--json")
        assert code == 0
        return json.loads(out)

    return run


VOID = {"meta", "br", "hr", "img", "link", "input"}
BETTER = {"content-style": [0.90, 0.92, 0.91], "logistic": [0.80, 0.81, 0.82], "supervised": [0.70, 0.72, 0.71]}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace(" \\ ", " ")


def diagnostics(methods: Mapping[str, object], classes: int) -> dict[str, Any]:
    """Invented diagnostics; content-style alone has probes."""
    points = [{"confidence": 0.6, "accuracy": 0.5, "rows": 10}, {"confidence": 0.9, "accuracy": 0.8, "rows": 10}]
    probes = {"style_probe": {"accuracy": 0.81, "chance": 0.1}, "content_probe": {"r2": 0.25}}
    none = dict.fromkeys(probes)
    return {
        method: {
            "calibration_error": 0.1, "reliability": points, "negative_log_likelihood": 1.234, "entropy": 0.56,
            "recall": [1 - number / 10 / classes for number in range(classes)], "discriminators": {}, "seconds": 3.21,
            "heads_per_second": 1.5 if method == "content-style" else None,
            **(probes if method == "content-style" else none),
        }
        for method in methods
    }  # fmt: skip


def make_head_report(
    accuracy: Mapping[str, Sequence[float]], names: Sequence[str] = ("cat", "dog", "emu"), **changes: Any
) -> dict[str, Any]:
    results = [
        {"method": method, "labels": 100, "split_seed": seed, "train_seed": 0, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    counts = (np.eye(len(names), dtype=int) * 50 + 1).tolist()
    return {
        "command": "head", "store": "gone/toy--lite0--00000000.zarr", "backbone": "lite0", "dataset": "toy",
        "labels": 100, "evaluation": "test", "rows": {"train": 1000, "judged": 10000, "flagged": 0},
        "class_names": list(names), "results": results, "summary": summarise(results),
        "paired": paired(results, "content-style"), "confusion": {method: counts for method in accuracy},
        "diagnostics": diagnostics(accuracy, len(names)), "test_dataset": None, "test_store": None,
        "split_hash": {"0": "0123456789abcdef"}, "run": "runs/x", "seconds": 12.5,
        "provenance": {"architecture": "tf_efficientnet_lite0", "weights_sha256": "feed" * 16, "licence": "Apache-2.0",
                       "transform": "resize 8", "store_key": "beef", "dataset_fingerprint": {"train": "f00d"}},
        "environment": {"cspipe": "0.1.0", "git_commit": "adeeca463cb8", "python": "3.11", "torch": "2.8",
                        "machine": "Linux x86_64", "cores": 2, "time": "2026-01-02T03:04:05+00:00"},
    } | changes  # fmt: skip


def make_finetune_report(before: float, after: float, rows: int = 1000) -> dict[str, Any]:
    def counts(share: float) -> list[list[int]]:
        return [[round(rows * share), rows - round(rows * share)], [0, 0]]

    return make_head_report(BETTER, ["cat", "dog"]) | {
        "command": "finetune", "method": "content-style", "split_seed": 0, "accuracy_before": before,
        "accuracy_after": after, "cka": 0.875, "model_dir": "runs/y/model", "head_run": "runs/x",
        "confusion": {"before": counts(before), "after": counts(after)},
    }  # fmt: skip


def make_records(method: str | None = "content-style") -> list[dict[str, Any]]:
    told = {"method": method, "split_seed": 0, "train_seed": 0, "fold": 0} if method else {}
    return [
        told | {"step": step, "L_c": 1 / step, "L_y": 0.5, "critic_style": 0.69, "lr": None} for step in (10, 20, 30)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function (report, metrics, config) -> folder of a finished run."""

    def make(report: dict[str, Any], metrics: Sequence[dict[str, Any]] = (), config: str = "") -> Path:
        run = tmp_path / "runs" / f"{len(list(tmp_path.glob('runs/*')))}-{report['command']}-abcdef"
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps(report))
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics or make_records()))
        (run / "config.toml").write_text(config)
        return run

    return make


@pytest.fixture
def page_of() -> Callable[..., Page]:
    """A function (runs, stores=) -> their page, parsed."""

    def read(*runs: Path, stores: Path = Path("nowhere")) -> Page:
        return Page(write_page(runs, runs[-1] / "report.html", stores=stores))

    return read


@pytest.fixture(scope="session")
def head_report() -> Callable[..., dict[str, Any]]:
    """A function (accuracies by method, class names, **changes) -> the report of an invented head run."""
    return make_head_report


@pytest.fixture(scope="session")
def finetune_report() -> Callable[..., dict[str, Any]]:
    """A function (accuracy before, after, rows) -> the report of an invented fine-tuning run."""
    return make_finetune_report


@pytest.fixture(scope="session")
def records() -> Callable[..., list[dict[str, Any]]]:
    """A function (method) -> its metric records."""
    return make_records
