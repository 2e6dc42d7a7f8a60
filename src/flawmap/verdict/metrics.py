"""How well scores tell defects from good parts, against what a person says of a test set.

All of it ranks; none of it makes a verdict (see calibration). A metric without one of its two classes is None, never
0.5. These count pictures or parts; pixels.py counts pixels. docs/metrics.md says what each one means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flawmap.errors import DataError
from flawmap.types import GOOD, Verdict
from flawmap.verdict.curves import area, precision
from flawmap.verdict.rates import clopper_pearson


def auroc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float | None:
    """Area under the ROC curve, ties credited by half; labels are true where defective. None without both classes."""
    _, neg, pos = _falling(scores, labels)
    return area(neg, pos, np.zeros(len(neg), bool))[0] if neg.any() and pos.any() else None


def average_precision(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float | None:
    """Step-wise sum of (recall step) x (precision), ties merged. None without both classes."""
    _, neg, pos = _falling(scores, labels)
    return precision(neg, pos, np.zeros(len(neg), bool))[0] if neg.any() and pos.any() else None


def f1_max(
    scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> tuple[float | None, float | None]:
    """Largest F1 over all thresholds, and that threshold (score > threshold is defective).

    An oracle: it is tuned on the answers. An upper bound for comparison, never an operating point.
    """
    values, neg, pos = _falling(scores, labels)
    if not (neg.any() and pos.any()):
        return None, None
    tp, fp = np.cumsum(pos), np.cumsum(neg)
    f1 = 2 * tp / (tp + fp + tp[-1])
    best = int(np.argmax(f1))
    return float(f1[best]), float(np.nextafter(values[best], -np.inf))


def roc(
    scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """False-alarm rate, share of defects found, and threshold (score >= threshold is defective), from (0, 0) to (1, 1).

    One point a distinct score, the first at an infinite threshold. None without both classes.
    """
    values, neg, pos = _falling(scores, labels)
    if not (neg.any() and pos.any()):
        return None
    alarms, found = (np.concatenate([[0.0], np.cumsum(count) / count.sum()]) for count in (neg, pos))
    return alarms, found, np.concatenate([[np.inf], values])


def fpr_at_no_escape(
    scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> dict[str, Any] | None:
    """The false alarms at the highest threshold that lets no defect pass (score >= threshold is defective).

    An oracle, as f1_max: the lowest score of a defect is read off the answers. None without both classes.
    """
    values, defect = np.asarray(scores, float), np.asarray(labels, bool)
    if roc(values, defect) is None:
        return None
    threshold = float(values[defect].min())
    return _rate(values[~defect] >= threshold) | {"threshold": threshold}


def summary(
    scores: Sequence[float] | np.ndarray, kinds: Sequence[str | None], verdicts: Sequence[Verdict] | None = None
) -> dict[str, Any]:
    """Image-level figures of a test set, one entry a picture (or a part); each kind of defect against all good ones.

    Rates come with their two-sided 95 % Clopper-Pearson interval. Raises DataError for a score that is not finite and
    for a kind that is unknown.
    """
    if None in kinds:
        raise DataError(
            f"{list(kinds).count(None)} pictures of unknown kind: only pictures with an answer can be scored"
        )
    scores, kind = np.asarray(scores, float), np.asarray(kinds, str)
    defect = kind != GOOD
    given = None if verdicts is None else np.array([Verdict(v).value for v in verdicts], str)
    if given is not None and len(given) != len(kind):
        raise DataError(f"{len(given)} verdicts for {len(kind)} pictures: one of each a picture")
    best, threshold = f1_max(scores, defect)
    table = {}
    for name in sorted(set(kind[defect].tolist())):
        of_kind = kind == name
        against = of_kind | ~defect
        table[name] = {
            "n": int(of_kind.sum()),
            "auroc": auroc(scores[against], defect[against]),
            "escapes": None if given is None else int((given[of_kind] == Verdict.OK).sum()),
        }
    return {
        "good": int((~defect).sum()),
        "defective": int(defect.sum()),
        "i_auroc": auroc(scores, defect),
        "i_ap": average_precision(scores, defect),
        "f1_max_oracle": best,
        "f1_max_oracle_threshold": threshold,
        "kinds": table,
        "false_alarms": None if given is None else _rate(given[~defect] == Verdict.NOK),
        "escapes": None if given is None else _rate(given[defect] == Verdict.OK),
        "reviews": None if given is None else int((given == Verdict.REVIEW).sum()),
    }


def _falling(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, ...]:
    """Distinct scores, falling, with the number of good and of defective pictures at each."""
    values, defect = np.asarray(scores, float), np.asarray(labels, bool)
    if values.ndim != 1 or values.shape != defect.shape:
        raise DataError(f"scores are {values.shape} and labels {defect.shape}: one of each a picture")
    if not np.isfinite(values).all():
        raise DataError(f"{np.sum(~np.isfinite(values))} of {len(values)} scores are NaN or infinite")
    distinct, at = np.unique(-values, return_inverse=True)
    pos = np.bincount(at, defect, len(distinct))
    return -distinct, np.bincount(at, minlength=len(distinct)) - pos, pos


def _rate(hits: np.ndarray) -> dict[str, Any]:
    count, n = int(hits.sum()), len(hits)
    low, high = clopper_pearson(count, n)
    return {"count": count, "n": n, "rate": count / n if n else None, "low": low, "high": high}
