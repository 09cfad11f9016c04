"""The benchmark of predicting runs on few images, and refuses to time ways that do not do the same."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.store.errors import MismatchError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/predict.py, imported as it is when it runs as a script, under a name that nothing else has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("predict_benchmark", BENCHMARKS / "predict.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for the disk, and the number of threads back afterwards."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_way_is_timed_round_by_round_on_the_same_images(benchmark, tmp_path, capsys):
    benchmark.main([
        "--part", "pngs", "--images", "35", "--image-px", "32", "--rounds", "2", "--folder", str(tmp_path), "--out",
        str(tmp_path / "out.json"),
    ])  # fmt: skip
    told = json.loads((tmp_path / "out.json").read_text())["parts"]["pngs"]
    rows = {row["what"]: row for row in told["rows"]}
    rate = {what: row["images_per_second"]["values"] for what, row in rows.items()}
    assert told["images"] == 32 and {len(values) for values in rate.values()} == {2}
    bound = [1 / (1 / one + 1 / other) for one, other in zip(rate["decode alone"], rate["bare forward"], strict=True)]
    assert rate["1 / (1 / decode + 1 / forward)"] == pytest.approx(bound)
    for what in ("cspipe predict", "probabilities(PATHS)"):
        to_forward = np.divide(rate[what], rate["bare forward"])
        assert rows[what]["ratio"]["values"] == pytest.approx(to_forward.tolist())
        assert rows[f"{what}, to that bound"]["ratio"]["values"] == pytest.approx(np.divide(rate[what], bound).tolist())
    assert rate["its embedding alone, to that bound"][0] > rate["cspipe predict"][0]
    assert told["probabilities_apart"] < 1e-3 and told["seconds_beside_embedding"] > 0
    assert "digits as PNG files, 32 images, lite0 at 32 px" in capsys.readouterr().out


def test_ways_that_say_different_things_are_not_timed(benchmark):
    class Other:
        def probabilities(self, paths):
            return np.full((len(paths), 2), 0.5)

    document = {"images": 3, "bad_images": [], "probability": [0.5, 0.5, 0.5]}
    assert benchmark.check_agreement(document, Other(), ["a", "b", "c"]) == 0
    for changed in ({"probability": [0.5, 0.7, 0.5]}, {"images": 2}, {"bad_images": [{}]}):
        with pytest.raises(MismatchError, match="do not do the same"):
            benchmark.check_agreement(document | changed, Other(), ["a", "b", "c"])
