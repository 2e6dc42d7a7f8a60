"""The report of a run as one HTML file that asks the network for nothing.

The run hands over plain arrays; the page only shows them. Parts are counted, not pictures: a part's score is the
largest over its views, and it is NOK when one of its views is.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from flawmap.errors import DataError
from flawmap.report import heatmap, plots
from flawmap.report.heatmap import Scale
from flawmap.types import GOOD, Verdict
from flawmap.verdict.calibration import Calibration, clopper_pearson

THUMBNAIL_PX = 256  # longer side of a picture on the page
MAX_PICTURES = 60
MAX_PICTURE_BYTES = 8_000_000  # of all pictures together as base64, so that the page stays below 10 MB
METRICS = (
    ("i_auroc", "Image AUROC", "chance that a defective picture scores above a good one"),
    ("i_ap", "Image AP", "average precision of the score"),
    ("p_auroc", "Pixel AUROC", "the same chance for single pixels"),
    ("p_ap", "Pixel AP", "average precision of the map"),
    ("pro", "PRO", "share of each defect that is covered, up to 30\N{NARROW NO-BREAK SPACE}% false pixels"),
    ("f1_max_oracle", "F1 oracle", "best F1 with a threshold tuned on the answers; no operating point"),
)


class Scored(NamedTuple):
    """The score of one picture that was evaluated."""

    name: str
    part: str
    kind: str | None  # "good", the kind of defect, or None when unknown
    score: float
    verdict: Verdict | None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture to show."""

    name: str
    part: str
    kind: str | None
    score: float
    verdict: Verdict | None
    image: np.ndarray  # (h, w, 3) uint8, any size
    map: np.ndarray  # (h', w') float32
    mask: np.ndarray | None = None  # (h'', w'') bool


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Pictures chosen for one reason, the most telling first."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""  # how they were chosen


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What the page shows; a section without content is left out. Without metrics it is the report of a fit."""

    title: str
    scale: Scale  # of every map on the page
    subtitle: str = ""
    calibration: Calibration | None = None
    metrics: Mapping[str, Any] | None = None  # verdict.metrics: summary() of the parts | PixelMetrics.result()
    scores: Sequence[Scored] = ()  # every picture of the test
    galleries: Sequence[Gallery] = ()
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = ()  # (section, [(key, value)])
    notes: Sequence[str] = ()


class Rate(NamedTuple):
    """`wrong` of `n` parts got the wrong verdict; low and high are the 95 % Clopper-Pearson bounds of that share."""

    wrong: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, wrong: int, n: int) -> Rate:
        return cls(wrong, n, *clopper_pearson(wrong, n))

    @property
    def rate(self) -> float | None:
        return self.wrong / self.n if self.n else None


def render(report: Report) -> str:
    """The page as HTML text. DataError for scores or maps that are not finite numbers."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=plots.percent, figure=_figure, score=plots.score)
    template = resources.files("flawmap.report").joinpath("page.html").read_text(encoding="utf-8")
    metrics = report.metrics or {}
    galleries, shown = _galleries(report)
    return environment.from_string(template).render(
        report=report,
        promise=report.calibration and report.calibration.sentence.replace(" %", "\N{NARROW NO-BREAK SPACE}%"),
        parts=_by_part(report.scores),
        escapes=_rate(metrics.get("escapes")),
        false_alarms=_rate(metrics.get("false_alarms")),
        kinds=[(name, _kind_rate(row), row) for name, row in metrics.get("kinds", {}).items()],
        tiles=[(label, *_tile(metrics, key, note)) for key, label, note in METRICS],
        histograms=_histograms(report),
        roc=_roc(_by_part(report.scores)),
        interval=plots.interval,
        legend=plots.legend(report.scale, "legend"),
        galleries=galleries,
        shown=shown,
        given=sum(len(g.pictures) for g in report.galleries),
        thumbnail_px=THUMBNAIL_PX,
        GOOD=GOOD,
    )


def write(report: Report, path: Path) -> Path:
    """Write the page to `path`, whole or not at all. DataError where it cannot be written."""
    page = render(report).encode("utf-8", "backslashreplace")  # names of files need not be valid Unicode
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(page)
        os.replace(new, path)
    except OSError as error:
        raise DataError(
            f"cannot write the report {path}: {error.strerror}; choose a folder you may write to"
        ) from error
    finally:
        new.unlink(missing_ok=True)
    return path


def _by_part(scores: Sequence[Scored]) -> list[Scored]:
    """One entry a part: its strangest view, defective or unknown when one view is, NOK when one view is."""
    parts: dict[str, Scored] = {}
    for view in scores:
        if not math.isfinite(view.score):
            raise DataError(f"{view.name}: the score is {view.score}, not a finite number; nothing can be shown of it")
        if (seen := parts.get(view.part)) is not None:
            kinds = (seen.kind, view.kind)
            kind = next((k for k in kinds if k not in (GOOD, None)), None if None in kinds else GOOD)
            verdict = Verdict.NOK if Verdict.NOK in (seen.verdict, view.verdict) else view.verdict
            view = max(seen, view, key=lambda v: v.score)._replace(kind=kind, verdict=verdict)
        parts[view.part] = view
    return list(parts.values())


def _wrong(part: Scored | Picture) -> str:
    """ "escape", "false alarm", or nothing."""
    if part.verdict == Verdict.OK and part.kind not in (GOOD, None):
        return "escape"
    return "false alarm" if part.verdict == Verdict.NOK and part.kind == GOOD else ""


def _rate(values: Mapping[str, Any] | None) -> Rate | None:
    return None if values is None else Rate(values["count"], values["n"], values["low"], values["high"])


def _kind_rate(row: Mapping[str, Any]) -> Rate | None:
    return None if row["escapes"] is None else Rate.of(row["escapes"], row["n"])


def _tile(metrics: Mapping[str, Any], key: str, note: str) -> tuple[str | None, str]:
    """The figure and what it means, or None and why it is undefined."""
    value, error = metrics.get(key), metrics.get(f"{key}_error") or 0.0
    if value is not None:
        return _figure(value), f"{note}; exact to {error:.1g}" if error else note
    if key.startswith(("i_", "f1")):
        return None, f"{metrics.get('good', 0)} good and {metrics.get('defective', 0)} defective parts: it takes both"
    return None, metrics.get("why") or "no masks were given"


def _lanes(report: Report) -> Iterator[plots.Lane]:
    """The calibration's good parts, then the test's: good, each kind by name, unknown."""
    if report.calibration:
        scores = np.array(report.calibration.scores, float)
        yield plots.Lane(f"calibration, {_count(len(scores), 'good part')}", scores, np.zeros(len(scores), bool), True)
    groups: dict[str | None, list[Scored]] = {}
    for part in _by_part(report.scores):
        groups.setdefault(part.kind, []).append(part)
    for kind in sorted(groups, key=lambda k: (k is None, k != GOOD, k)):
        wrong = np.array([bool(_wrong(p)) for p in groups[kind]])
        label = f"{kind or 'unknown'}, {_count(len(wrong), 'part')}"
        if wrong.any():
            label += f", {_count(int(wrong.sum()), 'false alarm' if kind == GOOD else 'escape')}"
        yield plots.Lane(label, np.array([p.score for p in groups[kind]], float), wrong)


def _histograms(report: Report) -> list[tuple[str, Markup]]:
    """The same drawing for wide and for narrow windows; the page's CSS shows one."""
    groups = list(_lanes(report))
    if not groups:
        return []
    threshold = report.calibration.threshold if report.calibration else None
    widths = (("wide", 720), ("narrow", 350))
    return [(name, plots.lanes(groups, threshold, f"lanes-{name}", width, "Scores")) for name, width in widths]


def _roc(parts: Sequence[Scored]) -> Markup | None:
    good = [p for p in parts if p.kind == GOOD]
    bad = [p for p in parts if p.kind not in (GOOD, None)]
    if not (good and bad):
        return None
    point = None
    if all(p.verdict is not None for p in (*good, *bad)):
        refused, found = (sum(p.verdict == Verdict.NOK for p in group) / len(group) for group in (good, bad))
        point = (refused, found)
    return plots.roc(np.array([p.score for p in good]), np.array([p.score for p in bad]), point, "roc")


def _galleries(report: Report) -> tuple[list[tuple[Gallery, list[dict[str, Any]]]], int]:
    """The first pictures of each gallery in turn, until the page is full; and how many these are."""
    turns = sorted((rank, g) for g, gallery in enumerate(report.galleries) for rank in range(len(gallery.pictures)))
    cards: list[list[dict[str, Any]]] = [[] for _ in report.galleries]
    room = MAX_PICTURE_BYTES
    for rank, g in turns[:MAX_PICTURES]:
        card = _card(report.galleries[g].pictures[rank], report.scale)
        room -= sum(len(pane) for pane, _ in card["panes"])
        if room < 0:
            break
        cards[g].append(card)
    return [pair for pair in zip(report.galleries, cards, strict=True) if pair[1]], sum(map(len, cards))


def _card(picture: Picture, scale: Scale) -> dict[str, Any]:
    small = heatmap.thumbnail(picture.image, THUMBNAIL_PX)
    try:
        panes = [(_data_uri(small), "picture")]
        if picture.mask is not None and picture.mask.any():
            panes.append((_data_uri(heatmap.outlined(small, picture.mask)), "mask"))
        panes.append((_data_uri(heatmap.overlay(small, picture.map, scale)), "map"))
    except DataError as error:
        raise DataError(f"{picture.name}: {error}") from error
    return {"picture": picture, "wrong": _wrong(picture), "panes": panes, "size": small.shape[1::-1]}


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _figure(value: float) -> str:
    """Three decimals; what is not 1 is never rounded to it."""
    return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
