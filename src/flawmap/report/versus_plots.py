"""Drawings of a comparison as SVG text: ROC curves over one another, ranks of one run against another's, differences.

Colours and fonts come from the page's CSS classes. All text is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from flawmap.types import GOOD
from flawmap.verdict.metrics import roc

if TYPE_CHECKING:
    from flawmap.report.versus import Estimate, Pair, Part, Run, Versus

LETTERS = "ABCDEF"  # as many runs as dashes and marks can be told apart
MOST_ROWS = 200  # of parts whose verdict changed, a table
MOST_POINTS = 4000  # of a drawing
WIDE, HIGH = 450, 420  # px of a drawing
LEFT, RIGHT, TOP, FLOOR = 64, 26, 30, 56  # px around it
ZERO = 34  # px from the place of no false alarm to the logarithmic axis
INSIDE = 0.53  # of an axis of ranks: where the good parts lie; the rest is above all of them
EXACT = 1e-12  # what adding up an AUROC may lose
THIN = "\N{NARROW NO-BREAK SPACE}"


def share(rate: float) -> str:
    """ "4.8 %"; what is not 0 or 100 % is never rounded to it."""
    low, high = rate < 0.0005, rate >= 0.9995
    if 0 < rate < 1 and (low or high):
        return f"< 0.1{THIN}%" if low else f"> 99.9{THIN}%"
    return f"{100 * rate:.1f}{THIN}%"


def auroc_text(value: float | None) -> str:
    if value is None:
        return "n/a"
    return "> 0.999" if 0.9995 <= value < 1 - EXACT else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference, three decimals; a true minus, and no sign for what is nothing to three decimals."""
    if value is None:
        return "n/a"
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.0995 else f"{value:.2f}"


def share_of(level: float) -> str:
    """A level of confidence, or of error, as short as it is known: "95 %", "1.67 %"."""
    return f"{100 * level:.3g}{THIN}%"


def score(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")


def curves(versus: Versus) -> Markup | None:
    """ROC of parts on a logarithmic axis of false alarms, with a place of its own for none. None without both classes.

    A step shows what is reached with at most so many false alarms: only thresholds that exist, nothing between them.
    """
    known = [p for p in versus.parts if p.kind is not None]
    n_good, n_bad = versus.count(True), versus.count(False)
    if not (n_good and n_bad):
        return None
    lines = []
    for i in range(len(versus.runs)):
        found = roc([p.scores[i] for p in known], [p.kind != GOOD for p in known])
        assert found is not None
        lines.append((found[0], found[1]))
    low = math.floor(math.log10(1 / n_good) + 1e-9)
    first = min(float(found[alarms == 0].max()) for alarms, found in lines)
    points = [(i, *found) for i, run in enumerate(versus.runs) if (found := operating(run))]
    reached = [found for _, nok, _ in points for _, found in [nok]]
    bottom = max(b for b in (0.0, 0.5, 0.8, 0.9) if b == 0 or b < min([first, *reached]))

    def x(rate: float) -> float:
        start = LEFT + ZERO
        return (
            LEFT + 8
            if rate == 0
            else start + (1 - math.log10(rate) / low) * (WIDE - RIGHT - start)
            if low
            else WIDE - RIGHT
        )

    def y(rate: float) -> float:
        return HIGH - FLOOR - (max(rate, bottom) - bottom) / (1 - bottom) * (HIGH - FLOOR - TOP)

    parts = _roc_axes(x, y, low, bottom)
    for i, (alarms, found) in enumerate(lines):
        path = [f"M{x(0):.1f},{y(bottom):.1f}"]
        for a, f in zip(alarms[1:], found[1:], strict=True):
            path.append(f"H{x(float(a)):.1f}V{y(float(f)):.1f}")
        parts.append(Markup('<path class="curve r{}" d="{}H{:.1f}"/>').format(i, "".join(path), x(1)))
    for i, nok, review in points:
        if review != nok:
            steps = "".join(f"H{x(a):.1f}V{y(f):.1f}" for a, f in _between(lines[i], nok, review))
            band = Markup('<path class="band r{}" d="M{:.1f},{:.1f}{}"/>').format(i, x(nok[0]), y(nok[1]), steps)
            parts += [band, _end(i, x(review[0]), y(review[1]), versus.runs[i].letter)]
    parts += _marked([(i, x(nok[0]), y(nok[1])) for i, nok, _ in points])
    told = "; ".join(f"{run.letter} {run.name}: part AUROC {auroc_text(run.part_auroc.value)}" for run in versus.runs)
    return _svg(parts, "roc", "ROC of all runs", f"{n_good} good and {n_bad} defective parts. {told}.")


def operating(run: Run) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """(false alarms, defective parts found) as NOK, and with the parts for review counted in; both lie on the ROC.

    The two are one point for a run without such parts. None where no part of a class has a verdict.
    """
    alarms, escapes = run.false_alarms, run.escapes
    if alarms is None or escapes is None or not (alarms.n and escapes.n):
        return None
    passing = escapes.n - escapes.count  # do not pass as OK
    nok = alarms.count / alarms.n, (passing - run.reviews_defective) / escapes.n
    return nok, ((alarms.count + run.reviews_good) / alarms.n, passing / escapes.n)


def _between(line: tuple[np.ndarray, np.ndarray], start: Any, end: Any) -> list[tuple[float, float]]:
    """The points of a curve from one of its points to another, the last included."""
    curve = zip(line[0].tolist(), line[1].tolist(), strict=True)
    return [p for p in curve if all(s <= at <= e for s, at, e in zip(start, p, end, strict=True))] + [end]


def _roc_axes(x: Any, y: Any, low: int, bottom: float) -> list[Markup]:
    parts = []
    steps = (1, 2, 5) if low >= -2 else (1,)
    rates = [step * 10.0**decade for decade in range(low, 1) for step in steps]
    for rate in (0.0, *(r for r in rates if r <= 1)):
        label = f"{100 * rate:g}{THIN}%" if rate else "0"
        parts += [_line("grid", x(rate), TOP, x(rate), HIGH - FLOOR), _text("tick", x(rate), HIGH - FLOOR + 18, label)]
    for k in range(6):
        rate = bottom + (1 - bottom) * k / 5
        parts.append(_line("grid", LEFT, y(rate), WIDE - RIGHT, y(rate)))
        parts.append(_text("tick", LEFT - 8, y(rate) + 4, f"{100 * rate:.0f}{THIN}%", "end"))
    parts.append(_text("axis", (LEFT + WIDE - RIGHT) / 2, HIGH - 14, "good parts refused (false alarms), logarithmic"))
    parts.append(_turned("axis", 12, (TOP + HIGH - FLOOR) / 2, "defective parts found"))
    return parts


def _marked(at: Sequence[tuple[int, float, float]]) -> list[Markup]:
    """Operating points with their letters; points that lie on one another share a label."""
    parts = [mark(i, x, y, 5.5 if i else 9.0) for i, x, y in at]  # where two meet, the baseline's rim shows
    groups: list[list[tuple[int, float, float]]] = []
    for point in at:
        near = next((g for g in groups if math.hypot(g[0][1] - point[1], g[0][2] - point[2]) < 18), None)
        groups.append([point]) if near is None else near.append(point)
    for group in groups:
        _, x, y = group[0]
        down = 22 if y < (TOP + HIGH - FLOOR) / 2 else -13
        parts.append(_text("label", x + 8, y + down, ", ".join(LETTERS[i] for i, _, _ in group), "start"))
    return parts


def _end(run: int, x: float, y: float, letter: str) -> Markup:
    """Where a band for review ends: a hollow ring."""
    shape = Markup('<circle class="end r{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}: NOK or review</title></circle>')
    return shape.format(run, x, y, letter)


def ranks(versus: Versus, pair: Pair) -> Markup:
    """Where each part lies among the good ones, by the run before (across) and after (up).

    Up to the strangest good part an axis is the share of good parts below; beyond it parts stand in order of score.
    A threshold is a line between the parts on its sides, so each quarter holds exactly the parts with those verdicts.
    """
    i, j = LETTERS.index(pair.before), LETTERS.index(pair.after)
    good = np.array([p.kind == GOOD for p in versus.parts])
    across, up = (np.array([p.scores[run] for p in versus.parts], float) for run in (i, j))
    places = [place(values, good) for values in (across, up)]
    rows = {row["part"]: number for number, row in enumerate(pair.changed[:MOST_ROWS])}
    shown = _thinned(versus.parts, rows)
    parts = _rank_axes(pair, bool(good.any()))
    for run, values, where, upright in ((i, across, places[0], True), (j, up, places[1], False)):
        told, band = versus.runs[run], versus.runs[run].review_threshold is not None
        for name, value in (("threshold", told.threshold), ("review", told.review_threshold)):
            if value is not None:
                parts += _cut(name, cut(values, where, value), upright, told.letter, band)
    for n in shown:
        part = versus.parts[n]
        x, y = _x(float(places[0][n])), _y(float(places[1][n]))
        said = (f"{run} {part.verdicts[k] or 'no verdict'}" for run, k in ((pair.before, i), (pair.after, j)))
        told = f"{part.name}: {part.kind or 'unknown'}, {', '.join(said)}"
        parts.append(_dot(part, x, y, told, rows.get(part.name), pair.after))
    title = f"Ranks of the parts, {pair.before} against {pair.after}"
    count = thinned(versus.parts, pair) or f"{len(shown)} parts."
    return _svg(parts, f"ranks-{pair.after}", title, f"{count} {pair.sentence}", "group")


def place(scores: np.ndarray, good: np.ndarray) -> np.ndarray:
    """(N,) in [0, 1], rising with the score, so that a line can stand between any two.

    A good part has INSIDE times the share of good parts below (ties by half), what lies between two good ones stands
    there in order; above every good part it is the order of the scores.
    """
    inside, found = np.sort(scores[good]), np.empty(len(scores))
    above = scores > (inside[-1] if len(inside) else -np.inf)
    distinct, beyond = np.unique(scores[~above]), np.sort(scores[above])
    anchors = np.flatnonzero(np.isin(distinct, inside))
    steps = np.concatenate([[-1], anchors]), np.concatenate([[0.0], _midranks(distinct[anchors], inside)])
    found[~above] = INSIDE * np.interp(np.searchsorted(distinct, scores[~above]), *steps)
    start = INSIDE + 0.04 if len(inside) else 0.0
    found[above] = start + (1 - start) * _midranks(scores[above], beyond)
    return found


def _midranks(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    below = np.searchsorted(among, values, "left") + np.searchsorted(among, values, "right")
    return below / 2 / max(len(among), 1)


def cut(scores: np.ndarray, places: np.ndarray, threshold: float) -> float:
    """The place of a threshold, between those of the parts on its two sides."""
    under, over = places[scores <= threshold], places[scores > threshold]
    low = float(under.max()) if len(under) else -0.02
    high = float(over.min()) if len(over) else max(low, 1.0) + 0.02
    return (low + high) / 2


def thinned(parts: Sequence[Part], pair: Pair) -> str | None:
    """What a drawing leaves out, a sentence; None where it shows every part."""
    listed = [row["part"] for row in pair.changed[:MOST_ROWS]]
    shown, step = len(_thinned(parts, listed)), _step(parts)
    if shown == len(parts):
        return None
    changed = f"the first {len(listed)} of {len(pair.changed)}" if len(pair.changed) > len(listed) else "all"
    return f"Drawn are {shown} of {len(parts)} parts: every {step}{_th(step)}, and {changed} with another verdict."


def _step(parts: Sequence[Part]) -> int:
    return max(1, math.ceil(len(parts) / MOST_POINTS))


def _th(n: int) -> str:
    return "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")


def _thinned(parts: Sequence[Part], changed: Iterable[str]) -> list[int]:
    """All that changed, and of the others evenly so many that a page can hold them."""
    names, step = set(changed), _step(parts)
    return [n for n in range(len(parts)) if n % step == 0 or parts[n].name in names]


def _x(place: float) -> float:
    return LEFT + 6 + place * (WIDE - LEFT - RIGHT - 12)


def _y(place: float) -> float:
    return HIGH - FLOOR - 6 - place * (HIGH - FLOOR - TOP - 12)


def _rank_axes(pair: Pair, good: bool) -> list[Markup]:
    parts = []
    for number in range(5 if good else 0):
        at, label = INSIDE * number / 4, f"{25 * number}{THIN}%"
        parts += [_line("grid", _x(at), TOP, _x(at), HIGH - FLOOR), _text("tick", _x(at), HIGH - FLOOR + 18, label)]
        parts += [_line("grid", LEFT, _y(at), WIDE - RIGHT, _y(at)), _text("tick", LEFT - 6, _y(at) + 4, label, "end")]
    if good:
        beyond, middle = "above all good parts", (INSIDE + 1.04) / 2
        parts.append(_text("tick", _x(middle), HIGH - FLOOR + 18, beyond))
        parts.append(_turned("tick", LEFT - 10, _y(middle), beyond))
    title = "share of good parts below" if good else "order of the scores"
    parts.append(_text("axis", _x(INSIDE / 2), HIGH - 14, f"{pair.before}: {title}"))
    parts.append(_turned("axis", 12, _y(INSIDE / 2), f"{pair.after}: {title}"))
    return parts


def _cut(name: str, at: float, upright: bool, letter: str, band: bool) -> list[Markup]:
    """A threshold across the drawing, with what lies on its sides named outside of it.

    Where a band for review lies between two thresholds, each names its outer side.
    """
    sides = [(5, "NOK", "start")] if name == "threshold" else []
    if name == "review" or not band:
        sides.append((-5, f"{letter}: OK", "end"))
    if upright:
        line = _line(name, _x(at), TOP - 4, _x(at), HIGH - FLOOR)
        return [line, *(_text("side", _x(at) + d, TOP - 12, word, anchor) for d, word, anchor in sides)]
    line = _line(name, LEFT, _y(at), WIDE - RIGHT + 4, _y(at))
    return [line, *(_turned("side", WIDE - 10, _y(at) - d, word, anchor) for d, word, anchor in sides)]


def _dot(part: Part, x: float, y: float, told: str, row: int | None, letter: str) -> Markup:
    """A ring for a good part, a triangle for a defective one; what changed is larger, and leads to its line."""
    size, name = (4.5, " changed") if row is not None else (3.2, "")
    if part.kind == GOOD:
        shape = Markup('<circle class="dot good{}" cx="{:.1f}" cy="{:.1f}" r="{}">').format(name, x, y, size)
    else:
        kind = "bad" if part.kind else "unknown"
        path = Markup('<path class="dot {}{}" d="M{:.1f},{:.1f}l{},{}h{}z">')
        shape = path.format(kind, name, x, y - size, size, 1.8 * size, -2 * size)
    end = Markup("</circle>" if part.kind == GOOD else "</path>")
    dot = shape + Markup("<title>{}</title>").format(_legal(told)) + end
    return (
        dot
        if row is None
        else Markup('<a href="#{}-{}" aria-label="{}">{}</a>').format(letter, row + 1, _legal(told), dot)
    )


def mark(run: int, x: float, y: float, r: float) -> Markup:
    """The shape of a run: circle, square, triangle, diamond, triangle down, cross."""
    shapes = (
        f"M{x - r},{y}a{r},{r} 0 1,0 {2 * r},0a{r},{r} 0 1,0 {-2 * r},0z",
        f"M{x - r},{y - r}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x},{y - 1.2 * r}l{1.2 * r},{2.1 * r}h{-2.4 * r}z",
        f"M{x},{y - 1.3 * r}l{1.3 * r},{1.3 * r}l{-1.3 * r},{1.3 * r}l{-1.3 * r},{-1.3 * r}z",
        f"M{x},{y + 1.2 * r}l{1.2 * r},{-2.1 * r}h{-2.4 * r}z",
        f"M{x - r},{y - r / 3}h{r * 2 / 3}v{-r * 2 / 3}h{r * 2 / 3}v{r * 2 / 3}h{r * 2 / 3}v{r * 2 / 3}h{-r * 2 / 3}"
        f"v{r * 2 / 3}h{-r * 2 / 3}v{-r * 2 / 3}h{-r * 2 / 3}z",
    )
    numbers = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", shapes[run])
    return Markup('<path class="mark r{}" d="{}"/>').format(run, numbers)


def swatch(run: int) -> Markup:
    """A run's dashes and mark, beside its letter."""
    line = Markup('<path class="curve r{}" d="M0,8H44"/>').format(run)
    return Markup('<svg class="swatch" viewBox="0 0 44 16" aria-hidden="true">{}{}</svg>').format(
        line, mark(run, 22.0, 8.0, 5.0)
    )


def whisker(found: Estimate) -> Markup:
    """A difference and its interval about zero; the numbers stand beside it."""
    assert found.value is not None
    ends = (found.value if found.low is None else found.low, found.value if found.high is None else found.high)
    span = max(abs(end) for end in (*ends, found.value, 0.005)) * 1.1

    def x(value: float) -> float:
        return 70 + value / span * 66

    parts = [_line("axis-line", 2, 9, 138, 9), _line("axis-line", 70, 2, 70, 16)]
    box = Markup('<rect class="bounds" x="{:.1f}" y="6" width="{:.1f}" height="6"/>')
    parts.append(box.format(x(ends[0]), max(x(ends[1]) - x(ends[0]), 1)))
    parts.append(Markup('<circle class="point" cx="{:.1f}" cy="9" r="4"/>').format(x(found.value)))
    return Markup('<svg class="whisker" viewBox="0 0 140 18" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _svg(parts: Sequence[Markup], ident: str, title: str, told: str, role: str = "img") -> Markup:
    shape = Markup('<svg role="{r}" aria-labelledby="{i}-t {i}-d" viewBox="0 0 {w} {h}">')
    names = Markup('<title id="{i}-t">{t}</title><desc id="{i}-d">{d}</desc>')
    head = shape.format(r=role, i=ident, w=WIDE, h=HIGH) + names.format(i=ident, t=_legal(title), d=_legal(told))
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(name, x1, y1, x2, y2)


def _text(name: str, x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(name, x, y, anchor, escape(_legal(text)))


def _turned(name: str, x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    shape = Markup('<text class="{}" transform="translate({:.1f} {:.1f}) rotate(-90)" text-anchor="{}">{}</text>')
    return shape.format(name, x, y, anchor, escape(_legal(text)))


def _legal(text: str) -> str:
    """Text without the characters that XML forbids; the name of a folder can hold them."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
