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
