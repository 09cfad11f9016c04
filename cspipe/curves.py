"""Training curves of a run: its metrics.jsonl as small multiples, one panel a quantity, one line a method."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from cspipe import plots

Record = dict[str, Any]
NO_CURVE = frozenset({"event", "step", "epoch", "split_seed", "train_seed", "fold", "restarts"})


@dataclass(frozen=True)
class Term:
    """A logged quantity: symbol and index, words, unit."""

    symbol: str
    index: str
    words: str
    unit: str


TERMS: Mapping[str, Term] = {
    "total": Term("L", "total", "weighted sum of the terms", "nats"),
    "L_c": Term("L", "c", "cross-entropy of the content", "nats"),
    "D_c": Term("D", "c", "content against its prior", "nats"),
    "D_s": Term("D", "s", "style against its prior", "nats"),
    "D_y": Term("D", "y", "rebuilt against real tokens", "nats"),
    "L_y": Term("L", "y", "reconstruction of the token", "1 \u2212 cos"),
    "L_mix": Term("L", "mix", "content of mixed tokens", "nats"),
    "content_entropy": Term("", "", "entropy of the content, mean over rows", "nats"),
    "content_kl": Term("", "", "mean content against the class prior", "nats"),
    "D_c_kl": Term("D", "c", "as a KL estimate", "nats"),
    "D_s_kl": Term("D", "s", "as a KL estimate", "nats"),
    "D_y_kl": Term("D", "y", "as a KL estimate", "nats"),
    "critic_content": Term("", "", "content discriminator's own loss", "nats"),
    "critic_style": Term("", "", "style discriminator's own loss", "nats"),
    "critic_token": Term("", "", "token discriminator's own loss", "nats"),
    "gradient_norm": Term("", "", "norm of the gradient", "before clipping"),
    "skipped": Term("", "", "steps left out, not finite", ""),
    "accuracy": Term("", "", "accuracy", "from 0 to 1"),
    "cka": Term("", "", "CKA with the frozen tokens", "1: unmoved"),
    "knn_overlap": Term("", "", "neighbours shared with the frozen tokens", "1: all of ten"),
    "cosine": Term("", "", "cosine with the frozen tokens", "1: unmoved"),
    "criterion": Term("", "", "criterion of early stopping", "nats, lower is better"),
    "token_variance": Term("", "", "variance of the tokens", "mean of a dimension"),
    "effective_rank": Term("", "", "effective rank of the tokens", "dimensions"),
    "lr": Term("", "", "learning rate", ""),
    "images_per_second": Term("", "", "speed", "images a second"),
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A small plot with its name."""

    term: Term
    svg: Markup


@dataclass(frozen=True)
class Key:
    """One entry of a legend: CSS colour, border style, name."""

    colour: str
    dash: str
    name: str


@dataclass(frozen=True)
class Curves:
    """Small multiples of one kind."""

    legend: list[Key]
    panels: list[Panel]


def read_metrics(run: Path) -> list[Record]:
    """The records of metrics.jsonl; a line that was cut off is left out."""
    path, records = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def restarts(records: Sequence[Record]) -> dict[str, tuple[int, int, int]]:
    """Method -> heads that were lost and put back at least once, how often in all, heads in all."""
    last: dict[str, dict[tuple[object, ...], int]] = {}
    for record in records:
        if "restarts" in record and "event" not in record:
            head = tuple(record.get(name) for name in ("split_seed", "train_seed", "fold"))
            last.setdefault(str(record.get("method")), {})[head] = int(record["restarts"] or 0)
    return {
        method: (sum(count > 0 for count in heads.values()), sum(heads.values()), len(heads))
        for method, heads in last.items()
    }


def all_curves(records: Sequence[Record]) -> list[Curves]:
    """Curves over steps, then those that are logged once an epoch."""
    steps = make_curves([record for record in records if "event" not in record], "step")
    epochs = make_curves([record for record in records if record.get("event") == "epoch"], "epoch")
    return [curves for curves in (steps, epochs) if curves.panels]


def make_curves(records: Iterable[Record], x: str) -> Curves:
    """A panel for every quantity, in it a line for every method: mean over splits and folds, and the range."""
    values: dict[str, dict[str, dict[float, list[float]]]] = {}
    for record in records:
        method = record.get("method", "fine-tuning")
        for name, value in record.items():
            if name == "skipped" and not value:  # a run that left none out needs no panel that says so
                continue
            if name not in NO_CURVE and isinstance(value, int | float) and x in record:
                values.setdefault(name, {}).setdefault(method, {}).setdefault(record[x], []).append(value)
    order = [name for name in TERMS if name in values] + sorted(values.keys() - TERMS.keys())
    panels = []
    for name in order:
        lines = []
        for method, seen in values[name].items():
            at = sorted(seen)
            lines.append(plots.Curve(method, at, [float(np.mean(seen[s])) for s in at], [min(seen[s]) for s in at],
                                     [max(seen[s]) for s in at]))  # fmt: skip
        term = TERMS.get(name, Term("", "", name, ""))
        svg = plots.curve_panel(lines, what=term.words, x_name=x, discriminator=name.startswith("critic_"))
        panels.append(Panel(term, svg))
    return Curves(method_legend(list(dict.fromkeys(m for lines in values.values() for m in lines))), panels)


def method_legend(names: Sequence[str]) -> list[Key]:
    """Line colours of methods."""
    return [Key(plots.css_colour(plots.method_colour(name)), plots.METHOD_DASHES.get(name, "solid"), name)
            for name in names]  # fmt: skip
