"""The handshake: its states step by step by a clock of the test's own, and a cell with a real line behind it."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import flawmap
from flawmap.errors import MissingExtra, UsageError
from flawmap.station.cell import Cell
from flawmap.station.handshake import MEANING, Answer, Code, Handshake, Phase, Signals, State, Task
from flawmap.station.line import Line, Picture

PAGE = Path(__file__).parents[2] / "docs" / "plc.md"
SOURCE = Path(flawmap.__file__).parent / "station"
OK = {"verdict": "OK", "code": Code.NONE, "row": 7, "hash": "ab"}


class Rig:
    """A handshake, the tasks that it started, the signals that it showed, and the time."""

    def __init__(self) -> None:
        self.now, self.tasks, self.shown = 0.0, list[Task](), list[Signals]()
        self.shake = Handshake(self.tasks.append, self.shown.append, clock=lambda: self.now)
        self.shake.line(Code.NONE)

    def answer(self, task: Task | None = None, **values: Any) -> bool:
        task = task or self.tasks[-1]
        return self.shake.done(task, Answer(task.part, **values))

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.shake.tick()

    @property
    def said(self) -> tuple[bool, bool, bool, Code, State]:
        s = self.shake.signals
        return s.result_valid, s.ok, s.nok, s.code, s.state


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    for signals in made.shown:  # whatever a test did
        assert signals.ok + signals.nok == signals.result_valid
        assert not signals.ok or (signals.answer.verdict == "OK" and signals.answer.row and not signals.code)
        assert not (signals.ready and (signals.busy or signals.result_valid))
        assert not signals.review or signals.nok


def test_a_part_goes_from_ready_over_busy_to_ok_and_back_to_ready(rig: Rig) -> None:
    assert rig.shake.signals.state is State.READY
    assert rig.shake.trigger(True, "a")
    assert (rig.shake.signals.busy, rig.shake.signals.ready) == (True, False)
    assert rig.tasks == [Task(1, "a")]
    assert rig.said == (False, False, False, Code.NONE, State.SINGLE_EXECUTION)
    rig.shake.ack(True)  # takes nothing: there is no result yet
    rig.shake.ack(False)
    assert rig.answer(**OK)
    assert rig.said == (True, True, False, Code.NONE, State.SINGLE_EXECUTION)
    rig.shake.trigger(False)
    assert rig.said == (False, False, False, Code.NONE, State.READY)
    assert rig.shake.signals.ready


def test_the_data_are_shown_no_later_than_result_valid(rig: Rig) -> None:
    for part in ("a", "b"):
        rig.shake.trigger(True, part)
        rig.answer(**OK)
        rig.shake.trigger(False)
    valid = [signals for signals in rig.shown if signals.result_valid]
    assert [signals.answer.part for signals in valid] == ["a", "b"]
    between = rig.shown[rig.shown.index(valid[0]) + 1 : rig.shown.index(valid[1])]
    assert between
    assert not any(signals.result_valid for signals in between)


@pytest.mark.parametrize("verdict", ["NOK", "REVIEW"])
def test_what_is_not_ok_is_nok_and_review_says_so_besides(rig: Rig, verdict: str) -> None:
    rig.shake.trigger(True, "a")
    rig.answer(verdict=verdict, code=Code.NONE, row=3)
    assert rig.said[:4] == (True, False, True, Code.NONE)
    assert rig.shake.signals.review == (verdict == "REVIEW")


def test_an_ok_without_a_row_is_nok(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.answer(verdict="OK", code=Code.NONE, row=0)
    assert rig.said[:3] == (True, False, True)


def test_a_trigger_while_busy_makes_the_part_nok_and_its_late_verdict_does_not_count(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.shake.trigger(False)
    assert not rig.shake.trigger(True, "b")
    assert [(task.part, task.code) for task in rig.tasks] == [("a", Code.NONE), ("a", Code.OVERRUN)]
    assert "'b'" in rig.tasks[1].reason
    assert not rig.answer(rig.tasks[0], **OK)
    assert rig.said[0] is False
    rig.answer(rig.tasks[1], code=Code.OVERRUN, row=8)
    assert rig.said[:4] == (True, False, True, Code.OVERRUN)


def test_a_trigger_that_chatters_starts_one_task(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    for _ in range(50):
        rig.shake.trigger(False)
        rig.shake.trigger(True, "a")
    assert len(rig.tasks) == 2


def test_a_trigger_before_the_result_was_taken_is_an_overrun_of_the_new_part(rig: Rig) -> None:
    rig.shake.pulse("a")
    rig.answer(**OK)
    assert not rig.shake.pulse("b")
    assert rig.said[0] is False
    assert (rig.tasks[-1].part, rig.tasks[-1].code) == ("b", Code.OVERRUN)
    rig.answer(code=Code.OVERRUN, row=8)
    assert (rig.shake.signals.answer.part, rig.said[:3]) == ("b", (True, False, True))


def test_without_a_verdict_in_time_the_part_is_nok_and_nothing_is_ready_while_the_camera_hangs(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.pass_(10.0)
    assert len(rig.tasks) == 1
    rig.pass_(0.1)
    assert rig.tasks[-1].code == Code.TIMEOUT
    rig.answer(code=Code.TIMEOUT, row=8)
    assert rig.said[:4] == (True, False, True, Code.TIMEOUT)
    rig.shake.trigger(False)
    assert rig.said[3:] == (Code.BUSY, State.ERROR)
    assert not rig.shake.trigger(True, "b")
    assert rig.tasks[-1].code == Code.BUSY
    rig.answer(code=Code.BUSY, row=9)
    rig.shake.trigger(False)
    assert not rig.answer(rig.tasks[0], **OK)  # it comes back after all
    assert rig.said[3:] == (Code.NONE, State.READY)


def test_where_no_row_can_be_written_either_there_is_a_nok_without_one(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.pass_(10.1)
    rig.pass_(6.1)
    assert rig.said[:4] == (True, False, True, Code.TIMEOUT)
    assert rig.shake.signals.answer.row == 0


def test_a_result_that_is_not_taken_is_withdrawn_and_stays_nok_until_it_is(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.answer(**OK)
    rig.pass_(5.1)
    assert rig.said[0] is False
    assert "row 7" in rig.tasks[-1].reason
    rig.answer(code=Code.ACK_TIMEOUT, row=8)
    assert rig.said == (True, False, True, Code.ACK_TIMEOUT, State.ERROR)
    rig.pass_(100)
    assert rig.said[0] is True
    rig.shake.ack(True)
    rig.shake.trigger(False)
    rig.shake.ack(False)
    assert rig.shake.signals.state is State.READY


def test_signals_that_stay_on_after_the_result_keep_ready_off(rig: Rig) -> None:
    rig.shake.trigger(True, "a")
    rig.answer(**OK)
    rig.shake.ack(True)
    assert (rig.said[0], rig.shake.signals.ready, rig.shake.phase) == (False, False, Phase.RELEASE)
    rig.pass_(5.1)
    assert rig.said[3:] == (Code.STUCK, State.ERROR)
    rig.shake.trigger(False)
    assert not rig.shake.signals.ready
    rig.shake.ack(False)
    assert rig.shake.signals.ready


@pytest.mark.parametrize("code", [Code.BLOCKED, Code.LEDGER, Code.CLOSING])
def test_while_the_line_judges_nothing_ready_is_off_and_a_trigger_is_nok(rig: Rig, code: Code) -> None:
    rig.shake.line(code)
    assert (rig.shake.signals.ready, rig.shake.signals.code) == (False, code)
    assert not rig.shake.trigger(True, "a")
    assert rig.tasks[-1].code == code
    rig.answer(code=code)
    assert rig.said[:4] == (True, False, True, code)
    rig.shake.trigger(False)
    rig.shake.line(Code.NONE)
    assert rig.shake.signals.ready


def test_the_heart_beats_while_the_line_lives_and_no_longer(rig: Rig) -> None:
    seen = []
    for _ in range(8):
        rig.pass_(0.25)
        seen.append(rig.shake.signals.heartbeat)
    assert seen == [False, True, True, False, False, True, True, False]
    rig.shake.line(Code.CLOSING, alive=False)
    for _ in range(8):
        rig.pass_(0.25)
    assert rig.shake.signals.heartbeat is False
    assert rig.shake.signals.state is State.HALTED


def test_before_the_line_was_looked_at_it_is_preoperational() -> None:
    shake = Handshake(lambda task: None)
    shake.tick()
    assert (shake.signals.state, shake.signals.ready) == (State.PREOPERATIONAL, False)
    with pytest.raises(UsageError, match="above 0 s"):
        Handshake(lambda task: None, ack_s=0)


def test_every_code_and_state_stands_in_the_page_with_its_number() -> None:
    text = PAGE.read_text("utf-8")
    assert MEANING.keys() == set(Code)
    for code in Code:
        assert f"| {code.value} | `{code.name}` | {MEANING[code]} |" in text
    for state in State:
        assert re.search(rf"^\| {state.number} \| `{re.escape(state.words)}` \|", text, re.MULTILINE), state


@pytest.mark.parametrize(("module", "package"), [("opcua", "asyncua"), ("modbus", "pymodbus"), ("mqtt", "aiomqtt")])
def test_without_its_package_an_adapter_says_what_to_install(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    spec = importlib.util.spec_from_file_location("without", SOURCE / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=rf"needs {package}: pip install .flawmap\[plc\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- with a line


Grab = Callable[[str], Sequence[Picture]]


@pytest.fixture
def cell_of(line: Line, pictures: dict[str, Picture]) -> Iterator[Callable[..., Cell]]:
    """A cell on the line; its camera gives the picture whose name the PartId begins with."""
    made = []

    def make(grab: Grab | None = None, **times: float) -> Cell:
        made.append(Cell(line, grab or (lambda part: [pictures[part.split("-")[0]]]), **times))
        return made[-1]

    yield make
    for cell in made:
        cell.close(0)


def _taken(cell: Cell, until: Callable[..., Any], part: str, seconds: float = 5.0) -> Signals:
    """One part from Trigger to the release of its result."""
    cell.handshake.trigger(True, part)
    found = until(lambda: cell.signals if cell.signals.result_valid else None, seconds)
    cell.handshake.trigger(False)
    return found


def test_a_part_is_ok_or_nok_as_its_row_says(line: Line, cell_of: Any, until: Any) -> None:
    cell = cell_of()
    until(lambda: cell.signals.ready)
    for part, ok in (("good", True), ("bad", False), ("good-2", True)):
        signals = _taken(cell, until, part)
        row = line.ledger.get(signals.answer.row)
        assert row is not None
        assert (row["part"], row["verdict"], row["source"]) == (part, "OK" if ok else "NOK", "plc")
        assert (row["hash"], row["score"]) == (signals.answer.hash, signals.answer.score)
        assert (signals.ok, signals.nok, signals.code) == (ok, not ok, Code.NONE)
        until(lambda: cell.signals.ready)
    assert line.lamps["plc"][0] == "off"
    cell.peers = 1
    until(lambda: line.lamps["plc"] == ("ok", "plc: 1 connected, Operational.Ready"))


def _raises(part: str) -> Sequence[Picture]:
    raise ConnectionError(f"no camera for {part}")


@pytest.mark.parametrize(
    ("part", "grab", "code"),
    [
        ("a", _raises, "NO_PICTURE"),
        ("a", lambda part: [], "NO_PICTURE"),
        ("a", lambda part: [Picture("1.png", b"no picture")], "DATA"),
        ("a", lambda part: [Picture("1.png", b"1"), Picture("2.png", b"2")], "USAGE"),
        ("  ", lambda part: [Picture("1.png", b"1")], "PART"),
        ("x" * 501, lambda part: [Picture("1.png", b"1")], "PART"),
    ],
)
def test_what_goes_wrong_is_nok_with_a_code_and_a_row(
    line: Line, cell_of: Any, until: Any, part: str, grab: Grab, code: str
) -> None:
    cell = cell_of(grab)
    signals = _taken(cell, until, part)
    row = line.ledger.get(signals.answer.row)
    assert row is not None
    assert (signals.nok, signals.code.name, row["code"], row["kind"]) == (True, code, code, "error")
    assert row["part"] == part[:500]
    until(lambda: cell.signals.ready)


def test_a_camera_that_hangs_is_a_timeout_and_its_late_picture_is_not_judged(
    line: Line, cell_of: Any, until: Any, pictures: dict[str, Picture]
) -> None:
    gate = threading.Event()

    def slow(part: str) -> Sequence[Picture]:
        gate.wait(5)
        return [pictures["good"]]

    cell = cell_of(slow, inspect_s=0.2)
    signals = _taken(cell, until, "slow")
    assert (signals.code, signals.nok) == (Code.TIMEOUT, True)
    until(lambda: cell.signals.code == Code.BUSY)
    until(lambda: line.lamps["plc"][0] == "bad")
    gate.set()
    until(lambda: cell.signals.ready)
    assert [row["code"] for row in line.ledger.rows()] == ["TIMEOUT"]


def test_a_verdict_that_comes_after_an_overrun_is_written_down_as_late(
    line: Line, cell_of: Any, until: Any, pictures: dict[str, Picture]
) -> None:
    judged, go_on = threading.Event(), threading.Event()
    inspect = line.inspect

    def held(*args: Any, **how: Any) -> Any:
        row = inspect(*args, **how)
        judged.set()
        go_on.wait(5)
        return row

    line.inspect = held  # type: ignore[method-assign]
    cell = cell_of(lambda part: [pictures["good"]])
    cell.handshake.trigger(True, "one")
    assert judged.wait(5)
    cell.handshake.trigger(False)
    cell.handshake.trigger(True, "two")
    until(lambda: cell.signals.result_valid)
    assert (cell.signals.code, cell.signals.nok, cell.signals.answer.part) == (Code.OVERRUN, True, "one")
    go_on.set()
    late = until(lambda: [row for row in line.ledger.rows(kinds=["event"]) if row["code"] == "LATE"])
    assert "OK of part 'one'" in late[0]["reason"]


def test_blocked_is_nok_and_passes(line: Line, cell_of: Any, until: Any) -> None:
    cell = cell_of()
    line.block("challenge parts")
    until(lambda: cell.signals.code == Code.BLOCKED)
    signals = _taken(cell, until, "good")
    assert (signals.nok, signals.code) == (True, Code.BLOCKED)
    line.block("")
    until(lambda: cell.signals.ready)
    assert _taken(cell, until, "good").ok


def test_a_ledger_that_is_locked_is_nok_and_ready_comes_back_with_it(line: Line, cell_of: Any, until: Any) -> None:
    cell = cell_of()
    until(lambda: cell.signals.ready)
    line.ledger.engine.dispose()
    with line.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")  # else the test waits 5 s; the pool keeps it
    lock = sqlite3.connect(line.ledger.engine.url.database or "", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    signals = _taken(cell, until, "good", 8)
    assert (signals.ok, signals.nok, signals.code, signals.answer.row) == (False, True, Code.LEDGER, 0)
    until(lambda: cell.signals.state is State.ERROR and not cell.signals.ready)
    lock.execute("ROLLBACK")
    lock.close()
    until(lambda: cell.signals.ready, 12)
    assert line.fault == ""
    assert _taken(cell, until, "good").ok
    assert line.ledger.verify()[1] == []


def test_closing_ends_the_heartbeat_and_a_trigger_is_nok(line: Line, cell_of: Any, until: Any) -> None:
    cell = cell_of(heartbeat_s=0.05)
    beats = set()
    until(lambda: beats.add(cell.signals.heartbeat) or len(beats) == 2)
    line.close()
    until(lambda: cell.signals.state is State.HALTED)
    signals = _taken(cell, until, "good")
    assert (signals.nok, signals.code, signals.ok) == (True, Code.CLOSING, False)
    still = cell.signals.heartbeat
    threading.Event().wait(0.3)
    assert cell.signals.heartbeat is still
    cell.close(0)
    assert line.lamps["plc"] == ("off", "closed")
