"""What leaves the station beside its verdicts: messages that wait for a peer, and never hold up a verdict.

A box is bounded. Where a peer is gone for longer than it holds, the oldest messages are lost, and counted: the ledger
has them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from flawmap.errors import UsageError
from flawmap.station.ledger import Row

WHAT = ("part", "decision", "event", "fault")
_KEPT = (
    "time",
    "kind",
    "source",
    "request",
    "part",
    "recipe",
    "bundle",
    "calibration",
    "verdict",
    "code",
    "reason",
    "score",
    "p_value",
    "threshold",
    "latency_ms",
    "refers",
    "who",
)


class Outbox:
    """Messages in order, `most` of them. Safe to use from several threads; `woken` is called after each `put`."""

    def __init__(self, most: int, woken: Callable[[], object]) -> None:
        if most < 1:
            raise UsageError("an outbox holds at least 1 message")
        self.most, self.lost = most, 0
        self._woken, self._lock, self._next = woken, threading.Lock(), 0
        self._waiting: deque[tuple[int, Any]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Any) -> None:
        with self._lock:
            if len(self._waiting) == self.most:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append((self._next, item))
            self._next += 1
        self._woken()

    def first(self) -> tuple[int, Any] | None:
        """The oldest message and its number; it stays until it is removed."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def remove(self, number: int, lost: bool = False) -> None:
        """It was delivered, or is given up. One that has made room for others meanwhile is counted already."""
        with self._lock:
            if self._waiting and self._waiting[0][0] == number:
                self._waiting.popleft()
                self.lost += lost


def message(what: str, row: Row, station: str) -> dict[str, Any]:
    """A row as peers get it: without the paths of kept pictures, and of regions how many there are."""
    found: dict[str, Any] = {"type": what, "station": station, "row": row.get("seq"), "hash": row.get("hash")}
    found |= {name: row.get(name) for name in _KEPT}
    views = [
        {"name": view["name"], "sha256": view["sha256"], "score": view.get("score")}
        | {"regions": len(view.get("regions", ()))}
        for view in row.get("views") or ()
    ]
    return found | {"views": views}
