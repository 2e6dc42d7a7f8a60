"""What is ignored on the page, drawn by its script in headless Chromium. Skips as test_browser does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawmap.report.gallery import Picture, Shrinker
from flawmap.report.heatmap import Scale
from flawmap.report.page import Report, Scored, write

SCALE = Scale(0, 1, 3)


def _picture(name: str, kind: str, ignored: bool) -> Picture:
    mask, band = np.zeros((2, 40, 40), bool)
    mask[10:20, 8:30] = kind != "good"
    band[24:36, 8:30] = True
    image, map = np.full((40, 40, 3), 128, np.uint8), np.full((16, 16), 0.5, np.float32)
    return Picture(name, name, kind, 1.0, None, image, map, mask, ignored=band if ignored else None)


def test_a_row_has_the_path_of_what_is_ignored_behind_all_others() -> None:
    plain, banded = (Shrinker(1, 100_000, SCALE)(_picture("a", "crack", ignored)) for ignored in (False, True))
    assert plain is not None
    assert banded is not None
    assert banded[: len(plain)] == plain
    assert banded[len(plain) :] == ["M8 24h22v12h-22z", [40, 40]]


@pytest.mark.browser
def test_the_script_hatches_what_is_ignored_and_says_so(chromium: Any, tmp_path: Path) -> None:
    kinds = ["good", "good", "crack", "crack"]
    names = [f"test/{i}.png" for i in range(4)]
    scores = [Scored(name, name, kind, 1.0 + i, None) for i, (name, kind) in enumerate(zip(names, kinds, strict=True))]
    metrics = {"good": 2, "defective": 2, "ignored_pixels": 528, "p_auroc": None, "why": "made"}
    report = Report(
        *("Glass", SCALE, "", None, metrics, scores),
        picture=lambda i: _picture(names[i], kinds[i], ignored=i in (0, 3)),
    )
    page, complaints = chromium.new_context(offline=True).new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(write(report, tmp_path / "report.html").as_uri())
    page.wait_for_function("() => [...document.querySelectorAll('canvas')].every(c => c.dataset.done)")
    captions = page.locator("[data-g=borderline] figcaption").all_inner_texts()
    # of the good picture with a band the band alone, of one crack the mask alone, of the other both
    assert sorted(each for each in captions if "mask" in each) == ["mask", *["mask; hatched: ignored"] * 2]
    assert page.locator("[data-g=borderline] path.ignored").count() == 2
    fill = page.locator("path.ignored").first.evaluate("e => getComputedStyle(e).fill")
    assert "ignored-hatch" in fill
    assert page.locator("#ignored-hatch rect").count() == 2
    assert page.get_by_text("Hatched in a mask: pixels to ignore").is_visible()
    assert complaints == []
    page.context.close()
