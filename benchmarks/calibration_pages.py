"""The tables of docs/promise.md that calibration.py measures: what they count is said there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Every section that was run, in Markdown."""
    made = sorted({(m["date"], m["commit"], m["machine"]) for m in found.values()})
    told = "; ".join(f"{date}, commit {commit}, {machine}" for date, commit, machine in made)
    seconds = sum(m["seconds"] for m in found.values())
    head = f"Made by `python benchmarks/calibration.py` in {seconds / 60:.0f} minutes: {told}."
    pages = {"average": average, "confidence": confidence, "pictures": pictures, "memory": memory}
    pages |= {"escapes": escapes, "kinds": kinds, "costs": costs}
    return "\n\n".join(
        [head, *(page(found[name]["rows"], found[name]["repeats"]) for name, page in pages.items() if name in found)]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _views(row: Mapping[str, Any]) -> str:
    return "1" if row["views"] == 1 else f"{row['views']}, correlated {row['alike']}"


def _by_law(rows: Rows, cell: str, head: Mapping[int, str]) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        lines.setdefault((row["law"], _views(row)), []).append(f"{row[cell]:.2%}")
    return table(["scores", "views", *head.values()], ([*key, *cells] for key, cells in lines.items()))


def average(rows: Rows, repeats: int) -> str:
    head = {r["n"]: f"{r['n']} parts: {r['promised']:.2%}" for r in rows}
    tied = [r for r in rows if r["law"].startswith("ties")]
    smooth = [r for r in rows if r not in tied]
    least, tie = min(r["realised"] / r["promised"] for r in smooth), max(r["realised"] / r["promised"] for r in tied)
    return (
        f"**False alarms on average.** Realised rate of `false-alarm` at its default, the mean of {repeats:,} "
        "calibrations; the promise stands in the head. Without ties it is the promise, less what the margin of a "
        f"thousandth gives away where scores end abruptly (uniform: at least {least:.0%} of the promise); the largest "
        f"excess over the {len(smooth)} lines is {excess(smooth):.1f} Monte-Carlo errors. With ties it is at most "
        f"{tie:.0%} of the promise. The bound that the sentence gives beside it is exceeded by "
        f"{max(r['above_bound'] for r in rows):.1%} of the calibrations at most, where 5 % are allowed and the "
        f"Monte-Carlo error is {error(0.05, repeats):.1%}.\n\n{_by_law(rows, 'realised', head)}"
    )


def excess(rows: Rows) -> float:
    """The largest, in Monte-Carlo errors."""
    return max((r["realised"] - r["promised"]) / r["error"] for r in rows)


def error(share: float, repeats: int) -> float:
    return (share * (1 - share) / repeats) ** 0.5


def confidence(rows: Rows, repeats: int) -> str:
    head = {r["n"]: f"{r['n']} parts: {r['target']:.0%}, rank {r['rank']}" for r in rows}
    most = max(r["above_target"] for r in rows)
    return (
        "**False alarms with 95 % confidence.** Share of calibrations whose true rate is above the target in the head. "
        f"It may be 5 %; the largest is {most:.2%} (Monte-Carlo error {error(0.05, repeats):.1%}). Ranks are whole "
        f"numbers, so most lines stay below.\n\n{_by_law(rows, 'above_target', head)}"
    )


def pictures(rows: Rows, repeats: int) -> str:
    head = ["parts", "views correlated", "promised", "by part", "95 % of calibrations below", "by picture"]
    head += ["95 % of calibrations below"]
    lines = [
        [
            f"{r['n']}",
            f"{r['alike']}",
            f"{r['part']['promised']:.1%}",
            f"{r['part']['realised']:.1%}",
            f"{r['part']['worst']:.1%}",
            f"**{r['picture']['realised']:.1%}**",
            f"{r['picture']['worst']:.1%}",
        ]
        for r in rows
    ]
    ratios = [r["picture"]["realised"] / r["picture"]["promised"] for r in rows]
    return (
        "**Pictures are not parts.** Three views, normal scores, 5 % asked for, parts judged by their worst view. "
        'Calibrated by part the promise holds; calibrated by picture (`unit="picture"`) '
        f"{min(ratios):.1f} to {max(ratios):.1f} times as many parts are refused as was said.\n\n{table(head, lines)}"
    )


def memory(rows: Rows, repeats: int) -> str:
    head = ["parts", "memory", "score", "promised", "realised", "above the 95 % bound", "on its own parts"]
    lines = [
        [
            f"{r['n']}",
            r["memory"],
            r["score"],
            f"{r['promised']:.2%}",
            f"{r['realised']:.2%} ± {r['error']:.2%}",
            f"{r['above_bound']:.1%}",
            f"{r['own']:.0%}",
        ]
        for r in rows
    ]
    most = excess(rows)
    within = f"every line is within the promise, the nearest by {-most:.1f} Monte-Carlo errors"
    if most > 0:
        within = f"the largest excess over what was promised is {most:.1f} Monte-Carlo errors"
    return (
        "**Leave-part-out calibration of a memory.** PatchCore's own code on drawn features (16 patches a part, all "
        f"shifted alike), five folds, {rows[0]['repeats']:,} repeats, every time another geometry; ± one "
        "Monte-Carlo error. *Realised*: the final memory on 500 new parts a repeat. With a coreset and re-weighting "
        f"too, {within}. The share above the bound holds the chance of 500 parts too. The last column is what "
        "calibrating on the very parts that the memory holds would have done.\n\n"
        f"{table(head, lines)}"
    )


def escapes(rows: Rows, repeats: int) -> str:
    known = sorted({r["n"] for r in rows})
    bound = {r["n"]: r["bound"] for r in rows}
    head = ["scores", *(f"{n} defects: at most {bound[n]:.1%}" for n in known), "interval of false alarms"]
    lines = []
    for law in dict.fromkeys(r["law"] for r in rows):
        of = [r for r in rows if r["law"] == law]
        cells = [" / ".join(f"{r['covered']:.1%}" for r in of if r["n"] == n) for n in known]
        lines.append([law, *cells, f"{min(r['interval'] for r in of):.1%}"])
    least = min(r["covered"] for r in rows)
    plain = [r["covered"] for r in rows if not r["margin"] and not r["law"].startswith("ties")]
    return (
        "**Nothing escaped so far.** `no-escape`, 50 good parts; share of repeats in which the true escape rate of the "
        "threshold is within the bound that is printed, without / with a margin of 0.2. It should be 95 %: without "
        f"margin and ties it is {min(plain):.1%} to {max(plain):.1%}, and the least of all is {least:.1%} (Monte-Carlo "
        f"error {error(0.05, repeats):.1%}); more than 95 % where the threshold's hair below the lowest defect, a "
        "thousandth of the score, already matters. The last column: the "
        "printed 95 % interval of false alarms holds the true rate in so many repeats or more, over all cells of its "
        f"line.\n\n{table(head, lines)}"
    )


def kinds(rows: Rows, repeats: int) -> str:
    head = [
        "kind left out, mean",
        "bound from the 20 others",
        "holds for the kinds known",
        "holds for the kind left out",
    ]
    head += ["true escapes: known", "left out"]
    lines = [
        [
            f"{r['mean']:g} sd",
            f"{r['bound']:.1%}",
            f"{r['covered']:.1%}",
            f"**{r['unseen_covered']:.1%}**" if r["unseen_covered"] < 0.9 else f"{r['unseen_covered']:.1%}",
            f"{r['known']:.1%}",
            f"{r['unseen']:.1%}",
        ]
        for r in rows
    ]
    return (
        "**A kind that nobody knew.** Three kinds of ten parts each, further and further from the good ones. For the "
        "kinds that set the threshold the bound holds, for another one it holds or not as it happens to lie: this is "
        f"why the sentence promises nothing for it.\n\n{table(head, lines)}"
    )


def costs(rows: Rows, repeats: int) -> str:
    sizes = list(dict.fromkeys((r["n"], r["m"]) for r in rows))
    head = ["scores"]
    for n, m in sizes:
        head += [f"{n} good, {m} defective: printed bounds", "plain limits"]
    lines = []
    for law in dict.fromkeys(r["law"] for r in rows):
        line = [law]
        for size in sizes:
            of = [r for r in rows if (r["law"], r["n"], r["m"]) == (law, *size)]
            for how in ("chosen", "naive"):
                line.append(" / ".join(f"{min(r[f'{how}_{what}'] for r in of):.1%}" for what in ("alarms", "escapes")))
        lines.append(line)
    least, naive = (min(r[f"{how}_{w}"] for r in rows for w in ("alarms", "escapes")) for how in ("chosen", "naive"))
    return (
        "**The threshold was chosen by the scores it is judged by.** `cost`, an escape 20 times a false alarm, 2 % "
        "defective; share of repeats in which the true rate of false alarms / escapes is within its bound, the lesser "
        "of with and without a review band. The printed bounds allow for the choice: they hold in "
        f"{least:.1%} of {repeats:,} repeats or more. A plain 95 % limit of the counts at the chosen threshold holds "
        f"in as few as {naive:.1%}.\n\n{table(head, lines)}"
    )
