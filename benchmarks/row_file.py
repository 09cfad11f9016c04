"""A file of finished cells, one line of JSON each, that a study which was stopped goes on with."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
