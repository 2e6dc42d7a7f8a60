"""The ledger: what is written stands, and verify finds whatever somebody changed in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawmap.errors import DataError, LedgerError, UsageError
from flawmap.station.exports import existing
from flawmap.station.ledger import FIRST, ROWS, Ledger

COLUMNS = [column.name for column in ROWS.columns]
PART = {"kind": "verdict", "verdict": "OK", "part": "p", "recipe": "r", "bundle": "b", "calibration": "c"}
PART |= {"score": 0.25, "p_value": 0.5, "threshold": 1.0, "latency_ms": 3.5, "who": "anna", "views": [{"name": "v"}]}


def filled(path: Path, count: int = 5) -> Path:
    ledger = Ledger(path)
    ledger.add_all([{**PART, "part": f"p{n}", "request": f"q{n}", "code": "C", "reason": "r"} for n in range(count)])
    ledger.add(kind="decision", code="agreed", refers=2, reason="so it is", who="anna")
    ledger.close()
    return path


def tampered(path: Path, *commands: str) -> tuple[int, list[str]]:
    """What verify says after somebody with a database client was there."""
    with sqlite3.connect(path) as connection:
        for what in ("update", "delete", "replace"):
            connection.execute(f"DROP TRIGGER ledger_no_{what}")
        for command in commands:
            connection.execute(command)
    connection.close()
    return existing(str(path)).verify()


# ---- the chain


def test_a_hash_is_that_of_a_slow_loop_over_the_file(tmp_path: Path) -> None:
    filled(tmp_path / "l.db")
    with sqlite3.connect(tmp_path / "l.db") as connection:
        rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM ledger ORDER BY seq").fetchall()
    connection.close()
    before = "0" * 64
    for number, row in enumerate(rows, 1):
        values = dict(zip(COLUMNS, row, strict=True))
        said = values.pop("hash")
        assert (values["seq"], values["previous"]) == (number, before)
        text = json.dumps(list(values.values()), separators=(",", ":"))
        before = hashlib.sha256(text.encode()).hexdigest()
        assert said == before
    assert len(rows) == 6
    assert existing(str(tmp_path / "l.db")).head() == (6, before)


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "seq"])
def test_a_change_in_any_column_is_found(column: str, tmp_path: Path) -> None:
    number = isinstance(ROWS.c[column].type.python_type(), (int, float))
    value = "7" if number else "'x'"
    count, wrong = tampered(filled(tmp_path / "l.db"), f"UPDATE ledger SET {column} = {value} WHERE seq = 3")
    assert count == 6
    assert any("row 3 " in line for line in wrong)


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["DELETE FROM ledger WHERE seq = 3"], "rows 3 to 3 are missing"),
        (["DELETE FROM ledger WHERE seq IN (2, 3)"], "rows 2 to 3 are missing"),
        (["DELETE FROM ledger WHERE seq = 1"], "rows 1 to 1 are missing"),
        (
            ["DELETE FROM ledger WHERE seq = 3", "UPDATE ledger SET seq = seq - 1 WHERE seq > 3"],
            "row 3 does not follow the row before it",
        ),
        (
            [f"UPDATE ledger SET seq = {a} WHERE seq = {b}" for a, b in ((99, 2), (2, 3), (3, 99))],
            "row 2 does not follow the row before it",
        ),
        (
            [f"INSERT INTO ledger SELECT -5, {', '.join(COLUMNS[1:5])}, 'x', {', '.join(COLUMNS[6:])} "
             "FROM ledger WHERE seq = 1"],
            "rows 1 to -6 are missing",
        ),
        (["UPDATE ledger SET score = '0.25x' WHERE seq = 2"], "row 2 was changed"),
        (["UPDATE ledger SET reason = x'00ff' WHERE seq = 2"], "row 2 was changed"),
        (["UPDATE ledger SET reason = CAST(x'41ff' AS TEXT) WHERE seq = 2"], "row 2 was changed"),
        (["UPDATE ledger SET views = 'no json' WHERE seq = 2"], "row 2 was changed"),
    ],
)  # fmt: skip
def test_a_gap_another_order_and_what_no_ledger_writes_are_found(
    commands: list[str], said: str, tmp_path: Path
) -> None:
    _, wrong = tampered(filled(tmp_path / "l.db"), *commands)
    if "-6" in said:
        assert wrong
    else:
        assert said in wrong


def test_an_end_cut_off_and_a_chain_written_anew_show_against_what_was_answered(tmp_path: Path) -> None:
    ledger = Ledger(filled(tmp_path / "l.db"))
    heads = {row["seq"]: row["hash"] for row in ledger.all()}
    assert ledger.verify(heads) == (6, [])
    ledger.close()
    shutil.copy(tmp_path / "l.db", tmp_path / "cut.db")
    assert tampered(tmp_path / "cut.db", "DELETE FROM ledger WHERE seq > 4") == (4, [])
    assert existing(str(tmp_path / "cut.db")).verify(heads)[1] == [
        "row 5, which was answered, is missing",
        "row 6, which was answered, is missing",
    ]
    filled(tmp_path / "anew.db", 5)
    count, wrong = existing(str(tmp_path / "anew.db")).verify(heads)
    assert (count, len(wrong)) == (6, 6)  # other times, hence other hashes
    assert wrong[0] == "row 1 is not the one that was answered"


def test_a_row_that_was_changed_is_an_error_to_read_and_to_verify_a_finding(tmp_path: Path) -> None:
    tampered(filled(tmp_path / "l.db"), "UPDATE ledger SET views = 'no json' WHERE seq = 2")
    with pytest.raises(LedgerError, match="row 2 of the ledger was changed"):
        existing(str(tmp_path / "l.db")).get(2)


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE ledger SET verdict = 'NOK'",
        "DELETE FROM ledger WHERE seq = 1",
        "REPLACE INTO ledger SELECT * FROM ledger WHERE seq = 2",
        f"REPLACE INTO ledger SELECT 77, {', '.join(COLUMNS[1:])} FROM ledger WHERE seq = 2",
    ],
)
def test_a_row_is_not_changed_by_mistake(command: str, tmp_path: Path) -> None:
    filled(tmp_path / "l.db")
    connection = sqlite3.connect(tmp_path / "l.db")
    with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
        connection.execute(command)
    connection.close()
    assert existing(str(tmp_path / "l.db")).verify() == (6, [])


# ---- what stands in a row


def test_what_a_database_would_give_back_otherwise_is_sealed_as_it_comes_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    odd = {"score": -0.0, "p_value": 1, "threshold": np.float32(0.1), "latency_ms": 1e-310}
    row = ledger.add(
        kind="error", part="a\0b\ud800", reason="x" * 5000, who="w" * 300, views=({"n": np.int64(3)},), **odd
    )
    assert (row["part"], len(row["reason"]), len(row["who"])) == ("a\\0b\\ud800", 4000, 200)
    assert (row["score"], row["p_value"], row["views"]) == (0.0, 1.0, [{"n": 3}])
    assert ledger.get(1) == row
    assert ledger.verify({1: row["hash"]}) == (1, [])
    assert ledger.rows(part="A\0B") == [row]  # as text is searched: in any case


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": float("nan")},
        {"score": float("inf")},
        {"score": "high"},
        {"views": [{"score": float("nan")}]},
        {"views": [{"what": object()}]},
        {"request": "q" * 201},
        {"kind": "guess"},
        {"colour": "red"},
    ],
)
def test_what_cannot_stand_in_a_row_is_refused_and_nothing_written(wrong: dict[str, Any], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    with pytest.raises(UsageError):
        ledger.add_all([PART, {**PART, **wrong}])
    assert ledger.head() == (0, FIRST)
    assert ledger.add(**PART)["seq"] == 1


def test_rows_are_found_as_by_a_slow_loop(tmp_path: Path) -> None:
    ledger, random = Ledger(tmp_path / "l.db"), np.random.default_rng(0)
    rows = []
    for n in range(120):
        kind = str(random.choice(["verdict", "error", "event"]))
        verdict = str(random.choice(["OK", "NOK", "REVIEW"])) if kind == "verdict" else None
        time = f"2026-11-28T10:{n // 3:02}:{n % 60:02}.{n:03}Z"
        recipe = str(random.choice(["a", "b"]))
        rows.append(ledger.add(kind=kind, verdict=verdict, time=time, part=f"100%_{n % 7}", recipe=recipe))
    parts = [row for row in reversed(rows) if row["kind"] != "event"]
    assert ledger.rows(limit=500) == parts
    assert ledger.rows(verdicts=["NOK"], recipe="a") == [
        r for r in parts if r["verdict"] == "NOK" and r["recipe"] == "a"
    ]
    assert ledger.rows(part="%_3", limit=500) == [row for row in parts if row["part"] == "100%_3"]
    assert ledger.rows(part="_%") == []
    since, until = "2026-11-28T10:08:25Z", "2026-11-28T12:20:00+02:00"
    within = [row for row in parts if "2026-11-28T10:08:25.000Z" <= row["time"] < "2026-11-28T10:20:00.000Z"]
    assert 5 < len(within) < 50
    assert ledger.rows(since=since, until=until) == within
    pages, before = [], None
    while page := ledger.rows(before=before, limit=7):
        pages += page
        before = page[-1]["seq"]
    assert pages == parts
    counted = {v: sum(row["verdict"] == v for row in parts) for v in ("OK", "NOK", "REVIEW")}
    assert ledger.counts() == counted | {"ERROR": sum(row["kind"] == "error" for row in parts)}


@pytest.mark.parametrize("seq", [0, -1, 10**30, 2**63])
def test_a_number_that_no_row_has_is_none_or_an_error_of_the_ledger(seq: int, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    if seq < 2**63:
        assert ledger.get(seq) is None
    else:
        with pytest.raises(LedgerError):
            ledger.get(seq)


# ---- the same request


@pytest.mark.parametrize("request_", ["plain", "nul\0", "half \ud800"])
def test_a_request_is_written_once(request_: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    first = ledger.add(**PART, request=request_)
    again = ledger.add_new([{**PART, "request": request_, "part": "other"}, PART])
    assert again[0] == (first, False)
    assert (again[1][0]["seq"], again[1][1]) == (2, True)
    assert ledger.of_request(request_) == first
    both = ledger.add_new([{**PART, "request": "twice"}, {**PART, "request": "twice"}])
    assert [new for _, new in both] == [True, False]
    assert both[0][0] == both[1][0]
    assert ledger.verify() == (3, [])


def test_a_request_from_many_threads_is_one_row(tmp_path: Path) -> None:
    ledgers = [Ledger(tmp_path / "l.db") for _ in range(2)]
    barrier = threading.Barrier(8)

    def add(n: int) -> int:
        barrier.wait()
        return [ledgers[n % 2].add(**PART, request=f"q{m}")["seq"] for m in range(5)][-1]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(add, range(8)))) == 1
    assert ledgers[0].verify() == (5, [])


# ---- processes, places, durability

WRITER = """
import sys
from flawmap.station.ledger import Ledger
ledger = Ledger(sys.argv[1], station=sys.argv[2])
for n in range(40):
    row = ledger.add(kind="verdict", verdict="OK", part=f"{n}", request=f"{sys.argv[2]} {n}")
    print(row["seq"], row["hash"])
"""


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "l.db")]
    running = [subprocess.Popen([*command, f"s{n}"], stdout=subprocess.PIPE, text=True) for n in range(3)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    heads = {int(seq): digest for out in said for seq, digest in (line.split() for line in out.splitlines())}
    assert len(heads) == 120
    assert existing(str(tmp_path / "l.db")).verify(heads) == (120, [])


@pytest.mark.parametrize(("durability", "synchronous"), [("strict", 2), ("normal", 1)])
def test_strict_waits_for_the_disk_and_normal_does_not(durability: str, synchronous: int, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db", durability=durability)
    with ledger.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == synchronous
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with pytest.raises(UsageError, match="strict or normal"):
        Ledger(tmp_path / "l.db", durability="later")


def test_a_locked_database_is_an_error_and_then_works_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    ledger.add(**PART)
    impatient(ledger)
    other = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="database is locked"):
        ledger.add(**PART)
    assert ledger.head()[0] == 1  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert ledger.add(**PART)["seq"] == 2
    assert ledger.verify() == (2, [])


def impatient(ledger: Ledger) -> None:
    """Waits a tenth of a second for another writer, not 5 s; the pool keeps the connection."""
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")


def test_a_full_disk_is_an_error_and_the_chain_is_as_before(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "l.db")
    long, count = {**PART, "reason": "x" * 3000}, 0
    with suppress(LedgerError):
        while count < 10_000:
            count = ledger.add(**long)["seq"]
    with pytest.raises(LedgerError, match="full"):
        ledger.add(**long)
    assert 10 < count < 1000
    assert ledger.verify() == (count, [])
    (small_disk / "ballast").unlink()
    assert ledger.add(**PART)["seq"] == count + 1
    assert ledger.verify() == (count + 1, [])


def test_a_ledger_on_a_medium_that_cannot_be_written_is_verified(small_disk: Path) -> None:
    filled(small_disk / "l.db")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert existing(str(small_disk / "l.db")).verify() == (6, [])
    assert not (small_disk / "l.db-wal").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, with a file on it that can go."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    (disk / "ballast").write_bytes(bytes(1_500_000))
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_to_look_at_a_ledger_changes_nothing_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such ledger"):
        existing(str(tmp_path / "none.db"))
    with pytest.raises(DataError, match="no such ledger"):
        existing(f"sqlite:///{tmp_path}/none.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE wines (name TEXT)").connection.close()
    with pytest.raises(DataError, match="holds no ledger"):
        existing(str(tmp_path / "other.db"))
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at " * 30)
    with pytest.raises(LedgerError, match="not a database"):
        existing(str(tmp_path / "text.db"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db", "text.db"]
    found = existing(str(filled(tmp_path / "l.db")))
    with pytest.raises(LedgerError, match="readonly"):
        found.add(**PART)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "postgresql+nothing://x y", "sqlite:///a.db?mode=ro"]
)
def test_a_ledger_that_would_be_lost_or_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises((UsageError, LedgerError)):
        Ledger(url)


def test_a_row_takes_as_much_room_as_the_page_says(tmp_path: Path) -> None:
    view = {"name": "000.png", "sha256": "c" * 64, "bytes": 123456, "path": None, "note": "", "score": 1.23456789}
    entry = {**PART, "bundle": "a" * 64, "calibration": "b" * 64, "views": [{**view, "regions": []}]}
    ledger = Ledger(tmp_path / "l.db", durability="normal")
    for n in range(10):
        ledger.add_all([{**entry, "request": f"{n} {m} {'x' * 30}"} for m in range(100)])
    ledger.close()
    assert (tmp_path / "l.db").stat().st_size / 1000 == pytest.approx(800, rel=0.15)


def test_an_odd_path_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a folder #1?" / "50% of it.db"
    assert Ledger(path).add(**PART)["seq"] == 1
    assert path.is_file()
    assert existing(str(path)).verify() == (1, [])


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(LedgerError) as said:
        Ledger("postgresql+psycopg://anna:geheim@127.0.0.1:1/flawmap")
    assert "geheim" not in str(said.value)
    assert "127.0.0.1" in str(said.value)
