"""A watched folder: every picture inspected once, whatever the camera and its drive do."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flawmap.errors import UsageError
from flawmap.run.bundle import Bundle, read
from flawmap.station import watch as module
from flawmap.station.ledger import Ledger, Row
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes
from flawmap.station.watch import Watch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "SETTLED_S", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "camera").mkdir()
    return tmp_path / "camera"


@pytest.fixture
def watching(folder: Path, line: Line) -> Iterator[Callable[..., Watch]]:
    made: list[Watch] = []

    def watch(on: Line | None = None, **how: Any) -> Watch:
        made.append(Watch(on or line, folder, **how))
        return made[-1]

    yield watch
    for each in made:
        each.close()


@pytest.fixture
def several(flaw: Path, tmp_path: Path) -> Iterator[Line]:
    """A line whose parts have two or three views."""
    files = read(flaw).files
    views = json.dumps(json.loads(files["calibration.json"]) | {"views": [2, 3]}).encode()
    Bundle({**files, "calibration.json": views}, "several").write(tmp_path / "several.flaw")
    made = Line(Recipes({"several": tmp_path / "several.flaw"}), Ledger(tmp_path / "several.db"))
    yield made
    made.close()


def rows(line: Line) -> list[Row]:
    return line.ledger.rows(limit=100)[::-1]


def test_each_picture_is_inspected_once_and_after_a_restart_not_again(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    (folder / "a.png").write_bytes(pictures["good"].content)
    watch = watching()
    (folder / "deep").mkdir()
    (folder / "deep" / "b.PNG").write_bytes(pictures["bad"].content)
    (folder / "c.png").write_bytes(pictures["broken"].content)
    until(lambda: len(rows(line)) == 3)
    found = {row["part"]: row["verdict"] or row["code"] for row in rows(line)}
    assert found == {"a.png": "OK", "deep/b.PNG": "NOK", "c.png": "DATA"}
    assert {row["source"] for row in rows(line)} == {"watch"}
    watch.close()
    assert line.lamps["camera"][0] == "off"
    watching()
    (folder / "d.png").write_bytes(pictures["good"].content)
    until(lambda: len(rows(line)) == 4)
    (folder / "a.png").write_bytes(pictures["bad"].content)  # the same name, another picture
    until(lambda: len(rows(line)) == 5)
    assert (rows(line)[-1]["part"], rows(line)[-1]["verdict"]) == ("a.png", "NOK")


def test_a_file_that_still_grows_is_waited_for(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    watching()
    (folder / "empty.png").touch()
    content = pictures["good"].content
    with (folder / "slow.png").open("wb") as file:
        for start in range(0, len(content), len(content) // 6):
            file.write(content[start : start + len(content) // 6])
            file.flush()
            threading.Event().wait(0.05)
    until(lambda: rows(line))
    assert [(row["part"], row["verdict"]) for row in rows(line)] == [("slow.png", "OK")]


def test_what_is_no_picture_of_the_camera_is_left_alone(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], tmp_path: Path, until: Any
) -> None:
    (tmp_path / "secret.png").write_bytes(pictures["bad"].content)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop").symlink_to(folder)
    (folder / "folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(pictures["bad"].content)
    (folder / "notes.txt").write_text("no picture")
    os.mkfifo(folder / "pipe.png")  # to read it would wait for ever
    watching()
    (folder / "a.png").write_bytes(pictures["good"].content)
    until(lambda: rows(line))
    assert [row["part"] for row in rows(line)] == ["a.png"]


def test_a_folder_that_goes_is_said_and_comes_back(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any, tmp_path: Path
) -> None:
    watching()
    (folder / "a.png").write_bytes(pictures["good"].content)
    until(lambda: rows(line))
    folder.rename(tmp_path / "away")
    until(lambda: line.lamps["camera"][0] == "bad")
    assert line.ready  # other doors go on
    (tmp_path / "away").rename(folder)
    until(lambda: line.lamps["camera"][0] == "ok")
    (folder / "b.png").write_bytes(pictures["bad"].content)
    until(lambda: len(rows(line)) == 2)
    assert [row["part"] for row in rows(line)] == ["a.png", "b.png"]


def test_while_the_station_is_blocked_or_full_files_wait(
    watching: Any, folder: Path, pictures: dict[str, Picture], until: Any, tmp_path: Path, recipes: Recipes
) -> None:
    line = Line(recipes, Ledger(tmp_path / "full.db"), waiting=1, judges=1)
    line.block("shift")
    watching(line)
    for n in range(12):
        (folder / f"{n:02}.png").write_bytes(pictures["good"].content)
    until(lambda: line.lamps["camera"][0] == "warn")
    assert "blocked: shift" in line.lamps["camera"][1]
    assert rows(line) == []
    line.block("")
    until(lambda: len(rows(line)) == 12, 15)
    assert [row["part"] for row in rows(line)] == [f"{n:02}.png" for n in range(12)]
    until(lambda: line.lamps["camera"][0] == "ok")
    line.close()


def test_a_part_without_a_row_is_handed_in_again(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    with line.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")
    other = sqlite3.connect(line.ledger.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    watching()
    (folder / "a.png").write_bytes(pictures["bad"].content)
    until(lambda: line.fault)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: rows(line), 10)
    assert [(row["part"], row["verdict"]) for row in rows(line)] == [("a.png", "NOK")]


def test_too_large_a_file_is_an_error_and_holds_nothing_up(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    line.most_bytes = 100_000
    with (folder / "a.png").open("wb") as file:
        file.truncate(200_000)
    watching()
    (folder / "b.png").write_bytes(pictures["good"].content)
    until(lambda: len(rows(line)) == 2)
    assert {row["part"]: row["verdict"] or row["code"] for row in rows(line)} == {"a.png": "FILE", "b.png": "OK"}


def test_views_make_a_part_when_all_are_there_and_late_ones_an_error(
    watching: Any, folder: Path, several: Line, pictures: dict[str, Picture], until: Any
) -> None:
    good = pictures["good"].content
    watching(several, part_pattern=r"(\w+)_\d", late_s=1.0)
    for name in ("p1_0", "p1_1", "p2_0", "p2_1", "p3_0", "p4_0"):
        (folder / f"{name}.png").write_bytes(good)
    threading.Event().wait(0.3)
    assert rows(several) == []  # a third view may come
    (folder / "p1_2.png").write_bytes(good)
    (folder / "p4_0.png").unlink()  # waits for its other view, and goes
    until(lambda: len(rows(several)) == 4)
    found = {row["part"]: (row["verdict"] or row["code"], len(row["views"])) for row in rows(several)}
    assert found == {"p1": ("OK", 3), "p2": ("OK", 2), "p3": ("VIEWS", 0), "p4": ("VIEWS", 0)}
    assert rows(several)[0]["part"] == "p1"  # at once
    assert several.lamps["camera"][0] == "ok"
    for n in range(3):
        (folder / f"p5_{n}.png").write_bytes(good)
    until(lambda: len(rows(several)) == 5)


def test_memory_does_not_grow_with_files_that_went(
    watching: Any, folder: Path, line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    watch = watching()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(pictures["good"].content)
    until(lambda: len(rows(line)) == 3)
    for path in folder.iterdir():
        path.unlink()
    until(lambda: not watch._files)
    assert watch._parts == {}


@pytest.mark.parametrize("pattern", ["(", "part"])
def test_a_pattern_that_names_no_part_is_refused(pattern: str, folder: Path, line: Line, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--part-pattern"):
        Watch(line, folder, part_pattern=pattern)
    with pytest.raises(UsageError, match="no such folder"):
        Watch(line, tmp_path / "none")
