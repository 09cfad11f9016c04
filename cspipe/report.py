"""`cspipe report`: run folders become one self-contained HTML page, plots and styles inside, nothing fetched."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from cspipe import plots, verdicts
from cspipe.confusion import Confusion, make_confusion
from cspipe.curves import Curves, Key, Panel, Term, all_curves, method_legend, read_metrics, restarts
from cspipe.diagnosis import Diagnosis, make_diagnosis
from cspipe.examples import Examples, find_examples
from cspipe.grid_page import make_grid
from cspipe.headtrain.runs import read_report, write_atomic
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.page import EXPLORER, page_template
from cspipe.reproduce import commands, facts, read_config
from cspipe.store import Store
from cspipe.store.errors import CspipeError
from cspipe.token_map import TokenMap, map_tokens, run_store
from cspipe.tuned_map import map_tuned

Report = dict[str, Any]
POINTS, FEWEST_POINTS = 1500, 300
"""Rows in a page's t-SNE pictures, shared by its runs: a few seconds a panel on one core."""

CLASSES_IN_LEGEND = 30


@dataclass(frozen=True)
class Pictures:
    """What the page shows of rows and images, as far as store, images and head are there.

    Attributes:
        maps: when (before or after fine-tuning, or empty) and the rows in three spaces.
        legend: colours of their classes.
        map_problem: why there is no map.
        examples: thumbnails of mistakes and of what is least certain.
        example_problem: why there are none; empty where the page has no place for them.
    """

    maps: list[tuple[str, TokenMap, list[Panel]]]
    legend: list[Key]
    map_problem: str
    examples: Examples | None
    example_problem: str


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
    restarts: list[str]
    diagnosis: Diagnosis | None
    pictures: Pictures
    explorer: str
    explored: bool
    facts: list[tuple[str, str]]
    commands: list[str]
    config: str

    @property
    def splits(self) -> int:
        """Number of labelled draws."""
        return len({row["split_seed"] for row in self.told.get("results", [])})


def write_page(runs: Sequence[Path], page: Path, *, stores: Path, data_dir: Path | None = None) -> Path:
    """Writes one HTML page about finished runs, whole or not at all.

    Args:
        runs: run folders of `cspipe head`, `cspipe finetune` and `cspipe sweep`.
        page: the file.
        stores: folder to look for a run's store in, where it is not at its recorded path; without the store the page
            leaves out the picture of the tokens and says so.
        data_dir: where the images lie; None: where they were at extraction. Without them the page has no thumbnails.

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
        make_grid(run, one) if one["command"] == "sweep" else make_section(run, one, stores, most, page, data_dir)
        for run, one in zip(runs, told, strict=True)
    ]
    template = page_template("report.html")
    text = template.render(sections=sections, overviews=labels_plots(told), main=MAIN_METHOD)
    write_atomic(page, plots.number_ids(text))
    return page


def make_section(
    run: Path, told: Report, stores: Path, most: int, page: Path, data_dir: Path | None
) -> Section:  # fmt: skip
    """Collects what the page says of one run."""
    head, config = told["command"] == "head", run / "config.toml"
    store, problem = find(told, stores)
    records, counts = read_metrics(run), told["confusion"].get(MAIN_METHOD if head else "after")
    return Section(
        run=run, told=told, verdict=verdicts.head_verdict(told) if head else verdicts.finetune_verdict(told),
        accuracy=accuracy_rows(told) if head else [], change=[] if head else change_rows(told),
        accuracy_plot=accuracy_plot(told) if head else None,
        curves=all_curves(records), confusion=make_confusion(counts, told["class_names"]) if counts else None,
        restarts=verdicts.restart_words(restarts(records)),
        diagnosis=make_diagnosis(told, ranked(told)) if head else None,
        pictures=(head_pictures if head else tuned_pictures)(run, told, store, problem, stores, most, data_dir),
        explorer=relative(run / EXPLORER, page), explored=(run / EXPLORER).is_file(), facts=facts(run, told),
        commands=commands(run, told, store),
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
    )  # fmt: skip


def relative(path: Path, page: Path) -> str:
    """How a page names a file beside or near it."""
    return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())


def head_pictures(
    run: Path, told: Report, store: Store | None, problem: str, stores: Path, most: int, data_dir: Path | None
) -> Pictures:
    """Judged rows of a head run on a map, and images that say what its head does not know."""
    if store is None:
        return Pictures([], [], problem, None, problem)
    maps: list[tuple[str, TokenMap, list[Panel]]] = []
    examples, map_problem, example_problem = None, "", ""
    dev_rows = read_config(run).get("head", {}).get("dev_rows", 0) or told["rows"]["judged"]
    try:
        judged, evaluation = judged_store(told, store, stores)
        drawn = map_tokens(run, told | {"evaluation": evaluation}, judged, most=most, dev_rows=dev_rows)
        maps = [("", drawn, token_panels(drawn))]
    except CspipeError as error:
        return Pictures([], [], str(error), None, str(error))
    try:
        judging = told | {"evaluation": evaluation}
        examples = find_examples(run, judging, judged, dev_rows=dev_rows, data_dir=data_dir)
    except CspipeError as error:
        example_problem = str(error)
    return Pictures(maps, class_legend(drawn), map_problem, examples, example_problem)


def tuned_pictures(
    run: Path, told: Report, store: Store | None, problem: str, stores: Path, most: int, data_dir: Path | None
) -> Pictures:
    """Judged rows before and after fine-tuning."""
    try:
        if store is None:
            return Pictures([], [], problem, None, "")
        before, after = map_tuned(run, told, store, data_dir=data_dir)
    except CspipeError as error:
        return Pictures([], [], str(error), None, "")
    maps = [(when, drawn, token_panels(drawn)) for when, drawn in (("Before", before), ("After", after))]
    return Pictures(maps, class_legend(before), "", None, "")


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
    if told["cka"] is not None:
        rows += [("CKA with the frozen tokens", "1", f"{told['cka']:.3f}")]
    names = {"knn_overlap": "Nearest neighbours shared", "cosine": "Cosine with the frozen tokens"}
    rows += [(words, "1", f"{told[name]:.3f}") for name, words in names.items() if told.get(name) is not None]
    if kept := told.get("kept"):
        what = f"Neighbours on {kept['images']:,} images of {kept['dataset']}"
        rows += [(what, verdicts.percent(kept["frozen"]), verdicts.percent(kept["tuned"]))]
    return rows


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
