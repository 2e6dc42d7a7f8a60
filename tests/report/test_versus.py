"""The page of a comparison: what it says, what it draws, and that it loads nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from flawmap.errors import FlawmapError
from flawmap.report import versus as page_of
from flawmap.report import versus_plots as plots
from flawmap.report.versus import Change, Estimate, Kind, Pair, Part, Rate, Run, Versus, page, write
from flawmap.types import Verdict

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x.png>"


def run(letter: str, name: str = "one", **more) -> Run:
    known = {
        "method": "PaDiM",
        "sentence": "99 good parts promise at most 1.0 % false alarms.",
        "policy": "false-alarm",
        "threshold": 2.5,
        "review_threshold": None,
        "escapes": Rate(2, 6, 0.04, 0.78),
        "false_alarms": Rate(1, 10, 0.003, 0.445),
        "reviews": 0,
        "reviews_good": 0,
        "reviews_defective": 0,
        "judged": 16,
        "undecided": 0,
        "part_auroc": Estimate(0.9, 0.8, 0.95),
        "picture_auroc": Estimate(0.85, 0.7, 0.9),
        "p_auroc": 0.99,
        "pro": None,
        "seconds_per_picture": 0.25,
        "protocol": "plain",
        "bundle_sha256": "ab" * 32,
        "pictures_sha256": "cd" * 32,
    }
    return Run(letter=letter, name=name, **{**known, **more})


def parts(seed: int = 0, runs: int = 2) -> list[Part]:
    """10 good and 6 defective parts, one decimal so that scores tie; NOK above 2.5."""
    random, found = np.random.default_rng(seed), []
    for n in range(16):
        scores = np.round(random.normal(1.5 + 1.5 * (n >= 10), 0.8, runs), 1).tolist()
        verdicts = [Verdict.NOK if s > 2.5 else Verdict.OK for s in scores]
        found.append(Part(f"part {n}", "crack" if n >= 10 else "good", scores, verdicts))
    return found


def compared(**more) -> Versus:
    given = parts()
    row = {"part": "part 3", "kind": "good", "effect": "newly wrong"}
    row |= {"before": {"verdict": "OK", "score": 1.25}, "after": {"verdict": "NOK", "score": 2.75}}
    changes = [Change("defective", 6, 3, 1, 0, 0, 2, 1.0, 1.0), Change("good", 10, 8, 0, 0, 1, 1, 1.0, 1.0)]
    pair = Pair("A", "B", "Nothing is told apart.", Estimate(-0.1, -0.3, 0.05), Estimate(0.01), changes, [row])
    kinds = [Kind("crack", 6, [0.9, None], [Rate(2, 6, 0.04, 0.78), None])]
    whole = Versus([run("A"), run("B", "other")], [pair], kinds, given, 20, ["a note"])
    return replace(whole, **more)


def text_of(html: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ")


def drawing(markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(markup))


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_forbids_all_loading_and_has_no_script():
    tags = Tags(page(compared(notes=[EVIL], runs=[run("A", EVIL, method=EVIL), run("B", "other", sentence=EVIL)]))).seen
    policy = next(a["content"] or "" for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert not rules.keys() & {"script-src", "connect-src", "font-src"}
    assert not {tag for tag, _ in tags} & {"script", "img", "iframe", "object", "form"}
    links = [a[name] or "" for _, a in tags for name in ("href", "src") if name in a]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_links_of_the_drawing_lead_to_the_line_of_the_part():
    tags = Tags(page(compared())).seen
    ids = [a["id"] for _, a in tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert [a["href"] for tag, a in tags if tag == "a"] == ["#B-1"]
    assert "B-1" in ids


def test_the_page_says_the_figures():
    told = text_of(page(compared()))
    for words in (
        "other against one",
        "The same 16 parts (20 pictures) in 2 evaluations: 10 good, 6 defective of 1 kind.",
        "2 of 6 33.3 % (4.0 % to 78.0 %)",
        "1 of 10 10.0 % (0.3 % to 44.5 %)",
        "0.900 (0.800 to 0.950)",
        "99 good parts promise at most 1.0 % false alarms.",
        "−0.100 −0.300 to +0.050",
        "OK 1.250",
        "NOK 2.750",
        "newly wrong",
        "a note",
    ):
        assert words in told, words
    assert "The folder does not tell" in text_of(page(compared(runs=[run("A", sentence=None), run("B")])))


def test_the_same_input_gives_the_same_bytes_and_a_page_is_written_whole(tmp_path: Path):
    assert page(compared()) == page(compared())
    path = write(compared(runs=[run("A", "\udcff"), run("B")]), tmp_path / "a.html")
    assert path.read_bytes().decode("utf-8").rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
    with pytest.raises(FlawmapError, match="cannot write the page"):
        write(compared(), tmp_path / "absent" / "a.html")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.0004, "0.000"), (-0.0004, "0.000"), (0.0126, "+0.013"), (-0.1, "−0.100"), (None, "n/a")],
)
def test_differences_in_words(value: float | None, text: str):
    assert plots.signed(value) == text


def test_what_is_not_perfect_is_never_rounded_to_perfect():
    assert [plots.auroc_text(v) for v in (1.0, 1 - 1e-15, 0.99951, 0.9994)] == ["1.000", "1.000", "> 0.999", "0.999"]
    assert [plots.share(v) for v in (0, 0.0001, 0.048, 0.9999, 1)] == [
        "0.0\u202f%", "< 0.1\u202f%", "4.8\u202f%", "> 99.9\u202f%", "100.0\u202f%",
    ]  # fmt: skip
    assert [plots.p_value(p) for p in (0.0004, 0.0625, 0.25, 1)] == ["< 0.001", "0.062", "0.25", "1.00"]


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_reaches_what_scikit_learn_finds_at_each_rate(seed: int):
    given = parts(seed)
    svg = drawing(plots.curves(compared(parts=given, runs=[run("A", escapes=None), run("B", escapes=None)])))
    curves = [e.attrib["d"] for e in svg.iter() if e.tag == "path" and e.attrib["class"].startswith("curve")]
    labels = [p.kind != "good" for p in given]
    first, ticks = {}, {}
    for e in svg.iter("text"):
        if e.attrib.get("class") == "tick" and e.attrib["text-anchor"] == "middle":
            ticks[e.text] = float(e.attrib["x"])
        elif e.attrib.get("class") == "tick":
            first[float((e.text or "").split("\u202f")[0]) / 100] = float(e.attrib["y"]) - 4
    low, high = min(first), max(first)
    for i, path in enumerate(curves):
        steps = [tuple(map(float, step)) for step in re.findall(r"H([\d.]+)V([\d.]+)", path)]
        alarms, found, _ = roc_curve(labels, [p.scores[i] for p in given], drop_intermediate=False)
        assert len(steps) == len(alarms) - 1
        for (x, y), a, f in zip(steps, alarms[1:], found[1:], strict=True):
            left, right = ticks["10\u202f%"], ticks["100\u202f%"]
            expected = ticks["0"] if a == 0 else left + (np.log10(a) + 1) * (right - left)
            assert x == pytest.approx(expected, abs=0.2)
            up = first[low] + (max(f, low) - low) / (high - low) * (first[high] - first[low])
            assert y == pytest.approx(up, abs=0.2)


def test_a_place_keeps_the_order_and_says_the_share_of_good_parts_below():
    good = np.array([True] * 4 + [False] * 3)
    scores = np.array([1.0, 2.0, 2.0, 4.0, 3.0, 5.0, 9.0])
    places = plots.place(scores, good)
    # Midranks of the four good ones: 1/8, 4/8, 4/8, 7/8; 3.0 stands halfway between two. Two lie above them all.
    assert places[:5] == pytest.approx(plots.INSIDE * np.array([0.125, 0.5, 0.5, 0.875, 0.6875]))
    assert plots.INSIDE < places[5] < places[6] <= 1
    assert plots.place(scores * 7 + 3, good) == pytest.approx(places)
    assert plots.place(scores, np.zeros(7, bool)) == pytest.approx((np.array([0, 1.5, 1.5, 4, 3, 5, 6]) + 0.5) / 7)


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_stands_between_the_parts_on_its_sides(seed: int):
    random = np.random.default_rng(seed)
    scores, good = np.round(random.normal(size=40), 1), random.random(40) < 0.6
    places = plots.place(scores, good)
    for threshold in (-9.0, *np.quantile(scores, [0.1, 0.5, 0.9]), scores.max(), 9.0):
        assert ((places > plots.cut(scores, places, threshold)) == (scores > threshold)).all()


def test_the_quarters_of_a_drawing_hold_the_parts_with_those_verdicts():
    given = parts(3)
    whole = compared(parts=given)
    svg = drawing(plots.ranks(whole, whole.pairs[0]))
    cuts = [e.attrib for e in svg.iter("line") if e.attrib["class"] == "threshold"]
    x, y = float(cuts[0]["x1"]), float(cuts[1]["y1"])
    counted = {}
    for dot in svg.iter():
        if not dot.attrib.get("class", "").startswith("dot"):
            continue
        if dot.tag == "circle":
            at = float(dot.attrib["cx"]), float(dot.attrib["cy"])
        else:
            start = re.match(r"M([\d.]+),([\d.]+)l([\d.]+)", dot.attrib["d"])
            assert start is not None
            at = float(start[1]), float(start[2]) + float(start[3])
        quarter = at[0] > x, at[1] < y
        counted[quarter] = counted.get(quarter, 0) + 1
    expected = {}
    for part in given:
        quarter = part.verdicts[0] == Verdict.NOK, part.verdicts[1] == Verdict.NOK
        expected[quarter] = expected.get(quarter, 0) + 1
    assert counted == expected
    assert len(expected) == 4


def test_of_very_many_parts_a_drawing_keeps_what_changed():
    given = [Part(f"p{n}", "good", [float(n), float(n)], [Verdict.OK, Verdict.OK]) for n in range(9001)]
    kept = plots._thinned(given, ["p1", "p8999"])
    assert len(kept) == 3001 + 2
    assert {1, 8999} <= set(kept)


def test_a_drawing_that_leaves_parts_out_says_so():
    given = [Part(f"p{n}", "good", [float(n), float(n)], [Verdict.OK, Verdict.OK]) for n in range(9001)]
    pair = compared().pairs[0]
    rows = [{**pair.changed[0], "part": f"p{n}"} for n in (1, 8999)]
    told = text_of(page(compared(parts=given, pairs=[replace(pair, changed=rows)])))
    said = "Drawn are 3003 of 9001 parts: every 3rd, and all with another verdict."
    assert told.count(said) == 2  # below the drawing, and in its description
    many = [{**pair.changed[0], "part": f"p{n}"} for n in range(1, 901)]
    told = text_of(page(compared(parts=given, pairs=[replace(pair, changed=many)])))
    kept = len(set(range(0, 9001, 3)) | set(range(1, 201)))
    assert f"Drawn are {kept} of 9001 parts: every 3rd, and the first 200 of 900 with another verdict." in told
    assert "Drawn are" not in text_of(page(compared()))
    words = [f"{n}{plots._th(n)}" for n in (1, 2, 3, 4, 11, 12, 13, 22, 111)]
    assert words == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "22nd", "111th"]


def reviewed(seed: int = 0) -> Versus:
    """B has a band for review, above 1.5 and up to 2.5; A has none."""
    verdict = {False: Verdict.OK, True: Verdict.REVIEW}
    given = []
    for part in parts(seed):
        b = Verdict.NOK if part.scores[1] > 2.5 else verdict[part.scores[1] > 1.5]
        given.append(part._replace(verdicts=[part.verdicts[0], b]))
    runs = []
    for i, letter in enumerate("AB"):
        good, bad = ([p.verdicts[i] for p in given if (p.kind == "good") == which] for which in (True, False))
        looked = [v.count(Verdict.REVIEW) for v in (good, bad)]
        more: dict[str, Any] = {"reviews": sum(looked), "reviews_good": looked[0], "reviews_defective": looked[1]}
        more |= {
            "escapes": Rate(bad.count(Verdict.OK), 6, 0, 1),
            "false_alarms": Rate(good.count(Verdict.NOK), 10, 0, 1),
        }
        runs.append(run(letter, **more, review_threshold=1.5 if i else None))
    return compared(parts=given, runs=runs)


@pytest.mark.parametrize("seed", range(6))
def test_operating_points_of_a_band_for_review_lie_on_the_curve(seed: int):
    whole = reviewed(seed)
    labels = np.array([p.kind != "good" for p in whole.parts])
    scores = np.array([p.scores[1] for p in whole.parts])
    alarms, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    points = plots.operating(whole.runs[1])
    assert points is not None
    for point, threshold in zip(points, (2.5, 1.5), strict=True):
        above = scores > threshold
        assert point == pytest.approx((above[~labels].mean(), above[labels].mean()))
        assert np.hypot(alarms - point[0], found - point[1]).min() < 1e-12
    one = plots.operating(whole.runs[0])
    assert one is not None
    assert one[0] == one[1]
    assert plots.operating(run("A", escapes=None)) is None


def test_a_band_for_review_is_drawn_from_the_mark_to_its_end():
    svg = drawing(plots.curves(reviewed()))
    band = [e.attrib for e in svg.iter("path") if e.attrib["class"].startswith("band")]
    assert [a["class"] for a in band] == ["band r1"]
    start = re.match(r"M([\d.]+),([\d.]+)", band[0]["d"])
    assert start is not None
    curve = next(e.attrib["d"] for e in svg.iter("path") if e.attrib["class"] == "curve r1")
    steps = re.findall(r"H[\d.]+V[\d.]+", band[0]["d"])
    assert set(steps) <= set(re.findall(r"H[\d.]+V[\d.]+", curve))  # it never leaves the curve
    assert len(steps) > 2
    end = re.findall(r"[\d.]+", steps[-1])
    ring = next(e.attrib for e in svg.iter("circle") if e.attrib["class"].startswith("end"))
    assert (ring["class"], ring["cx"], ring["cy"]) == ("end r1", *end)
    square = next(e.attrib["d"] for e in svg.iter("path") if e.attrib["class"] == "mark r1")
    corner = re.match(r"M([\d.]+),([\d.]+)h([\d.]+)", square)
    assert corner is not None
    x, y, side = map(float, corner.groups())
    assert (x + side / 2, y + side / 2) == pytest.approx((float(start[1]), float(start[2])), abs=0.11)
    assert float(ring["cx"]) > float(start[1])  # more good parts are stopped
    assert float(ring["cy"]) <= float(start[2])
    assert not [e for e in drawing(plots.curves(compared())).iter("path") if "band" in e.attrib["class"]]


def test_a_review_threshold_names_the_side_that_passes():
    whole = reviewed()
    svg = drawing(plots.ranks(whole, whole.pairs[0]))
    sides = [e.text for e in svg.iter("text") if e.attrib["class"] == "side"]
    assert sorted(filter(None, sides)) == ["A: OK", "B: OK", "NOK", "NOK"]
    review = next(e.attrib for e in svg.iter("line") if e.attrib["class"] == "review")
    nok = [e.attrib for e in svg.iter("line") if e.attrib["class"] == "threshold"][1]
    at = {
        e.text: e.attrib["transform"]
        for e in svg.iter("text")
        if e.attrib["class"] == "side" and "transform" in e.attrib
    }
    up = {text: float(re.findall(r"[\d.]+", place)[1]) for text, place in at.items()}
    assert up["NOK"] < float(nok["y1"]) < float(review["y1"]) < up["B: OK"]


def test_the_page_counts_parts_for_review_by_class():
    whole = reviewed()
    b = whole.runs[1]
    told = text_of(page(whole))
    assert b.reviews_good
    assert b.reviews_defective
    assert (
        f"For review neither of these 0 of 16 {b.reviews} of 16 {b.reviews_good} good, {b.reviews_defective} defective"
        in told
    )
    assert "2.500 review above 1.500" in told
    assert "the ring that counts the parts for review in" in told
    changed = replace(whole.pairs[0].changes[0], mended=3, to_review=2)
    more = text_of(page(replace(whole, pairs=[replace(whole.pairs[0], changes=[changed])])))
    assert "3 2 for review" in more
    plain = text_of(page(compared()))
    assert "For review" not in plain
    assert "the ring" not in plain


def test_doubts_of_a_run_stand_above_all_figures():
    doubted = run("B", "other", doubts=["12 of the pictures were used.", EVIL])
    told = text_of(page(compared(runs=[run("A"), doubted])))
    assert told.index("Beware of B: other") < told.index("B against A") < told.index("Figures")
    assert "12 of the pictures were used. &lt;script&gt;" in told
    assert "Beware" not in text_of(page(compared()))


def test_intervals_and_levels_of_several_comparisons_are_named():
    pair = compared().pairs[0]
    runs = [run("A"), run("B", "b"), run("C", "c")]
    given = [p._replace(scores=[*p.scores, p.scores[0]], verdicts=[*p.verdicts, p.verdicts[0]]) for p in parts()]
    kinds = [Kind("crack", 6, [0.9, None, 0.5], [Rate(2, 6, 0.04, 0.78), None, None])]
    pairs = [replace(pair, level=0.025), replace(pair, after="C", level=0.025)]
    told = text_of(page(compared(runs=runs, pairs=pairs, parts=given, kinds=kinds)))
    assert told.count("97.5 % interval") == 2
    assert told.count("of 2 comparisons each is held against 2.5 %.") == 2
    assert "A p below 2.5 % (5 % over 2 comparisons)" in told
    assert "95 % interval" in text_of(page(compared()))


def test_runs_are_told_apart_by_dashes_and_shapes():
    html = page(compared())
    dashes = re.findall(r"\.curve\.r\d \{[^}]*stroke-dasharray: ([^;]+);", html)
    assert len(set(dashes)) == len(plots.LETTERS) - 1  # the baseline is the one without
    shapes = [re.sub(r"[-\d.,\s]", "", str(plots.mark(i, 0.0, 0.0, 5.0)).replace(f"r{i}", "")) for i in range(6)]
    assert len({str(plots.mark(i, 50.0, 50.0, 5.0)) for i in range(6)}) == 6
    assert len(set(shapes)) >= 3


def test_without_defects_there_is_no_curve_and_the_page_still_stands():
    given = [p for p in parts() if p.kind == "good"]
    empty = Estimate(None)
    runs = [run(c, part_auroc=empty, picture_auroc=empty, escapes=None) for c in "AB"]
    whole = compared(parts=given, runs=runs, kinds=[])
    assert plots.curves(whole) is None
    assert "ROC" not in re.sub(r"AUROC", "", text_of(page(whole)))


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1920])
def test_the_page_is_no_wider_than_its_window(width: int, tmp_path: Path):
    browser = shutil.which("chromium") or pytest.skip("no chromium")
    path = write(compared(runs=[run("A", "x" * 60), run("B", "y" * 60)]), tmp_path / "a.html")
    # A frame of that width, since a headless window is not made narrower than 500 px.
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe id="f" src="{path.name}" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth; };</script>"
    )
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    done = subprocess.run(
        [*command, f"--window-size={width + 100},1000", "--dump-dom", probe.as_uri()], capture_output=True, text=True
    )
    found = re.search(r"<title>(\d+)</title>", done.stdout)
    assert found is not None, done.stderr[-500:]
    assert int(found[1]) == width


def test_a_table_of_very_many_changes_says_what_it_leaves_out():
    pair = compared().pairs[0]
    rows = [{**pair.changed[0], "part": f"part {n}"} for n in range(page_of.MOST_ROWS + 5)]
    told = text_of(page(compared(pairs=[replace(pair, changed=rows)])))
    assert f"The first {page_of.MOST_ROWS} of {page_of.MOST_ROWS + 5}" in told
