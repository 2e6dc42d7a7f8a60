"""Do the promises of a calibration hold where the truth is known? 10,000 calibrations a line; docs/promise.md.

python benchmarks/calibration.py [--only average confidence ...] [--repeats 10000]

average     policy false-alarm, on average over calibrations, several distributions, with ties, with correlated views
confidence  the same with 95 % confidence
pictures    counting pictures and judging parts: breaks the promise
escapes     policy no-escape: the bound of escapes and the interval of false alarms
kinds       the same for a kind of defect that nobody knew: nothing is promised, and nothing holds
costs       policy cost: the bounds at a threshold that was chosen by the very scores
memory      leave-part-out calibration of a memory of patches (calibration_memory.py; a twentieth of the repeats)

Thresholds are computed for all calibrations at once; the first few of every line are compared with what
flawmap.verdict gives for the same scores. Rates of a threshold are exact: integrals of the distribution, no sample.
What is in benchmarks/out/calibration.json already is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import calibration_pages
import numpy as np
from promise import between, machine
from results import HERE, commit
from scipy.special import log_ndtr, ndtr, ndtri

from flawmap.verdict import policies, rates
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.parts import MARGIN, by_part

TABLE = HERE / "out" / "calibration.json"
PAGE = HERE.parent / "docs" / "promise.md"
LEAST = {8: 0.35, 20: 0.15, 50: 0.10, 99: 0.05, 299: 0.02}  # parts: a target they can hold with 95 % confidence
VIEWS = ((1, 0.0), (3, 0.5), (3, 0.9))  # so many, correlated so much
KNOWN = (10, 20, 30, 59)  # defective parts
CHECKED = 5  # calibrations of a line that are compared with the package
GOOD = 50  # good parts beside the known defects
KINDS = (2.0, 3.0, 4.0)  # means of three kinds of defects, in standard deviations of good parts
COST = policies.Costs(escape=20, reject=1, defect_rate=0.02)
REVIEWED = policies.Costs(escape=20, reject=1, defect_rate=0.02, review=0.2)
Array = np.ndarray


class Law(NamedTuple):
    """Scores as a monotone function of a standard normal number, and back: the largest z whose score is at most t."""

    score: Callable[[Array], Array]
    back: Callable[[Array], Array]


def _mixture() -> Law:
    """Nine in ten normal, one in ten four deviations higher and half as wide."""
    score = np.linspace(-6, 8, 20001)
    z = ndtri(0.9 * ndtr(score) + 0.1 * ndtr((score - 4) / 0.5))
    sound = np.isfinite(z) & (np.diff(z, prepend=-np.inf) > 0)
    score, z = score[sound], z[sound]
    return Law(lambda at: np.interp(at, z, score), lambda t: np.interp(t, score, z))


def _poisson() -> Law:
    """Counts with mean 3: about ten values, so that most scores are tied."""
    from scipy.stats import poisson

    step = ndtri(poisson.cdf(np.arange(40), 3))
    step = np.append(step[np.isfinite(step)], np.inf)
    return Law(
        lambda z: np.searchsorted(step, z).astype(float),
        lambda t: np.where(t < 0, -np.inf, step[np.clip(np.floor(t), 0, len(step) - 1).astype(int)]),
    )


LAWS = {
    "normal": Law(lambda z: z, lambda t: t),
    "exponential": Law(lambda z: -log_ndtr(-z), lambda t: -ndtri(np.exp(-np.maximum(t, 0)))),
    "lognormal": Law(lambda z: np.exp(1.5 * z), lambda t: np.log(np.maximum(t, 1e-300)) / 1.5),
    "Pareto, no variance": Law(
        lambda z: np.exp(-log_ndtr(-z) / 1.5), lambda t: -ndtri(np.minimum(np.maximum(t, 1) ** -1.5, 1))
    ),
    "uniform": Law(ndtr, lambda t: ndtri(np.clip(t, 0, 1))),
    "mixture": _mixture(),
    "ties (Poisson)": _poisson(),
}


def apart(law: Law) -> float:
    """From the median to where one good part in 44 is above: two standard deviations of the normal."""
    low, high = law.score(np.array([0.0, 2.0]))
    return float(high - low)


def parts_of(random: np.random.Generator, repeats: int, n: int, views: int, alike: float) -> Array:
    """Standard normal numbers (repeats, n, views), those of a part correlated by `alike`."""
    own = random.standard_normal((repeats, n, views))
    return own if views == 1 else np.sqrt(alike) * random.standard_normal((repeats, n, 1)) + np.sqrt(1 - alike) * own


def passed(views: int, alike: float) -> Callable[[Array], Array]:
    """P(one of the views of a new part is above z), as a function of z; by integration over what they share."""
    if views == 1:
        return lambda z: ndtr(-z)
    grid, common = np.linspace(-7, 8, 3001), np.linspace(-8, 8, 1001)
    weight = np.exp(-(common**2) / 2) / np.exp(-(common**2) / 2).sum()
    above = np.array([1 - weight @ ndtr((z - np.sqrt(alike) * common) / np.sqrt(1 - alike)) ** views for z in grid])
    return lambda z: np.interp(z, grid, above)


def thresholds(scores_RN: Array, k: int) -> Array:
    """As Calibration.from_good, one a row: the k-th largest and its margin."""
    order_R = np.partition(scores_RN, -k, axis=1)[:, -k]
    return order_R + MARGIN * np.maximum(np.abs(order_R), scores_RN.std(axis=1))


def same(found: Array, expected: Sequence[float]) -> None:
    if not np.allclose(found[: len(expected)], expected, rtol=1e-12, atol=1e-12):
        raise AssertionError(f"the shortcut gives {found[: len(expected)]}, the package {expected}")


def calibrated(scores_RNV: Array, **options: Any) -> list[Calibration]:
    """By the package: the first few."""
    names = [f"part {i}" for i in range(scores_RNV.shape[1]) for _ in range(scores_RNV.shape[2])]
    return [
        Calibration.from_good(names, row.ravel().tolist(), row.ravel().tolist(), **options)
        for row in scores_RNV[:CHECKED]
    ]


def false_alarms(repeats: int, confidence: float | None) -> list[dict[str, Any]]:
    rows = []
    for views, alike in VIEWS:
        rate = passed(views, alike)
        for name, law in LAWS.items():
            for n, asked in LEAST.items():
                random = np.random.default_rng([n, views, int(alike * 10), len(rows)])
                scores = law.score(parts_of(random, repeats, n, views, alike))
                target = max(0.01, 1 / (n + 1)) if confidence is None else asked
                k = rates.rank(target, n, confidence)
                at = thresholds(scores.max(axis=2), k)
                options = {} if confidence is None else {"false_alarm": target, "confidence": confidence}
                checked = calibrated(scores, **options)
                same(at, [c.threshold for c in checked])
                true = rate(law.back(at))
                row = {"law": name, "views": views, "alike": alike, "n": n, "target": target, "rank": k}
                row |= {"promised": k / (n + 1), "realised": float(true.mean())}
                row |= {"error": float(true.std() / np.sqrt(repeats)), "bound": checked[0].bound}
                row |= {"above_bound": float(np.mean(true > checked[0].bound))}
                rows.append(row | {"above_target": float(np.mean(true > target))})
    return rows


def average(repeats: int) -> list[dict[str, Any]]:
    return false_alarms(repeats, None)


def confidence(repeats: int) -> list[dict[str, Any]]:
    return false_alarms(repeats, 0.95)


def pictures(repeats: int) -> list[dict[str, Any]]:
    """Normal scores, three views, 5 % asked for: the unit is the part, or (asked for explicitly) the picture."""
    rows = []
    for alike in (0.5, 0.9):
        rate = passed(3, alike)
        for n in (20, 50, 99, 299):
            z = parts_of(np.random.default_rng([n, int(alike * 10)]), repeats, n, 3, alike)
            row: dict[str, Any] = {"n": n, "alike": alike, "target": 0.05}
            for unit, scores in (("part", z.max(axis=2)), ("picture", z.reshape(repeats, -1))):
                k = rates.rank(0.05, scores.shape[1])
                at = thresholds(scores, k)
                same(at, [c.threshold for c in calibrated(z, false_alarm=0.05, unit=unit)])
                true, own = rate(at), ndtr(-at)
                row[unit] = {"promised": k / (scores.shape[1] + 1), "realised": float(true.mean())}
                row[unit] |= {"worst": float(np.quantile(true, 0.95)), "of_pictures": float(own.mean())}
            rows.append(row)
    return rows


def _below(good: Array, defects: Array, margin: float) -> Array:
    """As policies.no_escape, one a row."""
    lowest = defects.min(axis=1)
    way = margin * np.maximum(lowest - np.median(good, axis=1), 0)
    return lowest - np.maximum(way, MARGIN * np.maximum(np.abs(lowest), good.std(axis=1)))


def _parts(row: Array, kinds: Sequence[str] = ()) -> Any:
    return by_part([str(i) for i in range(len(row))], row.tolist(), row.tolist(), kinds)


def _interval(n: int) -> Array:
    """(n + 1, 2): the exact interval for every count."""
    return np.array([rates.clopper_pearson(hits, n) for hits in range(n + 1)])


def escapes(repeats: int) -> list[dict[str, Any]]:
    """Good parts and defects follow the same law, the defects higher by what `apart` says."""
    rows, interval = [], _interval(GOOD)
    for name, law in LAWS.items():
        shift = apart(law)
        for n in KNOWN:
            random = np.random.default_rng([n, len(rows)])
            good = law.score(random.standard_normal((repeats, GOOD)))
            defects = law.score(random.standard_normal((repeats, n))) + shift
            for margin in (0.0, 0.2):
                at = _below(good, defects, margin)
                made = [policies.no_escape(_parts(good[i]), _parts(defects[i]), margin=margin) for i in range(CHECKED)]
                same(at, [c.threshold for c in made])
                missed, refused = ndtr(law.back(at - shift)), ndtr(-law.back(at))
                low, high = interval[(good > at[:, None]).sum(axis=1)].T
                bound = made[0].escape_bound or 0.0
                row = {"law": name, "n": n, "margin": margin, "bound": bound, "escape": float(missed.mean())}
                row |= {"covered": float(np.mean(missed <= bound)), "refused": float(refused.mean())}
                rows.append(row | {"interval": float(np.mean((low <= refused) & (refused <= high)))})
    return rows


def kinds(repeats: int) -> list[dict[str, Any]]:
    """Three kinds of ten parts; the threshold is set by all, or by the two others."""
    random, rows, each = np.random.default_rng(6), [], 10
    good = random.standard_normal((repeats, GOOD))
    defects = random.standard_normal((repeats, len(KINDS), each)) + np.array(KINDS)[:, None]
    for place, mean in enumerate(KINDS):
        others = np.delete(defects, place, axis=1).reshape(repeats, -1)
        at, bound = _below(good, others, 0.0), rates.upper(0, others.shape[1])
        names = [str(kind) for kind in KINDS for _ in range(each)]
        found = [policies.by_kind(_parts(good[i]), _parts(defects[i].ravel(), names)) for i in range(CHECKED)]
        same(at, [f[str(mean)][2] for f in found])
        unseen, known = ndtr(at - mean), np.mean([ndtr(at - m) for m in KINDS if m != mean], axis=0)
        row = {"mean": mean, "bound": bound, "covered": float(np.mean(known <= bound)), "known": float(known.mean())}
        rows.append(row | {"unseen_covered": float(np.mean(unseen <= bound)), "unseen": float(unseen.mean())})
    return rows


def costs(repeats: int) -> list[dict[str, Any]]:
    """As `escapes`: good parts and defects overlap, so that there is something to choose."""
    rows = []
    for name, law in LAWS.items():
        shift = apart(law)
        for n, m in ((20, 10), (50, 30), (99, 59)):
            random = np.random.default_rng([n, m, len(rows)])
            good = law.score(random.standard_normal((repeats, n)))
            defects = law.score(random.standard_normal((repeats, m))) + shift
            limits = {at: [np.array([limit(hits, size) for hits in range(size + 1)]) for size in (n, m)]
                      for at, limit in (("chosen", rates.anywhere), ("naive", rates.upper))}  # fmt: skip
            for price in (COST, REVIEWED):
                chosen = [policies.cheapest(g, d, price) for g, d in zip(good, defects, strict=True)]
                at = np.array([c.threshold for c in chosen])
                low = np.array([c.threshold if c.review is None else c.review for c in chosen])
                refused, missed = (good > at[:, None]).sum(axis=1), (defects <= low[:, None]).sum(axis=1)
                alarms, passing = ndtr(-law.back(at)), ndtr(law.back(low - shift))
                made = [policies.cost(_parts(good[i]), _parts(defects[i]), price) for i in range(CHECKED)]
                same(limits["chosen"][0][refused], [c.bound for c in made])
                same(limits["chosen"][1][missed], [c.escape_bound or 0.0 for c in made])
                row = {"law": name, "n": n, "m": m, "review": price.review is not None}
                for how, (by_good, by_bad) in limits.items():
                    row[f"{how}_alarms"] = float(np.mean(alarms <= by_good[refused]))
                    row[f"{how}_escapes"] = float(np.mean(passing <= by_bad[missed]))
                rows.append(row)
    return rows


def memory(repeats: int) -> list[dict[str, Any]]:
    import calibration_memory

    return calibration_memory.rows(repeats)


SECTIONS = {f.__name__: f for f in (average, confidence, pictures, escapes, kinds, costs, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=10_000)
    args = parser.parse_args()
    TABLE.parent.mkdir(exist_ok=True)
    found: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for name in args.only:
        if name in found:
            continue
        print(f"== {name}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        rows = SECTIONS[name](args.repeats)
        found[name] = {"rows": rows, "repeats": args.repeats, "seconds": round(time.monotonic() - begun, 1)}
        found[name] |= {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine()}
        TABLE.write_text(json.dumps(found, indent=1))
    between(PAGE, "<!-- simulated -->", "<!-- end simulated -->", calibration_pages.text(found))
    print(PAGE)


if __name__ == "__main__":
    main()
