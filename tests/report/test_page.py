from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, FlawmapError
from flawmap.report import page, plots
from flawmap.report.heatmap import anchored
from flawmap.report.page import Gallery, Picture, Report, Scored, render, write
from flawmap.types import Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.metrics import summary
from flawmap.verdict.pixels import PixelMetrics

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x.png>"
CALIBRATION = Calibration.from_good(
    [f"good/{i}" for i in range(40)], np.linspace(1, 2, 40).tolist(), np.linspace(2, 3, 40).tolist()
)
SCALE = anchored(1.0, CALIBRATION.map_threshold)


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser would take them apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: Counter[str] = Counter()
        self._pieces: list[str] = []
        self._inside = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", "".join(self._pieces).replace("\u202f", " "))

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self._pieces.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._inside = tag
        if tag in ("td", "th", "dt", "dd"):
            self._pieces.append(" ")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids.update(value or "" for name, value in attrs if name == "id")

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def picture(name: str = "a.png", kind: str | None = "crack", score: float = 3.0, side: int = 48, **more) -> Picture:
    rng = np.random.default_rng(len(name))
    mask = np.zeros((side, side), bool)
    mask[10:20, 12:18] = kind != "good"
    image = rng.integers(0, 255, (side, side, 3)).astype(np.uint8)
    map = rng.gamma(3, 0.4, (side // 2, side // 2)).astype(np.float32)
    verdict = CALIBRATION.verdict([score])
    return Picture(name, name, kind, score, verdict, image, **{"map": map, "mask": mask, **more})


def scored(kind: str | None, scores: list[float]) -> list[Scored]:
    return [Scored(f"{kind}/{i}", f"{kind}/{i}", kind, s, CALIBRATION.verdict([s])) for i, s in enumerate(scores)]


def sample_report(**more) -> Report:
    """7 good parts with 1 false alarm, 6 cracks with 2 escapes, 4 stains with none."""
    scores = [
        *scored("good", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.5]),
        *scored("crack", [1.2, 1.9, 2.6, 3, 4, 5]),
        *scored("stain", [3, 4, 5, 6]),
    ]
    pixels = PixelMetrics()
    pixels.add(np.eye(8, dtype=np.float32), np.eye(8, dtype=bool), good=False)
    metrics = summary([s.score for s in scores], [s.kind for s in scores], [s.verdict for s in scores if s.verdict])
    given = {"calibration": CALIBRATION, "metrics": metrics | pixels.result(), "scores": scores}
    return Report("Glass", SCALE, **{**given, **more})


def test_the_page_loads_nothing():
    report = sample_report(
        galleries=[Gallery("All", [picture(EVIL)])], facts=[("Data", [("x", "http://example.org")])], notes=[EVIL]
    )
    html = render(report)
    read = Reader(html)
    assert read.tags["iframe"] == read.tags["object"] == read.tags["link"] - 1 == 0
    sources = [
        v for _, name, v in read.attributes if name in ("src", "href", "xlink:href", "srcset", "action", "poster")
    ]
    assert len(sources) >= 8
    assert all(value.startswith(("#", "data:")) for value in sources)
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]{1,12})", html)) <= {
        "#lanes-wide-",
        "#lanes-narro",
        "#${each.owne",
        "#ignored-hat",
    }
    assert not [v for _, name, v in read.attributes if re.match(r"(?i)\w*https?://", v) and name != "alt"]


def test_the_policy_forbids_all_but_the_pages_own_pictures_styles_and_one_script():
    html = render(sample_report())
    policy = next(v for v in Reader(html).values("meta", "content") if "default-src" in v)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(script[0]) < 25_000


def test_the_report_of_a_fit_has_no_script():
    html = render(Report("Glass", SCALE, "", CALIBRATION, galleries=[Gallery("All", [picture(EVIL)])]))
    assert Reader(html).tags["script"] == 0
    assert "script-src" not in html


def test_text_from_outside_is_escaped_wherever_it_is_shown():
    metrics = summary([1, 3], ["good", EVIL], [Verdict.OK, Verdict.NOK])
    report = Report(
        EVIL,
        SCALE,
        EVIL,
        CALIBRATION,
        metrics,
        [*scored("good", [1.0]), *scored(EVIL, [3.0])],
        [Gallery(EVIL, [picture(EVIL, EVIL)], EVIL)],
        [(EVIL, [(EVIL, EVIL)])],
        [EVIL],
    )
    html = render(report)
    read = Reader(html)
    assert read.tags["script"] == html.count("<script") == 2  # the data and the page's own
    assert read.tags["img"] == 3
    assert read.text.count(EVIL) >= 10
    assert f"mask: {EVIL}" in read.values("img", "alt")


def test_every_drawing_on_the_page_is_xml_and_no_id_is_used_twice():
    html = render(sample_report(galleries=[Gallery("All", [picture()])]))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    # 2 verdicts, 3 rows of the table, 2 widths of lanes, ROC and its 3 points, rates, cost, legend
    assert len(drawings) == 14
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    read = Reader(html)
    assert max(read.ids.values()) == 1
    assert {v[1:] for v in read.values("a", "href")} <= read.ids.keys()


def test_the_counts_on_the_page_are_those_of_the_inputs():
    # Bounds: proportion_confint(k, n, method="beta") of statsmodels.
    text = Reader(render(sample_report())).text
    assert "Escapes 2 of 10 defective parts passed as good: 20.0 %" in text
    assert "95 % confidence: 2.5 % to 55.6 %" in text
    assert "False alarms 1 of 7 good parts refused: 14.3 %" in text
    assert "crack 2 4 2 of 6 escaped 33.3 % (4.3 % to 77.7 %)" in text
    assert "stain 0 4 0 of 4 escaped 0.0 % (0.0 % to 60.2 %)" in text
    assert "good 6 1 1 of 7 refused 14.3 %" in text
    assert "crack, 6 parts" in text
    assert "calibrated: 80.0 % found, 14.3 % refused" in text
    # the lowest defect, 1.2, refuses 1.2 and all above it: 5 of 7
    assert "no escape (read off the test, promises nothing): 100.0 % found, 71.4 % refused" in text


def test_figures_stand_on_the_page_as_given():
    metrics = sample_report().metrics | {"i_auroc": 0.98765, "p_auroc": 0.99999, "pro": 1.0, "pro_error": 2e-4}
    text = Reader(render(sample_report(metrics=metrics))).text
    assert "Image AUROC 0.988" in text
    assert "Pixel AUROC > 0.999" in text
    assert "PRO 1.000" in text
    assert "exact to 0.0002" in text


def test_an_undefined_figure_is_na_with_its_reason_and_never_0():
    pixels = PixelMetrics()
    pixels.add(np.ones((4, 4), np.float32), None, good=False)
    scores = scored("good", [1.0, 1.5])
    metrics = summary([s.score for s in scores], ["good"] * 2, [Verdict.OK] * 2) | pixels.result()
    text = Reader(render(Report("No defects", SCALE, "", CALIBRATION, metrics, scores))).text
    assert "Image AUROC n/a 2 good and 0 defective parts: it takes both" in text
    assert f"PRO n/a {metrics['why']}" in text
    assert "Escapes n/a no defective part in the test" in text
    assert "0.000" not in text


def test_without_pixel_metrics_the_tiles_say_that_there_were_no_masks():
    metrics = summary([1, 3], ["good", "crack"])
    text = Reader(render(Report("Uncalibrated", SCALE, metrics=metrics))).text
    assert "Pixel AUROC n/a no masks were given" in text
    assert "Not calibrated" in text
    assert "crack n/a n/a of 1 n/a 1.000" in text
    assert "Escapes" not in text


def test_a_fit_report_has_promise_histogram_and_pictures_but_no_test():
    galleries = [Gallery("Strangest good parts", [picture(kind="good", score=1.5)])]
    read = Reader(render(Report("Glass", SCALE, "", CALIBRATION, galleries=galleries)))
    assert "fit report" in read.text
    assert CALIBRATION.sentence in read.text
    assert "calibration, 40 good parts" in read.text
    assert not {"metrics", "kinds", "roc-t"} & read.ids.keys()
    assert {"scores", "pictures"} <= read.ids.keys()
    assert read.tags["img"] == 2  # picture and map; a good part has no mask to outline


def test_views_of_one_part_are_counted_as_one_part():
    views = [
        Scored("a1", "a", "good", 1.0, Verdict.OK),
        Scored("a2", "a", "crack", 5.0, Verdict.NOK),
        Scored("b1", "b", "good", 1.0, Verdict.OK),
        Scored("b2", "b", "good", 1.4, Verdict.OK),
        Scored("c1", "c", "good", 1.0, Verdict.OK),
        Scored("c2", "c", None, 0.5, Verdict.OK),
    ]
    text = Reader(render(Report("Views", SCALE, scores=views))).text
    assert all(s in text for s in ("good, 2 parts", "crack, 1 part"))


def test_escapes_and_false_alarms_are_named_beside_their_pictures():
    pictures = [
        picture("e", "crack", 1.0),
        picture("f", "good", 5.0),
        picture("t", "crack", 5.0),
        picture("u", None, 5.0),
    ]
    read = Reader(render(Report("x", SCALE, galleries=[Gallery("g", pictures)])))
    chips = [v for v in read.values("span", "class") if v.startswith("chip")]
    assert Counter(chips) == {"chip ok": 1, "chip nok": 3, "chip mistake": 2}
    assert re.search(r"e ✓ OK escape score 1.000 crack", read.text)
    assert re.search(r"f ✕ NOK false alarm score 5.000 good", read.text)


def test_pictures_are_small_jpegs_and_the_map_is_the_overlay():
    large = picture(side=600)
    image = Reader(render(Report("x", SCALE, galleries=[Gallery("g", [large])]))).values("img", "src")
    panes = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in image]
    assert [(p.format, p.size) for p in panes] == [("JPEG", (256, 256))] * 3


def test_60_noisy_pictures_stay_below_10_mb_and_the_page_says_how_many_are_shown():
    noisy = [picture(f"{i:03}.png", side=300) for i in range(35)]
    galleries = [Gallery("first", noisy), Gallery("second", noisy)]
    html = render(Report("x", SCALE, galleries=galleries))
    read = Reader(html)
    shown = read.tags["article"]
    assert 10 < shown <= page.MAX_PICTURES
    assert f"{shown} of the 70 pictures chosen" in read.text
    assert len(html.encode()) < 10_000_000
    assert read.text.count("000.png") == 2  # every gallery keeps its first


def test_no_more_pictures_than_the_cap_are_shown():
    few = [picture(f"{i:03}.png", side=16, mask=None) for i in range(page.MAX_PICTURES + 5)]
    read = Reader(render(Report("x", SCALE, galleries=[Gallery("g", few)])))
    assert read.tags["article"] == 60
    assert "60 of the 65 pictures chosen" in read.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(DataError, match=r"x/7\.png"):
        render(Report("x", SCALE, scores=[Scored("x/7.png", "7", "good", bad, None)]))


def test_a_map_that_is_not_finite_is_refused_by_name():
    broken = picture("dir/bad.png", map=np.full((4, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"dir/bad\.png.*not finite"):
        render(Report("x", SCALE, galleries=[Gallery("g", [broken])]))


def test_write_replaces_the_page_whole_and_returns_its_path(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write(sample_report(), path) == path
    assert path.read_text(encoding="utf-8") == render(sample_report())
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_failed_write_keeps_the_old_page_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FlawmapError, match=r"report\.html: No space left on device"):
        write(sample_report(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FlawmapError, match="nowhere"):
        write(sample_report(), tmp_path / "nowhere" / "report.html")


def test_a_file_name_that_is_not_unicode_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    path = write(Report("x", SCALE, galleries=[Gallery("g", [picture(name)])]), tmp_path / "r.html")
    assert "caf\\udce9.png" in path.read_text(encoding="utf-8")


def looked(report: Report, **more) -> tuple[Report, list[int]]:
    """The same with pictures, and a list that says in what order they were asked for."""
    asked: list[int] = []

    def look(i: int) -> Picture:
        asked.append(i)
        of = report.scores[i]
        return picture(of.name, of.kind, of.score, **more)

    return dataclasses.replace(report, picture=look), asked


def data(html: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])


def test_every_picture_of_the_test_is_asked_for_once_and_stands_in_the_data():
    report, asked = looked(sample_report())
    html = render(report)
    assert asked == list(range(17))
    found = data(html)
    assert [row[0] for row in found["pictures"]] == [s.name for s in report.scores]
    assert [part[2] for part in found["parts"]] == [s.score for s in report.scores]
    assert found["threshold"] == CALIBRATION.threshold
    areas = [part[4] for part in found["parts"]]
    assert areas == [0] * 7 + [60] * 10  # 10 x 6 px
    read = Reader(html)
    assert "17 of 17 pictures are on this page, 48 px" in read.text
    assert read.tags["article"] == 2  # without a script: the escapes
    assert read.text.count("escape score") == 2


def test_no_name_can_end_the_data():
    report, _ = looked(Report("x", SCALE, "", CALIBRATION, scores=scored("</script><!--<script>", [3.0])))
    html = render(report)
    assert data(html)["kinds"] == [None, "</script><!--<script>"]
    assert Reader(html).tags["script"] == 2
    assert html.count("</script>") == 2


def test_a_thousand_noisy_pictures_stay_below_10_mb_and_keep_their_sides():
    random = np.random.default_rng(0)
    views = [
        *scored("good", random.normal(1.5, 0.3, 700).tolist()),
        *scored("crack", random.normal(3, 1, 300).tolist()),
    ]
    report, asked = looked(Report("x", SCALE, "", CALIBRATION, scores=views), side=200)
    html = render(report)
    assert len(asked) == 1000
    assert len(html.encode()) < 10_000_000
    rows = data(html)["pictures"]
    assert all(row is not None for row in rows)
    sides = [max(row[2:4]) for row in rows]
    assert min(sides) >= 48
    assert f"1000 of 1000 pictures are on this page, {min(sides)}" in Reader(html).text


def test_a_test_whose_parts_got_no_verdict_promises_nothing():
    views = [s._replace(verdict=None) for s in (*scored("good", [1.0]), *scored("crack", [3.0]))]
    html = render(Report("x", SCALE, "", CALIBRATION, scores=views))
    assert "No part of this test got a verdict" in Reader(html).text
    assert data(html)["threshold"] is None
    assert [part[3] for part in data(html)["parts"]] == [1, 1]


def test_training_and_embedding_are_drawn_when_they_are_given():
    points = np.random.default_rng(0).normal(size=(17, 2))
    names = [s.name for s in sample_report().scores]
    html = render(sample_report(losses=np.geomspace(9, 0.1, 1500).tolist(), embedding=(points, names)))
    read = Reader(html)
    assert {"training-t", "embedding-t"} <= read.ids.keys()
    losses = np.geomspace(9, 0.1, 1500)  # 600 stretches: 300 of three steps, then 300 of two
    first, last = plots.score(losses[:3].mean()), plots.score(losses[-2:].mean())
    assert f"From {first} to {last} in 1500 steps" in read.text
    assert not {"training-t", "embedding-t"} & Reader(render(sample_report())).ids.keys()


def test_the_page_needs_no_torch():
    code = (
        "import sys, flawmap.report.page; sys.exit(bool({'torch', 'onnxruntime', 'scipy.stats'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0


def test_a_figure_says_what_it_counts_and_the_parts_have_theirs():
    metrics = {**(sample_report().metrics or {}), "part_auroc": 0.9999999999999999, "i_auroc": 0.98}
    text = Reader(render(sample_report(metrics=metrics))).text
    assert "Part AUROC 1.000 of parts:" in text
    assert "Image AUROC 0.980 of pictures:" in text
    assert re.search(r"Pixel AUROC [\d.]+ of pixels:", text)


def test_the_first_gallery_says_how_many_there_are():
    views = [*scored("good", [1.0] * 5), *scored("crack", np.linspace(0.5, 1.9, 30).tolist())]
    report, _ = looked(Report("x", SCALE, "", CALIBRATION, scores=views))
    read = Reader(render(report))
    assert "Worst escapes: 8 of 30" in read.text
    assert read.tags["article"] == 8


def test_the_page_names_no_page_of_documentation():
    crossed = dataclasses.replace(CALIBRATION, sentence="By re-splitting (docs/promise.md).")
    text = Reader(render(sample_report(calibration=crossed))).text
    assert "By re-splitting." in text
    assert "docs/" not in text
