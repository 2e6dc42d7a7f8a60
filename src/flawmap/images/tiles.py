"""Tiles: where the network's squares lie on a picture, at every scale, and how their maps become one.

A tile is as large as the network's input and is cut at the picture's own resolution, so that a small defect stays as
large as it is. Tiles stand evenly, in rows and columns, and overlap by at least `overlap` pixels. Where several cover a
pixel their maps are blended with weights that fall off linearly over the overlap; at the border of the picture they do
not fall off.

T tiles  h w pixels of a tile  H W pixels of the scaled picture
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


class Grid:
    """The tiles over a picture of one scale; a side that is shorter than a tile is stretched to it."""

    def __init__(self, size: tuple[int, int], tile: int, overlap: int) -> None:
        self.size = (max(size[0], tile), max(size[1], tile))
        self.tile, self.overlap = tile, overlap
        self.tops, self.lefts = (_starts(side, tile, overlap) for side in self.size)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def corner(self, number: int) -> tuple[int, int]:
        """Top and left of a tile, counted row by row."""
        row, column = divmod(number, len(self.lefts))
        return self.tops[row], self.lefts[column]

    def part(self, rows: int, columns: int) -> tuple[Grid, list[int]]:
        """The first so many rows and columns of tiles as a grid of their own, and their numbers in this one."""
        part = Grid(self.size, self.tile, self.overlap)
        part.tops, part.lefts = self.tops[:rows], self.lefts[:columns]
        part.size = (part.tops[-1] + self.tile, part.lefts[-1] + self.tile)
        wide = len(self.lefts)
        return part, [row * wide + column for row in range(len(part.tops)) for column in range(len(part.lefts))]

    def blend(self, map_Thw: Iterable[np.ndarray]) -> np.ndarray:
        """The tiles' maps, in their order, as one: (H, W) float32. One map at a time is held beside it."""
        if len(self) == 1:
            return next(iter(map_Thw))
        whole = np.zeros(self.size, np.float32)
        high, wide = (
            self._weights(starts, side) for starts, side in zip((self.tops, self.lefts), self.size, strict=True)
        )
        for number, map in enumerate(map_Thw):
            row, column = divmod(number, len(self.lefts))
            top, left = self.corner(number)
            weighted = map * high[row][:, None] * wide[column]
            whole[top : top + self.tile, left : left + self.tile] += weighted
        return whole

    def seam(self, map_Thw: Sequence[np.ndarray]) -> np.ndarray:
        """How far each tile's map is from the blended one, where another tile covers the pixel too: all of these."""
        whole = self.blend(map_Thw)
        rows, columns = (
            _covers(starts, self.tile, side) for starts, side in zip((self.tops, self.lefts), self.size, strict=True)
        )
        gaps = [np.empty(0, np.float32)]
        for number, map in enumerate(map_Thw):
            top, left = self.corner(number)
            inside = (slice(top, top + self.tile), slice(left, left + self.tile))
            shared = rows[inside[0]][:, None] * columns[inside[1]] > 1
            gaps.append(np.abs(map - whole[inside])[shared])
        return np.concatenate(gaps)

    def _weights(self, starts: Sequence[int], side: int) -> list[np.ndarray]:
        """Of each row (or column) of tiles: weights that sum to 1 over all tiles that cover a pixel."""
        found, total = [], np.zeros(side)
        for start in starts:
            weight = np.ones(self.tile)
            ramp = (np.arange(self.overlap) + 0.5) / self.overlap if self.overlap else np.ones(0)
            if start > 0:
                weight[: self.overlap] = ramp
            if start + self.tile < side:
                weight[self.tile - self.overlap :] *= ramp[::-1]
            found.append(weight)
            total[start : start + self.tile] += weight
        return [(w / total[s : s + self.tile]).astype(np.float32) for w, s in zip(found, starts, strict=True)]


@dataclass(frozen=True)
class Layout:
    """The tiles of one picture: all of the first scale, then all of the second, and so on."""

    grids: Sequence[Grid]

    def __len__(self) -> int:
        return sum(len(grid) for grid in self.grids)

    def place(self, number: int) -> tuple[int, int]:
        """Which scale a tile belongs to, and its number there."""
        for scale, grid in enumerate(self.grids):
            if number < len(grid):
                return scale, number
            number -= len(grid)
        raise IndexError("there is no such tile")

    def join(self, map_Thw: Iterable[np.ndarray]) -> np.ndarray:
        """The maps of all tiles, in their order, as one in the size of the first scale: the largest over the scales."""
        maps = iter(map_Thw)
        whole = self.grids[0].blend(_next(maps, len(self.grids[0])))
        for grid in self.grids[1:]:
            map = enlarge(grid.blend(_next(maps, len(grid))), (whole.shape[0], whole.shape[1]))
            whole = np.maximum(whole, map)
        return whole


def enlarge(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) in another size, bilinear."""
    if map.shape == size:
        return map
    return np.asarray(Image.fromarray(map).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _next(maps: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield next(maps)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    count = max(1, math.ceil((side - overlap) / (tile - overlap)))
    return [round(place * (side - tile) / max(count - 1, 1)) for place in range(count)]


def _covers(starts: Sequence[int], tile: int, side: int) -> np.ndarray:
    """How many tiles of a row (or column) cover each pixel."""
    count = np.zeros(side, int)
    for start in starts:
        count[start : start + tile] += 1
    return count
