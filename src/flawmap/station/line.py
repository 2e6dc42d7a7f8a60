"""From a part's pictures to a verdict in the ledger: one queue, a few judges, one recorder. Every door goes this road.

A part is accepted or refused at once (`Unavailable`). What was accepted gets a row, a verdict or an error, before it is
answered, whatever happens to who asked. A verdict that cannot be given or written is an error, never OK.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from flawmap.errors import BundleError, CalibrationError, DataError, FlawmapError, LedgerError, Unavailable, UsageError
from flawmap.run.look import Maps
from flawmap.station.clock import Clock, behind
from flawmap.station.drifts import Drifts
from flawmap.station.keep import Keep
from flawmap.station.ledger import KINDS, Ledger, Row, now
from flawmap.station.part import MOST_TEXT, Job, Picture
from flawmap.station.recent import Recent, Shown, light
from flawmap.station.recipes import Recipe, Recipes
from flawmap.types import Verdict
from flawmap.verdict.drift import Martingale
from flawmap.verdict.parts import said_views

__all__ = ["DECISIONS", "MOST_TEXT", "Line", "Picture"]
CODES = {DataError: "DATA", CalibrationError: "CALIBRATION", BundleError: "BUNDLE", Unavailable: "TIMEOUT"}
DECISIONS = ("false alarm", "really bad", "agreed")
TOGETHER = 64  # rows in one transaction, at most
PROBE_S = 2.0  # how often a ledger that has failed is tried again
_LOG = logging.getLogger("flawmap.station")
_Written = tuple[Row, bool] | LedgerError  # a row and whether it is new, or why there is none


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
        self.gate: Callable[[Recipe], str] | None = None  # why parts of a recipe are not judged, or ""
        self.lamps: dict[str, tuple[str, str]] = {}  # of cameras and PLCs: ok, warn, bad or off, and in words
        self.counts: dict[str, int] = {}
        self.times_ms: list[float] = []  # of the last 1,000 parts
        self.refused = self.last_seq = 0
        self._asked: dict[str, Job] = {}  # those inside, by their request
        self._listeners: list[Callable[[str, Row], None]] = []
        self._lock, self._switching = threading.Lock(), threading.Lock()
        self._inside = self._bytes = self._seen = 0
        self._closing = False
        self._drifts = Drifts(recipes)
        self._clock = Clock()
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._done: queue.Queue[Job | None] = queue.Queue()
        for entry in behind(ledger.rows(kinds=KINDS, limit=1)):
            self._add(entry)
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

        Unavailable: too many wait, the station is blocked or closes. UsageError: no such recipe, another number of
        views than it judges, more bytes than may wait. LedgerError, here or from the future: the ledger cannot be read
        or the row not be written; there is no verdict then.
        """
        found = self.recipes.get(recipe)
        job = Job(part, views, found, source, request, who, challenge)
        if job.request:
            _ = job.digests  # not under the lock
            if row := self.ledger.of_request(job.request):
                job.same(row["part"], [view["sha256"] for view in row["views"]], recipe and row["recipe"])
                job.answer.set_result(row)
                return job.answer
        least, most = found.views
        if not least <= len(views) <= most:
            asked = said_views(found.views)
            raise UsageError(f"recipe {found.name!r} judges parts of {asked}, this one has {len(views)}")
        if job.bytes > self.most_bytes:
            raise UsageError(f"the part has {job.bytes} bytes, more than the {self.most_bytes} that may wait")
        return self._accepted(job, recipe)

    def _accepted(self, job: Job, recipe: str | None) -> Future[Row]:
        with self._lock:
            if job.request and (twin := self._asked.get(job.request)):
                job.same(twin.part, twin.digests, recipe and twin.recipe.name)
                return twin.answer
            if self._closing:
                raise Unavailable("the station is closing", "CLOSING", 5)
            why = "" if job.challenge else self.blocked or (self.gate(job.recipe) if self.gate else "")
            if why:
                raise Unavailable(f"blocked: {why}", "BLOCKED", 5)
            if self._inside >= self.waiting + len(self._judges) or self._bytes + job.bytes > self.most_bytes:
                self.refused += 1
                raise Unavailable(f"{self._inside} parts are waiting; try again", "FULL", 1)
            self._inside += 1
            self._bytes += job.bytes
            if job.request:
                self._asked[job.request] = job
            self._jobs.put(job)
        return job.answer

    def inspect(self, part: str, views: Sequence[Picture], **how: Any) -> Row:
        """`submit`, and waiting for the row."""
        return self.submit(part, views, **how).result()

    def fail(self, part: str, code: str, reason: str, source: str, request: str | None = None) -> Row:
        """A row for a part that could not be handed in: no picture of it, a view too few."""
        entry = {"kind": "error", "part": part, "code": code, "reason": reason, "source": source}
        row, new = self._add(entry | {"request": request, "recipe": self.recipes.active.name})
        if not new:
            return row
        with self._lock:
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
        return self._tell("decision", self._add({**entry, "source": "page"})[0])

    def event(self, code: str, reason: str, who: str = "") -> Row:
        """Something that is no part: a start, a switch of recipes, a challenge."""
        return self._tell("event", self._event(code, reason, who))

    def use(self, name: str, who: str = "", *, reload: bool = False) -> Recipe:
        """Judges by this recipe from now on. LedgerError: the switch cannot be written down, and is taken back."""
        return self._switch(lambda: self.recipes.use(name, reload=reload), "RECIPE", "uses", who)

    def roll_back(self, who: str = "") -> Recipe:
        return self._switch(self.recipes.roll_back, "ROLLBACK", "back to", who)

    def _switch(self, change: Callable[[], Recipe], code: str, said: str, who: str) -> Recipe:
        with self._switching:
            before = self.recipes.state()
            found = change()
            try:
                self.event(code, f"{said} {found.name}, bundle {found.bundle[:12]}", who)
            except LedgerError:
                self.recipes.restore(before)
                raise
        return found

    def block(self, reason: str) -> None:
        """Nothing is judged but challenge parts, until it is called with "" again.

        LedgerError: the row cannot be written; the station is blocked then, or stays so.
        """
        if reason:
            self.blocked = reason
        row = self._event("BLOCKED" if reason else "RELEASED", reason or "parts are judged again")
        self.blocked = reason
        self._tell("event", row)

    def listen(self, listener: Callable[[str, Row], None]) -> Callable[[], None]:
        """Calls back with ("part" | "decision" | "event" | "fault", row) from the station's threads; returns an end.

        Before the part is answered: who listens must return at once, and must not wait for the line.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    @property
    def drift(self) -> Martingale | None:
        """The test over the OK parts of the recipe in use, or None before the first of them."""
        return self._drifts.of(self.recipes.active)

    @property
    def inside(self) -> int:
        """Parts that were accepted and not answered yet."""
        return self._inside

    @property
    def ready(self) -> bool:
        return not (self._closing or self.blocked or self.fault)

    @property
    def alive(self) -> bool:
        """Its threads run: what is accepted is judged and written."""
        return all(thread.is_alive() for thread in (*self._judges, self._recorder))

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
        if self.keep is not None:
            self.keep.close()

    def _judge(self) -> None:
        while (job := self._jobs.get()) is not None:  # None ends it
            try:
                job.entry = self._judged(job)
            except FlawmapError as error:
                job.entry = job.failed(CODES.get(type(error), "ERROR"), str(error))
            except BaseException as error:  # whatever it is, it is the part's error, not the station's end
                _LOG.error("part %r", job.part, exc_info=True)
                job.entry = job.failed("INTERNAL", _words(error))
            self._done.put(job)

    def _judged(self, job: Job) -> dict[str, Any]:
        if time.monotonic() - job.begun > self.deadline_s:
            raise Unavailable(f"waited longer than {self.deadline_s:g} s", "TIMEOUT")
        views, names = [view.content for view in job.views], [view.name for view in job.views]
        job.found = found = job.recipe.model.inspect_part(views, names=names, part=job.part)
        if found.verdict is None:
            raise CalibrationError("the model gives no verdict")
        entry = job.judged(found)
        if self.keep is not None:
            with self._lock:
                self._seen += found.verdict == Verdict.OK
                seen = self._seen
            job.kept = self.keep.wanted(seen, found.verdict, found.p_value, job.recipe.least_p)
        return entry

    def _record(self) -> None:
        """One thread: rows of all that has been judged meanwhile go into one transaction."""
        ended = False
        while not ended:
            try:
                jobs = [self._done.get(timeout=PROBE_S)]
            except queue.Empty:
                self._probe()
                continue
            while len(jobs) < TOGETHER and not self._done.empty():
                jobs.append(self._done.get())
            ended = None in jobs
            self._written([job for job in jobs if job is not None])

    def _probe(self) -> None:
        """Whether a ledger that has failed takes rows again: who asks `ready` first sends no part to find it out."""
        if self.fault:
            with suppress(LedgerError):
                self.event("LEDGER", "takes rows again")

    def _written(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self.keep is not None and job.kept:
                for view, said in zip(job.views, job.entry["views"], strict=True):
                    said["path"], said["note"] = self.keep.write(now()[:10], said["sha256"], view.content)
            job.entry["latency_ms"] = round((time.monotonic() - job.begun) * 1000, 3)
        for job, row in zip(jobs, self._rows(jobs) if jobs else [], strict=True):
            self._answer(job, row)

    def _rows(self, jobs: Sequence[Job]) -> Sequence[_Written]:
        """Never raises: no row is LedgerError."""
        offset = self._clock.read()
        jumped = self._clock.jumped(offset)
        try:
            rows = self.ledger.add_new([*jumped, *(job.entry for job in jobs)])[len(jumped) :]
        except LedgerError as error:
            self.fault = str(error)
            _LOG.error("%d parts without a row: %s", len(jobs), error)
            return [error] * len(jobs)
        except BaseException as error:  # a row that cannot stand there must not cost the others theirs
            _LOG.error("a row", exc_info=True)
            if len(jobs) > 1:
                return [row for job in jobs for row in self._rows([job])]
            if jobs[0].entry["kind"] == "error":
                self.fault = _words(error)
                return [LedgerError(f"the row cannot be written: {self.fault}")]
            failed = jobs[0].failed("INTERNAL", f"the row of its verdict: {_words(error)}")
            jobs[0].entry = failed | {"latency_ms": jobs[0].entry["latency_ms"]}
            return self._rows(jobs)
        self.fault, self._clock.offset = "", offset
        return rows

    def _answer(self, job: Job, written: _Written) -> None:
        with self._lock:
            self._inside -= 1
            self._bytes -= job.bytes
            if job.request:
                self._asked.pop(job.request, None)
        if isinstance(written, LedgerError):
            self._tell("fault", {"part": job.part, "code": "LEDGER", "reason": str(written), "source": job.source})
            job.answer.set_exception(written)
            return
        row, new = written
        try:
            if new:
                self._shown(job, row)
            else:  # another station wrote it meanwhile
                job.same(row["part"], [view["sha256"] for view in row["views"]])
        except UsageError as error:
            job.answer.set_exception(error)
        except Exception:  # the row is written: what is shown of it beside must not keep the answer
            _LOG.exception("part %r", job.part)
        if not job.answer.done():
            job.answer.set_result(row)

    def _shown(self, job: Job, row: Row) -> None:
        if not job.challenge:
            self._count(job, row)
        maps = job.found.maps if job.found else None
        looked = maps.views if isinstance(maps, Maps) else [None] * len(job.views)
        intake = job.recipe.model.intake
        shown = (Shown(view.content, light(seen), intake) for view, seen in zip(job.views, looked, strict=True))
        self.recent.add(row["seq"], tuple(shown))
        self._tell("part", row)

    def _count(self, job: Job, row: Row) -> None:
        what = row["verdict"] or "ERROR"
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1
        self.times_ms.append(row["latency_ms"])
        del self.times_ms[:-1000]
        if what == Verdict.OK:
            self._drifts.add(job.recipe, row["score"])

    def _add(self, entry: dict[str, Any]) -> tuple[Row, bool]:
        """One row, and whether it is new. LedgerError is the station's fault, too, until a row is written."""
        try:
            written = self.ledger.add_new([entry])[0]
        except LedgerError as error:
            self.fault = str(error)
            raise
        self.fault = ""
        return written

    def _event(self, code: str, reason: str, who: str = "") -> Row:
        return self._add({"kind": "event", "code": code, "reason": reason, "who": who or None})[0]

    def _tell(self, what: str, row: Row) -> Row:
        self.last_seq = max(self.last_seq, row.get("seq", 0))
        for listener in tuple(self._listeners):
            try:
                listener(what, row)
            except BaseException:  # who listens must not stop the line
                _LOG.error("listener", exc_info=True)
        return row


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an error that cannot say what it is
        return type(error).__name__
