"""What a page sends as a mask: checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flawmap.errors import DataError, FlawmapError
from flawmap.images.decode import read_pixels
from flawmap.images.masks.levels import DEFECT, IGNORE
from flawmap.images.png import write_png

GREY = 0  # the colour of a PNG that is one grey channel
PLAIN = {b"IHDR", b"IDAT", b"IEND"}


class Empty(FlawmapError):
    """Nothing is marked on a picture that is called defective."""


def checked(content: bytes, size: tuple[int, int], good: bool, empty: bool) -> tuple[bytes, np.ndarray]:
    """A mask as a page sends it: its file as it will be written, and its levels.

    DataError: no grey PNG of 8 bits, not as large as the picture, other values than 0, 128 and 255, or a defect on a
    good picture. Empty: nothing is marked, and `empty` does not say that this is meant.
    """
    head = content[:26]
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise DataError("the mask is no PNG")
    wide, high = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    if (high, wide) != size:
        raise DataError(f"the mask is {wide} x {high} pixels, the picture is {size[1]} x {size[0]}")
    if (head[24], head[25]) != (8, GREY):
        raise DataError("the mask must be a grey PNG of 8 bits")
    if other := set(_chunks(content)) - PLAIN:  # a tag could turn it
        raise DataError(f"the mask must be a plain PNG, without {', '.join(map(repr, sorted(other)))}")
    levels = _pixels(content, size)
    counts = np.bincount(levels.ravel(), minlength=256)
    if counts[0] + counts[IGNORE] + counts[DEFECT] != levels.size:
        grey = next(value for value in np.flatnonzero(counts).tolist() if value not in (0, IGNORE, DEFECT))
        raise DataError(f"the mask holds {grey}; it may hold 0, {IGNORE} (ignore) and {DEFECT} (defect)")
    if good and counts[DEFECT]:
        raise DataError("the picture is called good and cannot have a defect; move it to test/<kind> first")
    if not good and not counts[DEFECT] and not empty:
        raise Empty("no pixel is marked as defect, and the picture is called defective")
    return write_png(levels), levels


def _pixels(content: bytes, size: tuple[int, int]) -> np.ndarray:
    try:
        return np.asarray(read_pixels(content, size[0] * size[1] / 1e6 + 1))
    except DataError as error:
        raise DataError("the mask is cut off or damaged; nothing was changed, so save it again") from error


def _chunks(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(content):
        yield content[at + 4 : at + 8]
        at += 12 + int.from_bytes(content[at : at + 4], "big")
