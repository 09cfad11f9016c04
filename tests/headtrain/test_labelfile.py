"""Labels that a person gave in a CSV file."""

import numpy as np
import pytest

from cspipe.headtrain.cells import safe_cell
from cspipe.headtrain.headfile import load_head
from cspipe.headtrain.labelfile import read_labels, with_given
from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.headtrain.run import run_head
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, UnknownNameError


class Split:
    def __init__(self, paths):
        self.paths = paths

    def row_id(self):
        return np.arange(len(self.paths)) + 10

    def path(self):
        return self.paths


class Table:
    """What read_labels asks of a store."""

    class_names = ("cat", "=dog", "<b>")

    def __init__(self, paths):
        self.train = Split(paths)

    def __getitem__(self, name):
        assert name == "train"
        return self.train


@pytest.fixture
def table():
    return Table(["a.png", "=cmd().png", "red\x1b[31m.png", 'd,"e".png'])


@pytest.fixture
def given(table, tmp_path):
    """A function (text of the file) -> the labels that it gives."""

    def read(text):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        return read_labels([tmp_path / "labels.csv"], table)

    return read


def test_rows_are_known_by_number_or_by_path_and_empty_labels_are_passed_over(given):
    assert given("row,path,label\n10,a.png,cat\n11,,\n12,,<b>\n") == {10: 0, 12: 2}
    assert given("path,label\na.png,cat\n") == {10: 0}
    assert given("\ufeffrow,label\n10,cat\n") == {10: 0}


def test_several_files_add_up_and_may_agree_but_not_differ(table, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("row,label\n10,cat\n")
    second.write_text("row,label\n10,cat\n12,<b>\n")
    assert read_labels([first, second], table) == {10: 0, 12: 2}
    second.write_text("row,label\n10,<b>\n")
    with pytest.raises(SettingError, match=r"second\.csv, line 2: row 10 has another label"):
        read_labels([first, second], table)


def test_names_that_were_made_safe_are_read_back(given, table):
    lines = [f"{safe_cell(path)},{safe_cell('=dog')}" for path in table.train.paths[:3]]
    assert given("path,label\n" + "\n".join(lines)) == {10: 1, 11: 1, 12: 1}
    assert given('path,label\n"d,""e"".png",=dog\n=cmd().png,cat\n') == {13: 1, 11: 0}


FAULTS = {
    "row,label\n10,dgo\n": (UnknownNameError, "unknown class in .*labels.csv, line 2,.*did you mean"),
    "row,label\n99,cat\n": (MissingDataError, "line 2: the store has no training row 99"),
    "path,label\nz.png,cat\n": (MissingDataError, "line 2: z.png is no training image"),
    "row,path,label\n10,b.png,cat\n": (MismatchError, "row 10 of this store is a.png, not b.png"),
    "row,label\n10,cat\n10,<b>\n": (SettingError, "line 3: row 10 has another label already"),
    "row,label\n10,\n": (SettingError, "holds no label: write the name of a class"),
    "image;label\n1;cat\n": (SettingError, "has the columns image;label: it needs"),
    "": (SettingError, "has the columns none: it needs"),
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_says_where_and_what_to_do(given, text):
    kind, words = FAULTS[text]
    with pytest.raises(kind, match=words):
        given(text)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(table, tmp_path):
    with pytest.raises(MissingDataError, match="--labels-from takes a CSV with a first line"):
        read_labels([tmp_path / "none.csv"], table)
    (tmp_path / "sheet.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(SettingError, match="no CSV file in UTF-8"):
        read_labels([tmp_path / "sheet.csv"], table)


def test_given_labels_win_and_rows_that_are_not_there_are_refused():
    label, at = with_given(np.array([-1, 1, 2]), np.array([5, 3, 9]), {5: 0, 9: 1})
    assert label.tolist() == [0, 1, 1] and at.tolist() == [0, 2]
    with pytest.raises(SettingError, match=r"1 rows that were given a label .* the first is row 7"):
        with_given(np.array([-1, 1, 2]), np.array([5, 3, 9]), {7: 0})


def test_every_draw_is_the_former_one_with_the_given_rows_added(store):
    plain = read_rows(store)
    before = labelled_positions(plain, 6, 3, "balanced")
    free = np.setdiff1d(np.arange(len(plain.label_N)), np.concatenate(list(before.values())))[:2]
    given = {int(plain.row_id_N[place]): 0 for place in free}
    rows = read_rows(store, given=given)
    assert rows.label_N[free].tolist() == [0, 0]
    after = labelled_positions(rows, 6, 3, "balanced")
    for seed, at in before.items():
        assert after[seed].tolist() == np.union1d(at, free).tolist()


def test_a_run_learns_from_the_given_labels_and_its_heads_remember_them(store, quick, tmp_path):
    rows = read_rows(store)
    (labelled,) = labelled_positions(rows, 6, 1, "balanced").values()
    free = np.setdiff1d(np.arange(len(rows.label_N)), labelled)[:30]
    lines = [f"{rows.row_id_N[place]},{rows.class_names[rows.label_N[place]]}" for place in free]
    (tmp_path / "labels.csv").write_text("\n".join(["row,label", *lines]))
    few, more = (
        run_head(store=store, runs=tmp_path / "runs", labels=6, seeds=1, methods=["logistic", "content-style"],
                 settings=quick, labels_from=files)
        for files in ((), [tmp_path / "labels.csv"])
    )  # fmt: skip
    assert (few["labels"], few["given_labels"], more["labels"], more["given_labels"]) == (6, 0, 36, 30)
    assert more["summary"]["logistic"]["mean"] > few["summary"]["logistic"]["mean"] + 0.02
    saved = load_head(next((tmp_path / "runs").glob(f"{more['run'].split('/')[-1]}/heads/content-style-0.safetensors")))
    assert saved.given_labels == {int(rows.row_id_N[place]): int(rows.label_N[place]) for place in free}
    assert set(saved.labelled_row_id.tolist()) >= set(saved.given_labels)
