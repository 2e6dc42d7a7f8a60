"""The page of a benchmark: one HTML file with tables that sort, a heat table a metric, and accuracy against cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

from markupsafe import Markup, escape

WIDE, HIGH = 560, 330
LEFT, RIGHT, TOP, FLOOR = 58, 150, 16, 44  # px around a chart; names stand on its right


class Heat(NamedTuple):
    text: str
    share: float | None  # of the colour, from 0 to 1; None: no figure
    best: bool


class Metric(NamedTuple):
    key: str
    title: str
    columns: Sequence[str]  # methods
    lines: Sequence[tuple[str, Sequence[Heat]]]  # category or mean, and its cells
    note: str  # what its mean leaves out


class Point(NamedTuple):
    name: str
    x: float
    y: float


class Chart(NamedTuple):
    key: str  # of its metric
    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]


class Sheet(NamedTuple):
    """A table that sorts. A cell is (text, number): it sorts by the number where there is one."""

    title: str
    lead: str
    columns: Sequence[str]
    lines: Sequence[Sequence[tuple[str, float | None]]]


@dataclass(frozen=True)
class Comparison:
    title: str
    caption: str
    counts: Sequence[tuple[str, int]]
    summary: Sheet
    metrics: Sequence[Metric]
    charts: Sequence[Chart]
    sheets: Sequence[Sheet]
    notes: Sequence[str]


def page(comparison: Comparison) -> str:
    """HTML that asks the network for nothing."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    files = resources.files("flawmap.report")
    template, style = (files.joinpath(name).read_text(encoding="utf-8") for name in ("comparison.html", "shared.css"))
    return environment.from_string(template).render(c=comparison, drawn=scatter, shared=Markup(style))


def scatter(chart: Chart, ident: str) -> Markup:
    """Points with their names; x on a logarithmic axis. Names on one height are moved apart."""
    low, high = _decades([p.x for p in chart.points])
    bottom, top = _around([p.y for p in chart.points])

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDE - LEFT - RIGHT)

    def y(value: float) -> float:
        return HIGH - FLOOR - (value - bottom) / (top - bottom) * (HIGH - FLOOR - TOP)

    parts = []
    for tick in _ticks(low, high):
        parts.append(_line("grid", x(tick), TOP, x(tick), HIGH - FLOOR))
        parts.append(_text("tick", x(tick), HIGH - FLOOR + 18, f"{tick:g}", "middle"))
    for number in range(5):
        value = bottom + (top - bottom) * number / 4
        parts.append(_line("grid", LEFT, y(value), WIDE - RIGHT, y(value)))
        parts.append(_text("tick", LEFT - 8, y(value) + 4, f"{value:.3f}", "end"))
    places = _apart([y(p.y) for p in chart.points])
    for number, (point, place) in enumerate(zip(chart.points, places, strict=True)):
        at = (x(point.x), y(point.y))
        parts.append(_line("leader", at[0], at[1], WIDE - RIGHT + 6, place))
        parts.append(_text("label", WIDE - RIGHT + 10, place + 4, f"{number + 1} {point.name}", "start"))
        dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="8"/>').format(*at)
        parts += [dot, _text("number", at[0], at[1] + 4, str(number + 1), "middle")]
    parts.append(_text("axis", (LEFT + WIDE - RIGHT) / 2, HIGH - 6, chart.x_label, "middle"))
    told = "; ".join(f"{p.name}: {chart.y_label} {p.y:.3f}, {chart.x_label} {p.x:.3g}" for p in chart.points)
    shape = Markup('<svg role="img" aria-labelledby="{i}-t {i}-d" viewBox="0 0 {w} {h}" width="{w}" height="{h}">')
    names = Markup('<title id="{i}-t">{t}</title><desc id="{i}-d">{d}</desc>')
    head = shape.format(i=ident, w=WIDE, h=HIGH) + names.format(i=ident, t=chart.title, d=told)
    return head + Markup("").join(parts) + Markup("</svg>")


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.1 * (high - low), 0.15)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round values of every decade, the fewer the more decades there are."""
    steps = (1, 1.5, 2, 3, 5, 7) if high - low < 1 else (1, 2, 5) if high - low < 2.5 else (1,)
    found = [step * 10.0**decade for decade in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _around(values: Sequence[float]) -> tuple[float, float]:
    room = max(0.1 * (max(values) - min(values)), 0.005)
    return min(values) - room, max(values) + room


def _apart(heights: Sequence[float], least: float = 15) -> list[float]:
    """The same heights, in order, none nearer to the next than a line of text."""
    places = list(heights)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in itertools.pairwise(order):
        places[after] = max(places[after], places[before] + least)
    over = max([0.0, *(places[i] - (HIGH - FLOOR) for i in order[-1:])])
    return [place - over for place in places]


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(name, x1, y1, x2, y2)


def _text(name: str, x: float, y: float, text: str, anchor: str) -> Markup:
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(name, x, y, anchor, escape(text))
