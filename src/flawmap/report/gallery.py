"""Pictures of the page in few bytes: a JPEG a picture, its map as 8-bit codes, its mask as a path.

A code is a place on the colour scale: 0 to 127 run from `low` to the threshold, 128 to 255 from just above it to
`high`. A pixel is marked if and only if its code is above 127, and the browser colours codes with the same 256 colours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from flawmap.errors import DataError
from flawmap.report import heatmap
from flawmap.report.heatmap import Scale
from flawmap.types import Verdict

THUMBNAIL_PX = 256  # longer side of a picture on the page, at most
MAP_PX = 64  # longer side of its map
NEAR_PX = 96  # longer side of a good patch
BELOW = 128  # codes that are not above the threshold
# Longer side and JPEG quality, from large to small: the first that fits the allowance is taken.
LADDER = ((256, 80), (208, 78), (176, 76), (144, 74), (128, 70), (112, 66), (96, 62), (80, 58), (64, 52), (48, 45))


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture to show."""

    name: str
    part: str
    kind: str | None
    score: float
    verdict: Verdict | None
    image: np.ndarray  # (h, w, 3) uint8, any size
    map: np.ndarray  # (h', w') float32, or uint8 as `codes` gives it
    mask: np.ndarray | None = None  # (h'', w'') bool
    near: np.ndarray | None = None  # (h, w, 3): the good patch nearest to its strangest place
    near_name: str = ""  # of the training picture that the patch is from
    near_at: tuple[int, int, int, int] | None = None  # that place: left, top, right, bottom in pixels of `image`
    ignored: np.ndarray | None = None  # (h'', w'') bool: what counts in no metric

    @property
    def area(self) -> int:
        """Of the mask, in pixels of the image; 0 without one."""
        if self.mask is None or not self.mask.any():
            return 0
        height, width = self.image.shape[:2]
        return max(round(float(self.mask.mean()) * height * width), 1)


def codes(map: np.ndarray, scale: Scale, side: int = MAP_PX) -> np.ndarray:
    """A map (h, w) as (h', w') uint8, shrunk by the largest in each cell to at most `side` px.

    Raises DataError for values that are not finite numbers.
    """
    if map.dtype == np.uint8:
        return heatmap.resized(map, _within(map.shape, side))
    low, threshold, high = scale
    if not np.isfinite(map).all():
        raise DataError("the map has values that are not finite numbers; nothing can be shown of it")
    map = heatmap.resized(map, _within(map.shape, side)).astype(np.float64)
    top = BELOW - 1
    veil = np.floor(top * np.clip((map - low) / max(threshold - low, np.finfo(float).tiny), 0, 1))
    ramp = np.rint(top * np.clip((map - threshold) / (high - threshold), 0, 1))
    return np.where(map > threshold, BELOW + ramp, veil).astype(np.uint8)


def colours(scale: Scale) -> np.ndarray:
    """(256, 4) uint8: red, green, blue, opacity of every code."""
    low, threshold, high = (float(value) for value in scale)
    share = np.arange(BELOW) / (BELOW - 1)
    above = np.maximum(threshold + share * (high - threshold), np.nextafter(threshold, np.inf))
    return heatmap.colour(np.concatenate([low + share * (threshold - low), above])[None], scale)[0]


def painted(image: np.ndarray, coded: np.ndarray, scale: Scale) -> np.ndarray:
    """Codes over the image, (h, w, 3) uint8: what the browser draws."""
    fine = Image.fromarray(coded).resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)
    rgba = colours(scale)[np.asarray(fine)].astype(np.float32)
    alpha = rgba[..., 3:] / 255
    return (image * (1 - alpha) + rgba[..., :3] * alpha).round().astype(np.uint8)


def contour(mask: np.ndarray) -> str:
    """The borders of a mask (h, w) bool as the path of an SVG, on the grid between its pixels; holes included."""
    padded = np.pad(mask.astype(np.int8), 1)
    down, right = np.diff(padded, axis=0), np.diff(padded, axis=1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> where its borders go, the mask on their right
    for y, x in np.argwhere(down).tolist():
        way = 1 if down[y, x] > 0 else -1
        steps.setdefault((x - 1 + (way < 0), y), []).append((way, 0))
    for y, x in np.argwhere(right).tolist():
        way = 1 if right[y, x] < 0 else -1
        steps.setdefault((x, y - 1 + (way < 0)), []).append((0, way))
    return "".join(_loops(steps))


def _loops(steps: dict[tuple[int, int], list[tuple[int, int]]]) -> Iterator[str]:
    while steps:
        at = start = next(iter(steps))
        way, words, run = (0, 0), [f"M{at[0]} {at[1]}"], 0
        while True:
            ways = steps[at]
            turn = (-way[1], way[0])  # where two pixels touch at a corner, turn right: they stay apart
            new = turn if turn in ways else ways[0]
            ways.remove(new)
            if not ways:
                del steps[at]
            if new != way and run:
                words.append(_stroke(way, run))
                run = 0
            way, run, at = new, run + 1, (at[0] + new[0], at[1] + new[1])
            if at == start:
                break
        yield "".join(words) + "z"


def _stroke(way: tuple[int, int], run: int) -> str:
    return f"h{way[0] * run}" if way[0] else f"v{way[1] * run}"


class Shrinker:
    """Encodes pictures one at a time so that all together stay below a budget of bytes (as base64)."""

    def __init__(self, count: int, budget: int, scale: Scale) -> None:
        self.left, self.budget, self.scale = count, budget, scale
        self.rung = 0  # of the ladder, where the last picture found room
        self.sides: list[int] = []  # of all pictures that were encoded
        self.dropped = 0

    def __call__(self, picture: Picture) -> list[Any] | None:
        """Name, score, width, height, JPEG, map, mask's path and its size, good patch, its name, its place.

        Where something is ignored, its path and size follow. None where not even the smallest has room. Raises
        DataError, with the name, for what cannot be shown.
        """
        allowance = self.budget // max(self.left, 1)
        self.left -= 1
        try:
            map = self._map(picture, allowance * 3 // 10)
            path, grid = _outline(picture.mask, picture.image.shape[:2], allowance // 5)
            band = _outline(picture.ignored, picture.image.shape[:2], allowance // 5)
            near = "" if picture.near is None else jpeg(heatmap.thumbnail(picture.near, NEAR_PX), 75)
            room = allowance - len(map) - len(path) - len(band[0])
            if allowance > 4 * len(near):
                room -= len(near)
            else:
                near = ""
            small, size = self._jpeg(picture.image, room)
        except DataError as error:
            raise DataError(f"{picture.name}: {error}") from error
        if not small:
            self.dropped += 1
            return None
        self.budget -= len(small) + len(map) + len(path) + len(near) + len(band[0])
        self.sides.append(max(size))
        whole = picture.image.shape
        at = picture.near_at and [round(v / whole[1 - i % 2], 4) for i, v in enumerate(picture.near_at)]
        row = [picture.name, picture.score, *size, small, map, path, grid, near, picture.near_name, at or 0]
        return [*row, *band] if band[0] else row

    def _map(self, picture: Picture, room: int) -> str:
        side = MAP_PX
        while len(found := png(codes(picture.map, self.scale, side))) > room and side > 16:
            side = side * 3 // 4
        return found

    def _jpeg(self, image: np.ndarray, room: int) -> tuple[str, tuple[int, int]]:
        """The largest that fits, from one rung above the last; width and height."""
        base = heatmap.thumbnail(image, LADDER[0][0])
        for rung in range(max(self.rung - 1, 0), len(LADDER)):
            side, quality = LADDER[rung]
            small = heatmap.thumbnail(base, side)
            if len(found := jpeg(small, quality)) <= room:
                self.rung = rung
                return found, (small.shape[1], small.shape[0])
        return "", (0, 0)


def _outline(mask: np.ndarray | None, size: tuple[int, ...], room: int) -> tuple[str, list[int]]:
    """The mask's path and the grid it is drawn on, (width, height); coarser where it would take too many bytes."""
    if mask is None or not mask.any():
        return "", []
    side = THUMBNAIL_PX
    while True:
        small = heatmap.resized(mask.astype(bool), _within(size, side))
        if len(path := contour(small)) <= room or side <= 32:
            return path, [small.shape[1], small.shape[0]]
        side //= 2


def _within(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """Height and width with no side above `side`, in the same proportion; never enlarged."""
    share = min(1.0, side / max(size))
    return max(round(size[0] * share), 1), max(round(size[1] * share), 1)


def jpeg(image: np.ndarray, quality: int = 80) -> str:
    """Base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0 if quality >= 75 else 2)
    return base64.b64encode(file.getvalue()).decode()


def png(image: np.ndarray) -> str:
    """Base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
