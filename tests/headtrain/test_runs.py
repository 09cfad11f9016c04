"""Run folders: which is the newest, damaged reports, whole files or none."""

import json
import math
import os

import numpy as np
import pytest

from cspipe.headtrain import runs as folders
from cspipe.store.errors import MissingDataError, StoreError


def finished(runs, name):
    """A run folder of this name with a report."""
    (runs / name).mkdir(parents=True)
    (runs / name / "config.toml").write_text("")
    (runs / name / "report.json").write_text("{}")
    return runs / name


def test_a_run_is_named_by_time_command_and_six_hexadecimal_digits_and_keeps_its_settings(tmp_path):
    run = folders.new_run(tmp_path / "deep" / "runs", "head", "seeds = 3\n")
    assert run.parent == tmp_path / "deep" / "runs"
    time, command, digits = run.name.split("-")
    assert (time[8], time[-1], len(time), command) == ("T", "Z", 16, "head")
    assert len(bytes.fromhex(digits)) == 3
    assert (run / "config.toml").read_text() == "seeds = 3\n"


def test_the_newest_run_is_the_last_finished_one_of_its_command(tmp_path):
    finished(tmp_path, "20240101T000000Z-head-ffffff")
    wanted = finished(tmp_path, "20240102T000000Z-head-000000")
    finished(tmp_path, "20240103T000000Z-finetune-000000")
    (finished(tmp_path, "20240104T000000Z-head-000000") / "report.json").unlink()
    assert folders.newest_run(tmp_path, "head") == wanted
    assert [run.name[:8] for run in folders.all_runs(tmp_path)] == ["20240101", "20240102", "20240103", "20240104"]
    assert len(folders.finished_runs(tmp_path)) == 3


def test_of_two_runs_in_one_second_the_one_begun_later_is_the_newest(tmp_path):
    later = finished(tmp_path, "20240101T000000Z-head-000000")
    sooner = finished(tmp_path, "20240101T000000Z-head-ffffff")
    for run, moment in ((sooner, 10**18), (later, 10**18 + 10**8)):
        os.utime(run / "config.toml", ns=(moment, moment))
    assert folders.newest_run(tmp_path, "head") == later


def test_without_a_finished_run_the_error_says_what_to_do(tmp_path):
    for runs in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingDataError, match=r"no finished cspipe head run under .*Run cspipe head first"):
            folders.newest_run(runs, "head")
    assert folders.all_runs(tmp_path / "nowhere") == []


def test_a_report_comes_back_as_it_was_written(tmp_path):
    folders.write_json(tmp_path / "report.json", {"a": [1, None], "b": 0.5})
    assert folders.read_report(tmp_path) == {"a": [1, None], "b": 0.5}


def test_a_damaged_report_is_named_and_a_missing_one_too(tmp_path):
    with pytest.raises(MissingDataError, match=r"has no report\.json: it is not a finished run"):
        folders.read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"accuracy": 0.9')
    with pytest.raises(StoreError, match=r"report\.json is damaged .*Remove the folder and run the command again"):
        folders.read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(StoreError, match="damaged"):
        folders.read_report(tmp_path)


def test_nan_is_refused_in_a_report_and_the_former_one_stays(tmp_path):
    folders.write_json(tmp_path / "report.json", {"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        folders.write_json(tmp_path / "report.json", {"accuracy": math.nan})
    assert folders.read_report(tmp_path) == {"accuracy": 0.5}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    folders.write_atomic(path, "before")

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        folders.write_atomic(path, "after, and much longer")
    assert path.read_text() == "before"


def test_metrics_are_one_json_object_a_line_and_what_is_not_finite_is_null(tmp_path):
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": -math.inf},
               {"step": 4, "loss": np.float64("inf"), "note": "late"}]  # fmt: skip
    folders.write_metrics(tmp_path, iter(records))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": None},
        {"step": 4, "loss": None, "note": "late"},
    ]  # fmt: skip


def test_environment_is_json_and_names_versions_and_machine():
    told = json.loads(json.dumps(folders.environment(), allow_nan=False))
    import torch

    assert told["torch"] in torch.__version__
    assert told.keys() >= {"cspipe", "git_commit", "python", "timm", "zarr", "numpy", "machine", "cores", "time"}
