"""From a part's pictures to a verdict in the ledger: one queue, a few judges, one recorder. Every door goes this road.

A part is accepted or refused at once (`Unavailable`). What was accepted gets a row, a verdict or an error, before it is
answered, whatever happens to who asked. A verdict that cannot be given or written is an error, never OK.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from flawmap.errors import BundleError, CalibrationError, DataError, FlawmapError, LedgerError, Unavailable, UsageError
from flawmap.station.keep import Keep
from flawmap.station.ledger import Ledger, Row, now
from flawmap.station.recent import Recent, Shown, thinned
from flawmap.station.recipes import Recipe, Recipes
from flawmap.types import Inspection, Region, Verdict
from flawmap.verdict.drift import Martingale

CODES = {DataError: "DATA", CalibrationError: "CALIBRATION", BundleError: "BUNDLE", Unavailable: "TIMEOUT"}
DECISIONS = ("false alarm", "really bad", "agreed")
MOST_REGIONS = 50  # a view, in a row
MOST_TEXT = 500
TOGETHER = 64  # rows in one transaction, at most
CLOCK_S = 2.0  # a clock that moved by more against the monotonic one is written down
BET = 100_000  # parts, after which the drift test starts anew
_LOG = logging.getLogger("flawmap.station")


@dataclass(frozen=True)
class Picture:
    """One view as it came: a file's bytes."""

    name: str
    content: bytes


@dataclass
class _Job:
    part: str
    views: Sequence[Picture]
    recipe: Recipe
    source: str
    request: str | None
    who: str
    challenge: bool = False
    begun: float = field(default_factory=time.monotonic)
    answer: Future[Row] = field(default_factory=Future)
    found: Inspection | None = None
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(len(view.content) for view in self.views)


class Line:
    """A station's heart. Safe to use from several threads.

    waiting     parts that may wait for a judge; more are refused with `Unavailable`
    judges      parts judged at once: decoding of one goes beside the network of another
    deadline_s  a part that has waited longer is an error, code TIMEOUT
    most_bytes  of the pictures that wait
    """

    def __init__(
        self,
        recipes: Recipes,
        ledger: Ledger,
        keep: Keep | None = None,
        *,
        waiting: int = 32,
        judges: int = 2,
        deadline_s: float = 10.0,
        most_bytes: int = 512_000_000,
    ) -> None:
        if waiting < 1 or judges < 1 or not deadline_s > 0:
            raise UsageError("waiting and judges are at least 1, the deadline is above 0 s")
        self.recipes, self.ledger, self.keep, self.recent = recipes, ledger, keep, Recent()
        self.waiting, self.deadline_s, self.most_bytes = waiting, deadline_s, most_bytes
        self.blocked = ""  # why nothing is judged, or ""
        self.fault = ""  # why the last part got no verdict for a fault of the station's own, or ""
        self.drift: Martingale | None = None
        self.lamps: dict[str, tuple[str, str]] = {}  # of cameras and PLCs: ok, warn, bad or off, and in words
        self.counts: dict[str, int] = {}
        self.times_ms: list[float] = []  # of the last 1,000 parts
        self.refused = self.last_seq = 0
        self._asked: dict[str, _Job] = {}  # those inside, by their request
        self._listeners: list[Callable[[str, Row], None]] = []
        self._lock = threading.Lock()
        self._inside = self._bytes = self._seen = 0
        self._closing = False
        self._bet = ""
        self._clock = time.time() - time.monotonic()
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._done: queue.Queue[_Job | None] = queue.Queue()
        self.event("START", f"recipe {recipes.active.name}")  # a ledger that takes no row is found out at once
        self._judges = [threading.Thread(target=self._judge, name=f"judge-{n}", daemon=True) for n in range(judges)]
        self._recorder = threading.Thread(target=self._record, name="recorder", daemon=True)
        for thread in (*self._judges, self._recorder):
            thread.start()

    def submit(
        self,
        part: str,
        views: Sequence[Picture],
        *,
        recipe: str | None = None,
        source: str = "http",
        request: str | None = None,
        who: str = "",
        challenge: bool = False,
    ) -> Future[Row]:
        """The part's row in the ledger, when it is written: kind "verdict", or "error" with a code and a reason.

        request    the same one is judged and written once, however often it is sent; with other pictures it is refused
        challenge  is judged though the station is blocked

        Unavailable: too many wait, the station is blocked or closes. UsageError: no such recipe, or another number of
        views than it judges. The future raises LedgerError when the row could not be written.
        """
        found = self.recipes.get(recipe)
        least, most = found.views
        if not least <= len(views) <= most:
            asked = f"{least}" if least == most else f"{least} to {most}"
            raise UsageError(f"recipe {found.name!r} judges parts of {asked} views, this one has {len(views)}")
        if not part.strip() or len(part) > MOST_TEXT or len(request or "") > 200:
            raise UsageError(f"a part has a name of 1 to {MOST_TEXT} characters, a request one of at most 200")
        if self.blocked and not challenge:
            raise Unavailable(f"blocked: {self.blocked}", "BLOCKED", 5)
        job = _Job(part, views, found, source, request or None, who, challenge)
        if request and (row := self.ledger.of_request(request)):
            _same(job, row["part"], [view["sha256"] for view in row["views"]])
            job.answer.set_result(row)
            return job.answer
        with self._lock:
            if request and (twin := self._asked.get(request)):
                _same(job, twin.part, [_sha256(view) for view in twin.views])
                return twin.answer
            if self._closing:
                raise Unavailable("the station is closing", "CLOSING", 5)
            if self._inside >= self.waiting + len(self._judges) or self._bytes + job.bytes > self.most_bytes:
                self.refused += 1
                raise Unavailable(f"{self._inside} parts are waiting; try again", "FULL", 1)
            self._inside += 1
            self._bytes += job.bytes
            if request:
                self._asked[request] = job
            self._jobs.put(job)
        return job.answer

    def inspect(self, part: str, views: Sequence[Picture], **how: Any) -> Row:
        """`submit`, and waiting for the row."""
        return self.submit(part, views, **how).result()

    def fail(self, part: str, code: str, reason: str, source: str, request: str | None = None) -> Row:
        """A row for a part that could not be handed in: no picture of it, a view too few."""
        entry = {"kind": "error", "part": part[:MOST_TEXT], "code": code, "reason": reason, "source": source}
        entry |= {"request": request, "recipe": self.recipes.active.name}
        row = self.ledger.add(**entry)
        self.counts["ERROR"] = self.counts.get("ERROR", 0) + 1
        return self._tell("part", row)

    def decide(self, seq: int, decision: str, reason: str, who: str) -> Row:
        """An operator's decision on a row, as a row of its own. It changes no verdict and no threshold."""
        if decision not in DECISIONS:
            raise UsageError(f"a decision is one of {', '.join(DECISIONS)}, not {decision!r}")
        if not reason.strip() or not who.strip() or max(len(reason), len(who) * 10) > 2000:
            raise UsageError("a decision needs a reason of at most 2,000 characters, and who made it")
        row = self.ledger.get(seq)
        if row is None or row["kind"] not in ("verdict", "error"):
            raise UsageError(f"row {seq} of the ledger is no part's")
        same = {name: row[name] for name in ("part", "recipe", "bundle", "calibration", "verdict", "score")}
        entry = {**same, "kind": "decision", "code": decision, "reason": reason, "who": who, "refers": seq}
        return self._tell("decision", self.ledger.add(**entry, source="page"))

    def event(self, code: str, reason: str, who: str = "") -> Row:
        """Something that is no part: a start, a switch of recipes, a challenge."""
        return self._tell("event", self.ledger.add(kind="event", code=code, reason=reason, who=who or None))

    def use(self, name: str, who: str = "", *, reload: bool = False) -> Recipe:
        found = self.recipes.use(name, reload=reload)
        self.event("RECIPE", f"uses {name}, bundle {found.bundle[:12]}", who)
        return found

    def roll_back(self, who: str = "") -> Recipe:
        found = self.recipes.roll_back()
        self.event("ROLLBACK", f"back to {found.name}, bundle {found.bundle[:12]}", who)
        return found

    def block(self, reason: str) -> None:
        """Nothing is judged but challenge parts, until it is called with "" again."""
        self.blocked = reason
        self.event("BLOCKED" if reason else "RELEASED", reason or "parts are judged again")

    def listen(self, listener: Callable[[str, Row], None]) -> Callable[[], None]:
        """Calls back with ("part" | "decision" | "event" | "fault", row) from the station's threads; returns an end."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    @property
    def inside(self) -> int:
        """Parts that were accepted and not answered yet."""
        return self._inside

    @property
    def ready(self) -> bool:
        return not (self._closing or self.blocked or self.fault)

    def close(self) -> None:
        """Takes no more parts, finishes those that were accepted, and writes the end into the ledger."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        for _ in self._judges:
            self._jobs.put(None)
        for thread in self._judges:
            thread.join()
        self._done.put(None)
        self._recorder.join()
        try:
            self.event("STOP", "finished what was accepted")
        except LedgerError as error:
            _LOG.error("%s", error)
        self.ledger.close()

    def _judge(self) -> None:
        while (job := self._jobs.get()) is not None:  # None ends it
            try:
                if time.monotonic() - job.begun > self.deadline_s:
                    raise Unavailable(f"waited longer than {self.deadline_s:g} s", "TIMEOUT")
                views, names = [view.content for view in job.views], [view.name for view in job.views]
                job.found = job.recipe.model.inspect_part(views, names=names, part=job.part)
                if job.found.verdict is None:
                    raise CalibrationError("the model gives no verdict")
                job.entry = self._verdict(job, job.found)
            except FlawmapError as error:
                job.entry = _error(job, CODES.get(type(error), "ERROR"), str(error))
            except Exception as error:  # a fault of ours is the part's error, not the station's end
                _LOG.exception("part %s", job.part)
                job.entry = _error(job, "INTERNAL", f"{type(error).__name__}: {error}")
            self._done.put(job)

    def _verdict(self, job: _Job, found: Inspection) -> dict[str, Any]:
        kept = False
        if self.keep is not None:
            with self._lock:
                self._seen += found.verdict == Verdict.OK
                seen = self._seen
            kept = self.keep.wanted(seen, found.verdict, found.p_value, job.recipe.least_p)
        entry = _common(job) | {"kind": "verdict", "verdict": str(found.verdict), "score": found.score}
        entry |= {"p_value": found.p_value, "threshold": found.threshold}
        views = []
        for view, score, regions in zip(job.views, found.scores, found.regions, strict=True):
            views.append(_view(view) | {"score": score, "regions": [_region(r) for r in regions[:MOST_REGIONS]]})
        return entry | {"views": views, "keep": kept}

    def _record(self) -> None:
        """One thread: rows of all that has been judged meanwhile go into one transaction."""
        ended = False
        while not ended:
            jobs: list[_Job | None] = [self._done.get()]
            while len(jobs) < TOGETHER and not self._done.empty():
                jobs.append(self._done.get())
            ended = None in jobs
            try:
                self._written([job for job in jobs if job is not None])
            except Exception:  # the recorder must not end: without it no part is answered
                _LOG.exception("recorder")

    def _written(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        rows: list[Row | LedgerError]
        try:
            for job in jobs:
                self._keep(job)
                job.entry["latency_ms"] = round((time.monotonic() - job.begun) * 1000, 3)
            jumped = self._jumped()
            rows = [*self.ledger.add_all([*jumped, *(job.entry for job in jobs)])[len(jumped) :]]
            self.fault = ""
        except LedgerError as error:
            self.fault = str(error)
            _LOG.error("%d parts without a row: %s", len(jobs), error)
            rows = [error] * len(jobs)
        for job, row in zip(jobs, rows, strict=True):
            self._answer(job, row)

    def _answer(self, job: _Job, row: Row | LedgerError) -> None:
        with self._lock:
            self._inside -= 1
            self._bytes -= job.bytes
            self._asked.pop(job.request or "", None)
        if isinstance(row, LedgerError):
            self._tell("fault", {"part": job.part, "code": "LEDGER", "reason": str(row), "source": job.source})
            job.answer.set_exception(row)
            return
        if not job.challenge:
            self._count(job, row)
        maps = job.found.maps if job.found else [None] * len(job.views)
        shown = (Shown(v.content, None if m is None else thinned(m)) for v, m in zip(job.views, maps, strict=True))
        self.recent.add(row["seq"], tuple(shown))
        self._tell("part", row)
        job.answer.set_result(row)

    def _keep(self, job: _Job) -> None:
        if job.entry.pop("keep", job.entry["kind"] == "error") and self.keep is not None:
            for view, said in zip(job.views, job.entry["views"], strict=True):
                said["path"], said["note"] = self.keep.write(now()[:10], said["sha256"], view.content)

    def _count(self, job: _Job, row: Row) -> None:
        what = row["verdict"] or "ERROR"
        self.counts[what] = self.counts.get(what, 0) + 1
        self.times_ms.append(row["latency_ms"])
        del self.times_ms[:-1000]
        if row["kind"] != "verdict":
            return
        calibration = job.recipe.model.calibration
        assert calibration is not None
        if self._bet != job.recipe.calibration or self.drift is None or self.counts[what] % BET == 0:
            self._bet, self.drift = job.recipe.calibration, Martingale.of(calibration)
        self.drift.add(row["score"])

    def _jumped(self) -> list[dict[str, Any]]:
        """A row that says so, when the clock was set; the chain's order is that of its numbers, not of its times."""
        offset = time.time() - time.monotonic()
        moved, self._clock = offset - self._clock, offset
        if abs(moved) < CLOCK_S:
            return []
        return [{"kind": "event", "code": "CLOCK", "reason": f"the clock was set by {moved:+.1f} s"}]

    def _tell(self, what: str, row: Row) -> Row:
        self.last_seq = row.get("seq", self.last_seq)
        for listener in tuple(self._listeners):
            try:
                listener(what, row)
            except Exception:  # who listens must not stop the line
                _LOG.exception("listener")
        return row


def _common(job: _Job) -> dict[str, Any]:
    recipe = job.recipe
    entry = {"part": job.part, "recipe": recipe.name, "bundle": recipe.bundle, "calibration": recipe.calibration}
    return entry | {"source": job.source, "request": job.request, "who": job.who or None}


def _error(job: _Job, code: str, reason: str) -> dict[str, Any]:
    job.found = None
    return _common(job) | {"kind": "error", "code": code, "reason": reason, "views": [_view(v) for v in job.views]}


def _same(job: _Job, part: str, digests: list[str]) -> None:
    if job.part != part or [_sha256(view) for view in job.views] != digests:
        raise UsageError(f"the request {job.request!r} was used for another part or other pictures")


def _sha256(picture: Picture) -> str:
    return hashlib.sha256(picture.content).hexdigest()


def _view(picture: Picture) -> dict[str, Any]:
    return {"name": picture.name[:MOST_TEXT], "sha256": _sha256(picture), "bytes": len(picture.content)} | {
        "path": None,
        "note": "",
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "box": region.box,
        "area_px": region.area_px,
        "area_mm2": region.area_mm2,
        "centroid": region.centroid,
        "peak": region.peak,
    }
