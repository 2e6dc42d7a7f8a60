"""How well scores and maps tell defects from good parts, against what a person says of a test set.

All of it ranks; none of it makes a verdict (see calibration). A metric without one of its two classes is None, never
0.5. Pixels are pooled over all pictures, good ones included, and fit in bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flawmap.errors import DataError
from flawmap.types import GOOD, Verdict
from flawmap.verdict.calibration import clopper_pearson
from flawmap.verdict.curves import area, precision

PRO_LIMIT = 0.3  # MVTec AD integrates PRO up to this false-positive rate
_BUFFER_PX = 2**19


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
    nok = None if verdicts is None else np.array([v is Verdict.NOK for v in map(Verdict, verdicts)], bool)
    if nok is not None and len(nok) != len(kind):
        raise DataError(f"{len(nok)} verdicts for {len(kind)} pictures: one of each a picture")
    best, threshold = f1_max(scores, defect)
    table = {}
    for name in sorted(set(kind[defect].tolist())):
        of_kind = kind == name
        against = of_kind | ~defect
        table[name] = {
            "n": int(of_kind.sum()),
            "auroc": auroc(scores[against], defect[against]),
            "escapes": None if nok is None else int((~nok & of_kind).sum()),
        }
    return {
        "good": int((~defect).sum()),
        "defective": int(defect.sum()),
        "i_auroc": auroc(scores, defect),
        "i_ap": average_precision(scores, defect),
        "f1_max_oracle": best,
        "f1_max_oracle_threshold": threshold,
        "kinds": table,
        "false_alarms": None if nok is None else _rate(nok[~defect]),
        "escapes": None if nok is None else _rate(~nok[defect]),
    }


class PixelMetrics:
    """Pixel AUROC, average precision and PRO of a test set, added picture by picture.

    PRO by MVTec's official rule (Bergmann et al. 2021): 8-connected components, each pixel weighing 1 / size of its
    component; false-positive rate over all good pixels of all pictures; area to 0.3 with the last point interpolated,
    divided by 0.3. Every distinct map value is a threshold while there are at most `cap` of them. Beyond, neighbouring
    values share a bin (lowest bits of their float32 dropped), and each metric comes with the largest error this can
    make. Memory: about 150 MB at the default `cap`, and 20 bytes a pixel of the largest picture.
    """

    def __init__(self, cap: int = 2**19) -> None:
        self._cap = cap
        self._shift = 0  # low bits given up
        self._bins = _NOTHING
        self._good: list[np.ndarray] = []  # keys of good pixels, to be merged
        self._defect: list[tuple[np.ndarray, np.ndarray]] = []  # keys and weights of defect pixels, to be merged
        self._buffered = 0
        self._components = 0
        self._unmasked = 0

    def add(self, map: np.ndarray, mask: np.ndarray | None = None, *, good: bool) -> None:
        """One picture: (H, W) float32, (H, W) bool. A good one needs no mask; a defective one without makes all None.

        Raises DataError for a map that is not finite, a mask of another size, or a mask with defects on a good picture.
        """
        keys = _keys(map)
        if mask is None:
            self._unmasked += not good
            mask = np.zeros(keys.shape, bool)
        mask = np.asarray(mask, bool)
        if mask.shape != keys.shape:
            raise DataError(f"the map is {keys.shape} and its mask {mask.shape}: bring the map to the mask's size")
        if good and mask.any():
            raise DataError("a good picture has a mask with defect pixels: mend its label or its mask")
        if self._unmasked:
            return
        if mask.any():
            weights, components = _component_weights(mask)
            self._components += components
            self._defect.append((keys[mask], weights))
        self._good.append(keys[~mask])
        self._buffered += keys.size
        if self._buffered >= _BUFFER_PX:
            self._flush()

    def result(self) -> dict[str, Any]:
        """p_auroc, p_ap and pro, each with its largest error (0.0: exact), or None and `why`; and what was counted."""
        self._flush()
        bins = self._bins
        neg, pos, weight = bins.neg[::-1], bins.pos[::-1], bins.weight[::-1]
        mixed = (bins.lo != bins.hi)[::-1]
        why = None
        if self._unmasked:
            why = f"{self._unmasked} of the defective pictures {'has' if self._unmasked == 1 else 'have'} no mask"
        elif not pos.any():
            why = "no picture has a defect pixel"
        elif not neg.any():
            why = "no picture has a good pixel"
        names = ("p_auroc", "p_ap", "pro")
        found = [(None, None)] * 3
        if why is None:
            found = [area(neg, pos, mixed), precision(neg, pos, mixed), area(neg, weight, mixed, PRO_LIMIT)]
        values = {name: value for name, (value, _) in zip(names, found, strict=True)}
        errors = {f"{name}_error": error for name, (_, error) in zip(names, found, strict=True)}
        counts = {"good_pixels": int(neg.sum()), "defect_pixels": int(pos.sum()), "components": self._components}
        if self._unmasked:
            counts = dict.fromkeys(counts)
        return {**values, **errors, **counts, "why": why}

    def _flush(self) -> None:
        for keys in _pieces(self._good):
            self._merge(_Bins.of(keys))
        for keys, weights in zip(*map(_pieces, zip(*self._defect, strict=True)), strict=True):
            self._merge(_Bins.of(keys, weights))
        self._good, self._defect, self._buffered = [], [], 0

    def _merge(self, more: _Bins) -> None:
        self._bins = self._bins.join(more, self._shift)
        while len(self._bins.lo) > self._cap:
            self._shift += 1
            self._bins = self._bins.join(_NOTHING, self._shift)


class _Bins(NamedTuple):
    """Counts in order of rising map value."""

    lo: np.ndarray  # (N,) uint32: smallest key in the bin
    hi: np.ndarray  # (N,) uint32: largest key in the bin; the bin is one value where lo == hi
    neg: np.ndarray  # (N,) int64: good pixels
    pos: np.ndarray  # (N,) int64: defect pixels
    weight: np.ndarray  # (N,) float64: sum over the defect pixels of 1 / size of their component

    @classmethod
    def of(cls, keys: np.ndarray, weights: np.ndarray | None = None) -> _Bins:
        """One bin a distinct key: of good pixels, or of defect pixels with their weights."""
        if weights is None:
            key, count = np.unique(keys, return_counts=True)
            return cls(key, key, count, np.zeros_like(count), np.zeros(len(key)))
        key, at, count = np.unique(keys, return_inverse=True, return_counts=True)
        return cls(key, key, np.zeros_like(count), count, np.bincount(at, weights))

    def join(self, other: _Bins, shift: int) -> _Bins:
        """Both together; keys that differ only in the lowest `shift` bits share a bin."""
        lo = np.concatenate([self.lo, other.lo])
        order = np.argsort(lo, kind="stable")  # two sorted runs: a linear merge
        group = lo[order] >> np.uint32(shift)
        start = np.flatnonzero(np.diff(group, prepend=~group[:1]))  # prepended: anything but the first group
        columns = (np.concatenate(pair)[order] for pair in zip(self, other, strict=True))
        joins = (np.minimum, np.maximum, np.add, np.add, np.add)
        return _Bins(*(join.reduceat(column, start) for join, column in zip(joins, columns, strict=True)))


_NOTHING = _Bins.of(np.empty(0, np.uint32))


def _keys(map: np.ndarray) -> np.ndarray:
    """uint32 that order as the float32 of the map do: flip all bits of a negative, the sign bit of the others."""
    with np.errstate(over="ignore"):
        values = np.asarray(map, np.float32) + np.float32(0)  # -0.0 becomes 0.0
    if values.ndim != 2:
        raise DataError(f"a map is (H, W), this one is {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("a map holds NaN or infinity: the detector failed on this picture")
    bits = values.view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _pieces(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same values in pieces of at most the buffer's size, so that one large picture takes no more room."""
    if not arrays:
        return []
    values = np.concatenate(arrays)
    return [values[i : i + _BUFFER_PX] for i in range(0, len(values), _BUFFER_PX)]


def _component_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """1 / size of its 8-connected component for each defect pixel in row order, and the number of components."""
    from scipy.ndimage import label

    labels, count = label(mask, structure=np.ones((3, 3)))  # type: ignore[misc]
    own = np.asarray(labels)[mask].astype(np.intp)
    return 1 / np.bincount(own)[own], int(count)


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
