"""Polygons that say a mask to the pixel, and a polygon's pixels.

Corners lie on the grid between the pixels: the first pixel's upper left corner is (0, 0). A pixel belongs to a polygon
when its centre does, by the even-odd rule, so a border along the grid is exact. No format here knows holes in a
polygon: a hole is joined to the border outside it by a slit of no width, which holds no centre.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from flawmap.images.masks.levels import Shape

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # (x, y): east, south, west, north; the patch is on the right
_AT_A_TIME = 512  # edges: each may cross all rows

Point = tuple[int, int]


def outline(shape: Shape) -> Iterator[list[Point]]:
    """One polygon for each 4-connected part, in pixels of the picture."""
    from scipy import ndimage

    labels = ndimage.label(shape.mask)[0]  # type: ignore[index]
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        left, top = shape.left + box[1].start, shape.top + box[0].start
        yield [(left + x, top + y) for x, y in _straight(_one_tour(_rings(labels[box] == number)))]


def _rings(part: np.ndarray) -> list[list[Point]]:
    """All borders of one 4-connected part, point by point; the outer one is the first."""
    inside = np.pad(part, 1).astype(np.int8)
    across, down = np.diff(inside, axis=0)[:, 1:-1], np.diff(inside, axis=1)[1:-1]
    leaving: dict[Point, list[int]] = defaultdict(list)
    for heading, edges, (x, y) in ((0, across > 0, (0, 0)), (2, across < 0, (1, 0))):
        for row, column in np.argwhere(edges).tolist():
            leaving[column + x, row + y].append(heading)
    for heading, edges, (x, y) in ((3, down > 0, (0, 1)), (1, down < 0, (0, 0))):
        for row, column in np.argwhere(edges).tolist():
            leaving[column + x, row + y].append(heading)
    rings = []
    while leaving:
        start = next(iter(leaving))
        heading, point, ring = leaving[start][0], start, []
        while point in leaving:
            ways = leaving[point]
            # Where two pixels touch at a corner there are two ways: to the right, round the same pixel.
            heading = (heading + 1) % 4 if (heading + 1) % 4 in ways else ways[0]
            ways.remove(heading)
            if not ways:
                del leaving[point]
            ring.append(point)
            point = (point[0] + _STEPS[heading][0], point[1] + _STEPS[heading][1])
            if point == start:
                break
        rings.append(ring)
    return sorted(rings, key=min)  # every hole has some of the part on its left


def _one_tour(rings: list[list[Point]]) -> list[Point]:
    """Each hole is joined by a slit that runs west from its first corner, to the border that it meets first."""
    points: list[Point] = list(rings[0])
    after = [*range(1, len(points)), 0]
    at = {point: index for index, point in enumerate(points)}
    for ring in rings[1:]:
        first = ring.index(min(ring))
        x, y = ring[first]
        meets = x - 1
        while (meets, y) not in at:  # what lies farther west was joined before
            meets -= 1
        from_, base = at[meets, y], len(points)
        points += [*ring[first:], *ring[:first], ring[first], (meets, y)]
        after += [*range(base + 1, len(points)), after[from_]]
        after[from_] = base
        at |= {point: base + index for index, point in enumerate(points[base:-2])}
    tour, index = [points[0]], after[0]
    while index:
        tour.append(points[index])
        index = after[index]
    return tour


def _straight(tour: list[Point]) -> list[Point]:
    """Without the points in the middle of a straight line."""
    xy = np.array(tour)
    came, goes = np.sign(xy - np.roll(xy, 1, axis=0)), np.sign(np.roll(xy, -1, axis=0) - xy)
    return [tuple(point) for point in xy[(came != goes).any(axis=1)].tolist()]


def filled(label: str, corners: np.ndarray, size_hw: tuple[int, int]) -> Shape:
    """The pixels of a polygon with the corners (n, 2), cut to the picture."""
    low = np.clip(np.floor(corners.min(axis=0)), 0, size_hw[::-1]).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, size_hw[::-1]).astype(int)
    (left, top), (wide, tall) = low.tolist(), (high - low).tolist()
    crossed = np.zeros((tall, wide + 1), np.int32)
    begins, ends = corners - low, np.roll(corners, -1, axis=0) - low
    for start in range(0, len(begins), _AT_A_TIME):
        _cross(crossed, begins[start : start + _AT_A_TIME], ends[start : start + _AT_A_TIME])
    return Shape(label, np.cumsum(crossed[:, :-1], axis=1) % 2 == 1, left, top)


def _cross(crossed: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
    """Counts at the first pixel right of it each crossing of an edge and a line of centres."""
    (x0, y0), (x1, y1) = begins.T, ends.T
    rows = [np.clip(np.ceil(each(y0, y1) - 0.5), 0, len(crossed)).astype(int) for each in (np.minimum, np.maximum)]
    count = rows[1] - rows[0]
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + rows[0][edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    column = np.clip(np.ceil(x - 0.5), 0, crossed.shape[1] - 1).astype(int)
    np.add.at(crossed, (row, column), 1)
