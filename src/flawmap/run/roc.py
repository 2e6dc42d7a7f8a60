"""ROC curves of runs whose scores are kept, and what a threshold costs: read off the test, or calibrated before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.report.charts import Line, Panel, lines
from flawmap.run.pages import NOT_RUN, absent, conditions, notes
from flawmap.run.reproduce import Pairs, Recipe, Row, SamplesOf, Size, head
from flawmap.run.table import Job, Score, Table
from flawmap.types import GOOD
from flawmap.verdict.metrics import auroc, f1_max, fpr_at_no_escape
from flawmap.verdict.metrics import roc as roc_points
from flawmap.verdict.rates import clopper_pearson

ONE_CLASS = "good and defective ones are needed"
ORACLE = "ORACLE"  # read off the answers: for comparison, never an operating point


@dataclass(frozen=True)
class Counted:
    """The scores of one run, by picture or by part."""

    row: Row
    job: Job
    found: dict[str, Any]  # the run table's row
    scores: np.ndarray
    defect: np.ndarray

    @property
    def threshold(self) -> float | None:
        return self.found.get("threshold")

    def at(self, threshold: float) -> tuple[int, int]:
        """False alarms and defects found, a score above the threshold being NOK."""
        nok = self.scores > threshold
        return int((nok & ~self.defect).sum()), int((nok & self.defect).sum())

    @property
    def good(self) -> int:
        return int((~self.defect).sum())

    @property
    def bad(self) -> int:
        return int(self.defect.sum())

    def line(self, name: str) -> Line:
        points = roc_points(self.scores, self.defect)
        assert points is not None
        return Line(name, points[0].tolist(), points[1].tolist())

    def mark(self, threshold: float, words: str) -> tuple[float, float, str]:
        alarms, found = self.at(threshold)
        return alarms / self.good, found / self.bad, words


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """Every seed's curve, and on that of the first one the thresholds."""
    for category in dict.fromkeys(job.data for _, job in pairs):
        yield f"**{category}**\n"
        pictures, parts = (_counted(pairs, table, category, unit) for unit in (_pictures, _parts))
        if not pictures:
            yield from (f"{NOT_RUN}, or {ONE_CLASS}: not shown.", "")
            continue
        panels = [
            _panel(f"{category}, {unit}", counted, _thresholds(counted[0]), unit)
            for unit, counted in (("pictures", pictures), ("parts", parts))
            if counted
        ]
        yield _drawn(recipe, category, panels, out, "No escape, largest F1: read off the answers")
        yield from head(["seed", "unit", "AUROC", "threshold", "is", "good refused", "defects found"])
        for unit, each in (("pictures", pictures), ("parts", parts)):
            for counted in each:
                area = auroc(counted.scores, counted.defect)
                for threshold, words in _thresholds(counted):
                    alarms, found = counted.at(threshold)
                    cells = [str(counted.job.seed), unit, f"{area:.3f}", f"{threshold:.4g}", words]
                    yield f"| {' | '.join([*cells, _of(alarms, counted.good), _of(found, counted.bad)])} |"
        yield ""
    yield from _below(recipe, pairs, table)


def escape(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """What it costs to let no defect pass, by a threshold read off the test, beside a threshold promised before it."""
    for category in dict.fromkeys(job.data for _, job in pairs):
        yield f"**{category}**\n"
        pictures, parts = (_counted(pairs, table, category, unit) for unit in (_pictures, _parts))
        panels = [
            _panel(f"{category}, {unit}", counted, _no_escape(counted), unit)
            for unit, counted in (("pictures", pictures), ("parts", parts))
            if counted
        ]
        if panels:
            yield _drawn(recipe, category, panels, out, "Points: no defect passes, read off the answers")
        columns = ["method", "seed", f"the report, {ORACLE}", f"no escape, {ORACLE}: pictures", "parts"]
        columns += ["calibrated: good pictures refused", "good parts refused", "pictures that escape", "parts"]
        yield from head(columns)
        for row in recipe.rows:
            quoted = f"{row.paper['false_alarms']:.0%}" if "false_alarms" in row.paper else "—"
            by_job = {each.job.key: each for each in parts}
            mine = [(each, by_job.get(each.job.key)) for each in pictures if each.row is row]
            if not mine:
                yield f"| {row.name} | — | {quoted} | {absent(pairs, row, category)} |{' — |' * 5}"
            for by_picture, by_part in mine:
                cells = [row.name, str(by_picture.job.seed), quoted, *map(_oracle, (by_picture, by_part))]
                yield f"| {' | '.join([*cells, *_calibrated(by_picture)])} |"
        yield ""
    yield from _below(recipe, pairs, table)


def _counted(
    pairs: Pairs, table: Table, category: str, unit: Callable[[Sequence[Score]], Sequence[Score]]
) -> list[Counted]:
    """In the order of the rows, then of the seeds; runs without their scores are left out."""
    rows, found = table.rows(), []
    for row, job in sorted(pairs, key=lambda pair: [r is pair[0] for r, _ in pairs].index(True)):
        if job.data == category and (scores := table.scores(job)):
            units = unit(scores)
            values, defect = [s.score for s in units], [s.kind != GOOD for s in units]
            if len(set(defect)) == 2:
                found.append(Counted(row, job, rows[job.key], np.array(values), np.array(defect)))
    return found


def _pictures(scores: Sequence[Score]) -> Sequence[Score]:
    return scores


def _parts(scores: Sequence[Score]) -> Sequence[Score]:
    """The strangest picture of every part; a part is defective when one of its pictures is."""
    parts: dict[str, Score] = {}
    for score in scores:
        seen = parts.get(score.part, score)
        kind = next((s.kind for s in (seen, score) if s.kind != GOOD), GOOD)
        parts[score.part] = max(seen, score, key=lambda s: s.score)._replace(kind=kind)
    return list(parts.values())


def _panel(title: str, counted: Sequence[Counted], marks: Sequence[Any], unit: str) -> Panel:
    """One named line a row, its other seeds thin; marks are (threshold, words) of the first, or points."""
    drawn, seen = [], set()
    for each in counted:
        drawn.append(each.line("" if each.row.name in seen else f"{each.row.name}, seed {each.job.seed}"))
        seen.add(each.row.name)
    points = [counted[0].mark(mark[0], mark[1].partition(",")[0]) if len(mark) == 2 else mark for mark in marks]
    points = [
        (x, y, "\n".join(w for a, b, w in points if (a, b) == (x, y))) for x, y in dict.fromkeys(p[:2] for p in points)
    ]
    chance = Line("chance", (0, 1), (0, 1), style="dashed")
    return Panel(
        title, f"good {unit} refused", f"defective {unit} found", [*drawn, chance], y_range=(0, 1.04), marks=points
    )


def _thresholds(counted: Counted) -> list[tuple[float, str]]:
    """As a score above it is NOK, one that the answers give stands just below a score."""
    found = fpr_at_no_escape(counted.scores, counted.defect)
    best, threshold = f1_max(counted.scores, counted.defect)
    assert found is not None
    assert threshold is not None
    listed = [
        (float(np.nextafter(found["threshold"], -np.inf)), f"no escape, {ORACLE}"),
        (threshold, f"largest F1 ({best:.2f}), {ORACLE}"),
    ]
    if counted.threshold is not None:
        promise = counted.found.get("promise")
        listed.append((counted.threshold, f"calibrated, at most {promise:.1%} promised" if promise else "calibrated"))
    return listed


def _no_escape(counted: Sequence[Counted]) -> list[tuple[float, float, str]]:
    """The point of the first seed of every row."""
    first = {each.row.name: each for each in reversed(counted)}
    marks = []
    for each in reversed(first.values()):
        found = fpr_at_no_escape(each.scores, each.defect)
        assert found is not None
        marks.append((found["rate"], 1.0, f"{each.row.name} {found['rate']:.0%}"))
    return marks


def _oracle(counted: Counted | None) -> str:
    if counted is None:
        return ONE_CLASS
    found = fpr_at_no_escape(counted.scores, counted.defect)
    assert found is not None
    return _of(found["count"], found["n"])


def _calibrated(counted: Counted) -> list[str]:
    """Pictures by the threshold alone; parts by their verdict, which not every part gets."""
    if counted.threshold is None:
        return ["not calibrated"] + ["—"] * 3
    alarms, found = counted.at(counted.threshold)
    parts = [counted.found.get(key) for key in ("false_alarms", "escapes")]
    words = ["no verdict" if not rate or not rate["n"] else _of(rate["count"], rate["n"]) for rate in parts]
    return [_of(alarms, counted.good), words[0], _of(counted.bad - found, counted.bad), words[1]]


def _of(count: int, n: int) -> str:
    low, high = clopper_pearson(count, n)
    return f"{count} of {n}, {count / n:.0%} ({low:.0%} to {high:.0%})"


def _drawn(recipe: Recipe, category: str, panels: Sequence[Panel], out: Path, points: str) -> str:
    path = out / f"{recipe.name}-{category.replace('/', '-')}.svg"
    path.write_bytes(lines(panels, f"Thick: the first seed, thin: the others. {points} ({ORACLE})."))
    return f"![{recipe.title}]({path.name})\n"


def _below(recipe: Recipe, pairs: Pairs, table: Table) -> Iterator[str]:
    rows = table.rows()
    yield from (
        f"*{ORACLE}*: a threshold that was read off the test pictures' answers, as the report did; for comparison, "
        "never an operating point. *Calibrated*: from good training parts that were held out of fitting, before the "
        "test was seen. In brackets: two-sided 95 % Clopper-Pearson bounds; seeds share the test pictures, so they are "
        "not pooled. A part is one setup under the camera, judged by its strangest picture; parts with another number "
        "of pictures than the calibration knows get no verdict and are not counted.",
        "",
    )
    yield from ((recipe.says, "") if recipe.says else ())
    yield from notes(recipe, pairs, rows)
    yield from ("", *conditions(recipe, [rows[job.key] for _, job in pairs if job.key in rows]))
