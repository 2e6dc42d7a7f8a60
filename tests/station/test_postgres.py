"""The ledger in a real PostgreSQL: one that FLAWMAP_POSTGRES names, or a cluster that is made for the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from flawmap.errors import DataError, LedgerError
from flawmap.station.exports import existing
from flawmap.station.ledger import ROWS, Ledger

PART = {"kind": "verdict", "verdict": "OK", "part": "p", "score": 0.1, "views": [{"name": "v"}]}
Control = Callable[..., None]


def _user() -> str | None:
    """Who the server runs as; it refuses root."""
    return None if os.geteuid() else "postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Control | None]]:
    """A URL, and what starts and stops the server where it is ours."""
    if named := os.environ.get("FLAWMAP_POSTGRES"):
        yield named, None
        return
    if not (shutil.which("pg_ctl") and shutil.which("initdb")):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            pytest.skip("no PostgreSQL: install it, or set FLAWMAP_POSTGRES")
        bin = f"{found[-1]}/"
    else:
        bin = ""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if _user():
        shutil.chown(folder, _user(), _user())
    data = folder / "data"
    quiet = {"check": True, "user": _user(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def control(what: str, *more: str) -> None:
        subprocess.run([f"{bin}pg_ctl", what, "-w", "-D", data, *more], **quiet)

    how = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    subprocess.run([f"{bin}initdb", "-A", "trust", "-U", "flawmap", "-E", "UTF8", "--no-sync", "-D", data], **quiet)
    start = ("start", "-o", how, "-l", str(folder / "log"))
    control(*start)
    yield (
        f"postgresql+psycopg://flawmap@127.0.0.1:{port}/postgres",
        lambda what: control(*start) if what == "start" else control("stop", "-m", "immediate"),
    )
    control("stop", "-m", "immediate")
    shutil.rmtree(folder)


@pytest.fixture
def url(server: tuple[str, Control | None]) -> Iterator[str]:
    """Without a ledger in it."""
    engine = sql.create_engine(server[0], pool_pre_ping=True)

    def empty() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS ledger")
            connection.exec_driver_sql("DROP FUNCTION IF EXISTS ledger_only_added")

    empty()
    yield server[0]
    empty()
    engine.dispose()


def test_what_is_written_comes_back_with_a_hash_that_holds(url: str) -> None:
    with pytest.raises(DataError, match="holds no ledger"):
        existing(url)
    ledger = Ledger(url)
    odd = {"score": -0.0, "p_value": 1, "threshold": 0.1 + 0.2, "latency_ms": 1e-310}
    row = ledger.add(kind="error", part="a\0b\ud800" * 100, reason="x" * 9000, code="A_VERY_LONG_CODE_INDEED", **odd)
    assert ledger.get(1) == row
    assert ledger.rows(part="A\0B\ud800") == [row]
    assert ledger.add(**PART, request="q\0")["seq"] == 2
    assert ledger.add(**PART, request="q\0")["seq"] == 2
    assert existing(url).verify({1: row["hash"]}) == (2, [])
    ledger.close()


def test_several_writers_write_one_chain(url: str) -> None:
    barrier = threading.Barrier(4)

    def add(n: int) -> set[int]:
        barrier.wait()
        ledger = Ledger(url, station=f"s{n}")  # four make the table at once
        rows = [ledger.add(**PART, request=f"q{m}" if m % 2 else None)["seq"] for m in range(20)]
        ledger.close()
        return set(rows)

    with ThreadPoolExecutor(4) as pool:
        numbers = set().union(*pool.map(add, range(4)))
    assert numbers == set(range(1, 4 * 10 + 10 + 1))
    assert existing(url).verify() == (50, [])


@pytest.mark.parametrize("command", ["UPDATE ledger SET verdict = 'NOK'", "DELETE FROM ledger", "TRUNCATE ledger"])
def test_a_row_is_not_changed_by_mistake_and_on_purpose_it_is_found(command: str, url: str) -> None:
    ledger = Ledger(url)
    heads = {row["seq"]: row["hash"] for row in (ledger.add(**PART) for _ in range(3))}
    with pytest.raises(sql.exc.DBAPIError, match="only ever added"), ledger.engine.begin() as connection:
        connection.exec_driver_sql(command)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger DISABLE TRIGGER ALL")
        connection.exec_driver_sql(command)
    assert len(ledger.verify(heads)[1]) == 3
    ledger.close()


def test_a_role_that_may_only_add_and_read_is_enough(url: str) -> None:
    owner = Ledger(url)
    owner.add(**PART)
    with owner.engine.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS line")
        connection.exec_driver_sql("CREATE ROLE line LOGIN")
        connection.exec_driver_sql("GRANT INSERT, SELECT ON ledger TO line")
    at_line = Ledger(sql.make_url(url).set(username="line").render_as_string(hide_password=False))
    assert at_line.add(**PART)["seq"] == 2
    with pytest.raises(sql.exc.DBAPIError, match="permission denied"), at_line.engine.begin() as connection:
        connection.execute(sql.delete(ROWS))
    at_line.close()
    with owner.engine.begin() as connection:
        connection.exec_driver_sql("REVOKE ALL ON ledger FROM line")
        connection.exec_driver_sql("DROP ROLE line")
    assert owner.verify() == (2, [])
    owner.close()


def test_a_server_that_stops_is_an_error_and_then_works_again(url: str, server: tuple[str, Control | None]) -> None:
    control = server[1]
    if control is None:
        pytest.skip("the server of FLAWMAP_POSTGRES is not ours to stop")
    ledger = Ledger(url)
    head = ledger.add(**PART)
    control("stop")
    with pytest.raises(LedgerError):
        ledger.add(**PART)
    with pytest.raises(LedgerError):
        ledger.head()
    control("start")
    assert ledger.add(**PART)["seq"] == 2
    assert ledger.verify({1: head["hash"]}) == (2, [])
    ledger.close()
