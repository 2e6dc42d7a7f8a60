"""How far an AUROC, or the difference of two, could lie from the one found, had other parts been tested.

The percentile bootstrap (Efron 1979), over parts: pictures of one part resemble each other, so a part is drawn with all
its pictures. Parts with a defective picture and parts without are drawn apart, each as often as there are such parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawmap.errors import DataError

_AT_ONCE = 2**21  # weights of pictures, over so many draws as fit


def bootstrap(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[bool] | np.ndarray,
    parts: Sequence[str] | np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of the AUROC of pictures; one score, label (true where defective) and part name a picture.

    None with fewer than two parts of either class. It holds for other parts of this kind, not for other kinds of
    defect, and is too narrow for few parts. Raises DataError for unequal lengths and scores that are not finite.
    """
    found = _resampled([scores], labels, parts, draws, seed)
    return None if found is None else _middle(found[0], level)


def paired(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    labels: Sequence[bool] | np.ndarray,
    parts: Sequence[str] | np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of AUROC(after) - AUROC(before), two scores of the same pictures.

    Every draw of parts serves both, so that what is hard for both does not widen the interval. As `bootstrap` else.
    """
    found = _resampled([before, after], labels, parts, draws, seed)
    return None if found is None else _middle(found[1] - found[0], level)


def _resampled(
    scores: Sequence[Sequence[float] | np.ndarray],
    labels: Sequence[bool] | np.ndarray,
    parts: Sequence[str] | np.ndarray,
    draws: int,
    seed: int,
) -> list[np.ndarray] | None:
    """(draws,) AUROCs of each of the score lists, all under the same draws of parts."""
    lists, defect = [np.asarray(each, float) for each in scores], np.asarray(labels, bool)
    for values in lists:
        if not values.shape == defect.shape == (len(parts),):
            raise DataError(
                f"{len(values)} scores, {len(defect)} labels and {len(parts)} part names: one of each a picture"
            )
        if not np.isfinite(values).all():
            raise DataError(f"{np.sum(~np.isfinite(values))} of {len(values)} scores are NaN or infinite")
    names, part = np.unique(np.asarray(parts, str), return_inverse=True)
    strata = np.bincount(part, defect, len(names)) > 0
    if min(np.sum(strata), np.sum(~strata)) < 2:
        return None
    random, found = np.random.default_rng(seed), [[] for _ in lists]
    step = max(1, _AT_ONCE // len(defect))
    for begun in range(0, draws, step):
        times = np.empty((min(step, draws - begun), len(names)))
        for stratum in (strata, ~strata):
            n = int(stratum.sum())
            times[:, stratum] = random.multinomial(n, np.full(n, 1 / n), size=len(times))
        for values, aurocs in zip(lists, found, strict=True):
            aurocs.append(_weighted_auroc(values, defect, times[:, part]))
    return [np.concatenate(aurocs) for aurocs in found]


def _middle(found: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weighted_auroc(values: np.ndarray, defect: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) AUROC, ties credited by half, of the same (N,) scores under each of the weights (B, N)."""
    order = np.argsort(values)
    ranked = values[order]
    neg = np.where(defect, 0.0, weights)[:, order]
    below = np.concatenate([np.zeros((len(neg), 1)), np.cumsum(neg, axis=1)], axis=1)  # of the first 0..N scores
    pos = weights[:, defect]
    lower = below[:, np.searchsorted(ranked, values[defect], "left")]
    upto = below[:, np.searchsorted(ranked, values[defect], "right")]
    return np.sum(pos * (lower + upto), axis=1) / 2 / (pos.sum(axis=1) * below[:, -1])
