"""The part of the page about a sweep: accuracy against labels for every backbone, data set and setting."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cspipe import plots, verdicts
from cspipe.curves import Key, method_legend
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.reproduce import MACHINE, words

Report = Mapping[str, Any]
Row = Mapping[str, Any]
DASH = "\u2013"


@dataclass(frozen=True)
class GridRow:
    """A row of the page's table; `figures` are accuracy, interval, difference, its interval, draws, as text."""

    labels: int
    regime: str
    method: str
    figures: list[str]
    main: bool


@dataclass(frozen=True)
class Group:
    """Cells of one backbone, data set and setting, with their plot."""

    title: str
    legend: list[Key]
    plot: Markup
    rows: list[GridRow]


@dataclass(frozen=True)
class Grid:
    """All that the page says of one sweep."""

    run: Path
    told: Report
    verdict: verdicts.Verdict
    groups: list[Group]
    failed: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    commands: list[str]
    config: str


def make_grid(run: Path, told: Report) -> Grid:
    """Collects what the page says of a sweep."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in told["table"]:
        groups.setdefault((row["backbone"], row["dataset"], row["setting"]), []).append(row)
    config, machine = run / "config.toml", told["environment"]
    libraries = {name: value for name, value in machine.items() if name not in MACHINE}
    return Grid(
        run, told, verdicts.sweep_verdict(told), [make_group(place, rows) for place, rows in groups.items()],
        [(fault["cell"], fault["message"]) for fault in told["failed"]],
        [
            ("Run", run.name), ("Finished", words(machine.get("time"))), ("Cells", str(len(told["cells"]))),
            ("cspipe", f"{words(machine.get('cspipe'))}, git commit {words(machine.get('git_commit'))}"),
            ("Versions", words({"python": machine.get("python"), **libraries})),
            ("Time taken", f"{told['seconds']:,.1f} s"),
        ],
        [f"cspipe sweep --fresh --config {shlex.quote(str(config))}"],
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )  # fmt: skip


def make_group(place: tuple[str, str, str], rows: Sequence[Row]) -> Group:
    """A plot and a table: against labels where there are several counts, else by method."""
    backbone, dataset, setting = place
    title = f"{backbone} on {dataset}" + ("" if setting == "default" else f", {setting}")
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(line_name(row), []).append(row)
    if len({row["labels"] for row in rows}) > 1:
        legend = method_legend(list(lines))
        plot = plots.labels_plot([curve(name, line) for name, line in lines.items()])
    else:
        best = sorted(lines, key=lambda name: -lines[name][0]["mean"])
        legend = []
        plot = plots.accuracy_plot({n: [lines[n][0]["mean"]] for n in best}, {n: lines[n][0]["ci95"] for n in best})
    return Group(title, legend, plot, [table_row(row) for row in rows])


def line_name(row: Row) -> str:
    """A method in the legend; with the regime where the backbone was trained too."""
    return str(row["method"]) if row["regime"] == "frozen" else f"{row['method']}, {row['regime']}"


def curve(name: str, line: Sequence[Row]) -> plots.Curve:
    """Accuracy of one method against labels, in per cent."""
    line = sorted(line, key=lambda row: int(row["labels"]))
    mean = [100 * row["mean"] for row in line]
    span = [[100 * value for value in row["ci95"] or [row["mean"]] * 2] for row in line]
    return plots.Curve(name, [row["labels"] for row in line], mean, [s[0] for s in span], [s[1] for s in span])


def table_row(row: Row) -> GridRow:
    """A row as text."""
    versus, ci95 = row["difference"], row["difference_ci95"]
    figures = [
        verdicts.percent(row["mean"]), verdicts.bounds(row["ci95"]),
        DASH if versus is None else verdicts.signed(versus), verdicts.between(ci95) if ci95 else DASH, str(row["n"]),
    ]  # fmt: skip
    main = row["method"] == MAIN_METHOD and row["regime"] == "frozen"
    return GridRow(row["labels"], row["regime"], row["method"], figures, main)
