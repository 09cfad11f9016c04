"""The study script: which cells in which order, what is done again and what is not."""

import json
from dataclasses import asdict

import pytest

from cspipe.store.errors import SettingError


@pytest.fixture(scope="module")
def study(script_of):
    return script_of("finetune")


@pytest.fixture
def told(study, tmp_path):
    return lambda *more: study.parse(["--work", str(tmp_path), "--labels", "100", "1000", "--splits", "2", *more])


def test_every_regime_with_and_without_the_regulariser_and_the_dearest_place_last(study, told):
    cells = list(study.all_cells(told()))
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * (2 + 4)
    assert {(cell.dataset, cell.labels) for cell in cells[-12:]} == {("mnist-yellow-stripes", 1000)}
    one = [cell for cell in cells if (cell.dataset, cell.labels, cell.split_seed) == ("mnist", 100, 1)]
    assert [(cell.regime, cell.method, cell.weight) for cell in one] == [
        ("frozen", "content-style", 0), ("frozen", "supervised", 0),
        ("fine-tuned", "content-style", 0), ("fine-tuned", "content-style", 0.1),
        ("fine-tuned", "supervised", 0), ("fine-tuned", "supervised", 0.1),
    ]  # fmt: skip


def test_finished_cells_are_left_alone_unless_a_setting_changed_and_a_torn_line_is_done_again(
    study, told, monkeypatch, capsys
):
    measured = []
    frozen = {"accuracy": 0.8, "cka": 1.0, "minutes": 0.1}
    monkeypatch.setattr(study, "measure", lambda cell, _: measured.append(cell) or frozen)
    arguments = ["--work", str(told().work), "--labels", "100", "--splits", "2", "--datasets", "mnist"]
    study.main(arguments)
    assert len(measured) == 12
    rows = told().out.read_text().splitlines()
    assert {**json.loads(rows[3]), **asdict(measured[3])} == json.loads(rows[3])
    study.main(arguments)
    assert len(measured) == 12
    told().out.write_text("\n".join(rows[:-1]) + "\n" + rows[-1][:40])
    study.main(arguments)
    study.main(arguments)
    assert len(measured) == 13
    study.main([*arguments, "--set", "lr=1e-4"])
    assert len(measured) == 25
    assert "| frozen | content-style | none | 2 | 0.800 |" in capsys.readouterr().out


def test_an_unknown_setting_is_refused(study, told):
    with pytest.raises(SettingError, match=r"unknown key finetune\.epoch; did you mean epochs"):
        study.make_study(told("--set", "epoch=3"))
    assert study.make_study(told("--set", "epochs=3")).tuning.epochs == 3
