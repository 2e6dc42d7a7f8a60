from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from flawmap.report import plots
from flawmap.report.heatmap import Scale

RNG = np.random.default_rng(0)


def lane(label: str, scores: np.ndarray, wrong: np.ndarray | None = None, rug: bool = False) -> plots.Lane:
    return plots.Lane(label, scores, np.zeros(len(scores), bool) if wrong is None else wrong, rug)


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    return root


def drawn(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [node for node in root.iter() if node.get("class") == name]


def test_every_drawing_is_xml_with_a_title_and_a_description_for_readers():
    good, bad = RNG.normal(1, 0.2, 40), RNG.normal(3, 1, 30)
    for svg in (
        plots.lanes([lane("good", good, rug=True), lane("crack", bad)], 1.7, "a", 720, "Scores"),
        plots.legend(Scale(1, 2, 4), "c"),
    ):
        root = parse(svg)
        assert root.get("role") == "img"
        ids = {node.get("id"): node for node in root.iter() if node.get("id")}
        for name in root.get("aria-labelledby", "").split():
            assert ids[name].text
            assert ids[name].tag in ("title", "desc")


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "a\"b&c'", "bell\x07\x00", "lone \udcff surrogate"])
def test_any_label_stays_text_and_the_drawing_stays_xml(label):
    root = parse(plots.lanes([lane(label, np.array([1.0, 2.0]))], None, "a", 350, "Scores"))
    assert not list(root.iter("script"))
    shown = drawn(root, "lane")[0].text or ""
    assert shown == re.sub("[\x00\x07\udcff]", "\ufffd", label)


def test_the_bars_count_every_part_once():
    scores = RNG.gamma(5, 1, 200)
    wrong = scores > 8
    root = parse(plots.lanes([lane("good", scores, wrong)], 8.0, "a", 720, "Scores"))
    tallest = int(drawn(root, "tick")[-1].text or 0)
    unit = 100 / tallest  # one lane is 100 px high
    right = sum(float(bar.get("height", 0)) for bar in drawn(root, "bar")) / unit
    refused = sum(float(bar.get("height", 0)) for bar in drawn(root, "bar wrong")) / unit
    assert right == pytest.approx((~wrong).sum(), abs=0.5)
    assert refused == pytest.approx(wrong.sum(), abs=0.5)


def test_no_bar_stands_on_both_sides_of_the_threshold():
    root = parse(plots.lanes([lane("good", RNG.gamma(5, 1, 300))], 5.4321, "a", 720, "Scores"))
    at = float(drawn(root, "threshold")[0].get("x1", 0))
    for bar in drawn(root, "bar"):
        left = float(bar.get("x", 0))
        right = left + float(bar.get("width", 0))
        assert right <= at + 0.2 or left >= at - 0.2


def test_a_lane_with_numbers_has_a_mark_a_part_and_the_wrong_ones_stand_lowest():
    scores = np.array([1.0, 1.01, 5.0, 5.02, 5.04])
    one = plots.Lane("good", scores, scores > 5.01, False, [7, 8, 9, 10, 11])
    marks = {node.get("data-p"): node for node in parse(plots.lanes([one], 5.01, "a", 720, "Scores")).iter("rect")}
    marks.pop(None, None)
    assert marks.keys() == {"7", "8", "9", "10", "11"}
    assert [marks[p].get("class") for p in ("9", "10", "11")] == ["bar", "bar wrong", "bar wrong"]
    assert float(marks["11"].get("y", 0)) >= float(marks["10"].get("y", 0))  # the highest score lies at the bottom


def test_wrong_bars_are_hatched_with_the_pattern_of_their_own_drawing():
    scores = np.array([1.0, 2.0, 3.0])
    root = parse(plots.lanes([lane("good", scores, scores > 2)], 2.5, "me", 350, "Scores"))
    assert [bar.get("fill") for bar in drawn(root, "bar wrong")] == ["url(#me-hatch)"]
    assert [p.get("id") for p in root.iter("pattern")] == ["me-hatch"]


@pytest.mark.parametrize("scores", [[2.0], [0.0, 0.0], [-3e-9, 4e-9], [1e12, 1e12 + 1e-3], [-1e30, 1e30]])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_odd_scores_still_make_a_drawing(scores, threshold):
    root = parse(plots.lanes([lane("good", np.array(scores))], threshold, "a", 350, "Scores"))
    assert drawn(root, "bar")
    assert "nan" not in ElementTree.tostring(root, "unicode")


def test_the_interval_spans_its_bounds():
    root = parse(plots.interval(0.25, 0.5, 0.75))
    bounds = drawn(root, "bounds")[0]
    assert (bounds.get("x"), bounds.get("width")) == ("34.0", "60.0")
    assert root.get("aria-hidden") == "true"


def test_the_legend_marks_the_threshold_and_says_where_it_saturates():
    root = parse(plots.legend(Scale(1, 2, 4), "l"))
    assert float(drawn(root, "threshold")[0].get("x1", 0)) == pytest.approx(8 + 344 / 3, abs=0.06)
    text = " ".join(node.text or "" for node in root.iter("text"))
    assert "threshold 2.000" in text
    assert "≥ 4.000" in text
    assert not drawn(parse(plots.legend(Scale(1, 1, 4), "l")), "threshold")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.91, 2.04, [1, 1.5, 2]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (1e-9, 6e-9, [1e-9, 2e-9, 3e-9, 4e-9, 5e-9, 6e-9]),
    ],
)
def test_ticks_are_round_values_inside_the_axis(low, high, expected):
    assert plots.ticks(low, high, 5) == expected


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0.0"), (0.0004, "< 0.1"), (0.0478, "4.8"), (0.9996, "> 99.9"), (1, "100.0")],
)
def test_a_rate_is_never_rounded_to_none_or_all(rate, text):
    assert plots.percent(rate) == f"{text}\u202f%"


@pytest.mark.parametrize(("value", "text"), [(1.0005, "1.000"), (0.03125, "0.03125"), (1000.5, "1001"), (2.5, "2.500")])
def test_scores_have_four_digits_and_ties_go_away_from_zero(value: float, text: str):
    assert plots.score(value) == text  # 1.0005 as a float lies below the tie
    assert plots.score(-value) == f"-{text}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9999999999999999, "1.000"), (1.0, "1.000"), (0.9999, "> 0.999"), (0.9994, "0.999"), (0, "0.000")],
)
def test_a_figure_is_one_only_when_it_is(value: float, text: str):
    assert plots.figure(value) == text


def test_a_review_threshold_has_a_line_and_a_label_of_its_own():
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    one = plots.Lane("crack", scores, scores < 1.5, False, range(4), False, (scores > 1.5) & (scores < 3.5))
    root = parse(plots.lanes([one], 3.5, "a", 720, "Scores", 1.5))
    low, high, start, end = map(float, root.get("data-x", "").split())
    for name, value in (("threshold", 3.5), ("review-line", 1.5)):
        assert float(drawn(root, name)[0].get("x1", 0)) == pytest.approx(
            start + (value - low) / (high - low) * (end - start), abs=0.1
        )
    assert drawn(root, "review-label")[0].text == "review above 1.500"
    marks = {node.get("data-p"): node.get("class") for node in root.iter("rect") if node.get("data-p")}
    assert marks == {"0": "bar wrong", "1": "bar review", "2": "bar review", "3": "bar"}
