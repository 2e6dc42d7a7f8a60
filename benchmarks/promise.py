"""Does the promise hold on real parts? Good training parts, re-split at random many times; docs/promise.md.

python benchmarks/promise.py [--methods patchcore ...] [--categories mvtec/bottle ...] [--repeats 6] [--page]

Two questions, two tables. On parts that were put aside by lot, where the promise must hold:

patchcore   the whole road, each time: half of the parts are fitted and cross-fitted, they alone set the
            threshold, and the other half is judged. The memory holds 1,000 patches here, to make many repeats possible
the others  fitted once on half of the parts (draem, pouta, efficientad: preset small, two categories); the scores of
            the other half are split 10,000 times into calibration and unseen

On the good parts of the official test, which were not put aside by lot, and of which nothing was promised: the same
fits with all of their other half as calibration; PatchCore as `flawmap fit` leaves it, cross-fitted on all parts.

Rows already in the run table (benchmarks/out/promise.jsonl) are not run again: stop it at any time and start it again.
--page only writes the page and the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import DATA, HERE, categories, commit

TABLE = HERE / "out" / "promise.jsonl"
PAGE = HERE.parent / "docs" / "promise.md"
FIGURE = HERE.parent / "docs" / "promise.svg"
RESPLITS = 10_000
SMALL = {"preset": "small"}
# Cheapest first. The trained networks take minutes each on a CPU.
METHODS: dict[str, dict[str, Any]] = {
    "padim": {}, "simplenet": {}, "patchcore": {}, "draem": SMALL, "efficientad": SMALL, "pouta": SMALL,
}  # fmt: skip
TRAINED_ON = ("mvtec/bottle", "glassfiber/glassfiber")
APART = {  # how the official test's good parts came to be, by those who published or cut the set
    "aitex/fabric_02": "other strips of the fabric",
    "aws_lookout/cookie": "the publisher's test pictures",
    "bsdata/ball_screw": "later in time, soiled",
    "dagm/class8": "by lot",
    "deeppcb/pcb_group20085": "other layouts",
    "elpv/mono": "by lot",
    "glassfiber/glassfiber": "other scene and light",
    "kaggle_pill/round_pill": "other blocks of slow sequences",
    "magnetic_tile/magnetic_tile": "other captures",
    "mvtec/bottle": "the publisher's test pictures",
}


def samples_of(category: str, cut: str) -> list[Any]:
    from flawmap.images.folder import find

    return [s for s in find(DATA / category, kind=None) if s.split == cut and s.good]


def patchcore(category: str, repeats: int) -> list[dict[str, Any]]:
    """One row a repeat: what was promised, and how many of the unseen good parts were rejected."""
    from flawmap.detectors import create
    from flawmap.images.intake import Intake
    from flawmap.images.split import folds, split
    from flawmap.run.feed import Feed
    from flawmap.verdict.calibration import Calibration

    samples, rows = samples_of(category, "train"), []
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
            rows.append(row_of_parts(calibration, [(s.part, *judged[s.name]) for s in unseen]))
    return rows


def one_fit(method: str, category: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the re-splits (means over them) and of the official test, from one fit on half of the parts."""
    from flawmap import fit
    from flawmap.verdict.calibration import Calibration

    with tempfile.TemporaryDirectory() as folder:
        model = fit(DATA / category, method, options=METHODS[method], held_out=0.5, out=folder)
        official = tested(model, category, Path(folder))
        lines = (Path(str(model.run)) / "calibration.csv").read_text().splitlines()[1:]
    held = [line.rsplit(",", 3) for line in lines]
    worst = by_part([(row[1], float(row[2]), float(row[3])) for row in held])
    parts = sorted(worst)
    half, random = len(parts) // 2, np.random.default_rng(0)
    found = np.zeros(3)
    for _ in range(RESPLITS):
        order = random.permutation(parts)
        known, unseen = order[:half], order[half:]
        c = Calibration.from_good(list(known), [worst[p][0] for p in known], [worst[p][1] for p in known])
        row = row_of_parts(c, [(p, *worst[p]) for p in unseen])
        found += row["promise"], row["alarms"] / row["n"], row["masks"] / row["n"]
    promise, alarms, masks = found / RESPLITS
    n = len(parts)
    row = {
        "promise": promise,
        "calibrated": half,
        "alarms": alarms * n,
        "masks": masks * n,
        "n": n,
        "resplits": RESPLITS,
    }
    return [row], official


def tested(model: Any, category: str, folder: Path) -> list[dict[str, Any]]:
    """One row: the good parts of the official test against the calibration of a model."""
    from flawmap import evaluate

    pictures = evaluate(model, samples_of(category, "test"), folder / "test").pictures
    judged = [(p.sample.part, p.score, p.peak) for p in pictures if p.verdict is not None]
    row = row_of_parts(model.calibration, judged)
    parts = len({p.sample.part for p in pictures})
    return [{**row, "bound": model.calibration.bound, "no_verdict": parts - row["n"]}]


def official_patchcore(category: str) -> list[dict[str, Any]]:
    from flawmap import fit

    with tempfile.TemporaryDirectory() as folder:
        return tested(fit(DATA / category, "patchcore", out=folder), category, Path(folder))


def row_of_parts(calibration: Any, judged: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """`judged`: part, score and peak of each picture."""
    worst = by_part(judged)
    return {
        "promise": calibration.promise,
        "calibrated": calibration.parts,
        "alarms": sum(score > calibration.threshold for score, _ in worst.values()),
        "masks": sum(peak > calibration.map_threshold for _, peak in worst.values()),
        "n": len(worst),
    }


def by_part(judged: Sequence[tuple[str, float, float]]) -> dict[str, tuple[float, float]]:
    """The largest score and the largest peak of each part."""
    worst: dict[str, tuple[float, float]] = {}
    for part, score, peak in judged:
        known = worst.get(part, (-np.inf, -np.inf))
        worst[part] = (max(score, known[0]), max(peak, known[1]))
    return worst


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []


def fill(methods: Sequence[str], wanted: Sequence[str], repeats: int) -> None:
    """Runs what the table lacks, and adds it."""
    TABLE.parent.mkdir(exist_ok=True)
    for method in methods:
        for category in wanted:
            if METHODS[method] and category not in TRAINED_ON:
                continue
            done = {r.get("what", "split") for r in kept() if (r["method"], r["category"]) == (method, category)}
            if done >= {"split", "test"}:
                continue
            print(f"== {method} {category}", file=sys.stderr, flush=True)
            begun = time.monotonic()
            found: dict[str, list[dict[str, Any]]]
            if method == "patchcore":
                found = {"test": official_patchcore(category)} if "test" not in done else {}
                found |= {"split": patchcore(category, repeats)} if "split" not in done else {}
            else:
                found = dict(zip(("split", "test"), one_fit(method, category), strict=True))
            row = {"method": method, "category": category, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
            row |= {"seconds": round(time.monotonic() - begun, 1), "machine": machine()}
            with TABLE.open("a") as file:
                for what in found.keys() - done:
                    file.write(json.dumps({**row, "what": what, "rows": found[what]}) + "\n")


def machine() -> str:
    """Cores and the processor's model, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} cores ({model or platform.machine()})"


Point = tuple[str, float, float, float, float]  # name, promised, realised, and the interval of the parts there are


def by_lot(table: Sequence[Mapping[str, Any]]) -> tuple[str, list[Point]]:
    """The table of the re-splits, and its panel."""
    from flawmap.verdict.rates import clopper_pearson

    head = ["method", "category", "repeats", "parts calibrated", "promised", "realised", "95 %", "masks not empty"]
    lines, points = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"], []
    for row in table:
        found, crossed = row["rows"], row["method"] == "patchcore"
        n = sum(r["n"] for r in found)
        promised = statistics.mean(r["promise"] for r in found)
        realised, masks = (sum(r[key] for r in found) / n for key in ("alarms", "masks"))
        # Parts recur over repeats: the interval counts every part once, which is what the data can say.
        distinct = found[0]["n"] + found[0]["calibrated"] if crossed else found[0]["n"]
        low, high = clopper_pearson(round(realised * distinct), distinct)
        name, repeats = row["category"].split("/")[1], len(found) if crossed else found[0]["resplits"]
        lines.append(
            f"| {row['method']} | {name} | {repeats} | {statistics.mean(r['calibrated'] for r in found):.0f} | "
            f"{promised:.2%} | {realised:.2%} | {low:.1%} to {high:.1%} | {masks:.2%} |"
        )
        points.append((f"{row['method']} {name}", promised, realised, low, high))
    return "\n".join(lines), points


def official(table: Sequence[Mapping[str, Any]]) -> tuple[str, list[Point], tuple[int, int]]:
    """The table of the official test, its panel, and in how many rows realised is surely above promised."""
    from flawmap.verdict.rates import clopper_pearson

    head = ["method", "category", "put aside", "parts calibrated", "promised on average", "with 95 % confidence"]
    head += ["false alarms", "rate", "95 %", "masks not empty"]
    lines, points, beyond = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"], [], 0
    for row in table:
        (found,) = row["rows"]
        low, high = clopper_pearson(found["alarms"], found["n"])
        name, rate = row["category"].split("/")[1], found["alarms"] / found["n"] if found["n"] else float("nan")
        over = low > found["bound"]
        beyond += over
        without = f" ({found['no_verdict']} without a verdict)" if found["no_verdict"] else ""
        lines.append(
            f"| {row['method']} | {name} | {APART.get(row['category'], 'not known')} | {found['calibrated']} | "
            f"{found['promise']:.1%} | {found['bound']:.1%} | {found['alarms']} of {found['n']}{without} | "
            f"{'**' * over}{rate:.0%}{'**' * over} | {low:.0%} to {high:.0%} | {found['masks']} |"
        )
        points.append((f"{row['method']} {name}", found["promise"], rate, low, high))
    return "\n".join(lines), points, (beyond, len(table))


def figure(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Promised (bar) and realised (dot) false alarms, with the 95 % interval of the parts there are; a panel each."""
    width, out, top = 720, [], 0
    for title, points in panels:
        out += _panel(title, points, top, width)
        top += 18 * len(points) + 62
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" {style} role="img">'
    return "\n".join([head, f'<rect width="{width}" height="{top}" fill="#fff"/>', *out, "</svg>"])


def _panel(title: str, points: Sequence[Point], top: int, width: int) -> list[str]:
    left, first = 200, top + 34
    most = min(1.0, max(max(high, promised) for _, promised, _, _, high in points) * 1.05)
    foot = first + 18 * len(points)

    def x(rate: float) -> float:
        return left + rate / most * (width - left - 20)

    out = [f'<text x="8" y="{top + 18}" font-weight="bold" fill="#222">{title}</text>']
    for tick in np.arange(0, most, 0.02 if most < 0.2 else 0.05 if most < 0.5 else 0.1):
        out.append(f'<path d="M{x(tick):.1f} {first - 6}V{foot}" stroke="#ddd"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{foot + 14}" text-anchor="middle" fill="#444">{tick:.0%}</text>')
    for number, (name, promised, realised, low, high) in enumerate(points):
        y = first + 6 + number * 18
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="#222">{name}</text>')
        out.append(f'<rect x="{left}" y="{y - 6}" width="{x(promised) - left:.1f}" height="12" fill="#c7d9ea"/>')
        out.append(f'<path d="M{x(low):.1f} {y}H{x(high):.1f}" stroke="#b4530a" stroke-width="1.5"/>')
        out.append(f'<circle cx="{x(realised):.1f}" cy="{y}" r="4" fill="#b4530a"/>')
    return out


def write(table: Sequence[dict[str, Any]]) -> None:
    order = {category: place for place, category in enumerate(sorted(APART))}
    table = sorted(table, key=lambda r: (list(METHODS).index(r["method"]), order.get(r["category"], 99)))
    of = {what: [r for r in table if r.get("what", "split") == what] for what in ("split", "test")}
    made = f"Made by `python benchmarks/promise.py` on {', '.join(sorted({r['date'] for r in table}))}, commits "
    made += f"{', '.join(sorted({r['commit'] for r in table}))}; "
    made += f"{'; '.join(sorted({r['machine'] for r in table if 'machine' in r}))}, no GPU."
    lot, lot_points = by_lot(of["split"])
    test, test_points, (beyond, rows) = official(of["test"])
    panels = [
        ("put aside by lot: promised on average (bar), realised (dot, 95 % interval)", lot_points),
        ("the official test's good parts, of which nothing was promised", test_points),
    ]
    FIGURE.write_text(figure([panel for panel in panels if panel[1]]))
    if missing := lacking(of):
        made += f" Not run yet: {missing}."
    count = f"In {beyond} of {rows} rows (bold) the whole interval lies above even the bound that holds with 95 % "
    count += "confidence."
    between(PAGE, "<!-- table -->", "<!-- end -->", f"{made}\n\n{lot}")
    between(PAGE, "<!-- official -->", "<!-- end official -->", f"{count}\n\n{test}")
    print(PAGE)


def lacking(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the table still lacks, in words."""
    found = {(r["method"], r["category"]) for r in of["split"]} & {(r["method"], r["category"]) for r in of["test"]}
    words = []
    for method, options in METHODS.items():
        wanted = TRAINED_ON if options else tuple(APART)
        lacks = [c.split("/")[1] for c in wanted if (method, c) not in found]
        if lacks:
            words.append(f"{method} on {'all' if len(lacks) == len(wanted) else ', '.join(lacks)}")
    return "; ".join(words)


def between(page: Path, start: str, end: str, text: str) -> None:
    """Puts the text between two marks of a page."""
    content = page.read_text(encoding="utf-8")
    head, rest = content.split(start, 1)
    page.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=6, help="of patchcore's whole road")
    parser.add_argument("--categories", nargs="+", default=categories())
    parser.add_argument("--page", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.page:
        fill(args.methods, args.categories, args.repeats)
    write(kept())


if __name__ == "__main__":
    main()
