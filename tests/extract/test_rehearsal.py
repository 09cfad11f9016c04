"""A dry run tells what the extraction then does, and writes nothing."""

import json
from pathlib import Path

import pytest

from cspipe.cli import main
from cspipe.extract.rehearsal import rehearse
from cspipe.extract.run import extract_all
from cspipe.extract.targets import Request

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def requests(tiny, tiny_weights):
    """One backbone, two tokens."""
    return [Request(tiny, ("cls", "cls+mean"), tiny_weights)]


def files(folder):
    """Every file with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_tells_the_rows_that_are_then_computed(requests, run, tmp_path):
    stores = tmp_path / "stores"
    run(limit=100)
    before = files(stores)
    options = {"stores": stores, "limit": 150, "views": 1, "dtype": "fp16"}
    told = rehearse(requests, "digits", **options)
    assert files(stores) == before
    done = extract_all(requests, "digits", **options)
    assert [each["rows_to_compute"] for each in told["stores"]] == [
        {name: part["computed"] for name, part in each["splits"].items()} for each in done["stores"]
    ]
    assert told["stores"][1]["rows_to_compute"] == {"train": 150, "train-affine-1": 150, "test": 150}
    assert 0 < told["stores"][0]["rows_to_compute"]["train"] < 150
    assert [each["store"] for each in told["stores"]] == [each["store"] for each in done["stores"]]


def test_speed_bytes_and_time_left_belong_together(requests, tmp_path):
    told = rehearse(requests, "digits", stores=tmp_path / "none", split="test")
    assert not (tmp_path / "none").exists()
    assert told["seconds_left"] == pytest.approx(2 * 360 / told["images_per_second"])
    assert [each["bytes"] for each in told["stores"]] == [360 * (2 * 64 + 160), 360 * (2 * 128 + 160)]
    assert told["bytes_free"] > 0 and [each["batch_size"] for each in told["stores"]] == [16, 16]


def test_nothing_is_measured_where_all_is_there(run, requests, tmp_path):
    run(limit=20)
    told = rehearse([Request(requests[0].backbone, weights=requests[0].weights)], "digits", stores=tmp_path / "stores",
                    limit=20)  # fmt: skip
    assert told["images_per_second"] is told["seconds_left"] is None
    assert told["stores"][0]["exists"] and set(told["stores"][0]["rows_to_compute"].values()) == {0}


def test_the_command_prints_it(tmp_path, capsys):
    command = ["extract", "lite0", "digits", "--image-px", "32", "--limit", "20", "--dry-run"]
    command += ["--stores", str(tmp_path / "stores")]
    with pytest.raises(SystemExit) as end:
        main([*command, "--json"])
    assert not end.value.code
    document = json.loads(capsys.readouterr().out)
    assert document["dry_run"] and document["stores"][0]["licence"] == "Apache-2.0"
    with pytest.raises(SystemExit):
        main(command)
    shown = capsys.readouterr().out
    assert shown.count("20") >= 2 and "images/s on a few batches" in shown and "nothing was written" in shown
    assert not Path(tmp_path / "stores").exists()
