"""Labels that a person gave in a CSV file: what `cspipe suggest` wrote, filled in."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspipe.headtrain.cells import safe_cell
from cspipe.store import Store
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, unknown_name

HEADER = "a first line with `label` and with `row` or `path`, such as row,path,label"


def read_labels(paths: Sequence[Path], store: Store) -> dict[int, int]:
    """Class number of each row id that the files give a label to; lines without a label are passed over.

    Args:
        paths: the files. Images are known by the store's row id or by the path that the store has of them, labels by
            the name of the class.
        store: of those images.

    Raises:
        MissingDataError: no such file, or an image that is not in the training rows.
        SettingError: no CSV of that kind, no label in it, two labels for one image, or an unknown class.
        MismatchError: row id and path of a line belong to different images.
    """
    train = store["train"]
    row_id, names = train.row_id(), [safe_cell(name) for name in train.path()]
    by_path, known = dict(zip(names, row_id.tolist(), strict=True)), dict(zip(row_id.tolist(), names, strict=True))
    class_number = {safe_cell(name): number for number, name in enumerate(store.class_names)}
    given: dict[int, int] = {}
    for path in paths:
        filled = list(filled_lines(path))
        for line, cells in filled:
            row = row_of(cells, by_path, known, f"{path}, line {line}")
            label = safe_cell(cells["label"])
            if label not in class_number:
                raise unknown_name(f"class in {path}, line {line},", cells["label"], store.class_names)
            if given.setdefault(row, class_number[label]) != class_number[label]:
                raise SettingError(f"{path}, line {line}: row {row} has another label already: leave one of them out.")
        if not filled:
            raise SettingError(f"{path} holds no label: write the name of a class into its column `label`.")
    return given


def filled_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells by column of every line that has a label."""
    if not path.is_file():
        raise MissingDataError(f"no file at {path}: --labels-from takes a CSV with {HEADER}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            columns = lines.fieldnames or []
            if "label" not in columns or not {"row", "path"} & set(columns):
                raise SettingError(f"{path} has the columns {', '.join(columns) or 'none'}: it needs {HEADER}.")
            for cells in lines:
                told = {name: (cells.get(name) or "").strip() for name in ("row", "path", "label")}
                if told["label"]:
                    yield lines.line_num, told
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"{path} is no CSV file in UTF-8 ({error}): save it as one, with {HEADER}.") from error


def row_of(cells: Mapping[str, str], by_path: Mapping[str, int], known: Mapping[int, str], where: str) -> int:
    """Row id of one line's image."""
    name = safe_cell(cells["path"]) if not cells["path"].startswith("'") else cells["path"]
    if not cells["row"]:
        if name not in by_path:
            raise MissingDataError(f"{where}: {cells['path'] or 'an empty path'} is no training image of this store.")
        return by_path[name]
    row = int(cells["row"]) if cells["row"].isdecimal() else -1
    if row not in known:
        raise MissingDataError(f"{where}: the store has no training row {cells['row']}.")
    if name and name != known[row]:
        raise MismatchError(
            f"{where}: row {row} of this store is {known[row]}, not {cells['path']}. The file belongs to another "
            "store; leave out its column `row`."
        )
    return row


def with_given(
    label_N: NDArray[np.int64], row_id_N: NDArray[np.int64], given: Mapping[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels with the given ones put over them, and the positions `(G,)` of those rows.

    Raises:
        SettingError: a given row is not among these: its image is gone or bad, or it is a dev row.
    """
    at = np.flatnonzero(np.isin(row_id_N, list(given)))
    if len(at) < len(given):
        lost = sorted(set(given) - set(row_id_N[at].tolist()))
        raise SettingError(
            f"{len(lost)} rows that were given a label are no training rows here, the first is row {lost[0]}: its "
            "image is gone, or it is one of the dev rows. Leave it out."
        )
    label_N = label_N.copy()
    label_N[at] = [given[int(row)] for row in row_id_N[at]]
    return label_N, at
