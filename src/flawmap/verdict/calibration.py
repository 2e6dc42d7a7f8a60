"""Calibration: the only road from a score to a verdict, made from good parts held out of fitting.

Split conformal prediction with one order statistic (Vovk et al. 2005; Laxhammar 2014; Bates et al. 2021,
arXiv 2104.08279). Of n good parts the k-th largest score, k = floor(target * (n + 1)), is the threshold. If the parts
at the line are exchangeable with these, a good part is refused with probability at most k / (n + 1) on average over
calibrations; for one given calibration that probability follows Beta(k, n + 1 - k).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from flawmap.errors import BundleError, CalibrationError
from flawmap.types import Verdict

DEFAULT_TARGET = 0.01
# The engines agree to 1e-4 of the score scale. Ten times that above the order statistic, rounding cannot flip the
# verdict of the very part that set the threshold. A higher threshold only lowers false alarms: the promise stays valid.
MARGIN = 1e-3
_LARGEST = float(np.finfo(np.float32).max)
_JSON = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "tuple[int, int]": list,
    "tuple[float, ...]": list,
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, the good parts it rests on, and what it promises in words."""

    policy: str  # "false-alarm": the share of good parts refused is held below the target
    target: float  # asked for; by default max(1 %, 1 / (parts + 1))
    rank: int  # k: the threshold stands at the k-th largest part score
    parts: int  # n
    images: int
    views: tuple[int, int]  # least and most views a part
    threshold: float  # a part whose score is above it is NOK
    map_threshold: float  # a pixel whose map value is above it is marked
    margin: float  # how far the threshold stands above the order statistic
    scale: float  # the larger of |order statistic| and the standard deviation of the part scores
    scores: tuple[float, ...]  # one a part (largest over its views), ascending
    sentence: str
    cross_fitted: bool
    data_sha256: str
    engine: str
    created: str  # ISO 8601

    @classmethod
    def from_good(
        cls,
        parts: Sequence[str],
        scores: Sequence[float],
        peaks: Sequence[float],
        *,
        false_alarm: float | None = None,
        cross_fitted: bool = False,
        data_sha256: str = "",
        engine: str = "",
        created: str = "",
    ) -> Calibration:
        """Calibrate on good pictures; `parts`, `scores`, `peaks` hold one entry a picture.

        A peak is the largest value of a picture's map. Part names tell which pictures are views of one part.
        Raises CalibrationError for values that are not finite, no parts, or a target that n parts cannot promise.
        """
        part_scores, counts = _by_part(parts, scores, "score")
        part_peaks, _ = _by_part(parts, peaks, "map peak")
        n = len(part_scores)
        target = max(DEFAULT_TARGET, 1 / (n + 1)) if false_alarm is None else float(false_alarm)
        k = _rank(target, n)
        threshold, margin, scale = _above(part_scores, k)
        views = (min(counts), max(counts))
        return cls(
            policy="false-alarm",
            target=target,
            rank=k,
            parts=n,
            images=len(parts),
            views=views,
            threshold=threshold,
            # The same rank on the largest map value: the mask is empty on the promised share of good parts.
            map_threshold=_above(part_peaks, k)[0],
            margin=margin,
            scale=scale,
            scores=tuple(part_scores),
            sentence=_sentence(k, n, views, cross_fitted),
            cross_fitted=cross_fitted,
            data_sha256=data_sha256,
            engine=engine,
            created=created,
        )

    @property
    def promise(self) -> float:
        """Largest false-alarm rate on average over calibrations: k / (n + 1)."""
        return self.rank / (self.parts + 1)

    @property
    def bound(self) -> float:
        """Largest false-alarm rate of this one calibration, with 95 % confidence."""
        return _bound(self.rank, self.parts)

    def verdict(self, scores: Sequence[float]) -> Verdict:
        """Judge one part by the scores of its views. Raises CalibrationError for a view too many, too few, or NaN."""
        least, most = self.views
        if not least <= len(scores) <= most:
            raise CalibrationError(
                f"the calibration judges parts of {_views(self.views)}, this part has {len(scores)}: "
                "give every view of the part, or calibrate on parts photographed the same way"
            )
        for score in scores:
            _finite(score, "the score of a view")
        return Verdict.NOK if max(scores) > self.threshold else Verdict.OK

    def p_value(self, score: float) -> float:
        """Conformal p-value of a part's score, (1 + #{s_i + margin >= score}) / (n + 1); NOK iff p <= k / (n + 1)."""
        _finite(score, "the part's score")
        below = bisect_left(self.scores, score, key=lambda s: s + self.margin)
        return (1 + self.parts - below) / (self.parts + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal calibration."""
        return asdict(self) | {"views": list(self.views), "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote. Raises BundleError for anything missing, unknown or inconsistent."""
        types = {f.name: str(f.type) for f in fields(cls)}
        if wrong := sorted(types.keys() ^ values.keys()):
            raise BundleError(f"calibration: missing or unknown {', '.join(map(repr, wrong))}; fit or calibrate again")
        for name, kind in types.items():
            value = values[name]
            if not isinstance(value, _JSON[kind]) or (isinstance(value, bool) and kind != "bool"):
                raise BundleError(f"calibration: {name} is {value!r}, not {kind}; fit or calibrate again")
        read = cls(**{**values, "views": tuple(values["views"]), "scores": tuple(values["scores"])})
        if not _consistent(read):
            raise BundleError("calibration: threshold, rank and part scores contradict each other; calibrate again")
        return read


def least_parts(target: float) -> int:
    """Fewest good parts with which `target` false alarms can be promised on average: 99 for 1 %."""
    _check_target(target)
    return math.ceil(1 / (target * (1 + 1e-9))) - 1


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval of a proportion (Clopper and Pearson 1934); (0, 1) when n is 0."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return low, high


def percent(rate: float) -> str:
    """A rate in words, rounded up, for a promise must not be rounded down: "3.0 %", below one per cent "0.67 %"."""
    digits = 1 if rate >= 0.01 else 2
    steps = 10**digits
    return f"{math.ceil(round(rate * 100 * steps, 6)) / steps:.{digits}f} %"


def _by_part(parts: Sequence[str], values: Sequence[float], what: str) -> tuple[list[float], list[int]]:
    """The largest value of each part, ascending, and each part's number of views."""
    if len(parts) != len(values):
        raise CalibrationError(f"{len(parts)} part names but {len(values)} values ({what}): one of each a picture")
    if len(parts) == 0:
        raise CalibrationError("no good parts to calibrate on: hold some out of fitting")
    views: dict[str, list[float]] = {}
    for part, value in zip(parts, values, strict=True):
        views.setdefault(part, []).append(_finite(value, f"the {what} of part {part!r}"))
    return sorted(max(v) for v in views.values()), [len(v) for v in views.values()]


def _finite(value: float, what: str) -> float:
    if not abs(value) <= _LARGEST:
        raise CalibrationError(f"{what} is {value}: not a finite number, so no verdict can rest on it")
    return float(value)


def _check_target(target: float) -> None:
    if not 0 < target < 1:
        raise CalibrationError(f"the target {target} is not a false-alarm rate between 0 and 1; write 1 % as 0.01")


def _rank(target: float, n: int) -> int:
    """k = floor(target * (n + 1)), forgiving the float error in products such as 0.29 * 100."""
    _check_target(target)
    k = math.floor(target * (n + 1) * (1 + 1e-9))
    if k < 1:
        raise CalibrationError(
            f"{n} good part{'s' * (n > 1)} cannot promise {percent(target)}: the least is {percent(1 / (n + 1))} on "
            f"average; {percent(target)} takes {least_parts(target)} parts"
        )
    return min(k, n)


def _above(values: list[float], k: int) -> tuple[float, float, float]:
    """Threshold, margin and scale for the k-th largest of ascending values."""
    order = values[-k]
    scale = max(abs(order), float(np.std(values)))
    margin = MARGIN * scale
    return order + margin, margin, scale


def _bound(k: int, n: int) -> float:
    # Beta.ppf(0.95; k, n + 1 - k): the upper end for k - 1 good parts refused of n, 5 % in its one tail.
    return clopper_pearson(k - 1, n, 0.90)[1]


def _views(views: tuple[int, int]) -> str:
    least, most = views
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{count} view{'s' * (most > 1)}"


def _sentence(k: int, n: int, views: tuple[int, int], cross_fitted: bool) -> str:
    words = (
        f"{n} good {'parts promise' if n > 1 else 'part promises'} at most {percent(k / (n + 1))} false alarms "
        f"on average over calibrations (95 % confidence: at most {percent(_bound(k, n))})"
    )
    if views[1] > 1:
        words += f"; a part's score is the largest over its {_views(views)}"
    if cross_fitted:
        words += (
            "; the scores come from cross-fitting, so the promise is approximate, checked by re-splitting "
            "(docs/promise.md)"
        )
    return words + "."


def _consistent(c: Calibration) -> bool:
    """Whether a calibration that was read can have been written by `to_dict`."""
    numbers = (*c.scores, c.target, c.threshold, c.map_threshold, c.margin, c.scale)
    return (
        c.policy == "false-alarm"
        and all(isinstance(x, int | float) and abs(x) <= 2 * _LARGEST for x in numbers)
        and len(c.views) == 2
        and all(isinstance(v, int) for v in c.views)
        and 1 <= c.views[0] <= c.views[1]
        and 1 <= c.rank <= c.parts == len(c.scores)
        and c.scores == tuple(sorted(c.scores))
        and c.margin >= 0
        and c.threshold == c.scores[-c.rank] + c.margin
    )
