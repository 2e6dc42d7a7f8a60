"""A map above its threshold: a mask, the connected patches of it, and how high a patch of some size stands."""

from __future__ import annotations

import numpy as np

from flawmap.errors import DataError
from flawmap.types import Region

_TOUCHING = np.ones((3, 3))  # 8-connected
_STEPS = (
    (1, 0),
    (0, 1),
    (-1, 0),
    (0, -1),
)  # (x, y) along a border: east, south, west, north; the patch is on the right
# (row, column) from a corner to the pixel ahead on the left and the one ahead on the right, for each of these.
_AHEAD = (((-1, 0), (0, 0)), ((0, 0), (0, -1)), ((0, -1), (-1, -1)), ((-1, -1), (-1, 0)))


def binary(map: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: where the map is above the threshold. Raises DataError for a map with NaN or of another shape."""
    if map.ndim != 2:
        raise DataError(f"a map is (H, W), this one is {map.shape}")
    if np.isnan(map).any():
        raise DataError("a map holds NaN: the detector failed on this picture")
    return map > threshold


def regions(
    map: np.ndarray, threshold: float, min_area_px: int = 1, pitch_mm: float | None = None
) -> tuple[Region, ...]:
    """The 8-connected patches above the threshold of at least `min_area_px`, highest peak first.

    A centroid is the mean of the pixels' column and row numbers. `pitch_mm` is the side of a pixel on the part.
    """
    above = binary(map, threshold)
    if not above.any():  # most pictures are good: they pay for no more than this
        return ()
    from scipy import ndimage

    (left, right), (top, bottom) = (np.flatnonzero(above.any(axis=axis))[[0, -1]].tolist() for axis in (0, 1))
    part = above[top : bottom + 1, left : right + 1]
    labels, count = ndimage.label(part, structure=_TOUCHING)  # type: ignore[misc]
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        if areas[number] < min_area_px:
            continue
        inside = labels[rows, columns] == number  # scipy.ndimage.maximum would sort the whole picture
        x, y, area = left + columns.start, top + rows.start, int(areas[number])
        high, wide = inside.shape
        found.append(
            Region(
                box=(x, y, x + wide, y + high),
                area_px=area,
                centroid=(
                    float(inside.sum(axis=0) @ np.arange(x, x + wide)) / area,
                    float(inside.sum(axis=1) @ np.arange(y, y + high)) / area,
                ),
                peak=float(map[y : y + high, x : x + wide].max(where=inside, initial=-np.inf)),
                contour=contour(inside, (x, y)),
                area_mm2=None if pitch_mm is None else float(area) * pitch_mm**2,
            )
        )
    return tuple(sorted(found, key=lambda region: -region.peak))


def peak(map: np.ndarray, min_area_px: int = 1) -> float:
    """The largest value that an 8-connected patch of `min_area_px` pixels reaches with all of them.

    No region of that size is marked by a threshold at it or above, and one is by any threshold below. For 1 px it is
    the largest value of the map; in general the maximum of the map's area opening (Vincent 1992).
    """
    if not (binary(map, -np.inf).all() and np.isfinite(map).all()):
        raise DataError("a map holds an infinite value: the detector failed on this picture")
    if not 1 <= min_area_px <= map.size:
        raise DataError(f"a region of {min_area_px} px does not fit a map of {map.shape[1]} x {map.shape[0]}")
    from scipy import ndimage

    if min_area_px == 1:
        return float(map.max())
    # What fewer pixels reach is too high, connected or not.
    most = np.partition(map.ravel(), -min_area_px)[-min_area_px]
    levels = np.unique(map[map <= most])
    low = 0
    beyond = len(levels)
    while beyond - low > 1:  # all pixels are at least levels[0], in one patch
        middle = (low + beyond) // 2
        labels, _ = ndimage.label(map >= levels[middle], structure=_TOUCHING)  # type: ignore[misc]
        if np.bincount(labels.ravel())[1:].max(initial=0) >= min_area_px:
            low = middle
        else:
            beyond = middle
    return float(levels[low])


def contour(region: np.ndarray, origin: tuple[int, int] = (0, 0)) -> tuple[tuple[int, int], ...]:
    """The corners of the outer border of one 8-connected patch, clockwise, as (x, y) on the grid between the pixels.

    `region` is (h, w) bool, `origin` the place of its upper left pixel. Holes are not told. The polygon's area is that
    of the patch and its holes.
    """
    wide = region.shape[1] + 2
    inside = np.pad(region, 1).tobytes()  # single look-ups are several times faster than in an array
    ahead = [[y * wide + x for y, x in both] for both in _AHEAD]
    start = (inside.index(1, wide) - wide, 1)
    corners: list[tuple[int, int]] = [start]
    x, y, heading = start[0] + 1, 1, 0
    while (x, y) != start:
        at, (left, right) = y * wide + x, ahead[heading]
        turn = -1 if inside[at + left] else 0 if inside[at + right] else 1
        if turn:
            corners.append((x, y))
            heading = (heading + turn) % 4
        x, y = x + _STEPS[heading][0], y + _STEPS[heading][1]
    return tuple((x - 1 + origin[0], y - 1 + origin[1]) for x, y in corners)
