"""Areas under curves, from counts in order of falling score.

Each function takes one entry a bin: `neg` and `hit` say how many good pixels (or pictures) and how much defect stand in
it. A bin is one score, so that ties are merged, or, where `mixed` says so, several scores whose order was given up;
then the error is what the best and the worst order inside these bins could change at most.
"""

from __future__ import annotations

import numpy as np


def area(neg: np.ndarray, hit: np.ndarray, mixed: np.ndarray, limit: float = 1.0) -> tuple[float, float]:
    """Area under (false-positive rate, hit rate) from 0 to `limit`, divided by `limit`, and its largest error.

    Trapezoids between the bins' ends, which credits ties by half; the last one is cut at `limit` by interpolation, as
    in MVTec's official PRO. With `hit` in defects this is AUROC, with `hit` in shares of components it is PRO.
    """
    x, y = (np.concatenate([[0.0], np.cumsum(counts, dtype=float)]) for counts in (neg, hit))
    x, y = x / x[-1], y / y[-1]
    last = int(np.searchsorted(x, limit))  # the first point at or beyond the limit: x[last - 1] < limit <= x[last]
    dx, dy = np.diff(x[: last + 1]), np.diff(y[: last + 1])
    share = (limit - x[last - 1]) / dx[-1]
    dx[-1] *= share
    rise = dy.copy()
    rise[-1] *= share
    total = float(np.sum(dx * (y[:last] + rise / 2))) / limit
    # Inside a mixed bin the true curve stays in its box (dx, dy); the trapezoid is at most this far from the corners.
    off = np.maximum(rise / 2, dy - rise / 2)
    return total, float(np.sum(dx * off * mixed[:last])) / limit


def precision(neg: np.ndarray, hit: np.ndarray, mixed: np.ndarray) -> tuple[float, float]:
    """Average precision, the sum of (recall step) x (precision), and its largest error."""
    from scipy.special import digamma

    tp, fp = np.cumsum(hit, dtype=float), np.cumsum(neg, dtype=float)
    some = hit > 0
    tp, fp, pos, n, mixed = tp[some], fp[some], hit[some], neg[some], mixed[some]
    value = pos * tp / (tp + fp)
    best = pos * tp / (tp + fp - n)  # the defects first and all equal
    # The defects last and one by one: the sum over i = 1..pos of (t + i) / (t + i + fp), with t those before the bin.
    worst = pos - fp * (digamma(tp + fp + 1) - digamma(tp - pos + fp + 1))
    error = max(np.sum((best - value)[mixed]), np.sum((value - worst)[mixed]), 0.0)
    return float(np.sum(value) / tp[-1]), float(error / tp[-1])


def best_f1(neg: np.ndarray, hit: np.ndarray, mixed: np.ndarray) -> tuple[float, float]:
    """Largest F1 over all thresholds, and by how much a threshold inside a mixed bin could exceed it."""
    tp, fp = np.cumsum(hit, dtype=float), np.cumsum(neg, dtype=float)
    value = float(np.max(2 * tp / (tp + fp + tp[-1])))
    best = 2 * tp / (tp + fp - neg + tp[-1])  # all defects of the bin, none of its good ones
    return value, max(float(np.max(best[mixed], initial=0.0)) - value, 0.0)


def credit(neg: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """What a hit in each bin adds to the area over log(false-positive rate) from `low` to `high`, divided by its width.

    That is the share of the band, on its logarithmic axis, at which the hit is found. Returns it and how far the best
    and the worst order inside the bin are from it at most. Inside a bin the curve is a straight line over the rate
    itself, which credits ties as a random order would.
    """
    x = np.concatenate([[0.0], np.cumsum(neg, dtype=float)])
    x = x / x[-1]
    last = int(np.searchsorted(x, high))  # bins from here on begin at or beyond the band and add nothing
    value, off = np.zeros(len(neg)), np.zeros(len(neg))
    start, end = x[:last], x[1 : last + 1]
    u, v = np.clip(start, low, high), np.clip(end, low, high)
    width = np.log(high / low)
    best, worst = np.log(high / u) / width, np.log(high / v) / width
    inside = (v - u) - start * np.log(v / u)  # integral of (x - start) dx / x over the bin's part of the band
    value[:last] = best
    np.divide(inside, (end - start) * width, out=value[:last], where=end > start)
    value[:last] += np.where(end > start, worst, 0.0)
    off[:last] = np.maximum(best - value[:last], value[:last] - worst)
    return value, off


def log_area(neg: np.ndarray, hit: np.ndarray, mixed: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Area under (log of the false-positive rate, hit rate) from `low` to `high`, divided by its width; its error."""
    value, off = credit(neg, low, high)
    total = float(np.sum(hit))
    return float(np.sum(hit * value)) / total, float(np.sum((hit * off)[mixed])) / total
