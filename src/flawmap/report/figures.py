"""Drawings over thresholds, sizes and steps as SVG text: ROC, rates, cost, size against score, training, embedding.

They are whole without a script; with one, lines move with the threshold and marks with `data-p` choose their part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from flawmap.report.plots import Axis, line, percent, score, svg, text, ticks
from flawmap.verdict.rates import clopper_pearson

ZERO = 42  # px from there to none refused, which a logarithmic axis has no place for
LEAST = 1e-3  # the left end of the ROC's axis; what refuses less stands there
TRIANGLE = "M-5.5,4.5H5.5L0,-5.5Z"
SQUARE = "M-4,-4H4V4H-4Z"
SHAPES = {
    "calibrated": "M-7,0L0,-7L7,0L0,7Z",
    "oracle": "M-5.5,-5.5H5.5V5.5H-5.5Z",
    "now": "M-6,0A6,6 0 1 0 6,0A6,6 0 1 0 -6,0Z",
}
MOST_STEPS = 600  # points of a training curve


class Known(NamedTuple):
    """The parts of a test whose kind is known: one entry each."""

    scores: np.ndarray  # (n,)
    defect: np.ndarray  # (n,) bool
    ids: np.ndarray  # (n,) the numbers of the parts on the page


class Costs(NamedTuple):
    """Of one escape and of one false alarm, in any unit, and the line's own share of defective parts."""

    escape: float
    reject: float
    defect_rate: float
    review: float = 0.0  # of a person's look at one part

    def of(self, tested: Known, cuts: np.ndarray, review: float | None = None) -> np.ndarray:
        """The mean cost of a part at each threshold (n,), when parts above `review` and not above it go to a person."""
        good, bad = np.sort(tested.scores[~tested.defect]), np.sort(tested.scores[tested.defect])
        passing = cuts if review is None else np.minimum(cuts, review)
        good_passes, good_kept = (np.searchsorted(good, at, side="right") / len(good) for at in (passing, cuts))
        bad_passes, bad_kept = (np.searchsorted(bad, at, side="right") / len(bad) for at in (passing, cuts))
        rate = self.defect_rate
        waits = rate * (bad_kept - bad_passes) + (1 - rate) * (good_kept - good_passes)
        return self.escape * rate * bad_passes + self.reject * (1 - rate) * (1 - good_kept) + self.review * waits


class Curve(NamedTuple):
    """The rates of a threshold just below each distinct score, from the highest score down; first: above all."""

    cuts: np.ndarray  # (m,) distinct scores, descending
    refused: np.ndarray  # (m + 1,) share of good parts above the threshold
    found: np.ndarray  # (m + 1,) share of defective parts above it


def curve(tested: Known) -> Curve:
    good, bad = np.sort(tested.scores[~tested.defect]), np.sort(tested.scores[tested.defect])
    cuts = np.unique(tested.scores)[::-1]
    refused = np.concatenate([[0.0], 1 - np.searchsorted(good, cuts) / len(good)])
    return Curve(cuts, refused, np.concatenate([[0.0], 1 - np.searchsorted(bad, cuts) / len(bad)]))


def no_escape(tested: Known) -> tuple[float, float]:
    """Read off the test: the share of good parts refused when no defective part may pass, and 1 for all found."""
    least = tested.scores[tested.defect].min()
    return float((tested.scores[~tested.defect] >= least).mean()), 1.0


def roc(tested: Known, point: tuple[float, float] | None, ident: str) -> Markup:
    """Share of defective parts found against share of good parts refused (log); `point`: (refused, found) as judged.

    The band is the pointwise 95 % Clopper-Pearson interval of the found share.
    """
    x, y = Axis(-3, 0, 106, 506), Axis(0, 1, 306, 14)
    way, bad = curve(tested), int(tested.defect.sum())

    def at(refused: float) -> float:
        return x.at(math.log10(max(refused, LEAST))) if refused else x.start - ZERO

    parts = [Markup('<g class="frame">'), *_roc_frame(x, y), Markup("</g>")]
    steps = [(at(f), t) for f, t in zip(way.refused, way.found, strict=True)]
    bounds = [clopper_pearson(hits, bad) for hits in range(bad + 1)]
    band = [bounds[round(t * bad)] for t in way.found]
    low, high = (_steps([(px, y.at(b[side])) for (px, _), b in zip(steps, band, strict=True)]) for side in (0, 1))
    parts.append(Markup('<polygon class="band" points="{} {}"/>').format(low, " ".join(reversed(high.split()))))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(_steps([(px, y.at(t)) for px, t in steps])))
    place = {cut: step for cut, step in zip(way.cuts.tolist(), steps[1:], strict=True)}
    for i, value in zip(tested.ids, tested.scores.tolist(), strict=True):
        px, t = place[value]
        parts.append(Markup('<circle class="spot" data-p="{}" cx="{:.1f}" cy="{:.1f}" r="2"/>').format(i, px, y.at(t)))
    oracle = no_escape(tested)
    parts.append(_shape("oracle", at(oracle[0]), y.at(oracle[1])))
    told = f"{len(tested.scores) - bad} good and {bad} defective parts. "
    told += f"No escape would refuse {percent(oracle[0])} of the good parts, read off the test."
    if point is not None:
        told += f" At the threshold {percent(point[1])} of the defective parts are found"
        told += f" and {percent(point[0])} of the good parts refused."
        parts.append(_shape("calibrated", at(point[0]), y.at(point[1])))
    parts.append(_shape("now", x.start, y.start))
    title = "ROC: every trade of escapes against false alarms, false alarms on a logarithmic axis"
    return svg(parts, 520, 360, ident, title, told, x=x, y=y)


def _roc_frame(x: Axis, y: Axis) -> Iterator[Markup]:
    for decade in range(-3, 1):
        for digit in range(1, 10 if decade else 2):
            at = x.at(decade + math.log10(digit))
            yield line("grid" if digit > 1 else "grid main", at, y.end, at, y.start)
        yield text("tick", x.at(decade), y.start + 20, f"{100 * 10.0**decade:g}\N{NARROW NO-BREAK SPACE}%")
    yield line("grid main", x.start - ZERO, y.end, x.start - ZERO, y.start)
    yield text("tick", x.start - ZERO, y.start + 20, "0")
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield line("grid", x.start - ZERO, y.at(rate), x.end, y.at(rate))
        yield text("tick", x.start - ZERO - 8, y.at(rate) + 4, f"{100 * rate:.0f}\N{NARROW NO-BREAK SPACE}%", "end")
    yield text("axis-title", (x.start + x.end) / 2, 352, "good parts refused (false alarms)")
    yield _turned(12, (y.start + y.end) / 2, "defective parts found")


def rates(tested: Known, threshold: float | None, ident: str, review: float | None = None) -> Markup:
    """Share of defective parts that pass and of good parts that are refused, over the threshold."""
    x, y = _span(tested.scores, threshold, review), Axis(0, 1, 186, 12)
    parts: list[Markup] = list(_frame(x, y, (0, 0.5, 1), lambda v: f"{100 * v:.0f}\N{NARROW NO-BREAK SPACE}%"))
    for name, defect in (("escapes", True), ("alarms", False)):
        values = np.sort(tested.scores[tested.defect == defect])
        n = len(values)
        cuts, first = np.unique(values, return_index=True)
        after = np.append(first[1:], n) / n  # share of values at most the cut
        if defect and review is not None:  # what a person looks at has not escaped
            after = np.searchsorted(values, np.minimum(cuts, review), side="right") / n
        shares = [0.0, *(after if defect else 1 - after)]
        if not defect:
            shares[0] = 1.0
        points = [(x.start, y.at(shares[0]))]
        for cut, before, then in zip(cuts, shares[:-1], shares[1:], strict=True):
            points += [(x.at(cut), y.at(before)), (x.at(cut), y.at(then))]
        points.append((x.end, y.at(shares[-1])))
        parts.append(Markup('<polyline class="rate {}" points="{}"/>').format(name, _joined(points)))
    parts += _marks(x, y, threshold, review)
    told = "False alarms fall and escapes rise with the threshold."
    return svg(parts, 520, 234, ident, "Escapes and false alarms over the threshold", told, x=x, y=y)


def cost(tested: Known, threshold: float | None, costs: Costs, ident: str, review: float | None = None) -> Markup:
    """escape x rate x escapes + reject x (1 - rate) x false alarms + review x reviews, over the threshold."""
    x, y = _span(tested.scores, threshold, review), Axis(0, 1, 186, 12)
    cuts = np.concatenate([[x.low], np.unique(tested.scores)])
    value = costs.of(tested, cuts, review)
    top = float(value.max()) or 1.0
    heights = [y.at(share / top) for share in value]
    ends = [*(x.at(cut) for cut in cuts[1:]), x.end]
    points = [(at, tall) for cut, end, tall in zip(cuts, ends, heights, strict=True) for at in (x.at(cut), end)]
    best = int(value.argmin())
    parts = list(_frame(x, y, (0, 1), lambda v: score(v * top) if v else "0"))
    parts.append(Markup('<polyline class="curve cost" points="{}"/>').format(_joined(points)))
    parts.append(
        Markup('<circle class="best" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(x.at(cuts[best]), y.at(value[best] / top))
    )
    parts += _marks(x, y, threshold, review)
    told = f"The least is {score(float(value[best]))} at a threshold of {score(float(cuts[best]))}, read off the test."
    return svg(parts, 520, 234, ident, "Cost of a part over the threshold", told, x=x, y=y)


def sizes(
    tested: Known,
    area: np.ndarray,
    states: Sequence[str],
    threshold: float | None,
    ident: str,
    review: float | None = None,
) -> Markup:
    """Score of each defective part against its defect's area in px (n,) > 0, logarithmic.

    `states`: "wrong" for an escape, "review" for what a person looks at, else "".
    """
    y0 = _span(tested.scores, threshold, review)
    x, y = _decades(area, 58, 506), Axis(y0.low, y0.high, 306, 14)
    parts = []
    for tick in _round_log(x):
        at = x.at(math.log10(tick))
        parts += [line("grid", at, y.end, at, y.start), text("tick", at, y.start + 20, f"{tick:,.0f}")]
    for tick in ticks(y.low, y.high, 6):
        parts += [line("grid", x.start, y.at(tick), x.end, y.at(tick))]
        parts.append(text("tick", x.start - 8, y.at(tick) + 4, f"{tick:g}", "end"))
    for name, at in (("threshold", threshold), ("review-line", review)):
        if at is not None:
            parts.append(line(name, x.start, y.at(at), x.end, y.at(at)))
    for i, size, value, state in zip(tested.ids, area, tested.scores, states, strict=True):
        parts.append(_mark(int(i), x.at(math.log10(size)), y.at(value), state))
    parts.append(text("axis-title", (x.start + x.end) / 2, 352, "area of the defect's mask, px of the picture"))
    parts.append(_turned(8, (y.start + y.end) / 2, "score"))
    wrong = list(states).count("wrong")
    told = f"{len(area)} defective parts from {area.min():,.0f} to {area.max():,.0f} px; {wrong} escape."
    if review is not None:
        told += f" {list(states).count('review')} go to review."
    return svg(parts, 520, 360, ident, "Size of the defect against the score", told, x=x, y=y)


def training(losses: np.ndarray, ident: str) -> Markup:
    """The loss over the steps (n,): the mean of each of at most 600 stretches; logarithmic when all are positive."""
    cells = np.array_split(np.arange(len(losses)), min(len(losses), MOST_STEPS))
    steps, values = np.array([c.mean() for c in cells]), np.array([losses[c].mean() for c in cells])
    log = bool(values.min() > 0 and values.max() > 5 * values.min())
    shown = np.log10(values) if log else values
    x, y = Axis(0, max(len(losses) - 1, 1), 58, 506), _padded(shown, 206, 14)
    marks = [(math.log10(v), v) for v in _round_log(y)] if log else [(v, v) for v in ticks(y.low, y.high, 5)]
    parts = []
    for at, value in marks:
        parts += [
            line("grid", x.start, y.at(at), x.end, y.at(at)),
            text("tick", x.start - 8, y.at(at) + 4, f"{value:g}", "end"),
        ]
    for tick in ticks(0, x.high, 6):
        parts += [
            line("grid", x.at(tick), y.end, x.at(tick), y.start),
            text("tick", x.at(tick), y.start + 20, f"{tick:g}"),
        ]
    points = [(x.at(s), y.at(v)) for s, v in zip(steps, shown, strict=True)]
    parts.append(Markup('<polyline class="curve thin" points="{}"/>').format(_joined(points)))
    parts.append(text("axis-title", (x.start + x.end) / 2, 250, "step"))
    told = f"From {score(values[0])} to {score(values[-1])} in {len(losses)} steps."
    return svg(parts, 520, 256, ident, "Training: loss over the steps", told)


def embedding(points: np.ndarray, ids: Sequence[int], defect: Sequence[bool], ident: str) -> Markup:
    """Pictures as points (N, 2), near each other where their features are; triangles are defective."""
    x, y = _padded(points[:, 0], 12, 508), _padded(points[:, 1], 348, 12)
    places = zip(points.tolist(), ids, defect, strict=True)
    parts = [_mark(i, x.at(a), y.at(b), "wrong kind" if bad else "kind") for (a, b), i, bad in places]
    told = f"{len(points)} pictures, {sum(map(bool, defect))} of them defective. Axes have no unit."
    return svg(parts, 520, 360, ident, "Pictures by their features", told)


def _span(scores: np.ndarray, *more: float | None) -> Axis:
    return _padded(np.append(scores, [value for value in more if value is not None]), 58, 506)


def _padded(values: np.ndarray, start: float, end: float) -> Axis:
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    return Axis(low - room, high + room, start, end)


def _decades(values: np.ndarray, start: float, end: float) -> Axis:
    low, high = math.log10(values.min()), math.log10(values.max())
    room = max(0.05 * (high - low), 0.1)
    return Axis(low - room, high + room, start, end)


def _round_log(axis: Axis) -> list[float]:
    """Round values of every decade on a logarithmic axis."""
    span = axis.high - axis.low
    steps = (1, 2, 5) if span < 1.2 else (1, 3) if span < 2.2 else (1,)
    every = [s * 10.0**d for d in range(math.floor(axis.low), math.ceil(axis.high) + 1) for s in steps]
    return [v for v in every if axis.low <= math.log10(v) <= axis.high]


def _frame(x: Axis, y: Axis, values: Sequence[float], said: Callable[[float], str]) -> Iterator[Markup]:
    for tick in ticks(x.low, x.high, 7):
        yield line("grid", x.at(tick), y.end, x.at(tick), y.start)
        yield text("tick", x.at(tick), y.start + 20, f"{tick:g}")
    for value in values:
        yield line("grid", x.start, y.at(value), x.end, y.at(value))
        yield text("tick top" if value == values[-1] else "tick", x.start - 8, y.at(value) + 4, said(value), "end")
    yield text("axis-title", (x.start + x.end) / 2, y.start + 42, "threshold")


def _marks(x: Axis, y: Axis, threshold: float | None, review: float | None) -> Iterator[Markup]:
    for name, at in (("threshold", threshold), ("review-line", review)):
        if at is not None:
            yield line(name, x.at(at), y.end, x.at(at), y.start)


def _mark(part: int, x: float, y: float, state: str) -> Markup:
    """A disc, a triangle, or a square; the style sheet shows one of them. A negative number is no part of the test.

    `state`: "wrong" is a triangle, "review" a square. With "kind" a triangle is a defect at every threshold.
    """
    number = Markup(' data-p="{}"').format(part) if part >= 0 else ""
    shape = '<g class="mark{}"{} data-at="{:.1f} {:.1f}" transform="translate({:.1f} {:.1f})">'
    shape += f'<circle r="4.5"/><path d="{TRIANGLE}"/><path class="square" d="{SQUARE}"/></g>'
    return Markup(shape).format(f" {state}" if state else "", number, x, y, x, y)


def _shape(name: str, x: float, y: float) -> Markup:
    return Markup('<path class="op {}" d="{}" transform="translate({:.1f} {:.1f})"/>').format(name, SHAPES[name], x, y)


def _turned(x: float, y: float, words: str) -> Markup:
    shape = '<text class="axis-title" transform="translate({} {}) rotate(-90)" text-anchor="middle">{}</text>'
    return Markup(shape).format(x, y, words)


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """Across, then up: between two scores nothing changes."""
    walked = [points[0]]
    for (_, before), (x, y) in pairwise(points):
        walked += [(x, before), (x, y)]
    return _joined(walked)


def _joined(points: Sequence[tuple[float, float]]) -> str:
    kept = [f"{x:.1f},{y:.1f}" for x, y in points]
    return " ".join(p for i, p in enumerate(kept) if not i or p != kept[i - 1])
