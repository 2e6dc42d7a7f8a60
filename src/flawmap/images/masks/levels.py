"""The one reader of masks: a mask in three levels, and the shapes that it is made of.

levels   (H, W) uint8: 0 good, 255 defect, 128 ignore (nobody can say)
shape    a patch of one label: its pixels in a box, and where the box lies
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.decode import MOST_ID, Source, mask_values

IGNORE, DEFECT = 128, 255
IGNORED = "ignore"  # the label of what is ignored
_TOUCHING = np.ones((3, 3))


class Marks(NamedTuple):
    """A mask in two: (H, W) bool each, never both. `ignored` is None where nothing is, so that it costs nothing."""

    defect: np.ndarray
    ignored: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    label: str
    mask: np.ndarray  # (h, w) bool
    left: int = 0
    top: int = 0


@dataclass(frozen=True, slots=True)
class Marked:
    """A picture and its shapes, on the way out."""

    name: str  # relative to the data, with "/" between
    source: Path | None
    size_hw: tuple[int, int]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A picture in another tool's file. Its shapes are drawn only once its size is known to be right."""

    called: str  # the file's words for the picture
    where: str  # for errors
    size_hw: tuple[int, int]  # (0, 0) where the file does not say, which is only where there are no shapes
    draw: Callable[[], Iterable[Shape]]


def read_levels(source: Source | tuple[Source, ...], size_hw: tuple[int, int], of: str) -> tuple[np.ndarray, bool]:
    """(H, W) uint8 of 0, 128, 255, and whether other greys had to be cut.

    128 is ignore only where all values are 0, 128 or 255, or where a sidecar (MASK.png.json, `{"ignore": 128}`) says
    so. Values up to 15 are ids of classes, and every one but 0 is defect; other masks are cut above half, in any
    channel. Of several masks of one picture a defect in any is one. DataError: not as large as the picture, which `of`
    names.
    """
    if isinstance(source, tuple):
        if not source:
            raise DataError(f"{of}: its mask is of no files; give None where there is no mask")
        both = [read_levels(each, size_hw, of) for each in source]
        levels = np.maximum.reduce([levels for levels, _ in both])
        return levels, any(cut for _, cut in both)
    return levels_in(mask_values(source, size_hw, of), source)


def levels_in(values: np.ndarray, source: Source) -> tuple[np.ndarray, bool]:
    """The same of the values (H, W) that one mask holds; `source` is where its sidecar may lie."""
    if values.dtype == np.uint16 and values.max() <= DEFECT:  # 8 bits, written as 16
        values = values.astype(np.uint8)
    if values.max() <= MOST_ID:
        return (values > 0).view(np.uint8) * np.uint8(DEFECT), False
    levels = (values > np.iinfo(values.dtype).max // 2).view(np.uint8) * np.uint8(DEFECT)
    other = values[(values != 0) & (values != DEFECT)]  # few or none
    pure = values.dtype == np.uint8 and bool((other == IGNORE).all())
    if pure and not other.size:
        return levels, False
    if pure or (values.dtype == np.uint8 and isinstance(source, Path | str) and _says_ignore(Path(source))):
        levels[values == IGNORE] = IGNORE
    return levels, not pure


def read_mask(source: Source | tuple[Source, ...], size_hw: tuple[int, int], of: str = "its picture") -> Marks:
    """What is defect and what is ignored, by the rules of `read_levels`."""
    return marks(read_levels(source, size_hw, of)[0])


def marks(levels: np.ndarray) -> Marks:
    ignored = levels == IGNORE
    return Marks(levels == DEFECT, ignored if ignored.any() else None)


def sidecar(mask: Path) -> Path:
    """The file beside a mask that can say what 128 means in it."""
    return mask.with_name(f"{mask.name}.json")


def _says_ignore(mask: Path) -> bool:
    path = sidecar(mask)
    if not path.exists():
        return False
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'{path}: cannot be read as JSON ({error}); write {{"ignore": 128}}, or remove it') from error
    if said != {"ignore": IGNORE}:
        raise DataError(f'{path}: says something else than {{"ignore": 128}}; write that, or remove it')
    return True


def shapes_of(levels: np.ndarray, kind: str, apart: bool = True) -> tuple[Shape, ...]:
    """What is defect, called by its kind, then what is ignored: 8-connected patches, or with `apart` off one each."""
    from scipy import ndimage

    found = []
    for name, value in ((kind, DEFECT), (IGNORED, IGNORE)):
        marked = levels == value
        labels = ndimage.label(marked, structure=_TOUCHING)[0] if apart else marked.astype(int)  # type: ignore[index]
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            rows, columns = box
            found.append(Shape(name, labels[box] == number, columns.start, rows.start))
    return tuple(found)


def levels_of(shapes: Iterable[Shape], size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8. Where a defect and what is ignored overlap, it is ignored; what lies outside is cut off."""
    levels = np.zeros(size_hw, np.uint8)
    for shape in shapes:  # one at a time: a file can hold thousands
        top, left = max(shape.top, 0), max(shape.left, 0)
        inside = shape.mask[top - shape.top :, left - shape.left :]
        part = levels[top : top + inside.shape[0], left : left + inside.shape[1]]
        inside = inside[: part.shape[0], : part.shape[1]]
        part[inside if shape.label == IGNORED else inside & (part != IGNORE)] = (
            IGNORE if shape.label == IGNORED else DEFECT
        )
    return levels


def on_picture(shape: Shape, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool"""
    return levels_of([shape], size_hw) > 0


def save_levels(levels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, format="PNG")
