"""What a benchmark writes: a line a run (CSV, Parquet), tables for a paper (Markdown, LaTeX), and one HTML page."""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flawmap.images.protocol import protocol
from flawmap.report.comparison import Chart, Comparison, Heat, Metric, Point, Sheet, page
from flawmap.run.benchmark import Plan
from flawmap.run.facts import RATES, TITLES, UNDEFINED, Facts, threshold_source
from flawmap.run.progress import say
from flawmap.run.recipe import write_csv
from flawmap.run.reproduce import Row
from flawmap.run.table import Job, Table

LOWEST = {"i_auroc": 0.5, "part_auroc": 0.5, "p_auroc": 0.5}  # where the colours of a heat table begin; else at 0


def write(plan: Plan, pairs: Sequence[tuple[Row, Job]], table: Table, out: Path) -> dict[str, Any]:
    """The files, OUT/benchmark.*; counts of runs."""
    keys = {job.key for _, job in pairs}
    rows = {key: row for key, row in table.rows().items() if key in keys}
    failed = {key: row for key, row in table.failed().items() if key in keys}
    facts = Facts(plan, pairs, rows, failed)
    lines = list(facts.lines())
    head = list(lines[0]) if lines else []
    write_csv(out / "benchmark.csv", head, [[_cell(line[name]) for name in head] for line in lines])
    files = {"table": out / "benchmark.md", "latex": out / "benchmark.tex", "page": out / "benchmark.html"}
    _replace(files["table"], "\n".join(markdown(facts)) + "\n")
    _replace(files["latex"], "\n".join(latex(facts)) + "\n")
    _replace(files["page"], page(comparison(facts)))
    files["facts"] = out / "benchmark.csv"
    if lines and (parquet := _parquet(lines, out / "benchmark.parquet")):
        files["facts as Parquet"] = parquet
    counts = {"runs": len(pairs), "done": len(rows), "failed": len(failed)}
    return {**counts, **{name: str(path) for name, path in files.items()}}


def markdown(facts: Facts) -> Iterator[str]:
    """A table a metric: categories by methods, the best of each line bold; then verdicts, costs and failures."""
    yield from (f"## {facts.plan.title}", "", caption(facts), "")
    for shots in facts.shots:
        words = "" if shots is None else f", {shots} good parts"
        for metric in facts.metrics:
            lines = [[_bold(cell) for cell in line] for line in grid(facts, metric, shots)]
            yield from (f"**{TITLES[metric]}{words}**", "", *_md([["category", *facts.methods], *lines]), "")
    yield from ("**Verdicts, thresholds from good parts alone**", "")
    yield from _md([["method", *VERDICTS], *verdicts(facts)])
    yield from ("", "**Cost**", "")
    yield from _md([["method", *COSTS], *costs(facts)])
    if facts.plan.looks:
        yield from ("", "**Last step beside BEST ON TEST (no result: the test set has chosen it)**", "")
        yield from _md([["method", "category", "I-AUROC, last step", "I-AUROC, BEST ON TEST"], *best_on_test(facts)])
    if facts.failed:
        yield from ("", "**Failed**", "")
        yield from _md([["run", "reason"], *failures(facts)])
    yield from ("", *(f"- {note}" for note in facts.plan.notes))


def caption(facts: Facts) -> str:
    """Protocol, seeds, machine: what a table cannot be read without."""
    said = list(facts.rows.values())
    places = [", ".join(sorted({str(row[key]) for row in said})) or "none yet" for key in ("date", "commit", "machine")]
    plan = facts.plan
    seeds = list(dict.fromkeys(plan.seeds))
    words = [protocol(plan.protocol).sentence, f"Seeds {', '.join(map(str, seeds))}"]
    words[-1] += f", {plan.draws} draws of the good parts; " if any(facts.shots) else "; "
    words[-1] += "mean ± standard deviation over them, where there are several; best in bold. Last step of training. "
    share = f"Thresholds from {plan.held_out:.0%} of the good parts, held out of fitting, or from all by cross-fitting."
    words[-1] += share if plan.held_out else "No thresholds."
    for names in dict.fromkeys(map(tuple, plan.leave_out.values())):
        of = " and ".join(TITLES[m] for m, left_out in plan.leave_out.items() if tuple(left_out) == names)
        words.append(f"Not in the means of {of}: {', '.join(names)}.")
    if lost := sum(row.get("lost_defects") or 0 for row in said):
        words.append(f"{lost} defective pictures (over all runs) lost their whole defect to the protocol.")
    return " ".join([*words, f"Dates {places[0]}; commits {places[1]}; {places[2]}."])


def grid(facts: Facts, metric: str, shots: int | None) -> Iterator[list[tuple[str, bool]]]:
    """Lines of (text, best): a category each, then the mean."""
    for category in facts.categories:
        cells = [facts.cell(method, category, shots) for method in facts.methods]
        means = [c.mean(metric) if c.whole(metric) else None for c in cells]
        yield [(category, False), *_best(means, [c.text(metric) for c in cells])]
    counted = facts.counted(metric)
    if len(counted) > 1:
        means = [facts.average(method, metric, shots) for method in facts.methods]
        whole = [facts.whole(method, metric, shots) for method in facts.methods]
        words = [_mean(mean, all_there) for mean, all_there in zip(means, whole, strict=True)]
        known = [mean if all_there else None for mean, all_there in zip(means, whole, strict=True)]
        yield [(f"mean of {len(counted)}", False), *_best(known, words)]


def _mean(mean: float | None, whole: bool) -> str:
    return UNDEFINED if mean is None else f"{mean:.3f}" + " (of the runs so far)" * (not whole)


def _best(values: Sequence[float | None], words: Sequence[str]) -> list[tuple[str, bool]]:
    top = max((value for value in values if value is not None), default=None)
    alone = sum(value is not None for value in values) < 2
    return [
        (word, not alone and top is not None and value is not None and f"{value:.3f}" == f"{top:.3f}")
        for value, word in zip(values, words, strict=True)
    ]


VERDICTS = ("false alarms", "escapes", "escapes at most (95 %)", "over", "threshold from")


def verdicts(facts: Facts) -> Iterator[list[str]]:
    """Rates of parts pooled over a method's categories, by seed and draw; only those that have all the categories."""
    for method, shots, rows in _groups(facts):
        planned = {job.data for row, job in facts.pairs if row.name == method and job.shots == shots}
        by_seed: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        for row in rows:
            if all(row.get(rate) for rate in RATES):
                by_seed.setdefault((row["seed"], row["draw"]), []).append(row)
        groups = [each for each in by_seed.values() if {row["data"] for row in each} == planned]
        cells = [_pooled(rate, groups) for rate in RATES]
        worst = [row["escapes"]["high"] for each in groups for row in each if row["escapes"]["high"] is not None]
        cells.append(f"{max(worst):.1%} in the worst run" if worst else UNDEFINED)
        cells.append(_over(groups, len(planned)))
        sources = {threshold_source(row).split(" ", 1)[-1] for row in rows}
        yield [_named(method, shots), *cells, "; ".join(sorted(sources)) or UNDEFINED]


def _pooled(rate: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Mean ± sd over the groups of the share of all their parts."""
    totals = [(sum(r[rate]["count"] for r in each), sum(r[rate]["n"] for r in each)) for each in groups]
    shares = [count / n for count, n in totals if n]
    spread = f" ± {statistics.stdev(shares):.1%}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1%}{spread}" if shares else UNDEFINED


def _over(groups: Sequence[Sequence[Mapping[str, Any]]], categories: int) -> str:
    """What a rate is of."""
    if not groups:
        return "no seed has all its categories, or no thresholds"
    good, bad = (sum(row[rate]["n"] for row in groups[0]) for rate in RATES)
    return f"{categories} categories, {good} good and {bad} defective parts, {len(groups)} times"


COSTS = ("fit, s", "ms a picture, disk to map", "peak memory, MB", "bundle, MB")


def costs(facts: Facts) -> Iterator[list[str]]:
    """Medians over all runs: seconds of a shared machine are noisy."""
    for method, shots, rows in _groups(facts):
        words = []
        for name, times, form in (
            ("fit_s", 1, ".1f"),
            ("seconds_per_picture", 1000, ".0f"),
            ("peak_mb", 1, ".0f"),
            ("bundle_mb", 1, ".1f"),
        ):
            values = [row[name] * times for row in rows if row.get(name) is not None]
            words.append(format(statistics.median(values), form) if values else UNDEFINED)
        yield [_named(method, shots), *words]


def best_on_test(facts: Facts) -> Iterator[list[str]]:
    for method in facts.methods:
        for category in facts.categories:
            for shots in facts.shots:
                cell = facts.cell(method, category, shots)
                if cell.values("best_on_test"):
                    yield [_named(method, shots), category, cell.text("i_auroc"), cell.text("best_on_test")]


def failures(facts: Facts) -> Iterator[list[str]]:
    for row, job in facts.pairs:
        if job.key in facts.failed:
            yield [f"{row.name}: {job}", facts.failed[job.key]["failed"]]


def _groups(facts: Facts) -> Iterator[tuple[str, int | None, Sequence[Mapping[str, Any]]]]:
    for method in facts.methods:
        for shots in facts.shots:
            if rows := facts.cell(method, None, shots).rows:
                yield method, shots, rows


def _named(method: str, shots: int | None) -> str:
    return method if shots is None else f"{method}, {shots} parts"


def latex(facts: Facts) -> Iterator[str]:
    """A table a metric (booktabs), the protocol in its caption."""
    for shots in facts.shots:
        for metric in facts.metrics:
            words = TITLES[metric] + ("" if shots is None else f", {shots} good parts")
            yield from ("\\begin{table}", "\\centering", f"\\caption{{{_tex(f'{words}. {caption(facts)}')}}}")
            yield f"\\begin{{tabular}}{{l{'c' * len(facts.methods)}}}"
            yield from ("\\toprule", " & ".join(["category", *map(_tex, facts.methods)]) + " \\\\", "\\midrule")
            for line in grid(facts, metric, shots):
                if line[0][0].startswith("mean of "):
                    yield "\\midrule"
                yield " & ".join(f"\\textbf{{{_tex(w)}}}" if best else _tex(w) for w, best in line) + " \\\\"
            yield from ("\\bottomrule", "\\end{tabular}", "\\end{table}", "")


def _tex(text: str) -> str:
    signs = {"\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{"}
    signs |= {"}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "—": "--"}
    return "".join(signs.get(sign, sign) for sign in text)


def _md(lines: Sequence[Sequence[Any]]) -> Iterator[str]:
    for number, line in enumerate(lines):
        words = (" ".join(str(word).split()).replace("|", "/").replace("<", "&lt;") for word in line)
        yield f"| {' | '.join(words)} |"
        if not number:
            yield "|" + "---|" * len(line)


def _bold(cell: tuple[str, bool]) -> str:
    return f"**{cell[0]}**" if cell[1] else cell[0]


def comparison(facts: Facts) -> Comparison:
    """What the HTML page shows."""
    counts = [("runs", len(facts.pairs)), ("done", len(facts.rows)), ("failed", len(facts.failed))]
    sheets = [_sheet("Verdicts", "Thresholds come from good parts alone.", ["method", *VERDICTS], verdicts(facts))]
    if facts.plan.looks:
        lead = "The best step is no result: the test set has chosen it. It shows what such tables gain."
        columns = ["method", "category", "I-AUROC, last step", "I-AUROC, BEST ON TEST"]
        sheets.append(_sheet("Last step beside BEST ON TEST", lead, columns, best_on_test(facts)))
    if facts.failed:
        lead = "They count nowhere; flawmap benchmark --retry runs them again."
        sheets.append(_sheet("Failed", lead, ["run", "reason"], failures(facts)))
    sheets.append(_every_run(facts))
    return Comparison(
        facts.plan.title,
        caption(facts),
        counts,
        _summary(facts),
        list(_heats(facts)),
        list(_charts(facts)),
        sheets,
        facts.plan.notes,
    )


def _summary(facts: Facts) -> Sheet:
    columns = ["method", *(f"{TITLES[m]}, mean" for m in facts.metrics), *VERDICTS[:2], *COSTS]
    wrong = {line[0]: line[1:3] for line in verdicts(facts)}
    spent = {line[0]: line[1:] for line in costs(facts)}
    lines = []
    for method, shots, _ in _groups(facts):
        name = _named(method, shots)
        means = [facts.average(method, metric, shots) for metric in facts.metrics]
        words = [UNDEFINED if mean is None else f"{mean:.3f}" for mean in means]
        lines.append([name, *words, *wrong[name], *spent[name]])
    return _sheet("Methods", "Means over the categories; a click on a column sorts by it.", columns, lines)


def _every_run(facts: Facts) -> Sheet:
    lines = [line for line in facts.lines() if line["failed"] is None]
    lead = "benchmark.csv has these and more."
    columns = [
        "method",
        "category",
        "seed",
        "shots",
        *(TITLES[m] for m in facts.metrics),
        "f1_max_oracle",
        "threshold from",
    ]
    columns += ["false alarms", "escapes", "ms a picture", "fit, s"]
    rows = []
    for line in lines:
        row = [
            line["name"],
            line["category"],
            str(line["seed"]),
            "all" if line["shots"] is None else str(line["shots"]),
        ]
        row += [UNDEFINED if line[m] is None else f"{line[m]:.4f}" for m in [*facts.metrics, "f1_max_oracle"]]
        row.append(line["threshold_source"])
        row += [UNDEFINED if line[r] is None else f"{line[r]} of {line[f'{r}_of']}" for r in RATES]
        rows.append([*row, f"{1000 * line['seconds_per_picture']:.0f}", f"{line['fit_s']:.1f}"])
    return _sheet("Every run", lead, columns, rows)


def _sheet(title: str, lead: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Sheet:
    return Sheet(title, lead, columns, [[(word, _number(word)) for word in line] for line in lines])


def _number(word: str) -> float | None:
    """What a cell sorts by: the number that it begins with, "0.98 ± 0.01" by 0.98; names by themselves."""
    try:
        value = float(word.split(" ")[0].rstrip("%"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _heats(facts: Facts) -> Iterator[Metric]:
    for metric in facts.metrics:
        low = LOWEST.get(metric, 0.0)
        left_out = facts.plan.leave_out.get(metric, ())
        note = f"Not in the mean: {', '.join(left_out)}." if left_out else ""
        columns, lines = [], dict[str, list[Heat]]()
        for shots in facts.shots:
            columns += [_named(method, shots) for method in facts.methods]
            for line in grid(facts, metric, shots):
                heats = [Heat(word, _share(_number(word), low), best) for word, best in line[1:]]
                lines.setdefault(line[0][0], []).extend(heats)
        yield Metric(metric, TITLES[metric], columns, list(lines.items()), note)


def _share(value: float | None, low: float) -> float | None:
    return None if value is None else min(1.0, max(0.0, (value - low) / (1 - low)))


def _charts(facts: Facts) -> Iterator[Chart]:
    for metric in facts.metrics:
        for name, times, label in (
            ("seconds_per_picture", 1000, "ms a picture, from disk to map"),
            ("fit_s", 1, "seconds to fit"),
        ):
            points = []
            for method, shots, rows in _groups(facts):
                y = facts.average(method, metric, shots)
                x = statistics.median(row[name] for row in rows) * times
                if y is not None and x > 0:
                    points.append(Point(_named(method, shots), x, y))
            if points:
                yield Chart(metric, f"{TITLES[metric]} against {label.split(',')[0]}", label, TITLES[metric], points)


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _parquet(lines: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """None, with a word: pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        say('no Parquet file: it takes pyarrow, pip install "flawmap[tables]"')
        return None
    import pyarrow
    import pyarrow.parquet

    temporary = _beside(path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(line) for line in lines]), temporary)
    os.replace(temporary, path)
    return path


def _beside(path: Path) -> Path:
    """A name of its own: several commands may write the same tables at once."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")


def _replace(path: Path, text: str) -> None:
    temporary = _beside(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
