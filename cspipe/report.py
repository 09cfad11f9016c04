"""`cspipe report`: run folders become one self-contained HTML page, plots and styles inside, nothing fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cspipe import plots, verdicts
from cspipe.curves import Curves, Key, Panel, Term, all_curves, method_legend, read_metrics
from cspipe.diagnosis import Diagnosis, make_diagnosis
from cspipe.grid_page import make_grid
from cspipe.headtrain.runs import read_report, write_atomic
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.reproduce import commands, facts, read_config
from cspipe.store import Store
from cspipe.store.errors import CspipeError
from cspipe.terminal import plain
from cspipe.token_map import TokenMap, map_tokens, run_store

Report = dict[str, Any]
POINTS, FEWEST_POINTS = 1500, 300
"""Rows in a page's t-SNE pictures, shared by its runs: a few seconds a panel on one core."""

CONFUSED_PAIRS = 15
CLASSES_IN_LEGEND = 30
NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Confusion:
    """Counts for the page: all cells where classes are few, else the pairs that are confused most.

    Attributes:
        names: class names.
        cells: row by true class: count, depth of colour from 0 to 1.
        pairs: true name, predicted name, count, share of the true class's rows.
    """

    names: list[str]
    cells: list[list[tuple[int, float]]]
    pairs: list[tuple[str, str, int, str]]

    @property
    def long(self) -> bool:
        """True where names are too long to stand side by side."""
        return max(map(len, self.names)) > 4


@dataclass(frozen=True)
class Section:
    """All that the page says of one run."""

    run: Path
    told: Report
    verdict: verdicts.Verdict
    accuracy: list[tuple[str, str, str, str, str]]
    change: list[tuple[str, str, str]]
    accuracy_plot: Markup | None
    curves: list[Curves]
    confusion: Confusion | None
    diagnosis: Diagnosis | None
    token_map: TokenMap | None
    token_panels: list[Panel]
    token_legend: list[Key]
    token_problem: str
    facts: list[tuple[str, str]]
    commands: list[str]
    config: str

    @property
    def splits(self) -> int:
        """Number of labelled draws."""
        return len({row["split_seed"] for row in self.told.get("results", [])})


def write_page(runs: Sequence[Path], page: Path, *, stores: Path) -> Path:
    """Writes one HTML page about finished runs, whole or not at all.

    Args:
        runs: run folders of `cspipe head`, `cspipe finetune` and `cspipe sweep`.
        page: the file.
        stores: folder to look for a run's store in, where it is not at its recorded path; without the store the page
            leaves out the picture of the tokens and says so.

    Returns:
        `page`.

    Raises:
        MissingDataError: a folder holds no finished run.
        StoreError: a run's report is damaged.
    """
    told = [read_report(run) for run in runs]
    heads = sum(one["command"] == "head" for one in told)
    most = max(FEWEST_POINTS, POINTS // max(heads, 1))
    sections = [
        make_grid(run, one) if one["command"] == "sweep" else make_section(run, one, stores, most)
        for run, one in zip(runs, told, strict=True)
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable,
        loader=FunctionLoader(lambda name: files("cspipe").joinpath(name).read_text(encoding="utf-8")),
    )  # fmt: skip
    template = environment.get_template("report.html")
    text = template.render(sections=sections, overviews=labels_plots(told), main=MAIN_METHOD)
    write_atomic(page, plots.number_ids(text))
    return page


def printable(value: object) -> object:
    """Every text that enters the page: control characters and lone surrogates shown as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return NO_BREAK.join(plain(part) for part in value.split(NO_BREAK))


def make_section(run: Path, told: Report, stores: Path, most: int) -> Section:
    """Collects what the page says of one run."""
    head, config = told["command"] == "head", run / "config.toml"
    store, problem = find(told, stores)
    drawn: TokenMap | None = None
    if head and store is not None:
        try:
            dev_rows = read_config(run).get("head", {}).get("dev_rows", 0) or told["rows"]["judged"]
            judged, evaluation = judged_store(told, store, stores)
            drawn = map_tokens(run, told | {"evaluation": evaluation}, judged, most=most, dev_rows=dev_rows)
        except CspipeError as error:
            problem = str(error)
    counts = told["confusion"].get(MAIN_METHOD if head else "after")
    return Section(
        run=run, told=told, verdict=verdicts.head_verdict(told) if head else verdicts.finetune_verdict(told),
        accuracy=accuracy_rows(told) if head else [], change=[] if head else change_rows(told),
        accuracy_plot=accuracy_plot(told) if head else None,
        curves=all_curves(read_metrics(run)), confusion=make_confusion(counts, told["class_names"]) if counts else None,
        diagnosis=make_diagnosis(told, ranked(told)) if head else None,
        token_map=drawn, token_panels=token_panels(drawn) if drawn else [],
        token_legend=class_legend(drawn) if drawn else [], token_problem=problem, facts=facts(run, told),
        commands=commands(run, told, store),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )  # fmt: skip


def find(told: Report, stores: Path) -> tuple[Store | None, str]:
    """The run's store, or why it cannot be used."""
    try:
        return run_store(told, stores), ""
    except CspipeError as error:
        return None, str(error)


def judged_store(told: Report, store: Store, stores: Path) -> tuple[Store, str]:
    """The store whose rows were judged, and which of its rows: those of another data set if the run has one."""
    if not told.get("test_store"):
        return store, str(told["evaluation"])
    other = run_store({"store": told["test_store"], "provenance": told["test_provenance"]}, stores)
    tested = "test" in other.splits and bool((other["test"].label() >= 0).any())
    return other, "test" if tested else "train"


def ranked(told: Report) -> list[str]:
    """Methods, the most accurate first."""
    summary = told["summary"]
    return sorted(summary, key=lambda name: -summary[name]["mean"])


def accuracy_rows(told: Report) -> list[tuple[str, str, str, str, str]]:
    """Method, accuracy, interval, content-style minus it, interval of that."""
    rows = []
    for name in ranked(told):
        value, versus = told["summary"][name], told["paired"].get(name)
        difference = verdicts.signed(versus["mean_difference"]) if versus else "\u2013"
        interval = verdicts.between(versus["ci95"]) if versus and versus["ci95"] else "\u2013"
        rows.append((name, verdicts.percent(value["mean"]), verdicts.bounds(value["ci95"]), difference, interval))
    return rows


def change_rows(told: Report) -> list[tuple[str, str, str]]:
    """What fine-tuning changed: quantity, before, after."""
    counts = [np.asarray(told["confusion"][when]) for when in ("before", "after")]
    right = [f"{np.trace(count_KK):,} of {count_KK.sum():,}" for count_KK in counts]
    rows = [
        ("Accuracy", verdicts.percent(told["accuracy_before"]), verdicts.percent(told["accuracy_after"])),
        ("Images right", right[0], right[1]),
    ]
    return rows if told["cka"] is None else [*rows, ("CKA with the frozen tokens", "1", f"{told['cka']:.3f}")]


def accuracy_plot(told: Report) -> Markup:
    """Dots and intervals by method."""
    splits = {name: [row["accuracy"] for row in told["results"] if row["method"] == name] for name in ranked(told)}
    return plots.accuracy_plot(splits, {name: told["summary"][name]["ci95"] for name in splits})


def labels_plots(told: Sequence[Report]) -> list[tuple[str, list[Key], Markup]]:
    """Accuracy against labels for every backbone and data set with head runs of different label counts."""
    groups: dict[tuple[str, str, str], dict[int, Report]] = {}
    for one in told:
        if one["command"] == "head":
            judged = one.get("test_dataset") or one["evaluation"]
            groups.setdefault((one["backbone"], one["dataset"], judged), {})[one["labels"]] = one
    found = []
    for (backbone, dataset, _), by_labels in groups.items():
        if len(by_labels) < 2:
            continue
        points: dict[str, list[tuple[int, float, list[float]]]] = {}
        for labels, one in sorted(by_labels.items()):
            for name, value in one["summary"].items():
                mean = 100 * value["mean"]
                points.setdefault(name, []).append((labels, mean, [100 * x for x in value["ci95"] or ()] or [mean] * 2))
        curves = [
            plots.Curve(
                name, [p[0] for p in line], [p[1] for p in line], [p[2][0] for p in line], [p[2][1] for p in line]
            )
            for name, line in points.items()
        ]
        found.append((f"{backbone} on {dataset}", method_legend(list(points)), plots.labels_plot(curves)))
    return found


def class_legend(drawn: TokenMap) -> list[Key]:
    """Colours of classes; none where they are too many to be told apart."""
    if len(drawn.class_names) > CLASSES_IN_LEGEND:
        return []
    keys = [Key(plots.css_colour(number), "solid", name) for number, name in enumerate(drawn.class_names)]
    return [*keys, Key("var(--rule)", "solid", "no label")] if (drawn.label_N < 0).any() else keys


def token_panels(drawn: TokenMap) -> list[Panel]:
    """Three pictures of the same rows."""
    return [
        Panel(Term("", "", name, f"neighbours alike {verdicts.percent(same)}"), plots.scatter_panel(
            place_N2, drawn.label_N, drawn.class_names, what=f"t-SNE of {name}, {len(place_N2)} rows coloured by class",
            on_points=name != "style",
        ))
        for name, place_N2, same in drawn.spaces
    ]  # fmt: skip


def make_confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Confusion:
    """Counts with the share of their row; the pairs confused most, at most `CONFUSED_PAIRS`."""
    count_KK = np.asarray(counts)
    share_KK = count_KK / np.maximum(count_KK.sum(1, keepdims=True), 1)
    few = len(names) <= plots.CLASSES_WITH_NAMES
    cells = [[(int(n), round(float(s) ** 0.5, 2)) for n, s in zip(*row, strict=True)]
             for row in zip(count_KK, share_KK, strict=True)] if few else []  # fmt: skip
    wrong_KK = np.where(np.eye(len(names), dtype=bool), 0, count_KK)
    worst = np.argsort(-wrong_KK, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [(names[i], names[j], int(wrong_KK[i, j]), verdicts.percent(float(share_KK[i, j])))
             for i, j in zip(*np.unravel_index(worst, wrong_KK.shape), strict=True) if wrong_KK[i, j]]  # fmt: skip
    return Confusion(list(names), cells, pairs)
