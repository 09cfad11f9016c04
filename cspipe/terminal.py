"""What a person sees: progress and messages on standard error, results on standard output, names shown as text."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def message(text: str) -> None:
    """A line on standard error; control characters in names cannot act on the terminal."""
    print(plain(text), file=sys.stderr)


def plain(text: str) -> str:
    """`text` with control characters shown as escapes, not obeyed."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """One valid JSON document on standard output."""
    print(json.dumps(document, indent=1, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A title and a table on standard output; cells are text, never markup. Numbers are set to the right."""
    table = Table(header_style="bold")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell(value))) for value in row))
    Console().print(Text(plain(title), style="italic"), table, sep="\n")


def cell(value: object) -> str:
    """A value as the text of a table cell."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def share(value: float) -> str:
    """A fraction as per cent."""
    return f"{100 * value:.1f} %"


def span(ci95: Sequence[float] | None, *, signed: bool = False) -> str:
    """An interval of fractions as per cent, or a dash."""
    if ci95 is None:
        return "-"
    sign = "+" if signed else ""
    return f"[{100 * ci95[0]:{sign}.1f}, {100 * ci95[1]:{sign}.1f}]"


@contextmanager
def stage_progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar for every named thing that reports the share of it that is done; on standard error."""
    if quiet or not sys.stderr.isatty():
        yield lambda name, done: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def told(name: str, done: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(plain(name), total=1.0)
            progress.update(bars[name], completed=done)

        yield told
