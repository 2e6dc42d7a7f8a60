"""Pages of numbers with a bar chart: methods, categories or backbones side by side, the paper's values beside ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flawmap.report.charts import bars
from flawmap.run.pages import NOT_RUN, absent, conditions, done, figure, notes, printed, training
from flawmap.run.reproduce import TITLES, Pairs, Recipe, Row, Rows, SamplesOf, Size, head
from flawmap.run.table import Table

Cell = tuple[float | None, float | None]  # mean and deviation; None: not run, NaN: the pictures cannot tell


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """Charts, a table a category, and what was printed elsewhere. `figure.by` is a key of CHARTS."""
    rows = table.rows()
    categories = list(dict.fromkeys(job.data for _, job in pairs))
    for number, (title, content) in enumerate(CHARTS[size.figure["by"]](recipe, size, pairs, rows, categories)):
        path = out / f"{recipe.name}{f'-{number + 1}' if number else ''}.svg"
        path.write_bytes(content)
        yield f"![{title}]({path.name})\n"
    for some in [categories] if len(recipe.rows) == 1 else [[category] for category in categories]:
        yield from (f"**{', '.join(some) if len(some) == 1 else recipe.rows[0].name}**", "")
        yield from (*_table(recipe, pairs, rows, some), "")
    if recipe.paper_on not in categories and any(row.paper for row in recipe.rows):
        yield from (f"**printed: {recipe.paper_is}**", "")
        groups = any(row.group for row in recipe.rows)
        yield from head(["method", *["kind"] * groups, *(TITLES[m] for m in recipe.metrics)])
        for row in recipe.rows:
            if row.paper:
                cells = [row.name, *[row.group] * groups, *(printed(row, metric) for metric in recipe.metrics)]
                yield f"| {' | '.join(cells)} |"
        yield ""
    yield from ((recipe.says, "") if recipe.says else ())
    yield from notes(recipe, pairs, rows)
    yield from ("", *conditions(recipe, [rows[job.key] for _, job in pairs if job.key in rows]))


def _table(recipe: Recipe, pairs: Pairs, rows: Rows, categories: Sequence[str]) -> Iterator[str]:
    """A line a row of the recipe; of one row, a line a category."""
    single = len(recipe.rows) == 1
    told = {m for row in recipe.rows for m in row.paper} if recipe.paper_on in categories and not single else set()
    groups = any(row.group for row in recipe.rows)
    figures = [f"{TITLES[m]} here | {recipe.paper_is}" if m in told else TITLES[m] for m in recipe.metrics]
    first = ["category"] if single else ["method", *["kind"] * groups]
    yield from head([*first, "px", "seeds", *figures, "steps", "loss, last 5 %", "it still fell by"])
    for row, category in ((row, category) for category in categories for row in recipe.rows):
        if not any(r is row and job.data == category for r, job in pairs):
            continue
        found = done(pairs, rows, row, category)
        cells = [category] if single else [row.name, *[row.group] * groups]
        cells += [str(found[0]["config"]["size"]) if found else "—", str(len(found))]
        for place, metric in enumerate(recipe.metrics):
            cells += [figure(found, metric) or (NOT_RUN if place else absent(pairs, row, category))]
            cells += [printed(row, metric)] * (metric in told)
        yield f"| {' | '.join([*cells, *training(found)])} |"


def _by_metric(
    recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, categories: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """A chart a category: the rows at every metric, and the paper's values where they are of this category."""
    for category in categories:
        series: dict[str, list[Cell]] = {}
        for row in recipe.rows:
            series[row.name] = [_cell(pairs, rows, row, category, metric) for metric in recipe.metrics]
            if row.paper and category == recipe.paper_on:
                series[f"{row.name}, {recipe.paper_is}"] = [
                    (float(row.paper.get(metric, math.nan)), None) for metric in recipe.metrics
                ]
        yield category, _drawn([TITLES[m] for m in recipe.metrics], series, "value", size, category)


def _by_category(
    recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, categories: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """One row at every metric, or the rows at the first metric, over the categories."""
    if len(recipe.rows) == 1:
        [row] = recipe.rows
        series = {TITLES[m]: [_cell(pairs, rows, row, c, m) for c in categories] for m in recipe.metrics}
        yield row.name, _drawn([_short(c) for c in categories], series, "area under the curve", size, row.name)
        return
    metric = recipe.metrics[0]
    series = {row.name: [_cell(pairs, rows, row, c, metric) for c in categories] for row in recipe.rows}
    yield TITLES[metric], _drawn([_short(c) for c in categories], series, TITLES[metric], size, "")


def _by_row(
    recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, categories: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """A chart a metric: the rows as printed, and as they are here on every category."""
    for metric in size.figure.get("charts", recipe.metrics[:1]):
        shown = [row for row in recipe.rows if row.method or metric in row.paper]
        series: dict[str, list[Cell]] = {
            "as printed": [(float(row.paper.get(metric, math.nan)), None) for row in shown]
        }
        for category in categories:
            series[f"here, {_short(category)}"] = [
                _cell(pairs, rows, row, category, metric) if row.method else (math.nan, None) for row in shown
            ]
        yield TITLES[metric], _drawn([row.name for row in shown], series, TITLES[metric], size, "")


def _by_group(
    recipe: Recipe, size: Size, pairs: Pairs, rows: Rows, categories: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """A chart a category: groups of rows, a bar a method, at the first metric."""
    metric, groups = recipe.metrics[0], list(dict.fromkeys(row.group for row in recipe.rows))
    by = {(row.method, row.group): row for row in recipe.rows}
    for category in categories:
        series: dict[str, list[Cell]] = {}
        for method in dict.fromkeys(row.method for row in recipe.rows):
            named = [by.get((method, group)) for group in groups]
            name = next(row.name.split(",")[0] for row in named if row)
            series[name] = [_cell(pairs, rows, r, category, metric) if r else (math.nan, None) for r in named]
        yield category, _drawn(groups, series, TITLES[metric], size, category)


CHARTS = {"metric": _by_metric, "category": _by_category, "row": _by_row, "group": _by_group}


def _drawn(groups: Sequence[str], series: Mapping[str, Sequence[Cell]], label: str, size: Size, caption: str) -> bytes:
    values = {name: [mean for mean, _ in cells] for name, cells in series.items()}
    spread = {name: [off for _, off in cells] for name, cells in series.items()}
    return bars(groups, values, label, spread=spread, low=float(size.figure.get("low", 0)), caption=caption)


def _cell(pairs: Pairs, rows: Rows, row: Row, category: str, metric: str) -> Cell:
    found = done(pairs, rows, row, category)
    values = [r[metric] for r in found if r[metric] is not None]
    if not values:
        return (math.nan if found else None), None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _short(category: str) -> str:
    return category.rpartition("/")[2]
