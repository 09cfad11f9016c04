"""Report and explorer in a real browser, without a network."""

import csv
import io

import numpy as np
import pytest

pytestmark = pytest.mark.slow
WIDTHS = (400, 800, 1400)
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"
PLACES = """() => {
    const box = document.getElementById("points").getBoundingClientRect();
    return explorer.data.id.map((_, row) => {
        const [x, y] = explorer.scatter.getScreenPosition(row);
        return [x + box.left, y + box.top];
    });
}"""


def own_requests(page):
    """Addresses that the page asked for beside itself and what it carries."""
    return [url for url in page.asked if not url.startswith(("data:", "blob:")) and url != page.url]


def serious_faults(page):
    """What axe-core finds that keeps people out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [(fault["id"], [node["html"][:150] for node in fault["nodes"][:3]]) for fault in found
            if fault["impact"] in ("serious", "critical")]  # fmt: skip


def places(page):
    """Where every row is on the screen, `(N, 2)` CSS pixels."""
    page.evaluate(SETTLED)
    return np.array(page.evaluate(PLACES))


def rows_listed(page):
    return [int(row) for row in page.eval_on_selector_all("#list button", "all => all.map(one => one.dataset.row)")]


@pytest.mark.parametrize("name", ["report.html", "explorer.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_network_or_complaint_and_axe_finds_no_serious_fault(run, open_page, name, scheme):
    for width in WIDTHS:
        page = open_page(run / name, width, scheme=scheme)
        if name == "explorer.html":
            page.click("#mistakes")
        assert page.complaints == [] and own_requests(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_faults(page) == []


def test_counts_of_four_digits_stay_on_one_line_on_a_phone_and_the_table_within_it(run, open_page):
    page = open_page(run / "report.html", 390)
    height = "Math.max(...[...document.querySelectorAll('.confusion td')].map(cell => cell.offsetHeight))"
    before = page.evaluate(height)
    page.eval_on_selector_all(".confusion tbody td", "all => all.forEach(cell => { cell.textContent = '4852'; })")
    assert page.evaluate(height) == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_table_or_a_figure_is_printed_on_one_page(run, open_page):
    page = open_page(run / "report.html")
    page.emulate_media(media="print")
    breaks = "all => all.map(one => getComputedStyle(one).breakInside)"
    for what in (".numbers", ".confusion", ".panel", ".gallery li"):
        assert set(page.eval_on_selector_all(what, breaks)) == {"avoid"}, what
    assert page.eval_on_selector("figure:has(.panels)", "one => getComputedStyle(one).breakInside") == "auto"


def test_the_check_for_faults_can_fail(run, open_page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        (run / "report.html")
        .read_text()
        .replace(" alt=", " data-alt=")
        .replace(" title=", " data-title=")
        .replace(' lang="en"', "")
    )
    names = {name for name, _ in serious_faults(open_page(broken))}
    assert {"image-alt", "html-has-lang"} <= names


def test_hover_shows_the_image_and_the_names_of_the_row_under_the_pointer(run, open_page, colours):
    page = open_page(run / "explorer.html")
    data, at = page.evaluate("explorer.data"), places(page)
    apart = np.linalg.norm(at[:, None] - at[None], axis=2) + 1e9 * np.eye(len(at))
    for row in np.argsort(-apart.min(1))[:5]:
        page.mouse.move(2, 2)
        page.mouse.move(*at[row], steps=3)
        page.wait_for_selector(f"#tip:not([hidden])[data-row='{row}'] canvas[data-drawn]")
        name = data["classes"][data["label"][row]]
        assert name in page.inner_text("#tip") and data["path"][row] in page.inner_text("#tip")
        pixels = page.eval_on_selector("#tip canvas", "c => [...c.getContext('2d').getImageData(4, 4, 16, 16).data]")
        mean = np.array(pixels).reshape(-1, 4)[:, :3].mean(0)
        nearest = min(colours, key=lambda known: np.abs(mean - np.array(colours[known])).sum())
        assert nearest == name


def test_lasso_lists_the_rows_inside_it_and_no_others(run, open_page):
    page = open_page(run / "explorer.html")
    at = places(page)
    middle = np.median(at, 0)
    low, high = middle - 90, middle + 90
    inside = set(np.flatnonzero(((at > low) & (at < high)).all(1)).tolist())
    assert 3 < len(inside) < len(at)
    page.click("#lasso")
    corners = [low, (high[0], low[1]), high, (low[0], high[1]), low]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=12)
        page.wait_for_timeout(60)
    page.mouse.up()
    page.wait_for_selector("#list button")
    rim = {row for row in range(len(at)) if min(np.abs(at[row] - low).min(), np.abs(at[row] - high).min()) < 3}
    assert set(rows_listed(page)) ^ inside <= rim


def test_dragging_moves_the_map_and_the_wheel_makes_it_larger(run, open_page):
    page = open_page(run / "explorer.html")
    before, box = places(page), page.locator("#points").bounding_box()
    centre = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] + 80, centre[1] + 40, steps=8)
    page.mouse.up()
    moved = places(page)
    assert np.allclose(moved - before, (80, 40), atol=12)
    page.mouse.wheel(0, -400)
    assert np.ptp(places(page)[:, 0]) > 1.2 * np.ptp(moved[:, 0])


def test_the_whole_map_is_seen_at_first_and_again_on_a_narrow_screen(run, open_page):
    page = open_page(run / "explorer.html", 400, 800)
    box, first = page.locator("#points").bounding_box(), places(page)
    assert first[:, 0].min() >= box["x"] and first[:, 0].max() <= box["x"] + box["width"]
    page.click("#nearer")
    assert np.ptp(places(page)[:, 0]) > 1.3 * np.ptp(first[:, 0])
    page.click("#whole")
    assert np.allclose(places(page), first, atol=2)


def test_search_finds_an_id_in_every_split_and_part_of_a_path(run, open_page):
    page = open_page(run / "explorer.html")
    data = page.evaluate("explorer.data")
    page.fill("#wanted", "7")
    page.press("#wanted", "Enter")
    assert rows_listed(page) == [row for row, number in enumerate(data["id"]) if number == 7] and page.complaints == []
    page.fill("#wanted", "blue/")
    page.click("#search button")
    assert set(rows_listed(page)) == {row for row, path in enumerate(data["path"]) if "blue/" in path}
    page.fill("#wanted", "there is no such path")
    page.click("#search button")
    assert page.inner_text("#count") == "No row."


def test_each_colouring_counts_the_rows_of_each_colour(run, open_page):
    page = open_page(run / "explorer.html")
    data = page.evaluate("explorer.data")
    expected = {
        "label": np.bincount(data["label"]).tolist(), "guess": np.bincount(data["guess"]).tolist(),
        "right": np.bincount(np.not_equal(data["label"], data["guess"])).tolist(),
        "role": [count for count in np.bincount(data["role"]).tolist() if count],
    }  # fmt: skip
    for name, counts in expected.items():
        page.select_option("#colour", name)
        shown = page.eval_on_selector_all("#legend small", "all => all.map(one => Number(one.textContent))")
        assert shown == [count for count in counts if count], name
    page.select_option("#colour", "confidence")
    assert "100 %" in page.inner_text("#legend")


def test_changing_the_colours_faster_than_they_are_drawn_ends_in_the_last_one(run, open_page):
    page = open_page(run / "explorer.html")
    page.evaluate("""() => {
        const choice = document.getElementById("colour");
        for (const value of ["guess", "right", "role", "right", "guess"]) {
            choice.value = value;
            choice.dispatchEvent(new Event("change"));
        }
    }""")
    page.wait_for_function("explorer.drawn >= 2")
    page.wait_for_timeout(300)
    assert page.complaints == [] and page.locator("#legend button").count() == 3
    assert page.evaluate("explorer.scatter.get('pointColor').length") == 3


def test_each_map_puts_rows_elsewhere(run, open_page):
    page = open_page(run / "explorer.html")
    seen = []
    for number in range(3):
        drawn = page.evaluate("explorer.drawn")
        if number:
            page.select_option("#space", index=number)
            page.wait_for_function(f"explorer.drawn > {drawn}")
        seen.append(places(page))
    assert page.locator("#space option").all_inner_texts() == ["[CLS] tokens", "content", "style"]
    assert all(np.abs(seen[one] - seen[other]).max() > 20 for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", ["report.html", "explorer.html"])
def test_names_are_shown_as_text_and_never_run(run, open_page, name, colours):
    page = open_page(run / name)
    if name == "explorer.html":
        page.select_option("#colour", "right")
        page.select_option("#colour", "label")
        page.fill("#wanted", "<b>")
        page.click("#search button")
        assert "\\x1b[31m<b>" in page.inner_text("#list")
    text = page.inner_text("body")
    assert all(known in text for known in colours)
    assert page.evaluate("window.hacked") is None and page.locator("img[src='x'], #list b b").count() == 0
    assert page.complaints == []


def test_a_script_that_a_name_smuggled_in_would_not_run(run, open_page):
    page = open_page(run / "explorer.html")
    page.evaluate("""() => {
        const script = document.createElement("script"), image = document.createElement("img");
        script.textContent = "window.hacked = 1";
        image.setAttribute("onerror", "window.hacked = 2");
        image.src = "data:image/png;base64,AA";
        document.body.append(script, image);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None and len(page.complaints) >= 1


def test_saved_rows_are_a_csv_that_no_spreadsheet_takes_for_a_formula(run, open_page):
    page = open_page(run / "explorer.html")
    page.fill("#wanted", "=cmd")
    page.click("#search button")
    with page.expect_download() as waiting:
        page.click("#csv")
    told = list(csv.DictReader(io.StringIO(waiting.value.path().read_text())))
    assert len(told) == 44 and {row["label"] for row in told} == {"'=cmd()"}
    assert all(row["path"].startswith(("train/", "test/", "=")) is not row["path"].startswith("'") for row in told)


def test_rows_to_label_next_are_training_rows_without_a_label_of_the_head(run, open_page):
    page = open_page(run / "explorer.html")
    data = page.evaluate("explorer.data")
    page.click("#next")
    assert rows_listed(page) == data["suggested"] and len(data["suggested"]) == 20
    assert {data["roles"][data["role"][row]] for row in data["suggested"]} == {"train"}


def test_one_finger_draws_the_lasso_too(run, open_page):
    page = open_page(run / "explorer.html", 400, 800, touch=True)
    at = places(page)
    page.click("#lasso")
    low, high = at.min(0) - 3, at.max(0) + 3
    corners = [low.tolist(), [high[0], low[1]], high.tolist(), [low[0], high[1]], low.tolist()]
    page.evaluate("""async (corners) => {
        const canvas = document.getElementById("points");
        const touch = (kind, [clientX, clientY]) => {
            const one = new Touch({identifier: 1, target: canvas, clientX, clientY});
            const touches = kind === "touchend" ? [] : [one];
            const event = {touches, changedTouches: [one], cancelable: true, bubbles: true};
            canvas.dispatchEvent(new TouchEvent(kind, event));
        };
        touch("touchstart", corners[0]);
        for (let side = 1; side < corners.length; side += 1) {
            for (let step = 1; step <= 10; step += 1) {
                const [a, b] = [corners[side - 1], corners[side]];
                touch("touchmove", [0, 1].map((i) => a[i] + (b[i] - a[i]) * step / 10));
                await new Promise((done) => setTimeout(done, 20));
            }
        }
        touch("touchend", corners.at(-1));
    }""", [[float(x), float(y)] for x, y in corners])  # fmt: skip
    page.wait_for_selector("#list button")
    assert len(rows_listed(page)) > 0.9 * len(at)
