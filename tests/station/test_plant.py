"""Cameras that run by themselves, and what a station refuses to start without."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flawmap.errors import UsageError
from flawmap.images.camera import camera
from flawmap.station.line import Line, Picture
from flawmap.station.plant import MQTT_PASSWORD, WEBHOOK_SECRET, Running, connect
from flawmap.station.serve import Settings


@pytest.fixture
def before(tmp_path: Path, pictures: dict[str, Picture]) -> Path:
    """The folder that a camera sees: a good part, then a bad one."""
    folder = tmp_path / "camera"
    folder.mkdir()
    for number, kind in enumerate(("good", "bad")):
        (folder / f"{number}-{kind}.png").write_bytes(pictures[kind].content)
    return folder


def _rows(line: Line) -> list[dict[str, Any]]:
    return line.ledger.rows()[::-1]


def test_a_camera_takes_parts_by_itself(line: Line, before: Path, until: Any) -> None:
    running = Running(line, camera(f"replay:{before}"), 0.05)
    until(lambda: len(_rows(line)) >= 4)
    running.close()
    assert [row["verdict"] for row in _rows(line)[:4]] == ["OK", "NOK", "OK", "NOK"]
    assert {row["source"] for row in _rows(line)} == {"camera"}
    assert line.lamps["camera"] == ("ok", "replay of camera")


def test_a_camera_that_fails_is_an_error_in_the_ledger_and_a_lamp_and_comes_back(
    line: Line, before: Path, until: Any
) -> None:
    hidden = before.with_name("hidden")
    running = Running(line, camera(f"replay:{before}"), 0.05)
    until(lambda: _rows(line))
    before.rename(hidden)
    row = until(lambda: next((row for row in _rows(line) if row["kind"] == "error"), None))
    assert (row["code"], row["verdict"]) == ("CAMERA", None)
    assert line.lamps["camera"][0] == "bad"
    hidden.rename(before)
    until(lambda: line.lamps["camera"][0] == "ok")
    running.close()


def test_a_genicam_camera_is_judged_and_when_it_goes_it_is_an_error_and_comes_back(
    line: Line, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = Path(pytest.importorskip("genicam").__file__).parent
    if not (wheel / "viky.cti").exists():
        pytest.skip("this genicam wheel has no simulated cameras")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(wheel))
    seen: Any = camera("genicam:0")
    running = Running(line, seen, 0.05)
    until(lambda: len(_rows(line)) >= 2)
    seen._driver._device.close()
    row = until(lambda: next((row for row in _rows(line) if row["kind"] == "error"), None))
    assert (row["code"], row["verdict"]) == ("CAMERA", None)
    until(lambda: _rows(line)[-1]["kind"] == "verdict")
    running.close()
    seen.close()
    rows = [row for row in _rows(line) if row["kind"] == "verdict"]
    assert {row["verdict"] for row in rows} == {"NOK"}  # a square on white is nothing that this recipe knows
    assert line.lamps["camera"] == ("ok", "genicam:0 (Machine Vision Games Ltd. Viky 0)")


def test_what_a_basler_camera_sees_is_judged_as_the_files_are(
    line: Line, before: Path, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    with Image.open(before / "0-good.png") as first:
        width, height = first.size
    plays = f"ImageFilename={before}&ImageFileMode=On&TestImageSelector=Off&PixelFormat=RGB8Packed"
    settings = Settings(recipes={}, camera=f"basler:?{plays}&Width={width}&Height={height}", every=0.05)
    with ExitStack() as open_things:
        connect(settings, line, open_things)
        until(lambda: len(_rows(line)) >= 4)
    seen = [(row["verdict"], row["score"]) for row in _rows(line)[:4]]
    files = Running(line, camera(f"replay:{before}"), 0.05)
    replayed = until(lambda: (rows := [row for row in _rows(line) if "frame-" not in row["part"]])[1:] and rows[:2])
    files.close()
    assert seen == [(row["verdict"], row["score"]) for row in replayed] * 2
    assert [verdict for verdict, _ in seen] == ["OK", "NOK", "OK", "NOK"]


def test_while_the_station_is_blocked_nothing_is_taken(line: Line, before: Path, until: Any) -> None:
    line.block("the challenge has not passed")
    running = Running(line, camera(f"replay:{before}"), 0.02)
    with pytest.raises(AssertionError, match="never came"):
        until(lambda: _rows(line), 0.3)
    line.block("")
    until(lambda: _rows(line))
    running.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 1.0}, "goes with --camera"),
        ({"opcua": "opc.tcp://127.0.0.1:4840/x"}, "give --camera"),
        ({"modbus": "127.0.0.1:5020"}, "give --camera"),
        ({"camera": "webcam"}, "no camera"),
        ({"mqtt": "http://broker"}, "--mqtt is mqtt://"),
        ({"mqtt": "mqtt://user:password@broker"}, MQTT_PASSWORD),
        ({"webhooks": ["http://127.0.0.1:1/"]}, WEBHOOK_SECRET),
    ],
)
def test_what_lacks_something_is_refused(
    line: Line, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEBHOOK_SECRET, raising=False)
    with ExitStack() as open_things, pytest.raises(UsageError, match=message):
        connect(Settings(recipes={}, **settings), line, open_things)


def test_a_modbus_address_without_a_port_is_refused(line: Line, before: Path) -> None:
    with ExitStack() as open_things, pytest.raises(UsageError, match="give HOST:PORT"):
        connect(Settings(recipes={}, camera=f"replay:{before}", modbus="127.0.0.1"), line, open_things)
