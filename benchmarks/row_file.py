"""A file of finished cells, one line of JSON each, that a study which was stopped goes on with."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from cspipe.headtrain.runs import environment

Row = dict[str, Any]
Cell = TypeVar("Cell")
"""A frozen dataclass that names one line."""


def read_rows(path: Path) -> list[Row]:
    """Rows of the file; a line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def add_row(path: Path, row: Row) -> None:
    """One line more; a line that was cut off before it is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.is_file() and not path.read_text(encoding="utf-8").endswith("\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(row, allow_nan=False) + "\n")


def finish_cells(path: Path, cells: Iterable[Cell], key: str, measure: Callable[[Cell], Row]) -> None:
    """Measures every cell that the file does not hold with this key yet; each is a line as soon as it is done."""
    for cell in cells:
        place = {**asdict(cell), "key": key}  # type: ignore[call-overload]
        if any(place.items() <= row.items() for row in read_rows(path)):
            continue
        print(f"{cell}", file=sys.stderr, flush=True)
        begun, cpu = time.perf_counter(), time.process_time()
        row = {**place, **measure(cell)}
        row |= {"cell_minutes": (time.perf_counter() - begun) / 60, "cpu_minutes": (time.process_time() - cpu) / 60,
                "command": shlex.join(sys.argv), "environment": environment()}  # fmt: skip
        add_row(path, row)
