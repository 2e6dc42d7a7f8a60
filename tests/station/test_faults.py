"""What happens on the line when something else goes wrong: it fails safe, and recovers by itself."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import LedgerError
from flawmap.station.clock import behind
from flawmap.station.exports import existing
from flawmap.station.keep import Keep
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes


@pytest.fixture
def files(world: Path) -> list[Picture]:
    paths = [*sorted((world / "test/good").glob("*.png")), *sorted((world / "test/square").glob("*.png"))]
    return [Picture(path.name, path.read_bytes()) for path in paths]


def impatient(ledger: Ledger) -> None:
    """Waits a tenth of a second for another writer, not 5 s; the pool keeps the connection."""
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")


@pytest.fixture
def locked(line: Line) -> Iterator[sqlite3.Connection]:
    """Another process that holds the database; ROLLBACK lets it go."""
    impatient(line.ledger)
    other = sqlite3.connect(line.ledger.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


# ---- faults


def test_without_a_row_there_is_no_verdict_and_the_line_recovers_by_itself(
    line: Line, pictures: dict[str, Picture], locked: sqlite3.Connection, until: Any
) -> None:
    heard: list[str] = []
    line.listen(lambda what, _: heard.append(what))
    with pytest.raises(LedgerError, match="locked"):
        line.inspect("p", [pictures["good"]], request="r")
    assert (line.ready, "locked" in line.fault, heard) == (False, True, ["fault"])
    assert line.inside == 0
    locked.execute("ROLLBACK")
    until(lambda: line.ready, 10)  # though no part comes
    assert line.ledger.rows(kinds=("event",), limit=1)[0]["code"] == "LEDGER"
    assert line.inspect("p", [pictures["good"]], request="r")["verdict"] == "OK"
    assert line.ledger.verify()[1] == []


def test_a_full_database_is_a_fault_until_there_is_room(line: Line, pictures: dict[str, Picture], until: Any) -> None:
    with line.ledger.engine.connect() as connection:  # of a connection; the pool keeps it
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 4}")
    answered = []
    with pytest.raises(LedgerError, match="full"):  # noqa: PT012
        while len(answered) < 500:
            answered.append(line.inspect("p", [pictures["good"]]))
    assert line.fault
    with line.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    until(lambda: line.ready, 10)
    answered.append(line.inspect("p", [pictures["good"]]))
    assert line.ledger.verify({row["seq"]: row["hash"] for row in answered})[1] == []


def test_a_full_disk_for_pictures_costs_no_verdict(
    tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / time.strftime("%Y-%m-%d", time.gmtime())).write_text("a file where the day's folder should be")
    line = Line(recipes, Ledger(tmp_path / "l.db"), Keep(tmp_path / "kept"))
    row = line.inspect("p", [pictures["bad"]])
    assert (row["verdict"], row["views"][0]["path"]) == ("NOK", None)
    assert row["views"][0]["note"].startswith("picture not kept: ")
    line.close()


def test_a_clock_that_was_set_is_a_row_and_the_chain_holds(
    line: Line, pictures: dict[str, Picture], monkeypatch: pytest.MonkeyPatch, locked: sqlite3.Connection
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    with pytest.raises(LedgerError):
        line.inspect("p", [pictures["good"]])  # its row is lost, and that of the clock with it
    locked.execute("ROLLBACK")
    rows = [line.inspect(name, [pictures["good"]]) for name in "ab"]
    clock = [row for row in line.ledger.rows(kinds=("event",)) if row["code"] == "CLOCK"]
    assert [row["reason"] for row in clock] == ["the clock was set by -3600.0 s"]
    assert clock[0]["seq"] < rows[0]["seq"]
    assert line.ledger.verify()[1] == []
    monkeypatch.undo()
    line.inspect("c", [pictures["good"]])
    assert line.ledger.rows(kinds=("event",))[0]["reason"] == "the clock was set by +3600.0 s"


def test_a_clock_that_was_set_back_while_the_station_was_off_is_a_row(tmp_path: Path, recipes: Recipes) -> None:
    Ledger(tmp_path / "l.db").add(kind="event", code="STOP", time="2099-01-01T00:00:00.000Z")
    line = Line(recipes, Ledger(tmp_path / "l.db"))
    line.close()
    assert [row["code"] for row in line.ledger.rows(kinds=("event",))] == ["STOP", "START", "CLOCK", "STOP"]
    assert behind([{"time": "no time"}]) == []


def test_a_switch_that_cannot_be_written_down_is_taken_back(tmp_path: Path, flaw: Path, until: Any) -> None:
    recipes = Recipes({"a": flaw, "b": flaw})
    line = Line(recipes, Ledger(tmp_path / "l.db"))
    line.use("b")
    impatient(line.ledger)
    other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for change in (lambda: line.use("a"), line.roll_back):
        with pytest.raises(LedgerError):
            change()
        assert recipes.active.name == "b"
        assert recipes.previous is not None
        assert recipes.previous.name == "a"
    with pytest.raises(LedgerError):
        line.block("shift")
    assert line.blocked == "shift"
    with pytest.raises(LedgerError):
        line.block("")
    assert line.blocked == "shift"
    other.execute("ROLLBACK")
    other.close()
    line.block("")
    assert line.roll_back().name == "a"
    until(lambda: line.ready, 10)
    line.close()


def test_recipes_are_switched_under_load_and_no_part_is_lost(tmp_path: Path, flaw: Path, files: list[Picture]) -> None:
    line = Line(Recipes({"a": flaw, "b": flaw}), Ledger(tmp_path / "l.db"))
    over = threading.Event()

    def client(n: int) -> list[dict[str, Any]]:
        rows = []
        while not over.is_set() and len(rows) < 300:
            rows.append(line.inspect(f"{n} {len(rows)}", [files[len(rows) % len(files)]]))
        return rows

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client, n) for n in range(4)]
        for name in "babab":
            time.sleep(0.1)
            line.use(name, "anna")
        line.use("a", reload=True)
        line.roll_back()
        over.set()
        rows = [row for future in running for row in future.result()]
    line.close()
    kept = {row["seq"]: row for row in line.ledger.all()}
    assert {row["recipe"] for row in rows} == {"a", "b"}
    assert all(kept[row["seq"]]["hash"] == row["hash"] for row in rows)
    assert len(rows) == sum(row["kind"] == "verdict" for row in kept.values())
    switched = [row["reason"][:6] for row in kept.values() if row["code"] == "RECIPE"]
    assert switched == ["uses b", "uses a", "uses b", "uses a", "uses b", "uses a"]
    assert line.ledger.verify()[1] == []


# ---- memory and kill -9


@pytest.mark.parametrize("count", [120, pytest.param(6000, marks=pytest.mark.slow)])
def test_memory_stays_flat(count: int, tmp_path: Path, recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawmap.station.drifts.BET", 100)
    line = Line(recipes, Ledger(tmp_path / "l.db", durability="normal"))
    random_ = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(random_.integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(file, "BMP")  # half a megabyte
    high = []
    for n in range(count):
        line.inspect(f"p{n}", [Picture("p.bmp", file.getvalue() + n.to_bytes(4, "big"))], request=f"r{n}")
        if n in (count // 3, count - 1):
            high.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert len(line.recent._parts) <= 60
    shown = [view for views in line.recent._parts.values() for view in views]
    assert line.recent._bytes == sum(len(v.content) + (v.looked.map.nbytes if v.looked else 0) for v in shown)
    assert len(line.times_ms) <= 1000
    assert line._asked == {}
    assert line.drift is None or len(line.drift.scores) <= 100
    assert high[1] - high[0] < 40, "MB more from a third of the parts to all"
    line.close()


STATION = """
import os, sys, threading
from pathlib import Path
from flawmap.station.keep import Keep, Rules
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes
folder, flaw, *files = map(Path, sys.argv[1:])
line = Line(Recipes({"square": flaw}), Ledger(folder / "l.db"), Keep(folder / "kept", Rules(every=2)))
views = [Picture(path.name, path.read_bytes()) for path in files]
os.write(1, b"ready\\n")
def client(n):
    k = 0
    while True:
        row = line.inspect(f"{n} {k}", [views[k % len(views)]])
        os.write(1, f"{row['seq']} {row['hash']} {row['verdict']}\\n".encode())
        k += 1
for n in range(4):
    threading.Thread(target=client, args=(n,)).start()
"""


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_a_random_moment_every_verdict_that_was_answered_is_in_the_ledger(
    times: int, tmp_path: Path, flaw: Path, world: Path
) -> None:
    files = [*sorted((world / "test/good").glob("*.png"))[:2], *sorted((world / "test/square").glob("*.png"))[:2]]
    heads: dict[int, str] = {}
    verdicts: dict[int, str] = {}
    command = [sys.executable, "-c", STATION, tmp_path, flaw, *files]
    for n in range(times):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(random.Random(n).uniform(0.05, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        for said in process.stdout.read().decode().splitlines():
            seq, digest, verdict = said.split()
            heads[int(seq)], verdicts[int(seq)] = digest, verdict
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        count, wrong = existing(str(tmp_path / "l.db")).verify(heads)
        assert wrong == []
        assert count >= len(heads)
    assert len(heads) > 4 * times
    ledger = existing(str(tmp_path / "l.db"))
    rows = {row["seq"]: row for row in ledger.all()}
    assert {seq: rows[seq]["verdict"] for seq in verdicts} == verdicts
    for row in ledger.rows(limit=10_000):
        for view in row["views"]:
            if view["path"]:
                assert (tmp_path / "kept" / view["path"]).stat().st_size == view["bytes"]
