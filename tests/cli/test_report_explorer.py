"""The page of `cspipe explore`: what it carries, and what the report says of it. Its behaviour: tests/browser."""

import base64
import gzip
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_digits

from cspipe.explorer import GRID, digest, on_grid
from cspipe.headtrain import load_head
from cspipe.page import link_explorer
from cspipe.store import open_store
from cspipe.thumbnails import PER_SHEET, image_reader, sheets, tile_side
from cspipe.token_map import NEIGHBOURS, PLACED, tsne


@pytest.fixture(scope="module")
def explored(head_run, made, tmp_path_factory):
    """A copy of the head run with its explorer, and the document of the command."""
    from cspipe.explorer import write_explorer

    run = tmp_path_factory.mktemp("explored") / head_run.name
    shutil.copytree(head_run, run)
    return run, write_explorer(run, stores=made / "stores")


def packed(page):
    """The data that a page carries."""
    block = re.search(r'id="block">([^<]*)<', page.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(block)))


def store_of(made):
    return open_store(next((made / "stores").glob("*.zarr")))


def test_explorer_carries_every_row_with_its_label_split_path_and_place(explored, made):
    run, document = explored
    data, store = packed(run / "explorer.html"), store_of(made)
    rows = {name: len(store[name]) for name in store.splits}
    assert document["rows"] == document["rows_in_store"] == sum(rows.values()) == len(data["id"])
    assert data["label"] == [int(label) for name in store.splits for label in store[name].label()]
    assert data["path"] == [path for name in store.splits for path in store[name].path()]
    assert [data["splits"][split] for split in data["split"]] == [
        name for name in store.splits for _ in range(rows[name])
    ]
    assert [one["name"] for one in data["maps"]] == ["[CLS] tokens", "content", "style"]
    for one in data["maps"]:
        assert len(one["x"]) == len(data["id"]) and min(one["x"] + one["y"]) >= 0 and max(one["x"] + one["y"]) <= GRID


def test_explorer_tells_the_rows_that_the_head_learned_the_label_of(explored):
    run, _ = explored
    data = packed(run / "explorer.html")
    roles = [data["roles"][role] for role in data["role"]]
    assert roles.count("labelled") == 40 and roles.count("test") > 0
    assert len(data["suggested"]) == 20 and {roles[row] for row in data["suggested"]} == {"train"}


def test_explorer_predicts_as_the_report_says(explored):
    run, _ = explored
    data, told = packed(run / "explorer.html"), json.loads((run / "report.json").read_text())
    test = [row for row, split in enumerate(data["split"]) if data["splits"][split] == "test"]
    right = np.mean([data["guess"][row] == data["label"][row] for row in test])
    assert right == pytest.approx(next(r["accuracy"] for r in told["results"] if r["method"] == "content-style"))
    assert all(0.1 <= value <= 1 for value in data["confidence"])


def test_confidence_is_at_the_temperature_of_predict(head_run, made, tmp_path):
    from cspipe.explorer import write_explorer

    confidence = {}
    for temperature in (1.0, 2.0):
        run = shutil.copytree(head_run, tmp_path / str(temperature) / head_run.name)
        told = json.dumps({"temperature": temperature, "rows": 10})
        (run / "heads" / "content-style-0.calibration.json").write_text(told)
        write_explorer(run, stores=made / "stores", limit=50)
        confidence[temperature] = packed(run / "explorer.html")["confidence"][:5]
    store, saved = store_of(made), load_head(head_run / "heads" / "content-style-0.safetensors")
    first = store.splits[0]
    rows = packed(run / "explorer.html")
    place = {row: at for at, row in enumerate(store[first].row_id().tolist())}
    token_ND = store[first].embedding()[[place[row] for row in rows["id"][:5]]].astype(np.float32)
    logits_NK = saved.head.encode(torch.from_numpy(token_ND))[0].numpy()
    for temperature, told in confidence.items():
        np.testing.assert_allclose(told, softmax(logits_NK / temperature, axis=1).max(1), atol=1e-4)


def test_explorer_runs_only_the_scripts_whose_hashes_it_names(explored):
    page = (explored[0] / "explorer.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = re.search(r"script-src 'unsafe-eval' ([^;]*);", page)[1].split()
    assert [f"'sha256-{digest(script)}'" for script in scripts] == allowed and len(allowed) == 2
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


def test_document_tells_the_size_of_the_page(explored):
    run, document = explored
    assert document["bytes"] == (run / "explorer.html").stat().st_size
    assert document["thumbnails"] is True and document["problem"] is None


def test_a_limit_keeps_the_labelled_rows_and_is_told(places, head_run, cspipe):
    code, out, err = cspipe("explore", head_run, "--limit", "60", *places)
    assert code == 0 and "60 of 240 rows are shown: --limit shows more" in err and "60 rows" in out
    roles = packed(head_run / "explorer.html")["role"]
    assert roles.count(0) == 40 and len(roles) == 60


def test_explorer_without_the_images_says_so_and_shows_the_map(explored, made, monkeypatch):
    from cspipe import explorer
    from cspipe.store.errors import MissingDataError

    def gone(*_):
        raise MissingDataError("the images are not at <b>x</b>")

    monkeypatch.setattr(explorer, "recorded_dataset", gone)
    run, _ = explored
    document = explorer.write_explorer(run, stores=made / "stores")
    page = (run / "explorer.html").read_text()
    assert document["thumbnails"] is False and document["problem"] == "the images are not at <b>x</b>"
    assert "No thumbnails: the images are not at &lt;b&gt;x&lt;/b&gt;" in page and 'class="sheet"' not in page


def test_explore_refuses_a_fine_tuning_run_and_names_the_head_run(make_run, finetune_report, cspipe, tmp_path):
    code, _, err = cspipe("explore", make_run(finetune_report(0.8, 0.9)), "--stores", tmp_path)
    assert code == 1 and "name the head run that it began from, runs/x" in err


def test_report_links_the_explorer_once_it_is_there(page_of, head_run, made, tmp_path):
    run = tmp_path / head_run.name
    shutil.copytree(head_run, run)
    (run / "explorer.html").unlink(missing_ok=True)
    hidden = '<p class="when explorer" hidden>'
    assert hidden in page_of(run, stores=made / "stores").source
    link_explorer(run / "report.html")
    assert (
        hidden not in (run / "report.html").read_text() and 'href="explorer.html"' in (run / "report.html").read_text()
    )
    (run / "explorer.html").write_text("there")
    assert hidden not in page_of(run, stores=made / "stores").source


def test_thumbnails_are_those_of_their_rows(made):
    from cspipe.extract.recorded import recorded_dataset

    store = store_of(made)
    reader = image_reader(store, "train", recorded_dataset(store, None))
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    numbers = [int(path.split("/")[1]) for path in store["train"].path()]
    sheet = next(sheets({0: reader}, np.zeros(20, np.int64), np.arange(20), 8))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("L")).astype(float)
    for row in range(20):
        tile = shown[:8, 8 * row : 8 * row + 8]
        apart = np.abs(pixels - tile).mean((1, 2))
        assert apart[numbers[row]] < 25 and (apart < apart[numbers[row]]).sum() <= 3


def test_an_image_is_found_by_its_hash_where_files_were_renamed_and_not_where_it_changed(made):
    from dataclasses import replace

    from cspipe.extract.recorded import recorded_dataset

    store = store_of(made)
    dataset = recorded_dataset(store, None)
    train = dataset.splits["train"]
    renamed = replace(dataset, splits={"train": replace(train, paths=[f"new/{path}" for path in train.paths])})
    expected = image_reader(store, "train", dataset)(5)
    assert np.array_equal(image_reader(store, "train", renamed)(5), expected)
    other = replace(dataset, splits={"train": replace(train, load=lambda i: 255 - np.asarray(train.load(i)))})
    assert image_reader(store, "train", other)(5) is None


def test_tiles_are_smaller_where_rows_are_many_and_never_larger_than_the_images():
    large, small = [Image.new("RGB", (300, 200))], [Image.new("RGB", (8, 20))]
    assert [tile_side(rows, large) for rows in (10, 10_000, 70_000)] == [64, 48, 32]
    assert tile_side(10, small) == 20 and PER_SHEET == 32 * 32


def test_places_keep_the_shape_of_the_map():
    grid = on_grid(np.array([[0, 0], [10, 0], [10, 5]], np.float32))
    assert grid.tolist() == [[0, GRID // 4 + 1], [GRID, GRID // 4 + 1], [GRID, 3 * GRID // 4]]
    assert (on_grid(np.zeros((3, 2), np.float32)) == round(GRID / 2)).all()


@pytest.mark.slow
def test_rows_beyond_those_that_are_placed_lie_with_their_neighbours():
    chance = np.random.default_rng(0)
    group = chance.integers(0, 4, PLACED + 500)
    value = (6 * np.eye(4)[group] + chance.normal(size=(len(group), 4))).astype(np.float32)
    place = tsne(value)
    centres = np.stack([np.median(place[group == number], 0) for number in range(4)])
    nearest = np.linalg.norm(place[:, None] - centres[None], axis=2).argmin(1)
    assert np.isfinite(place).all() and (nearest == group).mean() > 0.9 and NEIGHBOURS < PLACED
