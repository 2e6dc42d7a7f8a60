"""A map above its threshold: a mask, and the connected patches of it."""

from __future__ import annotations

import numpy as np

from flawmap.errors import DataError
from flawmap.types import Region


def binary(map: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: where the map is above the threshold. Raises DataError for a map with NaN or of another shape."""
    if map.ndim != 2:
        raise DataError(f"a map is (H, W), this one is {map.shape}")
    if np.isnan(map).any():
        raise DataError("a map holds NaN: the detector failed on this picture")
    return map > threshold


def regions(map: np.ndarray, threshold: float, min_area_px: int = 0) -> tuple[Region, ...]:
    """The 8-connected patches above the threshold of at least `min_area_px`, highest peak first.

    A centroid is the mean of the pixels' column and row numbers.
    """
    from scipy import ndimage

    labels, count = ndimage.label(binary(map, threshold), structure=np.ones((3, 3)))  # type: ignore[misc]
    every = np.arange(1, count + 1)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    centres = ndimage.center_of_mass(np.ones(map.shape), labels, every)
    peaks = ndimage.maximum(map, labels, every)
    found = [
        Region(
            box=(columns.start, rows.start, columns.stop, rows.stop),
            area_px=int(area),
            centroid=(float(x), float(y)),
            peak=float(peak),
        )
        for (rows, columns), area, (y, x), peak in zip(ndimage.find_objects(labels), areas, centres, peaks, strict=True)
        if area >= min_area_px
    ]
    return tuple(sorted(found, key=lambda region: -region.peak))
