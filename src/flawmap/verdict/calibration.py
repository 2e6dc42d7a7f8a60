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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flawmap.errors import CalibrationError
from flawmap.types import Verdict
from flawmap.verdict.parts import Parts, above, by_part, caveats, finite, said_views
from flawmap.verdict.rates import CONFIDENCE, anywhere, check_rate, percent, rank, upper

DEFAULT_TARGET = 0.01
POLICIES = ("false-alarm", "no-escape", "cost", "manual", "f1-oracle")


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
    closer: float = 0.0  # of no-escape: its margin, a share of the way to the median good part
    set_aside: int = 0  # defective parts that were not counted, for another number of views than the good ones
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
        # no-escape without a margin and manual know nothing of the good parts; the others have looked at them.
        blind = self.policy in ("no-escape", "manual") and not self.closer
        return (upper if blind else anywhere)(self.refused, self.parts, sure)

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
            return "the calibration does not say with which engine it was made: calibrate again"
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
        from flawmap.verdict.stored import read

        return read(values)


def _sentence(k: int, good: Parts, crossed: bool, confidence: float | None) -> str:
    n, sure = len(good.scores), percent(upper(k - 1, len(good.scores), confidence or CONFIDENCE))
    average, level = percent(k / (n + 1)), f"{(confidence or CONFIDENCE) * 100:g} % confidence"
    promise = f"{n} good {good.unit}{'s promise' if n > 1 else ' promises'} at most "
    if confidence is None:
        words = f"{promise}{average} false alarms on average over calibrations ({level}: at most {sure})"
    else:
        words = f"{promise}{sure} false alarms with {level} ({average} on average over calibrations)"
    return words + caveats(good, crossed) + "."
