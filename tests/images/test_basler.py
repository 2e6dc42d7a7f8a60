"""Basler cameras: the emulated ones of pylon, which play a folder of PNG files, one at each software trigger."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images import industrial
from flawmap.images.camera import Camera, Shot, camera

pytest.importorskip("pypylon", reason="the pypylon wheel is not made for this platform")
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLON_CAMEMU", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(noise.integers(0, 256, SIZE).astype(np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def _playing(folder: Path, more: str = "") -> str:
    height, width = SIZE
    plays = f"ImageFilename={folder}&ImageFileMode=On&TestImageSelector=Off&Width={width}&Height={height}"
    return f"basler:0815-0000?{plays}{more}"


def _pixels(shot: Shot) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shot.content)))


def _closed(seen: Camera) -> list[np.ndarray]:
    try:
        return [_pixels(shot) for shot in seen.grab(3)]
    finally:
        seen.close()


def test_each_trigger_gives_the_next_picture_and_none_is_left_from_before(folder: Path) -> None:
    seen = camera(_playing(folder))
    assert seen.name == "basler:0815-0000 (Basler Emulation 0815-0000)"
    for number in (0, 1, 2, 0):
        time.sleep(0.1)  # a camera that ran by itself would be some pictures on
        np.testing.assert_array_equal(
            _pixels(seen.grab()[0]), np.asarray(Image.open(folder / f"{number}.png")), err_msg=str(number)
        )
    seen.close()


def test_a_picture_that_nobody_asked_for_is_not_taken_for_the_next(folder: Path) -> None:
    seen: Any = camera(_playing(folder))
    seen._driver.trigger()
    time.sleep(0.2)
    np.testing.assert_array_equal(_pixels(seen.grab()[0]), np.asarray(Image.open(folder / "1.png")))
    seen.close()


def test_no_other_trigger_is_waited_for(folder: Path) -> None:
    seen: Any = camera(_playing(folder, "&TriggerSelector=FrameBurstStart&TriggerMode=On&TriggerSource=Line1"))
    selector, mode = (seen._driver._nodes.GetNode(name) for name in ("TriggerSelector", "TriggerMode"))
    assert (selector.GetValue(), mode.GetValue()) == ("FrameStart", "On")
    selector.SetValue("FrameBurstStart")
    assert mode.GetValue() == "Off"
    seen.close()


@pytest.mark.parametrize(("bits", "factor"), [(10, 4), (12, 16), (16, 256)])
def test_more_bits_are_kept_as_they_come(folder: Path, bits: int, factor: int) -> None:
    """The emulator shifts the eight bits of its files up."""
    for number, found in enumerate(_closed(camera(_playing(folder, f"&PixelFormat=Mono{bits}")))):
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, np.asarray(Image.open(folder / f"{number}.png")) * np.uint16(factor))


@pytest.mark.parametrize("name", ["RGB8Packed", "BGR8Packed", "BGRA8Packed"])
def test_colours_come_red_first(tmp_path: Path, name: str) -> None:
    colours = [(200, 100, 50), (10, 20, 250), (0, 255, 0)]
    for number, colour in enumerate(colours):
        Image.new("RGB", SIZE[::-1], colour).save(tmp_path / f"{number}.png")
    for found, colour in zip(_closed(camera(_playing(tmp_path, f"&PixelFormat={name}"))), colours, strict=True):
        np.testing.assert_array_equal(found, np.full((*SIZE, 3), colour))


def test_exposure_and_gain_are_set_by_hand_and_read_back() -> None:
    seen: Any = camera("basler:0815-0001?ExposureAuto=Continuous&GainAuto=Once")
    assert seen.exposure_unit == "us"
    set_to = seen.adjust(12345, 6)
    assert set_to == {"exposure": pytest.approx(12345, rel=0.01), "gain": pytest.approx(6, rel=0.01)}
    nodes = seen._driver._nodes
    assert [nodes.GetNode(name).GetValue() for name in ("ExposureAuto", "GainAuto")] == ["Off", "Off"]
    assert nodes.GetNode("ExposureTime").GetValue() == set_to["exposure"]
    assert nodes.GetNode("ExposureTime").GetUnit() == "us"
    for exposure, gain, told in ((1e9, None, "exposure goes from 1 to 1e"), (None, -4, "gain goes from 0 to 48")):
        with pytest.raises(UsageError, match=rf"basler:0815-0001 \(.*\): its {told}"):
            seen.adjust(exposure, gain)
    assert len(seen.grab()) == 1
    seen.close()


def test_an_incomplete_picture_is_a_missed_frame_and_the_next_is_whole(folder: Path) -> None:
    seen: Any = camera(_playing(folder))
    seen._driver._nodes.GetNode("ForceFailedBuffer").Execute()
    with pytest.raises(DataError, match=r"a frame was missed: The buffer was incompletely grabbed\. \(error 0x"):
        seen.grab()
    assert _pixels(seen.grab()[0]).shape == SIZE
    seen.close()


def test_a_camera_that_goes_in_the_middle_is_an_error_and_is_opened_again_as_it_was(folder: Path) -> None:
    seen: Any = camera(_playing(folder, "&PixelFormat=Mono12"))
    for ask in (seen.grab, lambda: seen.adjust(5000, None)):
        seen._driver._camera.Close()
        with pytest.raises(DataError, match="does not answer: it was unplugged or closed; is it plugged in"):
            ask()
        assert _pixels(seen.grab()[0]).dtype == np.uint16
    seen.close()


def test_no_picture_in_time_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(industrial, "WAIT_S", 0.5)
    seen: Any = camera(_playing(folder))
    seen._driver._nodes.GetNode("AcquisitionStop").Execute()  # it takes the trigger, and does nothing
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"gives no picture within 0\.51 s"):  # and 10 ms of exposure
        seen.grab()
    assert time.monotonic() - begun < 3
    assert _pixels(seen.grab()[0]).shape == SIZE
    seen.close()


def test_which_camera_is_meant_has_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"2 cameras are meant; name one: basler:0815-0000 \(Basler Emulation"):
        camera("basler:")
    with pytest.raises(DataError, match=r"basler:7: is not there; there are: basler:0815-0000 \("):
        camera("basler:7")
    with pytest.raises(UsageError, match="its PixelFormat cannot be 'Mono99'"):
        camera("basler:0815-0000?PixelFormat=Mono99")
    with pytest.raises(UsageError, match="has no feature Blemish"):
        camera("basler:0815-0000?Blemish=1")
    monkeypatch.setenv("PYLON_CAMEMU", "1")
    only = camera("basler:")
    assert only.name == "basler:0815-0000 (Basler Emulation 0815-0000)"
    only.close()
    monkeypatch.delenv("PYLON_CAMEMU")
    with pytest.raises(DataError, match="basler:: no camera is found; is it plugged in"):
        camera("basler:")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux tells")
def test_often_opened_and_closed_leaves_nothing() -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    camera("basler:0815-0000").close()
    before = held()
    for _ in range(10):  # a quarter of a second each
        camera("basler:0815-0000").close()
    assert held() == before
