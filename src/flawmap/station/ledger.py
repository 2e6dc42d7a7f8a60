"""The ledger: every verdict a row before it is answered, each row sealed with the one before it.

A row's hash is SHA-256 over all its other columns and over the hash of the row before, so that a change, a gap or a new
order anywhere shows in `verify`. Rows are only ever added: an operator's decision is a row that refers to another. What
a chain alone cannot show is that its end was cut off, or all of it written anew: every answer carries its row's number
and hash, and `verify` holds those against the chain.

SQLite in WAL mode by default; PostgreSQL, or what else SQLAlchemy speaks, by its URL.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flawmap.errors import LedgerError, MissingExtra, UsageError

try:
    import sqlalchemy as sql
    from sqlalchemy import event
    from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError
except ImportError as error:
    raise MissingExtra("sqlalchemy", "serve", "the ledger") from error

KINDS = ("verdict", "error", "decision", "event")
DURABILITY = ("strict", "normal")
FIRST = "0" * 64  # the hash before the first row
BUSY_S = 5.0  # how long another writer is waited for
PAGE = 500  # rows read at once

_METADATA = sql.MetaData()
ROWS = sql.Table(
    "ledger",
    _METADATA,
    sql.Column("seq", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("time", sql.String(32), nullable=False, index=True),  # UTC, ISO 8601
    sql.Column("kind", sql.String(16), nullable=False),
    sql.Column("station", sql.String(200), nullable=False),
    sql.Column("source", sql.String(40), nullable=False),  # http, watch, opcua ...
    sql.Column("request", sql.String(200), unique=True),  # given by who asked; the same one is answered once
    sql.Column("part", sql.String(500), index=True),
    sql.Column("recipe", sql.String(200)),
    sql.Column("bundle", sql.String(64)),  # SHA-256
    sql.Column("calibration", sql.String(64)),  # SHA-256
    sql.Column("verdict", sql.String(8), index=True),
    sql.Column("code", sql.String(16)),  # of an error or an event
    sql.Column("reason", sql.Text),
    sql.Column("score", sql.Double),
    sql.Column("p_value", sql.Double),
    sql.Column("threshold", sql.Double),
    sql.Column("latency_ms", sql.Double),
    sql.Column("views", sql.Text),  # JSON: name, SHA-256, path, score, regions of every view
    sql.Column("refers", sql.Integer, index=True),  # of a decision: the row decided on
    sql.Column("who", sql.String(200)),
    sql.Column("software", sql.String(40), nullable=False),
    sql.Column("previous", sql.String(64), nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
)
_NAMES = tuple(column.name for column in ROWS.columns)
_SEALED = tuple(name for name in _NAMES if name != "hash")
_APPEND_ONLY = (
    "CREATE TRIGGER IF NOT EXISTS ledger_no_{what} BEFORE {what} ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'rows of the ledger are only ever added'); END"
)
Row = dict[str, Any]


class Ledger:
    """Adds rows and reads them. Safe to use from several threads and processes.

    url         "sqlite:///line.db", "postgresql+psycopg://...", or a path
    durability  strict: a row is on the disk before it is answered; normal: it survives a crash of the program, and the
                last moments may be lost when the power fails. Of SQLite only; a server has settings of its own
    """

    def __init__(self, url: str | Path, *, station: str = "station", durability: str = "strict") -> None:
        if durability not in DURABILITY:
            raise UsageError(f"durability is {' or '.join(DURABILITY)}, not {durability!r}")
        self.station, self.durability = station, durability
        text = str(url)
        if "://" not in text:
            Path(text).resolve().parent.mkdir(parents=True, exist_ok=True)
            text = f"sqlite:///{Path(text).resolve()}"
        with _said(text):
            self.engine = _engine(text, durability)
            self.lite = self.engine.dialect.name == "sqlite"
            _METADATA.create_all(self.engine)
            if self.lite:
                with self.engine.begin() as connection:
                    for what in ("UPDATE", "DELETE"):
                        connection.execute(sql.text(_APPEND_ONLY.format(what=what)))

    def add(self, **values: Any) -> Row:
        """One row; see `add_all`."""
        return self.add_all([values])[0]

    def add_all(self, entries: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows in one transaction, all or none; they come back as they stand in the ledger.

        An entry whose `request` is there already is not added: the row that is there comes back in its place.
        LedgerError: they could not be written (disk full, database locked or gone); the chain is as before.
        """
        with _said("the ledger"), self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sql.text("LOCK TABLE ledger IN EXCLUSIVE MODE"))
            newest = connection.execute(sql.select(ROWS).order_by(ROWS.c.seq.desc()).limit(1)).mappings().first()
            last: Any = newest
            found, new = [], []
            for entry in entries:
                if request := entry.get("request"):
                    again = connection.execute(sql.select(ROWS).where(ROWS.c.request == request)).mappings().first()
                    again = again or next((row for row in new if row["request"] == request), None)
                    if again is not None:
                        found.append(_read(again))
                        continue
                last = self._sealed(entry, last)
                new.append(last)
                found.append(_read(last))
            if new:
                connection.execute(sql.insert(ROWS), new)
        return found

    def _sealed(self, entry: Mapping[str, Any], last: Mapping[str, Any] | None) -> Row:
        from flawmap import __version__

        if unknown := sorted(set(entry) - set(_NAMES)):
            raise UsageError(f"the ledger has no column {unknown[0]!r}")
        row = {name: entry.get(name) for name in _NAMES}
        if row["kind"] not in KINDS:
            raise UsageError(f"a row is one of {', '.join(KINDS)}, not {row['kind']!r}")
        row |= {
            "seq": last["seq"] + 1 if last else 1,
            "time": row["time"] or now(),
            "station": self.station,
            "source": row["source"] or "station",
            "software": f"flawmap {__version__}",
            "previous": last["hash"] if last else FIRST,
        }
        if row["views"] is not None and not isinstance(row["views"], str):
            row["views"] = json.dumps(row["views"], separators=(",", ":"))
        for name, value in row.items():
            if isinstance(value, str):  # neither database takes these in text
                row[name] = value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
        row["hash"] = seal(row)
        return row

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest row; (0, "00...") of an empty ledger."""
        query = sql.select(ROWS.c.seq, ROWS.c.hash).order_by(ROWS.c.seq.desc()).limit(1)
        with self._reading() as connection:
            found = connection.execute(query).first()
        return (found[0], found[1]) if found else (0, FIRST)

    def get(self, seq: int) -> Row | None:
        with self._reading() as connection:
            found = connection.execute(sql.select(ROWS).where(ROWS.c.seq == seq)).mappings().first()
        return _read(found) if found else None

    def of_request(self, request: str) -> Row | None:
        with self._reading() as connection:
            found = connection.execute(sql.select(ROWS).where(ROWS.c.request == request)).mappings().first()
        return _read(found) if found else None

    def about(self, seqs: Sequence[int]) -> dict[int, list[Row]]:
        """The decisions on rows, oldest first."""
        found: dict[int, list[Row]] = {}
        query = sql.select(ROWS).where(ROWS.c.refers.in_(list(seqs))).order_by(ROWS.c.seq)
        with self._reading() as connection:
            for row in connection.execute(query).mappings():
                found.setdefault(row["refers"], []).append(_read(row))
        return found

    def rows(
        self,
        *,
        kinds: Sequence[str] = ("verdict", "error"),
        verdicts: Sequence[str] = (),
        part: str = "",
        recipe: str = "",
        since: str = "",
        until: str = "",
        before: int | None = None,
        limit: int = 50,
    ) -> list[Row]:
        """Newest first: rows before a number, with text in the part's name, from a time (ISO 8601, UTC) to another."""
        query = sql.select(ROWS).where(ROWS.c.kind.in_(list(kinds))).order_by(ROWS.c.seq.desc()).limit(limit)
        if verdicts:
            query = query.where(ROWS.c.verdict.in_(list(verdicts)))
        if part:
            query = query.where(ROWS.c.part.contains(part, autoescape=True))
        if recipe:
            query = query.where(ROWS.c.recipe == recipe)
        if since:
            query = query.where(ROWS.c.time >= since)
        if until:
            query = query.where(ROWS.c.time < until)
        if before is not None:
            query = query.where(ROWS.c.seq < before)
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def counts(self, since: str = "") -> dict[str, int]:
        """How many rows of each verdict, and of errors ("ERROR"), from a time on."""
        query = sql.select(ROWS.c.kind, ROWS.c.verdict, sql.func.count()).group_by(ROWS.c.kind, ROWS.c.verdict)
        query = query.where(ROWS.c.kind.in_(("verdict", "error")), ROWS.c.time >= since)
        with self._reading() as connection:
            return {"ERROR" if kind == "error" else str(verdict): n for kind, verdict, n in connection.execute(query)}

    def all(self, after: int = 0) -> Iterator[Row]:
        """Every row after a number, oldest first, as it stands in the database; a page in memory at a time."""
        while True:
            query = sql.select(ROWS).where(ROWS.c.seq > after).order_by(ROWS.c.seq).limit(PAGE)
            with self._reading() as connection:
                page = [dict(row) for row in connection.execute(query).mappings()]
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1]["seq"]

    def verify(self, heads: Mapping[int, str] | None = None) -> tuple[int, list[str]]:
        """How many rows there are, and all that is wrong with them: changed, missing, in another order, cut off.

        heads  hashes of rows by number, as answers carried them: the chain must hold each
        """
        wrong: list[str] = []
        wanted, previous, expected, count = dict(heads or {}), FIRST, 1, 0
        for row in self.all():
            count += 1
            if row["seq"] != expected:
                wrong.append(f"rows {expected} to {row['seq'] - 1} are missing")
            elif row["previous"] != previous:
                wrong.append(f"row {row['seq']} does not follow the row before it")
            if row["hash"] != seal(row):
                wrong.append(f"row {row['seq']} was changed")
            if (head := wanted.pop(row["seq"], None)) is not None and head != row["hash"]:
                wrong.append(f"row {row['seq']} is not the one that was answered")
            previous, expected = row["hash"], row["seq"] + 1
        wrong += [f"row {seq}, which was answered, is missing" for seq in sorted(wanted)]
        return count, wrong

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with _said("the ledger"), self.engine.connect().execution_options(read=True) as connection:
            yield connection


def seal(row: Mapping[str, Any]) -> str:
    """The hash of a row: SHA-256 over a JSON list of its columns but `hash`, in the table's order."""
    return hashlib.sha256(json.dumps([row[name] for name in _SEALED], separators=(",", ":")).encode()).hexdigest()


def now() -> str:
    """UTC to the millisecond, so that text in order is time in order."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read(row: Mapping[Any, Any]) -> Row:
    return {**row, "views": json.loads(row["views"]) if row["views"] else []}


def _engine(url: str, durability: str) -> sql.Engine:
    if not url.startswith("sqlite"):
        return sql.create_engine(url, pool_pre_ping=True)
    engine = sql.create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself
        connection.execute(f"PRAGMA busy_timeout={round(BUSY_S * 1000)}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'strict' else 'NORMAL'}")

    @event.listens_for(engine, "begin")
    def _(connection: sql.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("read") else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _said(where: str) -> Iterator[None]:
    try:
        yield
    except (IntegrityError, DatabaseError) as error:
        raise LedgerError(f"{where}: {error.orig}") from error
    except (SQLAlchemyError, ImportError) as error:
        raise LedgerError(f"{where}: {error}") from error
