"""The colours of a map: one scale for all pictures of a page, anchored at the map's threshold.

Below the threshold a pale veil grows from nothing; at the threshold the ramp starts with a step to dark violet and runs
to pale yellow at `high`, where it saturates. The same value has the same colour on every picture, so pictures compare.
Values and masks are shrunk by the largest in each cell: a defect of one pixel is not averaged away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from flawmap.errors import DataError

# Inferno's stops at 0.2, 0.3 .. 1.0 (S. van der Walt, N. Smith, matplotlib, CC0): lightness rises evenly, with no
# red against green, so the order survives colour blindness and a grey print.
RAMP = np.array(
    [
        (0x42, 0x0A, 0x68),
        (0x6A, 0x17, 0x6E),
        (0x93, 0x26, 0x67),
        (0xBC, 0x37, 0x54),
        (0xDD, 0x51, 0x3A),
        (0xF3, 0x78, 0x19),
        (0xFC, 0xA5, 0x0A),
        (0xF6, 0xD7, 0x46),
        (0xFC, 0xFF, 0xA4),
    ],
    dtype=np.float32,
)
VEIL = np.array((226, 232, 240), dtype=np.float32)
VEIL_ALPHA = 0.32  # just below the threshold
RAMP_ALPHA = (0.72, 0.92)  # at the threshold, at `high`
LINE, HALO = (25, 227, 255), (0, 0, 0)  # a mask's outline shows on bright, dark and ramp alike
HATCH = (255, 176, 0)  # of what is ignored; the stripes tell it, not the colour


class Scale(NamedTuple):
    """Map values that anchor the colours: low <= threshold < high. Without a threshold, let it equal low."""

    low: float
    threshold: float
    high: float


def anchored(typical: float, threshold: float) -> Scale:
    """The scale that a calibration alone decides: saturates three times as far from `typical` as the threshold is."""
    span = max(threshold - typical, 1e-6 * max(abs(threshold), 1.0))  # flat maps have no span of their own
    return Scale(threshold - span, threshold, threshold + 2 * span)


def colour(map: np.ndarray, scale: Scale) -> np.ndarray:
    """The colours of a map (h, w) as (h, w, 4) uint8: red, green, blue, opacity."""
    low, threshold, high = scale
    if not (np.isfinite(scale).all() and low <= threshold < high):
        raise DataError(f"a colour scale needs low <= threshold < high, got {low:g}, {threshold:g}, {high:g}")
    if not np.isfinite(map).all():
        raise DataError("the map has values that are not finite numbers; nothing can be shown of it")
    above = map > threshold  # as the regions are marked
    ramp = np.clip((map - threshold) / (high - threshold), 0, 1)
    veil = np.clip((map - low) / max(threshold - low, np.finfo(float).tiny), 0, 1)
    stops = np.linspace(0, 1, len(RAMP))
    rgba = np.empty((*map.shape, 4), np.float32)
    for channel in range(3):
        rgba[..., channel] = np.where(above, np.interp(ramp, stops, RAMP[:, channel]), VEIL[channel])
    rgba[..., 3] = 255 * np.where(above, RAMP_ALPHA[0] + ramp * (RAMP_ALPHA[1] - RAMP_ALPHA[0]), veil * VEIL_ALPHA)
    return rgba.round().astype(np.uint8)


def overlay(image: np.ndarray, map: np.ndarray, scale: Scale) -> np.ndarray:
    """The map over the image: (h, w, 3) uint8 in the image's size."""
    base = picture(image)
    rgba = colour(resized(map, base.shape[:2]), scale).astype(np.float32)
    alpha = rgba[..., 3:] / 255
    return (base * (1 - alpha) + rgba[..., :3] * alpha).round().astype(np.uint8)


def outline(mask: np.ndarray, reach: int = 1) -> np.ndarray:
    """The pixels outside a mask (h, w) and at most `reach` away from it, diagonals included: (h, w) bool."""
    height, width = mask.shape
    padded = np.pad(mask.astype(bool), reach)
    offsets = range(2 * reach + 1)
    near = np.zeros((height, width), bool)
    for y in offsets:
        for x in offsets:
            near |= padded[y : y + height, x : x + width]
    return near & ~mask.astype(bool)


def outlined(image: np.ndarray, mask: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """The image with the mask's contour, a bright line of 2 px in a dark one: (h, w, 3) uint8, in the image's size.

    What is ignored is hatched: stripes of 2 px, bright in dark, and a thin bright border.
    """
    drawn = picture(image).copy()
    if ignored is not None:
        band = resized(ignored.astype(bool), drawn.shape[:2])
        y, x = np.ogrid[: drawn.shape[0], : drawn.shape[1]]
        stripe = (x + y) % 8
        drawn[band & (stripe < 4)] = HALO
        drawn[(band & (stripe < 2)) | outline(band)] = HATCH
    inside = resized(mask.astype(bool), drawn.shape[:2])
    drawn[outline(inside, 3)] = HALO
    drawn[outline(inside, 2)] = LINE
    return drawn


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """The image shrunk so that no side is longer than `side` px; never enlarged."""
    small = Image.fromarray(picture(image))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def picture(image: np.ndarray) -> np.ndarray:
    """Any decoded image, uint8 or uint16, (h, w) or (h, w, 3), as (h, w, 3) uint8."""
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    if image.ndim == 2:
        image = np.stack([image] * 3, axis=-1)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"a picture is (h, w, 3) of uint8 or uint16, got {image.shape} of {image.dtype}")
    return image


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map or mask (H, W) in `size` (h, w): shrunk by the largest in each cell, enlarged bilinear (mask: nearest)."""
    for axis in (0, 1):
        if values.shape[axis] > size[axis]:
            starts = np.arange(size[axis]) * values.shape[axis] // size[axis]
            values = np.maximum.reduceat(values, starts, axis=axis)
    if values.shape == size:
        return values
    if values.dtype == bool:
        rows, columns = (np.arange(n) * have // n for n, have in zip(size, values.shape, strict=True))
        return values[np.ix_(rows, columns)]
    enlarged = Image.fromarray(values.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(enlarged)
