"""Training on tokens that stay in their store: the window, its bound, and what is refused."""

import os
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from cspipe.common import Common
from cspipe.config import load_config
from cspipe.headtrain import HeadTask, fit_heads
from cspipe.headtrain.chunked import ChunkedTokens, available_bytes, chunked_split, resident_bytes
from cspipe.headtrain.projection import fit_projection
from cspipe.headtrain.rows import labelled_positions, read_rows
from cspipe.headtrain.run import run_head
from cspipe.headtrain.streaming import peak_bytes, shuffled_passes, streamed_table, window_rows
from cspipe.stages import head
from cspipe.store import open_store
from cspipe.store.commits import embedding_file
from cspipe.store.errors import DamageError, SettingError
from cspipe.store.split import split_hash

PLENTY = 10**9
ROWS, CHUNK = 400, 64


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 rows, so that small stores have several."""
    monkeypatch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: CHUNK)


@pytest.fixture
def chunked(small_chunks, make_store, blobs):
    """400 training rows in seven chunks, two of them flagged, with one view: token + 100."""
    train, view = blobs(ROWS, 1), blobs(ROWS, 1)
    view.token[...] += 100
    splits = {"train": train, "train-affine-1": view, "test": blobs(150, 2)}
    return make_store(splits, same_images=("train-affine-1",), bad=(5, 70))


@pytest.fixture
def tokens(chunked):
    """The training rows, then their view."""
    return chunked_split(open_store(chunked), "train", ["train-affine-1"], PLENTY)


def limit_for(tokens, window, labelled, *, views=0):
    """The memory limit that leaves room for so many rows, and no more."""
    width, itemsize = tokens.shape[1], tokens.itemsize
    return peak_bytes(
        window=window, labelled=labelled, chunk=CHUNK, width=width, projected=width, views=views, itemsize=itemsize
    )


def opened_table(parts, labelled, settings, window):
    """The table of one head, with room for so many unlabelled rows."""
    limit = limit_for(parts[0], window, len(labelled), views=len(parts) - 1)
    parts = [replace(part, limit_bytes=limit) for part in parts]
    label_N = torch.arange(len(parts[0])) % 3
    every = np.arange(len(parts[0]))
    return streamed_table(parts, label_N, [labelled], [every], settings, seed=0, device="cpu")


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cspipe-tokens")]


def test_rows_that_stay_in_their_store_are_those_that_are_loaded(chunked, tokens):
    rows, streamed = read_rows(chunked, views=1), read_rows(chunked, views=1, stream_bytes=PLENTY)
    at = torch.tensor([397, 3, 64, 63, 64, 130])
    assert isinstance(streamed.token_ND, ChunkedTokens) and len(streamed.view_VND) == 1
    assert streamed.token_ND.shape == rows.token_ND.shape == (398, 24)
    assert torch.equal(torch.cat(list(streamed.token_ND.blocks())), rows.token_ND)
    assert torch.equal(streamed.token_ND[at], rows.token_ND[at])
    assert torch.equal(streamed.view_VND[0][at], rows.view_VND[0][at])
    assert streamed.label_N.tolist() == rows.label_N.tolist() and streamed.flagged == rows.flagged == 2
    assert torch.equal(streamed.eval_token_MD, rows.eval_token_MD)
    drawn = [labelled_positions(found, 30, 2, "balanced") for found in (rows, streamed)]
    assert all(np.array_equal(drawn[0][seed], drawn[1][seed]) for seed in (0, 1))


def test_dev_rows_are_held_out_of_rows_that_stay_in_their_store(chunked):
    rows, streamed = (read_rows(chunked, dev_rows=60, views=1, stream_bytes=limit) for limit in (None, PLENTY))
    assert len(streamed.token_ND) == len(streamed.view_VND[0]) == 338
    assert torch.equal(torch.cat(list(streamed.token_ND.blocks())), rows.token_ND)
    assert torch.equal(streamed.eval_token_MD, rows.eval_token_MD)
    assert streamed.eval_label_M.tolist() == rows.eval_label_M.tolist()


@pytest.mark.parametrize("anchors", [0, 40])
def test_the_projection_of_rows_in_their_store_is_that_of_the_same_rows_in_memory(chunked, tokens, anchors):
    loaded = fit_projection(read_rows(chunked).token_ND, 8, anchors=anchors)
    streamed = fit_projection(tokens[0], 8, anchors=anchors)
    torch.testing.assert_close(streamed.mean_D, loaded.mean_D, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(streamed.scale_D, loaded.scale_D, rtol=1e-5, atol=1e-5)
    cosine_P = (streamed.basis_DP * loaded.basis_DP).sum(0).abs()
    torch.testing.assert_close(cosine_P, torch.ones(8), rtol=0, atol=1e-4)
    if anchors:
        torch.testing.assert_close(streamed.around.mean_AD, loaded.around.mean_AD, rtol=1e-3, atol=1e-4)


def test_a_pass_visits_every_chunk_once_before_any_comes_again_in_another_order():
    drawn = list(islice(shuffled_passes(9, torch.Generator().manual_seed(0)), 45))
    passes = [drawn[start : start + 9] for start in range(0, 45, 9)]
    assert all(sorted(order) == list(range(9)) for order in passes)
    assert len({tuple(order) for order in passes}) == 5


def test_every_row_enters_the_window_equally_often_to_within_once(tokens, quick):
    entered = np.zeros(398, np.int64)
    with opened_table(tokens[:1], np.arange(6), replace(quick, views=0), 150) as table:
        place = {row.numpy().tobytes(): number for number, row in enumerate(every_row(tokens[0], table))}
        window = table.table_TP[6:]
        before = torch.zeros_like(window)
        for step in range(61):
            if step:
                table.renew()
            changed = (window != before).any(1)
            np.add.at(entered, [place[row.numpy().tobytes()] for row in window[changed]], 1)
            before = window.clone()
            assert entered.max() - entered.min() <= 1, step
    assert entered.sum() == 150 + 60 * 32  # as many as 60 steps draw


def every_row(tokens, table):
    """All rows as the table shows them: projected chunk by chunk."""
    return torch.cat([table.projections[0].rows(block) for block in tokens.blocks()])


def test_labelled_rows_stay_in_place_and_views_stay_beside_their_rows(tokens, quick):
    labelled = np.array([2, 77, 300])
    with opened_table(tokens, labelled, quick, 150) as table:
        clean, view = table.table_TP.view(2, -1, 24)
        known = table.projections[0].rows(tokens[0][torch.from_numpy(labelled)])
        shift = table.projections[0].rows(tokens[0][torch.tensor([0])] + 100) - table.projections[0].rows(
            tokens[0][torch.tensor([0])]
        )
        assert torch.equal(table.labelled[0], torch.arange(3)) and table.label_T[:3].tolist() == [2, 2, 0]
        before = clean[3:].clone()
        for _ in range(40):
            table.renew()
            torch.testing.assert_close(clean[:3], known)
            torch.testing.assert_close(view - clean, shift.expand_as(clean), rtol=1e-4, atol=1e-3)
        assert not torch.equal(before, clean[3:])


def test_a_window_as_large_as_the_data_trains_heads_as_good_as_resident_rows_do(chunked, quick):
    assert abs(mean_accuracy(chunked, quick, None) - mean_accuracy(chunked, quick, PLENTY)) < 0.03


def test_a_window_of_a_third_of_the_rows_trains_heads_nearly_as_good(chunked, quick):
    limit = limit_for(read_rows(chunked, stream_bytes=PLENTY).token_ND, 130, 30, views=1)
    assert mean_accuracy(chunked, quick, limit) > mean_accuracy(chunked, quick, None) - 0.05


def mean_accuracy(path, settings, stream_bytes):
    """Of five training seeds on one labelled split."""
    settings = replace(settings, steps=150)
    rows = read_rows(path, views=0, stream_bytes=stream_bytes)
    labelled, every = labelled_positions(rows, 30, 1, "balanced")[0], np.arange(len(rows.label_N))
    tasks = [HeadTask(labelled, every, seed) for seed in range(5)]
    fit = fit_heads(rows.token_ND, torch.from_numpy(rows.label_N), tasks, settings, classes=3, view_VND=rows.view_VND)
    assert len(reader_threads()) == 0
    return np.mean([(head.predict(rows.eval_token_MD) == rows.eval_label_M).mean() for head in fit.heads])


def test_a_damaged_chunk_is_told_from_the_reader_thread_and_leaves_no_thread(tokens, quick):
    labelled = np.arange(6)
    path = embedding_file(tokens[0].split.folder, 4)
    with pytest.raises(DamageError, match=r"c/4/0"), opened_table(tokens[:1], labelled, quick, 130) as table:
        bytes_now = bytearray(path.read_bytes())
        bytes_now[40] ^= 1
        path.write_bytes(bytes_now)
        for _ in range(60):
            table.renew()
    assert reader_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_training_leaves_no_thread(tokens, quick, error):
    def stop(step: int) -> None:
        assert len(reader_threads()) == 1
        raise error

    part = replace(tokens[0], limit_bytes=limit_for(tokens[0], 130, 6))
    task, label_N = HeadTask(np.arange(6), np.arange(398)), torch.arange(398) % 3
    with pytest.raises(error):
        fit_heads(part, label_N, [task], quick, classes=3, on_step=stop)
    assert reader_threads() == []


def test_supervised_heads_read_no_window(tokens, quick):
    settings = replace(quick, lambda_c=0.0, lambda_s=0.0, lambda_yy=0.0, lambda_mix=0.0)
    task, label_N = HeadTask(np.arange(30), np.arange(398)), torch.arange(398) % 3
    head = fit_heads(tokens[0], label_N, [task], settings, classes=3, view_VND=tokens[1:]).heads[0]
    loaded = fit_heads(torch.cat(list(tokens[0].blocks())), label_N, [task], settings, classes=3).heads[0]
    assert torch.isfinite(head.probabilities(tokens[0][torch.arange(9)])).all()
    torch.testing.assert_close(head.projection.mean_D, loaded.projection.mean_D, rtol=1e-5, atol=1e-5)
    assert reader_threads() == []


def test_the_window_is_what_the_limit_leaves_room_for(tokens, quick):
    part = replace(tokens[0], limit_bytes=limit_for(tokens[0], 200, 30))
    assert window_rows(part, 30, 24, 0, quick) == 200
    assert window_rows(replace(part, limit_bytes=PLENTY), 30, 24, 0, quick) == 398
    assert window_rows(replace(part, limit_bytes=PLENTY), 30, 24, 0, replace(quick, steps=5)) == 5 * 32
    small = replace(part, limit_bytes=limit_for(part, 127, 30))
    with pytest.raises(SettingError, match=r"30 labelled rows .* a window of 128 rows take .* GB.*memory_gb"):
        window_rows(small, 30, 24, 0, quick)


def test_a_head_that_may_not_look_at_all_rows_is_refused(tokens, quick):
    task = HeadTask(np.arange(6), np.arange(300))
    with pytest.raises(SettingError, match="not by cross-validation"):
        fit_heads(tokens[0], torch.arange(398) % 3, [task], quick, classes=3)


def test_a_run_streams_where_the_rows_do_not_fit_and_draws_the_same_labels(chunked, tmp_path, quick):
    def run(**options):
        methods = ("content-style", "supervised", "logistic", "knn")
        return run_head(
            store=chunked, runs=tmp_path / "runs", labels=30, seeds=2, settings=quick, methods=methods, **options
        )

    loaded = run()
    memory = limit_for(read_rows(chunked, stream_bytes=PLENTY).token_ND, 130, 60, views=1)
    opened = open_store(chunked)["train"]
    streamed = run(memory_gb=memory / 1e9)
    assert resident_bytes(opened, 1, ("content-style",), quick) == 398 * 2 * 24 * (4 + 4) > memory
    assert resident_bytes(opened, 1, ("self-training", "supervised"), quick) == 398 * 2 * 24 * (4 + 8)
    assert "streamed_in_gb" not in loaded["rows"]
    assert streamed["rows"] == loaded["rows"] | {"streamed_in_gb": pytest.approx(memory / 1e9, abs=1e-8)}
    assert streamed["split_hash"] == loaded["split_hash"]
    rows = read_rows(chunked)
    drawn = labelled_positions(rows, 30, 1, "balanced")[0]
    assert streamed["split_hash"]["0"] == split_hash(rows.row_id_N[drawn])
    for method in ("logistic", "knn"):
        assert streamed["summary"][method]["mean"] == pytest.approx(loaded["summary"][method]["mean"], abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("content-style", "label-propagation")}, r"label-propagation looks at all .*knn work so"),
        ({"methods": ("self-training",)}, r"self-training looks at all 398 training rows at once"),
        ({"memory_gb": 1e-6}, r"take .* GB, and training may take 1e-06 GB"),
    ],
)  # fmt: skip
def test_what_needs_all_rows_at_once_is_refused_before_any_work(chunked, tmp_path, quick, options, message):
    more = {"methods": options.get("methods", ("content-style",)), "memory_gb": options.get("memory_gb", 1e-4)}
    with pytest.raises(SettingError, match=message):
        run_head(store=chunked, runs=tmp_path / "runs", labels=30, seeds=1, settings=quick, **more)


def test_cross_validation_of_rows_in_their_store_is_refused(small_chunks, make_store, blobs, tmp_path, quick):
    path = make_store({"train": blobs(ROWS, 1)})
    with pytest.raises(SettingError, match=r"cross-validation .* looks at all 400 training rows"):
        run_head(store=path, runs=tmp_path / "runs", labels=30, seeds=1, settings=quick, memory_gb=1e-5)


def test_the_limit_can_be_set_in_pipeline_toml(chunked, tmp_path):
    (tmp_path / "made.toml").write_text(f"""
        runs = "{tmp_path / "runs"}"
        [head]
        labels = 30
        seeds = 1
        methods = ["knn"]
        memory_gb = 1e-4
    """)
    told = head(Common(quiet=True, verbose=True), load_config(tmp_path / "made.toml"), chunked)
    assert told["rows"]["streamed_in_gb"] == pytest.approx(1e-4)
    (tmp_path / "made.toml").write_text("[head]\nmemory_gb = 0\n")
    with pytest.raises(SettingError, match=r"head.memory_gb = 0 cannot be used"):
        load_config(tmp_path / "made.toml")


def test_free_memory_is_what_the_system_or_the_container_allows(monkeypatch, tmp_path):
    told, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    told.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    monkeypatch.setattr("cspipe.headtrain.chunked.MEMORY_TOLD", told)
    monkeypatch.setattr("cspipe.headtrain.chunked.CONTAINER_LIMIT", limit)
    assert available_bytes() == 3000 * 1024
    limit.write_text("max\n")
    assert available_bytes() == 3000 * 1024
    limit.write_text("2048000\n")
    assert available_bytes() == 1536000
    told.unlink()
    limit.unlink()
    assert available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
