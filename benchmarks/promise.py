"""Does the promise hold on real parts? Good training parts, re-split at random many times; docs/promise.md.

python benchmarks/promise.py [--repeats 10] [--categories mvtec/bottle ...]

patchcore   the whole road, each time: half of the parts are fitted and cross-fitted, they alone set the
            threshold, and the other half is judged. The memory holds 1,000 patches here, to make many repeats possible
simplenet   trained once on half of the parts; the scores of the other half are split 1,000 times into calibration and
            unseen: with one split and no refit the promise rests on exchangeability alone

Test pictures play no part. Rows already in the run table (benchmarks/out/promise.jsonl) are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import DATA, HERE, categories, commit

TABLE = HERE / "out" / "promise.jsonl"
PAGE = HERE.parent / "docs" / "promise.md"
FIGURE = HERE.parent / "docs" / "promise.svg"
RESPLITS = 1000


def samples_of(category: str) -> list[Any]:
    from flawmap.images.folder import find

    return [s for s in find(DATA / category) if s.split == "train" and s.good]


def patchcore(category: str, repeats: int) -> list[dict[str, Any]]:
    """One row a repeat: what was promised, and how many of the unseen good parts were rejected."""
    from flawmap.detectors import create
    from flawmap.images.decode import Intake
    from flawmap.images.split import folds, split
    from flawmap.run.feed import Feed
    from flawmap.verdict.calibration import Calibration

    samples, rows = samples_of(category), []
    detector = create("patchcore", {"most": 1000})
    intake = Intake.fit((s.source for s in samples), (256, 256))
    with tempfile.TemporaryDirectory() as folder:
        feed = Feed(detector, samples, intake, Path(folder), "cpu")
        feed.prepare(detector)
        row_of = {s.name: i for i, s in enumerate(samples)}

        def scores(fitting: Sequence[Any], judged: Sequence[Any], seed: int) -> dict[str, tuple[float, float]]:
            fresh = create("patchcore", {"most": 1000, "seed": seed}, pretrained=False)
            fresh.begin(feed.one_pass([row_of[s.name] for s in fitting]))
            found = feed.predict(fresh, [row_of[s.name] for s in judged])
            return {samples[row].name: (float(p.score), float(p.map.max())) for row, p in found}

        for repeat in range(repeats):
            seen, unseen = split(samples, (0.5, 0.5), repeat)
            crossed: dict[str, tuple[float, float]] = {}
            for fold in folds(seen, min(5, len({s.part for s in seen})), repeat):
                names = {s.name for s in fold}
                crossed |= scores([s for s in seen if s.name not in names], fold, repeat)
            parts = [s.part for s in seen]
            calibration = Calibration.from_good(
                parts, [crossed[s.name][0] for s in seen], [crossed[s.name][1] for s in seen], cross_fitted=True
            )
            judged = scores(seen, unseen, repeat)
            alarms, n = rejected([s.part for s in unseen], [judged[s.name][0] for s in unseen], calibration.threshold)
            masks, _ = rejected(
                [s.part for s in unseen], [judged[s.name][1] for s in unseen], calibration.map_threshold
            )
            rows.append(
                {
                    "promise": calibration.promise,
                    "calibrated": calibration.parts,
                    "alarms": alarms,
                    "masks": masks,
                    "n": n,
                }
            )
    return rows


def simplenet(category: str, _: int) -> list[dict[str, Any]]:
    """One row: means over re-splits of the held-out scores of one trained model."""
    from flawmap import fit
    from flawmap.verdict.calibration import Calibration

    with tempfile.TemporaryDirectory() as folder:
        run = fit(DATA / category, "simplenet", held_out=0.5, out=folder).run
        lines = (run / "calibration.csv").read_text().splitlines()[1:]
    held = [line.rsplit(",", 3) for line in lines]
    parts = sorted({row[1] for row in held})
    score = {part: max(float(row[2]) for row in held if row[1] == part) for part in parts}
    peak = {part: max(float(row[3]) for row in held if row[1] == part) for part in parts}
    half, random = len(parts) // 2, np.random.default_rng(0)
    found = np.zeros(3)
    for _ in range(RESPLITS):
        order = random.permutation(parts)
        known, unseen = order[:half], order[half:]
        c = Calibration.from_good(list(known), [score[p] for p in known], [peak[p] for p in known])
        found += (
            c.promise,
            np.mean([score[p] > c.threshold for p in unseen]),
            np.mean([peak[p] > c.map_threshold for p in unseen]),
        )
    promise, alarms, masks = found / RESPLITS
    return [
        {
            "promise": promise,
            "calibrated": half,
            "alarms": alarms * len(parts),
            "masks": masks * len(parts),
            "n": len(parts),
        }
    ]


def rejected(parts: Sequence[str], scores: Sequence[float], threshold: float) -> tuple[int, int]:
    worst: dict[str, float] = {}
    for part, score in zip(parts, scores, strict=True):
        worst[part] = max(score, worst.get(part, -np.inf))
    return sum(score > threshold for score in worst.values()), len(worst)


def page(table: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The page's table, and the figure."""
    from flawmap.verdict.calibration import clopper_pearson

    head = ["method", "category", "repeats", "parts calibrated", "promised", "realised", "masks not empty"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    points = []
    for row in sorted(table, key=lambda r: (r["method"], r["category"])):
        found = row["rows"]
        n = sum(r["n"] for r in found)
        promised = statistics.mean(r["promise"] for r in found)
        realised = sum(r["alarms"] for r in found) / n
        masks = sum(r["masks"] for r in found) / n
        repeats = len(found) if row["method"] == "patchcore" else RESPLITS
        parts = statistics.mean(r["calibrated"] for r in found)
        name = row["category"].split("/")[1]
        lines.append(
            f"| {row['method']} | {name} | {repeats} | {parts:.0f} | {promised:.2%} | {realised:.2%} | {masks:.2%} |"
        )
        # Parts recur over repeats: the interval counts every part once, which is what the data can say.
        distinct = found[0]["n"] * (2 if row["method"] == "patchcore" else 1)
        low, high = clopper_pearson(round(realised * distinct), distinct)
        points.append((f"{row['method']} {name}", promised, realised, low, high))
    return "\n".join(lines), figure(points)


def figure(points: Sequence[tuple[str, float, float, float, float]]) -> str:
    """Promised (bar) and realised (dot) false alarms, with the 95 % interval of the parts there are."""
    width, left, row = 720, 200, 22
    most = max(max(high, promised) for _, promised, _, _, high in points) * 1.05
    height = row * len(points) + 46

    def x(rate: float) -> float:
        return left + rate / most * (width - left - 20)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for tick in np.arange(0, most, 0.02 if most < 0.2 else 0.05):
        out.append(f'<path d="M{x(tick):.1f} 8V{height - 32}" stroke="#ddd"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{height - 16}" text-anchor="middle" fill="#444">{tick:.0%}</text>')
    for number, (name, promised, realised, low, high) in enumerate(points):
        y = 20 + number * row
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="#222">{name}</text>')
        out.append(f'<rect x="{left}" y="{y - 7}" width="{x(promised) - left:.1f}" height="14" fill="#c7d9ea"/>')
        out.append(f'<path d="M{x(low):.1f} {y}H{x(high):.1f}" stroke="#b4530a" stroke-width="1.5"/>')
        out.append(f'<circle cx="{x(realised):.1f}" cy="{y}" r="4" fill="#b4530a"/>')
    out.append(
        f'<text x="{left}" y="{height - 2}" fill="#444">false alarms: promised on average (bar), realised on unseen '
        "good parts (dot, 95 % interval)</text></svg>"
    )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--categories", nargs="+", default=categories())
    args = parser.parse_args()
    TABLE.parent.mkdir(exist_ok=True)
    table = [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []
    for method, road in (("patchcore", patchcore), ("simplenet", simplenet)):
        for category in args.categories:
            if any(row["method"] == method and row["category"] == category for row in table):
                continue
            print(f"== {method} {category}", file=sys.stderr, flush=True)
            row = {"method": method, "category": category, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
            table.append({**row, "rows": road(category, args.repeats)})
            with TABLE.open("a") as file:
                file.write(json.dumps(table[-1]) + "\n")
    text, drawing = page(table)
    FIGURE.write_text(drawing)
    start, end = "<!-- table -->", "<!-- end -->"
    content = PAGE.read_text()
    made = f"Made by `python benchmarks/promise.py` on {', '.join(sorted({r['date'] for r in table}))}, commits "
    made += f"{', '.join(sorted({r['commit'] for r in table}))}."
    PAGE.write_text(
        content[: content.index(start)] + f"{start}\n{made}\n\n{text}\n{end}" + content[content.index(end) + len(end) :]
    )
    print(PAGE)


if __name__ == "__main__":
    main()
