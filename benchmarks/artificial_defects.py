"""Artificial defects on good pictures, from hard to easy, with exact masks: pasted pieces, stains, scratches, disturbed
texture, of about 0.1 % to 5 % of the picture (scratches less).

Pictures are square, (H, H, 3) float32 in [0, 1], with H a multiple of 64; what is told in pixels is so at SIZE and
grows with the picture. Each kind returns how much of it shows, (H, H), and what does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

SIZE = 256
Layer = tuple[np.ndarray, np.ndarray]


def with_defect(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy of (H, W, 3) in [0, 1] with one defect, and its mask (H, W); drawn again until it can be seen."""
    while True:
        alpha, new = (_paste, _stain, _scratch, _disturb)[rng.integers(4)](image, other, rng)
        changed = image + alpha[..., None] * (np.clip(new, 0, 1) - image)
        mask = alpha > alpha.max() / 2
        if mask.any() and np.abs(changed - image).max(axis=2)[mask].mean() > 0.03:
            return changed.astype(np.float32), mask


def _paste(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Layer:
    """A piece from elsewhere, of this picture or another one, turned and with other colours."""
    unit = len(image) / SIZE
    source = (image, other)[rng.integers(2)]
    moved = np.roll(
        np.rot90(source, rng.integers(4)), rng.integers(int(16 * unit), int((SIZE - 16) * unit), 2), axis=(0, 1)
    )
    return _blob(rng, len(image), 0.7) * rng.uniform(0.4, 1), moved * _tint(image, rng, 0.15) + _tint(
        image, rng, 0.05
    ) - 1


def _stain(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Layer:
    """Darker, brighter or of another colour, with a soft edge."""
    return _blob(rng, len(image), rng.uniform(1, 5)) * rng.uniform(0.1, 0.6), np.broadcast_to(
        _tint(image, rng, 0.5) / 2, image.shape
    )


def _scratch(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Layer:
    """A bent line, 1 to 4 pixels wide."""
    size, unit = len(image), len(image) / SIZE
    start, angle, length = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi), rng.uniform(15, 120) * unit
    turn = angle + rng.normal(0, 0.02, 24).cumsum() * rng.uniform(0, 4)
    path = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * length / 24, axis=0)
    canvas, width = Image.new("L", (4 * size, 4 * size)), int(rng.integers(4, 17) * unit)
    ImageDraw.Draw(canvas).line([tuple(4 * p) for p in path], fill=255, width=width, joint="curve")
    alpha = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255
    return alpha * rng.uniform(0.15, 0.7), np.broadcast_to(_tint(image, rng, 0.9) / 2, image.shape)


def _disturb(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Layer:
    """The same place blurred, its tiles shuffled, or seen turned."""
    size, unit = len(image), len(image) / SIZE
    kind, alpha = rng.integers(3), _blob(rng, size, 0.7)
    if kind == 0:
        return alpha, gaussian_filter(image, (s := rng.uniform(1, 4) * unit, s, 0))
    if kind == 1:
        n = size // (tile := int(rng.choice([4, 8, 16]) * unit))
        tiles = image.reshape(n, tile, n, tile, 3).swapaxes(1, 2)
        rows, columns = (np.clip(np.arange(n) + rng.integers(-2, 3, (n, n)), 0, n - 1) for _ in range(2))
        return alpha, tiles[rows.T, columns].swapaxes(1, 2).reshape(size, size, 3)
    y, x = (int(v) for v in np.argwhere(alpha > 0.5).mean(axis=0)) if (alpha > 0.5).any() else (0, 0)
    centred = np.roll(image, (size // 2 - y, size // 2 - x), axis=(0, 1))
    turned = np.asarray([Image.fromarray(c).rotate(a, Image.Resampling.BILINEAR) for a in [rng.uniform(20, 340)]
                         for c in centred.transpose(2, 0, 1).astype(np.float32)]).transpose(1, 2, 0)  # fmt: skip
    return alpha, np.roll(turned, (y - size // 2, x - size // 2), axis=(0, 1))


def _blob(rng: np.random.Generator, size: int, soft_px: float) -> np.ndarray:
    """A wobbly ellipse of 0.1 % to 5 % of the picture, 1 inside and 0 outside."""
    area, ratio, angle = (
        np.exp(rng.uniform(np.log(1e-3), np.log(5e-2))),
        np.exp(rng.uniform(0, 1)),
        rng.uniform(0, np.pi),
    )
    y, x = np.mgrid[:size, :size] - (rng.uniform(0.08, 0.92, 2) * size)[:, None, None]
    u, v = (np.cos(angle) * x + np.sin(angle) * y) / ratio**0.5, (np.cos(angle) * y - np.sin(angle) * x) * ratio**0.5
    theta, phase = np.arctan2(v, u), rng.uniform(0, 2 * np.pi, 3)
    wobble = 1 + 0.15 * sum(np.sin(k * theta + p) for k, p in zip((2, 3, 5), phase, strict=True))
    inside = (np.hypot(u, v) < size * (area / np.pi) ** 0.5 * wobble).astype(np.float32)
    return gaussian_filter(inside, soft_px * size / SIZE)


def _tint(image: np.ndarray, rng: np.random.Generator, spread: float) -> np.ndarray:
    """Three numbers around 1, equal where the picture is grey."""
    grey = np.ptp(image, axis=2).max() < 0.02
    return np.repeat(1 + rng.uniform(-spread, spread), 3) if grey else 1 + rng.uniform(-spread, spread, 3)
