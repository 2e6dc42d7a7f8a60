"""How well maps point at defects: pixels of all pictures together, in bounded memory.

Pixels are pooled over all pictures, good ones included. Every figure comes with the largest error that the bounded
memory can have made; a figure that is undefined is None and says why. docs/metrics.md says what each one means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flawmap.errors import DataError
from flawmap.verdict.curves import area, best_f1, credit, log_area, precision

_BUFFER_PX = 2**23
_PIECE_PX = 2**18  # of defect pixels, which take eight times the room of a good one
_SKETCH = 4096  # order statistics that are kept of a defective picture
_POOLED = ("p_auroc", "p_ap", "pro", "p_f1_max_oracle", "iou_max_oracle")


class PixelMetrics:
    """Pixel AUROC, average precision, PRO, sPRO, AUPIMO, best F1 and IoU of a test set, added picture by picture.

    PRO by MVTec's official rule (Bergmann et al. 2021): 8-connected components, each pixel weighing 1 / size of its
    component; false-positive rate over all good pixels of all pictures; area to 0.3 with the last point interpolated,
    divided by 0.3. sPRO by that of MVTec LOCO (Bergmann et al. 2022): regions as given, each full at its saturation;
    area to 0.05. AUPIMO after Bertoldo et al. 2024 (arXiv 2401.01984): recall of each defective picture's mask over
    the log of the good pictures' mean false-positive rate, from 1e-5 to 1e-4.

    Every distinct map value is a threshold while there are at most `cap` of them among the good and `cap` among the
    defect pixels. Beyond, neighbouring values share a bin (lowest bits of their float32 dropped), and each metric comes
    with the largest error this can make. Memory: about 140 MB at the default `cap`, 16 kB a defective picture, and of a
    picture beyond 8 million pixels 20 bytes a good and 45 bytes a defect pixel.
    """

    PRO_LIMIT = 0.3  # false-positive rate up to which MVTec AD integrates PRO
    SPRO_LIMIT = 0.05  # the one of MVTec LOCO's limits that its paper reports
    AUPIMO_BAND = (1e-5, 1e-4)
    AUPIMO_POINTS = 30  # so many thresholds in the band, or fewer, do not resolve it: the authors' own rule

    def __init__(self, cap: int = 2**19) -> None:
        self._good = _Pile(2, cap)  # columns: pixels; of good pictures, 1 / size of the picture
        self._defect = _Pile(4, cap)  # columns: pixels; 1 / size of component; shares of regions; 1 / size of mask
        self._good_keys: dict[float, list[np.ndarray]] = {}  # by the weight of a pixel in the second column; unmerged
        self._defect_bins: list[_Bins] = []  # unmerged
        self._buffered = 0
        self._sketches: list[np.ndarray] = []  # (<= _SKETCH,) keys under the mask, one entry a defective picture
        self._components = self._regions = self._regionless = 0
        self._pictures = self._lost = self._unmasked = 0
        self._ignored = np.zeros(3, np.int64)  # pixels; pictures that have some; defective ones where no more is marked

    def add(
        self,
        map: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        good: bool,
        regions: Sequence[tuple[np.ndarray, float]] | None = None,
        ignored: np.ndarray | None = None,
    ) -> None:
        """One picture: (H, W) float32, (H, W) bool. A good one needs no mask; a defective one without makes all None.

        `regions` are what sPRO counts: each a mask (H, W) and how many of its pixels are enough. Together they are the
        mask, which may be left out then. A defective picture whose mask is empty (its crop lost the defect) counts as
        lost; its pixels are good ones. Pixels that are `ignored` (H, W) count nowhere, in a mask or region neither; a
        defective picture of which nothing else is marked is not lost, and its other pixels are good ones. Raises
        DataError for a map that is not finite, a mask of another size, a mask with defects on a good picture, and
        regions that are not the mask.
        """
        keys = _keys(map)
        regions = [(np.asarray(region, bool), saturation) for region, saturation in regions or ()]
        if regions:
            mask = _union(regions, mask, keys.shape)
        if mask is None:
            self._unmasked += not good
            mask = np.zeros(keys.shape, bool)
        mask = np.asarray(mask, bool)
        if mask.shape != keys.shape:
            raise DataError(f"the map is {keys.shape} and its mask {mask.shape}: bring the map to the mask's size")
        if (ignored := _ignored(ignored, keys.shape)) is not None:
            mask, regions = mask & ~ignored, [(region & ~ignored, enough) for region, enough in regions]
        defect = mask.any()
        if good and defect:
            raise DataError("a good picture has a mask with defect pixels: mend its label or its mask")
        if self._unmasked:
            return
        self._lost += not good and not defect and ignored is None
        self._add_outside(keys, mask if defect else None, ignored, good)
        self._buffered += keys.size
        if not good:
            self._add_defect(keys, mask, regions)
        if self._buffered >= _BUFFER_PX:
            self._flush()

    def result(self) -> dict[str, Any]:
        """Each metric with its largest error (NAME_error; 0.0: exact), or None and why; and what was counted.

        `why` is for all but spro and aupimo, which have their own `spro_why` and `aupimo_why`.
        """
        steps = self._steps()
        (neg, shared), (pos, weight, saturated, recall), mixed = steps.good, steps.defect, steps.mixed
        reasons = self._reasons()
        found: dict[str, tuple[float | None, float | None]] = dict.fromkeys((*_POOLED, "spro", "aupimo"), (None, None))
        if reasons["why"] is None:
            f1, more = best_f1(neg, pos, mixed)
            results = [
                area(neg, pos, mixed),
                precision(neg, pos, mixed),
                area(neg, weight, mixed, self.PRO_LIMIT),
                (f1, more),
                (_iou(f1), _iou(f1 + more) - _iou(f1)),
            ]
            found |= dict(zip(_POOLED, results, strict=True))
        if reasons["spro_why"] is None:
            found["spro"] = area(neg, saturated, mixed, self.SPRO_LIMIT)
        if reasons["aupimo_why"] is None:
            found["aupimo"] = log_area(shared, recall, mixed, *self.AUPIMO_BAND)
        counts = {
            "good_pixels": int(neg.sum()),
            "defect_pixels": int(pos.sum()),
            "components": self._components,
            "regions": self._regions,
            "lost": self._lost,
        }
        if self._ignored.any():
            counts |= dict(zip(("ignored_pixels", "ignoring", "only_ignored"), self._ignored.tolist(), strict=True))
        if self._unmasked:
            counts = dict.fromkeys(counts)
        values = {name: value for name, (value, _) in found.items()}
        errors = {f"{name}_error": error for name, (_, error) in found.items()}
        return {**values, **errors, "spro_limit": self.SPRO_LIMIT, **counts, **reasons}

    def aupimo_of_pictures(self) -> np.ndarray | None:
        """(D,) the AUPIMO of each defective picture in the order they were added, NaN where the mask is empty.

        None where `aupimo` is. Kept of a picture are 4,096 order statistics: beyond the bins' error, one of a larger
        mask is off by at most 1 / 8192.
        """
        steps = self._steps()
        if self._reasons()["aupimo_why"] is not None:
            return None
        found = credit(steps.good[1], *self.AUPIMO_BAND)[0][1::2][::-1]  # by rising map value
        places = [np.searchsorted(steps.lo, keys, "right") - 1 for keys in self._sketches]
        return np.array([found[at].mean() if len(at) else np.nan for at in places])

    def _add_outside(self, keys: np.ndarray, mask: np.ndarray | None, ignored: np.ndarray | None, good: bool) -> None:
        """The good pixels of a picture: all that are neither in its mask nor ignored."""
        if ignored is not None:
            self._ignored += np.array([np.count_nonzero(ignored), 1, mask is None and not good])
            mask = ignored if mask is None else mask | ignored
        outside = keys.ravel() if mask is None else keys[~mask]
        if len(outside):
            self._pictures += good
            self._good_keys.setdefault(1 / len(outside) if good else 0.0, []).append(outside)

    def _add_defect(self, keys: np.ndarray, mask: np.ndarray, regions: Sequence[tuple[np.ndarray, float]]) -> None:
        inside = keys[mask]
        n = len(inside)
        self._sketches.append(np.sort(inside)[_ranks(n)])
        if not n:
            return
        self._regionless += not regions
        self._regions += sum(bool(region.any()) for region, _ in regions)
        weights, components = _component_weights(mask)
        self._components += components
        columns = np.ones(n), weights, _saturating(keys, regions)[mask] if regions else np.zeros(n), np.full(n, 1 / n)
        for i in range(0, n, _PIECE_PX):
            part = slice(i, i + _PIECE_PX)
            self._defect_bins.append(_Bins(inside[part], inside[part], np.stack([c[part] for c in columns])))
            self._buffered += 8 * len(inside[part])
            if self._buffered >= _BUFFER_PX:
                self._flush()

    def _flush(self) -> None:
        self._good.add([self._good.counted(np.concatenate(k), share) for share, k in self._good_keys.items()])
        self._defect.add(self._defect_bins)
        self._good_keys, self._defect_bins, self._buffered = {}, [], 0

    def _steps(self) -> _Steps:
        """Good and defect pixels against each other. Good ones between two bins of defect pixels need no bins."""
        self._flush()
        good, defect, shift = self._good.bins, self._defect.bins, max(self._good.shift, self._defect.shift)
        if shift > self._defect.shift:
            defect, _ = _joined([defect], shift, self._defect.cap)
        group, edges = defect.lo >> np.uint32(shift), good.lo >> np.uint32(shift)
        first, end = (np.searchsorted(edges, group, side) for side in ("left", "right"))  # good bins of that group
        there = end > first
        lo, hi = defect.lo.copy(), defect.hi.copy()
        lo[there] = np.minimum(lo[there], good.lo[first[there]])
        hi[there] = np.maximum(hi[there], good.hi[end[there] - 1])
        size = 2 * len(group) + 1
        above = np.zeros((2, len(edges) + 1))  # of the good pixels, by how many of the highest bins are passed
        np.cumsum(good.sums[:, ::-1], axis=1, out=above[:, 1:])
        passed = np.full(size, len(edges))
        passed[0:-1:2], passed[1::2] = len(edges) - end[::-1], len(edges) - first[::-1]
        hits, mixed = np.zeros((4, size)), np.zeros(size, bool)
        hits[:, 1::2], mixed[1::2] = defect.sums[:, ::-1], (lo != hi)[::-1]
        return _Steps(defect.lo, np.diff(above[:, passed], prepend=0.0), hits, mixed)

    def _reasons(self) -> dict[str, str | None]:
        why = None
        if self._unmasked:
            why = f"{self._unmasked} of the defective pictures {'has' if self._unmasked == 1 else 'have'} no mask"
        elif not len(self._defect.bins.lo):
            why = "no picture has a defect pixel"
        elif not len(self._good.bins.lo):
            why = "no picture has a good pixel"
        spro = aupimo = why
        if why is None and not self._regions:
            spro = "no regions with their saturation were given"
        elif why is None and self._regionless:
            spro = f"{self._regionless} of the defective pictures came without regions"
        if why is None and not self._pictures:
            aupimo = "there is no good picture"
        elif why is None:
            low, high = self.AUPIMO_BAND
            shared = self._good.bins.sums[1][::-1]
            rate = np.cumsum(shared) / self._pictures
            points = int(np.sum((rate >= low) & (rate <= high) & (shared > 0)))
            if points <= self.AUPIMO_POINTS:
                aupimo = (
                    f"the good pictures give {points} thresholds at false-positive rates from {low:g} to {high:g}, and "
                    f"it takes more than {self.AUPIMO_POINTS}: add good pictures, or larger maps"
                )
        return {"why": why, "spro_why": spro, "aupimo_why": aupimo}


class _Bins(NamedTuple):
    """Sums over pixels, by their map value."""

    lo: np.ndarray  # (N,) uint32: smallest key in the bin
    hi: np.ndarray  # (N,) uint32: largest key in the bin; the bin is one value where lo == hi
    sums: np.ndarray  # (C, N) float64


class _Steps(NamedTuple):
    """By falling map value: the good pixels above a bin with defect pixels, that bin, and so on; last, those below.

    There are K such bins, and R = 2 K + 1 steps.
    """

    lo: np.ndarray  # (K,) uint32, rising: smallest key of a defect pixel in each bin
    good: np.ndarray  # (2, R)
    defect: np.ndarray  # (4, R)
    mixed: np.ndarray  # (R,) bool: the bin holds several values


class _Pile:
    """At most `cap` bins in order of rising map value; `shift` is how many low bits of the keys were given up."""

    def __init__(self, columns: int, cap: int) -> None:
        self.cap, self.shift = cap, 0
        none = np.empty(0, np.uint32)
        self.bins = _Bins(none, none, np.empty((columns, 0)))

    def counted(self, keys: np.ndarray, share: float) -> _Bins:
        """Bins of two columns: how many of the keys, and `share` times that. Sorts the keys in place."""
        keys.sort()
        self.shift = _least(keys, self.shift, self.cap)
        start = _starts(keys, self.shift)
        count = np.diff(start, append=len(keys)).astype(float)
        return _Bins(keys[start], keys[np.append(start[1:], len(keys)) - 1], np.stack([count, count * share]))

    def add(self, more: Sequence[_Bins]) -> None:
        if not more:
            return
        self.bins, self.shift = _joined([self.bins, *more], self.shift, self.cap)


def _least(keys: np.ndarray, shift: int, cap: int) -> int:
    """The least shift, from this one on, at which the sorted keys make no more than `cap` bins."""

    def fits(shift: int) -> bool:
        return int(np.count_nonzero(_changes(keys, shift))) < cap

    if len(keys) <= cap or fits(shift):
        return shift
    return bisect_left(range(32), True, lo=shift + 1, key=fits)


def _joined(parts: Sequence[_Bins], shift: int, cap: int) -> tuple[_Bins, int]:
    """All together, in at most `cap` bins: keys that differ only in the lowest `shift` bits, or more, share one."""
    lo = np.concatenate([bins.lo for bins in parts])
    if not len(lo):
        return parts[0], shift
    order = np.argsort(lo, kind="stable")  # sorted runs: a linear merge
    lo = lo[order]
    shift = _least(lo, shift, cap)
    start = _starts(lo, shift)
    hi = np.maximum.reduceat(np.concatenate([bins.hi for bins in parts])[order], start)
    columns = zip(*(bins.sums for bins in parts), strict=True)
    sums = np.stack([np.add.reduceat(np.concatenate(column)[order], start) for column in columns])
    return _Bins(lo[start], hi, sums), shift


def _starts(keys: np.ndarray, shift: int) -> np.ndarray:
    """Where in the sorted keys a bin begins."""
    return np.concatenate([[0], np.flatnonzero(_changes(keys, shift)) + 1])


def _changes(keys: np.ndarray, shift: int) -> np.ndarray:
    """Between which neighbours of the sorted keys one bin ends and the next begins: (N - 1,) bool."""
    group = keys >> np.uint32(shift) if shift else keys
    return group[1:] != group[:-1]


def _keys(map: np.ndarray) -> np.ndarray:
    """uint32 that order as the float32 of the map do: flip all bits of a negative, the sign bit of the others."""
    with np.errstate(over="ignore"):
        values = np.asarray(map, np.float32) + np.float32(0)  # -0.0 becomes 0.0
    if values.ndim != 2:
        raise DataError(f"a map is (H, W), this one is {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("a map holds NaN or infinity: the detector failed on this picture")
    flip = (values.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    return values.view(np.uint32) ^ flip


def _component_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """1 / size of its 8-connected component for each defect pixel in row order, and the number of components."""
    from scipy.ndimage import label

    labels, count = label(mask, structure=np.ones((3, 3)))  # type: ignore[misc]
    own = np.asarray(labels)[mask].astype(np.intp)
    return 1 / np.bincount(own)[own], int(count)


def _ignored(given: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """(H, W) bool, or None where nothing is ignored. Raises DataError for another size."""
    if given is None:
        return None
    ignored = np.asarray(given, bool)
    if ignored.shape != shape:
        raise DataError(f"the map is {shape} and what is ignored {ignored.shape}: bring the map to the mask's size")
    return ignored if ignored.any() else None


def _union(regions: Sequence[tuple[np.ndarray, float]], mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The regions together: (H, W) bool. Raises DataError where they or the mask do not fit."""
    found = np.zeros(shape, bool)
    for region, saturation in regions:
        if region.shape != shape:
            raise DataError(f"the map is {shape} and a region {region.shape}: bring the map to the regions' size")
        if not 0 < saturation < np.inf:
            raise DataError(f"a region's saturation is {saturation}: give the pixels that are enough, more than 0")
        found |= region
    if mask is not None and not np.array_equal(found, np.asarray(mask, bool)):
        raise DataError("the regions together are not the mask: leave the mask out, or mend one of them")
    return found


def _saturating(keys: np.ndarray, regions: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """(H, W): what each pixel adds, as the threshold falls, to the sum over regions of min(pixels found / enough, 1).

    The pixel of rank r in its region adds min(r + 1, s) / s - min(r, s) / s. Pixels of one value are found together, so
    their order does not matter. A saturation beyond the region's size counts as that size.
    """
    found = np.zeros(keys.shape)
    for region, saturation in regions:
        if not region.any():
            continue  # a crop lost it
        own = keys[region]
        enough = min(saturation, len(own))
        added = np.empty(len(own))
        added[np.argsort(own)[::-1]] = np.diff(np.minimum(np.arange(len(own) + 1), enough)) / enough
        found[region] += added
    return found


def _ranks(n: int) -> np.ndarray:
    """Which of n sorted values are kept: all, or the middle one of each of _SKETCH equal groups."""
    return np.arange(n) if n <= _SKETCH else ((np.arange(_SKETCH) + 0.5) * n / _SKETCH).astype(np.intp)


def _iou(f1: float) -> float:
    """TP / (TP + FP + FN) at the same threshold, which is also the best one for it."""
    return f1 / (2 - f1)
