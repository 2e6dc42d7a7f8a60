"""Between a PLC and the line: takes a part's pictures, has it judged, and tells the handshake what the ledger says.

A cell has one PLC and one camera. What may hang (a camera, a ledger that is locked) hangs in a thread of its own.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from flawmap.errors import LedgerError, Unavailable, UsageError
from flawmap.station.handshake import Answer, Code, Handshake, Signals, State, Task
from flawmap.station.ledger import Row
from flawmap.station.line import MOST_TEXT, Line, Picture

Grab = Callable[[str], Sequence[Picture]]
TICK_S = 0.05
_LAMP = {State.READY: "ok", State.SINGLE_EXECUTION: "ok", State.INITIALIZED: "warn", State.PREOPERATIONAL: "warn"}
_LOG = logging.getLogger("flawmap.station")


class Cell:
    """Runs beside the service until it is closed.

    grab    takes the pictures of a part, by its PartId; whatever it raises is the part's NOK, code NO_PICTURE
    source  who asks, as it stands in the ledger: opcua, modbus
    lamp    the lamp of the live page that it sets
    times   of `Handshake`: inspect_s, ack_s, row_s, heartbeat_s
    """

    def __init__(self, line: Line, grab: Grab, *, source: str = "plc", lamp: str = "plc", **times: Any) -> None:
        self.line, self.grab, self.source, self.lamp = line, grab, source, lamp
        self.peers = 0  # PLCs that are connected; the adapter says so
        self._listeners: list[Callable[[Signals], object]] = []
        self.handshake = Handshake(self._begin, self._changed, **times)
        self._ended, self._over = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"{source}-handshake", daemon=True)
        self._look_at_line()
        self._light()
        self._watcher.start()

    @property
    def signals(self) -> Signals:
        return self.handshake.signals

    def listen(self, listener: Callable[[Signals], object]) -> None:
        """Is called with every change of the signals, in order; must return at once and not raise."""
        self._listeners.append(listener)

    def close(self, wait_s: float = 2.0) -> None:
        """Ready goes off; a part that is being looked at, and a result that is not taken yet, have so long to end."""
        self._ended.set()
        self._look_at_line()
        until = time.monotonic() + wait_s
        while time.monotonic() < until and (self.signals.busy or self.signals.result_valid):
            time.sleep(TICK_S)
        self._over.set()
        self._watcher.join()
        self.line.lamps[self.lamp] = ("off", "closed")

    # ---- what goes on beside

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            try:
                self._look_at_line()
                self.handshake.tick()
                self._light()
            except Exception:  # without this thread there are no timeouts and no heartbeat
                _LOG.exception("%s", self.source)
                self.handshake.line(Code.INTERNAL)

    def _look_at_line(self) -> None:
        line, alive = self.line, self.line.alive
        if self._ended.is_set() or not alive:
            code = Code.CLOSING
        elif line.blocked or (line.gate and line.gate(line.recipes.active)):
            code = Code.BLOCKED
        elif line.fault:  # the line tries by itself whether the ledger takes rows again
            code = Code.LEDGER
        else:
            code = Code.NONE if line.ready else Code.CLOSING
        self.handshake.line(code, alive)

    def _light(self) -> None:
        signals = self.signals
        state = _LAMP.get(signals.state, "bad")
        if not self.peers and state == "ok":
            state = "off"
        code = f", {signals.code.name}" if signals.code else ""
        connected = f"{self.peers} connected" if self.peers else "not connected"
        self.line.lamps[self.lamp] = (state, f"{self.source}: {connected}, {signals.state.words}{code}")

    def _changed(self, signals: Signals) -> None:
        for listener in self._listeners:
            try:
                listener(signals)
            except Exception:  # an adapter that ends must not stop the handshake
                _LOG.exception("%s", self.source)

    # ---- one part

    def _begin(self, task: Task) -> None:
        threading.Thread(target=self._work, args=(task,), name=f"{self.source}-{task.job}", daemon=True).start()

    def _work(self, task: Task) -> None:
        try:
            answer = self._refused(task.part, task.code, task.reason) if task.code else self._looked(task)
        except Exception as error:  # no answer would leave the part without its NOK until the timeout
            _LOG.exception("part %r", task.part)
            answer = Answer(task.part, code=Code.INTERNAL, reason=f"{type(error).__name__}: {error}")
        if not self.handshake.done(task, answer) and answer.verdict != "ERROR":
            self._late(answer)

    def _looked(self, task: Task) -> Answer:
        part = task.part
        if not part.strip() or len(part) > MOST_TEXT:
            return self._refused(part, Code.PART, f"a part has a name of 1 to {MOST_TEXT} characters")
        try:
            views = list(self.grab(part))
        except Exception as error:  # whatever a camera's driver raises
            return self._refused(part, Code.NO_PICTURE, f"no picture: {type(error).__name__}: {error}", task)
        if not views:
            return self._refused(part, Code.NO_PICTURE, "no picture: the source gave none", task)
        if not self.handshake.awaits(task):
            return Answer(part, code=Code.TIMEOUT)
        try:
            return _answer(part, self.line.inspect(part, views, source=self.source))
        except LedgerError as error:
            return Answer(part, code=Code.LEDGER, reason=str(error))
        except Unavailable as error:
            return self._refused(part, _code(error.code), str(error), task)
        except UsageError as error:
            return self._refused(part, Code.USAGE, str(error), task)

    def _refused(self, part: str, code: Code, reason: str, task: Task | None = None) -> Answer:
        """Writes the row of a part that the line has not judged; of a task that nobody awaits any more there is one."""
        if code == Code.CLOSING or (task is not None and not self.handshake.awaits(task)):
            return Answer(part, code=code, reason=reason)
        try:
            row = self.line.fail(part[:MOST_TEXT], code.name, reason, self.source)
        except LedgerError as error:
            return Answer(part, code=Code.LEDGER, reason=f"{error}; and {reason}")
        return Answer(part, code=code, reason=reason, row=row["seq"], hash=row["hash"])

    def _late(self, answer: Answer) -> None:
        """The chain must not look as if the PLC had been told what it was not."""
        reason = f"row {answer.row} says {answer.verdict} of part {answer.part!r}; the PLC was told NOK before it came"
        try:
            self.line.event("LATE", reason, self.source)
        except LedgerError as error:
            _LOG.error("%s: %s", reason, error)


def _answer(part: str, row: Row) -> Answer:
    verdict = row["verdict"] if row["kind"] == "verdict" else "ERROR"
    code = Code.NONE if verdict != "ERROR" else _code(row["code"])
    figures = {name: math.nan if row[name] is None else float(row[name]) for name in ("score", "threshold")}
    reason = row["reason"] or ""
    return Answer(part, verdict, code, reason, row["seq"], row["hash"], **figures)


def _code(name: str | None) -> Code:
    return Code.__members__.get(name or "") or Code.ERROR
