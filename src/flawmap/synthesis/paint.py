"""Paints a false defect into a good picture: where (Perlin noise), with what (a texture, the picture itself, or both),
how strongly. A seed decides everything, so a picture is the same in any process and in any order.

The recipes, as named presets:
pouta   Shao et al. 2024, https://arxiv.org/abs/2312.12913: a moved or turned copy of the picture mixed with a texture,
        blended in without a seam. Their ranges are not published; here opacity is MemSeg's, shares are any of [0, 1]
draem   Zavrtanik et al. 2021, https://arxiv.org/abs/2108.07610, as in the authors' code
memseg  Yang et al. 2022, https://arxiv.org/abs/2205.00908: a texture, or the picture's own cells shuffled

H W pixels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from flawmap.errors import UsageError
from flawmap.synthesis.perlin import blots
from flawmap.synthesis.textures import augment, drawn, shuffled

Texture = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # -> (3, H, W) float32 in [0, 1]
FINEST = 5  # up to 2^5 cells of Perlin noise a side
THRESHOLD = 0.5  # noise above is defect
FEATHER = 2.0  # px: largest deviation of the soft edge, inside the mask
SEEN = 0.02  # least mean change inside the mask: below it nobody could tell, and it would be a wrong label
TRIES = 20


class Painted(NamedTuple):
    image: np.ndarray  # (3, H, W) float32 in [0, 1]
    clean: np.ndarray  # (3, H, W): what is to be repaired to
    mask: np.ndarray  # (H, W) float32 in {0, 1}; outside, image and clean are the same bit for bit


@dataclass(frozen=True)
class Preset:
    source: str  # how what is painted is made: "mixed", "texture" or "either"
    opacity: tuple[float, float]
    seamless: bool  # a soft edge inside the mask
    augmented: bool  # DRAEM's changes to the texture
    rotate_clean: float  # how often the good picture itself is turned first
    redraw: bool  # draw again what is empty or cannot be seen; else it stays as a clean picture


PRESETS = {
    "pouta": Preset("mixed", (0.15, 1.0), seamless=True, augmented=False, rotate_clean=0.0, redraw=True),
    "draem": Preset("texture", (0.2, 1.0), seamless=False, augmented=True, rotate_clean=0.3, redraw=False),
    "memseg": Preset("either", (0.15, 1.0), seamless=False, augmented=False, rotate_clean=0.0, redraw=True),
}


class Synthesis:
    """`texture` gives pictures to paint with; without one, drawn textures and the picture's own cells, half and half.

    `anomalous` is the share of pictures that get a defect. `foreground` keeps it on the part: "bright" or "dark" is
    what is above or below Otsu's threshold of the picture, "bright:50" or "dark:250" a grey level of its own.
    """

    def __init__(
        self, preset: str = "pouta", *, texture: Texture | None = None, anomalous: float = 0.5, foreground: str = ""
    ) -> None:
        if preset not in PRESETS:
            raise UsageError(f"synthesis: no recipe {preset!r}; there are: {', '.join(PRESETS)}")
        self.preset, self.texture, self.anomalous = PRESETS[preset], texture, anomalous
        self.foreground = _foreground(foreground)

    def __call__(self, clean: np.ndarray, seed: Sequence[int]) -> Painted:
        """`clean` is (3, H, W) float32 in [0, 1]."""
        random = np.random.default_rng(seed)
        inside = self.foreground(clean) if self.foreground else None
        if random.random() < self.preset.rotate_clean:
            angle = random.uniform(-90, 90)
            clean = _array(_image(clean).rotate(angle, Image.Resampling.BILINEAR))
            if inside is not None:  # what is turned in from outside is no part
                inside = np.asarray(Image.fromarray(inside).rotate(angle))
        if random.random() < self.anomalous:
            for _ in range(TRIES if self.preset.redraw else 1):
                made = self._paint(clean, inside, random)
                if made is not None:
                    return made
        return Painted(clean, clean, np.zeros(clean.shape[1:], np.float32))

    def _paint(self, clean: np.ndarray, inside: np.ndarray | None, random: np.random.Generator) -> Painted | None:
        size = (clean.shape[1], clean.shape[2])
        mask_HW = blots(random, size, THRESHOLD, FINEST)
        if inside is not None:
            mask_HW = mask_HW & inside
        if not mask_HW.any():
            return None
        source = self._source(clean, random)
        weight_HW = np.float32(random.uniform(*self.preset.opacity)) * (
            _soft(mask_HW, random.uniform(0, FEATHER)) if self.preset.seamless else mask_HW
        )
        image = np.where(mask_HW, clean + weight_HW * (source - clean), clean).astype(np.float32)
        if self.preset.redraw and np.abs(image - clean)[:, mask_HW].mean() < SEEN:
            return None
        return Painted(np.clip(image, 0, 1), clean, mask_HW.astype(np.float32))

    def _source(self, clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """(3, H, W) of what shows inside the mask."""
        if self.preset.source == "texture":
            return self._texture(clean, random)
        if self.preset.source == "either":
            return self._cells(clean, random) if random.random() < 0.5 else self._texture(clean, random)
        share = np.float32(random.uniform(0, 1))
        moved = (_same, _translated, _turned)[random.integers(3)](clean, random)
        return share * self._texture(clean, random) + (1 - share) * moved

    def _texture(self, clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
        size = (clean.shape[1], clean.shape[2])
        if self.texture is not None:
            found = self.texture(random, size)
        elif self.preset.source == "mixed" and random.random() < 0.5:
            return self._cells(clean, random)
        else:
            found = drawn(random, size)
        return _array(augment(random, _image(found))) if self.preset.augmented else found

    def _cells(self, clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The picture itself, changed in colour and cut into cells that change places (MemSeg's structure)."""
        return _array(shuffled(random, np.asarray(augment(random, _image(clean)))))


def _same(clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return clean


def _translated(clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By an eighth to seven eighths of each side; what leaves comes in on the other one."""
    shift = [int(random.uniform(1 / 8, 7 / 8) * side) for side in clean.shape[1:]]
    return np.roll(clean, shift, axis=(1, 2))


def _turned(clean: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By any angle of at least 20 degrees; the corners show a square picture mirrored."""
    angle, (high, wide) = random.uniform(20, 340), clean.shape[1:]
    image = np.asarray(_image(clean))
    pad = [(side // 4, side // 4) for side in (high, wide)]
    large = Image.fromarray(np.pad(image, [*pad, (0, 0)], mode="reflect"))
    left, top = pad[1][0], pad[0][0]
    return _array(large.rotate(angle, Image.Resampling.BILINEAR).crop((left, top, left + wide, top + high)))


def _soft(mask_HW: np.ndarray, deviation: float) -> np.ndarray:
    """1 well inside, falling to a quarter at least towards the edge; 0 outside."""
    blurred = Image.fromarray(mask_HW.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(deviation))
    return np.clip(np.asarray(blurred, np.float32) * (2 / 255) - 0.5, 0.25, 1) * mask_HW


def _foreground(rule: str) -> Callable[[np.ndarray], np.ndarray] | None:
    if not rule:
        return None
    side, colon, level = rule.partition(":")
    if side not in ("bright", "dark") or (colon and not (level.isdecimal() and level.isascii() and int(level) < 255)):
        raise UsageError(
            f"foreground is {rule!r}; give bright, dark, or one with a grey level from 0 to 254 such as dark:250"
        )

    def inside(clean: np.ndarray) -> np.ndarray:
        grey_HW = np.asarray(_image(clean).convert("L"))
        limit = int(level) if level else _otsu(grey_HW)
        return grey_HW > limit if side == "bright" else grey_HW <= limit

    return inside


def _otsu(grey: np.ndarray) -> int:
    """The level that splits the grey values into two groups that differ most (Otsu 1979)."""
    count = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below = count.cumsum()
    total = (count * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (total[-1] * below / below[-1] - total) ** 2 / (below * (below[-1] - below))
    return int(np.nanargmax(np.where(np.isfinite(between), between, 0)))


def _image(array_3HW: np.ndarray) -> Image.Image:
    return Image.fromarray((array_3HW.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8))


def _array(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255
