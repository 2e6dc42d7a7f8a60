"""Textures to paint false defects with, drawn without any file; and the changes of colour that DRAEM makes to its own.

H W pixels
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from flawmap.synthesis.perlin import noise

Random = np.random.Generator


def drawn(random: Random, size: tuple[int, int]) -> np.ndarray:
    """(3, H, W) float32 in [0, 1]: clouds, bands, weave, grain or tiles, in two or three colours."""
    field_HW = (_clouds, _bands, _weave, _grain, _tiles)[random.integers(5)](random, size)
    low, high = np.percentile(field_HW[::4, ::4], (2, 98))
    field_HW = np.clip((field_HW - low) / max(high - low, 1e-6), 0, 1)
    colours = _palette(random, int(random.integers(2, 4)))
    place_HW = field_HW * (len(colours) - 1)
    below_HW = np.minimum(place_HW.astype(np.int64), len(colours) - 2)
    share_HW1 = (place_HW - below_HW)[..., None]
    image_HW3 = colours[below_HW] * (1 - share_HW1) + colours[below_HW + 1] * share_HW1
    image_HW3 += random.normal(0, random.uniform(0, 0.06), size).astype(np.float32)[..., None]
    return np.clip(image_HW3.transpose(2, 0, 1), 0, 1).astype(np.float32)


def augment(random: Random, image: Image.Image, changes: int = 3) -> Image.Image:
    """So many different ones of the ten changes in DRAEM's code."""
    for index in random.choice(len(_CHANGES), changes, replace=False):
        image = _CHANGES[index](random, image)
    return image


def shuffled(random: Random, image: np.ndarray, grid: int = 8) -> np.ndarray:
    """(H, W, 3) cut into `grid` x `grid` cells that change places; what the cells do not cover stays."""
    high, wide = image.shape[0] // grid, image.shape[1] // grid
    cells = image[: grid * high, : grid * wide].reshape(grid, high, grid, wide, 3).swapaxes(1, 2)
    mixed = cells.reshape(grid * grid, high, wide, 3)[random.permutation(grid * grid)]
    out = image.copy()
    out[: grid * high, : grid * wide] = (
        mixed.reshape(grid, grid, high, wide, 3).swapaxes(1, 2).reshape(grid * high, grid * wide, 3)
    )
    return out


# ---- fields of one channel


def _clouds(random: Random, size: tuple[int, int]) -> np.ndarray:
    cells, field_HW = int(2 ** random.integers(1, 5)), np.zeros(size, np.float32)
    for octave in range(3):
        field_HW += noise(random, size, (cells << octave, cells << octave)) * random.uniform(0.4, 0.9) ** octave
    return field_HW


def _wave(random: Random, size: tuple[int, int], bend: float) -> np.ndarray:
    """A row of waves in one direction, bent by clouds."""
    angle, length = random.uniform(0, np.pi), np.exp(random.uniform(np.log(1 / 40), np.log(1 / 3)))
    y, x = np.arange(size[0], dtype=np.float32)[:, None] / size[0], np.arange(size[1], dtype=np.float32) / size[1]
    way_HW = (np.cos(angle) * x + np.sin(angle) * y) / length
    if bend:
        way_HW = way_HW + bend * noise(random, size, (4, 4))
    return np.sin(2 * np.pi * way_HW, dtype=np.float32)


def _bands(random: Random, size: tuple[int, int]) -> np.ndarray:
    sharpness = np.exp(random.uniform(0, 2))
    return np.tanh(sharpness * _wave(random, size, random.uniform(0, 1.5)))


def _weave(random: Random, size: tuple[int, int]) -> np.ndarray:
    pair = _wave(random, size, random.uniform(0, 0.4)), _wave(random, size, random.uniform(0, 0.4))
    return np.maximum(*pair) if random.random() < 0.5 else pair[0] * pair[1]


def _grain(random: Random, size: tuple[int, int]) -> np.ndarray:
    grey = Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(random.uniform(0, 3))), np.float32)


def _tiles(random: Random, size: tuple[int, int]) -> np.ndarray:
    rows, columns = random.integers(3, 40, 2)
    grey = Image.fromarray(random.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(grey.resize((size[1], size[0]), Image.Resampling.NEAREST), np.float32)


def _palette(random: Random, colours: int) -> np.ndarray:
    """(colours, 3) float32; grey for one texture in four."""
    found = random.uniform(0, 1, (colours, 3))
    if random.random() < 0.25:
        found[:] = found[:, :1]
    return found.astype(np.float32)


# ---- the ten changes of DRAEM


def _table(image: Image.Image, curves: np.ndarray) -> Image.Image:
    """Each channel through its own row of (3, 256)."""
    return image.point([int(v) for v in np.clip(curves, 0, 255).round().ravel()])


def _gamma(random: Random, image: Image.Image) -> Image.Image:
    levels = np.arange(256) / 255
    return _table(image, 255 * levels[None] ** random.uniform(0.5, 2, (3, 1)))


def _brightness(random: Random, image: Image.Image) -> Image.Image:
    curve = np.arange(256) * random.uniform(0.8, 1.2) + random.uniform(-30, 30)
    return _table(image, np.tile(curve, (3, 1)))


def _sharpness(random: Random, image: Image.Image) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(random.uniform(1, 3))


def _hue(random: Random, image: Image.Image) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turn, more = int(random.integers(-50, 51)), int(random.integers(-50, 51))
    hue = hue.point([(v + turn) % 256 for v in range(256)])
    saturation = saturation.point([min(255, max(0, v + more)) for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _solarise(random: Random, image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image, int(random.integers(32, 129))) if random.random() < 0.5 else image


def _posterise(random: Random, image: Image.Image) -> Image.Image:
    return ImageOps.posterize(image, int(random.integers(1, 7)))


def _turn(random: Random, image: Image.Image) -> Image.Image:
    return image.rotate(random.uniform(-45, 45), Image.Resampling.BILINEAR)


_CHANGES: tuple[Callable[[Random, Image.Image], Image.Image], ...] = (
    _gamma,
    _brightness,
    _sharpness,
    _hue,
    _solarise,
    _posterise,
    lambda random, image: ImageOps.invert(image),
    lambda random, image: ImageOps.autocontrast(image),
    lambda random, image: ImageOps.equalize(image),
    _turn,
)
