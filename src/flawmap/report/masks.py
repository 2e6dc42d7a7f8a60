"""The page of an audit of masks: findings, pictures with their outlines, and how far figures hang on the masks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from flawmap.report import gallery, heatmap, plots
from flawmap.report.files import put
from flawmap.report.plots import Axis, line, text

SIDE = 320  # px of a picture on the page
WIDE, HIGH = 520, 300
MARKS = ("M-4 -4H4V4H-4Z", "M0 -5L5 4H-5Z", "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z")  # square, triangle, disc
DASHES = ("none", "7 3", "2 3")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture on the page, and what is said of it."""

    name: str
    said: Sequence[str]
    image: np.ndarray | None = None  # None: it cannot be read
    # (H, W) bool of defect and of what is ignored: the data's, then the second one
    masks: Sequence[tuple[np.ndarray, np.ndarray | None] | None] = field(default_factory=list)


def page(
    title: str,
    sentences: Sequence[str],
    findings: Sequence[Any],
    table: Mapping[str, Any] | None,
    shown: Iterable[Shown],
    path: Path,
) -> Path:
    """Writes one HTML file that asks the network for nothing.

    A finding has severity, code, message, names. `table` has model, why, titles, rows (words, figures, pieces,
    masks gone) and for each plot its lines: name -> (pixels, figure).
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read("masks.html"))
    drawings = [] if not table or not table["rows"] else _drawings(table["lines"])
    cards = [_card(each) for each in shown]
    html = template.render(
        title=title,
        sentences=sentences,
        findings=findings,
        table=table,
        cards=cards,
        drawings=drawings,
        shared=Markup(_read("shared.css")),
    )
    return put(html, path)


def _read(name: str) -> str:
    return resources.files("flawmap.report").joinpath(name).read_text(encoding="utf-8")


def _card(shown: Shown) -> dict[str, Any]:
    panes = []
    if shown.image is not None:
        small = heatmap.thumbnail(shown.image, SIDE)
        names = ["mask"] if len(shown.masks) < 2 else ["mask in the data", "second mask"]
        for name, mask in zip(names, shown.masks, strict=True):
            if mask is None:
                panes.append((_uri(small), f"no {name}"))
                continue
            words = name if mask[1] is None else f"{name}; hatched: ignored"
            panes.append((_uri(heatmap.outlined(small, *mask)), words))
    return {"name": shown.name, "said": shown.said, "panes": panes}


def _uri(image: np.ndarray) -> str:
    return "data:image/jpeg;base64," + gallery.jpeg(image)


def _drawings(lines: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> list[tuple[str, Markup]]:
    words = {
        "offset": ("Masks made smaller or larger", "pixels; below zero smaller"),
        "band": ("A band around each outline ignored", "pixels to both sides"),
    }
    return [(words[what][0], plot(lines[what], what, *words[what])) for what in lines]


def plot(lines: Mapping[str, Sequence[tuple[int, float]]], ident: str, title: str, x_title: str) -> Markup:
    """Figures over pixels: a line each, with a mark and dashes of its own and its name at its end."""
    known = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    values = [y for points in known.values() for _, y in points]
    ends = sorted({x for points in lines.values() for x, _ in points})
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low) or 0.05
    x, y = Axis(ends[0], max(ends[-1], ends[0] + 1), 52, WIDE - 96), Axis(low - room, high + room, HIGH - 46, 12)
    parts = []
    for tick in ends:
        parts += [line("grid", x.at(tick), y.end, x.at(tick), y.start)]
        parts += [text("tick", x.at(tick), y.start + 18, f"{tick:+d}" if ends[0] < 0 and tick else str(tick))]
    for tick in plots.ticks(y.low, y.high, 5):
        parts += [line("grid", x.start, y.at(tick), x.end, y.at(tick))]
        parts += [text("tick", x.start - 8, y.at(tick) + 4, f"{tick:g}", "end")]
    places = _apart([y.at(points[-1][1]) if points else y.start for points in known.values()])
    for number, ((name, points), place) in enumerate(zip(known.items(), places, strict=True)):
        at = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
        shape = '<polyline class="line line-{}" stroke-dasharray="{}" points="{}"/>'
        parts.append(Markup(shape).format(number, DASHES[number % 3], at))
        mark = '<path class="mark line-{}" d="{}" transform="translate({:.1f} {:.1f})"/>'
        parts += [Markup(mark).format(number, MARKS[number % 3], x.at(a), y.at(b)) for a, b in points]
        parts.append(text("label", x.end + 10, place + 4, name, "start"))
    parts.append(text("axis", (x.start + x.end) / 2, HIGH - 6, x_title))
    told = "; ".join(f"{name}: {', '.join(f'{a} px {b:.3f}' for a, b in points)}" for name, points in known.items())
    return plots.svg(parts, WIDE, HIGH, ident, title, told)


def _apart(heights: Sequence[float], least: float = 16) -> list[float]:
    """The same heights, none nearer to the next than a line of text."""
    places = list(heights)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + least)
    return places
