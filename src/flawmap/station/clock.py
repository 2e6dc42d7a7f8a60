"""Notices that the clock was set: a chain's order is that of its numbers, and rows say where times do not follow it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flawmap.station.ledger import now

CLOCK_S = 2.0  # a clock that moved by more is written down


class Clock:
    """The offset to a clock that nobody sets, and that goes on while the machine sleeps where there is such a one."""

    def __init__(self) -> None:
        self.offset = self.read()

    @staticmethod
    def read() -> float:
        kind = getattr(time, "CLOCK_BOOTTIME", None)
        return time.time() - (time.monotonic() if kind is None else time.clock_gettime(kind))

    def jumped(self, offset: float) -> list[dict[str, Any]]:
        """The row for it, if the clock was set since the offset held here; who has written the row sets that one."""
        if abs(moved := offset - self.offset) < CLOCK_S:
            return []
        return [_row(f"the clock was set by {moved:+.1f} s")]


def behind(newest: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The row for a clock that was set back while the station was off."""
    try:
        ahead = [datetime.fromisoformat(row["time"]) - datetime.fromisoformat(now()) for row in newest]
    except (ValueError, TypeError):  # no time: verify says so
        return []
    seconds = (each.total_seconds() for each in ahead)
    return [_row(f"the newest row is {each:.1f} s ahead of the clock") for each in seconds if each > CLOCK_S]


def _row(reason: str) -> dict[str, Any]:
    return {"kind": "event", "code": "CLOCK", "reason": reason}
