"""A plan of pictures as an SVG drawing: the workspace from above and from the side, the way, and each setup's shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import escape

WIDE, HIGH, EDGE, LINE = 360, 300, 50, 18  # px: a view of the workspace, the space around, a line of text
STYLE = (
    "text{font:12px sans-serif;fill:#222}.room{fill:#f6f6f4;stroke:#777}.way{fill:none;stroke:#999;"
    "stroke-dasharray:4 3}.at{fill:#1b6ca8;stroke:#fff}.no{fill:#fff;font-size:9px;text-anchor:middle}"
    ".head{font-weight:bold}"
)
AXES = "xyz"


class Stop(NamedTuple):
    """A setup as it is drawn."""

    label: str
    points: Sequence[Sequence[float]]  # (x, y, z) of its shots in mm; none where nothing moves
    lines: Sequence[str]  # its views


def drawing(title: str, stops: Sequence[Stop], workspace: Sequence[tuple[float, float]] | None, note: str) -> str:
    """The SVG file's text. `workspace` is least and most of x, y, z in mm; None: no poses are drawn."""
    room = workspace is not None and any(stop.points for stop in stops)
    top = EDGE + (HIGH + EDGE if room else 0)
    rows = sum(1 + len(stop.lines) for stop in stops)
    width = 2 * WIDE + 3 * EDGE
    height = top + (rows + 1) * LINE + EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="head" x="{EDGE}" y="24">{escape(title)}</text>',
    ]
    if room and workspace is not None:
        for column, (name, across, up) in enumerate((("from above", 0, 1), ("from the side", 0, 2))):
            parts += _side(name, stops, workspace, across, up, EDGE + column * (WIDE + EDGE))
    parts += _words(stops, top, note)
    return "\n".join([*parts, "</svg>", ""])


def _side(
    name: str, stops: Sequence[Stop], workspace: Sequence[tuple[float, float]], across: int, up: int, left: int
) -> Iterator[str]:
    """One view of the workspace; both axes have one scale, so that distances can be compared."""
    (x0, x1), (y0, y1) = workspace[across], workspace[up]
    scale = min(WIDE / max(x1 - x0, 1e-9), HIGH / max(y1 - y0, 1e-9))
    floor = EDGE + HIGH

    def at(point: Sequence[float]) -> tuple[float, float]:
        return round(left + (point[across] - x0) * scale, 1), round(floor - (point[up] - y0) * scale, 1)

    corner = at([x1 if axis == across else y1 for axis in range(3)])
    box = f'x="{left}" y="{corner[1]}" width="{corner[0] - left:.1f}" height="{floor - corner[1]:.1f}"'
    yield f'<rect class="room" {box}/>'
    axes = f"{AXES[across]} {x0:g} to {x1:g} mm, {AXES[up]} {y0:g} to {y1:g} mm"
    yield f'<text x="{left}" y="{floor + 16}">{name}: {axes}</text>'
    way = [at(point) for stop in stops for point in stop.points]
    yield f'<polyline class="way" points="{" ".join(f"{x},{y}" for x, y in way)}"/>'
    for number, stop in enumerate(stops, 1):
        for first, (x, y) in ((not i, at(point)) for i, point in enumerate(stop.points)):
            yield f'<circle class="at" cx="{x}" cy="{y}" r="{8 if first else 4}"/>'
        if stop.points:
            x, y = at(stop.points[0])
            yield f'<text class="no" x="{x}" y="{y + 3:.1f}">{number}</text>'


def _words(stops: Sequence[Stop], top: int, note: str) -> Iterator[str]:
    row = top
    for number, stop in enumerate(stops, 1):
        row += LINE
        yield f'<text class="head" x="{EDGE}" y="{row}">{number} {escape(stop.label)}</text>'
        for line in stop.lines:
            row += LINE
            yield f'<text x="{EDGE + 20}" y="{row}">{escape(line)}</text>'
    yield f'<text x="{EDGE}" y="{row + LINE * 3 // 2}">{escape(note)}</text>'
