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
import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, LedgerError, MissingExtra, UsageError
from flawmap.station.database import BUSY_S, connected, has, lock, parsed, said
from flawmap.station.database import create as _create

try:
    import sqlalchemy as sql
except ImportError as error:
    raise MissingExtra("sqlalchemy", "serve", "the ledger") from error

KINDS = ("verdict", "error", "decision", "event")
DURABILITY = ("strict", "normal")
FIRST = "0" * 64  # the hash before the first row
PAGE = 500  # rows read at once
MOST_TEXT = 4000  # characters of a reason
BEFORE_ALL = -(2**62)
_NUMBER = sql.BigInteger().with_variant(sql.Integer, "sqlite")

_METADATA = sql.MetaData()
ROWS = sql.Table(
    "ledger",
    _METADATA,
    sql.Column("seq", _NUMBER, primary_key=True, autoincrement=False),
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
    sql.Column("refers", _NUMBER, index=True),  # of a decision: the row decided on
    sql.Column("who", sql.String(200)),
    sql.Column("software", sql.String(40), nullable=False),
    sql.Column("previous", sql.String(64), nullable=False),
    sql.Column("hash", sql.String(64), nullable=False),
)
_NAMES = tuple(column.name for column in ROWS.columns)
_SEALED = tuple(name for name in _NAMES if name != "hash")
Row = dict[str, Any]


class Ledger:
    """Adds rows and reads them. Safe to use from several threads and processes.

    url         "line.db", or "postgresql+psycopg://user@host/database"
    durability  strict: a row is on the disk before it is answered; normal: it survives a crash of the program, and the
                last moments may be lost when the power fails. Of SQLite only; a server has settings of its own
    create      False: only one that is there, which is not written to where it is a file. DataError: there is none
    """

    def __init__(
        self, url: str | Path, *, station: str = "station", durability: str = "strict", create: bool = True
    ) -> None:
        if durability not in DURABILITY:
            raise UsageError(f"durability is {' or '.join(DURABILITY)}, not {durability!r}")
        self.station, self.durability = station, durability
        place = parsed(url)
        self.where = place.render_as_string(hide_password=True).removeprefix("sqlite:///")
        lite = place.get_backend_name() == "sqlite"
        if lite and not create and not Path(str(place.database)).is_file():
            raise DataError(f"{self.where}: there is no such ledger")
        self._writing = threading.Lock()
        with said(self.where):
            if lite and create:
                Path(str(place.database)).parent.mkdir(parents=True, exist_ok=True)
            self.engine = connected(place, durability, create)
            self._reads = connected(place, durability, create)  # a long search keeps no verdict waiting
            if create:
                _create(self.engine, ROWS)
        weakref.finalize(self, _closed, self.engine, self._reads)
        if not create:
            has(self._reads, ROWS, self.where)

    def add(self, **values: Any) -> Row:
        """One row; see `add_all`."""
        return self.add_all([values])[0]

    def add_all(self, entries: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows in one transaction, all or none; they come back as they stand in the ledger.

        An entry whose `request` is there already is not added: the row that is there comes back in its place.
        LedgerError: they could not be written (disk full, database locked or gone); the chain is as before.
        UsageError: what cannot stand in a row; nothing is written.
        """
        return [row for row, _ in self.add_new(entries)]

    def add_new(self, entries: Sequence[Mapping[str, Any]]) -> list[tuple[Row, bool]]:
        """`add_all`, and of each row whether it is new."""
        if not self._writing.acquire(timeout=2 * BUSY_S):
            raise LedgerError(f"the ledger: other rows have been waited for longer than {2 * BUSY_S:g} s")
        try:
            with said("the ledger"), self.engine.begin() as connection:
                lock(connection)
                return self._added(connection, entries)
        finally:
            self._writing.release()

    def _added(self, connection: sql.Connection, entries: Sequence[Mapping[str, Any]]) -> list[tuple[Row, bool]]:
        last: Any = connection.execute(sql.select(ROWS).order_by(ROWS.c.seq.desc()).limit(1)).mappings().first()
        found: list[tuple[Row, bool]] = []
        new: dict[str, Row] = {}
        for entry in entries:
            row = self._sealed(entry, last)
            if request := row["request"]:
                again: Any = connection.execute(sql.select(ROWS).where(ROWS.c.request == request)).mappings().first()
                again = again or next((row for row in new.values() if row["request"] == request), None)
                if again is not None:
                    found.append((_read(again), False))
                    continue
            last = new[row["hash"]] = row
            found.append((_read(row), True))
        if new:
            connection.execute(sql.insert(ROWS), list(new.values()))
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
            "request": row["request"] or None,
            "software": f"flawmap {__version__}",
            "previous": last["hash"] if last else FIRST,
            "hash": None,
        }
        for column in ROWS.columns:
            row[column.name] = _stored(column, row[column.name])
        row["hash"] = seal(row)
        return row

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest row; (0, "00...") of an empty ledger."""
        query = sql.select(ROWS.c.seq, ROWS.c.hash).order_by(ROWS.c.seq.desc()).limit(1)
        with self._reading() as connection:
            found = connection.execute(query).first()
        return (found[0], found[1]) if found else (0, FIRST)

    def get(self, seq: int) -> Row | None:
        """LedgerError, here as in all that reads: the database cannot be read, or the row was changed."""
        with self._reading() as connection:
            found = connection.execute(sql.select(ROWS).where(ROWS.c.seq == seq)).mappings().first()
        return _read(found) if found else None

    def of_request(self, request: str) -> Row | None:
        with self._reading() as connection:
            found = connection.execute(sql.select(ROWS).where(ROWS.c.request == clean(request))).mappings().first()
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
            query = query.where(ROWS.c.part.icontains(clean(part), autoescape=True))
        if recipe:
            query = query.where(ROWS.c.recipe == clean(recipe))
        if since:
            query = query.where(ROWS.c.time >= _utc(since))
        if until:
            query = query.where(ROWS.c.time < _utc(until))
        if before is not None:
            query = query.where(ROWS.c.seq < before)
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def counts(self, since: str = "") -> dict[str, int]:
        """How many rows of each verdict, and of errors ("ERROR"), from a time on."""
        query = sql.select(ROWS.c.kind, ROWS.c.verdict, sql.func.count()).group_by(ROWS.c.kind, ROWS.c.verdict)
        query = query.where(ROWS.c.kind.in_(("verdict", "error")), ROWS.c.time >= _utc(since))
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
        for row in self.all(BEFORE_ALL):
            count += 1
            if row["seq"] != expected:
                wrong.append(f"rows {expected} to {row['seq'] - 1} are missing")
            elif row["previous"] != previous:
                wrong.append(f"row {row['seq']} does not follow the row before it")
            if row["hash"] != _resealed(row):
                wrong.append(f"row {row['seq']} was changed")
            if (head := wanted.pop(row["seq"], None)) is not None and head != row["hash"]:
                wrong.append(f"row {row['seq']} is not the one that was answered")
            previous, expected = row["hash"], row["seq"] + 1
        wrong += [f"row {seq}, which was answered, is missing" for seq in sorted(wanted)]
        return count, wrong

    def close(self) -> None:
        _closed(self.engine, self._reads)

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with said("the ledger"), self._reads.connect().execution_options(read=True) as connection:
            yield connection


def _closed(*engines: sql.Engine) -> None:
    for engine in engines:
        engine.dispose()


def seal(row: Mapping[str, Any]) -> str:
    """The hash of a row: SHA-256 over a JSON list of its columns but `hash`, in the table's order."""
    return hashlib.sha256(json.dumps([row[name] for name in _SEALED], separators=(",", ":")).encode()).hexdigest()


def _resealed(row: Mapping[str, Any]) -> str:
    """ "" for what never came out of a ledger, such as bytes in place of text."""
    try:
        return seal(row)
    except (TypeError, ValueError):
        return ""


def now() -> str:
    """UTC to the millisecond, so that text in order is time in order."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clean(text: str) -> str:
    """Text as every database takes it: without NUL and halves of surrogates, which are spelt out."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _stored(column: Any, value: Any) -> Any:
    """A value as the database will give it back, so that a hash over it holds. UsageError: it cannot stand there."""
    if value is None:
        return None
    kind: Any = column.type.python_type
    try:
        if column.name == "views" and not isinstance(value, str):
            return json.dumps(value, separators=(",", ":"), allow_nan=False, default=lambda scalar: scalar.item())
        if kind is str:
            return _cut(column, clean(str(value)))
        if kind is float and not math.isfinite(float(value)):
            raise ValueError("not a finite number")
        return float(value) + 0.0 if kind is float else int(value)  # -0.0 comes back as 0.0
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"the ledger's column {column.name} does not take this {type(value).__name__}: {error}"
        ) from error


def _cut(column: Any, text: str) -> str:
    """SQLite takes any length, a server none that is longer than the column."""
    if column.name == "views":
        return text
    most = column.type.length or MOST_TEXT
    if len(text) > most and column.name == "request":
        raise ValueError(f"longer than {most} characters")
    return text[:most]


def _read(row: Mapping[Any, Any]) -> Row:
    try:
        return {**row, "views": json.loads(row["views"]) if row["views"] else []}
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"row {row['seq']} of the ledger was changed: flawmap ledger verify tells more") from error


def _utc(text: str) -> str:
    """A time as the rows have it, without the Z, so that it comes before its own milliseconds."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        return clean(text)
    if given.tzinfo is not None:
        given = given.astimezone(UTC).replace(tzinfo=None)
    return given.isoformat(timespec="milliseconds" if given.microsecond else "auto")
