"""The report in headless Chromium: paper, a review band, doubts, no calibration, focus. Skips as test_browser does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.report import plots
from flawmap.report.gallery import Picture
from flawmap.report.heatmap import Scale, anchored, colour
from flawmap.report.page import Report, Scored, write
from flawmap.report.parts import by_part, picks
from flawmap.types import GOOD, Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.metrics import summary

pytestmark = pytest.mark.browser
PLAIN = Calibration.from_good(
    [f"good/{i}" for i in range(60)], np.linspace(1, 2, 60).tolist(), np.linspace(2, 3, 60).tolist()
)
COSTS = {"escape": 30.0, "reject": 2.0, "defect_rate": 0.05, "review": 0.25}
BAND = replace(PLAIN, review_threshold=1.5, costs=COSTS)
RNG = np.random.default_rng(5)
ROWS = [
    (f"test/{i}.png", (GOOD, GOOD, "crack", "stain")[i % 4], round(float(RNG.gamma(9, 0.17) + 0.5 * (i % 4 > 1)), 2))
    for i in range(60)
]


def picture(of: Scored) -> Picture:
    """Grey, so that colour on paper is that of maps."""
    image = np.full((40, 40, 3), 128, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[5:15, 8:30] = of.kind not in (GOOD, None)
    map = np.full((16, 16), 2.6, np.float32)
    return Picture(of.name, of.part, of.kind, of.score, of.verdict, image, map, mask)


def report(calibration: Calibration | None, rows: list[tuple[str, str | None, float]] = ROWS, **more: Any) -> Report:
    judge = (lambda s: None) if calibration is None else (lambda s: calibration.verdict([s]))
    scores = [Scored(name, name, kind, s, judge(s)) for name, kind, s in rows]
    values = [s.score for s in scores], [s.kind for s in scores]
    metrics = summary(*values, *([] if calibration is None else [[s.verdict for s in scores if s.verdict]]))
    scale = Scale(0, 1, 3) if calibration is None else anchored(1.0, calibration.map_threshold)
    return Report("Glass", scale, "", calibration, metrics, scores, picture=lambda i: picture(scores[i]), **more)


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a report offline in a window of some size; the page must not complain."""
    contexts, complaints = [], []

    def show(of: Report, width: int = 1280, height: int = 900, **context: Any) -> Any:
        path = write(of, tmp_path / f"{len(contexts)}.html")
        contexts.append(chromium.new_context(offline=True, viewport={"width": width, "height": height}, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(path.as_uri())
        if context.get("java_script_enabled", True):
            page.wait_for_function("() => [...document.querySelectorAll('canvas')].every(c => c.dataset.done)")
        return page

    yield show
    assert complaints == []
    for context in contexts:
        context.close()


def texts(page: Any, query: str) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(query).all_inner_texts()]


def numbers(text: str) -> list[float]:
    return [float(v) for v in re.findall(r"-?\d+\.?\d*", text)]


def test_maps_are_coloured_on_paper(opened: Callable[..., Any], tmp_path: Path):
    page = opened(report(PLAIN))
    page.wait_for_timeout(500)  # by then every map is decoded
    drawn = "(() => { {} dispatchEvent(new Event('beforeprint'));"
    drawn += " const found = [...document.querySelectorAll('#live canvas')];"
    drawn += (
        " return [found.length, found.filter(c => c.getContext('2d').getImageData(9, 9, 1, 1).data[3]).length]; })()"
    )
    for before in ("", "flawmap.set(1.4);", "flawmap.set(1.9);"):  # the last two are printed before they are drawn
        there, coloured = page.evaluate(drawn.replace("{}", before))
        assert there == coloured > 8
    if shutil.which("pdftoppm") is None:
        pytest.skip("no pdftoppm on the path to look at the PDF with")
    page.pdf(path=str(tmp_path / "a.pdf"), format="A4")
    subprocess.run(["pdftoppm", "-r", "60", "-png", "a.pdf", "p"], cwd=tmp_path, check=True)
    wanted = colour(np.full((1, 1), 2.6, np.float32), anchored(1.0, PLAIN.map_threshold))[0, 0].astype(float)
    wanted = 128 * (1 - wanted[3] / 255) + wanted[:3] * wanted[3] / 255
    pages = [np.asarray(Image.open(path).convert("RGB")).astype(float) for path in sorted(tmp_path.glob("p-*.png"))]
    assert sum(int((np.abs(p - wanted).max(axis=2) < 12).sum()) for p in pages) > 12 * 1000


def test_a_band_has_its_own_tile_marks_line_and_point(opened: Callable[..., Any]):
    of = report(BAND)
    page, parts = opened(of), by_part(of.scores)
    waiting = [p for p in parts if p.verdict == Verdict.REVIEW]
    good, bad = sum(p.kind == GOOD for p in waiting), sum(p.defective for p in waiting)
    assert good > 3 < bad
    (tile,) = texts(page, "[data-rate=reviews]")
    assert tile.startswith(f"For review {len(waiting)} of 60 parts wait for a person (good {good}, defective {bad})")
    found = sum(p.defective and p.verdict == Verdict.NOK for p in parts) / 30
    refused = sum(p.kind == GOOD and p.verdict == Verdict.NOK for p in parts) / 30
    point = texts(page, ".ops li")[0].replace("\u202f", " ")
    assert point.startswith(f"NOK, calibrated; besides, {len(waiting)} for review (good {good}, defective {bad}):")
    assert point.endswith(f"{100 * found:.1f} % found, {100 * refused:.1f} % refused")
    ids = "name => [...document.querySelectorAll(`svg[data-i=${name}] .review[data-p]`)].map(e => +e.dataset.p).sort()"
    assert sorted(page.evaluate(ids, "lanes-wide")) == [i for i, p in enumerate(parts) if p in waiting]
    assert sorted(page.evaluate(ids, "sizes")) == [i for i, p in enumerate(parts) if p in waiting and p.defective]
    lines = page.evaluate("[...document.querySelectorAll('.review-line')].map(e => e.ownerSVGElement.dataset.i)")
    assert sorted(lines) == ["cost", "lanes-narrow", "lanes-wide", "rates", "sizes"]
    shown = page.evaluate("[...document.querySelectorAll('[data-g=borderline] [data-card]')].map(e => +e.dataset.card)")
    assert shown == picks(parts, BAND.threshold, 1.5)["borderline"]
    assert any(abs(parts[i].score - 1.5) < 0.05 for i in shown)
    page.evaluate("flawmap.set(1.2)")  # below the band, nothing is left to review
    assert texts(page, "[data-rate=reviews] .count") == ["0 of 60"]
    assert page.evaluate(ids, "lanes-wide") == []


def test_just_off_the_threshold_a_band_counts_as_at_it(opened: Callable[..., Any]):
    page = opened(report(BAND))
    before = texts(page, ".ops li")[0]
    page.evaluate("t => flawmap.set(t + 1e-9)", BAND.threshold)
    assert texts(page, ".ops li")[-1].split(": ")[1] == before.split(": ")[1]


def test_the_cost_counts_reviews_with_the_policys_own_prices(opened: Callable[..., Any]):
    page = opened(report(BAND))
    fields = {
        name: float(page.locator(f"#cost-{name}").input_value()) for name in ("escape", "reject", "rate", "review")
    }
    assert fields == {"escape": 30, "reject": 2, "rate": 5, "review": 0.25}
    good = np.array([s for _, kind, s in ROWS if kind == GOOD])
    bad = np.array([s for _, kind, s in ROWS if kind != GOOD])

    def cost(t: float, review: float) -> float:
        low = min(t, 1.5)
        waits = 0.05 * ((bad > low) & (bad <= t)).mean() + 0.95 * ((good > low) & (good <= t)).mean()
        return 30 * 0.05 * (bad <= low).mean() + 2 * 0.95 * (good > t).mean() + review * waits

    still = page.locator("svg[data-i=cost] .curve").get_attribute("points")
    for review in (0.25, 1.0):
        page.locator("#cost-review").fill(str(review))
        every = np.array([0.0, *sorted({s for *_, s in ROWS})])
        values = [cost(t, review) for t in every]
        told = numbers(page.locator("#cost-said").inner_text())
        assert told[1] == pytest.approx(cost(BAND.threshold, review), rel=1e-3)
        assert told[2:4] == pytest.approx([min(values), every[np.argmin(values)]], rel=1e-3)
    plain = opened(report(BAND), java_script_enabled=False)
    rounded = [
        np.round(numbers(text or ""), 0) for text in (still, plain.locator(".curve.cost").get_attribute("points"))
    ]
    tall = [dict(zip(r[::2], r[1::2], strict=True)) for r in rounded]
    assert tall[0].keys() == tall[1].keys()
    assert max(abs(tall[0][x] - tall[1][x]) for x in tall[0]) <= 1


@pytest.mark.parametrize(
    ("policy", "notes", "words"),
    [
        ("f1-oracle", (), "is an F1 oracle, read off known answers: it promises nothing"),
        ("manual", (), "was chosen by hand: it promises nothing"),
        ("cost", ("7 of the pictures were used to fit or calibrate this model: too good",), "these very parts (7 of"),
    ],
)
def test_a_threshold_that_promises_nothing_gets_no_tick(
    opened: Callable[..., Any], policy: str, notes: Any, words: str
):
    page = opened(report(replace(PLAIN, policy=policy), notes=notes))
    assert words in page.inner_text("#banner")
    assert "Calibrated" not in page.inner_text("#bar")
    mark = "getComputedStyle(document.getElementById('banner'), '::before').content"
    assert "\u26a0" in page.evaluate(mark)
    assert words in opened(report(replace(PLAIN, policy=policy), notes=notes), java_script_enabled=False).inner_text(
        ".warned"
    )
    assert "promises nothing" in texts(page, ".ops li")[0]
    sound = opened(report(PLAIN))
    assert "\u2713" in sound.evaluate(mark)
    assert sound.inner_text("#banner").startswith("Calibrated threshold")
    assert sound.locator(".warned").count() == 0


def test_without_a_calibration_there_is_no_threshold_and_no_verdict(opened: Callable[..., Any]):
    page = opened(report(None))
    assert page.evaluate("flawmap.state().t") is None
    assert page.input_value("#number") == ""
    assert page.locator(".chip").count() == page.locator(".wrong[data-p]:not(.kind)").count() == 0
    assert "threshold" not in page.inner_text(".legend").lower()
    assert "threshold" not in page.inner_text("#reading").lower()
    assert texts(page, "#kinds tbody tr")[-1].startswith("good n/a n/a of 30")
    assert texts(page, "#live h3") == [
        "Least strange defective parts: 8 of 30", "Strangest good parts: 8 of 30", "Strangest parts: 8 of 60"
    ]  # fmt: skip
    page.evaluate("flawmap.set(1.5)")
    page.wait_for_timeout(150)
    assert "not calibrated" in page.inner_text("#banner")
    assert page.locator(".chip").count() == 0
    page.locator("#reset").click()
    assert page.evaluate("flawmap.state().t") is None


def test_focus_stays_in_the_panel_and_goes_back_when_it_closes(opened: Callable[..., Any]):
    page = opened(report(PLAIN))
    name = page.locator("[data-g=borderline] button.name").nth(3)
    name.scroll_into_view_if_needed()
    name.click()
    page.wait_for_function("() => document.getElementById('chosen').getBoundingClientRect().top > 0")
    page.wait_for_timeout(700)
    top = page.evaluate("document.getElementById('chosen').getBoundingClientRect().top")
    assert page.evaluate("document.getElementById('bar').getBoundingClientRect().bottom") <= top < 500
    for words in ("stranger", "less strange"):
        page.locator("#chosen button", has_text=words).last.focus()
        seen = [page.evaluate("flawmap.state().chosen")]
        for _ in range(2):
            page.keyboard.press("Enter")
            seen.append(page.evaluate("flawmap.state().chosen"))
            assert words in page.evaluate("document.activeElement.textContent")
        assert len(set(seen)) == 3
    page.locator("#chosen button", has_text="Close").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('[data-g]')?.dataset.g") == "borderline"


def test_arrows_in_the_number_field_go_from_part_to_part(opened: Callable[..., Any]):
    page = opened(report(PLAIN))
    every = sorted({s for *_, s in ROWS})
    above = [s for s in every if s > PLAIN.threshold]
    page.locator("#number").focus()
    for wanted in above[:2]:
        page.keyboard.press("ArrowUp")
        assert page.evaluate("flawmap.state().t") == float(page.input_value("#number")) == wanted
    page.keyboard.press("ArrowDown")
    assert page.evaluate("flawmap.state().t") == above[0]


@pytest.mark.parametrize(("height", "how"), [(900, "sticky"), (450, "static")])
def test_what_is_jumped_to_does_not_lie_under_the_bar(opened: Callable[..., Any], height: int, how: str):
    page = opened(report(PLAIN), height=height)
    assert page.evaluate("getComputedStyle(document.getElementById('bar')).position") == how
    page.emulate_media(reduced_motion="reduce")
    page.locator("nav a", has_text="Scores").click()
    page.wait_for_timeout(200)
    top, bottom = page.evaluate(
        "['scores', 'bar'].map((id, i) => document.getElementById(id).getBoundingClientRect()[i ? 'bottom' : 'top'])"
    )
    assert max(bottom, -1) <= top < height / 2


@pytest.mark.parametrize("calibration", [PLAIN, BAND])
def test_on_a_phone_nothing_widens_the_page(opened: Callable[..., Any], calibration: Calibration):
    long = "x" * 130
    rows = [*ROWS, ("test/long.png", long, 1.9), (f"test/{long}.png", "defective", 1.8)]
    page = opened(report(calibration, rows), width=400)
    page.evaluate("flawmap.set(1.95)")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    wide = "[...document.querySelectorAll('body *')].filter(e => !e.closest('svg, .reader')"
    assert page.evaluate(wide + " && e.getBoundingClientRect().right > 401).length") == 0


def test_only_parts_with_a_verdict_are_counted_by_the_drawings(opened: Callable[..., Any]):
    of = report(PLAIN)
    scores = [s._replace(verdict=None) if i % 5 == 0 else s for i, s in enumerate(of.scores)]
    kept = [s for s in scores if s.verdict]
    page = opened(replace(of, scores=scores))
    assert "Counted: 48 of 60 parts" in page.locator(".drawing", has_text="ROC").inner_text()
    assert page.locator("svg[data-i=roc] .spot").count() == 48
    page.evaluate("flawmap.set(1.8)")
    shares = [np.mean([s.score > 1.8 for s in kept if (s.kind == GOOD) == side]) for side in (False, True)]
    words = [plots.percent(float(v)) for v in shares]
    assert texts(page, "#op-now")[0].endswith(f"{words[0]} found, {words[1]} refused".replace("\u202f", " "))


def test_python_and_the_script_round_ties_alike(opened: Callable[..., Any]):
    shares = [k / n for n in (16, 32, 80, 160, 400) for k in range(n + 1)]
    page = opened(report(PLAIN))
    theirs = page.evaluate("list => list.map(r => flawmap.percent(r))", shares)
    assert theirs == [plots.percent(r) for r in shares]
    assert plots.percent(1 / 16) == "6.3\u202f%"
