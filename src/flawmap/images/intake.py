"""How a model takes its pictures: part of the bundle, so that the line sees them as the fit did.

picture -> region of interest, polygons blacked out -> squashed, or cropped, or cut into tiles -> float32 in [0, 1]

Tiles, a region of interest and polygons are in pixels of the pictures that were fitted, which must be of one shape. A
picture of another size is taken when it has that shape (another binning of the same camera), and tiles are then cut
from it at the fitted size; of another shape it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import (
    MAX_MPX,
    ONE_DEPTH,
    WHITES,
    Source,
    decode,
    label,
    probe,
    read_pixels,
    size_of,
    white_level,
)
from flawmap.images.tiles import Grid, Layout

Polygon = tuple[tuple[float, float], ...]
SAME_SHAPE = 0.01  # by so much the ratio of the sides may differ where tiles, a region or polygons are given
LEAST_ROI = 8  # pixels of its sides


@dataclass(frozen=True, slots=True)
class Intake:
    """What a picture goes through before the network; the same in fitting and at the line."""

    size: tuple[int, int]  # height, width of the network's input
    white: int | None = None  # the 16-bit level that counts as 1.0; None: fitted on 8-bit pictures
    max_mpx: float = MAX_MPX
    resize: int | None = None  # the shorter side becomes so long and the middle `size` is seen; None: squashed
    tile: int | None = None  # pixels of a tile's side, as many as the network takes; None: the picture as a whole
    overlap: int | None = None  # by so many pixels tiles overlap at least
    scales: tuple[float, ...] | None = None  # the picture is cut at its own size times each of these
    roi: tuple[int, int, int, int] | None = None  # left, top, right, bottom: nothing else is seen
    ignore: tuple[Polygon, ...] | None = None  # (x, y) corners: what is inside is black, and marked nowhere
    scene: tuple[int, int] | None = None  # height, width of the pictures that these are pixels of

    def __post_init__(self) -> None:
        if self.resize is not None and not self.resize >= max(self.size):
            raise UsageError(f"resize is {self.resize!r}; give pixels, no fewer than the size {self.size}, or None")
        if len(self.size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.size):
            raise UsageError(f"size is {self.size!r}; give two positive integers, height and width")
        if self.white is not None and self.white not in WHITES:
            raise UsageError(f"white is {self.white!r}; give one of {', '.join(map(str, WHITES))}, or None for 8 bits")
        if not self.max_mpx > 0:
            raise UsageError(f"max_mpx is {self.max_mpx!r}; give a positive number of megapixels")
        self._check_tiles()
        self._check_scene()

    def _check_tiles(self) -> None:
        if self.tile is None:
            if self.overlap is not None or self.scales is not None:
                raise UsageError("overlap and scales belong to tiles: give tile as well")
            return
        if self.resize is not None:
            raise UsageError("a picture is cut into tiles or cropped, not both")
        if self.scene is None:
            raise UsageError("tiles need the size of the pictures that were fitted")
        if self.size != (self.tile, self.tile):
            raise UsageError(f"tile is {self.tile!r}, the network takes {self.size}: the two must be the same")
        whole = isinstance(self.tile, int) and isinstance(self.overlap, int)
        if not whole or not 0 <= (self.overlap or 0) < self.tile:
            raise UsageError(f"overlap is {self.overlap!r}; give pixels from 0 to below the tile's {self.tile}")
        if not (self.scales and _numbers(self.scales) and all(0 < scale <= 1 for scale in self.scales)):
            raise UsageError(f"scales are {self.scales!r}; give one or more numbers above 0, at most 1")
        if list(self.scales) != sorted(set(self.scales), reverse=True):
            raise UsageError(f"scales are {self.scales!r}; give each once, the largest first")

    def _check_scene(self) -> None:
        if self.roi is None and self.ignore is None:
            return
        if self.scene is None:
            raise UsageError("a region or polygons need the size of the pictures that they are pixels of")
        if self.resize is not None:
            raise UsageError("a protocol that crops and a region or polygons are two ways to leave out: choose one")
        high, wide = self.scene
        if self.roi is not None:
            if not _numbers(self.roi, 4):
                raise UsageError(f"the region is {self.roi!r}; give left, top, right, bottom in pixels")
            left, top, right, bottom = self.roi
            inside = left >= 0 and top >= 0 and right <= wide and bottom <= high
            if not inside or min(right - left, bottom - top) < LEAST_ROI:
                raise UsageError(
                    f"the region {self.roi} does not lie in pictures of {wide} x {high}, or has a side below "
                    f"{LEAST_ROI} px; give left, top, right, bottom"
                )
        for polygon in self.ignore or ():
            if not all(_numbers(corner, 2) for corner in polygon):
                raise UsageError(f"the polygon {polygon!r} has a corner that is not x,y")
            if len(polygon) < 3 or not all(0 <= x <= wide and 0 <= y <= high for x, y in polygon):
                raise UsageError(
                    f"the polygon {polygon} does not lie in pictures of {wide} x {high}; give 3 or more corners x,y"
                )

    @classmethod
    def fit(
        cls,
        sources: Iterable[Source],
        size: tuple[int, int],
        max_mpx: float = MAX_MPX,
        resize: int | None = None,
        **seen: Any,
    ) -> Intake:
        """Finds the depth and the white level in one pass; of 8-bit pictures only the headers are read.

        seen  tile, overlap, scales, roi, ignore; the pictures must then all have the first one's shape
        """
        first: dict[int, str] = {}
        peak, scene = 0, None
        placed = any(seen.get(name) is not None for name in ("tile", "roi", "ignore"))
        for source in sources:
            bits = probe(source, max_mpx).bits
            first.setdefault(bits, label(source))
            if len(first) == 2:
                raise DataError(f"{first[16]} has 16 bits a channel and {first[8]} has 8: {ONE_DEPTH}")
            if bits == 16:
                peak = max(peak, int(decode(source, max_mpx).max()))
            if placed:
                size_own = size_of(source, max_mpx)
                scene = scene or size_own
                _same_shape(size_own, scene, source)
        white = white_level(peak) if 16 in first else None
        return cls((size[0], size[1]), white, max_mpx, resize, scene=scene, **seen)

    def place(self, image: Image.Image, filter: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
        """The picture, or its mask, as large as the network's input: squashed, or resized and cut to the middle."""
        if self.resize is None:
            return _resize(image, self.size, filter)
        whole, (top, left) = self._scaled(image.height, image.width)
        return _resize(image, whole, filter).crop((left, top, left + self.size[1], top + self.size[0]))

    def seen(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what the network sees of a picture (height, width), in its own pixels."""
        if self.roi is not None:
            return self._region(size)
        if self.resize is None:
            return 0, 0, size[1], size[0]
        whole, corner = self._scaled(*size)
        ends = zip(size, whole, corner, self.size, strict=True)
        (top, bottom), (left, right) = (
            (round(first * own / scaled), round((first + length) * own / scaled)) for own, scaled, first, length in ends
        )
        return left, top, right, bottom

    def hidden(self, size: tuple[int, int]) -> np.ndarray | None:
        """(H, W) bool: what the polygons take from a picture of this size; None: there are none."""
        if self.ignore is None or self.scene is None:
            return None
        return _inside(self.ignore, self.scene, size)

    def layout(self, size: tuple[int, int]) -> Layout:
        """Where the tiles of a picture (height, width) lie; of an untiled model there is one."""
        if self.tile is None or self.overlap is None or self.scales is None:
            return Layout([Grid(self.size, self.size[0], 0)])
        left, top, right, bottom = self.seen(self.scene or size)  # at the fitted size, whatever this picture's
        scaled = [(round((bottom - top) * scale), round((right - left) * scale)) for scale in self.scales]
        return Layout([Grid(each, self.tile, self.overlap) for each in scaled])

    def view(self, source: Source) -> View:
        """The picture, decoded and held against what the model can take. DataError: it cannot be judged."""
        pixels = read_pixels(source, self.max_mpx)
        if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16:
            hidden = self.hidden((pixels.shape[0], pixels.shape[1]))
            if hidden is not None:  # glare under a polygon is nobody's white level
                pixels = np.where(hidden if pixels.ndim == 2 else hidden[..., None], np.uint16(0), pixels)
            planes = self._sixteen(pixels, source)
        elif self.white is not None:
            raise DataError(
                f"{label(source)} has 8 bits a channel, this model was fitted on 16-bit pictures: {ONE_DEPTH}"
            )
        else:
            planes = [Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels]
        size = (planes[0].height, planes[0].width)
        if self.scene is not None:
            _same_shape(size, self.scene, source)
        if (hidden := self.hidden(size)) is not None:
            planes = [_blackened(plane, hidden) for plane in planes]
        if self.roi is not None:
            planes = [plane.crop(self._region(size)) for plane in planes]
        return View(self, planes, size)

    def __call__(self, source: Source) -> tuple[np.ndarray, tuple[int, int]]:
        """(3, height, width) float32 in [0, 1], C-contiguous, and the picture's own (height, width); untiled models."""
        if self.tile is not None:
            raise UsageError("this model sees a picture in tiles, and what was asked for needs it as a whole")
        view = self.view(source)
        return view.tile(0), view.size

    def _region(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        assert self.roi is not None
        assert self.scene is not None
        high, wide = size[0] / self.scene[0], size[1] / self.scene[1]
        left, top, right, bottom = self.roi
        return round(left * wide), round(top * high), round(right * wide), round(bottom * high)

    def _scaled(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width before the crop, and its corner (top, left); rounding is torchvision's."""
        assert self.resize is not None
        short = min(height, width)
        whole = (int(self.resize * height / short), int(self.resize * width / short))
        return whole, (round((whole[0] - self.size[0]) / 2), round((whole[1] - self.size[1]) / 2))

    def _sixteen(self, pixels: np.ndarray, source: Source) -> list[Image.Image]:
        if self.white is None:
            raise DataError(
                f"{label(source)} has 16 bits a channel, this model was fitted on 8-bit pictures: {ONE_DEPTH}"
            )
        peak = int(pixels.max())
        if peak > self.white:
            raise DataError(
                f"{label(source)} is brighter ({peak}) than the 16-bit white level {self.white} this model was fitted "
                "with: expose as in fitting, or fit again with good pictures that are as bright"
            )
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return [Image.fromarray(plane.astype(np.float32)) for plane in planes]

    @property
    def words(self) -> list[str]:
        """What of a picture is seen, and how; nothing where it is seen as a whole."""
        found, scene = [], "" if self.scene is None else f" of pictures of {self.scene[1]} x {self.scene[0]} px"
        if self.roi is not None:
            left, top, right, bottom = self.roi
            found.append(f"Sees {left} to {right} px across and {top} to {bottom} down{scene}, nothing outside")
        if self.ignore is not None:
            found.append(f"Blacks out {len(self.ignore)} polygons{scene}, and marks nothing there")
        if self.resize is not None:
            found.append(
                f"Sees the middle {self.size[1]} x {self.size[0]} px of {self.resize} (shorter side), nothing outside"
            )
        if self.scales is not None:
            at = "" if self.scales == (1.0,) else f" at {', '.join(f'{scale:g}' for scale in self.scales)} of the size"
            found.append(f"Cuts pictures{at} into tiles of {self.tile} px that overlap by {self.overlap} px or more")
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Intake:
        known = [field.name for field in fields(cls)]
        # Bundles of before these were there lack them.
        values = {**dict.fromkeys(known[3:]), **values}
        if set(values) != set(known):
            raise UsageError(f"the intake has the fields {sorted(values)}; known are {sorted(known)}")
        return cls(**{key: tuples(value) for key, value in values.items()})


class View:
    """One picture on its way into the network: decoded once, cut when asked.

    size    the picture's own height and width
    layout  its tiles
    """

    def __init__(self, intake: Intake, planes: Sequence[Image.Image], size: tuple[int, int]) -> None:
        self.intake, self.size, self.layout = intake, size, intake.layout(size)
        self._planes = planes  # one of 8 bits (grey or RGB), or a float one for each channel
        self._scaled: tuple[int, Sequence[Image.Image]] = (-1, ())
        self._first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.layout)

    def ready(self) -> View:
        """The same with its first tile made, which of an untiled model is all that is kept."""
        self._first = self.tile(0)
        if self.intake.tile is None:
            self._planes = ()
        return self

    def tile(self, number: int) -> np.ndarray:
        """(3, height, width) float32 in [0, 1], C-contiguous."""
        if number == 0 and self._first is not None:
            return self._first
        if self.intake.tile is None:
            return self._planar([self.intake.place(plane) for plane in self._planes])
        scale, place = self.layout.place(number)
        grid = self.layout.grids[scale]
        if self._scaled[0] != scale:
            self._scaled = (scale, [_resize(plane, grid.size, Image.Resampling.BILINEAR) for plane in self._planes])
        top, left = grid.corner(place)
        box = (left, top, left + grid.tile, top + grid.tile)
        return self._planar([plane.crop(box) for plane in self._scaled[1]])

    def _planar(self, planes: Sequence[Image.Image]) -> np.ndarray:
        out = np.empty((3, *self.intake.size), np.float32)
        if self.intake.white is None:
            pixels = np.asarray(planes[0])
            np.divide(pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1), np.float32(255), out=out)
            return out
        for channel, plane in enumerate(planes):
            out[channel] = np.asarray(plane)
        out[len(planes) :] = out[0]
        out /= np.float32(self.intake.white)
        return np.minimum(out, 1, out=out)  # the filter's weights may sum to a hair above 1


def _resize(image: Image.Image, size: tuple[int, int], filter: Image.Resampling) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), filter)


def _same_shape(size: tuple[int, int], scene: tuple[int, int], source: Source) -> None:
    shape = scene[1] / scene[0]
    if abs(size[1] - size[0] * shape) > max(SAME_SHAPE * size[1], 1 + shape):  # a pixel of either side is rounding
        raise DataError(
            f"{label(source)} is {size[1]} x {size[0]}, and this model was fitted on pictures of "
            f"{scene[1]} x {scene[0]}: give pictures of that shape"
        )


def _numbers(values: Any, count: int | None = None) -> bool:
    fine = isinstance(values, tuple) and len(values) == (count or len(values))
    return fine and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


@lru_cache(2)
def _inside(polygons: tuple[Polygon, ...], scene: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    from PIL import ImageDraw  # brings fonts along, which no other picture needs

    drawn = Image.new("1", (size[1], size[0]))
    high, wide = size[0] / scene[0], size[1] / scene[1]
    for polygon in polygons:
        ImageDraw.Draw(drawn).polygon([(x * wide, y * high) for x, y in polygon], fill=1)
    inside = np.array(drawn)
    inside.setflags(write=False)
    return inside


def _blackened(plane: Image.Image, hidden: np.ndarray) -> Image.Image:
    plane = plane.copy()  # the caller's array may be behind it
    plane.paste((0, 0, 0) if plane.mode == "RGB" else 0, mask=Image.fromarray(hidden))
    return plane


def tuples(value: Any) -> Any:
    """Lists, which JSON and callers give, as tuples, all the way down."""
    return tuple(tuples(each) for each in value) if isinstance(value, (list, tuple)) else value
