"""The explorer's benchmark counts script once, by the frame in which it ran, and runs on a page."""

import importlib.util
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/explorer.py, imported as it is when it runs as a script, under a name that nothing else has."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("explorer_benchmark", BENCHMARKS / "explorer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def event(name, start_ms, clock_ms, processor_ms=None):
    return {"name": name, "ts": 1000 * start_ms, "dur": 1000 * clock_ms, "tdur": 1000 * (processor_ms or clock_ms)}


def test_script_inside_script_counts_once_and_in_the_frame_that_it_ends_in(benchmark):
    events = [
        event("EventDispatch", 0, 2, 1), event("FunctionCall", 0.5, 1), event("Paint", 3, 5),
        event("FireAnimationFrame", 10, 4, 3), event("FunctionCall", 10, 3.5), event("FunctionCall", 12, 1),
        event("TimerFire", 20, 1), event("FireAnimationFrame", 30, 2), event("TimerFire", 40, 100),
    ]  # fmt: skip
    assert [e["name"] for e in benchmark.outermost(events)] == [
        "EventDispatch", "FireAnimationFrame", "TimerFire", "FireAnimationFrame", "TimerFire",
    ]  # fmt: skip
    told = benchmark.by_frame(events)
    assert (told["frames"], told["clock_most"], told["clock_mean"]) == (2, 6, 4.5)
    assert (told["processor_most"], told["processor_mean"]) == (4, 3.5)


@pytest.mark.slow
def test_a_page_is_opened_moved_and_hovered(benchmark, browser, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "MOVES", 10)
    told = benchmark.measure(browser, run / "explorer.html", 1)
    benchmark.tell(told)
    assert told["rows"] == 132 and len(told["load_seconds"]) == 1
    for name in ("pan", "zoom"):
        (frames,) = told[name]
        assert frames["frames"] > 5 and frames["processor_mean"] > 0 and frames["clock_most"] > 0
    (latency,) = told["latency"]
    assert latency["hovers"] >= 10 and 0 < latency["words_median"] <= latency["words_most"]
    assert latency["image_median"] >= latency["words_median"]
    json.dumps(told, allow_nan=False)
    assert "132 points" in capsys.readouterr().out
