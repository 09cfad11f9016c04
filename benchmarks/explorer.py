"""The explorer's own work a frame: JavaScript on the main thread while a map is moved and zoomed, hover, loading.

    python benchmarks/explorer.py PAGE [--rounds N] [--out FILE]

PAGE is what `cspipe explore` wrote. It is opened in Chromium under Playwright, whose own trace of the renderer's main
thread tells when script ran: callbacks of frames, events, timers, promises, garbage collection. `processor` is the time
that the thread ran, `clock` what passed meanwhile, waits for the graphics driver among it: without a graphics card the
driver works on the same cores, and the frames a second that are seen are the driver's, not the page's. A frame at 60 a
second has 16.7 ms for everything.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from head_bench import heading, say
from playwright.sync_api import Browser, Page, sync_playwright

from cspipe.headtrain.runs import environment, write_json

Document = dict[str, Any]
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
CATEGORIES = ["devtools.timeline", "v8"]
SCRIPT = {
    "FireAnimationFrame", "FunctionCall", "EventDispatch", "TimerFire", "RunMicrotasks", "v8.callFunction",
    "v8.newInstance", "BlinkScheduler_PerformMicrotaskCheckpoint", "MajorGC", "MinorGC", "EvaluateScript",
}  # fmt: skip
MOVES, HOVERED = 60, 40
WATCH = """() => {
    const tip = document.getElementById("tip");
    let moved = 0, row = "";
    window.hovers = [];
    window.addEventListener("mousemove", (event) => { moved = event.timeStamp; }, { capture: true });
    new MutationObserver(() => {
        const now = performance.now(), canvas = tip.querySelector("canvas");
        if (tip.hidden || tip.dataset.row === row) return;
        row = tip.dataset.row;
        const told = { told: now - moved, image: null };
        window.hovers.push(told);
        const drawn = () => { told.image = performance.now() - moved; };
        if (canvas.dataset.drawn) drawn();
        else new MutationObserver(drawn).observe(canvas, { attributes: true });
    }).observe(tip, { attributes: true, childList: true });
}"""
PLACES = """(rows) => {
    const box = document.getElementById("points").getBoundingClientRect();
    return rows.map((row) => explorer.scatter.getScreenPosition(row)).map(([x, y]) => [x + box.left, y + box.top]);
}"""


def open_page(browser: Browser, file: Path) -> tuple[Page, float]:
    """The page, ready to be moved, and the seconds that it took."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page, begun = context.new_page(), time.perf_counter()
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    return page, time.perf_counter() - begun


def middle(page: Page) -> tuple[float, float]:
    """The middle of the map, in CSS pixels of the window."""
    box = page.locator("#points").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def pan(page: Page) -> None:
    """Drags the map there and back."""
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    for step in np.concatenate([np.arange(MOVES), np.arange(MOVES)[::-1]]).tolist():
        page.mouse.move(x + 3 * step, y + step)
        page.wait_for_timeout(16)
    page.mouse.up()


def zoom(page: Page) -> None:
    """Turns the wheel in and out."""
    page.mouse.move(*middle(page))
    for step in [-60] * (MOVES // 2) + [60] * (MOVES // 2):
        page.mouse.wheel(0, step)
        page.wait_for_timeout(16)


def traced(browser: Browser, page: Page, act: Any) -> list[Document]:  # noqa: ANN401 - a function of the page
    """What the renderer's main thread did while the page was acted on."""
    browser.start_tracing(page=page, categories=CATEGORIES)
    act(page)
    events: list[Document] = json.loads(browser.stop_tracing())["traceEvents"]
    main = {
        (event["pid"], event["tid"]) for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }  # fmt: skip
    return [event for event in events if event.get("ph") == "X" and (event["pid"], event["tid"]) in main]


def outermost(events: Iterable[Document]) -> list[Document]:
    """Events of script that no other one contains, in order."""
    found: list[Document] = []
    for event in sorted((e for e in events if e["name"] in SCRIPT), key=lambda e: (e["ts"], -e["dur"])):
        if not found or event["ts"] >= found[-1]["ts"] + found[-1]["dur"]:
            found.append(event)
    return found


def by_frame(events: Sequence[Document]) -> Document:
    """Milliseconds of script from the end of one drawn frame to the end of the next, by processor and by clock.

    Only frames count in which the page itself asked to draw; what ran after the last one is left out.
    """
    drawn = sorted(e["ts"] + e["dur"] for e in events if e["name"] == "FireAnimationFrame")
    script = outermost(events)
    end = [event["ts"] + event["dur"] for event in script]
    frame = np.searchsorted(drawn, end)
    kept = frame < len(drawn)
    told = {"frames": len(drawn)}
    for name, key in (("processor", "tdur"), ("clock", "dur")):
        spent = np.array([event.get(key, 0) for event in script], float) / 1e3
        total = np.bincount(frame[kept], spent[kept], minlength=len(drawn))
        told |= {f"{name}_median": float(np.median(total)), f"{name}_p95": float(np.percentile(total, 95)),
                 f"{name}_mean": float(total.mean()), f"{name}_most": float(total.max())}  # fmt: skip
    return told


def hover(page: Page) -> Document:
    """Milliseconds from the pointer's event to the words beside it, and to the row's image."""
    page.evaluate(WATCH)
    rows = page.evaluate("explorer.data.id.length")
    some = np.linspace(0, rows - 1, HOVERED).astype(int).tolist()
    for x, y in page.evaluate(PLACES, some):
        page.mouse.move(x, y)
        page.wait_for_timeout(150)
    hovers = page.evaluate("window.hovers")
    told, image = ([one[key] for one in hovers if one[key] is not None] for key in ("told", "image"))
    return {
        "hovers": len(hovers), "words_median": statistics.median(told), "words_most": max(told),
        "image_median": statistics.median(image) if image else None, "image_most": max(image, default=None),
    }  # fmt: skip


def measure(browser: Browser, file: Path, rounds: int) -> Document:
    """All figures, round by round; the first round warms up and is not kept."""
    load, hovers = [], []
    frames: dict[str, list[Document]] = {"pan": [], "zoom": [], "hover": []}
    for number in range(rounds + 1):
        page, seconds = open_page(browser, file)
        hovered: Document = {}
        acts = {"pan": pan, "zoom": zoom, "hover": lambda page, kept=hovered: kept.update(hover(page))}
        told = {name: by_frame(traced(browser, page, act)) for name, act in acts.items()}
        rows = page.evaluate("explorer.data.id.length")
        page.context.close()
        if number:
            load.append(seconds)
            hovers.append(hovered)
            for name, one in told.items():
                frames[name].append(one)
    return {"rows": rows, "megabytes": file.stat().st_size / 1e6, "load_seconds": load, "latency": hovers, **frames}


def tell(told: Document) -> None:
    """Two tables: milliseconds of script a frame, and what a person waits for; medians over the rounds."""

    def over(rounds: Sequence[Document], key: str) -> str:
        return f"{statistics.median(one[key] for one in rounds):.2f}"

    rounds = len(told["load_seconds"])
    heading(
        f"{told['rows']:,} points, {told['megabytes']:.1f} MB; script on the main thread, ms a frame; medians of n = "
        f"{rounds} rounds", "what", "frames", "processor: median", "95th percentile", "most", "clock: median",
        "95th percentile",
    )  # fmt: skip
    for name in ("pan", "zoom", "hover"):
        keys = ("processor_median", "processor_p95", "processor_most", "clock_median", "clock_p95")
        say(name, f"{statistics.median(one['frames'] for one in told[name]):.0f}", *(over(told[name], k) for k in keys))
    heading(f"n = {rounds} rounds, medians", "what", "value")
    say("load, s", f"{statistics.median(told['load_seconds']):.2f}")
    for key, words in (("words", "hover to words, ms"), ("image", "hover to image, ms")):
        say(words, over(told["latency"], f"{key}_median"))
        say(f"{words}, slowest of {HOVERED}", over(told["latency"], f"{key}_most"))


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="explorer.html of a run")
    parser.add_argument("--rounds", type=int, default=5, help="times that the page is opened and moved")
    parser.add_argument("--out", type=Path, help="keep all figures in this JSON file")
    given = parser.parse_args(arguments)
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None or not given.page.is_file():
        sys.exit("benchmarks/explorer.py: there is no Chromium here" if found is None else
                 f"benchmarks/explorer.py: no page at {given.page}: run cspipe explore")  # fmt: skip
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=FLAGS)
        told = measure(browser, given.page, given.rounds) | {"chromium": browser.version}
        browser.close()
    print(f"python {' '.join(sys.argv)}\nChromium {told['chromium']}, drawing in software (SwiftShader)", flush=True)
    tell(told)
    if given.out:
        write_json(given.out, {"command": sys.argv, "environment": environment(), **told})


if __name__ == "__main__":
    main()
