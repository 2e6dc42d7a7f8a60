"""A sheet for people to judge painted defects before they train: picture, mask, result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.decode import Intake
from flawmap.report.sheet import sheet
from flawmap.synthesis import Synthesis

ROWS = 12


def synthesis_sheet(source: Any, out: Path, preset: str = "pouta", textures: str = "", size: int = 224) -> Path:
    """Writes a PNG of good pictures, spread over the data set, with a defect each."""
    from flawmap.run.feed import textures as read_textures

    if not 32 <= size <= 4096:
        raise UsageError(f"size is {size}; it must be at least 32 and at most 4096")
    good = [s for s in _folder.find(source) if s.split == "train" and s.good]
    if not good:
        raise DataError(f"{source}: no good pictures to paint on")
    chosen = [good[i] for i in np.linspace(0, len(good) - 1, ROWS).astype(int)]
    intake = Intake.fit((s.source for s in chosen), (size, size))
    paint = Synthesis(preset, texture=read_textures(textures) if textures else None, anomalous=1.0)
    rows = []
    for number, sample in enumerate(chosen):
        made = paint(intake(sample.source)[0], (0, number))
        rows.append((_bytes(made.clean), made.mask > 0, _bytes(made.image)))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(out, "PNG")
    return out


def _bytes(image_3HW: np.ndarray) -> np.ndarray:
    return np.rint(image_3HW.transpose(1, 2, 0) * 255).astype(np.uint8)
