import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image


def test_head_gives_the_documented_fields(document, places, made):
    told = document("head", "--labels", "40", "--seeds", "2", "--set", "steps=10", "--set", "components=16", *places)
    assert told["store"].endswith(".zarr") and told["backbone"] == "lite0" and told["dataset"] == "digits"
    assert told["labels"] == 40 and told["seconds"] > 0
    assert {row["method"] for row in told["results"]} == {"content-style", "supervised", "logistic"}
    for row in told["results"]:
        assert set(row) == {"method", "labels", "split_seed", "train_seed", "accuracy"}
        assert 0 <= row["accuracy"] <= 1
    assert set(told["summary"]["content-style"]) == {"mean", "ci95"}
    assert set(told["paired"]) == {"supervised", "logistic"}
    ours = [row["accuracy"] for row in told["results"] if row["method"] == "content-style"]
    theirs = [row["accuracy"] for row in told["results"] if row["method"] == "logistic"]
    difference = np.mean(np.subtract(ours, theirs))
    assert told["paired"]["logistic"]["mean_difference"] == pytest.approx(difference)


def test_a_run_folder_holds_what_is_documented(made):
    (run,) = [
        path for path in (made / "runs").iterdir() if json.loads((path / "report.json").read_text())["labels"] == 40
    ][:1]
    assert run.name.split("-")[1] == "head" and len(run.name.split("-")[2]) == 6
    assert {path.name for path in run.iterdir()} >= {"report.json", "config.toml", "metrics.jsonl", "heads"}
    assert (run / "heads" / "content-style-0.safetensors").is_file()
    assert (run / "heads" / "supervised-1.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"content-style", "supervised"}


def test_ls_lists_backbones_datasets_stores_and_runs(document, places):
    told = document("ls", *places)
    assert {"lite0", "dinov2", "dinov2-s"} <= {entry["name"] for entry in told["backbones"]}
    assert {"digits", "mnist", "mnist-white-stripes"} <= {entry["name"] for entry in told["datasets"]}
    assert told["stores"][0]["complete"] and told["runs"]


@pytest.mark.parametrize("command", [["ls"], ["store", "ls"], ["store", "info"], ["store", "verify"]])
def test_every_listing_is_readable_too(cspipe, places, command):
    code, out, _ = cspipe(*command, *places)
    assert code == 0 and "lite0" in out


def test_store_info_tells_where_tokens_came_from(document, places):
    told = document("store", "info", *places)
    assert told["provenance"]["licence"] == "Apache-2.0" and told["splits"]["train"]["complete"]


def test_store_verify_ends_with_1_where_a_bit_is_flipped(cspipe, places, made, tmp_path):
    import shutil

    copy = tmp_path / "stores"
    shutil.copytree(made / "stores", copy)
    (chunk,) = copy.glob("*.zarr/test/embedding/c/0/0")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    code, out, _ = cspipe("store", "verify", "--stores", copy, "--json")
    assert code == 1 and json.loads(out)["problems"]
    assert cspipe("store", "verify", *places)[0] == 0


def weights_of_another_network(folder):
    from safetensors.numpy import save_file

    path = folder / "other.safetensors"
    save_file({"conv.weight": np.zeros((3, 3), np.float32)}, path)
    return path


FAULTS = {
    "unknown backbone": (["extract", "dinov2-x", "digits"], "unknown backbone 'dinov2-x': did you mean 'dinov2-s'?"),
    "unknown dataset": (["extract", "lite0", "digit"], "did you mean 'digits'?"),
    "missing data directory": (["extract", "lite0", "mnist", "--data-dir", "nowhere"], "--data-dir"),
    "missing weights": (["extract", "dinov2-s", "digits", "--weights", "none.pth"], "no weights at none.pth"),
    "no hub reachable": (["extract", "dinov2-s", "digits"], "--weights FILE"),
    "side that does not fit": (["extract", "dinov2-s", "digits", "--image-px", "100"], "14"),
    "more labels than rows": (["head", "--labels", "5000"], "5000 labels"),
    "class with too few rows": (["head", "--labels", "119"], "fewer labels"),
    "unknown method": (["head", "--method", "content-stile"], "did you mean 'content-style'?"),
    "unknown setting": (["head", "--set", "lambda_ss=1"], "did you mean lambda_s?"),
    "no such store": (["head", "--backbone", "dinov2-s"], "cspipe extract dinov2-s"),
    "no such head run": (["finetune", "--unfreeze", "--labels", "7"], "7 labels"),
    "too many blocks": (["finetune", "--unfreeze-blocks", "900", "--labels", "40"], "--unfreeze-blocks 900"),
    "unknown regulariser": (["finetune", "--unfreeze", "--regulariser", "rft=1"], "did you mean 'rift'?"),
    "no such device": (["extract", "lite0", "digits", "--device", "warp"], "--device"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_plain_line_and_exit_1(cspipe, places, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, told = FAULTS[fault]
    code, out, err = cspipe(*arguments, *places)
    assert code == 1 and out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("cspipe: "), err
    assert told in lines[0]


def test_wrong_weights_for_a_backbone_name_the_keys(cspipe, places, tmp_path):
    code, out, err = cspipe("extract", "lite0", "digits", "--weights", weights_of_another_network(tmp_path), *places)
    assert code == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert "does not hold weights of lite0" in err


def test_no_store_yet_is_told_with_the_command_that_makes_one(cspipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cspipe("head", "--quiet")
    assert code == 1 and "cspipe extract" in err and len(err.strip().splitlines()) == 1


def test_a_broken_pipeline_toml_is_one_plain_line(cspipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline.toml").write_text("[head]\nlabls = 3\n")
    code, _, err = cspipe("head")
    assert code == 1 and "unknown key head.labls; did you mean labels?" in err


def test_a_head_on_another_store_is_refused(cspipe, places, made):
    code, _, _ = cspipe("extract", "lite0", "digits", "--image-px", "48", "--limit", "60", "--dtype", "fp32",
                        "--stores", made / "other", "--quiet")  # fmt: skip
    assert code == 0
    code, _, err = cspipe("finetune", "--unfreeze", "--backbone", "lite0", "--stores", made / "other",
                          "--runs", made / "runs", "--quiet")  # fmt: skip
    assert code == 1 and "Train a head on this store" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["head", "--labels", "many"], ["finetune"], ["finetune", "--unfreeze", "--unfreeze-blocks", "2"], ["extract"],
     ["nonsense"], ["head", "--seeds", "x"]],
)  # fmt: skip
def test_wrong_usage_ends_with_2(cspipe, arguments):
    code, out, err = cspipe(*arguments)
    assert code == 2 and out == "" and "Usage" in err


def test_help_answers_at_once():
    command = [sys.executable, "-c", "from cspipe.cli import main; main(['--help'])"]
    subprocess.run(command, check=True, capture_output=True)
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "extract" in done.stdout
    assert time.perf_counter() - start < 5, "far above the half second it takes on an idle machine"


def write_images(folder, per_class, unlabelled, splits=("train", "test")):
    """A folder of small images: classes differ in brightness and pattern."""
    generator = np.random.default_rng(0)
    for split in splits:
        for name, level in {"dark": 40, "bright": 200}.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.normal(level, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    place = folder / "unlabelled"
    place.mkdir()
    for number in range(unlabelled):
        pixels = generator.normal(40 if number % 2 else 200, 30, (20, 24, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.fixture
def here(tmp_path):
    return ["--stores", tmp_path / "stores", "--runs", tmp_path / "runs", "--quiet"]


def test_a_folder_with_unlabelled_images_goes_through_all_stages(document, here, tmp_path):
    write_images(tmp_path / "cells", 6, 10)
    extracted = document("extract", "lite0", tmp_path / "cells", "--image-px", "32", *here)
    assert extracted["splits"]["train"]["rows"] == 22 and extracted["splits"]["test"]["rows"] == 12
    head = document("head", "--seeds", "2", "--set", "steps=100", "--set", "labelled_batch=8", *here)
    assert head["labels"] == 12 and head["rows"]["train"] == 22 and head["evaluation"] == "test"
    assert head["summary"]["content-style"]["mean"] > 0.6
    tuned = document("finetune", "--unfreeze-blocks", "1", *here)
    assert {"method", "labels", "split_seed", "backbone", "dataset", "accuracy_before", "accuracy_after", "cka",
            "model_dir", "seconds"} <= set(tuned)  # fmt: skip


def test_class_folders_alone_are_cross_validated(document, here, tmp_path):
    write_images(tmp_path / "cells", 6, 10, splits=("",))
    document("extract", "lite0", tmp_path / "cells", "--image-px", "32", *here)
    head = document("head", "--seeds", "2", "--set", "steps=20", "--method", "content-style,logistic", *here)
    assert head["evaluation"] == "cross-validation" and head["rows"]["judged"] == 12
    tuned = document("finetune", "--unfreeze-blocks", "1", *here)
    assert tuned["labels"] < 12 and 0 <= tuned["accuracy_after"] <= 1


def test_moved_images_ask_for_the_data_directory(document, cspipe, here, tmp_path):
    write_images(tmp_path / "cells", 4, 2)
    document("extract", "lite0", tmp_path / "cells", "--image-px", "32", *here)
    document("head", "--seeds", "1", "--set", "steps=5", "--method", "content-style", *here)
    (tmp_path / "cells").rename(tmp_path / "moved")
    code, _, err = cspipe("finetune", "--unfreeze-blocks", "1", *here)
    assert code == 1 and "--data-dir" in err and len(err.strip().splitlines()) == 1
    assert document("finetune", "--unfreeze-blocks", "1", "--data-dir", tmp_path / "moved", *here)["labels"] == 8


def test_control_characters_in_names_do_not_reach_the_terminal(cspipe, here, tmp_path):
    place = tmp_path / "cells" / "\x1b[31mred"
    place.mkdir(parents=True)
    (tmp_path / "cells" / "b").mkdir()
    for name in ("\x1b[31mred", "b"):
        (tmp_path / "cells" / name / "a\x1b[2J.png").write_bytes(b"no image")
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "cells" / name / "fine.png")
    code, out, err = cspipe("extract", "lite0", tmp_path / "cells", "--image-px", "32", *here)
    assert code == 0 and "\x1b[2J" not in out + err and "\x1b[31m" not in out + err
    assert "\\x1b[2J" in out
