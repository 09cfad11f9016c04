"""Verdicts in words, and the page of real runs: pictures of the tokens, stores that moved or are damaged."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspipe import token_map
from cspipe.headtrain import HeadSettings
from cspipe.headtrain.run import run_head
from cspipe.report import write_page
from cspipe.store.errors import MismatchError
from cspipe.store.layout import StoreKey, store_path
from cspipe.store.plan import ImageTable
from cspipe.store.writer import StoreWriter
from cspipe.verdicts import finetune_verdict, head_verdict

KEY = StoreKey(transform="resize 8", image_px=8, weights_sha256="ab" * 32, token="cls", dtype="fp16")
BETTER = {"content-style": [0.90, 0.92, 0.91], "logistic": [0.80, 0.81, 0.82], "supervised": [0.70, 0.72, 0.71]}
Make = Callable[..., Any]
PageOf = Callable[..., Any]


def plain_words(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_verdict_is_better_only_with_an_interval_above_zero(head_report: Make) -> None:
    said = head_verdict(head_report(BETTER))
    assert plain_words(said.sentence).endswith(
        ": 10.0 points above the best baseline, logistic regression (paired 95 % interval +7.5 to +12.5)."
    )
    assert said.note == ""
    unsure = head_verdict(head_report({"content-style": [0.90, 0.80], "logistic": [0.80, 0.85]}))
    assert "includes zero, so these splits do not show that it is better." in unsure.sentence


def test_verdict_says_plainly_that_the_method_does_not_beat_the_best_baseline(head_report: Make) -> None:
    said = head_verdict(
        head_report({"content-style": [0.80, 0.81, 0.82], "knn": [0.7, 0.7, 0.7], "logistic": [0.9, 0.92, 0.91]})
    )
    assert "It does not beat the best baseline, logistic regression, which reaches 91.0 %" in plain_words(said.sentence)
    assert "it is 10.0 points below (paired 95 % interval -12.5 to -7.5)." in plain_words(said.sentence)
    level = head_verdict(head_report({"content-style": [0.8, 0.8], "logistic": [0.8, 0.8]}))
    assert "does not beat" in level.sentence and "the two are level" in level.sentence


def test_verdict_of_a_single_split_says_that_there_is_no_interval(head_report: Make) -> None:
    said = head_verdict(head_report({"content-style": [0.9], "logistic": [0.8]}))
    assert plain_words(said.sentence).endswith(
        "on 10,000 test images: 10.0 points above the best baseline, logistic regression."
    )
    assert said.note == "There is one split, hence no interval."


def test_verdict_tells_how_accuracy_was_measured_and_what_was_not_run(head_report: Make) -> None:
    rows = {"train": 90, "judged": 90, "flagged": 0}
    folds = head_verdict(head_report(BETTER, evaluation="cross-validation", rows=rows))
    assert "in cross-validation over 90 labelled images" in folds.sentence
    assert "No other method was run" in head_verdict(head_report({"content-style": [0.9, 0.8]})).sentence
    assert "content-style was not among them" in head_verdict(head_report({"logistic": [0.9, 0.8]})).sentence
    paper = head_verdict(head_report({"content-style": [0.8], "content-style-paper": [0.9], "logistic": [0.7]}))
    assert "It does not beat the best of the others, the paper's bare objective" in paper.sentence


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            0.80,
            0.90,
            "raises accuracy from 80.0 % to 90.0 % on the 1,000 images that it was judged on: 10.0 points better",
        ),
        (
            0.90,
            0.60,
            "lowers accuracy from 90.0 % to 60.0 % on the 1,000 images that it was judged on: 30.0 points worse",
        ),
        (0.90, 0.90, "leaves accuracy at 90.0 %"),
        (0.90, 0.91, "though on 1,000 images up to 2.6 points may be chance"),
    ],
)
def test_verdict_of_fine_tuning_says_better_and_worse_alike(
    before: float, after: float, words: str, finetune_report: Make
) -> None:
    said = finetune_verdict(finetune_report(before, after))
    assert words in plain_words(said.sentence)
    assert "no interval" in said.note and "CKA of 0.88" in said.note


def write_store(stores: Path, dataset: str, splits: Mapping[str, int]) -> Path:
    """A store of three clear classes, so many rows a split."""
    rng = np.random.default_rng(0)
    centre_KD = 3 * rng.normal(size=(3, 16))
    provenance = {"class_names": ["a", "b", "c"], "licence": "MIT", "revision": None}
    store = store_path(stores, dataset, "lite0", KEY)
    with StoreWriter(
        store, key=KEY, width=16, batch_size=4, backbone="lite0", dataset=dataset, provenance=provenance,
        sources={"data": "/data/my toys", "weights": None},
    ) as writer:  # fmt: skip
        for split, rows in splits.items():
            label = np.arange(rows) % 3
            table = ImageTable(rng.integers(0, 256, (rows, 32), np.uint8), label, [f"{split}/{i}" for i in range(rows)])
            for task in writer.plan(split, table, whole=True):
                mine = label[task.images]
                writer.commit(split, task, (centre_KD[mine] + rng.normal(size=(len(mine), 16))).astype(np.float32))
            writer.finish(split)
    return store


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of three clear classes and a head run on it."""
    folder = tmp_path_factory.mktemp("real")
    store = write_store(folder / "stores", "toy", {"train": 60, "test": 30})
    settings = HeadSettings(components=0, hidden=8, style=4, discriminator=8, steps=20, batch=16, labelled_batch=8)
    run_head(store=store, runs=folder / "runs", labels=12, seeds=2, settings=settings)
    return folder


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_page_of_a_real_run_draws_tokens_content_and_style(real: Path, page_of: PageOf) -> None:
    page = page_of(only_run(real), stores=real / "stores")
    assert "t-SNE of 30 test images" in page.text and "33.3 % by chance" in plain_words(page.text)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    for space in ("[CLS] tokens", "content", "style"):
        assert f"t-SNE of {space}, 30 rows coloured by class" in labels
    assert "cspipe extract lite0 '/data/my toys' --image-px 8 --token cls --dtype fp16" in page.text


def test_the_same_run_gives_the_same_page(real: Path, tmp_path: Path) -> None:
    first, second = (write_page([only_run(real)], tmp_path / name, stores=real / "stores") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_store_that_moved_is_found_under_stores_and_another_one_is_refused(real: Path, tmp_path: Path) -> None:
    told = json.loads((only_run(real) / "report.json").read_text())
    told["store"] = f"elsewhere/{Path(told['store']).name}"
    assert token_map.run_store(told, real / "stores").dataset == "toy"
    told["provenance"]["store_key"] = "another"
    with pytest.raises(MismatchError, match="its key is another"):
        token_map.run_store(told, real / "stores")


def test_damaged_store_costs_the_picture_alone(real: Path, tmp_path: Path, page_of: PageOf) -> None:
    shutil.copytree(real, tmp_path / "copy")
    run = only_run(tmp_path / "copy")
    told = json.loads((run / "report.json").read_text())
    told["store"] = "gone/" + Path(told["store"]).name
    (run / "report.json").write_text(json.dumps(told))
    (chunk,) = (tmp_path / "copy/stores").glob("*.zarr/test/embedding/c/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    page = page_of(run, stores=tmp_path / "copy/stores")
    assert "No picture of the tokens." in page.text and "cspipe store verify" in page.text
    assert "Confusion of content-style" in page.text


def test_rows_of_the_picture_are_those_that_were_judged(real: Path) -> None:
    told = json.loads((only_run(real) / "report.json").read_text())
    store = token_map.run_store(told, real / "stores")
    dev_ND, dev_label_N = token_map.judged_rows(store, "dev", 6, most=100)
    assert np.array_equal(dev_ND, store["train"].embedding()[-6:].astype(np.float32))
    assert dev_label_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(token_map.judged_rows(store, "cross-validation", 0, most=100)[1]) == 60
    assert len(token_map.judged_rows(store, "test", 0, most=20)[1]) == 20


def test_rows_of_the_picture_are_those_of_the_other_data_set_where_that_was_judged(tmp_path: Path) -> None:
    store = write_store(tmp_path / "stores", "toy", {"train": 60, "test": 30})
    for name, splits in (("tested", {"train": 20, "test": 24}), ("untested", {"train": 27})):
        other = write_store(tmp_path / "stores", name, splits)
        settings = HeadSettings(components=0, hidden=8, style=4, discriminator=8, steps=5, batch=16, labelled_batch=8)
        told = run_head(
            store=store, test_store=other, runs=tmp_path / "runs", labels=12, seeds=1, settings=settings,
            methods=["content-style"],
        )  # fmt: skip
        page = write_page([Path(told["run"])], tmp_path / "page.html", stores=tmp_path)
        assert f"t-SNE of content, {told['rows']['judged']} rows coloured by class" in page.read_text()
        assert told["rows"]["judged"] == {"tested": 24, "untested": 27}[name]


def test_t_sne_survives_constant_and_one_dimensional_values() -> None:
    assert np.isfinite(token_map.tsne(np.zeros((12, 4), np.float32))).all()
    assert np.isfinite(token_map.tsne(np.arange(12, dtype=np.float32)[:, None])).all()
