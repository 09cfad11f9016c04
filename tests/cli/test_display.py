"""What tables say to a person beside their figures."""

import pytest

from cspipe import display
from cspipe.suggest import print_suggest
from cspipe.terminal import print_table

SPLITS = {"train": {"rows": 1600}, "test": {"rows": 300}}


def head_document(seeds):
    """A head run of so many splits, without methods."""
    return {
        "summary": {}, "paired": {}, "results": [{"split_seed": seed} for seed in range(seeds)], "backbone": "lite0",
        "dataset": "textiles", "labels": 30, "rows": {"judged": 300}, "test_dataset": None, "evaluation": "test",
        "run": "runs/x", "seconds": 1.0,
    }  # fmt: skip


def test_an_extraction_tells_how_many_images_have_a_label_and_the_first_classes():
    document = {"splits": SPLITS, "labelled": {"train": 30, "test": 300}, "class_names": ["a", "b"]}
    told = display.labels_told(document)
    assert told == "with a label: 30 of 1,600 train images, 300 of 300 test images; classes: a, b"
    many = display.labels_told(document | {"class_names": [str(number) for number in range(12)]})
    assert many.endswith("classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")


@pytest.mark.parametrize(("seeds", "title"), [(1, "30 labels, 1 split,"), (5, "30 labels, 5 splits,")])
def test_a_head_run_of_one_split_says_why_it_has_no_interval(seeds, title, capsys):
    display.print_head(head_document(seeds))
    out = capsys.readouterr().out
    assert title in out and ("no intervals: all labels are used" in out) == (seeds == 1)


@pytest.mark.parametrize(
    ("held_to", "told"),
    [
        ({"0": [0.5, 0.3, 0.2], "1": [0.6, 0.3, 0.1]}, "content-style found: c0 55 %, c1 30 %, c2 15 %. If that is"),
        ({"0": [0.36, 0.33, 0.31]}, None),
        (None, None),
    ],
)
def test_class_shares_are_told_where_they_are_not_those_of_the_labels(held_to, told, capsys):
    shares = {"labelled": [1 / 3] * 3, "held_to": held_to} if held_to else None
    display.print_head(head_document(2) | {"class_shares": shares, "class_names": ["c0", "c1", "c2"]})
    out = " ".join(capsys.readouterr().out.split())
    assert (told in out) if told else ("content-style found" not in out)


def test_of_many_class_shares_the_largest_are_named(capsys):
    held = [0.01 * number for number in range(13)] + [0.22]
    shares = {"labelled": [1 / 14] * 14, "held_to": {"0": held}}
    display.print_head(head_document(1) | {"class_shares": shares, "class_names": [f"c{n}" for n in range(14)]})
    assert "c13 22 %, c12 12 %, c11 11 %, c10 10 %, c9 9 % and 9 more." in capsys.readouterr().out


def test_a_title_wider_than_its_table_stays_on_one_line(capsys):
    print_table("a title that is wider than the table below it", ("a",), [(1,)])
    assert capsys.readouterr().out.splitlines()[0] == "a title that is wider than the table below it"


def test_suggestions_tell_which_folder_their_paths_are_of(capsys):
    rows = [{"row": 3, "path": "unlabelled/3.jpg", "guess": "a", "probability": 0.5}]
    document = {"rows": rows, "images": "/data/textiles", "out": "s.csv", "class_names": ["a"], "next": "next"}
    print_suggest(document)
    assert "The paths are of /data/textiles." in capsys.readouterr().out
    print_suggest(document | {"images": None})
    assert "The paths are of" not in capsys.readouterr().out
