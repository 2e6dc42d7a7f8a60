"""The lab report's threshold for glass fibre, told again with parts, bounds and a sentence; docs/glassfiber.md.

python benchmarks/threshold.py [--methods patchcore simplenet] [--seeds 0 1 2]

Each model is fitted once on the good training pictures; the scores of the test pictures are kept in
benchmarks/out/threshold.jsonl, and rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from promise import machine
from results import DATA, HERE, commit

from flawmap.verdict.calibration import Calibration
from flawmap.verdict.parts import Parts, by_part
from flawmap.verdict.policies import Costs, cost, no_escape
from flawmap.verdict.rates import at_least, clopper_pearson, least_parts, percent, upper

CATEGORY = "glassfiber/glassfiber"
TABLE = HERE / "out" / "threshold.jsonl"
PAGE = HERE.parent / "docs" / "glassfiber.md"
SPLITS = 1000
COSTS = Costs(escape=100, reject=1, defect_rate=0.02)


def run(method: str, seed: int) -> dict[str, Any]:
    """Scores of the test by picture, and the calibration that the fit made."""
    import flawmap

    with tempfile.TemporaryDirectory() as folder:
        model = flawmap.fit(DATA / CATEGORY, method, seed=seed, out=folder)
        judged = flawmap.evaluate(model, DATA / CATEGORY, Path(folder) / "evaluation")
    rows = [[e.sample.part, e.sample.kind, e.score, e.peak] for e in judged.pictures]
    calibration = model.calibration.to_dict() if model.calibration else None
    stamp = {"method": method, "seed": seed, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    return {**stamp, "rows": rows, "calibration": calibration}


def groups(row: dict[str, Any], unit: str = "part") -> tuple[Parts, Parts]:
    """Good and defective parts (or pictures)."""
    found = []
    for good in (True, False):
        names, kinds, scores, peaks = zip(
            *([p, k, s, t] for p, k, s, t in row["rows"] if (k == "good") is good), strict=True
        )
        found.append(by_part(names, scores, peaks, kinds, unit=unit))
    return found[0], found[1]


def split(row: dict[str, Any]) -> tuple[float, float, float, int]:
    """Half of the defective setups set the threshold, the other half is judged: means over random splits.

    Share of unseen setups that escape, share of splits with an escape, share of good setups refused, setups that set.
    """
    good, bad = groups(row)
    known = (len(bad.scores) + 1) // 2
    random, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = random.permutation(bad.scores)
        made = no_escape(good, Parts(sorted(order[:known]), sorted(order[:known]), ["defective"] * known, (1, 3)))
        missed = int(np.sum(order[known:] <= made.threshold))
        found.append((missed / (len(order) - known), missed > 0, made.refused / made.parts))
    means = np.mean(found, axis=0)
    return float(means[0]), float(means[1]), float(means[2]), known


def of(hits: int, n: int) -> str:
    low, high = clopper_pearson(hits, n)
    return f"{hits} of {n} ({at_least(low)} to {percent(high)})"


def tables(table: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = sorted(table, key=lambda r: (r["method"], r["seed"]))
    yield from ("## Read off the test, as the report did", "")
    yield "The threshold stands just below the lowest defect. In brackets: 95 % Clopper-Pearson."
    yield from ("", "| method, seed | good pictures refused | good setups refused | defective setups missed |")
    yield "|---|---|---|---|"
    for row in rows:
        cells = []
        for unit in ("picture", "part"):
            good, bad = groups(row, unit)
            made = no_escape(good, bad)
            cells.append(of(made.refused, made.parts))
        n = len(bad.scores)
        cells.append(f"0 of {n} (at most {percent(upper(0, n))})")
        yield f"| {row['method']}, {row['seed']} | {' | '.join(cells)} |"
    yield from ("", "## Signed from good parts, before a defect is known", "")
    yield (
        "As the fit leaves it. Setups of every number of views are counted here; `flawmap inspect` gives no verdict "
        "for a setup with more or fewer views than the calibration's parts had."
    )
    yield ""
    yield from ("| method, seed | sentence | good setups refused | defective setups missed |", "|---|---|---|---|")
    for row in rows:
        made = Calibration.from_dict(row["calibration"])
        (good, bad), t = groups(row), made.threshold
        refused, missed = sum(s > t for s in good.scores), sum(s <= t for s in bad.scores)
        yield (
            f"| {row['method']}, {row['seed']} | {made.sentence} | {of(refused, len(good.scores))} "
            f"| {of(missed, len(bad.scores))} |"
        )
    yield from ("", "## Signed from known defects", "")
    known = split(rows[0])[3]
    yield (
        f"{known} of the 13 defective setups set the threshold, the other {13 - known} are judged; means over "
        f"{SPLITS} random splits. {known} setups bound the escapes at {percent(upper(0, known))} with 95 % confidence "
        f"and promise {percent(1 / (known + 1))} on average."
    )
    yield from ("", "| method, seed | unseen setups that escape | splits with an escape | good setups refused |")
    yield "|---|---|---|---|"
    for row in rows:
        missed, any_missed, refused, _ = split(row)
        yield f"| {row['method']}, {row['seed']} | {missed:.1%} | {any_missed:.1%} | {refused:.1%} |"
    firsts = [row for row in rows if row["seed"] == min(r["seed"] for r in rows if r["method"] == row["method"])]
    yield from ("", "All 13 setups, in the words of the policy `no-escape`, for the first seed:", "")
    for row in firsts:
        yield f"- **{row['method']}, seed {row['seed']}.** {no_escape(*groups(row)).sentence}"
    yield from ("", "## Signed by costs", "")
    yield (
        f"An escape costs {COSTS.escape:g} false alarms, and {COSTS.defect_rate:.0%} of the setups at the line are "
        "defective (figures for the example, not the laboratory's). First seed:"
    )
    yield ""
    for row in firsts:
        yield f"- **{row['method']}, seed {row['seed']}.** {cost(*groups(row), COSTS).sentence}"


def page(table: Sequence[dict[str, Any]]) -> str:
    dates = ", ".join(sorted({row["date"] for row in table}))
    commits = ", ".join(sorted({row["commit"] for row in table}))
    made = f"Made by `python benchmarks/threshold.py` on {dates}, commits {commits}; {machine()}."
    needed = ", ".join(f"{least_parts(rate, 0.95)} for {rate:.0%}" for rate in (0.1, 0.05, 0.01))
    rates = [
        sum(s > no_escape(*groups(r, "picture")).threshold for s in groups(r, "picture")[0].scores) / 18 for r in table
    ]
    lead = (
        f"Over the {len(table)} models here the report's way refuses {min(rates):.0%} to {max(rates):.0%} of the good "
        f"pictures (mean {statistics.mean(rates):.0%}). To bound a rate with 95 % confidence, with no part on the "
        f"wrong side, takes so many parts: {needed}."
    )
    return "\n".join([made, "", lead, "", *tables(table)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["patchcore", "simplenet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    TABLE.parent.mkdir(exist_ok=True)
    table = [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []
    for method in args.methods:
        for seed in args.seeds:
            if any((row["method"], row["seed"]) == (method, seed) for row in table):
                continue
            print(f"== {method} seed {seed}", file=sys.stderr, flush=True)
            table.append(run(method, seed))
            with TABLE.open("a") as file:
                file.write(json.dumps(table[-1]) + "\n")
    content = PAGE.read_text()
    start, end = "<!-- table -->", "<!-- end -->"
    PAGE.write_text(f"{content[: content.index(start)]}{start}\n{page(table)}\n{content[content.index(end) :]}")
    print(PAGE)


if __name__ == "__main__":
    main()
