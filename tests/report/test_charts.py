"""Charts: every number is there as text, the same numbers give the same bytes, and lines differ in more than colour."""

from __future__ import annotations

import math
import re

import pytest

from flawmap.report.charts import Line, Panel, bars, lines

pytest.importorskip("matplotlib")


def _texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_lines_have_names_labels_and_marked_points() -> None:
    one = Line("first", [2, 4, 54], [0.5, 0.7, 0.9], [0.1, 0.05, 0.01])
    two = Line("second", [2, 4, 54], [0.4, 0.6, 0.8], style="points")
    thin = Line("", [2, 4, 54], [0.45, 0.55, 0.75], style="steps")
    drawn = lines(
        [
            Panel("few parts", "parts", "I-AUROC", [one, two, thin], log_x=True, marks=[(4, 0.7, "here")]),
            Panel("again", "x", "y", [one], y_range=(0, 1)),
        ],
        "five draws",
    )
    texts = _texts(drawn)
    for word in ("few parts", "parts", "I-AUROC", "first", "second", "here", "again", "five draws", "2", "4", "54"):
        assert word in texts
    assert texts.count("first") == 1  # a panel of one line needs no legend
    assert texts.count("1") >= 1  # the number of the marked point
    assert b"#0072b2" in drawn
    assert b"#d55e00" in drawn
    assert b"<dc:date>" not in drawn


def test_the_same_numbers_give_the_same_bytes() -> None:
    panel = Panel("t", "x", "y", [Line("a", [0, 1], [0, 1], style="dashed")])
    assert lines([panel]) == lines([panel])
    assert bars(["a"], {"s": [0.5]}, "y") == bars(["a"], {"s": [0.5]}, "y")


def test_bars_say_their_values_and_what_was_not_run() -> None:
    drawn = bars(
        ["bottle", "mono"],
        {"I-AUROC": [0.9876, 0.51], "P-AP": [None, math.nan]},
        "area",
        spread={"I-AUROC": [0.02, None]},
        low=0.4,
    )
    texts = _texts(drawn)
    assert [texts.count(word) for word in ("0.988", "0.510", "not run", "—", "I-AUROC", "bottle")] == [1] * 6


def test_a_chart_without_a_value_is_a_chart_all_the_same() -> None:
    assert _texts(bars(["a"], {"s": [None]}, "y")).count("not run") == 1
