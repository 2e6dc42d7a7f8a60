"""The ledger as a table, and `flawmap ledger`."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flawmap.cli import main
from flawmap.errors import DataError, UsageError
from flawmap.station.exports import existing, export
from flawmap.station.ledger import ROWS, Ledger

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"
COLUMNS = [column.name for column in ROWS.columns]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "=cmd|'/c calc'!A0"]


@pytest.fixture
def url(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "l.db")
    for n in range(30):
        verdict = "NOK" if n % 5 == 0 else "OK"
        shared = {"kind": "verdict", "recipe": "r", "bundle": f"b{n // 15}", "score": 0.1 * n, "latency_ms": 20.0}
        ledger.add(part=f"p{n}", verdict=verdict, time=f"2026-11-28T{n // 3:02}:00:00.000Z", **shared)
    ledger.add(kind="error", part="broken", code="DATA", reason='no\n"picture", it\'s', time="2026-11-28T11:00:00.000Z")
    ledger.add(kind="decision", refers=1, code="false alarm", reason="dust", part="p0", verdict="NOK", who="anna")
    ledger.close()
    return tmp_path / "l.db"


def test_csv_and_parquet_hold_every_row_to_the_last_bit(url: Path, tmp_path: Path) -> None:
    ledger = existing(str(url))
    rows = list(ledger.all())
    assert export(ledger, tmp_path / "x.csv") == export(ledger, tmp_path / "x.parquet") == len(rows) == 32
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == rows
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == COLUMNS
    for row, line in zip(rows, read, strict=True):
        assert {name: line[name] for name in COLUMNS} == {
            name: "" if value is None else repr(value) if isinstance(value, float) else str(value)
            for name, value in row.items()
        }


def test_text_that_a_spreadsheet_would_run_is_text(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    for text in FORMULAS:
        ledger.add(kind="error", part=text, code=text[:16], reason=text, who=text, score=-1.5)
    export(ledger, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for row, text in zip(read, FORMULAS, strict=True):
        assert (row["part"], row["reason"], row["who"]) == (f"'{text}",) * 3
        assert row["score"] == "-1.5"


def test_an_export_is_whole_or_not_at_all(url: Path, tmp_path: Path) -> None:
    ledger = existing(str(url))
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        export(ledger, tmp_path / "x.xlsx")
    with pytest.raises(DataError, match="no such folder"):
        export(ledger, tmp_path / "none" / "x.csv")
    (tmp_path / "x.parquet").write_text("the one before")
    shutil.copy(url, tmp_path / "bad.db")
    with sqlite3.connect(tmp_path / "bad.db") as connection:
        connection.execute("DROP TRIGGER ledger_no_update")
        connection.execute("UPDATE ledger SET score = 'high' WHERE seq = 20")
    connection.close()
    with pytest.raises(DataError, match="row 20: its score was changed"):
        export(existing(str(tmp_path / "bad.db")), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_text() == "the one before"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []


def test_the_query_of_the_page_gives_what_a_slow_loop_gives(
    url: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb", reason="no duckdb: pip install duckdb")
    rows = list(existing(str(url)).all())
    export(existing(str(url)), tmp_path / "ledger.parquet")
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    by_hour, by_bundle = [duckdb.sql(query).fetchall() for query in queries if "ledger.parquet" in query]
    hours = sorted({row["time"][:13] for row in rows if row["kind"] in ("verdict", "error")})
    for found, hour in zip(by_hour, hours, strict=True):
        parts = [row for row in rows if row["time"][:13] == hour and row["kind"] in ("verdict", "error")]
        refused = sum(row["verdict"] != "OK" for row in parts)
        assert found == (hour, len(parts), refused, pytest.approx(100 * refused / len(parts)))
    assert by_bundle == [("b0", 3, 1, 0)]


# ---- the command line


def test_verify_head_and_export_on_the_command_line(
    url: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "head", str(url), "--json"]) == 0
    head = json.loads(capsys.readouterr().out)["head"]
    assert head == "{}:{}".format(*existing(str(url)).head())
    assert main(["ledger", "verify", str(url), "--head", head, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 32, "wrong": []}
    assert main(["ledger", "export", str(url), "--out", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").is_file()
    capsys.readouterr()
    for words, code in (
        (["verify", str(url), "--head", "33:" + "0" * 64], 4),
        (["verify", str(url), "--head", "33"], 2),
        (["verify", str(tmp_path / "none.db")], 3),
        (["export", str(url)], 2),
        (["export", str(url), "--out", "x.txt"], 2),
    ):
        assert main(["ledger", *words]) == code
    with sqlite3.connect(url) as connection:
        connection.execute("DROP TRIGGER ledger_no_update")
        connection.execute("UPDATE ledger SET verdict = 'OK' WHERE seq = 1")
    connection.close()
    capsys.readouterr()
    assert main(["ledger", "verify", str(url)]) == 4
    assert "row 1 was changed" in capsys.readouterr().err
