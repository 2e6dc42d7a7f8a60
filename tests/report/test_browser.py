"""The report in headless Chromium, offline: slider, links, keyboard, print. Visible skips without browser or client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from flawmap.report.gallery import Picture
from flawmap.report.heatmap import anchored
from flawmap.report.page import Report, Scored, write
from flawmap.report.parts import Part, by_part, picks
from flawmap.types import GOOD, Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.metrics import summary

pytestmark = pytest.mark.browser
SIDE, RNG = 40, np.random.default_rng(3)
CALIBRATION = Calibration.from_good(
    [f"good/{i}" for i in range(60)], np.linspace(1, 2, 60).tolist(), np.linspace(2, 3, 60).tolist()
)


def views() -> list[Scored]:
    """60 parts of one to three views; kinds good, crack, stain and unknown; some scores tie."""
    found = []
    for i in range(60):
        kind = (GOOD, GOOD, "crack", "stain", GOOD, None)[i % 6]
        values = (RNG.gamma(9, 0.17, 1 + i % 3) + (0.8 if kind in ("crack", "stain") else 0)).round(2)
        verdict = Verdict.NOK if max(values) > CALIBRATION.threshold else Verdict.OK
        found += [Scored(f"test/{i}-{v}.png", f"part {i}", kind, float(s), verdict) for v, s in enumerate(values)]
    return found


def picture(of: Scored) -> Picture:
    random = np.random.default_rng(len(of.name))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:15, 8 : 10 + int(10 * of.score) % 20] = of.kind not in (GOOD, None)
    map = random.gamma(4, 0.5, (32, 32)).astype(np.float32)
    image = random.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    near = image[:20, :20]
    return Picture(
        of.name, of.part, of.kind, of.score, of.verdict, image, map, mask, near, "train/1.png", (3, 4, 9, 12)
    )


SCORES = views()
PARTS = by_part(SCORES)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metrics = summary(
        [p.score for p in PARTS if p.kind],
        [p.kind for p in PARTS if p.kind],
        [p.verdict for p in PARTS if p.kind and p.verdict],
    )
    report = Report(
        "Glass",
        anchored(1.0, CALIBRATION.map_threshold),
        "",
        CALIBRATION,
        metrics,
        SCORES,
        picture=lambda i: picture(SCORES[i]),
        embedding=(RNG.normal(size=(len(SCORES), 2)), [s.name for s in SCORES]),
    )
    return write(report, tmp_path_factory.mktemp("page") / "report.html")


class Opened:
    """A page of its own, offline, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, **context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(path.as_uri())

    def settled(self, query: str) -> None:
        """Waits until all maps below are coloured."""
        self.page.wait_for_function(
            "q => [...document.querySelectorAll(q + ' canvas')].every(c => c.dataset.done)", arg=query
        )

    def texts(self, query: str) -> list[str]:
        return [re.sub(r"\s+", " ", text).strip() for text in self.page.locator(query).all_inner_texts()]

    def set(self, value: float) -> None:
        self.page.evaluate("t => flawmap.set(t)", value)


@pytest.fixture
def opened(chromium: Any, written: Path) -> Iterator[Opened]:
    found = Opened(chromium, written)
    yield found
    assert found.complaints == []
    found.context.close()


def counted(threshold: float) -> tuple[int, int, int, int]:
    good = np.array([p.score for p in PARTS if p.kind == GOOD])
    bad = np.array([p.score for p in PARTS if p.defective])
    return int((bad <= threshold).sum()), len(bad), int((good > threshold).sum()), len(good)


def interval(k: int, n: int) -> list[float]:
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    return [low, 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))]


def said(share: float) -> str:
    if 0 < share < 0.0005 or 0.9995 <= share < 1:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %"


def test_the_page_asks_for_nothing_but_itself(chromium: Any, written: Path):
    found = Opened(chromium, written)
    found.settled("#live")
    found.set(1.5)
    found.page.wait_for_timeout(300)
    outside = [url for url in found.asked if not url.startswith("data:")]
    assert outside == [written.as_uri()]
    assert found.complaints == []


def test_bounds_are_those_of_scipy(opened: Opened):
    pairs = [(k, n) for n in (1, 2, 7, 20, 83, 1000, 20000) for k in sorted({0, 1, n // 3, n // 2, n - 1, n})]
    ours = opened.page.evaluate("pairs => pairs.map(([k, n]) => flawmap.bounds(k, n))", pairs)
    for (k, n), found in zip(pairs, ours, strict=True):
        assert found == pytest.approx(interval(k, n), abs=1e-6), (k, n)


def test_opening_the_page_changes_no_count(chromium: Any, written: Path, opened: Opened):
    plain = Opened(chromium, written, java_script_enabled=False)
    queries = ("[data-rate]", "[data-kind]")
    assert [opened.texts(q) for q in queries] == [plain.texts(q) for q in queries]
    assert len(plain.texts("[data-kind]")) == 3
    assert plain.page.locator("#bar").is_hidden()
    assert plain.page.locator("#first article").count() > 0
    assert plain.page.locator("svg[role=img]").count() >= 6
    classes = (
        "[...document.querySelectorAll('svg rect[data-p]')].map(e => e.getAttribute('class') + e.getAttribute('fill'))"
    )
    assert opened.page.evaluate(classes) == plain.page.evaluate(classes)
    assert not opened.page.evaluate("document.documentElement.classList.contains('off')")


@pytest.mark.parametrize("step", [0, 137, 400, 512, 730, 1000])
def test_the_slider_recounts_as_numpy_does(opened: Opened, step: int):
    opened.page.locator("#range").fill(str(step))
    state = opened.page.evaluate("flawmap.state()")
    escapes, defects, alarms, goods = counted(state["t"])
    assert (state["escapes"], state["defects"], state["alarms"], state["goods"]) == (escapes, defects, alarms, goods)
    for name, k, n in (("escapes", escapes, defects), ("alarms", alarms, goods)):
        text = opened.texts(f"[data-rate={name}]")[0]
        low, high = interval(k, n)
        assert f"{k} of {n}" in text
        assert f"{said(k / n)}" in text
        assert f"95 % confidence: {said(low)} to {said(high)}" in text
        assert "not calibrated" in text
    for row in opened.page.locator("[data-kind]").all():
        kind = row.get_attribute("data-kind")
        above = sum(p.score > state["t"] for p in PARTS if p.kind == kind)
        below = sum(p.score <= state["t"] for p in PARTS if p.kind == kind)
        assert row.locator("[data-f=ok]").inner_text() == str(below)
        assert row.locator("[data-f=nok]").inner_text() == str(above)
        assert row.locator("[data-f=wrong]").inner_text() == str(above if kind == GOOD else below)
    wrong = {
        i
        for i, p in enumerate(PARTS)
        if (p.defective and p.score <= state["t"]) or (p.kind == GOOD and p.score > state["t"])
    }
    marked = "[...document.querySelectorAll('svg[data-i=lanes-wide] .wrong[data-p]')].map(e => +e.dataset.p)"
    assert set(opened.page.evaluate(marked)) == wrong


def test_off_the_calibrated_threshold_the_page_says_so_and_reset_brings_it_back(opened: Opened):
    page = opened.page
    assert page.locator("#banner").inner_text().startswith("Calibrated threshold")
    page.locator("#number").fill("1.5")
    assert page.evaluate("flawmap.state().t") == 1.5
    assert page.locator("#banner").inner_text().endswith("a threshold read off this test promises nothing.")
    assert page.locator("#op-now").is_visible()
    page.wait_for_function("() => document.getElementById('told').textContent.includes('not calibrated')")
    page.locator("#reset").click()
    assert page.evaluate("flawmap.state().t") == CALIBRATION.threshold
    assert page.locator("#op-now").is_hidden()
    assert not page.evaluate("flawmap.state().off")


def test_the_buttons_go_to_the_next_score_of_the_test(opened: Opened):
    every = sorted({p.score for p in PARTS})
    above = next(s for s in every if s > CALIBRATION.threshold)
    below = max(s for s in every if s < CALIBRATION.threshold)
    opened.page.locator("#up").click()
    assert opened.page.evaluate("flawmap.state().t") == above
    opened.page.locator("#down").click()
    assert opened.page.evaluate("flawmap.state().t") == below


@pytest.mark.parametrize("threshold", [CALIBRATION.threshold, 1.3, 2.6])
def test_the_galleries_are_those_that_python_picks(opened: Opened, threshold: float):
    opened.set(threshold)
    opened.page.wait_for_timeout(200)
    for name, chosen in picks(PARTS, threshold).items():
        cards = f"[...document.querySelectorAll('[data-g={name}] [data-card]')].map(e => +e.dataset.card)"
        assert opened.page.evaluate(cards) == chosen
    opened.settled("#live")
    first = opened.page.locator("[data-g=borderline] article").first
    assert first.locator("img[alt^='nearest good patch: train/1.png']").count() == 1


def test_the_map_in_the_browser_has_the_colours_of_the_heat_map(opened: Opened):
    from flawmap.report import gallery

    opened.settled("#live")
    part: Part = PARTS[
        int(opened.page.locator("[data-g=borderline] [data-card]").first.get_attribute("data-card") or 0)
    ]
    shown = picture(SCORES[part.views[0]])
    scale = anchored(1.0, CALIBRATION.map_threshold)
    pixels = opened.page.evaluate(
        "(() => { const c = document.querySelector('[data-g=borderline] canvas');"
        " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )
    ours = np.array(pixels).reshape(SIDE, SIDE, 4)
    expected = gallery.painted(np.zeros((SIDE, SIDE, 3)), gallery.codes(shown.map, scale), scale)
    over = ours[..., :3] * ours[..., 3:] / 255
    assert np.median(np.abs(over - expected)) <= 2
    assert np.corrcoef(over.ravel(), expected.ravel())[0, 1] > 0.97  # its resizing filter is not Pillow's


@pytest.mark.parametrize("chart", ["lanes-wide", "roc", "sizes", "embedding"])
def test_a_click_on_a_point_opens_its_picture_and_marks_the_part_everywhere(opened: Opened, chart: str):
    page = opened.page
    mark = page.locator(f"svg[data-i={chart}] [data-p]").nth(11)
    part = PARTS[int(mark.get_attribute("data-p") or -1)]
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    chosen = page.evaluate("flawmap.state().chosen")
    if chart == "lanes-wide":
        assert chosen == part.name
    chosen_part = next(p for p in PARTS if p.name == chosen)  # elsewhere points may lie on each other
    assert chosen_part.score == part.score or chart != "roc"
    assert page.locator("#chosen h3").inner_text() == f"Selected: {chosen}"
    assert page.locator("#chosen").bounding_box()["y"] < 900
    names = [SCORES[v].name for v in chosen_part.views]
    assert page.locator("#chosen .name").all_inner_texts() == names
    ringed = page.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.querySelector('.ring')).map(s => s.dataset.i)"
    )
    assert {"lanes-wide", "lanes-narrow"} <= set(ringed)
    assert chart in ringed


def test_arrows_walk_through_the_parts_and_enter_opens_the_picture(opened: Opened):
    page = opened.page
    page.locator("svg[data-i=lanes-wide]").focus()
    page.keyboard.press("Home")
    lowest = page.evaluate("flawmap.state().chosen")
    seen = [lowest]
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        seen.append(page.evaluate("flawmap.state().chosen"))
    assert len(set(seen)) == 13
    values = [next(p.score for p in PARTS if p.name == name) for name in seen]
    assert max(np.maximum.accumulate(values) - values) < 0.1  # ascending, but for parts of one bin
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "chosen"
    page.wait_for_function("() => document.getElementById('told').textContent.startsWith('Selected')")
    assert page.locator("#chosen").get_by_text(f"Selected: {seen[-1]}").is_visible()


def test_the_slider_is_moved_by_keys(opened: Opened):
    page = opened.page
    page.locator("#range").focus()
    before = page.evaluate("flawmap.state().t")
    page.keyboard.press("PageUp")
    assert page.evaluate("flawmap.state().t") > before
    assert "escape" in (page.locator("#range").get_attribute("aria-valuetext") or "")


def test_the_line_of_the_histogram_can_be_dragged(opened: Opened):
    page = opened.page
    svg = page.locator("svg[data-i=lanes-wide]")
    svg.scroll_into_view_if_needed()
    box = svg.locator(".threshold").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    low, high, start, end = map(float, (svg.get_attribute("data-x") or "").split())
    scale = svg.bounding_box()["width"] / svg.evaluate("e => e.viewBox.baseVal.width")
    moved = CALIBRATION.threshold + 60 / scale * (high - low) / (end - start)
    assert page.evaluate("flawmap.state().t") == pytest.approx(moved, abs=0.02)
    assert page.evaluate("flawmap.state().chosen") is None


def test_the_cost_follows_its_three_fields(opened: Opened):
    page = opened.page
    for name, value in (("escape", 30), ("reject", 2), ("rate", 5)):
        page.locator(f"#cost-{name}").fill(str(value))
    good = np.array([p.score for p in PARTS if p.kind == GOOD])
    bad = np.array([p.score for p in PARTS if p.defective])

    def cost(t: float) -> float:
        return 30 * 0.05 * (bad <= t).mean() + 2 * 0.95 * (good > t).mean()

    every = np.array([0.0, *sorted({p.score for p in PARTS if p.kind})])
    least = every[np.argmin([cost(t) for t in every])]
    text = page.locator("#cost-said").inner_text()
    numbers = [float(v) for v in re.findall(r"\d+\.?\d*", text)]
    assert numbers[1] == pytest.approx(cost(CALIBRATION.threshold), rel=1e-3)
    assert numbers[2:4] == pytest.approx([cost(least), least], rel=1e-3)


def test_a_band_of_review_is_neither_escape_nor_false_alarm(chromium: Any, tmp_path: Path):
    from dataclasses import replace

    band = replace(CALIBRATION, review_threshold=1.5)
    scores = [s._replace(verdict=None) for s in SCORES]
    best = {p.name: p.score for p in PARTS}
    scores = [s._replace(verdict=band.verdict([best[s.part]])) if band.views == (1, 1) else s for s in scores]
    report = Report("x", anchored(1.0, 2.0), "", band, None, scores)
    found = Opened(chromium, write(report, tmp_path / "r.html"))
    state = found.page.evaluate("flawmap.state()")
    assert state["escapes"] == sum(p.defective and p.score <= 1.5 for p in PARTS)
    assert state["alarms"] == counted(band.threshold)[2]
    waiting = sum(1.5 < p.score <= band.threshold for p in PARTS)
    assert found.page.locator("#sum").inner_text().endswith(f"{waiting} to review")
    found.set(1.2)
    assert found.page.evaluate("flawmap.state().escapes") == counted(1.2)[0]
    assert found.page.locator("#sum").inner_text().endswith("0 to review")


@pytest.mark.parametrize("width", [400, 768, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(chromium: Any, written: Path, width: int, scheme: str):
    found = Opened(chromium, written, color_scheme=scheme)
    found.page.set_viewport_size({"width": width, "height": 900})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    found.context.close()


def test_on_paper_no_figure_is_cut_and_the_slider_is_what_is_printed(chromium: Any, written: Path):
    found = Opened(chromium, written)
    found.set(1.5)
    found.settled("#live")
    page = found.page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1017})  # A4 less 14 mm margins, at 96 px an inch
    tall = page.evaluate(
        "[...document.querySelectorAll('.drawing, .card, .verdict, tr, #bar')]"
        ".map(e => [e.getBoundingClientRect(), getComputedStyle(e).breakInside])"
        ".filter(([b]) => b.height).map(([b, how]) => [b.left, b.right, b.height, how])"
    )
    assert len(tall) > 25
    assert all(left >= 0 and right <= 688.5 and height < 1017 for left, right, height, _ in tall)
    assert {how for *_, how in tall} == {"avoid"}
    assert page.locator("#range").is_hidden()
    assert "Looking at 1.5, not calibrated" in page.locator("#bar").inner_text()
    pdf = page.pdf(prefer_css_page_size=True, format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    assert found.complaints == []
    found.context.close()
