"""Challenge parts: known good and known bad ones, judged at the start of a shift; nothing else is, until they pass."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flawmap.errors import DataError, LedgerError, Unavailable, UsageError
from flawmap.images.folder import find
from flawmap.station.ledger import Row
from flawmap.station.line import MOST_TEXT, Line, Picture
from flawmap.station.recipes import Recipe
from flawmap.types import Sample, Verdict

NOT_YET = "the challenge parts have not passed"
POLL_S = 1.0
FULL_S = 30.0  # for a place among the parts that wait
_LOG = logging.getLogger("flawmap.station")


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
        self._ended = threading.Event()
        self._passed: tuple[str, tuple[int, int]] = ("", (0, 0))  # with which bundle, in which shift
        self._end = line.listen(self._heard) if block else lambda: None
        if block:
            line.gate = self._why
            line.block(NOT_YET)
        self._thread = threading.Thread(target=self._watch, name="challenge", daemon=True)
        self._thread.start()

    def run(self, who: str = "") -> Result:
        """Judges all of them. UsageError: it runs already. LedgerError: it cannot be written down, and has not passed.

        What cannot be judged has not passed either. Parts of the line that wait go first.
        """
        if not self._running.acquire(blocking=False):
            raise UsageError("the challenge is running")
        try:
            recipe, shift = self.line.recipes.active, self._now()
            rows, wrong = self._judged(recipe)
            passed = not wrong
            reason = f"{len(rows)} challenge parts passed" if passed else "; ".join(wrong)[:1000]
            self.line.event("PASSED" if passed else "FAILED", f"{recipe.name}: {reason}", who)
            self.last = Result(passed, reason, tuple(rows))
            self._passed = (recipe.bundle if passed else "", shift)
            return self.last
        except BaseException:
            self._passed = ("", (0, 0))
            raise
        finally:
            try:
                self._hold()
            finally:
                self._running.release()

    def close(self) -> None:
        """Ends its thread. A station that was blocked stays so."""
        self._ended.set()
        self._end()
        self._thread.join()

    def _judged(self, recipe: Recipe) -> tuple[list[Row], list[str]]:
        rows, wrong = [], []
        for kind, parts in self.parts.items():
            for name, views in parts.items():
                try:
                    pictures = [Picture(view.name, Path(str(view.source)).read_bytes()) for view in views]
                    row = self._inspected(f"challenge {kind}: {name}"[:MOST_TEXT], pictures, recipe)
                except (UsageError, Unavailable, OSError) as error:
                    wrong.append(f"{kind} part {name}: {error}")
                    continue
                rows.append(row)
                if row["bundle"] != recipe.bundle:
                    wrong.append(f"{kind} part {name} was judged by another bundle: the recipe was switched")
                elif row["kind"] != "verdict" or (row["verdict"] == Verdict.OK) != (kind == "good"):
                    wrong.append(f"{kind} part {name} is {row['verdict'] or row['code']}")
        return rows, wrong

    def _inspected(self, part: str, pictures: Sequence[Picture], recipe: Recipe) -> Row:
        until = time.monotonic() + FULL_S
        while True:
            try:
                return self.line.inspect(part, pictures, recipe=recipe.name, source="challenge", challenge=True)
            except Unavailable as error:
                if error.code != "FULL" or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _why(self, recipe: Recipe) -> str:
        """Why parts of this recipe are not judged now, or ""."""
        bundle, shift = self._passed
        if not bundle:
            failed = self.last and not self.last.passed
            return f"{NOT_YET}: {self.last.reason}" if self.last and failed else NOT_YET
        if shift != self._now():
            return f"{NOT_YET} in this shift"
        return "" if bundle == recipe.bundle else f"{NOT_YET} with the recipe {recipe.name}"

    def _heard(self, what: str, row: Row) -> None:
        """Another recipe has to pass before it judges."""
        if what == "event" and row["code"] in ("RECIPE", "ROLLBACK"):
            self._hold()

    def _hold(self) -> None:
        why, blocked = self._why(self.line.recipes.active), self.line.blocked
        if self.blocks and why != blocked and (why or blocked.startswith(NOT_YET)):  # not what somebody else blocked
            self.line.block(why)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                if not self._running.locked():
                    self._hold()
            except LedgerError as error:  # blocked all the same; tried again
                _LOG.error("%s", error)

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
