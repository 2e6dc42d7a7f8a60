"""Drawings of the report as SVG text: scores in lanes, bounds of a rate, the colours of the maps.

Colours and fonts come from the page's CSS classes, so that dark mode and print reach the drawings. What is wrong is
hatched and named, never told by colour alone. All text is escaped. A drawing's `ident` must be unique on its page.
What stands for one part of the test carries its number, `data-p`, by which the page's script finds it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from flawmap.report.heatmap import Scale, colour

LABEL, BARS, GAP, AXIS = 20, 34, 12, 46  # heights in px; BARS is the least


class Lane(NamedTuple):
    """The scores of one group of parts; `wrong` tells which got the wrong verdict."""

    label: str
    scores: np.ndarray  # (n,), n > 0
    wrong: np.ndarray  # (n,) bool
    rug: bool = False  # draw every score as a tick as well
    ids: Sequence[int] | None = None  # numbers of the parts: each gets a mark of its own in the bar
    good: bool = True  # the wrong ones are the high scores, else the low ones
    waiting: np.ndarray | None = None  # (n,) bool: which go to review


class Axis(NamedTuple):
    """Values from low to high stand at pixels from start to end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def lanes(
    groups: Sequence[Lane], threshold: float | None, ident: str, width: int, title: str, review: float | None = None
) -> Markup:
    """Histograms one under another on one score axis, so that any number of kinds needs no colour code."""
    top = 4 + 20 * (threshold is not None) + 18 * (review is not None)
    values = [g.scores for g in groups] + ([] if review is None else [np.array([review])])
    edges = _edges(np.concatenate(values), threshold, 28 if width < 500 else 48)
    axis = Axis(float(edges[0]), float(edges[-1]), 32, width - 10)
    bars = max(BARS, 100 // len(groups))
    floor = top + len(groups) * (LABEL + bars + GAP) - GAP
    parts = [_hatch(ident)]
    for tick in ticks(axis.low, axis.high, 6 if width < 500 else 10):
        x = axis.at(tick)
        parts += [line("grid", x, top, x, floor), text("tick", x, floor + 20, f"{tick:g}")]
    named = (("threshold", threshold, 4, "threshold"), ("review-line", review, 22, "review above"))
    for name, value, y, words in named:
        if value is None:
            continue
        x = axis.at(value)
        anchor, shift = ("end", -6) if x > width / 2 else ("start", 6)
        parts.append(line(name, x, y, x, floor))
        label = "threshold-label" if name == "threshold" else "review-label"
        parts.append(text(label, x + shift, y + 11, f"{words} {score(value)}", anchor))
    for row, group in enumerate(groups):
        parts += _lane(group, edges, axis, top + row * (LABEL + bars + GAP) + LABEL, bars, ident)
    parts.append(text("axis-title", (axis.start + axis.end) / 2, floor + 40, "score of a part, higher is stranger"))
    told = "; ".join(f"{g.label}: {_span(g.scores)}" for g in groups)
    return svg(parts, width, floor + AXIS, ident, title, told, x=axis, floor=floor)


def _lane(group: Lane, edges: np.ndarray, axis: Axis, top: float, bars: float, ident: str) -> list[Markup]:
    """One histogram with its label above and its own height; in a bar the wrong parts are hatched and stand lowest."""
    every, _ = np.histogram(group.scores, edges)
    tallest, floor = int(every.max()), top + bars
    parts = [text("lane", axis.start, top - 5, _short(group.label), "start")]
    if group.ids is None:
        wrong, _ = np.histogram(group.scores[group.wrong], edges)
        for low, high, n, bad in zip(edges[:-1], edges[1:], every, wrong, strict=True):
            x, width = axis.at(low) + 0.5, axis.at(high) - axis.at(low) - 1
            if bad:
                tall = bad / tallest * bars
                parts.append(rect("bar wrong", x, floor - tall, width, tall, f"url(#{ident}-hatch)"))
            if n > bad:
                parts.append(rect("bar", x, floor - n / tallest * bars, width, (n - bad) / tallest * bars))
    else:
        parts += _cells(group, group.ids, edges, axis, floor, bars / tallest, ident)
    if group.rug:
        parts += [line("rug", axis.at(s), floor, axis.at(s), floor + 6) for s in group.scores]
    parts.append(line("axis", axis.start, floor, axis.end, floor))
    parts.append(text("tick", axis.start - 6, top + 8, str(tallest), "end"))
    return parts


def _cells(
    group: Lane, ids: Sequence[int], edges: np.ndarray, axis: Axis, floor: float, tall: float, ident: str
) -> Iterator[Markup]:
    """One mark a part, on top of each other where parts share a bin."""
    bins = np.clip(np.searchsorted(edges, group.scores, side="right") - 1, 0, len(edges) - 2)
    standing = np.zeros(len(edges) - 1, int)
    gap = min(0.15 * tall, 1.0) if tall > 2.5 else 0.0
    for i in np.argsort(-group.scores if group.good else group.scores, kind="stable"):
        cell = bins[i]
        low, high = (axis.at(float(edge)) for edge in edges[cell : cell + 2])
        x, width = low + 0.5, high - low - 1
        standing[cell] += 1
        waits = group.waiting is not None and group.waiting[i]
        paint = Markup(' fill="url(#{}-hatch)"').format(ident) if group.wrong[i] else ""
        shape = Markup('<rect class="{}" data-p="{}" x="{:.1f}" y="{:.2f}" width="{:.1f}" height="{:.2f}"{}/>')
        name, y = (
            "bar wrong" if group.wrong[i] else "bar review" if waits else "bar",
            floor - standing[cell] * tall + gap,
        )
        yield shape.format(name, ids[i], x, y, width, tall - gap, paint)


def interval(low: float, rate: float, high: float) -> Markup:
    """A rate and its bounds on a line from 0 to 100 %; the numbers stand beside it, so it is hidden from readers."""
    parts = [line("axis", 4, 8, 124, 8), line("axis", 4, 4, 4, 12), line("axis", 124, 4, 124, 12)]
    parts.append(rect("bounds", 4 + 120 * low, 5, max(120 * (high - low), 1), 6))
    parts.append(Markup('<circle class="point" cx="{:.1f}" cy="8" r="4"/>').format(4 + 120 * rate))
    return Markup('<svg class="interval" viewBox="0 0 128 16" aria-hidden="true" focusable="false">{}</svg>').format(
        Markup("").join(parts)
    )


def legend(scale: Scale, ident: str, word: str = "map threshold") -> Markup:
    """The colours of the maps over the middle grey of an ordinary picture; `word` names where the ramp starts."""
    axis, cell = Axis(scale.low, scale.high, 8, 352), 4
    values = np.linspace(scale.low, scale.high, 344 // cell, dtype=np.float32)
    parts = [rect("ground", axis.start, 6, axis.end - axis.start, 18)]
    for i, (red, green, blue, alpha) in enumerate(colour(values[None], scale)[0]):
        parts.append(rect("step", axis.start + i * cell, 6, cell, 18, f"rgb({red},{green},{blue})", alpha / 255))
    parts.append(text("tick", axis.start, 42, score(scale.low), "start"))
    parts.append(text("tick", axis.end, 42, f"≥ {score(scale.high)}", "end"))
    told = f"From {score(scale.low)} to {score(scale.high)}"
    if scale.threshold > scale.low:
        x = axis.at(scale.threshold)
        parts.append(line("threshold", x, 2, x, 28))
        parts.append(text("threshold-label", x, 42, f"{word} {score(scale.threshold)}"))
        told += f"; the ramp starts at {word} {score(scale.threshold)}, and below it is a pale veil"
    return svg(parts, 360, 48, ident, "Colours of the maps", told + ".")


def percent(rate: float) -> str:
    """ "4.8 %"; what is not 0 or 100 % is never rounded to it. Ties go up, as in the page's script."""
    if 0 < rate < 0.0005:
        return "< 0.1\N{NARROW NO-BREAK SPACE}%"
    if 0.9995 <= rate < 1:
        return "> 99.9\N{NARROW NO-BREAK SPACE}%"
    return f"{Decimal(100 * rate).quantize(Decimal('0.1'), ROUND_HALF_UP)}\N{NARROW NO-BREAK SPACE}%"


def score(value: float) -> str:
    """Four significant digits. Ties go away from 0, as in the page's script."""
    exact = Decimal(float(value))
    if exact and exact.is_finite():
        exact = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), ROUND_HALF_UP)
    return f"{float(exact):#.4g}".rstrip(".")


def figure(value: float) -> str:
    """Three decimals; what is not 1, but for rounding in its sum, is never rounded to it."""
    return "> 0.999" if 0.9995 <= value < 1 - 1e-12 else f"{value:.3f}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values in [low, high], at most `most` + 1 of them, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _edges(values: np.ndarray, threshold: float | None, bins: int) -> np.ndarray:
    """Equal bins over all values; the threshold is an edge, so that no bar stands on both sides of it."""
    inside = values if threshold is None else np.append(values, threshold)
    low, high = float(inside.min()), float(inside.max())
    step = (high - low) / bins or max(abs(high), 1.0) / bins
    anchor = low if threshold is None else threshold
    before = math.ceil((anchor - low) / step - 1e-9) + 1
    after = math.ceil((high - anchor) / step - 1e-9) + 1
    return anchor + step * np.arange(-before, after + 1)


def _span(scores: np.ndarray) -> str:
    return f"scores {score(scores.min())} to {score(scores.max())}, median {score(float(np.median(scores)))}"


def _short(label: str, most: int = 46) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _hatch(ident: str) -> Markup:
    return Markup(
        '<defs><pattern id="{}-hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="hatch-ground" width="5" height="5"/><rect class="hatch" width="2" height="5"/></pattern></defs>'
    ).format(ident)


def svg(
    parts: Sequence[Markup], width: float, height: float, ident: str, title: str, told: str, **about: Any
) -> Markup:
    """The drawing; axes and heights in `about` are told to the page's script: x, y, floor."""
    data = Markup("").join(
        Markup(' data-{}="{}"').format(name, " ".join(f"{v:.17g}" for v in np.atleast_1d(np.asarray(value, float))))
        for name, value in about.items()
    )
    return Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-labelledby="{i}-t {i}-d" data-i="{i}"{a}>'
        '<title id="{i}-t">{t}</title><desc id="{i}-d">{d}</desc>{p}</svg>'
    ).format(w=width, h=height, i=ident, a=data, t=_legal(title), d=_legal(told), p=Markup("").join(parts))


def line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(name, x1, y1, x2, y2)


def rect(name: str, x: float, y: float, w: float, h: float, fill: str | None = None, opacity: float = 1) -> Markup:
    paint = Markup(' fill="{}" fill-opacity="{:.3f}"').format(fill, opacity) if fill else ""
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"{}/>')
    return shape.format(name, x, y, w, h, paint)


def text(name: str, x: float, y: float, words: str, anchor: str = "middle") -> Markup:
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(name, x, y, anchor, escape(_legal(words)))


def _legal(text: str) -> str:
    """Text without the characters that XML forbids; the name of a folder can hold them."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
