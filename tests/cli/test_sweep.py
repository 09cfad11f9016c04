"""`cspipe sweep` on a small digits store: cell by cell, stopped and gone on with, failing in part, fine-tuning."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cspipe import stages
from cspipe.headtrain.evaluate import interval
from cspipe.store.lock import StoreLock

BASE = """
[extract]
image_px = 32
limit = 120
[head]
seeds = 2
methods = ["content-style", "logistic"]
[head.settings]
steps = 20
cluster_terms = "always"
components = 32
[finetune]
unfreeze_blocks = 1
batch = 32
"""


@pytest.fixture
def sweep(cspipe, made, tmp_path):
    """A function (section [sweep], options) -> exit code, document, standard error; one folder of runs."""

    def run(section, *options):
        (tmp_path / "pipeline.toml").write_text(BASE + section)
        flags = ["--stores", made / "stores", "--runs", tmp_path / "runs", "--config", tmp_path / "pipeline.toml"]
        code, out, err = cspipe("sweep", "--json", *flags, *options)
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture
def counted(monkeypatch):
    """Names of the stages as they are called; a stage can be told to stop before its n-th call."""
    calls, stop = [], {}

    def wrap(name):
        work = getattr(stages, name)

        def counting(*arguments, **options):
            if stop.get(name) == calls.count(name):
                raise KeyboardInterrupt
            calls.append(name)
            return work(*arguments, **options)

        monkeypatch.setattr(stages, name, counting)

    for name in ("extract", "head", "finetune"):
        wrap(name)
    return calls, stop


def cell_files(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*-sweep-*/cells/*.json")}


GRID = '[sweep]\nlabels = [20, 40]\ntrain_seeds = 2\nsettings = [{}, {name = "no style", lambda_s = 0.0}]\n'


def test_a_sweep_runs_every_cell_and_gives_one_table(sweep, counted, tmp_path):
    code, told, _ = sweep(GRID)
    calls, _ = counted
    assert code == 0 and told["failed"] == [] and told["seconds"] > 0
    assert calls == ["extract", "head", "head", "head", "head"], "the store is brought up to date once"
    places = [(cell["labels"], cell["setting"], cell["regime"]) for cell in told["cells"]]
    assert places == [(20, "default", "frozen"), (20, "no style", "frozen"), (40, "default", "frozen"),
                      (40, "no style", "frozen")]  # fmt: skip
    assert len(told["table"]) == 8
    for cell in told["cells"]:
        assert len(cell["results"]) == 2 * 2 * 2 and cell["state"] == "done"
        means = {}
        for row in cell["results"]:
            means.setdefault((row["method"], row["split_seed"]), []).append(row["accuracy"])
        by_split = {key: np.mean(values) for key, values in means.items()}
        ours, theirs = ([by_split[name, seed] for seed in range(2)] for name in ("content-style", "logistic"))
        rows = {row["method"]: row for row in told["table"]
                if (row["labels"], row["setting"]) == (cell["labels"], cell["setting"])}  # fmt: skip
        assert rows["content-style"]["mean"] == pytest.approx(np.mean(ours)) and rows["logistic"]["n"] == 2
        assert rows["content-style"]["ci95"] == pytest.approx(interval(ours))
        assert rows["logistic"]["difference"] == pytest.approx(np.mean(np.subtract(ours, theirs)))
    (run,) = (tmp_path / "runs").glob("*-sweep-*")
    assert told["run"] == str(run)
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "plan.json", "cells", "runs", "report.json", "report.html", "table.csv",
    }  # fmt: skip
    assert len((run / "table.csv").read_text().splitlines()) == 9


def test_settings_and_labels_of_a_cell_reach_its_head_run(sweep):
    _, told, _ = sweep(GRID)
    for cell in told["cells"]:
        folder = Path(told["run"], "runs", cell["run"])
        report = json.loads((folder / "report.json").read_text())
        assert report["labels"] == cell["labels"] and report["results"] == cell["results"]
        assert ('"D_s"' in (folder / "metrics.jsonl").read_text()) == (cell["setting"] == "default")


def test_a_finished_sweep_is_printed_again_and_nothing_runs(sweep, counted):
    first = sweep(GRID)
    calls, _ = counted
    calls.clear()
    assert sweep(GRID)[:2] == first[:2]
    assert calls == []


def test_fresh_begins_anew_and_another_grid_is_another_sweep(sweep, counted, tmp_path):
    small = "[sweep]\nlabels = [20]\n"
    first, again = sweep(small)[1], sweep(small, "--fresh")[1]
    assert first["run"] != again["run"] and first["table"] == again["table"]
    assert counted[0].count("head") == 2
    sweep(small + "seeds = 1\n")
    assert counted[0].count("head") == 3 and len(list((tmp_path / "runs").glob("*-sweep-*"))) == 3


def test_a_sweep_that_was_stopped_goes_on_with_the_cells_that_are_missing(sweep, counted, tmp_path):
    calls, stop = counted
    stop["head"] = 2
    assert sweep(GRID)[0] == 130
    done = cell_files(tmp_path)
    assert len(done) == 2
    stop.clear()
    calls.clear()
    code, told, _ = sweep(GRID)
    assert code == 0 and calls.count("head") == 2 and len(told["cells"]) == 4
    assert {name: when for name, when in cell_files(tmp_path).items() if name in done} == done


def test_a_sweep_that_was_killed_loses_no_finished_cell(sweep, counted, made, tmp_path):
    (tmp_path / "pipeline.toml").write_text(BASE + GRID.replace("20, 40", "20, 30, 40, 50, 60"))
    flags = {"--stores": made / "stores", "--runs": tmp_path / "runs", "--config": tmp_path / "pipeline.toml"}
    command = [sys.executable, "-m", "cspipe.cli", "sweep", "--quiet"]
    command += [str(word) for flag in flags.items() for word in flag]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not cell_files(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    done = cell_files(tmp_path)
    assert 1 <= len(done) < 10
    code, told, _ = sweep(GRID.replace("20, 40", "20, 30, 40, 50, 60"))
    assert code == 0 and counted[0].count("head") == 10 - len(done) == len(told["cells"]) - len(done)
    assert cell_files(tmp_path).items() >= done.items()


def test_a_cell_that_fails_is_told_the_others_run_and_only_it_is_tried_again(sweep, counted):
    section = "[sweep]\nlabels = [20, 5000, 40]\n"
    code, told, err = sweep(section)
    assert code == 1 and [cell["state"] for cell in told["cells"]] == ["done", "failed", "done"]
    (fault,) = told["failed"]
    assert fault["cell"] == "lite0 on digits, 5000 labels, frozen" and "5000 labels were asked for" in fault["message"]
    assert fault["message"] in err and {row["labels"] for row in told["table"]} == {20, 40}
    calls, _ = counted
    calls.clear()
    assert sweep(section)[0] == 1
    assert calls == ["extract", "head"]


def test_a_store_that_cannot_be_made_fails_its_cells_after_one_try(sweep, counted):
    section = (
        '[sweep]\ndatasets = ["mnist", "digits"]\nlabels = [20, 40]\n[sweep.dataset.mnist]\ndata_dir = "nowhere"\n'
    )
    code, told, _ = sweep(section)
    assert code == 1 and counted[0] == ["extract", "extract", "head", "head"]
    assert [cell["state"] for cell in told["cells"]] == ["failed", "failed", "done", "done"]
    assert all("nowhere" in fault["message"] for fault in told["failed"])


def test_an_unknown_method_is_refused_before_any_work(sweep, tmp_path):
    code, _, err = sweep('[sweep]\nmethods = ["content-stile"]\n')
    assert code == 1 and "did you mean 'content-style'?" in err and not (tmp_path / "runs").exists()


def test_two_processes_do_not_work_on_one_sweep(sweep):
    section = "[sweep]\nlabels = [20]\n"
    run = sweep(section)[1]["run"]
    lock = StoreLock(Path(run))
    code, _, err = sweep(section)
    assert code == 1 and f"another cspipe sweep is at work on {run}" in err
    lock.release()
    assert sweep(section)[0] == 0


TRAINABLE = '[sweep]\nlabels = [20]\nregimes = ["trainable"]\nmethods = ["content-style"]\n'


def test_a_trainable_cell_trains_the_backbone_from_the_frozen_head_of_every_split(sweep, counted, tmp_path):
    calls, stop = counted
    stop["finetune"] = 1
    assert sweep(TRAINABLE)[0] == 130
    stop.clear()
    code, told, _ = sweep(TRAINABLE)
    assert code == 0 and calls == ["extract", "head", "finetune", "finetune"], "the finished split is not trained again"
    frozen, trainable = told["cells"]
    assert (frozen["regime"], trainable["regime"]) == ("frozen", "trainable")
    assert [row["split_seed"] for row in trainable["results"]] == [0, 1] and len(trainable["runs"]) == 2
    for row, name in zip(trainable["results"], trainable["runs"], strict=True):
        report = json.loads((tmp_path / told["run"] / "runs" / name / "report.json").read_text())
        assert report["accuracy_after"] == row["accuracy"] and report["split_seed"] == row["split_seed"]
        assert report["head_run"].endswith(frozen["run"])
        before = next(r["accuracy"] for r in frozen["results"] if r["split_seed"] == row["split_seed"])
        assert report["accuracy_before"] == before
    assert [(row["regime"], row["n"]) for row in told["table"]] == [("frozen", 2), ("trainable", 2)]
    assert {path.suffix for path in (tmp_path / told["run"] / "cells").iterdir()} == {".json"}


def test_a_trainable_cell_without_its_frozen_cell_is_told(sweep):
    code, told, _ = sweep(TRAINABLE.replace("[20]", "[5000]"))
    assert code == 1
    assert [fault["message"] for fault in told["failed"]][1] == "the frozen cell that it starts from failed."


def test_the_table_is_readable_too(cspipe, made, tmp_path):
    (tmp_path / "pipeline.toml").write_text(BASE + "[sweep]\nlabels = [20]\n")
    code, out, _ = cspipe("sweep", "--quiet", "--stores", made / "stores", "--runs", tmp_path / "runs", "--config",
                          tmp_path / "pipeline.toml")  # fmt: skip
    assert code == 0 and "lite0 on digits, 20 labels, backbone frozen, setting default" in out
    assert "in 1 cell\n" in out and "report.html" in out


def test_a_sweep_is_listed_and_reported_like_other_runs(sweep, cspipe, document, tmp_path, made):
    run = sweep("[sweep]\nlabels = [20]\n")[1]["run"]
    here = ["--stores", made / "stores", "--runs", tmp_path / "runs", "--quiet"]
    (listed,) = document("ls", *here)["runs"]
    assert (listed["command"], listed["labels"], listed["dataset"]) == ("sweep", "20", "digits")
    assert document("report", run, *here)["runs"] == [run]


def test_a_test_data_set_is_an_option_of_head(document, cspipe, made, tmp_path):
    here = ["--stores", made / "stores", "--runs", tmp_path / "runs", "--quiet"]
    code, _, err = cspipe("head", "--test-dataset", "mnist", *here)
    assert code == 1 and "no store of backbone 'lite0' and dataset 'mnist'" in err
    code, _, err = cspipe("head", "--test-dataset", "digits", *here)
    assert code == 1 and "leave out --test-dataset" in err
