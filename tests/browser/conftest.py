import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cspipe.cli import main

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
CLASSES = {"<img src=x onerror=window.hacked=1>": (200, 30, 30), "=cmd()": (30, 200, 30), "blue": (30, 30, 200)}
"""Class name -> colour of its images."""


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system, under Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A head run on a folder of coloured images with hostile names, its report and its explorer written."""
    folder = tmp_path_factory.mktemp("pages")
    chance = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 14)):
        for name, colour in CLASSES.items():
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                noise = chance.normal(0, 70, (24, 24, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"\x1b[31m<b>{number}.png")
    places = ["--stores", str(folder / "stores"), "--runs", str(folder / "runs"), "--quiet"]
    quick = ["--set", "steps=20", "--set", "components=16"]
    for arguments in (
        ["extract", "lite0", str(folder / "images"), "--image-px", "32"],
        ["head", "--labels", "12", "--seeds", "2", *quick],
        ["report"],
        ["explore"],
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *places])
        assert not end.value.code
    return next((folder / "runs").glob("*-head-*"))


@pytest.fixture
def open_page(browser):
    """A function (file, width, height, scheme, touch) -> the page, which has no network; `complaints`, `asked`."""
    contexts = []

    def opened(file: Path, width: int = 1200, height: int = 900, scheme: str = "light", touch: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, has_touch=touch,
            reduced_motion="reduce", accept_downloads=True,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.asked = [], []
        page.on("console", lambda told: page.complaints.append(f"{told.type}: {told.text}"))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        if file.name == "explorer.html":
            page.wait_for_selector("html[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def colours():
    """Class name -> colour of its images."""
    return CLASSES


@pytest.fixture
def report(run):
    """What the run's report.json says."""
    return json.loads((run / "report.json").read_text())
