"""Cameras that are found, and what is said where there are none."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest

from flawmap.cli import main
from flawmap.images.attached import OPENCV, attached


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


def test_genicam_and_basler_cameras_are_found_with_maker_model_serial_and_producer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("genicam")
    pytest.importorskip("pypylon")
    producer = Path(package.__file__).with_name("viky.cti")
    if not producer.exists():
        pytest.skip("this genicam wheel has no simulated cameras")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(producer.parent))
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    found = attached(tmp_path / "dev", tmp_path)
    assert [each["camera"] for each in found["cameras"]] == ["genicam:0", "genicam:1", "genicam:2", "basler:0815-0000"]
    assert found["cameras"][1] == {
        **{"camera": "genicam:1", "device": str(producer), "says": "Machine Vision Games Ltd. Viky 1", "but": ""},
        **{"vendor": "Machine Vision Games Ltd.", "model": "Viky", "serial": "1", "producer": str(producer)},
    }
    assert found["cameras"][3] == {
        **{"camera": "basler:0815-0000", "device": "BaslerCamEmu", "says": "Basler Emulation 0815-0000", "but": ""},
        **{"vendor": "Basler", "model": "Emulation", "serial": "0815-0000"},
    }
    assert f"GenTL producer {producer}: 3 found" in found["looked"]
    assert found["looked"][-1].endswith(", 1 found")


def test_what_fails_on_a_producer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("genicam")
    (tmp_path / "maker.cti").write_text("no library")
    (tmp_path / "empty").mkdir()
    folders = [tmp_path, tmp_path / "empty", tmp_path / "none"]
    monkeypatch.setenv("GENICAM_GENTL64_PATH", os.pathsep.join(map(str, folders)))
    lines = attached(tmp_path / "dev", tmp_path)["looked"]
    assert lines[0].endswith("0 found, there is no such folder here")
    told = [line for line in lines if line.startswith("GenTL")]
    assert told[:2] == [
        f"GenTL producers in {tmp_path / 'empty'}: no .cti in it",
        f"GenTL producers in {tmp_path / 'none'}: no such folder",
    ]
    assert told[2].startswith(f"GenTL producer {tmp_path / 'maker.cti'}: is no library that can be loaded: ")


@pytest.mark.parametrize("absent", ["genicam", "pypylon", "cv2"])
def test_an_extra_that_is_missing_is_told(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    packages = {"genicam": ["genicam"], "pypylon": ["pypylon"], "cv2": list(OPENCV)}[absent]

    def without(package: str) -> str:
        if package in packages:
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    monkeypatch.setitem(sys.modules, absent, None)  # import of it fails
    (tmp_path / "maker.cti").touch()
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path))
    text = "\n".join(attached(tmp_path / "dev", tmp_path)["looked"])
    extra = {"pypylon": "basler"}.get(absent, "capture")
    assert f'absent: pip install "flawmap[{extra}]"' in text
    assert ("a GenICam camera needs genicam" in text) == (absent == "genicam")


def test_the_command_says_where_it_looked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GENICAM_GENTL64_PATH", "PYLON_CAMEMU"):
        monkeypatch.delenv(name, raising=False)
    assert main(["capture", "cameras", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["capture", "cameras"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(found["cameras"])
    if not found["cameras"]:
        assert said.err.splitlines()[0] == "no camera was found; looked at:"
        assert "GENICAM_GENTL64_PATH is not set" in said.err
