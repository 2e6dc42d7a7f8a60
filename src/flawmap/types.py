"""All that crosses a layer. Five nouns, one meaning each: image, mask, map, score, verdict.

image    (H, W, 3) uint8 or uint16 as decoded; (3, H, W) float32 in [0, 1] as a detector takes it
mask     (H, W) bool: where a person says the defect is; beside it, where there are any, the pixels to ignore
map      (H, W) float32: how strange each pixel is; higher is stranger, never rescaled
score    float: how strange the picture is; higher is stranger, never rescaled
verdict  OK, NOK or REVIEW (a person looks): a score held against calibrated thresholds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

GOOD = "good"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture and what is known of it."""

    source: Path | bytes | np.ndarray  # a file, its bytes, or the pixels: (H, W) or (H, W, 3|4), uint8 or uint16
    name: str  # its path relative to the data's root with "/" between, or the name given to an array
    part: str  # the thing shown: several views of it share this
    split: Literal["train", "test"] = "train"
    kind: str | None = GOOD  # "good", the kind of defect, or None when unknown
    # (H, W), read by images/masks/levels.py; of a tuple the union is the mask; None: no mask given
    mask: Path | np.ndarray | tuple[Path | np.ndarray, ...] | None = None

    @property
    def good(self) -> bool:
        return self.kind == GOOD


@dataclass(slots=True)
class Batch:
    """What a detector is fed. Tensors of torch; only what the detector asked for is set."""

    image: Any = None  # (B, 3, H, W) float32 in [0, 1]; the corrupted picture where there is synthesis
    features: tuple[Any, ...] | None = (
        None  # frozen feature maps, one (B, C, h, w) a stage, for detectors that have a head
    )
    clean: Any = None  # (B, 3, H, W): the picture before synthesis
    mask: Any = None  # (B, H, W) float32 in {0, 1}: where synthesis put its defect
    generic: Any = None  # (B, 3, H, W): a picture of anything


class Prediction(NamedTuple):
    """What a detector says of a batch: tensors of torch or arrays of numpy."""

    map: Any  # (B, H, W)
    score: Any  # (B,)


class Verdict(StrEnum):
    OK = "OK"
    NOK = "NOK"
    REVIEW = "REVIEW"  # only with a calibration that has a band for it


@dataclass(frozen=True, slots=True)
class Region:
    """One connected patch of the map above its threshold, in pixels of the picture as it was given."""

    box: tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside
    area_px: int
    centroid: tuple[float, float]  # x, y
    peak: float  # largest map value inside
    # Corners of its outer border, clockwise, on the grid between pixels: its first pixel's upper left corner is (0, 0).
    contour: tuple[tuple[int, int], ...] = ()
    area_mm2: float | None = None  # where the calibration knows what a pixel measures


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What is found in one part: its views in the order given, and one verdict over all of them."""

    names: tuple[str, ...]
    part: str
    score: float  # the largest over the views
    scores: tuple[float, ...]  # one a view
    maps: Sequence[np.ndarray] = field(repr=False)  # one (H, W) float32 a view, in the size of the picture as given
    regions: tuple[tuple[Region, ...], ...]  # one tuple a view; empty tuples without a calibration
    verdict: Verdict | None  # None only when the model is not calibrated
    p_value: float | None
    threshold: float | None

    @property
    def map(self) -> np.ndarray:
        """The map of the strangest view."""
        return self.maps[int(np.argmax(self.scores))]
