"""The one road from a part to its row, and what happens on it when something else goes wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawmap.errors import Unavailable, UsageError
from flawmap.station.keep import Keep
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes


@pytest.fixture
def files(world: Path) -> list[Picture]:
    paths = [*sorted((world / "test/good").glob("*.png")), *sorted((world / "test/square").glob("*.png"))]
    return [Picture(path.name, path.read_bytes()) for path in paths]


@pytest.fixture
def broken(line: Line, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes the judge of the line raise, or return, something."""
    model = line.recipes.active.model

    def set_(what: Any) -> None:
        def inspect_part(*_: Any, **__: Any) -> Any:
            if isinstance(what, BaseException):
                raise what
            return what

        monkeypatch.setattr(model, "inspect_part", inspect_part)

    return set_


# ---- a part and its row


def test_a_verdict_is_that_of_the_model_and_its_row_the_one_in_the_ledger(line: Line, files: list[Picture]) -> None:
    for picture in files:
        row = line.inspect(picture.name, [picture], who="anna")
        found = line.recipes.active.model.inspect_part([picture.content])
        assert (row["verdict"], row["score"], row["p_value"]) == (str(found.verdict), found.score, found.p_value)
        assert row["threshold"] == found.threshold
        boxes = [tuple(region["box"]) for region in row["views"][0]["regions"]]
        assert boxes == [region.box for region in found.regions[0]]
        assert line.ledger.get(row["seq"]) == row
        shown = line.recent.get(row["seq"], 0)
        assert shown is not None
        assert shown.content == picture.content
        assert shown.map is not None
        assert np.array_equal(shown.map, found.map)
    assert sum(line.counts.values()) == len(files)
    assert line.ledger.verify()[1] == []


def test_eight_clients_at_once_get_the_scores_of_one_to_the_last_bit(line: Line, files: list[Picture]) -> None:
    alone = [line.inspect(picture.name, [picture])["score"] for picture in files]

    def client(n: int) -> list[float]:
        order = random.Random(n).sample(range(len(files)), len(files))
        found = {k: line.inspect(f"{n} {k}", [files[k]])["score"] for k in order}
        return [found[k] for k in range(len(files))]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client, range(8))) == [alone] * 8
    assert line.ledger.verify()[1] == []
    assert line.inside == 0


def test_a_corrupt_picture_is_an_error_with_a_row_and_no_fault_of_the_station(
    line: Line, pictures: dict[str, Picture]
) -> None:
    row = line.inspect("p", [pictures["broken"]])
    assert (row["kind"], row["verdict"], row["code"], row["score"]) == ("error", None, "DATA", None)
    cut = Picture("cut.png", pictures["good"].content[:-300])
    assert line.inspect("q", [cut])["code"] == "DATA"
    assert line.ready
    assert line.counts == {"ERROR": 2}


@pytest.mark.parametrize(
    ("views", "part", "how"),
    [(0, "p", {}), (2, "p", {}), (1, " ", {}), (1, "p" * 501, {}), (1, "p", {"request": "q" * 201}),
     (1, "p", {"recipe": "none"}), (1, "\0" * 300, {})],
)  # fmt: skip
def test_what_cannot_be_a_part_is_refused_before_it_is_accepted(
    views: int, part: str, how: dict[str, Any], line: Line, pictures: dict[str, Picture]
) -> None:
    with pytest.raises(UsageError):
        line.submit(part, [pictures["good"]] * views, **how)
    with pytest.raises(UsageError, match="bytes"):
        line.submit("p", [Picture("p", "text")])  # pyright: ignore[reportArgumentType]
    assert line.inside == 0
    assert line.ledger.head()[0] == 1  # START


def test_odd_names_are_judged_and_stand_in_the_ledger(line: Line, pictures: dict[str, Picture]) -> None:
    odd = Picture("../\udcff\0.png", pictures["good"].content)
    row = line.inspect("a\0\ud800=1+1<b>", [odd], request="r\0")
    assert row["part"] == "a\\0\\ud800=1+1<b>"
    assert row["views"][0]["name"] == "../\\udcff\\0.png"
    assert line.inspect("a\0\ud800=1+1<b>", [odd], request="r\0") == row
    assert line.ledger.verify()[1] == []


# ---- the same request


def test_a_request_is_judged_once_and_with_other_pictures_refused(line: Line, pictures: dict[str, Picture]) -> None:
    heard: list[int] = []
    line.listen(lambda what, row: heard.append(row["seq"]) if what == "part" else None)
    good, bad = pictures["good"], pictures["bad"]
    row = line.inspect("p", [good], request="r1")
    assert line.inspect("p", [good], request="r1") == row
    for part, picture in (("p", bad), ("other", good)):
        with pytest.raises(UsageError, match="r1"):
            line.submit(part, [picture], request="r1")
    assert line.inspect("p", [good], request="r1", recipe="square") == row
    line.block("shift")
    assert line.inspect("p", [good], request="r1") == row  # its verdict was given before
    assert (heard, line.counts) == ([row["seq"]], {"OK": 1})


def test_a_request_sent_many_times_at_once_is_one_row(line: Line, pictures: dict[str, Picture]) -> None:
    barrier, refused = threading.Barrier(8), []

    def client(n: int) -> set[int]:
        barrier.wait()
        seqs = set()
        for k in range(6):
            picture = pictures["bad" if n == 7 else "good"]
            try:
                seqs.add(line.inspect(f"p{k}", [picture], request=f"r{k}")["seq"])
            except UsageError:
                refused.append(n)
        return seqs

    with ThreadPoolExecutor(8) as pool:
        rows = set().union(*pool.map(client, range(8)))
    judged = line.ledger.rows(limit=100)
    assert {row["seq"] for row in judged} == rows
    assert len(rows) == 6
    assert len(refused) in range(6, 43)  # 7 of one kind of picture, or 1 of the other, for each request
    assert sum(line.counts.values()) == 6


def test_a_request_that_another_station_wrote_meanwhile_is_that_row_or_refused(
    line: Line, pictures: dict[str, Picture], recipes: Recipes
) -> None:
    line.inspect("warm", [pictures["good"]])
    other = Line(recipes, Ledger(str(line.ledger.engine.url.database)))
    barrier = threading.Barrier(2)

    def client(n: int) -> Any:
        barrier.wait()
        try:
            return (line, other)[n].inspect("p", [pictures[("good", "bad")[n]]], request="r")
        except UsageError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(client, range(2)))
    other.close()
    assert sum(isinstance(each, UsageError) for each in found) == 1
    assert len(line.ledger.rows(part="p", limit=9)) == 1
    assert line.ledger.verify()[1] == []


# ---- accepted or not


def test_more_than_may_wait_is_refused_and_all_that_was_accepted_answered(
    tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), waiting=3, judges=1)
    accepted, refused = [], []
    for n in range(200):
        try:
            accepted.append(line.submit(f"p{n}", [pictures["good"]]))
        except Unavailable as error:
            refused.append((error.code, error.retry_s))
    assert {future.result()["verdict"] for future in accepted} == {"OK"}
    assert (line.refused, line.inside) == (len(refused), 0)
    assert set(refused) == {("FULL", 1)}
    line.close()
    with pytest.raises(Unavailable, match="closing"):
        line.submit("p", [pictures["good"]])


def test_more_bytes_than_may_ever_wait_are_refused_for_good(
    tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), most_bytes=1000)
    with pytest.raises(UsageError, match="1000"):
        line.submit("p", [Picture("p", bytes(1001))])
    line.close()


def test_a_part_that_waited_too_long_is_an_error(
    tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]
) -> None:
    line = Line(recipes, Ledger(tmp_path / "l.db"), judges=1, deadline_s=1e-6)
    row = line.inspect("p", [pictures["good"]])
    assert (row["kind"], row["code"], row["verdict"]) == ("error", "TIMEOUT", None)
    line.close()


def test_closing_answers_what_was_accepted_and_ends_all_threads(
    tmp_path: Path, recipes: Recipes, pictures: dict[str, Picture]
) -> None:
    before = set(threading.enumerate())
    line = Line(recipes, Ledger(tmp_path / "l.db"), Keep(tmp_path / "kept"))
    assert len(set(threading.enumerate()) - before) == 4
    answers = [line.submit(f"p{n}", [pictures["bad"]]) for n in range(20)]
    line.close()
    line.close()
    assert {answer.result(0)["verdict"] for answer in answers} == {"NOK"}
    assert set(threading.enumerate()) <= before
    assert line.ledger.rows(kinds=("event",), limit=1)[0]["code"] == "STOP"
    assert line.ledger.verify()[1] == []


def test_who_asked_cannot_cancel_a_part(line: Line, pictures: dict[str, Picture]) -> None:
    future = line.submit("p", [pictures["good"]], request="r")
    assert not future.cancel()
    assert future.result()["verdict"] == "OK"


# ---- whatever the judge does


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "what",
    [ValueError("x"), MemoryError(), SystemExit(3), KeyboardInterrupt(), Mute(), None, "a text", RecursionError()],
)
def test_whatever_a_judge_raises_or_returns_is_a_row_and_the_next_part_is_judged(
    what: Any, line: Line, pictures: dict[str, Picture], broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(what)
    rows = [line.inspect(f"p{n}", [pictures["good"]]) for n in range(5)]  # more than there are judges
    assert {(row["kind"], row["code"], row["verdict"]) for row in rows} == {("error", "INTERNAL", None)}
    monkeypatch.undo()
    assert line.inspect("next", [pictures["good"]])["verdict"] == "OK"
    assert line.ready
    assert line.ledger.verify()[1] == []


@pytest.mark.parametrize("name", ["score", "p_value"])
def test_a_verdict_that_cannot_stand_in_a_row_is_an_error_and_costs_no_other_part_its_row(
    name: str, line: Line, pictures: dict[str, Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = line.recipes.active.model
    real = model.inspect_part

    def inspect_part(views: Any, *, names: Any, part: str) -> Any:
        found = real(views, names=names, part=part)
        if part == "odd":
            object.__setattr__(found, name, float("nan"))
        return found

    monkeypatch.setattr(model, "inspect_part", inspect_part)
    parts = ["a", "odd", "b", "c", "odd", "d"]
    rows = [future.result() for future in [line.submit(part, [pictures["good"]]) for part in parts]]
    assert [row["verdict"] for row in rows] == [None if part == "odd" else "OK" for part in parts]
    assert {row["code"] for row in rows if row["part"] == "odd"} == {"INTERNAL"}
    assert line.ready
    assert line.ledger.verify()[1] == []


def test_a_map_that_cannot_be_shown_keeps_no_answer(
    line: Line, pictures: dict[str, Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.station.line.Shown", lambda *seen: seen["no such thing"])
    rows = [line.inspect(f"p{n}", [pictures["good"]]) for n in range(3)]
    assert {row["verdict"] for row in rows} == {"OK"}


@pytest.mark.parametrize("what", [ValueError("x"), SystemExit(1)])
def test_a_listener_that_raises_does_no_harm(what: BaseException, line: Line, pictures: dict[str, Picture]) -> None:
    heard: list[str] = []

    def raising(*_: Any) -> None:
        raise what

    line.listen(raising)
    end = line.listen(lambda what, row: heard.append(what))
    assert line.inspect("p", [pictures["good"]])["verdict"] == "OK"
    end()
    end()
    line.inspect("q", [pictures["good"]])
    assert heard == ["part"]


def test_the_drift_test_is_fed_with_parts_that_pass(line: Line, files: list[Picture]) -> None:
    assert line.drift is None
    rows = [line.inspect("p", [picture]) for picture in files]
    assert line.drift is not None
    assert sorted(line.drift.scores) == sorted(row["score"] for row in rows if row["verdict"] == "OK")
    assert len(line.drift.scores) < len(rows)
    line.inspect("known", [files[0]], challenge=True)
    assert len(line.drift.scores) + 1 == sum(r["verdict"] == "OK" for r in line.ledger.rows(limit=99))


def test_a_decision_is_a_row_that_refers_to_a_part(line: Line, pictures: dict[str, Picture]) -> None:
    row = line.inspect("p", [pictures["bad"]])
    said = line.decide(row["seq"], "false alarm", "dust", "anna")
    assert (said["refers"], said["code"], said["score"]) == (row["seq"], "false alarm", row["score"])
    assert line.ledger.get(row["seq"]) == row
    assert line.ledger.about([row["seq"]]) == {row["seq"]: [said]}
    for seq, decision, reason, who in (
        (1, "agreed", "x", "a"),
        (row["seq"], "so", "x", "a"),
        (row["seq"], "agreed", " ", "a"),
    ):
        with pytest.raises(UsageError):
            line.decide(seq, decision, reason, who)
