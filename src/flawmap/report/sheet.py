"""Rows of pictures on one white sheet, with a word over each column and beside each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, TEXT = 6, 20  # pixels between pictures; height of a line of words
INK, FAINT = (30, 30, 30), (110, 110, 110)


def sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    caption: str = "",
    cell: int | None = None,
) -> Image.Image:
    """Pictures (H, W, 3) uint8 or masks (H, W) bool, all shown `cell` pixels high; None leaves a place empty.

    `columns` are the words above, `names` those on the left, `caption` stands below.
    """
    first = next(picture for row in rows for picture in row if picture is not None)
    high = cell or first.shape[0]
    wide = round(high * first.shape[1] / first.shape[0])
    font = ImageFont.load_default(size=max(11, min(15, wide // 9)))
    left = GAP + (max((int(font.getlength(name)) for name in names), default=-GAP) + GAP)
    top = GAP + (TEXT if columns else 0)
    most = max(len(row) for row in rows)
    lines = caption.splitlines()
    widest = max((int(font.getlength(line)) + 2 * GAP for line in lines), default=0)
    size = (
        max(left + most * (wide + GAP), widest),
        top + len(rows) * (high + GAP) + TEXT * len(lines) + (GAP if lines else 0),
    )
    out = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(out)
    for place, word in enumerate(columns):
        pen.text((left + place * (wide + GAP) + wide / 2, top - 5), word, INK, font, "ms")
    for number, row in enumerate(rows):
        y = top + number * (high + GAP)
        if number < len(names):
            pen.text((left - GAP, y + high / 2), names[number], INK, font, "rm")
        for place, picture in enumerate(row):
            if picture is not None:
                out.paste(_shown(picture, (wide, high)), (left + place * (wide + GAP), y))
    for number, line in enumerate(lines):
        pen.text((GAP, size[1] - TEXT * (len(lines) - number) + 2), line, FAINT, font)
    return out


def _shown(picture: np.ndarray, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray((picture * np.uint8(255)) if picture.dtype == bool else picture).convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
