"""Does the drift alarm keep its bound, and when does it see a change? Drawn scores; the tables of docs/drift.md.

python benchmarks/drift.py [--lines 2000]

Scores are drawn (gamma with shape 2, as the right-skewed scores of good parts look); rates come with the standard error
of so many drawn lines. Minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import statistics

import numpy as np

from flawmap.verdict.drift import Martingale, limits, log_wealth, shewhart

ALPHA = 0.05


def said(hits: int, lines: int) -> str:
    rate = hits / lines
    return f"{rate:.1%} ± {math.sqrt(max(rate * (1 - rate), 1 / lines) / lines):.1%}"


def alarms(reference: np.ndarray, line: np.ndarray, seed: int) -> bool:
    martingale = Martingale(reference.tolist(), alpha=ALPHA, seed=seed)
    return any(martingale.add(score).alarm for score in line)


def bound(lines: int) -> None:
    print(f"\nfalse alarms in 500 parts, alpha {ALPHA:.0%}\n\n| calibration parts | online ranks | fixed set |")
    print("|---|---|---|")
    for n in (10, 30, 99, 299):
        draw, ours, fixed = np.random.default_rng(n), 0, 0
        for seed in range(lines):
            scores = draw.gamma(2, size=n + 500)
            ours += alarms(scores[:n], scores[n:], seed)
            p = ((scores[:n, None] > scores[None, n:]).sum(axis=0) + draw.random(500)) / (n + 1)
            fixed += bool(log_wealth(p).max() >= -math.log(ALPHA))
        print(f"| {n} | {said(ours, lines)} | {said(fixed, lines)} |", flush=True)


def judged_ok(lines: int) -> None:
    """Good parts and a share of defects that score far higher; what is fed: every part, or those judged OK."""
    print(f"\nalarms in 1000 parts of a healthy line with defects, alpha {ALPHA:.0%}\n")
    print("| calibration parts | defects | defects that escape | every part | OK parts, reference <= threshold |")
    print("|---|---|---|---|---|")
    for n, share, escaping in ((30, 0, 0), (99, 0, 0), (99, 0.02, 0), (99, 0.1, 0), (99, 0.02, 0.1), (99, 0.1, 0.1)):
        draw, every, passed = np.random.default_rng(n), 0, 0
        for seed in range(lines // 4):
            good = np.sort(draw.gamma(2, size=n))
            threshold = good[-1] + 1e-3 * max(good[-1], good.std())
            line, defect = draw.gamma(2, size=1000), draw.random(1000) < share
            line[defect] = np.where(
                draw.random(defect.sum()) < escaping, threshold * draw.uniform(0.7, 1), threshold + 5
            )
            every += alarms(good, line, seed)
            passed += alarms(good[good <= threshold], line[line <= threshold], seed)
        row = f"| {n} | {share:.0%} | {escaping:.0%} of them | {said(every, lines // 4)} |"
        print(f"{row} {said(passed, lines // 4)} |", flush=True)


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000)
    given = parser.parse_args()
    for table in (bound, judged_ok, delay, skewed):
        table(given.lines)
