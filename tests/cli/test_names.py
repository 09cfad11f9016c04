"""Names are data: classes, files and images may be called anything, and are only ever shown as text."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from rich.markup import render

from cspipe.answers import Answer, CsvSink
from cspipe.headtrain.cells import safe_cell
from cspipe.terminal import plain

CLASSES = ("<script>alert(1)</script>", "=cmd()", "red\x1b[31m")
FILES = ("=cmd('x')!A0.png", "green\x1b[32m.png", "@sum.png", "<img src=x onerror=alert(1)>.png", "[bold]loud.png")
SMALL = ["--set", "steps=10", "--set", "components=8", "--set", "hidden=8", "--seeds", "1"]


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Three classes of twelve pictures, class and file names hostile; in a folder called like a formula too."""
    root = tmp_path_factory.mktemp("names") / "-1+album"
    rng = np.random.default_rng(0)
    for number in range(36):
        folder = root / CLASSES[number % 3].replace("/", "\u2215")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8) + np.uint8(80 * (number % 3))
        Image.fromarray(pixels).save(folder / (FILES[number // 3] if number // 3 < len(FILES) else f"{number}.png"))
    return root


@pytest.fixture(scope="module")
def studied(album, tmp_path_factory):
    """A head run on that album: where stores and runs are, and everything that the commands printed."""
    from typer.testing import CliRunner

    from cspipe.cli import app

    root = tmp_path_factory.mktemp("studied")
    places = ["--stores", str(root / "stores"), "--runs", str(root / "runs")]
    said = ""
    for arguments in (["extract", "lite0", str(album), "--image-px", "32"], ["head", *SMALL], ["report"], ["ls"]):
        done = CliRunner().invoke(app, [*arguments, *places], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        said += done.output
    return root, places, said


def run_of(root):
    (run,) = (root / "runs").glob("*-head-*")
    return run


def test_the_terminal_shows_escapes_and_obeys_none(studied, cspipe, album):
    root, places, said = studied
    assert not re.search(r"\x1b\[3[12]m", said)
    (album / CLASSES[1] / "bad\x1b[35m.png").write_bytes(b"broken")
    code, out, err = cspipe("predict", run_of(root), album, *places, "--out", root / "answers.csv")
    assert code == 0 and "\\x1b[35m.png: no known image format" in err
    assert "\x1b[35m" not in out + err and "\x1b[31m" not in out + err


def test_the_page_holds_names_as_text_alone(studied):
    root, _, _ = studied
    page = (run_of(root) / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page or "\\u003cscript" in page


def test_no_cell_of_the_csv_begins_like_a_formula_or_holds_a_control_character(studied, cspipe, album):
    root, places, _ = studied
    out = root / "cells.csv"
    assert cspipe("predict", run_of(root), album, *places, "--out", out)[0] == 0
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    with out.open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\uff1d")]
    assert "'=cmd()" in cells and any("green\\x1b[32m.png" in cell for cell in cells)


def test_json_holds_names_as_they_are(studied, cspipe, album):
    root, places, _ = studied
    code, out, _ = cspipe("predict", run_of(root), album, *places, "--quiet", "--json")
    told = json.loads(out)
    assert code == 0 and "\x1b" not in out
    assert {entry["path"].split("/")[-1] for entry in told["predictions"]} >= set(FILES)
    assert set(told["classes"]) <= {name.replace("/", "\u2215") for name in CLASSES}


def test_suggested_names_are_read_back_from_their_csv(studied, cspipe):
    root, places, _ = studied
    out = root / "todo.csv"
    more = ["head", *SMALL, "--labels", "9", "--method", "content-style"]
    assert cspipe(*more, *places[:2], "--runs", root / "fewer", "--quiet")[0] == 0
    assert cspipe("suggest", "--n", "27", "--out", out, *places[:2], "--runs", root / "fewer", "--quiet")[0] == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert not [cell for line in lines for cell in line.values() if cell[:1] in tuple("=+-@")]
    for line in lines:
        line |= {"row": "", "label": line["guess"]}
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    code, told, _ = cspipe(*more, "--labels-from", out, *places[:2], "--runs", root / "again", "--quiet", "--json")
    assert code == 0 and json.loads(told)["given_labels"] == 27


@pytest.mark.parametrize(
    ("name", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), ("\t=1", "\\t=1"), ("\r=1", "\\r=1"),
     ("\uff1d1", "'\uff1d1"), ("cat", "cat"), ("a=1", "a=1"), ("\x1b[0m", "\\x1b[0m"), ("", "")],
)  # fmt: skip
def test_a_cell_is_never_a_formula(name, cell):
    assert safe_cell(name) == cell


def test_a_line_end_or_quote_in_a_name_stays_in_its_cell(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        CsvSink(file).write([Answer('a\nb,"c".png', "=x\n@y", 0.5, False), Answer("d.png", None, None, True, "=bad")])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [['a\\nb,"c".png', "'=x\\n@y", "0.500000", "false", ""], ["d.png", "", "", "true", "'=bad"]]


def test_markup_of_the_terminal_library_is_text_too(capsys):
    from cspipe.terminal import print_table

    print_table("[bold]title", ("name",), [("[bold]loud.png",), ("x\x1b[31m",)])
    out = capsys.readouterr().out
    assert "[bold]title" in out and "[bold]loud.png" in out and "\\x1b[31m" in out
    assert render("[bold]loud").plain == "loud"  # what would have happened
    assert plain("a\x07b") == "a\\x07b"
