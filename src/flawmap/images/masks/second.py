"""Two people's masks of the same pictures: how far they agree.

Pixels that one of them ignores count nowhere. Distances go between outlines: the defect pixels that share a side with
one that is none. Where a mask ends at the picture's edge it has no outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError
from flawmap.images.folder import masks_of
from flawmap.images.masks.levels import Marks
from flawmap.types import Sample


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one picture; None where neither marked anything, distances also where one of them did not."""

    name: str
    iou: float | None
    mean_px: float | None  # from an outline to the nearest point of the other, both ways
    hausdorff95_px: float | None  # 95 of 100 points of either outline lie no farther from the other
    area_px: tuple[int, int]


def second_masks(samples: Sequence[Sample], second: Path) -> dict[str, Path]:
    """By the picture's name; `second` is laid out as ground_truth is, or holds that folder. DataError: none fits."""
    root = second / "ground_truth" if (second / "ground_truth").is_dir() else second
    if not root.is_dir():
        raise DataError(f"{second}: must be a folder like ground_truth, with <kind>/<stem>_mask.png")
    given = masks_of(root)
    keys = {sample.name: sample.name.removeprefix("test/").rsplit(".", 1)[0] for sample in samples}
    found = {name: given[key] for name, key in keys.items() if key in given}
    if not found:
        raise DataError(f"{second}: no mask in it is of a picture of the data; name them <kind>/<stem>_mask.png")
    return found


def agree(name: str, one: Marks, other: Marks) -> Agreement:
    counted = np.ones(one.defect.shape, bool)
    for ignored in (one.ignored, other.ignored):
        if ignored is not None:
            counted &= ~ignored
    a, b = one.defect & counted, other.defect & counted
    union = np.count_nonzero(a | b)
    areas = (int(np.count_nonzero(a)), int(np.count_nonzero(b)))
    iou = np.count_nonzero(a & b) / union if union else None
    outlines = _outline(a), _outline(b)
    if not all(outline.any() for outline in outlines):
        return Agreement(name, iou, None, None, areas)
    there, back = _distances(*outlines), _distances(*outlines[::-1])
    farthest = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return Agreement(name, iou, float(np.concatenate([there, back]).mean()), farthest, areas)


def overall(found: Sequence[Agreement]) -> dict[str, Any]:
    """Means over pictures and their worst, where a picture has the figure."""
    result: dict[str, Any] = {"pictures": len(found)}
    for key, worst in (("iou", min), ("mean_px", max), ("hausdorff95_px", max)):
        values = [value for each in found if (value := asdict(each)[key]) is not None]
        result[key] = float(np.mean(values)) if values else None
        result[f"{key}_worst"] = worst(values) if values else None
    return result


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """From every pixel of the outline `a` to the nearest of `b`."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(np.logical_not(b)))[a]


def _outline(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return np.logical_and(mask, np.logical_not(binary_erosion(mask, border_value=1)))
