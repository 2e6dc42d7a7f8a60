"""Pages of numbers: a table a category beside the paper's, few-shot tables; and what every page says below itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flawmap.images.protocol import protocol
from flawmap.run.reproduce import TITLES, Pairs, Recipe, Row, Rows, SamplesOf, Size, head
from flawmap.run.table import Table, falling, made, portable
from flawmap.run.weights import lacking

NOT_RUN = "not run"
FALLS = 0.05  # a loss that still fell by this share has not converged
NOTHING = 0.01  # unless so little of it is left


def table(recipe: Recipe, size: Size, pairs: Pairs, runs: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """A table a category, and their mean beside the paper's."""
    rows = runs.rows()
    categories = list(dict.fromkeys(job.data for _, job in pairs))
    columns = ["method", "px", "seeds", *(TITLES[m] for m in recipe.metrics)]
    columns += ["steps", "loss, last 5 %", "it still fell by"]
    for category in categories:
        yield from (f"**{category}**", "", *head(columns))
        for row in recipe.rows:
            found = done(pairs, rows, row, category)
            px = str(found[0]["config"]["size"]) if found else "—"
            figures = [figure(found, metric) or NOT_RUN for metric in recipe.metrics]
            figures = figures if found else [absent(pairs, row, category), *figures[1:]]
            cells = [row.name, px, str(len(found)), *figures, *training(found)]
            yield f"| {' | '.join(cells)} |"
        yield ""
    yield from (f"**mean of {len(categories)}, beside the paper's ({recipe.paper_is})**", "")
    yield from head(["method", *(f"{TITLES[m]} here | paper" for m in recipe.metrics)])
    for row in recipe.rows:
        cells = [row.name]
        for metric in recipe.metrics:
            each = [done(pairs, rows, row, category) for category in categories]
            means = [mean for found in each if (mean := _mean(found, metric)) is not None]
            cells.append(NOT_RUN if [] in each else f"{statistics.mean(means):.3f}" if means else "—")
            cells.append(printed(row, metric))
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from notes(recipe, pairs, rows)
    yield from ("", *conditions(recipe, [row for row in rows.values() if row["key"] in {job.key for _, job in pairs}]))


def shots(recipe: Recipe, size: Size, pairs: Pairs, runs: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """I-AUROC over the number of good pictures, mean and deviation over the draws."""
    rows = runs.rows()
    categories = list(dict.fromkeys(job.data for _, job in pairs))
    yield from head(["category", "method", "draws", *(f"k = {k}" for k in size.shots)])
    for category in categories:
        for row in recipe.rows:
            if not row.method:
                continue
            cells, draws = [], []
            for k in size.shots:
                jobs = [job for r, job in pairs if r is row and job.data == category and job.shots == k]
                found = [rows[job.key]["i_auroc"] for job in jobs if job.key in rows]
                draws.append(len(found))
                cells.append(spread(found) if found else NOT_RUN)
            yield f"| {category} | {row.name} | {'/'.join(map(str, draws))} | {' | '.join(cells)} |"
    for row in recipe.rows:
        if row.paper:
            cells = [f"{row.paper[str(k)]:.3f}" if str(k) in row.paper else "—" for k in size.shots]
            yield f"| *{recipe.paper_is}* | {row.name}, paper | — | {' | '.join(cells)} |"
    yield ""
    yield from notes(recipe, pairs, rows)
    mine = [rows[job.key] for _, job in pairs if job.key in rows]
    yield from ("", *conditions(recipe, mine), "", "Support pictures, by part, the same for every method:", "")
    for row in {(r["data"], r["shots"], r["draw"]): r for r in mine}.values():
        yield f"- {row['data']}, k = {row['shots']}, draw {row['draw']}: {', '.join(row['support'])}"


def notes(recipe: Recipe, pairs: Pairs, rows: Rows) -> Iterator[str]:
    """What each row was run with, and what is to be said of it; and how to give the weights that are not here."""
    reasons: dict[str, list[str]] = {}
    for row in recipe.rows:
        words = []
        for job in (job for r, job in pairs if r is row):
            options = [f"{key} {value}" for key, value in portable(job.options).items()] or ["defaults"]
            words = [f"{job.method}, {', '.join(options)}"]
            if job.key in rows and "backbone" in rows[job.key]["config"]:
                words[0] += f" ({rows[job.key]['config']['backbone']})"
            if job.key not in rows and (why := lacking(job)) and row.name not in reasons.setdefault(why, []):
                reasons[why].append(row.name)
        words += [row.note] if row.note else []
        if words:
            yield f"- {row.name}: {'; '.join(words)}."
    for why, names in reasons.items():
        yield f"- *Not run:* {'; '.join(names)}: {why}."


def done(pairs: Pairs, rows: Rows, row: Row, category: str) -> list[Mapping[str, Any]]:
    return [rows[job.key] for r, job in pairs if r is row and job.data == category and job.key in rows]


def absent(pairs: Pairs, row: Row, category: str) -> str:
    """Why a row has no figure there."""
    jobs = [job for r, job in pairs if r is row and job.data == category]
    return f"{NOT_RUN}: no weights here" if jobs and lacking(jobs[0]) else NOT_RUN


def figure(found: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Mean and deviation; a dash where the pictures cannot tell, nothing where there is no run."""
    values = [row[metric] for row in found if row[metric] is not None]
    return spread(values) if values else "—" if found else ""


def printed(row: Row, metric: str) -> str:
    """The paper's value."""
    return f"{row.paper[metric]:.3f}" if metric in row.paper else "—"


def training(found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found or not found[0]["curve"]:
        return ["—"] * 3
    fell = [share for row in found if (share := falling(row["curve"])) is not None]
    words = "—" if not fell else f"{statistics.mean(fell):.0%}"
    if fell and max(fell) > FALLS and max(row["curve"][-1] / row["curve"][0] for row in found) > NOTHING:
        words += ", not converged"
    return [str(found[0]["steps"]), spread([row["curve"][-1] for row in found]), words]


def _mean(found: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    values = [row[metric] for row in found if row[metric] is not None]
    return statistics.mean(values) if values else None


def spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def conditions(recipe: Recipe, mine: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    said = mine or [made()]
    places = [", ".join(sorted({str(row[key]) for row in said})) for key in ("date", "commit", "machine")]
    rules = " ".join(sorted({protocol(row.get("protocol", "plain")).sentence for row in said}))
    yield (
        f"Dates {places[0]}; commits {places[1]}; {places[2]}. {rules} Labels from the folder; last step of training; "
        "the test pictures judged once a row. Mean ± standard deviation over what the second or third column counts. "
        "*It still fell by*: the mean loss of the fourth fifth of the steps against the third, before the learning "
        f"rate falls; above {FALLS:.0%} the run has not converged, unless less than {NOTHING:.0%} of the first loss is "
        "left."
    )
