"""Charts of a reproduction as SVG: lines with their spread, and bars with their values; matplotlib (extra `research`).

Colours are Okabe and Ito's, which survive colour blindness; every line has a marker and a stroke of its own, every bar
a hatch, so that a chart can be read in grey. Text stays text. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawmap.errors import MissingExtra

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, STROKES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "oo")
MOST_MARKERS = 10  # on a line of many points
INK = "#333333"
WIDE, HIGH, COLUMNS = 4.3, 3.5, 3  # inches a panel; panels in a row
GROUPS = 8  # of bars side by side, before their names are turned
OVER: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8}  # a word over its bar
STYLE: Any = {
    "svg.hashsalt": "flawmap",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Line:
    """Style: "line", "steps", "points" or "dashed". Without a name: thin, in the colour of the named one before it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None  # drawn to both sides of y
    style: str = "line"


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    y_range: tuple[float, float] | None = None
    marks: Sequence[tuple[float, float, str]] = ()  # points, numbered; what they are stands in the legend


def lines(panels: Sequence[Panel], caption: str = "") -> bytes:
    """Panels side by side, three in a row, each with a legend of its own."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    with _drawing((max(WIDE * columns, 5.5), HIGH * rows + 0.35 * bool(caption))) as figure:
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            _panel(axes, panel)
        return _svg(figure, caption)


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    y_label: str,
    *,
    spread: Mapping[str, Sequence[float | None]] = {},
    low: float = 0.0,
    caption: str = "",
) -> bytes:
    """Bars in groups, each with its value; None is shown as "not run", NaN as a dash. The axis begins at `low`."""
    wide = max(6.5, 1.2 + 0.42 * len(groups) * (len(series) + 0.6))
    known = [value for values in series.values() for value in values if value is not None and value == value]
    top = max([*known, low + 1e-6])
    with _drawing((wide, 4.2 + 0.35 * bool(caption))) as figure:
        axes = figure.add_subplot()
        for number, (name, values) in enumerate(series.items()):
            _bars(axes, number, len(series), name, values, spread.get(name, [None] * len(values)), low)
        turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(groups) > GROUPS else {}
        axes.set_xticks(range(len(groups)), list(groups), **turned)
        axes.set_ylim(low, top + 0.16 * (top - low))
        axes.set_ylabel(y_label)
        axes.grid(visible=False, axis="x")
        if len(series) > 1:
            figure.legend(loc="outside upper center", ncols=min(4, len(series)), frameon=False)
        return _svg(figure, caption)


def _panel(axes: Any, panel: Panel) -> None:
    look = -1
    for line in panel.lines:
        look += bool(line.name)
        _line(axes, line, max(look, 0))
    for number, (x, y, word) in enumerate(panel.marks, 1):
        axes.plot([x], [y], "o", mfc="white", mec="black", mew=1.2, ms=12, zorder=5, clip_on=False)
        axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=8, zorder=6)
        axes.plot([], [], ls="none", marker=f"${number}$", color="black", ms=6, label=word)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log_x:
        _log(axes, sorted({x for line in panel.lines for x in line.x}))
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    if panel.marks or sum(bool(line.name) for line in panel.lines) > 1:
        axes.legend(fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")


def _log(axes: Any, values: Sequence[float]) -> None:
    """Few values are the ticks themselves."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    if len(values) <= 10:
        axes.set_xticks(values, [f"{x:g}" for x in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())


def _line(axes: Any, line: Line, look: int) -> None:
    colour = COLOURS[look % len(COLOURS)]
    drawstyle = "steps-post" if line.style == "steps" else "default"
    if not line.name:
        stroke = "--" if line.style == "dashed" else "-"
        axes.plot(line.x, line.y, color=colour, lw=0.7, ls=stroke, alpha=0.55, drawstyle=drawstyle)
        return
    stroke = {"points": "none", "dashed": "--"}.get(line.style, STROKES[look % len(STROKES)])
    every = 1 if line.style == "points" else max(1, len(line.x) // MOST_MARKERS)
    marker = {} if line.style == "dashed" else {"marker": MARKERS[look % len(MARKERS)], "ms": 5, "markevery": every}
    axes.plot(line.x, line.y, color=colour, ls=stroke, lw=1.7, drawstyle=drawstyle, label=line.name, **marker)
    if line.spread is None:
        return
    if line.style == "points":
        axes.errorbar(line.x, line.y, line.spread, fmt="none", ecolor=colour, capsize=3)
        return
    y, off = np.asarray(line.y, float), np.asarray(line.spread, float)
    step = "post" if line.style == "steps" else None
    axes.fill_between(line.x, y - off, y + off, color=colour, alpha=0.15, lw=0, step=step)


def _bars(
    axes: Any,
    number: int,
    of: int,
    name: str,
    values: Sequence[float | None],
    spread: Sequence[float | None],
    low: float,
) -> None:
    """One series: its bar stands at its own place in every group."""
    wide = 0.84 / of
    at = [place + (number - (of - 1) / 2) * wide for place in range(len(values))]
    colour, hatch = COLOURS[number % len(COLOURS)], HATCHES[number % len(HATCHES)]
    height = [0.0 if value is None or value != value else max(value - low, 0.0) for value in values]
    axes.bar(at, height, 0.92 * wide, low, color=colour, hatch=hatch, edgecolor="white", lw=0, label=name)
    for x, value, off in zip(at, values, spread, strict=True):
        if value is None or value != value:
            word, turned = ("not run", 90) if value is None else ("—", 0)
            axes.annotate(word, (x, low), (0, 3), rotation=turned, color=INK, **OVER)
            continue
        if off:
            axes.errorbar([x], [value], [off], fmt="none", ecolor="black", capsize=2, lw=1)
        word = f"{value:.3f}" if value < 10 else f"{value:.0f}"
        axes.annotate(word, (x, max(value, low) + (off or 0)), (0, 3), rotation=90, **OVER)


class _drawing:
    """A figure under our settings."""

    def __init__(self, size: tuple[float, float]) -> None:
        try:
            import matplotlib
        except ImportError as error:
            raise MissingExtra("matplotlib", "research", "this figure") from error
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context(STYLE)
        self._size, self._figure = size, Figure

    def __enter__(self) -> Any:
        self._context.__enter__()
        return self._figure(figsize=self._size, layout="constrained")

    def __exit__(self, *found: Any) -> None:
        self._context.__exit__(*found)


def _svg(figure: Any, caption: str) -> bytes:
    if caption:
        figure.supxlabel(caption, fontsize=9, color=INK)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
