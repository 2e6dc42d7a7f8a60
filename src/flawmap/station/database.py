"""The databases that a ledger may lie in: SQLite in a file, PostgreSQL, and what else SQLAlchemy speaks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, LedgerError, MissingExtra, UsageError

try:
    import sqlalchemy as sql
    from sqlalchemy import event
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
    from sqlalchemy.pool import QueuePool
except ImportError as error:
    raise MissingExtra("sqlalchemy", "serve", "the ledger") from error

BUSY_S = 5.0  # how long another writer is waited for
LOCK = 0x666C6177  # of PostgreSQL's advisory locks, the one whose holder may add rows
_ADDED = "rows of the ledger are only ever added"
# A REPLACE deletes without asking the trigger on DELETE.
LITE = (
    f"CREATE TRIGGER IF NOT EXISTS ledger_no_update BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, '{_ADDED}'); END",
    f"CREATE TRIGGER IF NOT EXISTS ledger_no_delete BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, '{_ADDED}'); END",
    "CREATE TRIGGER IF NOT EXISTS ledger_no_replace BEFORE INSERT ON ledger "
    "WHEN EXISTS (SELECT 1 FROM ledger WHERE seq = NEW.seq OR request = NEW.request) "
    f"BEGIN SELECT RAISE(ABORT, '{_ADDED}'); END",
)
POSTGRES = (
    "CREATE OR REPLACE FUNCTION ledger_only_added() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{_ADDED}'; END $$",
    "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_added()",
)


def parsed(url: str | Path) -> sql.URL:
    """A path, or a URL of SQLAlchemy. UsageError: it is none, or a ledger that would lie in memory."""
    if "://" not in str(url):
        return sql.URL.create("sqlite", database=str(Path(url).resolve()))
    try:
        found = sql.make_url(str(url))
    except SQLAlchemyError as error:
        raise UsageError(
            "the ledger's URL cannot be read; give a file, or postgresql+psycopg://user@host/db"
        ) from error
    if found.get_backend_name() == "sqlite":
        if found.database in (None, "", ":memory:") or found.query:
            raise UsageError("a ledger in SQLite is a file: give its path")
        found = found.set(database=str(Path(str(found.database)).resolve()))
    return found


def connected(url: sql.URL, durability: str, create: bool) -> sql.Engine:
    """An engine with the settings that a ledger needs; `create` False: one that writes nothing, to SQLite."""
    if url.get_backend_name() == "sqlite":
        return _lite(url, durability) if create else _looking(Path(str(url.database)))
    libpq = url.get_driver_name() in ("psycopg", "psycopg2")
    # A server that went off without a word must be an error, not a wait of minutes.
    gone = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
    how = {"connect_args": {**gone, "tcp_user_timeout": 10_000}} if libpq else {}
    return sql.create_engine(url, pool_pre_ping=True, pool_timeout=BUSY_S, isolation_level="READ COMMITTED", **how)


def create(engine: sql.Engine, table: sql.Table) -> None:
    """The table, and triggers against changing it by mistake. A PostgreSQL table that is there is left as it is."""
    lite = engine.dialect.name == "sqlite"
    with engine.begin() as connection:
        lock(connection)
        new = not sql.inspect(connection).has_table(table.name)
        table.metadata.create_all(connection)
        if lite or (new and engine.dialect.name == "postgresql"):
            for command in LITE if lite else POSTGRES:
                connection.exec_driver_sql(command)


def lock(connection: sql.Connection) -> None:
    """Until the transaction's end no other station adds rows; SQLite's transactions to write say so themselves."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{round(BUSY_S * 1000)}ms'")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{round(BUSY_S * 2000)}ms'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")


def _lite(url: sql.URL, durability: str) -> sql.Engine:
    engine = sql.create_engine(url, connect_args={"timeout": BUSY_S}, pool_timeout=BUSY_S)

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        _settle(connection)
        connection.execute(f"PRAGMA busy_timeout={round(BUSY_S * 1000)}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'strict' else 'NORMAL'}")

    @event.listens_for(engine, "begin")
    def _(connection: sql.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("read") else "BEGIN IMMEDIATE")

    return engine


def _looking(path: Path) -> sql.Engine:
    """Reads a file and never writes to it, on a medium that cannot be written, too."""

    def connect() -> sqlite3.Connection:
        for how in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=BUSY_S, check_same_thread=False)
            try:
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:  # no place for the files beside it that WAL takes
                connection.close()
                wal = path.with_name(f"{path.name}-wal")
                if "immutable" in how or (wal.exists() and wal.stat().st_size):
                    raise
            else:
                break
        _settle(connection)
        return connection

    return sql.create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_timeout=BUSY_S)


def _settle(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself
    # Text that somebody put there and that is no UTF-8 shall be found by verify, not stop it.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")


@contextmanager
def said(where: str) -> Iterator[None]:
    """What a database raises, as LedgerError."""
    try:
        yield
    except DBAPIError as error:
        raise LedgerError(f"{where}: {error.orig}") from error
    except (SQLAlchemyError, ImportError, sqlite3.Error, OverflowError, OSError) as error:
        raise LedgerError(f"{where}: {error}") from error


def has(engine: sql.Engine, table: sql.Table, where: str) -> None:
    """DataError: the table is not there, or is another."""
    with said(where):
        found = sql.inspect(engine)
        names = {column["name"] for column in found.get_columns(table.name)} if found.has_table(table.name) else set()
    if missing := [column.name for column in table.columns if column.name not in names]:
        raise DataError(f"{where}: holds no ledger of flawmap: it has no column {missing[0]}")
