"""Files of predictions: CSV, JSON or Parquet, written as they come, whole or not at all."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from cspipe.headtrain.cells import safe_cell
from cspipe.store.errors import MissingDataError, SettingError

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "json", "parquet")
COLUMNS = ("path", "class", "probability", "abstain", "problem")


@dataclass(frozen=True)
class Answer:
    """What is said of one image; a bad one has a problem and neither class nor probability."""

    path: str
    name: str | None
    probability: float | None
    abstain: bool
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        """By the names of the columns."""
        return dict(zip(COLUMNS, asdict(self).values(), strict=True))


class Sink(Protocol):
    """Where answers go."""

    def write(self, answers: Sequence[Answer]) -> None:
        """Adds some."""

    def close(self) -> None:
        """Ends the file."""


class CsvSink:
    """One line an image; names are text, never formulas, see `cspipe.headtrain.cells`."""

    def __init__(self, file: TextIO) -> None:
        self.writer = csv.writer(file, lineterminator="\n")
        self.writer.writerow(COLUMNS)

    def write(self, answers: Sequence[Answer]) -> None:
        """Adds lines."""
        for told in answers:
            probability = "" if told.probability is None else f"{told.probability:.6f}"
            abstain = "true" if told.abstain else "false"
            names = (safe_cell(text or "") for text in (told.path, told.name, told.problem))
            path, name, problem = names
            self.writer.writerow((path, name, probability, abstain, problem))

    def close(self) -> None:
        """Nothing is left to write."""


class JsonSink:
    """One array of objects, one a line."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.begun = file, False
        file.write("[")

    def write(self, answers: Sequence[Answer]) -> None:
        """Adds objects."""
        for told in answers:
            self.file.write((",\n" if self.begun else "\n") + json.dumps(told.record(), allow_nan=False))
            self.begun = True

    def close(self) -> None:
        """Ends the array."""
        self.file.write("\n]\n")


class ParquetSink:
    """A row group for every lot of answers."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as arrow
            from pyarrow.parquet import ParquetWriter
        except ImportError as error:
            raise MissingDataError(
                "Parquet needs pyarrow: run pip install 'content-style-pipeline[datasets]', or write .csv or .json."
            ) from error
        kinds = (arrow.string(), arrow.string(), arrow.float64(), arrow.bool_(), arrow.string())
        self.schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
        self.table, self.writer = arrow.Table, ParquetWriter(path, self.schema)

    def write(self, answers: Sequence[Answer]) -> None:
        """Adds a row group."""
        self.writer.write_table(self.table.from_pylist([told.record() for told in answers], schema=self.schema))

    def close(self) -> None:
        """Writes the footer."""
        self.writer.close()


def format_of(out: Path | None, wanted: str | None) -> Format:
    """The format that is asked for, else that of the file's suffix, else CSV.

    Raises:
        SettingError: neither tells, or Parquet without a file.
    """
    told = wanted or (out.suffix.lower().lstrip(".") if out else "csv")
    for known in FORMATS:
        if told == known:
            if known == "parquet" and out is None:
                raise SettingError("Parquet is not written to a terminal: name a file with --out answers.parquet.")
            return known
    raise SettingError(f"answers are written as {', '.join(FORMATS)}; {told!r} was given: use --format or a suffix.")


@contextmanager
def sink_of(out: Path, kind: Format) -> Iterator[Sink]:
    """A file of answers under a partial name, which becomes `out` when all is written; its folder is made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    try:
        if kind == "parquet":
            sink: Sink = ParquetSink(partial)
            yield sink
            sink.close()
        else:
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                sink = CsvSink(file) if kind == "csv" else JsonSink(file)
                yield sink
                sink.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
