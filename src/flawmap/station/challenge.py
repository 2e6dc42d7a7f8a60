"""Challenge parts: known good and known bad ones, judged at the start of a shift; nothing else is, until they pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flawmap.errors import DataError, UsageError
from flawmap.images.folder import find
from flawmap.station.ledger import Row
from flawmap.station.line import Line, Picture
from flawmap.types import Sample, Verdict

NOT_YET = "the challenge parts have not passed"
POLL_S = 5.0


@dataclass(frozen=True)
class Result:
    passed: bool
    reason: str
    rows: tuple[Row, ...]


class Challenge:
    """Runs the parts of a folder through the line: its pictures in good/ must be OK, those in bad/ must not.

    block   parts are judged only while the last challenge has passed with the recipe in use
    shifts  times of the day, "06:00", at which it has to be passed anew
    """

    def __init__(
        self,
        line: Line,
        folder: Path,
        *,
        block: bool = False,
        shifts: Sequence[str] = (),
        part_pattern: str | None = None,
    ) -> None:
        self.line, self.folder, self.blocks = line, folder, block
        self.shifts = sorted(_minutes(shift) for shift in shifts)
        self.parts = {kind: _parts(folder / kind, part_pattern) for kind in ("good", "bad")}
        self.last: Result | None = None
        self._running = threading.Lock()
        self._shift, self._ended = self._now(), threading.Event()
        self._passed_with = ""
        if block:
            line.block(NOT_YET)
            self._end = line.listen(self._heard)
        threading.Thread(target=self._watch, name="challenge", daemon=True).start()

    def run(self, who: str = "") -> Result:
        """Judges all of them. UsageError: it runs already."""
        if not self._running.acquire(blocking=False):
            raise UsageError("the challenge is running")
        try:
            recipe = self.line.recipes.active
            rows, wrong = [], []
            for kind, parts in self.parts.items():
                for name, views in parts.items():
                    pictures = [Picture(view.name, Path(str(view.source)).read_bytes()) for view in views]
                    row = self.line.inspect(f"challenge {kind}: {name}", pictures, source="challenge", challenge=True)
                    rows.append(row)
                    if row["kind"] != "verdict" or (row["verdict"] == Verdict.OK) != (kind == "good"):
                        wrong.append(f"{kind} part {name} is {row['verdict'] or row['code']}")
            passed = not wrong
            reason = f"{len(rows)} challenge parts passed" if passed else "; ".join(wrong)[:1000]
            self.line.event("PASSED" if passed else "FAILED", f"{recipe.name}: {reason}", who)
            self._passed_with = recipe.bundle if passed else ""
            self.last = Result(passed, reason, tuple(rows))
            if self.blocks:
                self._hold("" if passed and recipe is self.line.recipes.active else f"{NOT_YET}: {reason}")
            return self.last
        finally:
            self._running.release()

    def close(self) -> None:
        self._ended.set()

    def _heard(self, what: str, row: Row) -> None:
        """Another recipe has to pass before it judges."""
        changed = what == "event" and row["code"] in ("RECIPE", "ROLLBACK")
        if changed and self.line.recipes.active.bundle != self._passed_with:
            self._hold(f"{NOT_YET} with the recipe {self.line.recipes.active.name}")

    def _hold(self, reason: str) -> None:
        if self.line.blocked != reason:
            self.line.block(reason)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            shift = self._now()
            if shift != self._shift:
                self._shift, self._passed_with = shift, ""
                if self.blocks:
                    self._hold(f"{NOT_YET} in this shift")

    def _now(self) -> tuple[int, int]:
        """The shift that runs: the day it began, and its number in the day."""
        if not self.shifts:
            return 0, 0
        now = datetime.now()
        begun = sum(now.hour * 60 + now.minute >= start for start in self.shifts)
        day = now.date().toordinal()
        return (day, begun) if begun else (day - 1, len(self.shifts))


def _parts(folder: Path, part_pattern: str | None) -> dict[str, list[Sample]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: a challenge has known good parts in good/ and known bad ones in bad/")
    parts: dict[str, list[Sample]] = {}
    for sample in find(folder, part_pattern=part_pattern, kind=None):
        parts.setdefault(sample.part, []).append(sample)
    if not parts:
        raise DataError(f"{folder}: there is no picture in it")
    return parts


def _minutes(shift: str) -> int:
    hours, _, minutes = shift.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        raise UsageError(f"shift {shift!r}: give a time of the day, as 06:00")
    return int(hours) * 60 + int(minutes)
