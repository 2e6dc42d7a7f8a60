"""Calibration: the only road from a score to a verdict, made from good parts held out of fitting.

The default policy, `false-alarm`, is split conformal prediction with one order statistic (Vovk et al. 2005; Laxhammar
2014; Bates et al. 2021, arXiv 2104.08279). Of n good parts the k-th largest score, k = floor(target (n + 1)), is the
threshold. If the parts at the line are exchangeable with these, a good part is refused with probability at most
k / (n + 1) on average over calibrations; for one given calibration that probability follows Beta(k, n + 1 - k), and
with a confidence k is the largest rank whose rate stays within the target in that share of calibrations (Wilks 1941).
The other policies are in policies.py. Everything counts parts; pictures only where that was asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import numpy as np

from flawmap.errors import BundleError, CalibrationError
from flawmap.types import Verdict
from flawmap.verdict.rates import CONFIDENCE, anywhere, check_rate, percent, rank, upper

DEFAULT_TARGET = 0.01
# The engines agree to 1e-4 of the score scale. Ten times that above the order statistic, rounding cannot flip the
# verdict of the very part that set the threshold. A higher threshold only lowers false alarms: the promise stays valid.
MARGIN = 1e-3
POLICIES = ("false-alarm", "no-escape", "cost", "manual", "f1-oracle")
RULES = ("largest", "mean")
UNITS = ("part", "picture")
_LARGEST = float(np.finfo(np.float32).max)
_NUMBER = (int, float)
_JSON: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": _NUMBER,
    "float | None": (*_NUMBER, type(None)),
    "bool": (bool,),
    "tuple[int, int]": (list,),
    "tuple[float, ...]": (list,),
    "tuple[str, ...]": (list,),
    "dict[str, float]": (dict,),
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, the parts it rests on, and what it promises in words."""

    policy: str  # one of POLICIES
    target: float | None  # of false-alarm: asked for; by default max(1 %, 1 / (parts + 1))
    rank: int  # k: so many good parts, less one, are above the threshold
    parts: int  # n good parts (or pictures, where `unit` says so)
    images: int
    views: tuple[int, int]  # least and most views a part
    threshold: float  # a part whose score is above it is NOK
    map_threshold: float  # a pixel whose map value is above it is marked
    margin: float  # what two engines may differ by; false-alarm stands so far above its order statistic
    scale: float  # the larger of |order statistic| and the standard deviation of the part scores
    scores: tuple[float, ...]  # of the good parts, ascending
    sentence: str
    cross_fitted: bool
    data_sha256: str
    engine: str
    created: str  # ISO 8601
    confidence: float | None = None  # of false-alarm: None is on average over calibrations
    review_threshold: float | None = None  # of cost: above it, and not above the threshold, a person looks
    unit: str = "part"
    rule: str = "largest"  # the score of a part with several views: the largest of theirs, or their mean
    peaks: tuple[float, ...] = ()  # of the maps of the good parts, ascending
    min_area_px: int = 1  # a marked region is at least so large
    pitch_mm: float | None = None  # of a pixel, for areas in mm2
    defect_scores: tuple[float, ...] = ()  # of known defective parts, ascending
    defect_kinds: tuple[str, ...] = ()  # theirs, in the same order
    costs: dict[str, float] = field(default_factory=dict)  # of cost: escape, reject, defect_rate, review
    defects_sha256: str = ""
    precision: str = "fp32"

    @classmethod
    def from_good(
        cls,
        parts: Sequence[str],
        scores: Sequence[float],
        peaks: Sequence[float],
        *,
        false_alarm: float | None = None,
        confidence: float | None = None,
        cross_fitted: bool = False,
        unit: str = "part",
        rule: str = "largest",
        **known: Any,
    ) -> Calibration:
        """The policy false-alarm, on good pictures; `parts`, `scores`, `peaks` hold one entry a picture.

        A peak is the largest value of a picture's map. Part names tell which pictures are views of one part. With a
        `confidence` the rate holds for this calibration, else on average. `known`: data_sha256, engine, created,
        min_area_px, pitch_mm. Raises CalibrationError for values that are not finite, no parts, or a target that n
        parts cannot promise.
        """
        good = by_part(parts, scores, peaks, unit=unit, rule=rule)
        how = {"false_alarm": false_alarm, "confidence": confidence, "cross_fitted": cross_fitted}
        return cls.from_parts(good, **how, images=len(parts), **known)

    @classmethod
    def from_parts(
        cls,
        good: Parts,
        *,
        false_alarm: float | None = None,
        confidence: float | None = None,
        cross_fitted: bool = False,
        **known: Any,
    ) -> Calibration:
        """The same on pictures that are parts already."""
        n, target = len(good.scores), false_alarm
        if target is None:
            least = 1 / (n + 1) if confidence is None else upper(0, n, check_rate(confidence, "the confidence"))
            target = max(DEFAULT_TARGET, least)
        k = rank(float(target), n, confidence)
        threshold, margin, scale = above(good.scores, k)
        return cls(
            policy="false-alarm",
            target=float(target),
            confidence=confidence,
            rank=k,
            parts=n,
            views=good.views,
            threshold=threshold,
            # The same rank on the largest map value: the mask is empty on the promised share of good parts.
            map_threshold=above(good.peaks, k)[0],
            margin=margin,
            scale=scale,
            scores=tuple(good.scores),
            peaks=tuple(good.peaks),
            sentence=_sentence(k, good, cross_fitted, confidence),
            cross_fitted=cross_fitted,
            unit=good.unit,
            rule=good.rule,
            **{"data_sha256": "", "engine": "", "created": "", "images": n, **known},
        )

    @property
    def refused(self) -> int:
        """How many of the good parts that calibrated are above the threshold."""
        return sum(score > self.threshold for score in self.scores)

    @property
    def promise(self) -> float | None:
        """Of false-alarm: the largest false-alarm rate on average over calibrations, k / (n + 1)."""
        return self.rank / (self.parts + 1) if self.policy == "false-alarm" else None

    @property
    def bound(self) -> float:
        """Largest false-alarm rate of this one calibration, with 95 % confidence (or the one that was asked for)."""
        sure = self.confidence or CONFIDENCE
        if self.policy == "false-alarm":
            return upper(self.rank - 1, self.parts, sure)
        # The threshold of no-escape and manual knows nothing of the good parts; cost and F1 have looked at them.
        limit = upper if self.policy in ("no-escape", "manual") else anywhere
        return limit(self.refused, self.parts, sure)

    @property
    def escape_bound(self) -> float | None:
        """Largest escape rate among defects like the known ones, with 95 % confidence; None where none are known."""
        n = len(self.defect_scores)
        if not n:
            return None
        passing = self.threshold if self.review_threshold is None else self.review_threshold
        # Just below the lowest of n defects, the escape rate follows Beta(1, n): the limit for none of n.
        limit = upper if self.policy in ("no-escape", "manual") else anywhere
        return limit(sum(score <= passing for score in self.defect_scores), n)

    def score(self, scores: Sequence[float]) -> float:
        """Of a part, by the scores of its views."""
        return float(np.mean(scores)) if self.rule == "mean" else max(scores)

    def verdict(self, scores: Sequence[float]) -> Verdict:
        """Judge one part by the scores of its views. Raises CalibrationError for a view too many, too few, or NaN."""
        least, most = self.views
        if self.unit == "part" and not least <= len(scores) <= most:
            raise CalibrationError(
                f"the calibration judges parts of {said_views(self.views)}, this part has {len(scores)}: "
                "give every view of the part, or calibrate on parts photographed the same way"
            )
        for score in scores:
            finite(score, "the score of a view")
        score = self.score(scores)
        if score > self.threshold:
            return Verdict.NOK
        return Verdict.REVIEW if self.review_threshold is not None and score > self.review_threshold else Verdict.OK

    def p_value(self, score: float) -> float:
        """Conformal p-value of a part's score, (1 + #{s_i + margin >= score}) / (n + 1).

        Under false-alarm a part is NOK if and only if its p-value is at most k / (n + 1).
        """
        finite(score, "the part's score")
        below = bisect_left(self.scores, score, key=lambda s: s + self.margin)
        return (1 + self.parts - below) / (self.parts + 1)

    def unfit(self, engine: str, same: Sequence[str] = ()) -> str | None:
        """Why the calibration does not hold for an engine, or None. `same`: engines that passed the parity gate."""
        made, now = self.engine.split(), engine.split()
        if not made or not now:
            return None
        if now[-1] != self.precision:
            return f"calibrated in {self.precision}, and {engine} computes in {now[-1]}: calibrate again"
        kin = {name.split()[0] for name in same if name.split()[-1:] == now[-1:]}
        if made[0] != now[0] and not {made[0], now[0]} <= kin:
            return f"calibrated with {self.engine}, and {engine} was never held against it: calibrate again"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal calibration."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote. Raises BundleError for anything missing, unknown or inconsistent."""
        known = {f.name: f for f in fields(cls)}
        needed = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
        if wrong := sorted((needed - values.keys()) | (values.keys() - known.keys())):
            raise BundleError(f"calibration: missing or unknown {', '.join(map(repr, wrong))}; fit or calibrate again")
        for name, value in values.items():
            kind = str(known[name].type)
            if not isinstance(value, _JSON[kind]) or (isinstance(value, bool) and kind != "bool"):
                raise BundleError(f"calibration: {name} is {value!r}, not {kind}; fit or calibrate again")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        read = cls(**plain)
        if not _consistent(read):
            raise BundleError("calibration: threshold, rank and part scores contradict each other; calibrate again")
        return read


@dataclass(frozen=True, slots=True)
class Parts:
    """Pictures as parts, ascending by score; the peaks ascend on their own."""

    scores: list[float]
    peaks: list[float]
    kinds: list[str]  # in the order of the scores
    views: tuple[int, int]
    unit: str = "part"
    rule: str = "largest"


def by_part(
    parts: Sequence[str],
    scores: Sequence[float],
    peaks: Sequence[float],
    kinds: Sequence[str] = (),
    *,
    unit: str = "part",
    rule: str = "largest",
) -> Parts:
    """Pictures as parts: the score by the rule, the peak the largest over the views, the kind that of a defective view.

    With the unit "picture" each picture is a part of its own. Raises CalibrationError for lengths that differ, values
    that are not finite, no parts, an unknown unit or rule.
    """
    for word, known in ((unit, UNITS), (rule, RULES)):
        if word not in known:
            raise CalibrationError(f"{word!r} is not one of {', '.join(known)}")
    for what, values in (("score", scores), ("map peak", peaks), *((("kind", kinds),) if kinds else ())):
        if len(parts) != len(values):
            raise CalibrationError(f"{len(parts)} part names but {len(values)} values ({what}): one of each a picture")
    if len(parts) == 0:
        raise CalibrationError("no good parts to calibrate on: hold some out of fitting")
    rows: dict[Any, list[int]] = {}
    for row, part in enumerate(parts):
        finite(scores[row], f"the score of part {part!r}")
        finite(peaks[row], f"the map peak of part {part!r}")
        rows.setdefault(row if unit == "picture" else part, []).append(row)
    one = (lambda s: float(np.mean(s))) if rule == "mean" else max
    scored = [float(one([scores[r] for r in group])) for group in rows.values()]
    kind = [next((kinds[r] for r in group if kinds[r] != "good"), "good") if kinds else "" for group in rows.values()]
    order = sorted(range(len(scored)), key=scored.__getitem__)
    counts = [len(group) for group in rows.values()]
    return Parts(
        [scored[i] for i in order],
        sorted(float(max(peaks[r] for r in group)) for group in rows.values()),
        [kind[i] for i in order],
        (min(counts), max(counts)),
        unit,
        rule,
    )


def above(values: Sequence[float], k: int) -> tuple[float, float, float]:
    """Threshold, margin and scale for the k-th largest of ascending values."""
    order = values[-k]
    scale = max(abs(order), float(np.std(values)))
    margin = MARGIN * scale
    return order + margin, margin, scale


def finite(value: float, what: str) -> float:
    if not abs(value) <= _LARGEST:
        raise CalibrationError(f"{what} is {value}: not a finite number, so no verdict can rest on it")
    return float(value)


def said_views(views: tuple[int, int]) -> str:
    least, most = views
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{count} view{'s' * (most > 1)}"


def _sentence(k: int, good: Parts, crossed: bool, confidence: float | None) -> str:
    n, sure = len(good.scores), percent(upper(k - 1, len(good.scores), confidence or CONFIDENCE))
    average, level = percent(k / (n + 1)), f"{(confidence or CONFIDENCE) * 100:g} % confidence"
    promise = f"{n} good {good.unit}{'s promise' if n > 1 else ' promises'} at most "
    if confidence is None:
        words = f"{promise}{average} false alarms on average over calibrations ({level}: at most {sure})"
    else:
        words = f"{promise}{sure} false alarms with {level} ({average} on average over calibrations)"
    return words + caveats(good, crossed) + "."


def caveats(good: Parts, crossed: bool) -> str:
    """What else a sentence has to say, before its full stop."""
    words = ""
    if good.unit == "picture":
        words += (
            "; this counts pictures, not parts: a part of several views is refused when one of them is, more often "
            "than that, and views of one part are not independent, so that even for pictures it promises too much"
        )
    elif good.views[1] > 1:
        the = "the largest over" if good.rule == "largest" else "the mean of"
        words += f"; a part's score is {the} its {said_views(good.views)}"
    if crossed:
        words += (
            "; the scores come from cross-fitting, so the promise is approximate, checked by re-splitting "
            "(docs/promise.md)"
        )
    return words


def _consistent(c: Calibration) -> bool:
    """Whether a calibration that was read can have been written by `to_dict`."""
    optional = [x for x in (c.target, c.confidence, c.review_threshold, c.pitch_mm) if x is not None]
    lists = (c.scores, c.peaks, c.defect_scores)
    numbers = (*(x for values in lists for x in values), c.threshold, c.map_threshold, c.margin, c.scale, *optional)
    sound = (
        c.policy in POLICIES
        and c.unit in UNITS
        and c.rule in RULES
        and all(isinstance(x, int | float) and abs(x) <= 2 * _LARGEST for x in (*numbers, *c.costs.values()))
        and len(c.views) == 2
        and all(isinstance(v, int) for v in c.views)
        and 1 <= c.views[0] <= c.views[1]
        and c.parts == len(c.scores)
        and len(c.peaks) in (0, c.parts)
        and all(values == tuple(sorted(values)) for values in lists)
        and len(c.defect_kinds) == len(c.defect_scores)
        and c.margin >= 0
        and c.min_area_px >= 1
        and (c.review_threshold is None or c.review_threshold <= c.threshold)
    )
    if not sound:
        return False
    if c.policy == "false-alarm":
        return 1 <= c.rank <= c.parts and c.target is not None and c.threshold == c.scores[-c.rank] + c.margin
    return c.rank == c.refused + 1
