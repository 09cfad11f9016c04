"""Plots as inline SVG: text stays text, colours are the page's own, so one picture serves light and dark.

Matplotlib draws with placeholder colours; `to_svg` swaps them for CSS variables that the page's stylesheet sets.
Legend: `N` rows.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from cspipe.terminal import plain

Floats = NDArray[np.float32]

PALETTE = 10
"""Colours that the stylesheet names `--k0` to `--k9`: after Okabe and Ito, moved until all ten stay apart under
simulated deuteranopia and protanopia (at least 0.1 in OKLab), on the light and on the dark ground."""

CLASSES_WITH_NAMES = 12
ID = "\ue000"
"""Stands before every id of a plot; `number_ids` makes it a number of its own. No name can hold it: see `short`."""

INK, SOFT, RULE = "#fe0001", "#fe0002", "#fe0003"
PLACEHOLDER = re.compile(r"#f([de])([0-9a-f]{4})")
NUMBER = re.compile(r"-?\d+\.\d+")
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "cspipe", "font.size": 11,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": RULE, "axes.labelcolor": INK, "axes.linewidth": 1, "text.color": INK, "xtick.color": RULE,
    "ytick.color": RULE, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT, "grid.color": RULE,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "figure.dpi": 72, "path.simplify": False,
    "text.parse_math": False, "axes.unicode_minus": True, "axes.formatter.useoffset": False,
}  # fmt: skip
METHOD_COLOURS = {
    "content-style": 0, "supervised": 1, "logistic": 6, "content-style-paper": 8, "knn": 3, "label-propagation": 7,
    "self-training": 9, "fine-tuning": 0, "content-style, trainable": 2,
}  # fmt: skip
METHOD_DASHES = {"supervised": "dashed", "content-style-paper": "dotted"}
LN2 = float(np.log(2))


@dataclass(frozen=True)
class Curve:
    """One line of a panel: `x`, and `y`, `low`, `high` at each x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def colour(number: int) -> str:
    """Placeholder of the colour with this number."""
    return f"#fd{number:04x}"


def css_colour(number: int) -> str:
    """What the page says for it: a variable, or beyond the palette a hue a golden angle further on."""
    if number < PALETTE:
        return f"var(--k{number})"
    return f"oklch({0.58 + 0.07 * (number % 3):.2f} 0.14 {number * 137.508 % 360:.0f})"


def method_colour(name: str) -> int:
    """Number of a method's colour, the same in every plot."""
    return METHOD_COLOURS.get(name, 5)


def short(name: str, most: int = 14) -> str:
    """A name for a plot: printable and not too long."""
    name = plain(name).replace("\n", " ").replace("\t", " ")
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one plot, size in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, alt: str) -> Markup:
    """A figure as an `svg` element for the middle of an HTML page; `alt` says what it shows."""
    page = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the reader's browser has them
        figure.savefig(page, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # fmt: skip
    root = ET.fromstring(page.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}style" or child.tag.endswith("metadata"):
                parent.remove(child)
        clean(parent)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib |= {"role": "img", "aria-label": alt, "style": f"max-width: {1.3 * width:.0f}px"}
    return Markup(ET.tostring(root, encoding="unicode"))  # ElementTree has escaped every text


def clean(element: ET.Element) -> None:
    """Makes one element fit among others on a page: no namespaces, its own ids, short numbers, the page's colours."""
    element.tag = element.tag.removeprefix(SVG)
    target = element.attrib.pop(HREF, None)
    if target is not None:
        element.set("href", target.replace("#", f"#{ID}", 1))
    name = element.attrib.pop("id", None)
    if name == "halo":
        element.set("class", name)
    elif name is not None and element.tag != "g":
        element.set("id", ID + name)
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{ID}"))
    if "d" in element.attrib:
        element.set("d", " ".join(NUMBER.sub(lambda n: f"{float(n[0]):.1f}", element.attrib["d"]).split()))
    if "style" in element.attrib:
        style = re.sub(r"font: (?:\w+ )*?([\d.]+px)[^;]*", r"font-size: \1", element.attrib["style"])
        element.set("style", PLACEHOLDER.sub(page_colour, style))


def number_ids(page: str) -> str:
    """A page on which every plot's ids are its own, also where two plots are the same."""
    return "<svg".join(part.replace(ID, f"p{number}-") for number, part in enumerate(page.split("<svg")))


def page_colour(found: re.Match[str]) -> str:
    """The page's colour for a placeholder."""
    number = int(found[2], 16)
    return css_colour(number) if found[1] == "d" else ("currentColor", "var(--soft)", "var(--rule)")[number - 1]


def accuracy_plot(splits: Mapping[str, Sequence[float]], intervals: Mapping[str, Sequence[float] | None]) -> Markup:
    """Accuracy of each method: mean, interval where there is one, single splits as faint dots. Fractions in."""
    with mpl.rc_context(LOOK):
        figure, axes = new_axes(370, 48 + 34 * len(splits))
        for place, (name, values) in enumerate(splits.items()):
            ink, percent = colour(method_colour(name)), 100 * np.asarray(values)
            axes.plot(percent, np.full(len(values), place + 0.26), "o", color=ink, alpha=0.5, markersize=5, mew=0)
            if (span := intervals[name]) is not None:
                axes.plot(100 * np.asarray(span), [place, place], color=ink, lw=2.5, solid_capstyle="butt")
            axes.plot(percent.mean(), place, "o", color=ink, markersize=9, mew=0)
        axes.set_yticks(range(len(splits)), [short(name, 22) for name in splits], color=INK)
        axes.set_ylim(len(splits) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        means = ", ".join(f"{short(n, 40)} {100 * float(np.mean(v)):.1f} %" for n, v in splits.items())
        return to_svg(figure, f"Accuracy by method: {means}")


def reliability_plot(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Accuracy against confidence by method, fractions in; on the dotted diagonal a method is as right as it says."""
    with mpl.rc_context(LOOK):
        figure, axes = new_axes(300, 290)
        lowest = min(min(point) for points in curves.values() for point in points)
        start = 10 * int(10 * min(lowest, 0.9))
        axes.plot([start, 100], [start, 100], color=SOFT, lw=1, linestyle=(0, (1, 2)))
        for name, points in curves.items():
            x_n, y_n = 100 * np.asarray(points).T
            axes.plot(x_n, y_n, color=colour(method_colour(name)), lw=1.8, marker="o", markersize=4.5, mew=0,
                      linestyle=METHOD_DASHES.get(name, "solid"))  # fmt: skip
        axes.set_xlim(start, 101)
        axes.set_ylim(start, 101)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        axes.grid()
        axes.tick_params(length=0)
        told = ", ".join(f"{short(name, 40)} {len(points)} bins" for name, points in curves.items())
        return to_svg(figure, f"Accuracy against confidence: {told}")


def labels_plot(curves: Sequence[Curve]) -> Markup:
    """Accuracy (per cent) against the number of labels, with intervals; methods a little aside of one another."""
    with mpl.rc_context(LOOK):
        figure, axes = new_axes(400, 260)
        for place, curve in enumerate(curves):
            ink, aside = colour(method_colour(curve.name)), 1.025 ** (place - (len(curves) - 1) / 2)
            error = [np.subtract(curve.y, curve.low), np.subtract(curve.high, curve.y)]
            axes.errorbar(np.multiply(curve.x, aside), curve.y, error, color=ink, lw=2, elinewidth=1.5, marker="o",
                          markersize=6, linestyle=METHOD_DASHES.get(curve.name, "solid"))  # fmt: skip
        counts = sorted({x for curve in curves for x in curve.x})
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(counts, [f"{x:,.0f}" for x in counts])
        axes.set_xlabel("labelled images")
        axes.set_ylabel("accuracy, %")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100.5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        told = "; ".join(f"{c.name}: " + ", ".join(f"{y:.1f} % with {x:,.0f}" for x, y in zip(c.x, c.y, strict=True))
                         for c in curves)  # fmt: skip
        return to_svg(figure, f"Accuracy against labels. {told}")


def curve_panel(curves: Sequence[Curve], *, what: str, x_name: str = "step", discriminator: bool = False) -> Markup:
    """A small plot of one quantity while training; a discriminator gets a line at ln 2, where it cannot tell."""
    with mpl.rc_context(LOOK):
        figure, axes = new_axes(300, 170)
        if discriminator:
            axes.axhline(LN2, color=SOFT, lw=1, linestyle=(0, (1, 2)))
        for curve in curves:
            ink, few = colour(method_colour(curve.name)), len(curve.x) < 3
            axes.fill_between(curve.x, curve.low, curve.high, color=ink, alpha=0.18, lw=0)
            axes.plot(curve.x, curve.y, color=ink, lw=1.8, marker="o" if few else "", markersize=5,
                      linestyle=METHOD_DASHES.get(curve.name, "solid"))  # fmt: skip
        values = np.concatenate([np.concatenate([curve.low, curve.high]) for curve in curves])
        wide = bool(values.min() > 0 and values.max() > 100 * values.min())
        axes.set_yscale("log" if wide else "linear")
        if wide:
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.set_xlabel(x_name + (" (vertical axis logarithmic)" if wide else ""), color=SOFT)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        ends = ", ".join(f"{short(c.name, 40)} from {c.y[0]:.3g} to {c.y[-1]:.3g}" for c in curves)
        return to_svg(figure, f"{what} by {x_name}: {ends}")


def scatter_panel(
    place_N2: Floats, label_N: NDArray[np.int64], names: Sequence[str], *, what: str, on_points: bool
) -> Markup:
    """Points coloured by class, -1 (no label) in grey; where classes are few and `on_points`, their names on them.

    A point is a line of no length with round ends: a tenth of the bytes of one `use` element each.
    """
    with mpl.rc_context(LOOK):
        figure, axes = new_axes(300, 300)
        size = 4 if len(label_N) < 600 else 3
        for label, rows in in_turns(label_N):
            x_n3 = np.stack([place_N2[rows, 0], place_N2[rows, 0], np.full(len(rows), np.nan)], 1)
            y_n3 = np.stack([place_N2[rows, 1], place_N2[rows, 1], np.full(len(rows), np.nan)], 1)
            axes.plot(x_n3.ravel(), y_n3.ravel(), color=RULE if label < 0 else colour(label), lw=size, alpha=0.8,
                      solid_capstyle="round")  # fmt: skip
        if on_points and len(names) <= CLASSES_WITH_NAMES:
            for label in np.unique(label_N[label_N >= 0]):
                mine_n2 = place_N2[label_N == label]
                x, y = mine_n2[np.linalg.norm(mine_n2 - np.median(mine_n2, 0), axis=1).argmin()]
                axes.text(x, y, short(names[label]), gid="halo", ha="center", va="center", fontsize=13)
        axes.axis("off")
        axes.margins(0.03)
        return to_svg(figure, what)


def in_turns(label_N: NDArray[np.int64], turns: int = 4) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Rows by class, a quarter of each class at a time, so that no class lies on top of all others."""
    rows = [(int(label), np.flatnonzero(label_N == label)) for label in np.unique(label_N)]
    for turn in range(turns):
        yield from ((label, mine[turn::turns]) for label, mine in rows if len(mine[turn::turns]))
