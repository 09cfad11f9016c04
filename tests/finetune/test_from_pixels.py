"""The script of the predecessor's table: cells, settings, passes that fit the minutes, what is redone, the table."""

import json
from pathlib import Path

import pytest

from cspipe.store.errors import SettingError


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("from_pixels")


@pytest.fixture
def arguments(tmp_path):
    return ["--work", str(tmp_path), "--mnist", "unread", "--splits", "2", "--threads", "1"]


def test_all_methods_of_a_split_come_before_the_next_split(script, arguments):
    cells = [(cell.method, cell.split_seed) for cell in script.all_cells(script.parse(arguments))]
    assert cells == [(method, split) for split in (0, 1) for method in ("content-style", "predecessor", "supervised")]


def test_every_method_starts_from_untrained_heads_and_a_user_may_change_settings(script, arguments):
    study = script.make_study(script.parse(arguments))
    assert (study.tuning.target, study.tuning.stop, study.tuning.augment) == ("image", "never", "")
    assert (study.head.steps, study.head.components, study.head.cluster_terms) == (1, 0, "always")
    changed = script.make_study(script.parse([*arguments, "--set", "batch=64", "--head-set", "lambda_yy=7"]))
    assert (changed.tuning.batch, changed.head.lambda_yy) == (64, 7)
    assert changed.tuning.target == "image" and changed.key != study.key
    with pytest.raises(SettingError, match=r"unknown key finetune\.epoch; did you mean epochs"):
        script.make_study(script.parse([*arguments, "--set", "epoch=3"]))


def test_passes_are_those_that_fit_the_minutes_and_are_timed_once_a_method(script, arguments, monkeypatch):
    timed = []

    def tune(study, store, cell, **changes):
        timed.append((cell.method, changes))
        return {"training_hours": 48 / 3600, "images": 12_000}  # four passes; one of 60,000 takes 60 s

    monkeypatch.setattr(script, "tune", tune)
    study = script.make_study(script.parse(arguments))
    study.runs.mkdir(parents=True)
    passes = [script.passes_of(study, Path("store"), cell) for cell in script.all_cells(study.told)]
    assert passes == [15] * 6
    assert [method for method, _ in timed] == ["content-style", "predecessor"]
    assert timed[0][1] == {"epochs": 4, "limit": script.TIMED_ROWS}
    dev = script.make_study(script.parse([*arguments, "--dev"]))
    assert script.passes_of(dev, Path("store"), script.Cell("content-style", 0)) == 18
    told = script.make_study(script.parse([*arguments, "--epochs", "3"]))
    assert script.passes_of(told, Path("store"), script.Cell("content-style", 0)) == 3
    assert len(timed) == 3


def test_finished_cells_are_left_alone_and_the_table_stands_beside_the_published_figure(
    script, arguments, monkeypatch, capsys
):
    measured = []
    errors = iter([0.02, 0.03, 0.25, 0.03, 0.05, 0.27, 0.5])

    def measure(cell, study):
        measured.append(cell)
        return {"error": next(errors), "passes": 30, "minutes": 14.5}

    monkeypatch.setattr(script, "measure", measure)
    script.main(arguments)
    rows = script.parse(arguments).out.read_text().splitlines()
    assert len(measured) == len(rows) == 6
    script.main(arguments)
    assert len(measured) == 6
    script.parse(arguments).out.write_text("\n".join(rows[:-1]) + "\n" + rows[-1][:30])
    errors = iter([0.27])
    script.main(arguments)
    assert len(measured) == 7
    assert json.loads(script.parse(arguments).out.read_text().splitlines()[-1])["error"] == 0.27
    told = capsys.readouterr().out.splitlines()[-8:]
    assert "| content-style | 2 | 2.50 | [-3.85, 8.85] | 30 | 14.5 |" in told
    assert "| supervised | 2 | 26.00 | [13.29, 38.71] | 30 | 14.5 |" in told
    assert told[-1] == "| published, best pass on test rows: these and D_y on the image | - | 1.41 | - | 100 | - |"
