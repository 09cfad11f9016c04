"""What the report shows of images: mistakes, doubts, fine-tuning before and after; and what it says of lost heads."""

import json
import shutil

import numpy as np
import pytest

from cspipe.curves import restarts
from cspipe.examples import SHOWN, find_examples
from cspipe.headtrain import load_head
from cspipe.store import open_store
from cspipe.verdicts import restart_words


def parts(head_run, made):
    return json.loads((head_run / "report.json").read_text()), open_store(next((made / "stores").glob("*.zarr")))


def test_mistakes_are_the_most_confident_ones_and_doubts_the_least_certain_rows(head_run, made):
    told, store = parts(head_run, made)
    shown = find_examples(head_run, told, store, dev_rows=0)
    head = load_head(head_run / "heads" / "content-style-0.safetensors").head
    import torch

    probability = head.probabilities(torch.from_numpy(store["test"].embedding().astype(np.float32))).numpy()
    label = store["test"].label()
    wrong = np.flatnonzero(probability.argmax(1) != label)
    expected = wrong[np.argsort(-probability.max(1)[wrong], kind="stable")][:SHOWN]
    assert {one.path for one in shown.mistakes} == {store["test"].path()[row] for row in expected}
    assert shown.wrong == len(wrong) and all(one.wrong and one.actual != one.guess for one in shown.mistakes)
    unsure = np.argsort(probability.max(1), kind="stable")[:SHOWN]
    assert [one.path for one in shown.unsure] == [store["test"].path()[row] for row in unsure]
    assert all(one.src.startswith("data:image/webp;base64,") for one in shown.unsure)


def test_after_cross_validation_no_image_is_shown_whose_label_the_head_learned(head_run, made):
    told, store = parts(head_run, made)
    shown = find_examples(head_run, told | {"evaluation": "cross-validation"}, store, dev_rows=0)
    learned = load_head(head_run / "heads" / "content-style-0.safetensors").labelled_row_id
    row_of = dict(zip(store["train"].path(), store["train"].row_id(), strict=True))
    assert shown.rows == len(row_of) - len(learned)
    assert not {row_of[one.path] for one in [*shown.mistakes, *shown.unsure]} & set(learned.tolist())


def test_page_shows_thumbnails_and_says_why_where_there_are_none(head_run, made, page_of, tmp_path, monkeypatch):
    run = tmp_path / head_run.name
    shutil.copytree(head_run, run)
    page = page_of(run, stores=made / "stores")
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) >= SHOWN and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "The images that it is least certain of" in page.text
    from cspipe import examples
    from cspipe.store.errors import MissingDataError

    def gone(*_):
        raise MissingDataError("the images moved")

    monkeypatch.setattr(examples, "recorded_dataset", gone)
    bare = page_of(run, stores=made / "stores")
    assert "No thumbnails. the images moved" in bare.text and "img" not in bare.tags
    assert "t-SNE of" in bare.text


def lost(method, split_seed, counts):
    told = {"method": method, "split_seed": split_seed, "train_seed": 0, "fold": 0}
    return [told | {"step": 10 * (at + 1), "L_c": 1.0, "restarts": count} for at, count in enumerate(counts)]


def test_lost_heads_are_told_with_how_often_they_went_back(make_run, head_report, page_of):
    records = [*lost("content-style", 0, [0, 1, 2]), *lost("content-style", 1, [0, 0, 0]), *lost("supervised", 0, [0])]
    assert restarts(records) == {"content-style": (1, 2, 2), "supervised": (0, 0, 1)}
    better = {"content-style": [0.9, 0.9], "supervised": [0.8, 0.8]}
    page = page_of(make_run(head_report(better), records))
    assert "1 of 2 heads of content-style became not finite while training and went back" in page.text
    assert "2 times in all" in page.text and "supervised became" not in page.text
    assert restart_words({"supervised": (0, 0, 1)}) == []


def test_restarts_are_no_curve_and_no_sentence_where_none_was_lost(make_run, head_report, page_of):
    page = page_of(make_run(head_report({"content-style": [0.9], "logistic": [0.8]}), lost("content-style", 0, [0, 0])))
    assert "restarts" not in page.text and "became not finite" not in page.text


def test_document_of_a_head_run_counts_restarts_by_method(head_run):
    told = json.loads((head_run / "report.json").read_text())
    assert told["restarts"]["content-style"] == 0 and "logistic" not in told["restarts"]


@pytest.mark.slow
def test_page_of_a_fine_tuning_shows_the_rows_before_and_after(head_run, made, document, page_of, tmp_path):
    places = ["--stores", made / "stores", "--runs", tmp_path / "runs", "--quiet"]
    few = ["--unfreeze-blocks", "1", "--epochs", "1", "--limit", "60"]
    told = document("finetune", "--head", head_run, *few, *places)
    run = next((tmp_path / "runs").glob("*-finetune-*"))
    page = page_of(run, stores=made / "stores")
    assert "Before fine-tuning" in page.text and "After fine-tuning" in page.text
    assert page.text.count("neighbours alike") == 6 and "CKA with the frozen tokens" in page.text
    shutil.rmtree(told["model_dir"])
    bare = page_of(run, stores=made / "stores")
    assert "No picture of the tokens. the tuned model is no longer at" in bare.text and "After fine" not in bare.text
