"""Rates in exact words: what so many parts can say of a proportion, and which rank of theirs keeps a promise.

All of it is the beta distribution. Of n exchangeable scores the k-th largest is passed by a new one with probability
k / (n + 1) on average; given the n, that probability follows Beta(k, n + 1 - k) (for continuous scores; ties lower it).
Its quantile is the Clopper-Pearson limit for k - 1 hits of n, hence a tolerance limit (Wilks 1941).
"""

from __future__ import annotations

import math

from flawmap.errors import CalibrationError

CONFIDENCE = 0.95
FEW = 100  # hits


def clopper_pearson(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided exact interval of a proportion (Clopper and Pearson 1934); (0, 1) when n is 0."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    return low, upper(hits, n, 1 - tail)


def upper(hits: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper limit of a proportion: none of 30 gives 9.5 %. 1 when nothing or everything is a hit."""
    if not 0 <= hits <= n:
        raise CalibrationError(f"{hits} of {n} is no proportion")
    if hits == n:
        return 1.0
    if hits <= FEW:
        return _upper_of_few(hits, n, confidence)
    from scipy.special import betaincinv

    return float(betaincinv(hits + 1, n - hits, confidence))


def _upper_of_few(hits: int, n: int, confidence: float) -> float:
    """The rate at which so few hits have the probability 1 - confidence, by bisection.

    Every model that is loaded asks for it, and importing scipy.special takes longer than loading the model.
    """
    if hits == 0:
        return -math.expm1(math.log1p(-confidence) / n)
    ways, low, high = math.log(math.comb(n, hits)), 0.0, 1.0
    while low < (rate := (low + high) / 2) < high:
        term = total = 1.0
        for i in range(hits, 0, -1):  # the binomial's terms from `hits` down, in units of the first
            term *= i * (1 - rate) / ((n - i + 1) * rate)
            total += term
        at_most = ways + hits * math.log(rate) + (n - hits) * math.log1p(-rate) + math.log(total)
        low, high = (rate, high) if at_most > math.log1p(-confidence) else (low, rate)
    return rate


def anywhere(hits: int, n: int, confidence: float = CONFIDENCE) -> float:
    """As `upper`, for a threshold that was chosen by looking at the n scores themselves.

    Holds for all n ranks at once (Bonferroni), hence for whichever was chosen; it is therefore wider.
    """
    return upper(hits, n, 1 - (1 - confidence) / max(n, 1))


def rank(target: float, n: int, confidence: float | None = None) -> int:
    """The largest k for which the k-th largest of n scores keeps the target.

    On average over calibrations: k = floor(target (n + 1)). With a confidence: the false-alarm rate of this very
    calibration stays within the target with that confidence. Raises CalibrationError when n parts cannot promise it.
    """
    check_rate(target, "the target")
    if confidence is None:
        k = math.floor(target * (n + 1) * (1 + 1e-9))  # forgives the float error in products such as 0.29 * 100
    else:
        check_rate(confidence, "the confidence")
        k, beyond = 0, n + 1  # the limit grows with k: bisection
        while beyond - k > 1:
            middle = (k + beyond) // 2
            if upper(middle - 1, n, confidence) <= target * (1 + 1e-9):
                k = middle
            else:
                beyond = middle
    if k < 1:
        least, with_it = (
            (1 / (n + 1), "on average") if confidence is None else (upper(0, n, confidence), _sure(confidence))
        )
        raise CalibrationError(
            f"{n} good part{'s' * (n != 1)} cannot promise {percent(target)}: the least is {percent(least)} {with_it}; "
            f"{percent(target)} takes {least_parts(target, confidence)} parts"
        )
    return min(k, n)


def least_parts(target: float, confidence: float | None = None) -> int:
    """Fewest good parts that can promise `target` false alarms: 99 for 1 % on average, 299 with 95 % confidence."""
    check_rate(target, "the target")
    if confidence is None:
        return math.ceil(1 / (target * (1 + 1e-9))) - 1
    check_rate(confidence, "the confidence")
    return max(1, math.ceil(math.log1p(-confidence) / math.log1p(-target) * (1 - 1e-9)))


def check_rate(value: float, what: str) -> float:
    if not 0 < value < 1:
        raise CalibrationError(f"{what} {value} is not a rate between 0 and 1; write 1 % as 0.01")
    return float(value)


def percent(rate: float) -> str:
    """A rate in words, rounded up, for a promise must not be rounded down: "3.0 %", below one per cent "0.67 %"."""
    digits = 1 if rate >= 0.01 else 2
    steps = 10**digits
    return f"{math.ceil(round(rate * 100 * steps, 6)) / steps:.{digits}f} %"


def at_least(rate: float) -> str:
    """A lower limit in words, rounded down."""
    digits = 1 if rate >= 0.01 else 2
    steps = 10**digits
    return f"{math.floor(round(rate * 100 * steps, 6)) / steps:.{digits}f} %"


def _sure(confidence: float) -> str:
    return f"with {confidence * 100:g} % confidence"
