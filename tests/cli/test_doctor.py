"""`cspipe doctor`, quiet and verbose, colours, completion, TensorBoard's files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ["--labels", "40", "--seeds", "2", "--set", "steps=20", "--set", "components=16", "--method", "content-style"]


def program(*arguments, **changes):
    """The command line in a process of its own, its output piped."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **changes}
    command = [sys.executable, "-m", "cspipe.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def finding(told, what):
    (found,) = [entry for entry in told["findings"] if entry["what"] == what]
    return found


def test_doctor_tells_versions_devices_hub_and_disk(document, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = document("doctor", "--stores", tmp_path / "stores", "--quiet")
    assert told["problems"] == 0
    assert {"cspipe", "torch", "cpu", "memory", "hub", "stores", "runs", "hub cache"} <= {
        entry["what"] for entry in told["findings"]
    }
    assert finding(told, "hub")["state"] == "note" and "cspipe prefetch" in finding(told, "hub")["advice"]
    assert "GB free" in finding(told, "stores")["found"] and not (tmp_path / "stores").exists()


def test_a_device_that_is_not_there_and_a_missing_library_are_problems(cspipe, monkeypatch):
    import cspipe.doctor as doctor

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "no-such-library"))
    code, out, _ = cspipe("doctor", "--device", "cuda:77", "--json")
    told = json.loads(out)
    assert code == 1 and told["problems"] == 2
    assert "--device cpu" in finding(told, "device")["advice"]
    assert finding(told, "no-such-library")["found"] == "not installed"


@pytest.mark.parametrize(("share", "advised"), [(0.21, True), (0.95, False), (1.8, False)])
def test_bf16_is_advised_where_its_products_were_faster(document, monkeypatch, share, advised):
    monkeypatch.setattr("cspipe.doctor.bf16_share", lambda: share)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cpu = finding(document("doctor"), "cpu")
    assert cpu["state"] == "ok" and f"bf16 take {share:.1f} times as long" in cpu["found"]
    assert ('precision = "bf16"' in cpu["advice"]) == advised


def test_what_bf16_takes_is_measured(monkeypatch):
    from types import SimpleNamespace

    import torch

    from cspipe.doctor import bf16_share

    assert 0 < bf16_share() < 1000
    taken = {torch.bfloat16: 3.0, torch.float32: 2.0}

    class Clock:
        def __init__(self, stmt, *, globals, num_threads):
            self.median = taken[(globals["x"] @ globals["weight"]).dtype]

        def blocked_autorange(self, min_run_time):
            return SimpleNamespace(median=self.median)

    monkeypatch.setattr("torch.utils.benchmark.Timer", Clock)
    assert bf16_share() == 1.5


def test_a_hub_that_does_not_answer_is_told_in_seconds_with_what_to_do(document, monkeypatch):
    def silent(*arguments):
        raise TimeoutError("no answer within 5 s")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("cspipe.extract.weights.hub_commit", silent)
    told = finding(document("doctor"), "hub")
    assert "cannot be reached (no answer within 5 s)" in told["found"] and "lite0 needs no hub" in told["advice"]


def test_little_room_is_noted(document, monkeypatch):
    from shutil import disk_usage

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk_usage(path)._replace(free=10**9))
    told = finding(document("doctor"), "stores")
    assert told["state"] == "note" and "make room" in told["advice"]


def test_piped_output_holds_no_escape_and_quiet_leaves_standard_error_empty(made, tmp_path):
    places = ["--stores", made / "stores", "--runs", tmp_path]
    loud = program("head", *QUICK, *places)
    assert loud.returncode == 0 and "store: " in loud.stderr
    assert "\x1b" not in loud.stdout + loud.stderr and "\r" not in loud.stderr
    quiet = program("head", *QUICK, *places, "--quiet", "--json")
    assert quiet.returncode == 0 and quiet.stderr == "" and json.loads(quiet.stdout)["labels"] == 40


def test_no_color_is_heeded_on_a_terminal(made):
    plain = program("store", "ls", "--stores", made / "stores", FORCE_COLOR="1", NO_COLOR="1")
    coloured = program("store", "ls", "--stores", made / "stores", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="")
    assert not re.search(r"\x1b\[[\d;]*[349][0-7]", plain.stdout) and "lite0" in plain.stdout
    assert "\x1b[" in coloured.stdout


def test_verbose_lets_warnings_of_libraries_through(monkeypatch):
    import logging
    import warnings

    from cspipe.common import Common
    from cspipe.stages import calm

    monkeypatch.setattr(logging.root.manager, "disable", 0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        calm(Common(verbose=True))
        warnings.warn("heard", stacklevel=1)
        assert logging.root.manager.disable == 0
        calm(Common())
        warnings.warn("not heard", stacklevel=1)
        assert logging.root.manager.disable == logging.WARNING
    assert [str(entry.message) for entry in seen] == ["heard"]


def test_shell_completion_knows_commands_and_options():
    commands = program(_CSPIPE_COMPLETE="complete_bash", COMP_WORDS="cspipe pre", COMP_CWORD="1").stdout.split()
    assert {"predict", "prefetch"} <= set(commands) and "head" not in commands
    options = program(_CSPIPE_COMPLETE="complete_bash", COMP_WORDS="cspipe head --la", COMP_CWORD="2").stdout.split()
    assert {"--labels", "--labels-from"} <= set(options)
    script = program("--show-completion", SHELL="/bin/bash")
    assert script.returncode == 0 or "Shell" in script.stderr


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_every_curve_of_a_run(document, made, tmp_path):
    told = document("head", *QUICK, "--stores", made / "stores", "--runs", tmp_path, "--quiet", "--tensorboard")
    run = Path(told["run"])
    assert {path.name for path in (run / "tensorboard").iterdir()} == {"content-style-split-0", "content-style-split-1"}
    seen = scalars(run / "tensorboard" / "content-style-split-1")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["L_c"]) for line in lines if line["split_seed"] == 1]
    assert [entry.step for entry in seen["L_c"]] == [step for step, _ in curve] and len(curve) > 5
    assert [entry.value for entry in seen["L_c"]] == pytest.approx([value for _, value in curve])
    (accuracy,) = [row["accuracy"] for row in told["results"] if row["split_seed"] == 1]
    assert seen["accuracy"][-1].value == pytest.approx(accuracy)


def test_tensorboard_is_asked_for_before_anything_is_trained(cspipe, made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, _, err = cspipe("head", *QUICK, "--stores", made / "stores", "--runs", tmp_path / "runs", "--tensorboard")
    assert code == 1 and "content-style-pipeline[tensorboard]" in err and not (tmp_path / "runs").exists()
