"""Perlin noise: smooth random hills, whose highest parts make the outlines of false defects.

Perlin, An Image Synthesizer, SIGGRAPH 1985, with the fade curve of 2002. The sum over the corners of the cells is
separable, so it is written as two products of small matrices.

H W pixels  R C rows and columns of the lattice
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ROTATION = 90.0  # degrees either way


def noise(random: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """(H, W) float32, mostly in [-1, 1], of so many cells down and across."""
    angle_RC = random.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    (down_HR, slope_HR), (across_WC, slope_WC) = (_weights(n, k) for n, k in zip(size, cells, strict=True))
    tilt_HW = down_HR @ np.cos(angle_RC) @ slope_WC.T + slope_HR @ np.sin(angle_RC) @ across_WC.T
    return np.sqrt(2, dtype=np.float32) * tilt_HW


def blots(random: np.random.Generator, size: tuple[int, int], threshold: float, finest: int) -> np.ndarray:
    """(H, W) bool: where turned noise of 2^0 to 2^`finest` cells a side, each drawn alone, is above the threshold."""
    cells = tuple(2 ** int(random.integers(0, finest + 1)) for _ in range(2))
    hills_HW = noise(random, size, (cells[0], cells[1]))
    turned = Image.fromarray(hills_HW).rotate(random.uniform(-ROTATION, ROTATION), Image.Resampling.BILINEAR)
    return np.asarray(turned) > threshold


def _weights(pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each line of the lattice counts at each pixel, and that times the distance: (pixels, cells + 1)."""
    place = (np.arange(pixels, dtype=np.float32) + 0.5) * cells / pixels
    away = place[:, None] - np.arange(cells + 1, dtype=np.float32)
    near = np.clip(1 - np.abs(away), 0, 1)
    weight = near**3 * (near * (near * 6 - 15) + 10)
    return weight, weight * away
