"""The last parts with their pictures and maps, for the live page; what is older is in the ledger and what was kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from flawmap.images.intake import Intake
from flawmap.run.look import Looked, over

MOST_PARTS = 60
MOST_BYTES = 96_000_000  # of pictures and maps together
MAP_SIDE = 512


@dataclass(frozen=True)
class Shown:
    """One view: the file as it came, and what the network saw in it, through which intake. None: it was not judged."""

    content: bytes
    looked: Looked | None
    intake: Intake

    @property
    def map(self) -> np.ndarray | None:
        """(H, W) float32, in the size of the picture. Not kept: it is ten times what the network gives."""
        return None if self.looked is None else over(self.intake, self.looked.map, self.looked.size)


class Recent:
    """Pictures and maps by row number, the newest ones only. Safe to use from several threads."""

    def __init__(self) -> None:
        self._parts: OrderedDict[int, tuple[Shown, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, seq: int, views: tuple[Shown, ...]) -> None:
        with self._lock:
            self._bytes -= _size(self._parts.pop(seq, ()))
            self._parts[seq] = views
            self._bytes += _size(views)
            while len(self._parts) > MOST_PARTS or (self._bytes > MOST_BYTES and len(self._parts) > 1):
                self._bytes -= _size(self._parts.popitem(last=False)[1])

    def get(self, seq: int, view: int) -> Shown | None:
        with self._lock:
            views = self._parts.get(seq, ())
        return views[view] if 0 <= view < len(views) else None


def light(looked: Looked | None) -> Looked | None:
    """As it is kept: a map of tiles can be as large as the picture, and is thinned."""
    if looked is None or max(looked.map.shape) <= MAP_SIDE:
        return looked
    return looked._replace(map=thinned(looked.map).astype(np.float32))


def thinned(map: np.ndarray) -> np.ndarray:
    """(H, W) -> at most 512 px a side, float16: of every block its largest value, so that a small defect stays."""
    step = -(-max(map.shape) // MAP_SIDE)
    rows, columns = (np.arange(0, side, step) for side in map.shape)
    largest = np.maximum.reduceat(np.maximum.reduceat(map, rows, axis=0), columns, axis=1)
    return np.clip(largest, -6e4, 6e4).astype(np.float16)


def _size(views: tuple[Shown, ...]) -> int:
    return sum(len(view.content) + (view.looked.map.nbytes if view.looked else 0) for view in views)
