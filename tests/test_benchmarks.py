"""The head benchmark runs, part by part, on a tiny store, and counts what it says it counts."""

import hashlib
import importlib
import json
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cspipe.headtrain.settings import HeadSettings, method_settings
from cspipe.store.layout import StoreKey
from cspipe.store.plan import ImageTable
from cspipe.store.views import view_name
from cspipe.store.writer import StoreWriter

WIDTH, CLASSES, TRAIN, TEST, DEV, VIEWS = 24, 3, 300, 90, 60, 2
ROOT = Path(__file__).resolve().parent.parent
SMALL = ["components=0", "hidden=16", "style=4", "discriminator=8", "batch=16", "labelled_batch=12"]


def draw(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of three classes with three shared directions that vary more, and the classes in turn."""
    world, generator = np.random.default_rng(0), np.random.default_rng(seed)
    means, mixing = 2 * world.normal(size=(CLASSES, WIDTH)), world.normal(size=(3, WIDTH))
    label = np.arange(rows) % CLASSES
    token = means[label] + generator.normal(size=(rows, 3)) @ mixing + generator.normal(size=(rows, WIDTH))
    return token.astype(np.float32), label


def write(folder: Path, *, test: bool = True) -> Path:
    """A store of such rows, with views of the training rows that are noisier."""
    path = folder / "blobs.zarr"
    key = StoreKey("none", 8, "0" * 64, "cls", "fp32")
    provenance = {"class_names": [str(number) for number in range(CLASSES)], "torch": "2"}
    with StoreWriter(
        path, key=key, width=WIDTH, batch_size=64, backbone="none", dataset="blobs", provenance=provenance,
        sources={"data": "blobs", "weights": None},
    ) as writer:  # fmt: skip
        parts = {"train": draw(TRAIN, 1)} | ({"test": draw(TEST, 2)} if test else {})
        for number in range(1, VIEWS + 1):
            noise = np.random.default_rng(number).normal(size=(TRAIN, WIDTH)).astype(np.float32)
            parts[view_name("train", "affine", number)] = (parts["train"][0] + noise, parts["train"][1])
        for name, (token, label) in parts.items():
            own = "test" if name == "test" else "train"
            digests = [hashlib.sha256(f"{own} {row}".encode()).digest() for row in range(len(label))]
            table = ImageTable(
                np.stack([np.frombuffer(digest, np.uint8) for digest in digests]), label.astype(np.int64),
                [f"{own}/{row}" for row in range(len(label))],
            )  # fmt: skip
            writer.write(name, table, token.__getitem__)
    return path


@pytest.fixture(scope="module")
def head():
    """benchmarks/head.py, imported as it is when it runs as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("head")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """300 training rows with two views, 90 test rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        return write(tmp_path_factory.mktemp("blobs"))


@pytest.fixture
def run(head, store, tmp_path, capsys):
    """A function (part, more words) -> the part's figures, the JSON document, and what was printed."""

    def call(part, *words, steps=5):
        out = tmp_path / "out.json"
        settings = [word for setting in SMALL for word in ("--set", setting)]
        head.main([
            "--store", str(store), "--part", part, "--dev-rows", str(DEV), "--splits", "2", "--train-seeds", "2",
            "--threads", str(torch.get_num_threads()), "--out", str(out), *settings, *words,
            *([] if steps is None else ["--steps", str(steps)]),
        ])  # fmt: skip
        document = json.loads(out.read_text())
        return document["parts"][part], document, capsys.readouterr().out

    return call


@pytest.fixture
def bench(head, store):
    """What the parts start from, with the default settings."""
    told = head.parse(["--store", str(store), "--dev-rows", str(DEV), "--splits", "2"])
    return head.make_bench(told, store)


def test_the_table_holds_every_method_at_every_number_of_labels(run):
    methods = ["logistic", "content-style", "supervised", "knn"]
    rows, document, printed = run("table", "--labels", "12", "24", "--methods", *methods)
    assert [(row["labels"], row["method"]) for row in rows] == [
        (labels, method) for method in ("content-style", "logistic", "supervised", "knn") for labels in (12, 24)
    ]
    assert document["evaluation"] == "dev" and document["rows"] == {"train": TRAIN - DEV, "views": VIEWS}
    by_method = {row["method"]: row for row in rows if row["labels"] == 24}
    ours, theirs = by_method["content-style"], by_method["knn"]
    assert len(ours["results"]) == 4 and {row["split_seed"] for row in ours["results"]} == {0, 1}
    assert theirs["paired"]["mean_difference"] == pytest.approx(ours["mean"] - theirs["mean"])
    assert ours["paired"] is None and printed.count("| knn |") == 2 and " s in all: content-style " in printed


def test_all_labels_are_one_split_and_three_heads_in_the_table(run):
    rows, _, printed = run("table", "--labels", "12", "all", "--methods", "supervised", "knn", "--train-seeds", "1")
    heads = {row["labels"]: row["results"] for row in rows if row["method"] == "supervised"}
    assert len(heads[12]) == 2
    assert {(row["split_seed"], row["train_seed"]) for row in heads["all"]} == {(0, 0), (0, 1), (0, 2)}
    assert {row["labels"] for row in heads["all"]} == {TRAIN - DEV} and "| knn | all |" in printed


def test_the_table_judges_on_test_rows_only_when_told(head, store, capsys):
    words = ["--store", str(store), "--part", "table", "--labels", "12", "--methods", "knn", "--splits", "2"]
    head.main([*words, "--test", "--threads", str(torch.get_num_threads())])
    assert f"judged on {TEST} test rows" in capsys.readouterr().out
    head.main([*words, "--threads", str(torch.get_num_threads())])
    assert f"judged on {TRAIN // 5} dev rows" in capsys.readouterr().out


def test_without_a_labelled_test_split_nothing_is_judged_on_it(head, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    path = write(tmp_path, test=False)
    words = ["--store", str(path), "--part", "table", "--methods", "knn", "--labels", "12", "--test"]
    with pytest.raises(SystemExit, match="no labelled test split: leave out --test"):
        head.main([*words, "--threads", str(torch.get_num_threads())])


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--set", "lambdas=1"], "did you mean lambda_s"), (["--methods", "contentstyle"], "content-style")],
)
def test_a_name_that_does_not_exist_is_told_with_the_nearest(run, words, told):
    with pytest.raises(SystemExit, match=told):
        run("table", *words)


def test_the_ablation_leads_from_the_paper_to_the_defaults_and_changes_each_setting_once(head, bench):
    variants = head.head_rows.ablation(bench)
    settings = [variant.settings for variant in variants]
    assert settings[0] == replace(method_settings("content-style-paper", bench.settings), prior="uniform")
    assert settings[-1] == method_settings("content-style", bench.settings)
    assert [variant.against for variant in variants] == [None, *(variant.name for variant in variants[:-1])]
    changed = [
        {name for name, value in asdict(one).items() if value != asdict(before)[name]}
        for before, one in pairwise(settings)
    ]
    assert all(changed) and sum(map(len, changed)) == len(set().union(*changed))
    assert changed[-2:] == [{"prior"}, {"views"}]


def test_the_ablation_groups_settings_that_exist(head):
    grouped = [name for names in head.head_rows.STAGES for name in names]
    assert set(grouped) <= {field.name for field in fields(HeadSettings)} and len(grouped) == len(set(grouped))


def test_the_ablation_of_a_store_without_views_leaves_views_alone(head, bench):
    without = replace(bench, rows=replace(bench.rows, view_VND=()))
    assert not any("views" in variant.name for variant in head.head_rows.ablation(without))


def test_the_ablation_runs(run, head, bench):
    rows, _, printed = run("ablation", "--labels", "12")
    assert len(rows) == len({row["name"] for row in rows}) > 5
    assert all(row["settings"]["steps"] == 5 for row in rows)
    for before, row in pairwise(rows):
        assert row["difference"]["mean_difference"] == pytest.approx(row["mean"] - before["mean"])
        assert f"| {row['name']} |" in printed


def test_the_terms_are_switched_on_one_by_one(run, head, bench):
    variants = {variant.name: variant.settings for variant in head.head_rows.terms(bench)}
    assert not variants["L_c"].semi_supervised
    alone = variants["L_c + D_c"]
    assert alone.lambda_c > 0 and alone.lambda_s == alone.lambda_y == alone.lambda_yy == alone.lambda_mix == 0
    whole = method_settings("content-style-paper", bench.settings)
    assert variants["L_c + D_c + D_s + L_y"] == replace(whole, lambda_y=0.0)
    assert variants["L_c + D_c + D_s + L_y + 1 D_y"] == replace(whole, lambda_y=1.0)
    rows, _, _ = run("terms", "--labels", "12")
    assert [row["name"] for row in rows] == list(variants)
    assert {row["against"] for row in rows} == {None, "L_c", "L_c + D_c + D_s + L_y"}
    some, _, _ = run("terms", "--labels", "12", "--rows", "7", "9", "1")
    assert [row["name"] for row in some] == [list(variants)[number] for number in (7, 9, 1)]
    assert [row["against"] for row in some] == [None, "L_c + D_c + D_s + L_y", None]


def test_views_are_counted_as_far_as_the_store_holds_them(run):
    rows, _, printed = run("views", "--labels", "12", "--views", "0", "1", "2", "3", "4")
    assert [row["settings"]["views"] for row in rows] == [0, 1, 2]
    assert "holds 2 views" in printed and all(row["seconds_a_head"] > 0 for row in rows)
    assert [row["against"] for row in rows] == [None, "0 views", "0 views"]


def test_the_long_tail_has_the_shares_that_are_given(head, bench):
    thinned, variants = head.head_rows.imbalance(bench, 20)
    given = np.array(variants[-1].settings.prior_given)
    assert given.sum() == pytest.approx(1) and given[0] / given[-1] == pytest.approx(20)
    for label in (thinned.rows.label_N, thinned.rows.eval_label_M):
        counts = np.bincount(label, minlength=CLASSES)
        np.testing.assert_allclose(counts / counts.sum(), given, atol=1 / counts.sum())
    assert len(thinned.rows.token_ND) == len(thinned.rows.view_VND[0]) == len(thinned.rows.row_id_N)
    same = np.isin(bench.rows.row_id_N, thinned.rows.row_id_N)
    assert torch.equal(bench.rows.token_ND[torch.from_numpy(same)], thinned.rows.token_ND)


def test_the_long_tail_runs(run):
    rows, _, _ = run("imbalance", "--labels", "6", "--apart", "2", "20")
    assert [row["settings"]["prior"] for row in rows] == ["uniform", "uniform", "estimated", "given"] * 2
    assert [row["apart"] for row in rows] == [2] * 4 + [20] * 4


@pytest.mark.parametrize("style_term", ["adversarial", "gaussian"])
def test_products_are_those_of_a_real_step(head, bench, style_term):
    settings = replace(bench.settings, style_term=style_term, steps=100, hidden=16)
    ready = head.head_products.make_ready(bench.study(12, settings, heads=3))
    products = head.head_products.products_of_a_step(ready)
    with FlopCounterMode(display=False) as counter:
        _, done = ready.run(10)
    assert sum(product.operations for product in products) * done == counter.get_total_flops() > 0
    assert all(product.left.shape[0] == 3 for product in products)


def test_a_factor_lies_in_memory_as_the_real_one_did(head):
    kept = head.head_products.Layout
    for factor in (torch.ones(2, 3, 4).mT, torch.ones(2, 1, 4).expand(2, 3, 4), torch.ones(5, 6)[:, 1:3]):
        made = kept(tuple(factor.shape), factor.stride(), factor.dtype).filled()
        assert made.shape == factor.shape and made.stride() == factor.stride()


def test_products_run(run):
    words = ("--labels", "12", "--heads", "1", "3", "--rounds", "1", "--timed-steps", "4")
    told, _, printed = run("products", *words)
    one, three = told["rows"]
    assert three["operations"] == 3 * one["operations"] and len(three["shapes"]) == len(one["shapes"])
    assert one["ratio"] == pytest.approx(one["step_seconds"] / one["product_seconds"])
    spent = [row["seconds"] for row in one["operators"]]
    assert len(spent) == 12 and spent[:10] == sorted(spent[:10], reverse=True) and spent[9] > 0
    assert "Where a step of 3 heads" in printed


def test_a_timed_training_stops_after_whole_blocks_of_the_real_loop(head, bench, monkeypatch):
    steps = []
    import cspipe.headtrain.train as loop

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *given, **named: steps.append(1) or real(*given, **named))
    settings = replace(bench.settings, steps=200, hidden=16)
    ready = head.head_products.make_ready(bench.study(12, settings, heads=2))
    assert ready.heads == 2 and ready.steps == 200 and not steps
    _, done = ready.run(10)
    assert done == len(steps) == 12  # blocks of 200 / 50 steps
    steps.clear()
    assert ready.run(8)[1] == len(steps) == 8
    steps.clear()
    assert ready.run(1000)[1] == len(steps) == 200


def test_speed_compares_whole_trainings_on_the_same_rows(run):
    words = ("--labels", "12", "--heads", "1", "4", "--rounds", "1", "--timed-steps", "2", "--no-compile")
    told, _, printed = run("speed", *words)
    plain, one, four = told["rows"]
    assert [plain["heads"], one["heads"], four["heads"]] == [1, 1, 4]
    assert four["times_as_fast"] == pytest.approx(plain["seconds_a_head"] / four["seconds_a_head"])
    assert four["seconds_a_head"] == pytest.approx((four["set_up_seconds"] + 5 * four["step_seconds"]) / 4)
    assert set(plain["by_split"]) == set(four["by_split"]) == {"0", "1"} and set(one["by_split"]) == {"0"}
    gap = np.mean(list(four["by_split"].values())) - np.mean(list(plain["by_split"].values()))
    assert four["versus_plain"]["mean_difference"] == pytest.approx(gap)
    assert "plain loop, eager" in printed


def test_the_plain_loop_learns(head, bench):
    study = bench.study(24, bench.settings, heads=1)
    loop, judged_MD = head.head_speed.make_loop(study)
    loop.net.restart(0)
    loop.train(torch.from_numpy(study.trials[0].labelled), 60)
    predicted_M = loop.net.probabilities(judged_MD).argmax(1).numpy()
    assert (predicted_M == bench.rows.eval_label_M).mean() > 0.9


def test_a_compiler_that_fails_leaves_the_plain_loop_as_it_is(head, bench, monkeypatch, capsys):
    def fail(function):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    study = bench.study(24, bench.settings, heads=1)
    loop, _ = head.head_speed.make_loop(study)
    chosen, name = head.head_speed.faster(loop, torch.from_numpy(study.trials[0].labelled), 2)
    assert chosen is loop and name == "plain loop, eager"
    assert "torch.compile failed: no compiler here\n" in capsys.readouterr().out
