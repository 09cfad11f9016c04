"""Stage one and what follows it with stores on a real S3 server: the command line, killed and resumed elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from s3_server import BUCKET, objects, serve_s3

from cspipe.cli import main
from cspipe.extract.run import extract
from cspipe.store import open_store
from cspipe.store.meta import read_group
from cspipe.store.remote import local_path

BACKBONE, URL = "timm:test_vit", f"s3://{BUCKET}/stores"
PROGRAM = (
    "import sys; from cspipe.cli import main; from cspipe.store import opening; "
    "opening.chunk_rows = lambda width, itemsize: 64; main(sys.argv[1:])"
)


@pytest.fixture
def s3(monkeypatch, tmp_path):
    monkeypatch.setenv("CSPIPE_CACHE", str(tmp_path / "cache"))
    with serve_s3(monkeypatch) as client:
        yield client


@pytest.fixture
def cspipe(capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments, stores=URL):
        capsys.readouterr()
        code = 0
        try:
            main([*map(str, arguments), "--stores", stores, "--quiet"])
        except SystemExit as end:
            code = end.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(client):
    """Objects of the stores; the pointer to the latest is no part of any."""
    return {name: data for name, data in objects(client, "stores").items() if ".zarr/" in name and ".locks" not in name}


def local(stores):
    return {name: data for name, data in files(stores).items() if ".zarr/" in name and ".locks" not in name}


def test_extract_and_everything_after_it_work_behind_a_url(
    s3, cspipe, tiny_weights, tmp_path, small_chunks, monkeypatch
):
    options = ("--weights", tiny_weights, "--image-px", 32, "--limit", 200, "--json")
    code, out, err = cspipe("extract", BACKBONE, "digits", *options)
    assert code == 0, err
    url = json.loads(out)["store"]
    assert url.startswith(URL) and url.endswith(".zarr")
    extract(BACKBONE, "digits", stores=tmp_path / "local", weights=tiny_weights, image_px=32, limit=200)
    assert stored(s3) == local(tmp_path / "local")

    monkeypatch.setenv("CSPIPE_CACHE", str(tmp_path / "another"))
    runs, quick = ("--runs", tmp_path / "runs"), ("--seeds", 1, "--set", "steps=10", "--set", "components=16")
    code, out, err = cspipe("head", "--labels", 50, *quick, *runs, "--json")
    assert code == 0, err
    assert json.loads(out)["store"] == url
    assert json.loads(cspipe("store", "ls", "--json")[1])["stores"][0]["complete"]
    assert json.loads(cspipe("store", "info", url, "--json")[1])["store"] == url
    assert cspipe("report", *runs)[0] == 0
    image = tmp_path / "seven.png"
    _picture(image)
    code, out, err = cspipe("predict", "latest", image, *runs, "--json")
    assert code == 0 and json.loads(out)["images"] == 1, err
    assert any(name.startswith("predicted/") for name in objects(s3, "stores"))
    assert cspipe("store", "verify", url)[0] == 0
    code, out, err = cspipe("finetune", "--unfreeze", "--epochs", 1, *runs, "--json")
    assert code == 0 and json.loads(out)["store"] == url, err
    code, out, err = cspipe("extract", BACKBONE, "digits", *options, "--dry-run")
    assert code == 0 and set(json.loads(out)["stores"][0]["rows_to_compute"].values()) == {0}, err

    key = f"stores/{url.rpartition('/')[2]}/train/embedding/c/1/0"
    whole = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes([whole[0] ^ 8]) + whole[1:])
    code, out, _ = cspipe("store", "verify", "--json")
    assert code == 1 and [problem["where"] for problem in json.loads(out)["problems"]] == ["train/embedding/c/1/0"]
    assert cspipe("store", "repair", url)[0] == 0
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == whole
    assert cspipe("store", "gc", "--yes")[0] == 0 and stored(s3).keys() >= local(tmp_path / "local").keys()
    assert cspipe("store", "rm", url, "--yes")[0] == 0
    assert not [name for name in stored(s3) if not name.startswith("predicted/")]
    code, _, err = cspipe("head", *runs)
    assert code == 1 and f"under {URL} (it holds no store at all)" in err
    code, _, err = cspipe("store", "ls", stores="s3://nowhere/stores")
    assert code == 1 and "there is no bucket nowhere" in err and "Traceback" not in err


def _picture(path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(path)


def _start(cache, weights):
    """A real process of the program that writes small chunks."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "extract", BACKBONE, "digits", "--weights", str(weights), "--image-px", "32",
         "--views", "1", "--limit", "300", "--stores", URL, "--quiet", "--json"],
        env=os.environ | {"CSPIPE_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_an_extraction_that_is_killed_goes_on_on_another_machine_and_ends_with_the_same_bytes(
    s3, tiny_weights, tmp_path, small_chunks, monkeypatch
):
    process = _start(tmp_path / "first", tiny_weights)
    while sum("/commit/c/" in name for name in _names(s3)) < 4:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = stored(s3)
    monkeypatch.setenv("CSPIPE_CACHE", str(tmp_path / "looking"))
    rows = _committed_rows(local_path(URL))
    second = _start(tmp_path / "second", tiny_weights)
    told = json.loads(second.communicate()[0])
    assert second.returncode == 0
    computed = {name: split["computed"] for name, split in told["splits"].items()}
    assert sum(rows.values()) > 3 * 40 and len(told["splits"]) == 3
    assert {name: computed[name] + rows.get(name, 0) for name in computed} == {
        name: split["rows"] for name, split in told["splits"].items()
    }
    after = stored(s3)
    assert all(after[name] == data for name, data in before.items() if "/commit/c/" in name)
    extract(BACKBONE, "digits", stores=tmp_path / "local", weights=tiny_weights, image_px=32, views=1, limit=300)
    assert after == local(tmp_path / "local")


def _names(client):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="stores/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def _committed_rows(stores):
    """Rows of each split that have a commit record, which a killed process left."""
    from cspipe.store.commits import committed_ends
    from cspipe.store.remotes import bring
    from cspipe.store.repair import shape_of

    (store,) = stores.glob("*.zarr")
    bring(store)
    shape = shape_of(read_group(store))
    found = {}
    for split in (path.parent for path in store.glob("*/zarr.json")):
        ends = committed_ends(split, shape)
        found[split.name] = int(sum(end - number * shape.per_chunk for number, end in enumerate(ends)))
    return found


def test_python_opens_a_store_by_its_url(s3, tiny_weights, small_chunks):
    told = extract(BACKBONE, "digits", stores=URL, weights=tiny_weights, image_px=32, limit=20)
    split = open_store(told["store"])["train"]
    assert split.embedding().shape == (20, told["width"]) and np.isfinite(split.dask().compute()).all()
