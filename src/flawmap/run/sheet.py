"""A sheet for people to judge painted defects before they train: picture, mask, result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.intake import Intake
from flawmap.report.sheet import sheet
from flawmap.synthesis import PRESETS, Painted, Synthesis

PICTURES, GROUPS = 10, 2
SEED = 0
CELL = (160, 320)  # px: pictures of other sizes are shown larger, or smaller
COLUMNS = ("picture", "mask", "result", "result, outlined")


def synthesis_sheet(
    source: Any, out: Path, preset: str = "pouta", textures: str = "", size: int = 224, foreground: str = ""
) -> Path:
    """Writes a PNG of good pictures, spread over the data set, with a defect each."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: the sheet is a PNG; give a name that ends in .png")
    if not 32 <= size <= 4096:
        raise UsageError(f"size is {size}; it must be at least 32 and at most 4096")
    texture = None
    if textures:
        from flawmap.run.feed import textures as read_textures

        texture = read_textures(textures)
    paint = Synthesis(preset, texture=texture, anomalous=1.0, foreground=foreground)
    good = [s for s in _folder.find(source) if s.split == "train" and s.good]
    if not good:
        raise DataError(f"{source}: no good pictures to paint on")
    chosen = [good[i] for i in np.linspace(0, len(good) - 1, PICTURES).astype(int)]
    intake = Intake.fit((s.source for s in chosen), (size, size))
    made = [paint(intake(sample.source)[0], (SEED, number)) for number, sample in enumerate(chosen)]
    rows = [(_bytes(m.clean), m.mask > 0, _bytes(m.image), (_bytes(m.image), m.mask > 0)) for m in made]
    page = sheet(
        rows,
        columns=COLUMNS,
        notes=[f"{sample.name}: {_note(m)}" for sample, m in zip(chosen, made, strict=True)],
        caption=_caption(made, preset, textures, foreground),
        cell=min(max(size, CELL[0]), CELL[1]),
        groups=GROUPS,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out, "PNG")
    return out


def _note(made: Painted) -> str:
    """How much of the picture is painted, and how far its values moved there."""
    inside = made.mask > 0
    if not inside.any():
        return "stays clean, nothing found to paint"
    change = np.abs(made.image - made.clean)[:, inside].mean()
    return f"{100 * inside.mean():.2g} % painted, mean change {100 * change:.2g} % of white"


def _caption(made: list[Painted], preset: str, textures: str, foreground: str) -> str:
    recipe, size = PRESETS[preset], made[0].mask.shape[0]
    own = {"texture": "drawn textures", "either": "drawn textures or the picture's own cells"}
    source = f"pictures of {textures}" if textures else own.get(recipe.source, "drawn textures and the picture's cells")
    shares = 100 * np.array([m.mask.mean() for m in made])
    lines = [
        f"Recipe {preset}, opacity {recipe.opacity[0]:g} to {recipe.opacity[1]:g}, seed {SEED}, {size} x {size} px.",
        f"Painted with {source}, on {f'the part only ({foreground})' if foreground else 'the whole picture'}.",
        f"Share painted: median {np.median(shares):.2g} %, {shares.min():.2g} to {shares.max():.2g} %. "
        "In training half of the pictures stay clean.",
    ]
    if recipe.rotate_clean:
        lines.append(f"The picture itself is turned first, {100 * recipe.rotate_clean:.0f} % of the time.")
    return "\n".join(lines)


def _bytes(image_3HW: np.ndarray) -> np.ndarray:
    return np.rint(image_3HW.transpose(1, 2, 0) * 255).astype(np.uint8)
