"""The anomaly maps of pictures, made when a page asks, by one judge, and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flawmap.errors import CalibrationError
from flawmap.run.look import Looked
from flawmap.run.model import Model

MOST_KEPT = 256_000_000  # bytes of maps as the network gives them
STEPS = 65_535


class Levels(NamedTuple):
    """A map in 16 bits: value = low + level / 65,535 * (high - low)."""

    levels: np.ndarray  # (H, W) uint16, in the size of the picture
    low: float
    high: float


class Maps:
    """One thread judges, so that pages that ask together wait in turn and the machine is not overrun."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.threshold = model.calibration.map_threshold if model.calibration else None
        self._judge = ThreadPoolExecutor(1, "flawmap-map")
        self._kept: OrderedDict[Path, Looked] = OrderedDict()
        self._held = 0

    def of(self, path: Path) -> Levels:
        """DataError: the model cannot judge the picture."""
        looked = self._judge.submit(self._look, path).result()
        return sixteen(self.model.over(looked.map, looked.size), str(path))

    def _look(self, path: Path) -> Looked:
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        found = self.model.look(path)
        self._kept[path] = found
        self._held += found.map.nbytes
        while self._held > MOST_KEPT and len(self._kept) > 1:
            self._held -= self._kept.popitem(last=False)[1].map.nbytes
        return found

    def close(self) -> None:
        """What waits is dropped; what is being judged ends."""
        self._judge.shutdown(cancel_futures=True)


def sixteen(map: np.ndarray, name: str) -> Levels:
    """Rounded down to one of 65,536 levels between its least and its largest value."""
    if not np.isfinite(map).all():
        raise CalibrationError(f"{name}: the map is not a number somewhere, so nothing can be shown of it")
    low, high = float(map.min()), float(map.max())
    span = high - low or 1.0
    levels = (map.astype(np.float64) - low) * (STEPS / span)
    return Levels(np.minimum(levels, STEPS).astype(np.uint16), low, low + span)
