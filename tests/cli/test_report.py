"""The page of `cspipe report`: what it says, that names stay text, that it fetches nothing, that it is well formed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspipe import token_map
from cspipe.report import class_legend, labels_plots, token_panels, write_page
from cspipe.store.errors import MissingDataError

BETTER = {"content-style": [0.90, 0.92, 0.91], "logistic": [0.80, 0.81, 0.82], "supervised": [0.70, 0.72, 0.71]}
MakeRun = Callable[..., Path]
Make = Callable[..., Any]
PageOf = Callable[..., Any]


def plain_words(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_page_says_what_the_run_gave_and_where_it_came_from(
    make_run: MakeRun, page_of: PageOf, head_report: Make
) -> None:
    page = page_of(make_run(head_report(BETTER), config='[head]\ndraw = "natural"\n'))
    text = plain_words(page.text)
    assert "With 100 labels, content-style reaches 91.0 % [88.5, 93.5] on 10,000 test images" in text
    for fact in (
        "feed" * 16,
        "Apache-2.0",
        "beef",
        "f00d",
        "0123456789abcdef",
        "adeeca463cb8",
        "12.5 s",
        'draw = "natural"',
    ):
        assert fact in text
    assert "cspipe head --backbone lite0 --dataset toy --labels 100 --seeds 3" in text
    assert page.tags.count("h1") == 1 and page.tags.count("figcaption") == page.tags.count("figure") > 2
    assert "cross-entropy of the content" in text and "style discriminator's own loss" in text


def test_fine_tuning_page_shows_curves_drift_and_confusion(
    make_run: MakeRun, page_of: PageOf, finetune_report: Make, records: Make
) -> None:
    epochs = [{"event": "epoch", "step": 30, "epoch": 1, "cka": 0.875, "accuracy": None, "effective_rank": 12.0}]
    page = page_of(make_run(finetune_report(0.9, 0.6), records(None) + epochs))
    assert "900 of 1,000 600 of 1,000" in page.text and "0.875" in page.text
    assert "CKA with the frozen tokens" in page.text and "effective rank of the tokens" in page.text
    assert "Confusion of the fine-tuned model" in page.text
    assert "cspipe finetune --head runs/x --split-seed 0 --unfreeze" in page.text


def test_page_fetches_nothing_and_runs_nothing(
    make_run: MakeRun, page_of: PageOf, head_report: Make, finetune_report: Make
) -> None:
    page = page_of(make_run(head_report(BETTER)), make_run(finetune_report(0.8, 0.9)))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "data", "action"}]
    assert links and all(link.startswith("#") or link.endswith("/explorer.html") for link in links)
    assert "@import" not in page.source and "http://" not in page.source and "https://" not in page.source
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_ids_are_unique_and_every_reference_has_one(
    make_run: MakeRun, page_of: PageOf, head_report: Make, finetune_report: Make
) -> None:
    page = page_of(make_run(head_report(BETTER)), make_run(head_report(BETTER)), make_run(finetune_report(0.8, 0.9)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")}
    targets |= {value[5:-1] for name, value in page.attributes if name == "clip-path"}
    assert targets <= set(ids)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{1}{0}$",
    "x" * 5000,
    "\x1b[31m\udcff\n",
    "猫",
]


def test_names_are_text_wherever_they_appear(
    make_run: MakeRun, page_of: PageOf, head_report: Make, records: Make
) -> None:
    accuracy = BETTER | {HOSTILE[1]: [0.1, 0.2, 0.3]}
    report = head_report(accuracy, HOSTILE, dataset=HOSTILE[0], backbone=HOSTILE[1], store=HOSTILE[0])
    run = make_run(report, records("<b>bold</b>") + records(HOSTILE[2]), config=f'name = "{HOSTILE[0]}"')
    page = page_of(run)
    assert not {"script", "img", "b"} & set(page.tags)
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text and HOSTILE[2] in page.text and "猫" in page.text
    assert "\x1b" not in page.source and "x" * 200 not in page.text
    assert "--dataset '<script>alert(1)</script>'" in page.text


def test_plots_keep_class_names_as_text() -> None:
    places = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    drawn = token_map.TokenMap([("content", places, 0.5)], np.arange(60) % 6, HOSTILE)
    svg = str(token_panels(drawn)[0].svg)
    assert "&lt;script&gt;" in svg and "<script" not in svg and "$\\frac{1}{0}$" in svg and "\x1b" not in svg
    assert [key.name for key in class_legend(drawn)] == HOSTILE


def test_without_its_store_a_run_is_still_told(
    make_run: MakeRun, tmp_path: Path, page_of: PageOf, head_report: Make
) -> None:
    page = page_of(make_run(head_report(BETTER)), stores=tmp_path)
    assert (
        f"The store toy--lite0--00000000.zarr is neither at gone/toy--lite0--00000000.zarr nor under {tmp_path}"
        in page.text
    )
    assert "Accuracy" in page.text and "Confusion of content-style" in page.text


def test_hundreds_of_classes_become_the_pairs_confused_most(
    make_run: MakeRun, page_of: PageOf, head_report: Make
) -> None:
    names = [f"class {number}" for number in range(200)]
    report = head_report(BETTER, names)
    report["confusion"]["content-style"][3][7] = 25
    page = page_of(make_run(report))
    assert "class 3 class 7 25" in page.text
    assert page.tags.count("td") < 200 and len(page.source) < 300_000


def test_several_runs_share_a_page_with_accuracy_against_labels(
    make_run: MakeRun, page_of: PageOf, head_report: Make
) -> None:
    few, many = make_run(head_report(BETTER)), make_run(head_report(BETTER, labels=1000))
    page = page_of(few, many)
    assert "Accuracy against labels, lite0 on toy" in page.text
    assert page.tags.count("section") == 2 and "1,000 labels" in page.text
    assert labels_plots([head_report(BETTER), head_report(BETTER)]) == []


def test_a_cut_off_line_of_metrics_is_left_out(make_run: MakeRun, page_of: PageOf, head_report: Make) -> None:
    run = make_run(head_report(BETTER))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "L_c')
    assert "cross-entropy of the content" in page_of(run).text
    (run / "metrics.jsonl").unlink()
    assert "This run kept no training curves." in page_of(run).text


def test_a_folder_without_a_report_is_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(MissingDataError, match="not a finished run"):
        write_page([tmp_path], page, stores=tmp_path)
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]
