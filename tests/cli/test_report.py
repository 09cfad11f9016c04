"""The page of `cspipe report`: what it says, that names stay text, that it fetches nothing, that it is well formed."""

import json
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cspipe import token_map
from cspipe.headtrain import HeadSettings
from cspipe.headtrain.evaluate import paired, summarise
from cspipe.headtrain.run import run_head
from cspipe.report import class_legend, labels_plots, token_panels, write_page
from cspipe.store.errors import MismatchError, MissingDataError
from cspipe.store.layout import StoreKey, store_path
from cspipe.store.plan import ImageTable
from cspipe.store.writer import StoreWriter
from cspipe.verdicts import finetune_verdict, head_verdict

VOID = {"meta", "br", "hr", "img", "link", "input"}
KEY = StoreKey(transform="resize 8", image_px=8, weights_sha256="ab" * 32, token="cls", dtype="fp16")
Accuracies = dict[str, list[float]]
BETTER = {"content-style": [0.90, 0.92, 0.91], "logistic": [0.80, 0.81, 0.82], "supervised": [0.70, 0.72, 0.71]}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace(" \\ ", " ")


def head_report(accuracy: Accuracies, names: Sequence[str] = ("cat", "dog", "emu"), **changes: Any) -> dict[str, Any]:
    results = [
        {"method": method, "labels": 100, "split_seed": seed, "train_seed": 0, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    counts = (np.eye(len(names), dtype=int) * 50 + 1).tolist()
    return {
        "command": "head", "store": "gone/toy--lite0--00000000.zarr", "backbone": "lite0", "dataset": "toy",
        "labels": 100, "evaluation": "test", "rows": {"train": 1000, "judged": 10000, "flagged": 0},
        "class_names": list(names), "results": results, "summary": summarise(results),
        "paired": paired(results, "content-style"), "confusion": {method: counts for method in accuracy},
        "split_hash": {"0": "0123456789abcdef"}, "run": "runs/x", "seconds": 12.5,
        "provenance": {"architecture": "tf_efficientnet_lite0", "weights_sha256": "feed" * 16, "licence": "Apache-2.0",
                       "transform": "resize 8", "store_key": "beef", "dataset_fingerprint": {"train": "f00d"}},
        "environment": {"cspipe": "0.1.0", "git_commit": "adeeca463cb8", "python": "3.11", "torch": "2.8",
                        "machine": "Linux x86_64", "cores": 2, "time": "2026-01-02T03:04:05+00:00"},
    } | changes  # fmt: skip


def finetune_report(before: float, after: float, rows: int = 1000) -> dict[str, Any]:
    def counts(share: float) -> list[list[int]]:
        return [[round(rows * share), rows - round(rows * share)], [0, 0]]

    return head_report(BETTER, ["cat", "dog"]) | {
        "command": "finetune", "method": "content-style", "split_seed": 0, "accuracy_before": before,
        "accuracy_after": after, "cka": 0.875, "model_dir": "runs/y/model", "head_run": "runs/x",
        "confusion": {"before": counts(before), "after": counts(after)},
    }  # fmt: skip


def records(method: str | None = "content-style") -> list[dict[str, Any]]:
    told = {"method": method, "split_seed": 0, "train_seed": 0, "fold": 0} if method else {}
    return [
        told | {"step": step, "L_c": 1 / step, "L_y": 0.5, "critic_style": 0.69, "lr": None} for step in (10, 20, 30)
    ]


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(report: dict[str, Any], metrics: Sequence[dict[str, Any]] = (), config: str = "") -> Path:
        run = tmp_path / "runs" / f"{len(list(tmp_path.glob('runs/*')))}-{report['command']}-abcdef"
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps(report))
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics or records()))
        (run / "config.toml").write_text(config)
        return run

    return make


def page_of(*runs: Path, stores: Path = Path("nowhere")) -> Page:
    return Page(write_page(runs, runs[-1] / "report.html", stores=stores))


def plain_words(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def test_page_says_what_the_run_gave_and_where_it_came_from(make_run: MakeRun) -> None:
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


def test_verdict_is_better_only_with_an_interval_above_zero() -> None:
    said = head_verdict(head_report(BETTER))
    assert plain_words(said.sentence).endswith(
        ": 10.0 points above the best baseline, logistic regression (paired 95 % interval +7.5 to +12.5)."
    )
    assert said.note == ""
    unsure = head_verdict(head_report({"content-style": [0.90, 0.80], "logistic": [0.80, 0.85]}))
    assert "includes zero, so these splits do not show that it is better." in unsure.sentence


def test_verdict_says_plainly_that_the_method_does_not_beat_the_best_baseline() -> None:
    said = head_verdict(
        head_report({"content-style": [0.80, 0.81, 0.82], "knn": [0.7, 0.7, 0.7], "logistic": [0.9, 0.92, 0.91]})
    )
    assert "It does not beat the best baseline, logistic regression, which reaches 91.0 %" in plain_words(said.sentence)
    assert "it is 10.0 points below (paired 95 % interval -12.5 to -7.5)." in plain_words(said.sentence)
    level = head_verdict(head_report({"content-style": [0.8, 0.8], "logistic": [0.8, 0.8]}))
    assert "does not beat" in level.sentence and "the two are level" in level.sentence


def test_verdict_of_a_single_split_says_that_there_is_no_interval() -> None:
    said = head_verdict(head_report({"content-style": [0.9], "logistic": [0.8]}))
    assert plain_words(said.sentence).endswith(
        "on 10,000 test images: 10.0 points above the best baseline, logistic regression."
    )
    assert said.note == "There is one split, hence no interval."


def test_verdict_tells_how_accuracy_was_measured_and_what_was_not_run() -> None:
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
def test_verdict_of_fine_tuning_says_better_and_worse_alike(before: float, after: float, words: str) -> None:
    said = finetune_verdict(finetune_report(before, after))
    assert words in plain_words(said.sentence)
    assert "no interval" in said.note and "CKA of 0.88" in said.note


def test_fine_tuning_page_shows_curves_drift_and_confusion(make_run: MakeRun) -> None:
    epochs = [{"event": "epoch", "step": 30, "epoch": 1, "cka": 0.875, "accuracy": None, "effective_rank": 12.0}]
    page = page_of(make_run(finetune_report(0.9, 0.6), records(None) + epochs))
    assert "900 of 1,000 600 of 1,000" in page.text and "0.875" in page.text
    assert "CKA with the frozen tokens" in page.text and "effective rank of the tokens" in page.text
    assert "Confusion of the fine-tuned model" in page.text
    assert "cspipe finetune --head runs/x --split-seed 0 --unfreeze" in page.text


def test_page_fetches_nothing_and_runs_nothing(make_run: MakeRun) -> None:
    page = page_of(make_run(head_report(BETTER)), make_run(finetune_report(0.8, 0.9)))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "data", "action"}]
    assert links and all(link.startswith("#") for link in links)
    assert "@import" not in page.source and "http://" not in page.source and "https://" not in page.source
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_ids_are_unique_and_every_reference_has_one(make_run: MakeRun) -> None:
    page = page_of(make_run(head_report(BETTER)), make_run(head_report(BETTER)), make_run(finetune_report(0.8, 0.9)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in page.attributes if name == "href"}
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


def test_names_are_text_wherever_they_appear(make_run: MakeRun) -> None:
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


def test_without_its_store_a_run_is_still_told(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run(head_report(BETTER)), stores=tmp_path)
    assert (
        f"The store toy--lite0--00000000.zarr is neither at gone/toy--lite0--00000000.zarr nor under {tmp_path}"
        in page.text
    )
    assert "Accuracy" in page.text and "Confusion of content-style" in page.text


def test_hundreds_of_classes_become_the_pairs_confused_most(make_run: MakeRun) -> None:
    names = [f"class {number}" for number in range(200)]
    report = head_report(BETTER, names)
    report["confusion"]["content-style"][3][7] = 25
    page = page_of(make_run(report))
    assert "class 3 class 7 25" in page.text
    assert page.tags.count("td") < 200 and len(page.source) < 300_000


def test_several_runs_share_a_page_with_accuracy_against_labels(make_run: MakeRun) -> None:
    few, many = make_run(head_report(BETTER)), make_run(head_report(BETTER, labels=1000))
    page = page_of(few, many)
    assert "Accuracy against labels, lite0 on toy" in page.text
    assert page.tags.count("section") == 2 and "1,000 labels" in page.text
    assert labels_plots([head_report(BETTER), head_report(BETTER)]) == []


def test_a_cut_off_line_of_metrics_is_left_out(make_run: MakeRun) -> None:
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


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of three clear classes and a head run on it."""
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    centre_KD = 3 * rng.normal(size=(3, 16))
    provenance = {"class_names": ["a", "b", "c"], "licence": "MIT", "revision": None}
    store = store_path(folder / "stores", "toy", "lite0", KEY)
    with StoreWriter(
        store, key=KEY, width=16, batch_size=4, backbone="lite0", dataset="toy", provenance=provenance,
        sources={"data": "/data/my toys", "weights": None},
    ) as writer:  # fmt: skip
        for split, rows in (("train", 60), ("test", 30)):
            label = np.arange(rows) % 3
            table = ImageTable(rng.integers(0, 256, (rows, 32), np.uint8), label, [f"{split}/{i}" for i in range(rows)])
            for task in writer.plan(split, table, whole=True):
                mine = label[task.images]
                writer.commit(split, task, (centre_KD[mine] + rng.normal(size=(len(mine), 16))).astype(np.float32))
            writer.finish(split)
    settings = HeadSettings(components=0, hidden=8, style=4, discriminator=8, steps=20, batch=16, labelled_batch=8)
    run_head(store=store, runs=folder / "runs", labels=12, seeds=2, settings=settings)
    return folder


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_page_of_a_real_run_draws_tokens_content_and_style(real: Path) -> None:
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


def test_damaged_store_costs_the_picture_alone(real: Path, tmp_path: Path) -> None:
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


def test_t_sne_survives_constant_and_one_dimensional_values() -> None:
    assert np.isfinite(token_map.tsne(np.zeros((12, 4), np.float32))).all()
    assert np.isfinite(token_map.tsne(np.arange(12, dtype=np.float32)[:, None])).all()
