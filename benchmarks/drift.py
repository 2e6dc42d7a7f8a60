"""Does the drift alarm keep its bound, and when does it see a change? Drawn scores; the tables of docs/drift.md.

python benchmarks/drift.py [--lines 2000] [--tables crossed empty]

Scores are drawn (gamma with shape 2, as the right-skewed scores of good parts look); rates come with the standard error
of so many drawn lines. The table `crossed` draws features and runs PatchCore on them (extra train). Minutes on a core.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flawmap.verdict.calibration import Calibration
from flawmap.verdict.drift import Martingale, limits, log_wealth, shewhart

ALPHA = 0.05


def said(hits: int, lines: int) -> str:
    rate = hits / lines
    return f"{rate:.1%} ± {math.sqrt(max(rate * (1 - rate), 1 / lines) / lines):.1%}"


def alarms(reference: Sequence[float], line: Iterable[float], seed: int) -> bool:
    martingale = Martingale(reference, alpha=ALPHA, seed=seed)
    return any(martingale.add(score).alarm for score in line)


def bound(lines: int) -> None:
    print(f"\nfalse alarms in 500 parts, alpha {ALPHA:.0%}\n\n| calibration parts | online ranks | fixed set |")
    print("|---|---|---|")
    for n in (10, 30, 99, 299):
        draw, ours, fixed = np.random.default_rng(n), 0, 0
        for seed in range(lines):
            scores = draw.gamma(2, size=n + 500)
            ours += alarms(scores[:n].tolist(), scores[n:], seed)
            p = ((scores[:n, None] > scores[None, n:]).sum(axis=0) + draw.random(500)) / (n + 1)
            fixed += bool(log_wealth(p).max() >= -math.log(ALPHA))
        print(f"| {n} | {said(ours, lines)} | {said(fixed, lines)} |", flush=True)


def judged_ok(lines: int) -> None:
    """Good parts and a share of defects that score far higher; what is fed: every part, or those judged OK."""
    print(f"\nalarms in 1000 parts of a healthy line with defects, alpha {ALPHA:.0%}\n")
    print("| parts | defects | escape | every part | OK parts, all up to the threshold | OK parts, Martingale.of |")
    print("|---|---|---|---|---|---|")
    for n, share, escaping in (
        (10, 0, 0),
        (30, 0, 0),
        (99, 0, 0),
        (99, 0.02, 0),
        (99, 0.1, 0),
        (99, 0.02, 0.1),
        (99, 0.1, 0.1),
    ):
        draw, every, passed = np.random.default_rng(n), 0, [0, 0]
        for seed in range(lines // 2):
            good = draw.gamma(2, size=n).tolist()
            made = Calibration.from_good([str(i) for i in range(n)], good, good)
            threshold = made.threshold
            line, defect = draw.gamma(2, size=1000), draw.random(1000) < share
            line[defect] = np.where(
                draw.random(defect.sum()) < escaping, threshold * draw.uniform(0.7, 1), threshold + 5
            )
            every += alarms(good, line, seed)
            at_most = [score for score in good if score <= threshold]
            passed[0] += alarms(at_most, line[line <= threshold], seed)
            passed[1] += alarms(Martingale.of(made, alpha=ALPHA).reference, line[line <= threshold], seed)
        row = f"| {n} | {share:.0%} | {escaping:.0%} of them | {said(every, lines // 2)} |"
        print(f"{row} {' | '.join(said(hits, lines // 2) for hits in passed)} |", flush=True)


def crossed(lines: int) -> None:
    """PatchCore with few parts: calibration scores by models without a fold, the line's by the model of all parts."""
    import calibration_memory as memory
    import torch

    torch.set_num_threads(1)
    lines = max(50, lines // 4)
    print(f"\nalarms in 500 OK parts of a line in which nothing changes, cross-fitted, alpha {ALPHA:.0%}\n")
    print("| memory | parts | calibration scores as reference | empty reference (Martingale.of) |\n|---|---|---|---|")
    for name, keep in memory.KEEP.items():
        model = memory.detector(keep)
        for n in (20, 50):
            filled = empty = 0
            for seed in range(lines):
                scores, line = _cross_fitted(memory, model, n, seed)
                made = Calibration.from_good([str(i) for i in range(n)], scores, scores, cross_fitted=True)
                passed = line[line <= made.threshold].tolist()
                filled += alarms([s for s in made.scores if s <= made.threshold], passed, seed)
                ours = Martingale.of(made, alpha=ALPHA, seed=seed)
                empty += any(ours.add(score).alarm for score in passed)
            print(f"| {name} | {n} | {said(filled, lines)} | {said(empty, lines)} |", flush=True)


def _cross_fitted(memory: Any, model: Any, n: int, seed: int) -> tuple[list[float], np.ndarray]:
    """Re-weighted scores of n parts, each by a memory without its fold, and of 500 parts by the memory of all."""
    world = memory.World(seed, model.backbone.shapes[0])
    feat, new, scores = world.parts(n), world.parts(500), np.empty(n)
    for fold in range(memory.FOLDS):
        out = np.arange(n) % memory.FOLDS == fold
        scores[out] = memory.scores(memory.fitted(model, feat[~out]), feat[out])[1]
    memory.fitted(model, feat)
    return scores.tolist(), memory.scores(model, new)[1]


def empty(lines: int) -> None:
    """How many parts of a line must have come before a change can be told, where nothing else is a reference."""
    print("\nempty reference, alpha 1 %: lines with an alarm within 500 parts after the change, and its median delay\n")
    print("| parts before | shift 1 sigma | shift 2 sigma | shift 4 sigma |\n|---|---|---|---|")
    for quiet in (5, 10, 20, 50, 100):
        cells = []
        for shift in (1.0, 2.0, 4.0):
            draw, found, runs = np.random.default_rng(quiet), [], lines // 4
            for seed in range(runs):
                line = Martingale([], alpha=0.01, seed=seed)
                for score in (*draw.normal(size=quiet), *draw.normal(shift, size=500)):
                    if line.add(score).alarm:
                        break
                if (line.alarm_at or 0) > quiet:
                    found.append((line.alarm_at or 0) - quiet)
            late = f" in {statistics.median(found):.0f}" if found else ""
            cells.append(f"{len(found) / runs:.0%}{late}")
        print(f"| {quiet} | {' | '.join(cells)} |", flush=True)


def delay(lines: int) -> None:
    print(
        "\nparts from the change to the alarm (alpha 1 %) and to the signal (every 100,000 parts), median; 99 parts\n"
    )
    print("| parts before | shift 0.5 sigma | shift 1 sigma | shift 2 sigma |\n|---|---|---|---|")
    for quiet in (100, 1000, 10_000):
        cells = []
        for shift in (0.5, 1.0, 2.0):
            draw, found = np.random.default_rng(quiet), ([], [])
            for seed in range(max(20, lines * 5 // quiet)):
                line = Martingale(draw.normal(size=99).tolist(), alpha=0.01, seed=seed)
                for score in draw.normal(size=quiet):
                    line.add(score)
                if line.alarm or line.signal_at:
                    continue
                for score in draw.normal(shift, size=3000):
                    line.add(score)
                    if line.alarm and line.signal_at:
                        break
                found[0].append((line.alarm_at or math.inf) - quiet)
                found[1].append((line.signal_at or math.inf) - quiet)
            late = [statistics.median(values) for values in found]
            cells.append(" and ".join(f"{v:.0f}" if v < math.inf else "over 3000" for v in late))
        print(f"| {quiet} | {' | '.join(cells)} |", flush=True)


def skewed(lines: int) -> None:
    print("\nfalse signals of a 3 sigma Shewhart chart, limits from 10,000 values\n\n| scores | classical | robust |")
    print("|---|---|---|")
    draw = np.random.default_rng(0)
    for name, of in (("normal", draw.standard_normal), ("gamma, shape 2", lambda n: draw.gamma(2, size=n))):
        reference, line = of(10_000), of(lines * 500)
        rates = [shewhart(line, limits(reference, robust=robust)).mean() for robust in (False, True)]
        print(f"| {name} | 1 in {1 / rates[0]:.0f} | 1 in {1 / rates[1]:.0f} |", flush=True)


TABLES = {"bound": bound, "judged-ok": judged_ok, "crossed": crossed, "empty": empty, "delay": delay, "skewed": skewed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--tables", nargs="*", choices=TABLES)
    given = parser.parse_args()
    for name in given.tables or TABLES:
        TABLES[name](given.lines)
