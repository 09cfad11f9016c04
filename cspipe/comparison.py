"""The table of a sweep: every method's accuracy in every cell, and the frozen content-style head minus it."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspipe.headtrain.evaluate import difference, interval, split_means
from cspipe.headtrain.runs import write_atomic
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.store.meta import canonical
from cspipe.terminal import print_table, share, span

Row = dict[str, Any]
Record = Mapping[str, Any]
PLACE = ("backbone", "dataset", "labels", "regime", "setting")
COLUMNS = (*PLACE, "method", "mean", "ci95_low", "ci95_high", "n", "difference", "difference_low", "difference_high")


def compare_cells(records: Sequence[Record]) -> list[Row]:
    """One row a cell and method, for the cells that are done.

    Args:
        records: of the cells.

    Returns:
        Rows with the cell's place and `method`, `mean` accuracy, `ci95`, `n` (split seeds; training seeds are averaged
        first), `difference` and `difference_ci95`: the frozen content-style head of the same backbone, data set, labels
        and setting minus the row, paired by split seed; null for that head itself and where there is none.
    """
    done = [record for record in records if record["state"] == "done"]
    frozen = [record for record in done if record["regime"] == "frozen"]
    ours = {start_of(record): split_means(record["results"]).get(MAIN_METHOD, {}) for record in frozen}
    rows = []
    for record in done:
        for method, means in split_means(record["results"]).items():
            reference = {} if is_reference(record, method) else ours.get(start_of(record), {})
            versus = difference(reference, means)
            rows.append({
                **{key: record[key] for key in PLACE}, "method": method,
                "mean": float(np.mean(list(means.values()))), "ci95": interval(list(means.values())), "n": len(means),
                "difference": versus["mean_difference"] if versus else None,
                "difference_ci95": versus["ci95"] if versus else None,
            })  # fmt: skip
    return rows


def start_of(record: Record) -> bytes:
    """What a trainable cell shares with the frozen cell that it starts from."""
    return canonical({part: record["identity"][part] for part in ("extract", "head")})


def is_reference(record: Record, method: str) -> bool:
    """True for the row that all others of its group are compared with."""
    return record["regime"] == "frozen" and method == MAIN_METHOD


def write_csv(path: Path, table: Sequence[Row]) -> None:
    """The table as comma-separated values; what there is not stays empty."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in table:
        low, high = row["ci95"] or (None, None)
        difference_low, difference_high = row["difference_ci95"] or (None, None)
        figures = (row["mean"], low, high, row["n"], row["difference"], difference_low, difference_high)
        writer.writerow([*(row[key] for key in (*PLACE, "method")), *figures])
    write_atomic(path, page.getvalue())


def print_comparison(table: Sequence[Row]) -> None:
    """A table for each backbone and data set; a place that all its rows share stands in its title.

    Where regimes and settings both vary, each setting has a table of its own: a line has to fit 100 columns.
    """
    columns = [key for key in ("labels", "regime", "setting") if len({row[key] for row in table}) > 1]
    columns = [key for key in columns if key != "setting" or "regime" not in columns]
    titles = [key for key in PLACE if key not in columns]
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in table:
        groups.setdefault(tuple(row[key] for key in titles), []).append(row)
    for place, rows in groups.items():
        backbone, dataset, *rest = (named(key, value) for key, value in zip(titles, place, strict=True))
        header = (*columns, "method", "accuracy [95 %]", f"{MAIN_METHOD} minus it", "n")
        print_table(", ".join([f"{backbone} on {dataset}", *rest]), header, [printed(row, columns) for row in rows])
    if table:
        print(f"n: labelled splits. Differences: points, of the frozen {MAIN_METHOD} head, paired by split.")


def named(key: str, value: object) -> str:
    """A place as words of a title."""
    words = {"labels": f"{value} labels", "regime": f"backbone {value}", "setting": f"setting {value}"}
    return words.get(key, str(value))


def printed(row: Row, places: Sequence[str]) -> list[object]:
    """The cells of a row of the terminal's table."""
    accuracy = share(row["mean"]) + (f" {span(row['ci95'])}" if row["ci95"] else "")
    versus = "-" if row["difference"] is None else f"{100 * row['difference']:+.1f}"
    if row["difference_ci95"]:
        versus += f" {span(row['difference_ci95'], signed=True)}"
    return [*(row[key] for key in places), row["method"], accuracy, versus, row["n"]]
