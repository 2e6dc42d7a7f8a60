"""Cameras that are found, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flawmap.cli import main
from flawmap.images.attached import attached


def test_devices_are_found_in_the_order_of_their_numbers_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for number in (10, 0, 2):
        (tmp_path / f"dev/video{number}").touch()
    (tmp_path / "names/video2").mkdir(parents=True)
    (tmp_path / "names/video2/name").write_text("Some camera: front\n")
    found = attached(tmp_path / "dev", tmp_path / "names")
    assert [each["camera"] for each in found["cameras"]] == ["uvc:0", "uvc:2", "uvc:10"]
    assert [each["says"] for each in found["cameras"]] == ["", "Some camera: front", ""]
    assert found["looked"][0].endswith("video*: 3 found")


def test_gentl_producers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maker.cti").touch()
    monkeypatch.setenv("GENICAM_GENTL64_PATH", f"{tmp_path}:{tmp_path / 'none'}")
    lines = attached(tmp_path / "dev", tmp_path)["looked"]
    assert lines[0].endswith("0 found, there is no such folder here")
    assert lines[-2] == f"GenTL producers in {tmp_path}: maker.cti; flawmap opens no GenTL camera"
    assert lines[-1] == f"GenTL producers in {tmp_path / 'none'}: no .cti in it"


def test_the_command_says_where_it_looked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENICAM_GENTL64_PATH", raising=False)
    assert main(["capture", "cameras", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["capture", "cameras"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(found["cameras"])
    if not found["cameras"]:
        assert said.err.splitlines()[0] == "no camera was found; looked at:"
        assert "GENICAM_GENTL64_PATH is not set" in said.err
