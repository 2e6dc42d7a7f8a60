"""Figures over the number of good parts that were fitted: a curve a method, with its spread over the draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flawmap.report.charts import Line, Panel, lines
from flawmap.run.pages import NOT_RUN, absent, conditions, figure, notes
from flawmap.run.reproduce import TITLES, Pairs, Recipe, Row, Rows, SamplesOf, Size, head
from flawmap.run.table import Table


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """Draws are of parts, the same for every method; where all are fitted, seeds stand for draws."""
    rows = table.rows()
    for category in dict.fromkeys(job.data for _, job in pairs):
        good = [s for s in samples_of(category) if s.split == "train" and s.good]
        parts = len({s.part for s in good})
        yield f"**{category}**: {len(good)} good pictures to train on, of {parts} parts\n"
        panels = [_panel(recipe, size, pairs, rows, category, metric, parts) for metric in recipe.metrics]
        if any(panel.lines for panel in panels):
            path = out / f"{recipe.name}-{category.replace('/', '-')}.svg"
            path.write_bytes(lines(panels, "Mean over the draws; the shade is one standard deviation."))
            yield f"![{recipe.title}]({path.name})\n"
        for metric in recipe.metrics:
            yield from _table(recipe, size, pairs, rows, category, metric)
        yield from _pictures(size, pairs, rows, category)
    yield from ((recipe.says, "") if recipe.says else ())
    yield from notes(recipe, pairs, rows)
    yield from ("", *conditions(recipe, [rows[job.key] for _, job in pairs if job.key in rows]))


def _panel(recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, category: str, metric: str, parts: int) -> Panel:
    drawn = []
    for row in recipe.rows:
        each = [(k or parts, _values(_found(pairs, rows, row, category, k), metric)) for k in size.shots]
        each = [(k, values) for k, values in each if values]
        means, off = (
            [statistics.mean(v) for _, v in each],
            [statistics.stdev(v) if len(v) > 1 else math.nan for _, v in each],
        )
        if each:
            drawn.append(Line(row.name, [k for k, _ in each], means, off))
    return Panel(TITLES[metric], f"good parts fitted, {parts} are all", TITLES[metric], drawn, log_x=True)


def _table(recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, category: str, metric: str) -> Iterator[str]:
    yield from head([f"{TITLES[metric]}, parts", "draws", *(_name(k) for k in size.shots)])
    for row in recipe.rows:
        found = [_found(pairs, rows, row, category, k) for k in size.shots]
        asked = [any(r is row and (job.shots or 0) == k for r, job in pairs) for k in size.shots]
        none = [absent(pairs, row, category) if wanted else "not asked for" for wanted in asked]
        cells = [figure(each, metric) or words for each, words in zip(found, none, strict=True)]
        yield f"| {row.name} | {'/'.join(str(len(each)) for each in found)} | {' | '.join(cells)} |"
        if row.paper:
            cells = [f"{row.paper[_name(k)]:.3f}" if _name(k) in row.paper else "—" for k in size.shots]
            yield f"| {row.name}, {recipe.paper_is} | — | {' | '.join(cells)} |"
    yield ""


def _pictures(size: Size, pairs: Pairs, rows: Rows, category: str) -> Iterator[str]:
    """How many pictures the parts of each draw have: a part may have been photographed more than once."""
    counts = []
    for k in size.shots:
        by_draw = {j.draw: rows[j.key]["fitted_on"] for _, j in pairs if j.data == category and (j.shots or 0) == k
                   and j.key in rows}  # fmt: skip
        counts.append(", ".join(str(by_draw[draw]) for draw in sorted(by_draw)) or NOT_RUN)
    yield from head(["pictures", *(_name(k) for k in size.shots)])
    yield f"| of each draw | {' | '.join(counts)} |"
    yield ""


def _found(pairs: Pairs, rows: Rows, row: Row, category: str, k: int) -> list[Any]:
    jobs = [job for r, job in pairs if r is row and job.data == category and (job.shots or 0) == k]
    return [rows[job.key] for job in jobs if job.key in rows]


def _values(found: Sequence[Any], metric: str) -> list[float]:
    return [row[metric] for row in found if row[metric] is not None]


def _name(k: int) -> str:
    return f"k = {k}" if k else "all"
