"""Stores, heads and runs of every format version are read for ever: these files are never written again."""

from pathlib import Path

import numpy as np
import torch

from cspipe.headtrain.headfile import load_head
from cspipe.headtrain.runs import finished_runs, read_report
from cspipe.store import open_store
from cspipe.store.layout import latest_store
from cspipe.store.verify import verify_store

GOLDEN = Path(__file__).parent / "golden" / "format-1"


def test_a_store_of_format_1_is_read():
    store = open_store(GOLDEN / "stores" / "blobs--tiny--golden.zarr")
    train = store["train"]
    assert store.class_names == ["left", "right"] and store.backbone == "tiny"
    assert train.embedding().shape == (11, 4) and train.embedding().dtype == np.float16
    assert train.label().tolist() == [0, 1, 0, 0, 1, 0, 1, -1, -1, -1, -1]
    assert train.row_id().tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert train.flagged() == 1 and np.isnan(train.embedding(all_rows=True)[3]).all()
    assert train.path()[0] == "train/00.png"
    np.testing.assert_allclose(store["test"].embedding().astype(float).sum(), TEST_SUM, rtol=1e-6)


def test_a_store_of_format_1_is_whole():
    assert verify_store(GOLDEN / "stores" / "blobs--tiny--golden.zarr") == []
    assert latest_store(GOLDEN / "stores") == GOLDEN / "stores" / "blobs--tiny--golden.zarr"


def test_a_run_of_format_1_is_read():
    (run,) = finished_runs(GOLDEN / "runs", "head")
    told = read_report(run)
    assert told["command"] == "head" and set(told["summary"]) == {"content-style", "supervised", "logistic"}


def test_a_head_of_format_1_gives_the_same_probabilities():
    (run,) = finished_runs(GOLDEN / "runs", "head")
    saved = load_head(run / "heads" / "content-style-0.safetensors")
    tokens = open_store(GOLDEN / "stores" / "blobs--tiny--golden.zarr")["test"].embedding()
    probability = saved.head.probabilities(torch.from_numpy(tokens))
    assert saved.card["class_names"] == ["left", "right"] and len(saved.labelled_row_id) == 4
    np.testing.assert_allclose(probability[:, 0].numpy(), PROBABILITY, atol=1e-5)


TEST_SUM = -2.259765625
PROBABILITY = [0.620467, 0.348799, 0.684567, 0.374249, 0.634712, 0.317221]
