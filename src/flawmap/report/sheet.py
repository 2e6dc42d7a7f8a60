"""Rows of pictures on one white sheet, with a word over each column, beside each row and under it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flawmap.report.heatmap import HALO, LINE, outline, picture, resized

GAP, TEXT, APART = 6, 20, 28  # pixels between pictures; height of a line of words; pixels between groups
INK, FAINT, FRAME = (30, 30, 30), (90, 90, 90), (200, 200, 200)

Cell = np.ndarray | tuple[np.ndarray, np.ndarray] | None
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(
    rows: Sequence[Sequence[Cell]],
    *,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
    caption: str = "",
    cell: int | None = None,
    groups: int = 1,
) -> Image.Image:
    """Pictures (H, W, 3) uint8, masks (H, W) bool, or pairs: a picture with its mask's outline. None leaves a place
    empty. All are shown `cell` pixels high, as wide as the first one's shape asks for.

    `columns` are the words above, `names` those on the left, `notes` those under each row, cut to its width; `caption`
    stands below. Rows fill `groups` side by side, from left to right, then down.
    """
    first = next(_array(found) for row in rows for found in row if found is not None)
    high = cell or first.shape[0]
    wide = max(1, round(high * first.shape[1] / first.shape[0]))
    font = ImageFont.load_default(size=max(11, min(15, wide // 9)))
    left = GAP + (max((int(font.getlength(name)) for name in names), default=-GAP) + GAP)
    top = GAP + (TEXT if columns else 0)
    most = max(len(row) for row in rows)
    step = (left - GAP + most * (wide + GAP) - GAP + APART, high + GAP + (TEXT if notes else 0))
    lines = caption.splitlines()
    widest = max((int(font.getlength(line)) + 2 * GAP for line in lines), default=0)
    size = (
        max(GAP + groups * step[0] - APART + GAP, widest),
        top + -(-len(rows) // groups) * step[1] + TEXT * len(lines) + (GAP if lines else 0),
    )
    out = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(out)
    for group in range(min(groups, len(rows))):
        for place, word in enumerate(columns):
            pen.text((group * step[0] + left + place * (wide + GAP) + wide / 2, top - 5), word, INK, font, "ms")
    for number, row in enumerate(rows):
        x, y = left + number % groups * step[0], top + number // groups * step[1]
        if number < len(names):
            pen.text((x - GAP, y + high / 2), names[number], INK, font, "rm")
        if number < len(notes):
            note = _fitting(notes[number], most * (wide + GAP) - GAP, font)
            pen.text((x, y + high + TEXT - 5), note, FAINT, font, "ls")
        for place, found in enumerate(row):
            if found is not None:
                at = x + place * (wide + GAP)
                pen.rectangle((at - 1, y - 1, at + wide, y + high), outline=FRAME)  # where a white picture ends
                out.paste(_shown(found, wide, high), (at, y))
    for number, line in enumerate(lines):
        pen.text((GAP, size[1] - TEXT * (len(lines) - number) + 2), line, FAINT, font)
    return out


def _array(found: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return found[0] if isinstance(found, tuple) else found


def _shown(found: np.ndarray | tuple[np.ndarray, np.ndarray], wide: int, high: int) -> Image.Image:
    """Pictures are resized smoothly, masks so that no pixel of them is lost; an outline is drawn last, 1 px thin."""
    array = _array(found)
    if array.dtype == bool:
        return Image.fromarray(resized(array, (high, wide)) * np.uint8(255)).convert("RGB")
    image = Image.fromarray(picture(array))
    image = image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.LANCZOS)
    if not isinstance(found, tuple):
        return image
    drawn, inside = np.array(image), resized(found[1].astype(bool), (high, wide))
    drawn[outline(inside, 2)] = HALO
    drawn[outline(inside, 1)] = LINE
    return Image.fromarray(drawn)


def _fitting(words: str, width: float, font: Font) -> str:
    """The words, with as many letters taken from their start as it takes to fit."""
    if font.getlength(words) <= width:
        return words
    cut = next((n for n in range(1, len(words)) if font.getlength("..." + words[n:]) <= width), len(words))
    return "..." + words[cut:] if cut < len(words) else ""
