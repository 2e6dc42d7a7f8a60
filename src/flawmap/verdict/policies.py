"""Thresholds that rest on more than good parts: known defects, costs, a person's choice.

no-escape  just below the lowest known defective part, lower by a margin that is asked for
cost       the least expected cost a part, at the line's own rate of defects; with a cost of review, two thresholds
manual     a number that somebody chose
f1-oracle  the best F1 on the answers; for comparison with published tables, never an operating point

Each says what it promises and what it cannot. Good parts, when they did not choose the threshold, are a plain sample
of false alarms (Clopper-Pearson); where they did, the bound holds for all thresholds at once (rates.anywhere).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flawmap.errors import CalibrationError
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.parts import MARGIN, Parts, above, caveats, finite
from flawmap.verdict.rates import anywhere, at_least, check_rate, clopper_pearson, percent, upper

FLAT = 0.1  # thresholds are as good as the best when they cost at most so much more


@dataclass(frozen=True)
class Costs:
    """What a mistake costs, in any unit, and how often a part is defective at the line, not in the test set."""

    escape: float
    reject: float
    defect_rate: float
    review: float | None = None  # of a part that a person looks at, who is then right

    def __post_init__(self) -> None:
        check_rate(self.defect_rate, "the defect rate")
        for what in ("escape", "reject", "review"):
            value = getattr(self, what)
            if value is not None and not 1e-12 <= value <= 1e12:
                raise CalibrationError(f"the cost of {what} is {value}: give a number above 0, at most 1e12")


class Choice(NamedTuple):
    """The least expected cost of a part, where it is, and how far one could go."""

    threshold: float
    cost: float
    flat: tuple[float, float]  # thresholds around it that cost at most a tenth more
    ratio: tuple[float, float]  # escape cost over reject cost for which it stays the best
    review: float | None = None


def no_escape(
    good: Parts, defects: Parts, *, margin: float = 0.0, cross_fitted: bool = False, **known: Any
) -> Calibration:
    """Just below the lowest known defective part, and by `margin` times its distance to the median good part lower.

    CalibrationError: no defects, or a margin that is no share.
    """
    if not 0 <= margin <= 1:
        raise CalibrationError(f"a margin of {margin}: give the share of the way to the median good part, from 0 to 1")
    threshold = _below(good, defects.scores, margin)
    left_out = by_kind(good, defects, margin)
    missed = [kind for kind, (escaped, _, _) in left_out.items() if escaped]
    n = len(defects.scores)
    words = (
        f"{_many(n, f'known defective {good.unit}')} set the threshold{' and a margin' if margin else ''}: with 95 % "
        f"confidence at most {percent(upper(0, n))} of defective {good.unit}s like {'these' if n > 1 else 'it'} escape "
        f"({percent(1 / (n + 1))} on average){_alarms(good, threshold, cross_fitted)}"
    )
    if len(left_out) > 1:
        words += (
            f"; each of the {len(left_out)} kinds left out in turn, {len(missed)} would have had escapes"
            f"{' (' + ', '.join(missed) + ')' if missed else ''}: nothing is promised for kinds that are not among them"
        )
    else:
        words += "; all of one kind: nothing is promised for others"
    return _made("no-escape", good, threshold, words, defects, cross_fitted=cross_fitted, closer=margin, **known)


def by_kind(good: Parts, defects: Parts, margin: float = 0.0) -> dict[str, tuple[int, int, float]]:
    """Leave one kind of defect out: (escaped, parts, threshold) of each kind at the threshold that the others set."""
    found = {}
    for kind in sorted(set(defects.kinds)):
        own = [s for s, k in zip(defects.scores, defects.kinds, strict=True) if k == kind]
        others = [s for s, k in zip(defects.scores, defects.kinds, strict=True) if k != kind]
        if others:
            threshold = _below(good, others, margin)
            found[kind] = (sum(s <= threshold for s in own), len(own), threshold)
    return found


def cost(good: Parts, defects: Parts, costs: Costs, *, cross_fitted: bool = False, **known: Any) -> Calibration:
    """The least of escape x defect_rate x P(escape) + reject x (1 - defect_rate) x P(false alarm), by the parts given.

    With a cost of review, a band between two thresholds goes to a person. Of equal costs the lowest threshold is taken.
    """
    choice = cheapest(good.scores, defects.scores, costs)
    n, m, passing = len(good.scores), len(defects.scores), choice.threshold if choice.review is None else choice.review
    refused, missed = (sum(s > choice.threshold for s in good.scores), sum(s <= passing for s in defects.scores))
    looked = ""
    if costs.review is not None:
        held = [sum(passing < s <= choice.threshold for s in parts.scores) for parts in (good, defects)]
        looked = f", {held[0]} good and {held[1]} defective ones go to review" if any(held) else ""
    prices = f"an escape of {costs.escape:g}, a false alarm of {costs.reject:g}"
    prices += "" if costs.review is None else f", a review of {costs.review:g}"
    ours, theirs = _many(n, f"good {good.unit}"), _many(m, f"known defective {good.unit}")
    words = (
        f"the least cost on these {good.unit}s, {choice.cost:.4g} each, at {prices} and {percent(costs.defect_rate)} "
        f"defective ones: {missed} of {theirs} escape (with 95 % confidence at most {percent(anywhere(missed, m))}), "
        f"{refused} of {ours} are refused (at most {percent(anywhere(refused, n))}){looked}; these bounds allow for "
        "the choice, the cost at the line will be higher"
    )
    if choice.review is None:
        words += f"{'' if costs.review is None else '; no review pays'}; {_robust(choice)}"
    words += caveats(good, cross_fitted)
    stated = {"escape": costs.escape, "reject": costs.reject, "defect_rate": costs.defect_rate}
    stated |= {"flat_low": choice.flat[0], "flat_high": choice.flat[1]}
    stated |= {} if costs.review is None else {"review": costs.review}
    return _made(
        "cost", good, choice.threshold, words, defects,
        cross_fitted=cross_fitted, costs=stated, review_threshold=choice.review, **known,
    )  # fmt: skip


def _robust(choice: Choice) -> str:
    (low, high), (least, most) = choice.flat, choice.ratio
    words = f"thresholds from {low:.4g} to {high:.4g} cost at most a tenth more, and this one is the best "
    if (least, most) == (0.0, np.inf):
        return words + "whatever the costs"
    times = f"{least:.3g} to {most:.3g} times" if most < np.inf else f"at least {least:.3g} times"
    return words + f"where an escape costs {times} as much as a false alarm"


def manual(
    good: Parts, threshold: float, defects: Parts | None = None, *, cross_fitted: bool = False, **known: Any
) -> Calibration:
    """A threshold that somebody chose, with what the parts say of it."""
    finite(threshold, "the threshold")
    words = "set by hand, which promises nothing by itself"
    if defects:
        n, missed = len(defects.scores), sum(s <= threshold for s in defects.scores)
        words += (
            f"; {missed} of {_many(n, f'known defective {good.unit}')} are not above it: with 95 % confidence at most "
        )
        words += f"{percent(upper(missed, n))} of such parts escape"
    words += f"{_alarms(good, threshold, cross_fitted)}; this is true only if the number was not read off these parts"
    return _made("manual", good, float(threshold), words, defects, cross_fitted=cross_fitted, **known)


def f1_oracle(good: Parts, defects: Parts, *, cross_fitted: bool = False, **known: Any) -> Calibration:
    """The best F1 with the answers known. An oracle: it depends on how many of the parts given are defective."""
    values = np.concatenate([good.scores, defects.scores])
    cuts = _between(values)
    g, d = _passing(good.scores, cuts), _passing(defects.scores, cuts)
    hits, alarms = len(defects.scores) - d, len(good.scores) - g
    f1 = 2 * hits / (hits + alarms + len(defects.scores))
    best = int(np.argmax(f1))
    words = (
        f"F1 ORACLE: {f1[best]:.3f}, the best over all thresholds with the answers known; for comparison only, "
        "promises nothing and is no operating point"
    )
    return _made("f1-oracle", good, float(cuts[best]), words, defects, cross_fitted=cross_fitted, **known)


def cheapest(good: Sequence[float], defects: Sequence[float], costs: Costs) -> Choice:
    """Over all thresholds between scores, below and above them."""
    if not len(good) or not len(defects):
        raise CalibrationError("the cost of a threshold takes good and defective parts")
    scores = np.unique(np.concatenate([good, defects]))
    cuts = _between(scores)
    passed_good, passed_bad = _passing(good, cuts) / len(good), _passing(defects, cuts) / len(defects)
    rate = costs.defect_rate
    escapes, rejects = rate * passed_bad, (1 - rate) * (1 - passed_good)
    total = costs.escape * escapes + costs.reject * rejects
    best = int(np.argmin(total))
    review = None
    if costs.review is not None:
        # A part costs a review unless it passes (below `low`) or is refused (above `high`): two sums, low <= high.
        passing = costs.escape * escapes - costs.review * (escapes + (1 - rate) * passed_good)
        refusing = costs.review * (escapes + (1 - rate) * passed_good) + costs.reject * rejects
        low = np.array([np.argmin(passing[: i + 1]) for i in range(len(cuts))])
        both = passing[low] + refusing
        best = int(np.argmin(both))
        review, total = float(cuts[low[best]]) if low[best] < best else None, both
    return Choice(
        float(cuts[best]), float(total[best]), _flat(cuts, scores, total, best), _ratios(escapes, rejects, best), review
    )


def _flat(cuts: np.ndarray, scores: np.ndarray, total: np.ndarray, best: int) -> tuple[float, float]:
    near = total <= total[best] * (1 + FLAT)
    low = high = best
    while low > 0 and near[low - 1]:
        low -= 1
    while high + 1 < len(near) and near[high + 1]:
        high += 1
    # A cut stands for all thresholds between two neighbouring scores.
    return float(scores[low - 1] if low else cuts[0]), float(scores[high] if high < len(scores) else cuts[-1])


def _ratios(escapes: np.ndarray, rejects: np.ndarray, best: int) -> tuple[float, float]:
    """Of escape to reject cost, for which no threshold is cheaper: where escapes x ratio + rejects is the least."""
    more, less = escapes - escapes[best], rejects[best] - rejects
    up, down = more > 0, more < 0
    low = max(np.max(less[up] / more[up], initial=0.0), 0.0)
    high = np.min(less[down] / more[down], initial=np.inf)
    return float(low), float(high)


def _between(values: np.ndarray) -> np.ndarray:
    """One threshold between each two neighbours, one below and one above all; ascending."""
    distinct = np.unique(np.asarray(values, float))
    spread = max(float(np.std(values)), abs(float(distinct[0])), abs(float(distinct[-1]))) or 1.0
    middle = distinct[:-1] + (distinct[1:] - distinct[:-1]) / 2
    return np.concatenate([[distinct[0] - MARGIN * spread], middle, [distinct[-1] + MARGIN * spread]])


def _passing(scores: Sequence[float], cuts: np.ndarray) -> np.ndarray:
    """How many are not above each of the cuts."""
    return np.searchsorted(np.sort(np.asarray(scores, float)), cuts, side="right")


def _below(good: Parts, defects: Sequence[float], margin: float) -> float:
    lowest, middle = min(defects), float(np.median(good.scores))
    scale = max(abs(lowest), float(np.std(good.scores)))
    below = lowest - max(margin * max(lowest - middle, 0.0), MARGIN * scale)
    return min(below, float(np.nextafter(lowest, -np.inf)))


def _alarms(good: Parts, threshold: float, cross_fitted: bool) -> str:
    n, refused = len(good.scores), sum(s > threshold for s in good.scores)
    low, high = clopper_pearson(refused, n)
    ours, above_it = _many(n, f"good {good.unit}"), f"{'is' if refused == 1 else 'are'} above it"
    return (
        f"; {refused} of {ours} {above_it}, so {at_least(low)} to {percent(high)} of good {good.unit}s are refused "
        f"(95 %){caveats(good, cross_fitted)}"
    )


def _made(
    policy: str, good: Parts, threshold: float, words: str, defects: Parts | None, *, cross_fitted: bool, **known: Any
) -> Calibration:
    rank = sum(score > threshold for score in good.scores) + 1
    # Of the good parts alone: a threshold that somebody chose must not say how exact an engine has to be.
    scale = above(good.scores, 1)[2]
    peaks = good.peaks
    # The mask is empty on as many of the good parts as pass; where none passes, on none.
    at, off = (peaks[-rank], 1) if rank <= len(peaks) else (peaks[0], -1)
    map_threshold = at + off * MARGIN * (max(abs(at), float(np.std(peaks))) or 1.0)
    return Calibration(
        policy=policy,
        target=None,
        rank=rank,
        parts=len(good.scores),
        views=good.views,
        threshold=threshold,
        map_threshold=map_threshold,
        margin=MARGIN * scale,
        scale=scale,
        scores=tuple(good.scores),
        unit=good.unit,
        rule=good.rule,
        peaks=tuple(peaks),
        sentence=words[0].upper() + words[1:] + _aside(known.get("set_aside", 0)) + ".",
        cross_fitted=cross_fitted,
        defect_scores=tuple(defects.scores) if defects else (),
        defect_kinds=tuple(defects.kinds) if defects else (),
        **{"data_sha256": "", "engine": "", "created": "", "images": len(good.scores), **known},
    )


def _aside(count: int) -> str:
    return f"; {_many(count, 'defective part')} with another number of views not counted" if count else ""


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def rebuilt(c: Calibration) -> Calibration:
    """The calibration that its own parts and wishes make: what was written by hand differs from it.

    CalibrationError where they make none.
    """
    good = Parts(list(c.scores), list(c.peaks or c.scores), [], c.views, c.unit, c.rule)
    bad = (
        Parts(list(c.defect_scores), list(c.defect_scores), list(c.defect_kinds), c.views) if c.defect_scores else None
    )
    same = ("images", "data_sha256", "engine", "created", "min_area_px", "pitch_mm", "defects_sha256", "precision")
    known: dict[str, Any] = {name: getattr(c, name) for name in (*same, "cross_fitted")}
    if c.policy == "false-alarm":
        return Calibration.from_parts(good, false_alarm=c.target, confidence=c.confidence, **known)
    known["set_aside"] = c.set_aside
    if c.policy == "manual":
        return manual(good, c.threshold, bad, **known)
    if bad is None:
        raise CalibrationError(f"{c.policy} without known defects")
    if c.policy == "no-escape":
        return no_escape(good, bad, margin=c.closer, **known)
    if c.policy == "f1-oracle":
        return f1_oracle(good, bad, **known)
    stated = {name: c.costs[name] for name in ("escape", "reject", "defect_rate", "review") if name in c.costs}
    if not {"escape", "reject", "defect_rate"} <= stated.keys():
        raise CalibrationError("cost without its costs")
    return cost(good, bad, Costs(**stated), **known)
