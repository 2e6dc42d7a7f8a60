"""Challenge parts: until they pass, nothing else is judged."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flawmap.errors import DataError, LedgerError, Unavailable, UsageError
from flawmap.run.bundle import Bundle, read
from flawmap.station import challenge as module
from flawmap.station.challenge import NOT_YET, Challenge
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "FULL_S", 5.0)


@pytest.fixture
def folder(tmp_path: Path, pictures: dict[str, Picture]) -> Path:
    """One good part and one bad one."""
    for kind in ("good", "bad"):
        (tmp_path / "known" / kind).mkdir(parents=True)
        (tmp_path / "known" / kind / "part.png").write_bytes(pictures[kind].content)
    return tmp_path / "known"


@pytest.fixture
def two(tmp_path: Path, flaw: Path) -> Iterator[Line]:
    """A line with two recipes that judge alike."""
    bundle = read(flaw)
    Bundle({**bundle.files, "card.md": b"# b"}, "b").write(tmp_path / "b.flaw")
    line = Line(Recipes({"a": flaw, "b": tmp_path / "b.flaw"}), Ledger(tmp_path / "two.db"))
    yield line
    line.close()


@pytest.fixture
def of() -> Iterator[Callable[..., Challenge]]:
    made: list[Challenge] = []

    def challenge(*given: Any, **how: Any) -> Challenge:
        made.append(Challenge(*given, **how))
        return made[-1]

    yield challenge
    for each in made:
        each.close()


def test_nothing_is_judged_until_the_challenge_has_passed(
    of: Any, line: Line, folder: Path, pictures: dict[str, Picture]
) -> None:
    challenge = of(line, folder, block=True)
    with pytest.raises(Unavailable, match=NOT_YET) as said:
        line.submit("p", [pictures["good"]])
    assert said.value.code == "BLOCKED"
    result = challenge.run("anna")
    assert (result.passed, result.reason) == (True, "2 challenge parts passed")
    assert [(row["part"], row["verdict"], row["source"]) for row in result.rows] == [
        ("challenge good: part.png", "OK", "challenge"),
        ("challenge bad: part.png", "NOK", "challenge"),
    ]
    assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"
    assert line.counts == {"OK": 1}  # challenge parts are no production
    codes = [row["code"] for row in line.ledger.rows(kinds=("event",))]
    assert codes == ["RELEASED", "PASSED", "BLOCKED", "START"]
    assert line.ledger.rows(kinds=("event",))[1]["who"] == "anna"


def test_without_block_parts_are_judged_and_a_failure_is_told(
    of: Any, line: Line, folder: Path, pictures: dict[str, Picture]
) -> None:
    shutil.copy(folder / "bad" / "part.png", folder / "good" / "spoilt.png")
    challenge = of(line, folder)
    assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"
    result = challenge.run()
    assert (result.passed, result.reason) == (False, "good part spoilt.png is NOK")
    assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"


@pytest.mark.parametrize("how", ["bad one is good", "good one is bad", "broken", "gone"])
def test_a_challenge_that_fails_blocks_a_station_that_had_passed(
    how: str, of: Any, line: Line, folder: Path, pictures: dict[str, Picture]
) -> None:
    challenge = of(line, folder, block=True)
    assert challenge.run().passed
    if how == "bad one is good":
        (folder / "bad" / "part.png").write_bytes(pictures["good"].content)
    elif how == "good one is bad":
        (folder / "good" / "part.png").write_bytes(pictures["bad"].content)
    elif how == "broken":
        (folder / "bad" / "part.png").write_bytes(pictures["broken"].content)
    else:
        (folder / "bad" / "part.png").unlink()
    assert not challenge.run().passed
    with pytest.raises(Unavailable, match=r"part\.png"):
        line.submit("p", [pictures["good"]])


def test_another_recipe_has_to_pass_itself_before_it_judges(
    of: Any, two: Line, folder: Path, pictures: dict[str, Picture]
) -> None:
    challenge = of(two, folder, block=True)
    challenge.run()
    with pytest.raises(Unavailable, match="with the recipe b"):
        two.submit("p", [pictures["good"]], recipe="b")  # by name, past the one in use
    two.use("b")
    with pytest.raises(Unavailable, match="with the recipe b"):
        two.submit("p", [pictures["good"]])
    two.roll_back()
    assert two.inspect("p", [pictures["good"]])["recipe"] == "a"
    two.use("b")
    challenge.run()
    assert two.inspect("p", [pictures["good"]])["recipe"] == "b"


def test_no_part_slips_through_while_recipes_are_switched(
    of: Any, two: Line, folder: Path, pictures: dict[str, Picture]
) -> None:
    of(two, folder, block=True).run()
    over, found = threading.Event(), set()

    def client() -> None:
        while not over.is_set():
            with suppress(Unavailable):
                found.add(two.inspect("p", [pictures["good"]])["recipe"])

    running = [threading.Thread(target=client) for _ in range(2)]
    for thread in running:
        thread.start()
    for name in "baba":
        threading.Event().wait(0.05)
        two.use(name)
    threading.Event().wait(0.2)
    over.set()
    for thread in running:
        thread.join()
    assert found == {"a"}


def test_a_new_shift_has_to_pass_anew(
    of: Any, line: Line, folder: Path, pictures: dict[str, Picture], monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    clock = [datetime(2026, 11, 28, 5, 59)]

    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock[0]

    monkeypatch.setattr(module, "datetime", Now)
    challenge = of(line, folder, block=True, shifts=["22:00", "06:00"])
    challenge.run()
    for hour, minute, day, open_ in (
        (5, 59, 28, True), (6, 0, 28, False), (21, 59, 28, True),
        (22, 0, 28, False), (2, 0, 29, True), (6, 0, 29, False),
    ):  # fmt: skip
        clock[0] = datetime(2026, 11, day, hour, minute)
        if open_:
            assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"
            continue
        with pytest.raises(Unavailable, match="in this shift"):  # at once
            line.submit("p", [pictures["good"]])
        until(lambda: "in this shift" in line.blocked)
        assert challenge.run().passed
    assert not line.blocked


def test_a_challenge_that_cannot_be_written_down_has_not_passed(
    of: Any, line: Line, folder: Path, pictures: dict[str, Picture], until: Any
) -> None:
    challenge = of(line, folder, block=True)
    challenge.run()
    with line.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
    other = sqlite3.connect(line.ledger.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError):
        challenge.run()
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(Unavailable, match=NOT_YET):
        line.submit("p", [pictures["good"]])
    until(lambda: line.blocked)
    assert challenge.run().passed
    assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"


def test_a_challenge_waits_for_its_place_in_a_full_queue(
    of: Any, tmp_path: Path, recipes: Recipes, folder: Path, pictures: dict[str, Picture]
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), waiting=1, judges=1)
    challenge = of(line, folder)
    over = threading.Event()

    def crowd() -> None:
        while not over.is_set():
            try:
                line.submit("p", [pictures["good"]])
            except Unavailable:
                over.wait(0.01)

    thread = threading.Thread(target=crowd)
    thread.start()
    assert challenge.run().passed
    over.set()
    thread.join()
    line.close()


def test_what_somebody_else_blocked_stays_blocked(of: Any, line: Line, folder: Path) -> None:
    challenge = of(line, folder, block=True)
    challenge.run()
    line.block("maintenance")
    threading.Event().wait(0.2)
    assert line.blocked == "maintenance"


def test_a_second_run_at_once_is_refused_and_close_ends_the_thread(of: Any, line: Line, folder: Path) -> None:
    before = set(threading.enumerate())
    challenge = Challenge(line, folder, block=True)
    found: list[Any] = []

    def again(what: str, row: Any) -> None:
        if what == "part" and not found:
            with pytest.raises(UsageError, match="running"):
                challenge.run()
            found.append(row)

    line.listen(again)
    challenge.run()
    assert found
    challenge.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("shift", ["6", "24:00", "06:60", "six", "06:00:00", "-1:00"])
def test_a_shift_is_a_time_of_the_day(shift: str, line: Line, folder: Path) -> None:
    with pytest.raises(UsageError, match="06:00"):
        Challenge(line, folder, shifts=[shift])


def test_a_folder_without_known_parts_is_refused(line: Line, folder: Path) -> None:
    shutil.rmtree(folder / "bad")
    with pytest.raises(DataError, match="bad"):
        Challenge(line, folder)
    (folder / "bad").mkdir()
    with pytest.raises(DataError):
        Challenge(line, folder)
    assert line.ready
