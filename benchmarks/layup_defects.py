"""Larger artificial defects for pictures of dry fabric, as the process makes them: a ply that lies turned or shifted,
folds, wrinkled areas, tools and small metal parts left behind, pieces of something else; 0.1 % to half of the picture.

What they look like comes from knowing the process in words (tools, small metal parts, folds, displaced plies), not from
pictures of real defects. Pictures are square grey arrays (H, H) float32 in [0, 1]; lengths below are shares of H.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates, rotate, sobel

Made = tuple[np.ndarray, np.ndarray]  # the changed picture, and how much of each pixel is defect
FOREIGN = ("chelsea", "coffee", "camera", "rocket")  # photos that come with scikit-image
LEAST = 0.02  # mean change inside the mask: below it nobody could tell


def with_structure(image: np.ndarray, other: np.ndarray, kind: str, rng: np.random.Generator) -> Made:
    """A copy of (H, H) with one defect of that kind, and its mask (H, H) bool; drawn again until it can be seen.

    `other` is another good picture of the same fabric.
    """
    while True:
        changed, alpha = KINDS[kind](image, other, rng)
        changed, mask = np.clip(changed, 0, 1).astype(np.float32), alpha > 0.5
        if mask.mean() > 0.001 and np.abs(changed - image)[mask].mean() > LEAST:
            return changed, mask


def _ply(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    """A straight-edged region of the same fabric, turned or shifted, a little lighter or darker, with a dark edge."""
    size = len(image)
    region = _strip(size, rng, 0.05, 0.5)
    source = (image, other)[rng.integers(2)]
    if rng.random() < 0.6:
        moved = rotate(source, rng.uniform(15, 165), reshape=False, order=1, mode="reflect")
    else:
        moved = np.roll(np.pad(source, size, mode="reflect"), rng.integers(-size // 3, size // 3, 2), axis=(0, 1))
        moved = moved[size : 2 * size, size : 2 * size]
    new = moved * rng.uniform(0.8, 1.15)
    alpha = gaussian_filter(region.astype(np.float32), size / 512)
    depth = gaussian_filter(region.astype(np.float32), rng.uniform(2, 8) * size / 512)
    shadow = (1 - region) * depth * rng.uniform(0, 1.2)  # what lies below is darker next to the edge
    return (image + alpha * (new - image)) * (1 - np.clip(shadow, 0, 0.8)), region


def _fold(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    """One to three bent ridges: light on one side, shadow on the other, the fabric between them drawn aside."""
    size, ridge = len(image), np.zeros(image.shape, np.float32)
    width, angle = rng.uniform(0.006, 0.03) * size, rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        ridge = np.maximum(ridge, _line(size, angle + rng.normal(0, 0.15), rng.uniform(0.2, 0.9), width, rng))
    slope = np.cos(angle + np.pi / 2) * sobel(ridge, 1) + np.sin(angle + np.pi / 2) * sobel(ridge, 0)
    slope /= max(float(np.abs(slope).max()), 1e-6)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    pull = slope * rng.uniform(0, 1.5) * width
    drawn = map_coordinates(image, [y + np.sin(angle) * pull, x + np.cos(angle) * pull], order=1, mode="reflect")
    light = rng.uniform(0.08, 0.5) * slope + rng.uniform(-0.1, 0.2) * ridge
    return drawn * (1 + light) + 0.3 * light, (ridge > 0.25).astype(np.float32)


def _wrinkles(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    """A wide area in which the fabric has moved and catches the light unevenly."""
    size, region = len(image), _patch(len(image), rng, 0.1, 0.5)
    scale = rng.uniform(0.015, 0.06) * size
    fields = [gaussian_filter(rng.normal(size=image.shape), scale) for _ in range(3)]
    dy, dx, shade = (field / field.std() for field in fields)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    far = rng.uniform(0.3, 1.2) * scale * 0.5
    alpha = gaussian_filter(region.astype(np.float32), 0.01 * size)
    moved = map_coordinates(image, [y + alpha * far * dy, x + alpha * far * dx], order=1, mode="reflect")
    return moved * (1 + alpha * rng.uniform(0.03, 0.2) * shade), region


def _tool(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    """A smooth drawn object with a streak of light on it and a shadow beside it."""
    return _laid_on(image, _shape(len(image), rng, rng.uniform(0.15, 0.6)), _metal(len(image), rng), rng)


def _small_part(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    return _laid_on(image, _shape(len(image), rng, rng.uniform(0.05, 0.13)), _metal(len(image), rng), rng)


def _foreign(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> Made:
    """A piece of a photo of something else, with its contrast changed."""
    size = len(image)
    photo = Image.fromarray(getattr(skimage.data, FOREIGN[rng.integers(len(FOREIGN))])()).convert("L")
    side = int(min(photo.size) * rng.uniform(0.4, 1))
    left, top = (int(rng.integers(full - side + 1)) for full in photo.size)
    piece = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    new = np.asarray(piece, np.float32) / 255
    new = (new - new.mean()) * rng.uniform(0.4, 1) + image.mean() * rng.uniform(0.6, 1.4)
    return _laid_on(image, _patch(size, rng, 0.005, 0.3).astype(np.float32), new, rng)


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Made]] = {
    "ply": _ply, "fold": _fold, "wrinkles": _wrinkles, "tool": _tool, "small part": _small_part, "foreign": _foreign,
}  # fmt: skip


def _laid_on(image: np.ndarray, alpha: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> Made:
    """Something opaque with a soft edge, and the shadow it throws, which is not part of the mask."""
    size = len(image)
    away = rng.integers(-size // 50, size // 50, 2)
    shadow = gaussian_filter(np.roll(alpha, away, axis=(0, 1)), rng.uniform(0.002, 0.02) * size)
    ground = image * (1 - rng.uniform(0, 0.6) * shadow)
    alpha = gaussian_filter(alpha, size / 700)
    return ground + alpha * (new - ground), alpha


def _metal(size: int, rng: np.random.Generator) -> np.ndarray:
    """A grey that changes evenly, with a blurred streak of light and a little noise."""
    y, x = np.mgrid[:size, :size] / size - rng.uniform(0.2, 0.8, 2)[:, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    streak = rng.uniform(0, 0.7) * np.exp(-np.square(across / rng.uniform(0.02, 0.15)))
    return rng.uniform(0.05, 0.8) + rng.uniform(-0.5, 0.5) * along + streak + rng.normal(0, 0.01, (size, size))


def _shape(size: int, rng: np.random.Generator, length: float) -> np.ndarray:
    """A bar, a disc, a ring, or a bar with a head: somewhere in the picture, turned by any angle; 0 to 1."""
    canvas = Image.new("L", (size, size))
    pen, middle, half = ImageDraw.Draw(canvas), size / 2, length * size / 2
    thick = half * rng.uniform(0.1, 0.5)
    kind = rng.integers(4)
    if kind in (0, 3):
        pen.rectangle([middle - half, middle - thick / 2, middle + half, middle + thick / 2], fill=255)
    if kind == 1:
        pen.ellipse([middle - half, middle - half * 0.8, middle + half, middle + half * 0.8], fill=255)
    if kind == 2:
        pen.ellipse([middle - half, middle - half, middle + half, middle + half], outline=255, width=max(2, int(thick)))
    if kind == 3:
        pen.ellipse([middle + half - thick, middle - thick, middle + half + thick, middle + thick], fill=255)
    shift = rng.uniform(-0.35, 0.35, 2) * size
    turned = canvas.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR, translate=(int(shift[0]), int(shift[1])))
    return np.asarray(turned, np.float32) / 255


def _strip(size: int, rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """Between two parallel lines, and on one side of a third; a share of the picture from least to most."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    while True:
        angle, low, wide = rng.uniform(0, np.pi), rng.uniform(-0.7, 0.5), rng.uniform(0.1, 0.8)
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        region = (along > low) & (along < low + wide) & (across > rng.uniform(-1, 0.3))
        if least < region.mean() < most:
            return region


def _patch(size: int, rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """A wobbly blot with a share of the picture from least to most, evenly in its logarithm."""
    while True:
        area, angle, ratio = np.exp(rng.uniform(np.log(least), np.log(most))), rng.uniform(0, np.pi), rng.uniform(1, 3)
        y, x = np.mgrid[:size, :size] / size - rng.uniform(0.1, 0.9, 2)[:, None, None]
        u, v = (np.cos(angle) * x + np.sin(angle) * y), (np.cos(angle) * y - np.sin(angle) * x) * ratio
        phase = rng.uniform(0, 2 * np.pi, 3)
        theta = np.arctan2(v, u)
        wobble = 1 + 0.15 * sum(np.sin(k * theta + p) for k, p in zip((2, 3, 5), phase, strict=True))
        region = np.hypot(u, v) < (area * ratio / np.pi) ** 0.5 * wobble
        if least < region.mean() < most:
            return region


def _line(size: int, angle: float, length: float, width: float, rng: np.random.Generator) -> np.ndarray:
    """A bent line with a round profile, 1 on its middle."""
    turn = angle + rng.normal(0, 0.04, 32).cumsum()
    steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * length * size / 32
    path = rng.uniform(0.2, 0.8, 2) * size + np.cumsum(steps, axis=0) - steps.sum(axis=0) / 2
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).line([tuple(p) for p in path], fill=255, width=max(1, int(width)), joint="curve")
    soft = gaussian_filter(np.asarray(canvas, np.float32), width / 2)
    return soft / max(float(soft.max()), 1e-6)
