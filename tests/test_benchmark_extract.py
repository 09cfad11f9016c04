"""The extraction benchmark runs, part by part, on few small images, and measures what it says it measures."""

import importlib.util
import json
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cspipe.store.errors import MissingDataError, SettingError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SIDE_PX, COUNT = 64, 16


@pytest.fixture(scope="module")
def extract():
    """benchmarks/extract.py, imported as it is when it runs as a script, under a name that nothing else has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("extract_benchmark", BENCHMARKS / "extract.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """Noisy JPEGs in two class folders, three more than one batch."""
    folder, generator = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    for number in range(COUNT + 3):
        place = folder / ("left" if number % 2 else "right") / f"{number:02d}.jpg"
        place.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        coarse.resize((100, 80), Image.Resampling.BILINEAR).save(place)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for the disk, and the number of threads back afterwards."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(extract, tmp_path):
    """Two workers, one round."""
    loaded = extract.make_bench(tmp_path, image_px=SIDE_PX, rounds=1)
    return extract.Bench(loaded.lane, 2, 1, tmp_path)


@pytest.fixture
def run(extract, jpegs, tmp_path, capsys):
    """A function (part, more words) -> the part's figures, and what was printed."""

    def call(part, *words):
        out = tmp_path / "out.json"
        extract.main([
            "--part", part, "--jpegs", str(jpegs), "--images", str(COUNT + 3), "--array-images", str(COUNT + 3),
            "--image-px", str(SIDE_PX),
            "--rounds", "2", "--folder", str(tmp_path), "--out", str(out), *words,
        ])  # fmt: skip
        document = json.loads(out.read_text())
        assert document["environment"]["torch"] == version("torch") and document["batch_size"] == 16
        return document["parts"][part], capsys.readouterr().out

    return call


def medians(told):
    return {row["what"]: row["images_per_second"]["median"] for row in told["rows"]}


def test_arrays_are_compared_round_by_round_with_the_bare_forward_pass(run):
    told, printed = run("arrays")
    bare, ours = told["rows"]
    assert told["images"] == COUNT and [bare["what"], ours["what"]] == ["bare forward", "cspipe extract"]
    pairs = zip(ours["images_per_second"]["values"], bare["images_per_second"]["values"], strict=True)
    assert ours["ratio"]["values"] == pytest.approx([one / other for one, other in pairs])
    assert len(ours["ratio"]["values"]) == 2
    assert sum(told["share_by_stage"].values()) == pytest.approx(1)
    assert "digits, 16 images, lite0 at 64 px" in printed and "| cspipe extract |" in printed


def test_jpegs_are_compared_with_decoding_and_forward_one_after_the_other(run):
    told, _ = run("jpegs")
    rates = {row["what"]: row["images_per_second"]["values"] for row in told["rows"]}
    pairs = zip(rates["decode alone"], rates["bare forward"], strict=True)
    assert rates["1 / (1 / decode + 1 / forward)"] == pytest.approx(
        [decode * forward / (decode + forward) for decode, forward in pairs]
    )
    assert told["rows"][-1]["ratio"]["values"][0] == pytest.approx(
        rates["cspipe extract"][0] / rates["1 / (1 / decode + 1 / forward)"][0]
    )


def test_the_bare_forward_pass_gives_the_embeddings_that_extraction_stores(extract, bench, jpegs):
    forward = extract.extract_forward
    folder = extract.make_folder(sorted(jpegs.glob("*/*")), COUNT, bench.folder / "some")
    split = forward.load_dataset(folder).splits["train"]
    seen = []
    hook = bench.lane.model.register_forward_hook(lambda module, given, out: seen.append(out.numpy()))
    for batch in [forward._ready(bench.lane, split, images) for images in forward._batches(bench, split, COUNT)]:
        assert batch.is_contiguous(memory_format=torch.channels_last)
        forward._forward(bench.lane, batch)
    hook.remove()
    ours = extract.extract_forward.run_extract(bench, str(folder)).token_ND
    assert extract.extract_peers.lowest_cosine(np.concatenate(seen), ours) > 0.9999


def test_the_loop_gives_the_same_embeddings_and_its_best_settings_are_kept(extract, bench, jpegs, monkeypatch):
    peers = extract.extract_peers
    folder = extract.make_folder(sorted(jpegs.glob("*/*")), COUNT, bench.folder / "some")
    way = peers.loop(bench)
    few = [settings for settings in way.settings if settings["workers"] == 0]
    (told,) = peers.compare(bench, folder, [peers.Way(way.name, few, way.run)], "A loop")
    assert told["lowest_cosine"] > 0.9999
    speeds = {json.dumps(trial["settings"]): trial["images_per_second"] for trial in told["tried"]}
    assert len(speeds) == 2 and json.dumps(told["settings"]) == max(speeds, key=speeds.get)
    ours, other = (row["images_per_second"]["values"][0] for row in told["rows"])
    assert told["rows"][1]["ratio"]["median"] == pytest.approx(other / ours)


def test_a_way_to_other_embeddings_does_not_count(extract, bench, jpegs, capsys):
    peers = extract.extract_peers
    folder = extract.make_folder(sorted(jpegs.glob("*/*")), COUNT, bench.folder / "some")

    def run(where, settings):
        return peers.Answer(1.0, np.random.default_rng(0).normal(size=(len(peers.listed(where)), 1280)))

    (told,) = peers.compare(bench, folder, [peers.Way("noise", [{}], run)], "Wrong")
    assert "rows" not in told and told["lowest_cosine"] < 0.5
    assert "noise gives other embeddings" in capsys.readouterr().out


def test_the_lowest_cosine_knows_zeros_and_values_that_are_no_number(extract):
    cosine = extract.extract_peers.lowest_cosine
    one = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert cosine(one, 2 * one) == pytest.approx(1)
    assert cosine(one, np.array([[3.0, 4.0], [1.0, 0.0]])) == 0
    assert cosine(one, np.array([[np.nan, 4.0], [0.0, 0.0]])) == 0
    assert cosine(one, np.array([[4.0, 3.0], [0.0, 0.0]])) == pytest.approx(0.96)
    with pytest.raises(SettingError, match=r"\(2, 2\) and \(1, 2\)"):
        cosine(one, one[:1])


def test_transformers_runs_on_the_folder_that_timm_wrote(extract, bench, jpegs):
    peers = extract.extract_peers
    folder = extract.make_folder(sorted(jpegs.glob("*/*")), 4, bench.folder / "some")
    way = peers.transformers_pipeline(bench, peers.write_model(bench))
    answer = way.run(folder, way.settings[0])
    ours = extract.extract_forward.run_extract(bench, str(folder)).token_ND
    assert answer.seconds > 0 and peers.lowest_cosine(answer.token_ND, ours) > 0.9999


def test_a_python_without_the_peer_is_told_with_its_reason(extract, bench, tmp_path):
    with pytest.raises(SettingError, match="cannot run imagededup"):
        extract.extract_peers.imagededup(bench, tmp_path, Path(sys.executable))


def test_work_is_done_once_each_by_single_threaded_workers_at_the_same_time(extract, bench, monkeypatch):
    both, seen, told = threading.Barrier(2, timeout=30), [], {}
    monkeypatch.setattr(torch, "set_num_threads", lambda count: told.setdefault(threading.get_ident(), count))

    def call(item):
        both.wait()
        seen.append((item, threading.get_ident()))

    assert extract.extract_forward.on_workers(bench, call, range(4)) > 0
    assert sorted(item for item, _ in seen) == [0, 1, 2, 3]
    threads = {thread for _, thread in seen}
    assert len(threads) == 2 and [told[thread] for thread in threads] == [1, 1]


def test_rounds_alternate_and_the_first_is_not_kept(extract):
    order, rate = [], iter(range(1, 100))
    calls = {name: lambda name=name: (order.append(name), float(next(rate)))[1] for name in "ab"}
    assert extract.extract_forward.alternate(2, calls) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(order) == "ababab"


def test_memory_is_that_of_a_process_of_its_own(extract):
    ballast = np.ones(3 * 2**29 // 8)  # what is resident here must not show there
    told = extract.extract_memory.measure([64], 1)
    (row,) = told["rows"]
    assert 0 < row["before_bytes"] <= row["peak_bytes"] < ballast.nbytes
    assert told["bytes_a_further_row"] is None


def test_a_batch_that_is_not_filled_and_a_folder_without_images_are_plain_errors(extract, bench, jpegs, tmp_path):
    split = extract.extract_forward.load_dataset(jpegs).splits["train"]
    with pytest.raises(SettingError, match="a batch is 16 images, 15 were given"):
        extract.extract_forward._batches(bench, split, 15)
    with pytest.raises(SettingError, match="no JPEG"):
        extract.make_folder([], 16, tmp_path / "none")
    with pytest.raises(SettingError, match="no JPEG"):
        extract.make_folder(sorted(jpegs.glob("*/*")), 0, tmp_path / "none")


def test_the_textiles_are_2000_jpegs_of_three_classes_or_an_error_that_names_the_package(extract, monkeypatch):
    pytest.importorskip("conformal_clip_data")
    found = extract.textiles()
    assert len(found) == 2000 and {path.parent.name for path in found} == {"global", "local", "nominal"}
    monkeypatch.setattr(sys.modules[extract.textiles.__module__], "TEXTILES", "no-such-distribution")
    with pytest.raises(MissingDataError, match="pip install no-such-distribution"):
        extract.textiles()
