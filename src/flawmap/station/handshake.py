"""The handshake with a PLC: one state machine for OPC UA and Modbus, without a network, a thread or a camera.

The PLC raises Trigger with a PartId while Ready is on, waits for ResultValid, reads OK or NOK, and lowers Trigger (or
raises Ack). While ResultValid is on, exactly one of OK and NOK is on. OK is on for one reason only: the ledger has this
part's row, and it says OK. All else is NOK: a defect, a part for a person to look at, and with a code an error, an
overrun, a timeout.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from flawmap.errors import UsageError

_LOG = logging.getLogger("flawmap.station")


class Code(IntEnum):
    """Why a part is NOK that was not judged so, or why Ready is off. Numbers never change their meaning."""

    NONE = 0
    OVERRUN = 1
    TIMEOUT = 2
    ACK_TIMEOUT = 3
    STUCK = 4
    PART = 5
    NO_PICTURE = 6
    BUSY = 7
    LEDGER = 10
    BLOCKED = 11
    CLOSING = 12
    FULL = 13
    DATA = 14
    CALIBRATION = 15
    BUNDLE = 16
    USAGE = 17
    INTERNAL = 18
    ERROR = 19


MEANING = {
    Code.NONE: "nothing is wrong",
    Code.OVERRUN: "Trigger rose while a part was looked at or a result was not taken",
    Code.TIMEOUT: "no verdict in time",
    Code.ACK_TIMEOUT: "the result was not taken in time, and is withdrawn",
    Code.STUCK: "the result was taken, and Trigger or Ack stayed on; no part is NOK for it",
    Code.PART: "PartId is empty or too long",
    Code.NO_PICTURE: "the camera gave no picture",
    Code.BUSY: "the camera, or the verdict, of a part that timed out is still awaited",
    Code.LEDGER: "the ledger takes no row; without a row there is no verdict",
    Code.BLOCKED: "the station is blocked until its challenge parts pass",
    Code.CLOSING: "the station closes, or its line has ended",
    Code.FULL: "too many parts wait",
    Code.DATA: "a picture cannot be read",
    Code.CALIBRATION: "the model gives no verdict",
    Code.BUNDLE: "the bundle is damaged",
    Code.USAGE: "the recipe judges another number of views",
    Code.INTERNAL: "a fault of flawmap's own; its log has more",
    Code.ERROR: "another error; the row in the ledger has the reason",
}


class State(Enum):
    """Named after the states of OPC 40100-1: number, and name with the state it lies in."""

    PREOPERATIONAL = 1, "Preoperational"
    HALTED = 2, "Halted"
    ERROR = 3, "Error"
    INITIALIZED = 4, "Operational.Initialized"
    READY = 5, "Operational.Ready"
    SINGLE_EXECUTION = 6, "Operational.SingleExecution"

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]


class Phase(Enum):
    IDLE = "waits for Trigger"
    BUSY = "a part is looked at, or a row is written"
    RESULT = "waits for the result to be taken"
    RELEASE = "waits for Trigger and Ack to go off"


@dataclass(frozen=True)
class Answer:
    """What a part got: a row's verdict, or an error and its code. Row 0: there is none, the ledger failed."""

    part: str
    verdict: str = "ERROR"  # OK, NOK, REVIEW, ERROR
    code: Code = Code.ERROR
    reason: str = ""
    row: int = 0
    hash: str = ""
    score: float = math.nan
    threshold: float = math.nan

    @property
    def ok(self) -> bool:
        return self.verdict == "OK" and self.code == Code.NONE and self.row > 0


@dataclass(frozen=True)
class Task:
    """What is to be done beside: look at the part, or, with a code, write the row of a part that is NOK for it."""

    job: int
    part: str
    code: Code = Code.NONE
    reason: str = ""


@dataclass(frozen=True)
class Signals:
    """All that the PLC reads, at one moment."""

    ready: bool = False
    busy: bool = False
    result_valid: bool = False
    ok: bool = False
    nok: bool = False
    review: bool = False
    heartbeat: bool = False
    state: State = State.PREOPERATIONAL
    code: Code = Code.NONE
    job: int = 0  # counts triggers
    answer: Answer = Answer("", "")  # of the job, or of the one before while busy


class Handshake:
    """Safe to use from several threads. What is asked of it returns at once.

    start        is called with a task, and sees to it that `done` is called with the same task later, once
    changed      is called with the signals whenever one of them changes, in order, under the lock
    inspect_s    from Trigger to the verdict
    ack_s        for the PLC to take a result, and to lower its signals after it
    row_s        for the row of a part that timed out; after it there is a NOK without one
    heartbeat_s  between two changes of Heartbeat
    """

    def __init__(
        self,
        start: Callable[[Task], None],
        changed: Callable[[Signals], None] = lambda _: None,
        *,
        inspect_s: float = 10.0,
        ack_s: float = 5.0,
        row_s: float = 6.0,
        heartbeat_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not min(inspect_s, ack_s, row_s, heartbeat_s) > 0:
            raise UsageError("the times of a handshake are above 0 s")
        self.inspect_s, self.ack_s, self.row_s, self.heartbeat_s = inspect_s, ack_s, row_s, heartbeat_s
        self._start, self._changed, self._clock = start, changed, clock
        self._lock = threading.RLock()
        self.phase, self.signals = Phase.IDLE, Signals()
        self._line: Code | None = None  # why the line judges nothing, NONE when it does; None before it was looked at
        self._alive = False
        self._trigger = self._ack = self._stuck = self._final = False
        self._awaited: Task | None = None
        self._out: set[Task] = set()  # looks that have not come back
        self._since = self._beat = clock()

    # ---- what the PLC does

    def trigger(self, on: bool, part: str = "") -> bool:
        """Trigger as it stands now, and what PartId says. False: it rose, and no part is looked at for it."""
        with self._lock:
            rose, fell = on and not self._trigger, self._trigger and not on
            self._trigger = on
            taken = not rose or self._rose(part)
            if fell and self.phase is Phase.RESULT:
                self._enter(Phase.RELEASE)
            self._settle()
            return taken

    def pulse(self, part: str) -> bool:
        """A trigger that is over at once: its result is taken with Ack."""
        with self._lock:
            taken = self._rose(part)
            self._settle()
            return taken

    def ack(self, on: bool) -> None:
        with self._lock:
            rose = on and not self._ack
            self._ack = on
            if rose and self.phase is Phase.RESULT:
                self._enter(Phase.RELEASE)
            self._settle()

    # ---- what the station does

    def line(self, hindrance: Code, alive: bool = True) -> None:
        """Why the line judges nothing now, or NONE; and whether it lives at all."""
        with self._lock:
            self._line, self._alive = hindrance, alive
            self._settle()

    def awaits(self, task: Task) -> bool:
        """Whether the answer to a task still counts."""
        with self._lock:
            return self.phase is Phase.BUSY and task is self._awaited

    def done(self, task: Task, answer: Answer) -> bool:
        """The answer to a task. False: it came too late, the part has got another one."""
        with self._lock:
            self._out.discard(task)
            counts = self.awaits(task)
            if counts:
                self._give(answer)
            self._settle()
            return counts

    def tick(self) -> None:
        """Timeouts and the heartbeat; to be called every 50 ms or so."""
        with self._lock:
            passed, task = self._clock() - self._since, self._awaited
            if self.phase is Phase.BUSY and task is not None:
                if task.code == Code.NONE and passed > self.inspect_s:
                    self._instead(task.part, Code.TIMEOUT, f"no verdict within {self.inspect_s:g} s")
                elif task.code != Code.NONE and passed > self.row_s:
                    self._give(Answer(task.part, code=task.code, reason=f"{task.reason}; no row could be written"))
            elif self.phase is Phase.RESULT and passed > self.ack_s and not self._final:
                said = f"the answer {self.signals.answer.verdict}, row {self.signals.answer.row}"
                self._instead(
                    self.signals.answer.part, Code.ACK_TIMEOUT, f"{said}, was not taken within {self.ack_s:g} s"
                )
            elif self.phase is Phase.RELEASE and passed > self.ack_s:
                self._stuck = True
            self._settle()

    # ---- inside

    def _rose(self, part: str) -> bool:
        if self.phase is Phase.IDLE:
            code = self._hindrance()
            self._look(Task(self.signals.job + 1, part, code, MEANING[code] if code else ""))
            return code == Code.NONE
        if self.phase is Phase.BUSY and self._awaited is not None:
            if (
                self._awaited.code != Code.NONE
            ):  # is NOK already; a trigger that chatters must not write a row each time
                return False
            reason = f"part {part!r} was triggered while this one was not answered; neither counts"
            self._instead(self._awaited.part, Code.OVERRUN, reason)
        else:
            before = self.signals.answer
            reason = f"triggered before the answer on {before.part!r}, row {before.row}, was finished with"
            self._look(Task(self.signals.job + 1, part, Code.OVERRUN, reason))
        return False

    def _hindrance(self) -> Code:
        """Why a part would not be looked at now."""
        if self._line is None or not self._alive:
            return Code.CLOSING
        if self._line == Code.NONE and self._out:
            return Code.BUSY
        return self._line

    def _look(self, task: Task) -> None:
        self._awaited = task
        self._enter(Phase.BUSY)
        off = dict.fromkeys(("ready", "result_valid", "ok", "nok", "review"), False)
        self._show(job=task.job, code=Code.NONE, busy=True, **off)
        if task.code == Code.NONE:
            self._out.add(task)
        self._start(task)

    def _instead(self, part: str, code: Code, reason: str) -> None:
        """The part gets this code, and whatever else becomes of it does not count."""
        _LOG.warning("PLC: part %r is NOK, %s: %s", part, code.name, reason)
        self._look(Task(self.signals.job, part, code, reason))

    def _give(self, answer: Answer) -> None:
        self._awaited = None
        self._enter(Phase.RESULT)
        self._final = answer.code == Code.ACK_TIMEOUT
        self._show(
            answer=answer,
            code=answer.code,
            ok=answer.ok,
            nok=not answer.ok,
            review=answer.verdict == "REVIEW",
            busy=False,
            result_valid=True,
        )

    def _enter(self, phase: Phase) -> None:
        self.phase, self._since, self._stuck = phase, self._clock(), False

    def _settle(self) -> None:
        """What follows from all of it: a release, Ready, the state, the heartbeat."""
        if self.phase is Phase.RELEASE and not (self._trigger or self._ack):
            self._enter(Phase.IDLE)
        idle, hindrance = self.phase in (Phase.IDLE, Phase.RELEASE), self._hindrance()
        if idle:
            code = Code.STUCK if self._stuck else hindrance
            self._show(result_valid=False, ok=False, nok=False, review=False, code=code)
        beat = self.signals.heartbeat
        if self._alive and self._clock() - self._beat >= self.heartbeat_s:
            beat, self._beat = not beat, self._clock()
        ready = self.phase is Phase.IDLE and hindrance == Code.NONE and not (self._trigger or self._ack)
        self._show(ready=ready, state=self._state(hindrance), heartbeat=beat)

    def _state(self, hindrance: Code) -> State:
        if self._line is None:
            return State.PREOPERATIONAL
        if not self._alive or hindrance == Code.CLOSING:
            return State.HALTED
        if self.phase is Phase.BUSY or (self.phase is Phase.RESULT and not self._final):
            return State.SINGLE_EXECUTION
        if self._stuck or self.phase is Phase.RESULT or hindrance in (Code.LEDGER, Code.BUSY):
            return State.ERROR
        if self.phase is Phase.IDLE and hindrance == Code.NONE:
            return State.READY
        return State.INITIALIZED

    def _show(self, **values: object) -> None:
        signals = replace(self.signals, **values)  # pyright: ignore[reportArgumentType]
        if signals != self.signals:
            self.signals = signals
            self._changed(signals)
