"""The report of a run as one HTML file that asks the network for nothing.

The run hands over plain arrays; the page only shows them. Parts are counted, not pictures: a part's score is the
largest over its views, and it is NOK when one of its views is. A test's page carries its scores and small pictures as
JSON; page.js recounts them at any threshold. Without a script the page shows all that holds at the calibrated one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from flawmap.errors import DataError
from flawmap.report import figures, gallery, heatmap, plots
from flawmap.report.figures import Costs, Known
from flawmap.report.files import put
from flawmap.report.gallery import THUMBNAIL_PX, Picture, Shrinker
from flawmap.report.heatmap import Scale
from flawmap.report.parts import (
    GALLERIES,
    RANKED,
    ROW,
    Doubt,
    Part,
    Rate,
    Scored,
    by_part,
    doubt,
    picks,
    promised,
    reviews,
    shown,
)
from flawmap.types import GOOD, Verdict
from flawmap.verdict.calibration import Calibration

__all__ = ["Gallery", "Picture", "Report", "Scored", "render", "write"]

MAX_PICTURES = 60  # in fixed galleries
MAX_TESTED = 1200  # pictures of a test: with more of them none would have room
MAX_PICTURE_BYTES = 8_000_000  # of all pictures together as base64, so that the page stays below 10 MB
COSTS = Costs(100.0, 1.0, 0.01)  # an example, where the calibration has none
HATCHED = "mask; hatched: ignored"
DRAWINGS = ("roc", "sizes", "rates", "cost", "embedding", "training")
METRICS = (
    ("part_auroc", "Part AUROC", "of parts: chance that a defective part scores above a good one"),
    ("i_auroc", "Image AUROC", "of pictures: the same chance for single pictures"),
    ("i_ap", "Image AP", "of pictures: average precision of the score"),
    ("p_auroc", "Pixel AUROC", "of pixels: the same chance for single pixels"),
    ("p_ap", "Pixel AP", "of pixels: average precision of the map"),
    ("pro", "PRO", "of defects: share of each that is covered, up to 30\N{NARROW NO-BREAK SPACE}% false pixels"),
    ("f1_max_oracle", "F1 oracle", "of parts: best F1 with a threshold tuned on the answers; no operating point"),
)


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
    picture: Callable[[int], Picture] | None = None  # the picture of scores[i], asked for once and not kept
    losses: Sequence[float] = ()  # of the training, one a step
    embedding: tuple[np.ndarray, Sequence[str]] | None = None  # (N, 2), and the pictures' names

    @property
    def threshold(self) -> float | None:
        return self.calibration.threshold if self.calibration else None

    @property
    def review(self) -> float | None:
        return getattr(self.calibration, "review_threshold", None)

    @property
    def doubt(self) -> Doubt | None:
        return doubt(self.calibration.policy, self.notes) if self.calibration else None

    def parts(self) -> list[Part]:
        return by_part(self.scores, self.calibration.score if self.calibration else max)


@dataclass(slots=True)
class Album:
    """The pictures of a test, encoded."""

    rows: list[list[Any] | None]  # one a picture of the test, as Shrinker gives it; None: not on the page
    areas: list[int]  # one a picture: of its mask, in px; 0: none
    first: tuple[str, str, list[dict[str, Any]]] | None  # the gallery that is there without a script
    said: str = ""  # how many, how large
    near: bool = False  # whether there are good patches beside them


def render(report: Report) -> str:
    """The page as HTML text. DataError for scores or maps that are not finite numbers."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=plots.percent, figure=plots.figure, score=plots.score)
    metrics, parts = report.metrics or {}, report.parts()
    album = _album(report, parts)
    script = _read("page.js").strip() if parts else ""
    data = _data(report, parts, album) if parts else ""
    galleries, count = _galleries(report)
    drawings = dict.fromkeys(DRAWINGS) | _drawings(report, parts, album)
    return environment.from_string(_read("page.html")).render(
        report=report,
        promise=report.calibration and promised(report.calibration.sentence),
        bare=not any(part.verdict is not None for part in parts),
        reviews=reviews(parts, report.review),
        parts=parts,
        escapes=Rate.given(metrics.get("escapes")),
        false_alarms=Rate.given(metrics.get("false_alarms")),
        kinds=_kinds(metrics, parts),
        tiles=[
            (label, *_tile(metrics, key, note)) for key, label, note in METRICS if key in metrics or key != "part_auroc"
        ],
        drawings=drawings,
        histograms=_histograms(report, parts),
        costs=_costs(report),
        operating=_operating(report, parts),
        counted=f"{len(_judged(parts))} of {sum(p.kind is not None for p in parts)} parts",
        shapes=figures.SHAPES,
        interval=plots.interval,
        legend=plots.legend(report.scale, "legend", "map threshold" if report.calibration else "typical"),
        galleries=galleries,
        first=album.first,
        live=GALLERIES if any(part.verdict is not None for part in parts) else RANKED,
        album=album,
        shown=count,
        given=sum(len(g.pictures) for g in report.galleries),
        thumbnail_px=THUMBNAIL_PX,
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(data),
    )


def write(report: Report, path: Path) -> Path:
    """Write the page to `path`, whole or not at all. DataError where it cannot be written."""
    return put(render(report), path)


def _read(name: str) -> str:
    return resources.files("flawmap.report").joinpath(name).read_text(encoding="utf-8")


def _data(report: Report, parts: Sequence[Part], album: Album) -> str:
    """What the script needs, as JSON; no "<" is left in it, so that no name can end the element."""
    kinds = [None, *sorted({p.kind for p in parts if p.kind is not None}, key=lambda k: (k != GOOD, k))]
    rows, verdicts = [], any(part.verdict is not None for part in parts)
    for part in parts:
        judged = part.verdict is not None or not verdicts
        area = max(album.areas[v] for v in part.views)
        rows.append([part.name, kinds.index(part.kind), part.score, int(judged), area, part.views])
    known = {
        "threshold": report.threshold if verdicts else None,  # a threshold that judged nothing is none of this test
        "review": report.review if verdicts else None,
        "kinds": kinds,
        "good": GOOD,
        "parts": rows,
        "pictures": album.rows,
        "lut": base64.b64encode(gallery.colours(report.scale).tobytes()).decode(),
        "doubt": report.doubt.said if report.doubt else "",
    }
    return json.dumps(known, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _album(report: Report, parts: Sequence[Part]) -> Album:
    """Reads every picture once, one at a time."""
    count = len(report.scores)
    album = Album([None] * count, [0] * count, None)
    if report.picture is None or not parts:
        return album
    threshold = report.threshold
    wanted = shown(parts, threshold, MAX_TESTED, report.review)
    first = picks(parts, threshold, report.review, len(parts)) if threshold is not None else {}
    key = next((key for key, chosen in first.items() if chosen), "")
    whole = {parts[i].views[0]: parts[i] for i in first.get(key, [])[:ROW]}
    fixed: dict[int, dict[str, Any]] = {}
    shrink = Shrinker(len(wanted), MAX_PICTURE_BYTES - 80_000 * len(whole), report.scale)
    for place in sorted(wanted):
        picture = report.picture(place)
        album.rows[place], album.areas[place] = shrink(picture), picture.area
        album.near |= picture.near is not None
        if place in whole:
            card = _card(picture, report.scale, 176 if len(wanted) > 200 else THUMBNAIL_PX)
            fixed[place] = card | {"wrong": whole[place].wrong}
    if fixed:
        title, note = next((title, note) for name, title, note in GALLERIES if name == key)
        title += f": {len(whole)} of {len(first[key])}"
        album.first = (title, note, [fixed[place] for place in whole if place in fixed])
    if shrink.sides:
        least, most = min(shrink.sides), max(shrink.sides)
        side = f"{most} px" if least == most else f"{least} to {most} px"
        album.said = f"{len(shrink.sides)} of {count} pictures are on this page, {side} on their longer side"
    return album


def _kinds(metrics: Mapping[str, Any], parts: Sequence[Part]) -> list[dict[str, Any]]:
    """A row for each kind of defect: its parts by verdict, and its rate."""
    rows = []
    for name, row in metrics.get("kinds", {}).items():
        verdicts = [p.verdict for p in parts if p.kind == name]
        rate = None if row["escapes"] is None else Rate.of(row["escapes"], row.get("judged", row["n"]))
        rows.append({"name": name, "n": row["n"], "rate": rate, "auroc": row["auroc"], **_tally(verdicts)})
    if rate := Rate.given(metrics.get("false_alarms")):
        verdicts = [p.verdict for p in parts if p.kind == GOOD]
        rows.append({"name": GOOD, "n": rate.n, "rate": rate, "auroc": None, **_tally(verdicts)})
    elif n := metrics.get("good"):
        rows.append({"name": GOOD, "n": n, "rate": None, "auroc": None})
    return rows


def _tally(verdicts: Sequence[Verdict | None]) -> dict[str, int]:
    return {v.lower(): sum(given == v for given in verdicts) for v in Verdict}


def _tile(metrics: Mapping[str, Any], key: str, note: str) -> tuple[str | None, str]:
    """The figure and what it means, or None and why it is undefined."""
    value, error = metrics.get(key), metrics.get(f"{key}_error") or 0.0
    if value is not None:
        return plots.figure(value), f"{note}; exact to {error:.1g}" if error else note
    if key.startswith(("i_", "f1", "part")):
        return None, f"{metrics.get('good', 0)} good and {metrics.get('defective', 0)} defective parts: it takes both"
    return None, metrics.get("why") or "no masks were given"


def _costs(report: Report) -> Costs:
    given = getattr(report.calibration, "costs", None) or {}
    return Costs(**{name: float(given.get(name, value)) for name, value in COSTS._asdict().items()})


def _lanes(report: Report, parts: Sequence[Part]) -> Iterator[plots.Lane]:
    """The calibration's good parts, then the test's: good, each kind by name, unknown."""
    if report.calibration:
        scores = np.array(report.calibration.scores, float)
        yield plots.Lane(f"calibration, {_count(len(scores), 'good part')}", scores, np.zeros(len(scores), bool), True)
    groups: dict[str | None, list[int]] = {}
    for place, part in enumerate(parts):
        groups.setdefault(part.kind, []).append(place)
    for kind in sorted(groups, key=lambda k: (k is None, k != GOOD, k)):
        inside = [parts[i] for i in groups[kind]]
        scores, wrong = np.array([p.score for p in inside], float), np.array([bool(p.wrong) for p in inside])
        label = f"{kind or 'unknown'}, {_count(len(wrong), 'part')}"
        waiting = np.array([p.verdict == Verdict.REVIEW for p in inside])
        yield plots.Lane(label, scores, wrong, False, groups[kind], kind == GOOD, waiting)


def _histograms(report: Report, parts: Sequence[Part]) -> list[tuple[str, Markup]]:
    """The same drawing for wide and for narrow windows; the page's CSS shows one."""
    groups = list(_lanes(report, parts))
    if not groups:
        return []
    widths, line, review = (("wide", 900), ("narrow", 350)), report.threshold, report.review
    return [(name, plots.lanes(groups, line, f"lanes-{name}", width, "Scores", review)) for name, width in widths]


def _drawings(report: Report, parts: Sequence[Part], album: Album) -> dict[str, Markup]:
    """By name; those without data are missing."""
    found: dict[str, Markup] = {}
    if len(losses := np.asarray(report.losses, float)) > 1 and np.isfinite(losses).all():
        found["training"] = figures.training(losses, "training")
    if report.embedding is not None:
        points, names = report.embedding
        of = {report.scores[v].name: (i, p.defective) for i, p in enumerate(parts) for v in p.views}
        marks = [of.get(name, (-1, False)) for name in names]
        found["embedding"] = figures.embedding(
            np.asarray(points, float), [m[0] for m in marks], [m[1] for m in marks], "embedding"
        )
    line, review = report.threshold, report.review
    area = {i: max(album.areas[v] for v in part.views) for i, part in enumerate(parts) if part.kind is not None}
    if sized := [i for i in area if area[i] > 0]:
        states = ["wrong" if parts[i].wrong else "review" * (parts[i].verdict == Verdict.REVIEW) for i in sized]
        areas = np.array([area[i] for i in sized])
        found["sizes"] = figures.sizes(_known(parts, sized), areas, states, line, "sizes", review)
    tested = _known(parts, _judged(parts))
    if tested.defect.all() or not tested.defect.any():
        return found
    found["roc"] = figures.roc(tested, _point(parts), "roc")
    found["rates"] = figures.rates(tested, line, "rates", review)
    found["cost"] = figures.cost(tested, line, _costs(report), "cost", review)
    return found


def _judged(parts: Sequence[Part]) -> list[int]:
    """The parts that drawings of rates count: of known kind and with a verdict, or all where none was given."""
    bare = not any(part.verdict is not None for part in parts)
    return [i for i, part in enumerate(parts) if part.kind is not None and (bare or part.verdict is not None)]


def _known(parts: Sequence[Part], chosen: Sequence[int]) -> Known:
    scores, defect = [parts[i].score for i in chosen], [parts[i].defective for i in chosen]
    return Known(np.array(scores, float), np.array(defect, bool), np.array(chosen, int))


def _point(parts: Sequence[Part]) -> tuple[float, float] | None:
    """(refused, found) as judged NOK, so that it lies on the curve; None where no part got a verdict."""
    judged = [parts[i] for i in _judged(parts)]
    if any(p.verdict is None for p in judged):
        return None
    sides = ([p.verdict == Verdict.NOK for p in judged if p.defective == side] for side in (False, True))
    refused, found = (sum(side) / len(side) for side in sides)
    return refused, found


def _operating(report: Report, parts: Sequence[Part]) -> list[tuple[str, str, float, float]]:
    """(shape, label, refused, found) of the points on the ROC; the last is moved by the script."""
    tested = _known(parts, _judged(parts))
    if tested.defect.all() or not tested.defect.any():
        return []
    found: list[tuple[str, str, float, float]] = []
    band = reviews(parts, report.review)
    if (point := _point(parts)) is not None:
        label = report.doubt.label if report.doubt else "calibrated"
        more = f"; besides, {band[0]} for review ({band[2]})" if band else ""
        found.append(("calibrated", f"{'NOK, ' if band else ''}{label}{more}", *point))
    found.append(("oracle", "no escape (read off the test, promises nothing)", *figures.no_escape(tested)))
    return [*found, ("now", f"{'NOK, ' if band else ''}where the slider stands", 0.0, 0.0)]


def _galleries(report: Report) -> tuple[list[tuple[Gallery, list[dict[str, Any]]]], int]:
    """The first pictures of each gallery in turn, until the page is full; and how many these are."""
    turns = sorted((rank, g) for g, chosen in enumerate(report.galleries) for rank in range(len(chosen.pictures)))
    cards: list[list[dict[str, Any]]] = [[] for _ in report.galleries]
    room = MAX_PICTURE_BYTES
    for rank, g in turns[:MAX_PICTURES]:
        card = _card(report.galleries[g].pictures[rank], report.scale, THUMBNAIL_PX)
        room -= sum(len(pane) for pane, _ in card["panes"])
        if room < 0:
            break
        cards[g].append(card)
    return [pair for pair in zip(report.galleries, cards, strict=True) if pair[1]], sum(map(len, cards))


def _card(picture: Picture, scale: Scale, side: int) -> dict[str, Any]:
    small = heatmap.thumbnail(picture.image, side)
    try:
        panes = [(_uri(small), "picture")]
        if picture.ignored is not None or (picture.mask is not None and picture.mask.any()):
            mask = np.zeros(small.shape[:2], bool) if picture.mask is None else picture.mask
            words = "mask" if picture.ignored is None else HATCHED
            panes.append((_uri(heatmap.outlined(small, mask, picture.ignored)), words))
        coded = picture.map.dtype == np.uint8
        over = (gallery.painted if coded else heatmap.overlay)(small, picture.map, scale)
        panes.append((_uri(over), "map"))
    except DataError as error:
        raise DataError(f"{picture.name}: {error}") from error
    if picture.near is not None:
        panes.append((_uri(heatmap.thumbnail(picture.near, side)), "nearest good"))
    wrong = Part(picture.part, picture.kind, picture.score, picture.verdict, ()).wrong
    return {"picture": picture, "wrong": wrong, "panes": panes, "size": small.shape[1::-1]}


def _uri(image: np.ndarray) -> str:
    return "data:image/jpeg;base64," + gallery.jpeg(image)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
