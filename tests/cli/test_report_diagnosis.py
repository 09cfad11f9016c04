"""The page beyond accuracy: calibration, recall, leaks, another data set, sweeps."""

from collections.abc import Callable
from typing import Any

import pytest

from cspipe.comparison import compare_cells
from cspipe.diagnosis import leak_words, make_diagnosis, recall_table
from cspipe.verdicts import head_verdict, sweep_verdict

BETTER = {"content-style": [0.90, 0.92, 0.91], "logistic": [0.80, 0.81, 0.82], "supervised": [0.70, 0.72, 0.71]}
Make = Callable[..., Any]


def plain_words(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_page_tells_calibration_leaks_and_recall(make_run: Make, page_of: Make, head_report: Make) -> None:
    page = page_of(make_run(head_report(BETTER)))
    text = plain_words(page.text)
    assert "content-style 10.0 % 1.23 0.56 3.2 1.5" in text and "logistic 10.0 % 1.23 0.56 3.2 \u2013" in text
    assert "style predicts the class with 81.0 %; chance 10.0 % (style knows the class)" in text
    assert "Content explains 25.0 % of the variance of the style." in text
    assert "cat 100.0 100.0 100.0 dog 96.7 96.7 96.7 emu 93.3 93.3 93.3" in text
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert "Accuracy against confidence: content-style 2 bins, logistic 2 bins, supervised 2 bins" in labels
    assert "15 bins of equal mass" in text


def test_a_report_without_diagnostics_is_still_told(make_run: Make, page_of: Make, head_report: Make) -> None:
    report = head_report(BETTER)
    for key in ("diagnostics", "test_dataset", "test_store"):
        del report[key]
    page = page_of(make_run(report))
    assert "Accuracy" in page.text and "Calibration error" not in page.text


@pytest.mark.parametrize(
    ("accuracy", "r2", "told"),
    [
        (0.9, 0.5, "with 90.0 %; chance 10.0 % (style knows the class). Content explains 50.0 %"),
        (0.3, 0.1, "with 30.0 %; chance 10.0 % (style knows something of it). Content explains 10.0 %"),
        (0.12, -0.2, "with 12.0 %; chance 10.0 % (as it should be). Content explains 0.0 %"),
    ],
)
def test_leaks_are_told_in_words(accuracy: float, r2: float, told: str) -> None:
    probes = {"style_probe": {"accuracy": accuracy, "chance": 0.1}, "content_probe": {"r2": r2}}
    assert told in plain_words(leak_words("content-style", probes))
    assert leak_words("logistic", {"style_probe": None, "content_probe": None}) == ""


def test_of_many_classes_those_that_are_found_least_are_shown() -> None:
    names = [f"class {number}" for number in range(40)]
    ours: list[float | None] = [1 - number / 100 for number in range(40)]
    ours[39] = None
    table = recall_table({"content-style": ours, "logistic": [0.5] * 40}, names)
    assert [name for name, _ in table.rows][:2] == ["class 38", "class 37"]
    assert len(table.rows) == 15 and table.left_out == 25
    assert table.rows[0][1] == [("62.0", 0.62), ("50.0", 0.71)]


def test_a_class_without_judged_rows_has_a_dash() -> None:
    assert recall_table({"knn": [None, 0.75]}, ["a", "b"]).rows == [("a", [("\u2013", 0.0)]), ("b", [("75.0", 0.5)])]


def test_there_is_no_diagnosis_of_methods_that_were_not_diagnosed(head_report: Make) -> None:
    assert make_diagnosis(head_report(BETTER, diagnostics={}), ["content-style"]) is None


def test_another_data_set_is_named_in_title_verdict_and_commands(
    make_run: Make, page_of: Make, head_report: Make
) -> None:
    report = head_report(BETTER, test_dataset="moved toys", test_store="gone/moved.zarr", test_provenance={})
    assert "on 10,000 images of moved toys" in head_verdict(report).sentence
    text = page_of(make_run(report)).text
    assert "lite0 on toy, 100 labels, judged on moved toys" in text
    assert "Trained on toy, judged on moved toys." in text
    assert "--test-dataset 'moved toys'" in text


def cell(labels: int, regime: str = "frozen", setting: str = "default", **accuracy: list[float]) -> dict[str, Any]:
    """The record of a cell that is done; method names with underscores."""
    results = [
        {"method": method.replace("_", "-"), "labels": labels, "split_seed": seed, "train_seed": 0, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    place = {"backbone": "lite0", "dataset": "toy", "labels": labels, "regime": regime, "setting": setting}
    identity = {"extract": {"backbone": "lite0"}, "head": {"labels": labels, "setting": setting}}
    return {**place, "state": "done", "results": results, "identity": identity, "seconds": 1.0}


@pytest.fixture
def sweep_report(head_report: Make) -> Make:
    """A function (cells, failed) -> the report of an invented sweep."""

    def make(cells: list[dict[str, Any]], failed: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
        return {
            "command": "sweep", "backbone": "lite0", "dataset": "toy", "labels": "40, 100", "run": "runs/s",
            "cells": cells, "table": compare_cells(cells), "failed": list(failed), "seconds": 7.5,
            "environment": head_report(BETTER)["environment"],
        }  # fmt: skip

    return make


GRID = [
    cell(40, content_style=[0.6, 0.62], logistic=[0.5, 0.52]),
    cell(40, regime="trainable", content_style=[0.55, 0.56]),
    cell(100, content_style=[0.8, 0.8], logistic=[0.85, 0.81]),
]


def test_the_page_of_a_sweep_draws_accuracy_against_labels_and_holds_its_table(
    make_run: Make, page_of: Make, sweep_report: Make
) -> None:
    page = page_of(make_run(sweep_report(GRID), config="device = 'cpu'\n"))
    text = plain_words(page.text)
    assert "Sweep: lite0 on toy, 40, 100 labels" in text
    assert "In 1 of 2 frozen cells content-style is above the best of the other methods that were run, in 1" in text
    assert "40 frozen logistic 51.0 % [38.3, 63.7] +10.0 +10.0 to +10.0 2" in text
    assert "40 trainable content-style 55.5 % [49.1, 61.9] +5.5" in text
    (plot,) = [value for name, value in page.attributes if name == "aria-label"]
    assert "content-style: 61.0 % with 40, 80.0 % with 100" in plot
    assert "content-style, trainable: 55.5 % with 40" in plot
    assert "cspipe sweep --fresh --config" in text and "device = 'cpu'" in text


def test_a_single_label_count_is_drawn_by_method(make_run: Make, page_of: Make, sweep_report: Make) -> None:
    page = page_of(make_run(sweep_report(GRID[:2])))
    (plot,) = [value for name, value in page.attributes if name == "aria-label"]
    assert plot == "Accuracy by method: content-style 61.0 %, content-style, trainable 55.5 %, logistic 51.0 %"


def test_what_failed_in_a_sweep_is_told_and_names_stay_text(make_run: Make, page_of: Make, sweep_report: Make) -> None:
    hostile = "<script>alert(1)</script>"
    fault = {"cell": f"lite0 on {hostile}, 40 labels, frozen", "message": f"no images in {hostile}"}
    named = [cell(40, setting=hostile, content_style=[0.6], logistic=[0.5])]
    page = page_of(make_run(sweep_report(named, (fault,)) | {"dataset": hostile}))
    assert "script" not in page.tags
    assert f"lite0 on {hostile}, 40 labels, frozen: no images in {hostile}" in page.text
    assert "1 cell of the grid failed." in page.text


def test_a_sweep_whose_cells_all_failed_has_a_page_too(make_run: Make, page_of: Make, sweep_report: Make) -> None:
    failed = {"state": "failed", "message": "no data", "seconds": 0.1}
    page = page_of(make_run(sweep_report([failed], ({"cell": "a cell", "message": "no data"},))))
    assert "0 frozen cells; in none was content-style run beside others." in page.text and "no data" in page.text


def test_a_page_can_hold_a_sweep_beside_a_head_run(
    make_run: Make, page_of: Make, sweep_report: Make, head_report: Make
) -> None:
    page = page_of(make_run(head_report(BETTER)), make_run(sweep_report(GRID)))
    assert page.tags.count("section") == 2


def test_the_verdict_of_a_sweep_says_in_how_many_cells_the_method_is_not_better(sweep_report: Make) -> None:
    worse = [cell(40, content_style=[0.5, 0.52], logistic=[0.6, 0.62])]
    said = plain_words(sweep_verdict(sweep_report(worse)).sentence)
    assert said.startswith("In 0 of 1 frozen cell content-style is above") and "in none of them with a paired" in said
