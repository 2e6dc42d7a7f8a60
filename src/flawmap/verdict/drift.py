"""Drift: has the line changed since the calibration? A bet that is rarely won by chance, and control charts.

A threshold holds while the parts at the line are exchangeable with those that calibrated it. `Martingale` tests just
that, after every part, for as long as the line runs: it bets against exchangeability, and by Ville's inequality (1939)
a gambler who starts with 1 ever reaches 1/alpha with probability at most alpha when nothing has changed. p-values are
conformal (Vovk et al. 2005), the bets are the Simple Jumper of Vovk et al. 2021 ("Retrain or not retrain", PMLR 152).

**Each part is ranked among the calibration parts and all line parts before it**, ties broken at random: then the
p-values are independent and uniform on [0, 1] under exchangeability, which is what a fair bet needs. Ranks among the
calibration parts alone are uniform too, one at a time, but share the luck of one calibration: where its 30 parts came
out a little low, *every* part at the line looks a little strange, the bets go on winning, and the bound breaks.

That rests on calibration scores that are exchangeable with the line's. Those of a cross-fitted calibration are not:
each comes from a model without its fold, the line's from the model of all parts. `Martingale.of` starts empty there.

The charts (Shewhart, EWMA, p) watch score, brightness, sharpness and reject rate. They show what moved and how far;
their rate of false signals is an average run length, and rests on a distribution that is named at each.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawmap.errors import CalibrationError
from flawmap.verdict.calibration import Calibration

BETS = (-1.0, 0.0, 1.0)  # e of f_e(p) = 1 + e (p - 1/2): on small p-values, on none, on large ones
JUMP = 0.01
_BLOCK = 1024  # random numbers drawn at once
_D2 = 2 / math.sqrt(math.pi)  # mean range of two normal values, in standard deviations: 1.128
_MAD = 1.482602218505602  # 1 / the 75 % point of the normal distribution
_RULES = ("alpha", "every", "jump", "seed")
_KEYS = ("reference", *_RULES, "scores", "shares", "log_wealth", "log_peak", "log_recent", "alarm_at", "signal_at")


@dataclass(frozen=True, slots=True)
class Bet:
    """What one part did to the wealth."""

    p_value: float  # small: stranger than the parts before it
    log_wealth: float  # natural logarithm; 0 at the start
    log_recent: float  # the same of those who began to bet at any part so far, added up
    alarm: bool  # the wealth is, or has been, at least 1 / alpha
    signal: bool  # the recent wealth is, or has been, at least `every`


class Martingale:
    """The wealth of a bet against "these parts are exchangeable with the reference", part after part.

    reference  scores of calibration parts, one a part; may be empty (then only changes within the line are seen). They
               have to come from the model that judges the line: with scores of cross-fitting the bound is broken
    alpha      probability of ever giving an alarm while nothing changes
    every      parts: while nothing changes, the first signal comes after so many on average, or later
    seed       of the random numbers that break ties; the n-th part uses the n-th of them, so a restart changes nothing

    The alarm is for a day or a shift: a bet that is never won loses a little with every part (log wealth -5 after 1,000
    parts, -40 after 10,000), and a change must win that back. The signal is for a line that runs on: it is the
    Shiryaev-Roberts sum (R + 1) x gain, as if a new gambler began with 1 at every part, and does not tire; since R - n
    is a martingale, its first signal comes at `every` parts or later on average.

    Feed it the parts in their order, one score a part. It keeps every score: begin a new one with each calibration.
    Raises CalibrationError for scores that are not finite and rates outside (0, 1).
    """

    def __init__(
        self,
        reference: Sequence[float],
        *,
        alpha: float = 0.01,
        every: float = 100_000,
        jump: float = JUMP,
        seed: int = 0,
    ) -> None:
        for value, what in ((alpha, "alpha"), (jump, "the jumping rate")):
            if not 0 < value < 1:
                raise CalibrationError(f"{what} is {value}; give a rate between 0 and 1, such as 0.01")
        if seed < 0 or not 1 < every < math.inf:
            raise CalibrationError(f"the seed is {seed}, every {every}; give a seed of 0 or more and parts above 1")
        self.reference = [_finite(score, "a score of the reference") for score in reference]
        self.alpha, self.every, self.jump, self.seed = float(alpha), float(every), float(jump), int(seed)
        self.scores: list[float] = []  # of the line, in their order
        self.log_wealth = 0.0
        self.log_peak = 0.0  # of the wealth so far
        self.log_recent = -math.inf  # nobody has begun yet
        self.shares = [1 / len(BETS)] * len(BETS)  # of the wealth on each bet
        self.alarm_at: int | None = None  # number of the part that gave the alarm, from 1
        self.signal_at: int | None = None
        self._seen = sorted(self.reference)
        self._ties = np.empty(0)

    @classmethod
    def of(cls, calibration: Calibration, **rules: Any) -> Martingale:
        """For a line that feeds the parts judged OK; `rules`: alpha, every, jump, seed.

        The reference is the calibration's good parts that are judged OK, but for the one that set the threshold: it is
        the strangest of them by choice. Below it calibration and line are drawn alike.

        The reference is empty where scores are not exchangeable with the line's: cross-fitted (each from a model that
        lacks its fold), or of pictures in place of parts. The first parts of the line fill it. What was other than in
        calibration from the first part on stays unseen then, and a change is seen only after so many parts: 20 for 2
        standard deviations, 50 for 1 (docs/drift.md).
        """
        if calibration.cross_fitted or calibration.unit != "part":
            return cls([], **rules)
        if calibration.policy == "false-alarm":
            return cls(calibration.scores[: -calibration.rank], **rules)
        review = calibration.review_threshold
        passing = calibration.threshold if review is None else review
        return cls([score for score in calibration.scores if score <= passing], **rules)

    @property
    def alarm(self) -> bool:
        return self.alarm_at is not None

    def add(self, score: float) -> Bet:
        """One part more. Raises CalibrationError, and changes nothing, for a score that is not finite."""
        score = _finite(score, "the score of a part")
        p = self._p_value(score)
        insort(self._seen, score)
        self.scores.append(score)
        self.shares, gain = _bet(self.shares, p, self.jump)
        self.log_wealth += math.log(gain)
        self.log_peak = max(self.log_peak, self.log_wealth)
        self.log_recent = float(np.logaddexp(self.log_recent, 0)) + math.log(gain)
        if self.alarm_at is None and self.log_wealth >= -math.log(self.alpha):
            self.alarm_at = len(self.scores)
        if self.signal_at is None and self.log_recent >= math.log(self.every):
            self.signal_at = len(self.scores)
        return Bet(p, self.log_wealth, self.log_recent, self.alarm, self.signal_at is not None)

    def _p_value(self, score: float) -> float:
        """(parts that are stranger + u (parts as strange, itself counted)) / (parts, itself counted), u uniform."""
        place = len(self.scores) % _BLOCK
        if place == 0 or not len(self._ties):
            self._ties = np.random.default_rng((self.seed, len(self.scores) // _BLOCK)).random(_BLOCK)
        n = len(self._seen)
        upto = bisect_right(self._seen, score)
        same = upto - bisect_left(self._seen, score)
        return (n - upto + float(self._ties[place]) * (same + 1)) / (n + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back one with the same future."""
        state = {key: getattr(self, key) for key in _KEYS} | {"log_recent": self.log_recent if self.scores else None}
        return {key: list(value) if isinstance(value, list) else value for key, value in state.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Martingale:
        """Read what `to_dict` wrote: the scores are played again (15 us each), and what comes out must be what stands.

        Raises CalibrationError for anything missing, unknown, of another type, or that these scores do not give.
        """
        if not isinstance(values, Mapping):
            raise CalibrationError(f"state of a martingale: a {type(values).__name__}, no mapping; begin a new one")
        if wrong := sorted(set(_KEYS) ^ {str(key) for key in values}):
            raise CalibrationError(f"state of a martingale: missing or unknown {', '.join(wrong)}; begin a new one")
        try:
            read = cls(values["reference"], **{key: values[key] for key in _RULES})
            for score in values["scores"]:
                read.add(score)
            wrong = [key for key, value in read.to_dict().items() if not _same(value, values[key])]
        except (TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"state of a martingale: {error}; begin a new one") from error
        if wrong:
            raise CalibrationError(
                f"state of a martingale: its scores do not give this {', '.join(wrong)}: it was changed, cut or "
                "damaged; begin a new one"
            )
        return read


def _same(ours: Any, given: Any) -> bool:
    """Equal, and no True in place of 1."""
    if isinstance(ours, list):
        return isinstance(given, list) and len(ours) == len(given) and all(map(_same, ours, given))
    return not isinstance(given, bool) and bool(ours == given)


def online_p_values(reference: Sequence[float], scores: Sequence[float], seed: int = 0) -> np.ndarray:
    """(N,) conformal p-values of N line parts, each ranked among the reference and the parts before it."""
    line = Martingale(reference, seed=seed)
    return np.array([line.add(score).p_value for score in scores])


def log_wealth(p_values: Sequence[float] | np.ndarray, jump: float = JUMP) -> np.ndarray:
    """Natural logarithm of the wealth after each of the p-values, for arrays (..., N): what `Martingale` holds."""
    p = np.asarray(p_values, float)
    if not np.all((p >= 0) & (p <= 1)):
        raise CalibrationError("p-values are numbers from 0 to 1")
    if not 0 < jump < 1:
        raise CalibrationError(f"the jumping rate is {jump}; give a rate between 0 and 1, such as 0.01")
    shares: list[Any] = [np.full(p.shape[:-1], 1 / len(BETS)) for _ in BETS]
    path, total = np.empty_like(p), np.zeros(p.shape[:-1])
    for step in range(p.shape[-1]):
        shares, gain = _bet(shares, p[..., step], jump)
        total = total + np.log(gain)
        path[..., step] = total
    return path


def _bet(shares: list[Any], p: Any, jump: float) -> tuple[list[Any], Any]:
    """Shares of the wealth after a p-value, and by what the wealth has grown. Works on arrays too.

    Before the bet each share gives the rate `jump` to a pot that all of them divide equally (Vovk et al. 2021,
    algorithm 1). The wealth itself stays in logarithms, so that it neither overflows nor vanishes.
    """
    bets = [
        ((1 - jump) * share + jump / len(BETS)) * (1 + e * (p - 0.5)) for share, e in zip(shares, BETS, strict=True)
    ]
    gain = sum(bets)
    return [bet / gain for bet in bets], gain


@dataclass(frozen=True, slots=True)
class Limits:
    """Centre and spread of a value while all is well, and the limits of its Shewhart chart."""

    centre: float
    sigma: float
    low: float  # centre - width x sigma
    high: float
    parts: int


def limits(reference: Sequence[float] | np.ndarray, *, width: float = 3.0, robust: bool = False) -> Limits:
    """Limits of a chart of single values, from values in the order in which they came.

    Classical: the mean, and the mean moving range / 1.128 (Montgomery, chapter 6: individuals), which does not count a
    slow wander as spread. Robust: the median, and 1.4826 times the median absolute deviation, for a reference that may
    hold a few odd parts; the order does not matter then. Both give the standard deviation of normal values; with a
    width of 3 one normal value in 370 lies outside. Raises CalibrationError for values that are not finite, fewer than
    two, or no spread.
    """
    values = _array(reference, "the reference")
    if len(values) < 2:
        raise CalibrationError(f"{len(values)} values say nothing of a spread; give at least 2, better 25 or more")
    if not width > 0:
        raise CalibrationError(f"the width is {width}; give standard deviations, such as 3")
    if robust:
        centre = float(np.median(values))
        sigma = _MAD * float(np.median(np.abs(values - centre)))
    else:
        centre, sigma = float(values.mean()), float(np.abs(np.diff(values)).mean()) / _D2
    if not sigma > 0:
        how = "half of the values or more are" if robust else "all values are"
        raise CalibrationError(f"{how} {centre:g}: without a spread every other value would be a signal")
    return Limits(centre, sigma, centre - width * sigma, centre + width * sigma, len(values))


def shewhart(values: Sequence[float] | np.ndarray, chart: Limits) -> np.ndarray:
    """(N,) bool: which of N values lie outside the limits. Sees large, sudden changes, part by part."""
    x = _array(values, "the chart")
    return (x < chart.low) | (x > chart.high)


@dataclass(frozen=True, slots=True, eq=False)
class Ewma:
    """An EWMA chart: (N,) each."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    signals: np.ndarray  # bool


def ewma(values: Sequence[float] | np.ndarray, chart: Limits, *, weight: float = 0.2, width: float = 2.86) -> Ewma:
    """Exponentially weighted moving average of N values, with the exact limits of each (Montgomery, chapter 9).

    z_i = w x_i + (1 - w) z_(i-1), from the centre; its standard deviation is sigma sqrt(w / (2 - w) (1 - (1-w)^(2i))).
    Sees small, lasting changes. With 0.2 and 2.86 a normal line in control signals once in about 370 values, as often
    as a Shewhart chart does (Lucas and Saccucci 1990). Raises CalibrationError for values that are not finite.
    """
    from scipy.signal import lfilter

    x = _array(values, "the chart")
    if not (0 < weight <= 1 and width > 0):
        raise CalibrationError(f"weight is {weight} and width {width}; give a weight in (0, 1] and a width above 0")
    steps = np.arange(1, len(x) + 1)
    smooth = np.asarray(lfilter([weight], [1, weight - 1], x - chart.centre)) + chart.centre
    reach = width * chart.sigma * np.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * steps)))
    low, high = chart.centre - reach, chart.centre + reach
    return Ewma(smooth, low, high, (smooth < low) | (smooth > high))


def reject_limits(rate: float, parts: int, tail: float = 0.00135) -> tuple[int, int]:
    """Least and most rejects of so many parts that are no signal, at a known rate of rejects: a p-chart, exact.

    By the binomial distribution: fewer than the least, and more than the most, come with probability at most `tail`
    each (0.00135 is what 3 sigma leave out). The normal limits of the textbooks are wrong for rates of a per cent.
    """
    from scipy.stats import binom

    if not 0 < rate < 1 or not 0 < tail < 0.5:
        raise CalibrationError(f"the rate is {rate} and the tail {tail}; give a rate in (0, 1) and a tail below 0.5")
    if parts < 1:
        raise CalibrationError(f"{parts} parts make no rate; give at least 1")
    least = int(binom.ppf(tail, parts, rate))
    if binom.cdf(least, parts, rate) <= tail:  # the tail is met exactly
        least += 1
    return least, int(binom.isf(tail, parts, rate))


def p_chart(rejects: Sequence[int], parts: Sequence[int], rate: float, tail: float = 0.00135) -> np.ndarray:
    """(N,) bool: in which of N batches (shifts, hours) the count of rejects is a signal, against a known rate."""
    if len(rejects) != len(parts):
        raise CalibrationError(f"{len(rejects)} counts of rejects and {len(parts)} of parts: one of each a batch")
    found = []
    for count, n in zip(rejects, parts, strict=True):
        if not 0 <= count <= n:
            raise CalibrationError(f"{count} rejects of {n} parts is no proportion")
        least, most = reject_limits(rate, n, tail)
        found.append(not least <= count <= most)
    return np.array(found, bool)


def _array(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1:
        raise CalibrationError(f"{what} takes a list of values, not an array {x.shape}")
    if not np.isfinite(x).all():
        raise CalibrationError(f"{what}: {int(np.sum(~np.isfinite(x)))} of {len(x)} values are NaN or infinite")
    return x


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise CalibrationError(f"{what} is {value}: not a finite number, so nothing can rest on it")
    return float(value)
