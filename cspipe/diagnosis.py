"""The part of the page that goes beyond accuracy: calibration, recall by class, leaks between content and style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cspipe import plots, verdicts
from cspipe.curves import Key, method_legend

Report = Mapping[str, Any]
HARDEST_CLASSES = 15
DASH = "\u2013"


@dataclass(frozen=True)
class RecallTable:
    """Recall by class and method.

    Attributes:
        methods: names of the columns.
        rows: class name, and for each method the share as text and the depth of colour of what is missed, 0 to 1.
        left_out: classes that are not shown, for their recall is higher.
    """

    methods: list[str]
    rows: list[tuple[str, list[tuple[str, float]]]]
    left_out: int


@dataclass(frozen=True)
class Diagnosis:
    """What the page says of the methods of a head run.

    Attributes:
        rows: method; calibration error, negative log likelihood, entropy, seconds, heads a second, as text.
        legend: colours of the reliability plot.
        reliability: that plot.
        recall: by class.
        leaks: a sentence for each content-style head.
    """

    rows: list[tuple[str, list[str]]]
    legend: list[Key]
    reliability: Markup
    recall: RecallTable
    leaks: list[str]


def make_diagnosis(told: Report, order: Sequence[str]) -> Diagnosis | None:
    """The diagnostics of a head run's report, methods in this order; None for a run that has none."""
    found: Mapping[str, Any] = told.get("diagnostics") or {}
    given = {name: found[name] for name in order if name in found}
    if not given:
        return None
    rows = [(name, [
        verdicts.percent(one["calibration_error"]), f"{one['negative_log_likelihood']:.2f}",
        f"{one['entropy']:.2f}", f"{one['seconds']:.2g}" if one["seconds"] < 10 else f"{one['seconds']:.0f}",
        DASH if one["heads_per_second"] is None else f"{one['heads_per_second']:.2g}",
    ]) for name, one in given.items()]  # fmt: skip
    curves = {name: [(point["confidence"], point["accuracy"]) for point in one["reliability"]]
              for name, one in given.items()}  # fmt: skip
    leaks = [sentence for name, one in given.items() if (sentence := leak_words(name, one))]
    recall = recall_table({name: one["recall"] for name, one in given.items()}, told["class_names"])
    return Diagnosis(rows, method_legend(list(given)), plots.reliability_plot(curves), recall, leaks)


def leak_words(method: str, told: Mapping[str, Any]) -> str:
    """Both probes of a head in words; empty where there are none."""
    style, content = told["style_probe"], told["content_probe"]
    if style is None or content is None:
        return ""
    gap = style["accuracy"] - style["chance"]
    worth = "style knows the class" if gap > 0.5 else "style knows something of it" if gap > 0.05 else "as it should be"
    return (
        f"{method}: style predicts the class with {verdicts.percent(style['accuracy'])}; chance "
        f"{verdicts.percent(style['chance'])} ({worth}). Content explains {verdicts.percent(max(0.0, content['r2']))} "
        "of the variance of the style."
    )


def recall_table(recalls: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> RecallTable:
    """Recall by class; of many classes, those that the first method finds least."""
    shown = list(range(len(names)))
    if len(names) > plots.CLASSES_WITH_NAMES:
        first = next(iter(recalls.values()))
        known = [number for number in shown if first[number] is not None]
        shown = sorted(known, key=lambda number: (first[number], number))[:HARDEST_CLASSES]
    rows = [(names[number], [recall_cell(values[number]) for values in recalls.values()]) for number in shown]
    return RecallTable(list(recalls), rows, len(names) - len(shown))


def recall_cell(value: float | None) -> tuple[str, float]:
    """A share in per cent as text, and how deep its cell is coloured: the square root of what is missed."""
    return (DASH, 0.0) if value is None else (f"{100 * value:.1f}", round((1 - value) ** 0.5, 2))
