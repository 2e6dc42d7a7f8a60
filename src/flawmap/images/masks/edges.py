"""Where a mask's outline lies against the edge in the picture: too wide, too narrow, or not to be told.

p(s)  mean grey of the pixels at distance s from the outline, in pixels; s > 0 is outside
step  |p(s + 1) - p(s - 1)|: how much the grey changes across a line that runs s px beside the outline

The offset is the s from -8 to 8 with the largest step: the mask should have been drawn there. It is told only where
that step stands out: three times above what the grey does from 12 to 28 px outside, where nothing is to be seen, and
two grey levels at least; and only where the picture's edge does not lie at the end of the range. A mean along the whole
outline sees the width alone: a mask that was moved aside has its edge too far out on one side and too far in on the
other, and blurs the step until it is not told. Nor is it where a defect differs from its surroundings in texture and
not in grey, or is brighter on one side and darker on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REACH = 8  # px to both sides
FAR = range(12, 29)  # px outside: what the grey does where there is no edge
STANDS_OUT, LEAST = 3.0, 2.0  # times the far steps; grey levels of 255
LEAST_PX = 24  # of a ring: a mean of fewer says nothing


@dataclass(frozen=True, slots=True)
class Offset:
    """`pixels` below zero: the edge lies inside, the mask was drawn too wide. None: not to be told, and why."""

    pixels: int | None
    step: float  # grey levels of 255 across the edge that was found
    far: float  # the same where there is none
    why: str = ""


def offset(image: np.ndarray, defect: np.ndarray, ignored: np.ndarray | None = None) -> Offset:
    """Of a picture (H, W, 3), uint8 or uint16, and its mask (H, W) bool; what is ignored is not looked at."""
    if not defect.any() or defect.all():
        return Offset(None, 0.0, 0.0, "the mask has no outline")
    around = _around(defect)
    grey = image[around].mean(axis=2) * (255 / np.iinfo(image.dtype).max)
    profile = _profile(grey, defect[around], None if ignored is None else ignored[around])
    steps = {s: abs(profile[s + 1] - profile[s - 1]) for s in range(-REACH, REACH + 1)}
    steps = {s: step for s, step in steps.items() if np.isfinite(step)}
    far = np.array([abs(profile[s + 1] - profile[s - 1]) for s in FAR])
    far = far[np.isfinite(far)]
    if len(steps) < REACH or len(far) < REACH // 2:
        return Offset(None, 0.0, 0.0, "too small, or too near the picture's edge")
    best = max(steps, key=lambda s: steps[s])
    noise = float(np.sqrt(np.mean(far**2)))
    if steps[best] < max(STANDS_OUT * noise, LEAST):
        return Offset(None, steps[best], noise, "no step in grey stands out")
    if best in (min(steps), max(steps)):
        return Offset(None, steps[best], noise, f"the edge is {abs(best)} px away or more")
    return Offset(best, steps[best], noise)


def _around(defect: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns in which anything can be near enough."""
    margin = FAR[-1] + 3
    spans = (np.flatnonzero(defect.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(max(int(span[0]) - margin, 0), int(span[-1]) + 1 + margin) for span in spans)
    return rows, columns


def _profile(grey: np.ndarray, defect: np.ndarray, ignored: np.ndarray | None) -> dict[int, float]:
    """p(s); not a number where too few pixels lie so far away. The outline runs between pixels: these are at halves,
    and one at 0.5 counts half for 0 and half for 1."""
    from scipy.ndimage import distance_transform_edt

    outside, inside = np.asarray(distance_transform_edt(~defect)), np.asarray(distance_transform_edt(defect))
    distance = np.where(defect, 0.5 - inside, outside - 0.5)
    near = (distance > -REACH - 2) & (distance < FAR[-1] + 2)
    if ignored is not None:
        near &= ~ignored
    at, values = distance[near], grey[near]
    low = np.floor(at).astype(int)
    first = -REACH - 3
    places, weights = np.concatenate([low, low + 1]) - first, np.concatenate([low + 1 - at, at - low])
    counts = np.bincount(places, weights, FAR[-1] + 4 - first)
    sums = np.bincount(places, weights * np.concatenate([values, values]), FAR[-1] + 4 - first)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counts >= LEAST_PX, sums / counts, np.nan)
    return {s: float(means[s - first]) for s in range(-REACH - 1, FAR[-1] + 2)}
