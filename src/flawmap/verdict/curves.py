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
