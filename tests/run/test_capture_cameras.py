"""A plan taken by cameras of the GenICam standard: simulated ones, through the libraries that open real ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.run.capture import capture

PLAN = """
camera = "{camera}"

[parts]
pattern = "b-#"
count = 2

[checks]
saturation = 1.0
white = 4095
tries = 1

[[setup]]
name = "top"
settle_s = 0

[[setup.view]]
name = "short"
{short}

[[setup.view]]
name = "long"
{long}
"""


def _capture(folder: Path, camera: str, short: str = "", long: str = "", white: int = 4095) -> Path:
    plan, out = folder / "plan.toml", folder / "out"
    text = PLAN.format(camera=camera, short=short, long=long).replace("white = 4095", f"white = {white}")
    plan.write_text(text)
    capture(plan, out)
    return out


def _taken(out: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(path.read_text()) for path in out.glob("*/*.json")), key=lambda facts: facts["time"])


def test_a_plan_is_taken_by_a_basler_camera_with_its_settings_and_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    (tmp_path / "seen").mkdir()
    files = []
    for number in range(4):
        files.append(np.random.default_rng(number).integers(0, 256, (48, 64)).astype(np.uint8))
        Image.fromarray(files[-1]).save(tmp_path / f"seen/{number}.png")
    plays = f"ImageFilename={tmp_path / 'seen'}&ImageFileMode=On&TestImageSelector=Off&Width=64&Height=48"
    views = "exposure = 5000\ngain = 6", "exposure = 40000\ngain = 0"
    out = _capture(tmp_path, f"basler:?{plays}&PixelFormat=Mono12", *views)
    taken = _taken(out)
    assert [(facts["part"], facts["view"]) for facts in taken] == [
        *(("b-1", "short"), ("b-1", "long")),
        *(("b-2", "short"), ("b-2", "long")),
    ]
    for facts, file in zip(taken, files, strict=True):
        png = out / facts["part"] / f"top_{facts['view']}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(png)), file * np.uint16(16))
        assert facts["sha256"] == hashlib.sha256(png.read_bytes()).hexdigest()
        assert (facts["bits"], facts["exposure_unit"]) == (16, "us")
        assert facts["camera"] == "basler:0815-0000 (Basler Emulation 0815-0000)"
        short = facts["view"] == "short"
        assert facts["exposure"] == pytest.approx(5000 if short else 40000, rel=0.01)
        assert facts["gain"] == pytest.approx(6 if short else 0, abs=0.01)


def test_an_exposure_that_the_camera_has_not_stops_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypylon")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    with pytest.raises(UsageError, match=r"its exposure goes from 1 to 1e\+07, not to 1e\+09"):
        _capture(tmp_path, "basler:", "exposure = 5000", "exposure = 1e9", white=255)
    assert len(_taken(tmp_path / "out")) == 1


def test_a_plan_is_taken_by_a_genicam_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Path(pytest.importorskip("genicam").__file__).parent
    if not (wheel / "viky.cti").exists():
        pytest.skip("this genicam wheel has no simulated cameras")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(wheel))
    taken = _taken(_capture(tmp_path, "genicam:2", white=255))
    assert len({facts["pixels_sha256"] for facts in taken}) == 4
    for facts in taken:
        assert facts["camera"] == "genicam:2 (Machine Vision Games Ltd. Viky 2)"
        assert (facts["height"], facts["width"], facts["bits"]) == (400, 400, 8)
        assert (facts["exposure"], facts["gain"], facts["exposure_unit"]) == (None, None, None)
    (tmp_path / "other").mkdir()
    monkeypatch.delenv("GENICAM_GENTL64_PATH")
    with pytest.raises(DataError, match="genicam:: no camera is found"):
        _capture(tmp_path / "other", "genicam:")
