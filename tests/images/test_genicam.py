"""GenICam cameras: the simulated ones of the genicam wheel, and a description of a camera that GenApi itself reads."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images import gentl, industrial
from flawmap.images.camera import Shot, camera
from flawmap.images.formats import Frame
from flawmap.images.genicam import _described, _Node
from flawmap.images.industrial import Industrial

package = pytest.importorskip("genicam", reason="the genicam wheel is not made for this platform")
WHEEL = Path(package.__file__).parent
pytestmark = pytest.mark.skipif(not (WHEEL / "viky.cti").exists(), reason="this genicam wheel has no simulated cameras")


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gentl.GENTL, str(WHEEL))


def _pixels(shot: Shot) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shot.content)))


def test_a_camera_gives_pictures_of_its_format_each_a_new_one() -> None:
    seen = camera("genicam:1")
    assert seen.name == "genicam:1 (Machine Vision Games Ltd. Viky 1)"
    shots = [*seen.grab(2), *seen.grab()]
    assert [shot.name for shot in shots] == ["frame-000001.png", "frame-000002.png", "frame-000003.png"]
    assert {_pixels(shot).shape for shot in shots} == {(400, 400, 3)}
    assert len({_pixels(shot).tobytes() for shot in shots}) == 3  # a ball flies in them
    seen.close()
    grey = camera("genicam:VikyTL_DEV_green?PixelFormat=Mono8&Width=320&Height=200")
    assert _pixels(grey.grab()[0]).shape == (200, 320)
    grey.close()


@pytest.mark.parametrize(("which", "colour"), [(0, (255, 0, 0)), (1, (0, 255, 0)), (2, (0, 0, 255))])
def test_the_colours_are_those_of_the_camera(which: int, colour: tuple[int, int, int]) -> None:
    """Each simulated camera sees a square of 20 pixels in its colour, on white."""
    seen = camera(f"genicam:{which}")
    rows = _pixels(seen.grab()[0]).reshape(-1, 3)
    seen.close()
    assert ((rows == colour).all(1).sum(), (rows == 255).all(1).sum()) == (400, 159600)


def test_which_camera_is_meant_has_to_be_told() -> None:
    with pytest.raises(UsageError, match=r"3 cameras are meant; name one: genicam:0 \(Machine .* 0\), genicam:1 "):
        camera("genicam:")
    with pytest.raises(DataError, match=r"genicam:77: is not there; there are: genicam:0 \("):
        camera("genicam:77")
    with pytest.raises(UsageError, match=r"its PixelFormat cannot be 'Mono99': .*Mono99"):
        camera("genicam:0?PixelFormat=Mono99")
    with pytest.raises(UsageError, match=r"its Width cannot be '5': .*greater than Min = 100"):
        camera("genicam:0?Width=5")
    with pytest.raises(UsageError, match="has no feature Blemish"):
        camera("genicam:0?Blemish=1")
    with pytest.raises(UsageError, match="'Width' sets nothing"):
        camera("genicam:0?Width")
    camera("genicam:0").close()  # nothing that was refused holds it


def test_two_who_want_one_camera_and_two_cameras_at_a_time() -> None:
    one, other = camera("genicam:0"), camera("genicam:1")
    with pytest.raises(DataError, match="genicam:0: is used by another program, or twice by this one"):
        camera("genicam:0")
    assert len(one.grab()) == len(other.grab()) == 1
    one.close()
    again = camera("genicam:0")
    assert len(again.grab()) == len(other.grab()) == 1
    again.close()
    other.close()
    assert gentl._LOADED == {}


def test_what_cannot_be_set_is_said() -> None:
    seen = camera("genicam:0")
    assert seen.adjust(None, None) == {"exposure": None, "gain": None}
    with pytest.raises(UsageError, match="its exposure cannot be set: it has no ExposureTime; leave exposure out"):
        seen.adjust(5000, None)
    seen.close()


def test_a_camera_that_goes_in_the_middle_is_an_error_and_is_opened_again() -> None:
    seen: Any = camera("genicam:2")
    seen.grab()
    seen._driver._device.close()
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"genicam:2 \(.*\): does not answer: .*; is it plugged in"):
        seen.grab()
    assert time.monotonic() - begun < 5
    assert _pixels(seen.grab()[0]).shape == (400, 400, 3)
    seen._driver._producer._library.close()  # as when the producer is torn down
    with pytest.raises(DataError, match="genicam:2"):
        seen.grab()
    assert len(seen.grab()) == 1
    seen.close()


def test_no_picture_in_time_is_an_error_that_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(industrial, "WAIT_S", 0.5)
    seen: Any = camera("genicam:1")
    driver, ticks, ended = seen._driver, [0], threading.Event()
    start = driver.start
    monkeypatch.setattr(driver, "start", lambda: (start(), driver._nodes.AcquisitionStop.execute()))
    beside = threading.Thread(
        target=lambda: [ticks.__setitem__(0, ticks[0] + 1) for _ in iter(lambda: ended.wait(0.01), True)]
    )
    beside.start()
    with pytest.raises(DataError, match=r"gives no picture within 0\.5 s"):
        seen.grab()
    ended.set()
    beside.join()
    assert ticks[0] > 15  # of 50: the library's own waiting lets no other thread run
    assert len(seen.grab()) == 1  # opened anew
    seen.close()


def test_an_incomplete_picture_is_a_missed_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Any = camera("genicam:1")
    driver = seen._driver
    read = driver._read

    def cut(buffer: Any) -> Any:
        """The simulated cameras lose nothing."""
        names = ("size", "size_filled")
        return read(SimpleNamespace(is_complete=lambda: False, **{name: getattr(buffer, name) for name in names}))

    monkeypatch.setattr(driver, "_read", cut)
    with pytest.raises(DataError, match="a frame was missed: of 10240080 bytes 2560020 came; look at cable"):
        seen.grab()
    assert len(seen.grab()) == 1
    seen.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux tells")
def test_two_hundred_times_opened_and_closed_leave_nothing() -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    camera("genicam:1").close()
    before = held()
    for number in range(200):
        seen = camera("genicam:1")
        if number % 20 == 0:
            seen.grab()
        seen.close()
    assert held() == before
    assert gentl._LOADED == {}


def test_producers_that_are_none_are_told_and_do_not_crash_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-text.cti").write_text("no library")
    shutil.copy(next(WHEEL.glob("_genapi*")), tmp_path / "b-library.cti")  # loads, and is no producer
    monkeypatch.setenv(gentl.GENTL, f"{tmp_path}{os.pathsep}{tmp_path / 'nowhere'}")
    assert [path.name for path in gentl.producers()] == ["a-text.cti", "b-library.cti"]
    with pytest.raises(
        DataError, match=r"no camera is found \(.*a-text.cti: is no library that can be loaded"
    ) as error:
        camera("genicam:")
    assert "b-library.cti: is a library, but no GenTL producer: it has no GCInitLib" in str(error.value)
    monkeypatch.setenv(gentl.GENTL, f"{tmp_path}{os.pathsep}{WHEEL}")
    seen = camera("genicam:0")  # the others do not stand in its way
    assert len(seen.grab()) == 1
    seen.close()
    monkeypatch.delenv(gentl.GENTL)
    with pytest.raises(DataError, match=r"no camera is found \(no .cti in the folders of GENICAM_GENTL64_PATH\)"):
        camera("genicam:")


@pytest.mark.skipif(shutil.which("cc") is None, reason="makes two libraries with cc")
def test_producers_that_crash_or_hang_are_asked_in_a_process_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gentl, "ASK_S", 1.0)
    for name, body, told in (
        ("crash", "*(volatile int *)0 = 1;", "crashed when it was asked"),
        ("hang", "for (;;);", "does not answer within 1 s"),
    ):
        source, path = tmp_path / f"{name}.c", tmp_path / f"{name}.cti"
        source.write_text(f"__attribute__((constructor)) static void begin(void) {{ {body} }}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
        with pytest.raises(DataError, match=f"{name}.cti: {told}"):
            gentl.asked(path)


def test_a_process_that_ends_with_a_camera_open_ends_well() -> None:
    code = "from flawmap.images.camera import camera; seen = camera('genicam:0'); seen.grab()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# A camera as GenApi sees it: a description, and registers behind a port.
EXPOSURE, AUTO, GAIN, GAIN_AUTO, MODE, SOURCE, FIRE, SELECT = range(0x10, 0x50, 8)
_ENUM = '<Enumeration Name="{0}">{1}<pValue>{0}Reg</pValue></Enumeration>'
_REG = (
    '<IntReg Name="{0}"><Address>{1}</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>'
    "<Sign>Unsigned</Sign><Endianess>LittleEndian</Endianess></IntReg>"
)


def _enumeration(name: str, address: int, *choices: str) -> str:
    entries = "".join(f'<EnumEntry Name="{c}"><Value>{n}</Value></EnumEntry>' for n, c in enumerate(choices))
    return _ENUM.format(name, entries) + _REG.format(f"{name}Reg", address)


DESCRIPTION = (
    '<RegisterDescription ModelName="T" VendorName="T" ToolTip="" StandardNameSpace="None" SchemaMajorVersion="1" '
    'SchemaMinorVersion="1" SchemaSubMinorVersion="0" MajorVersion="1" MinorVersion="0" SubMinorVersion="0" '
    'ProductGuid="0" VersionGuid="0" xmlns="http://www.genicam.org/GenApi/Version_1_1">'
    '<Category Name="Root"><pFeature>ExposureTime</pFeature></Category>'
    '<Float Name="ExposureTime"><pValue>ExposureReg</pValue><Min>10</Min><Max>100000</Max><Unit>us</Unit></Float>'
    f'<FloatReg Name="ExposureReg"><Address>{EXPOSURE}</Address><Length>4</Length><AccessMode>RW</AccessMode>'
    "<pPort>Device</pPort><Endianess>LittleEndian</Endianess></FloatReg>"
    + _enumeration("ExposureAuto", AUTO, "Off", "Once", "Continuous")
    + '<Integer Name="GainRaw"><pValue>GainReg</pValue><Min>0</Min><Max>100</Max><Inc>10</Inc></Integer>'
    + _REG.format("GainReg", GAIN)
    + _enumeration("GainAuto", GAIN_AUTO, "Off", "Continuous")
    + _enumeration("TriggerSelector", SELECT, "FrameStart", "FrameBurstStart")
    + _enumeration("TriggerMode", MODE, "Off", "On")
    + _enumeration("TriggerSource", SOURCE, "Line1", "Software")
    + '<Command Name="TriggerSoftware"><pValue>FireReg</pValue><CommandValue>1</CommandValue></Command>'
    + _REG.format("FireReg", FIRE)
    + '<Port Name="Device"/></RegisterDescription>'
)


class _Port:
    """Registers of a camera that was left with everything automatic, and triggered by a cable."""

    name = "Device"
    url_info_list = (SimpleNamespace(url="Local:camera.zip;1000;{:x}?SchemaVersion=1.1"),)

    def __init__(self) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("camera.xml", DESCRIPTION)
        self.file = file.getvalue()
        self.url_info_list = (SimpleNamespace(url=f"Local:camera.zip;1000;{len(self.file):x}?SchemaVersion=1.1"),)
        self.memory = bytearray(0x100)
        self.fired = 0
        self.memory[EXPOSURE : EXPOSURE + 4] = struct.pack("<f", 777.0)
        for address, value in ((AUTO, 2), (GAIN_AUTO, 1), (SELECT, 1), (MODE, 1), (SOURCE, 0)):
            self.memory[address] = value

    def read(self, address: int, length: int) -> tuple[int, bytes]:
        where = self.file if address >= 0x1000 else self.memory
        start = address - 0x1000 if address >= 0x1000 else address
        return length, bytes(where[start : start + length])

    def write(self, address: int, value: bytes) -> None:
        if address == FIRE:
            self.fired += 1
        elif address == EXPOSURE:  # in steps of 50 us
            value = struct.pack("<f", 50 * round(struct.unpack("<f", value)[0] / 50))
        self.memory[address : address + len(value)] = value


class _Driver:
    """Its pictures show how often it was triggered."""

    key, says = "7", "a test"

    def __init__(self, port: _Port) -> None:
        from genicam import genapi

        self.errors = (genapi.GenericException,)
        self._genapi, self._port = genapi, port
        self._nodes, self._kept = _described(genapi, port)

    def feature(self, name: str) -> Any:
        return _Node(self._nodes.get_node(name)) if self._nodes.has_node(name) else None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def trigger(self) -> None:
        self._nodes.TriggerSoftware.execute()

    def frame(self, wait_s: float) -> Frame | None:
        if not wait_s:
            return None
        return Frame(bytes([self._port.fired]) * 4, "Mono8", 2, 2)

    def close(self) -> None: ...


def test_a_camera_is_set_by_hand_read_back_and_triggered_once_a_picture() -> None:
    port = _Port()
    seen = Industrial("genicam", "", lambda _: _Driver(port))
    assert seen.exposure_unit == "us"
    assert [int(port.memory[each]) for each in (SELECT, MODE, SOURCE)] == [0, 1, 1]  # frame start, on, by software
    assert [int(_pixels(shot)[0, 0]) for shot in seen.grab(3)] == [1, 2, 3]
    assert int(port.memory[AUTO]) == 2
    assert seen.adjust(10000, 40) == {"exposure": 10000.0, "gain": 40.0}
    assert struct.unpack_from("<f", port.memory, EXPOSURE) == (10000.0,)
    assert [int(port.memory[each]) for each in (AUTO, GAIN_AUTO, GAIN)] == [0, 0, 40]
    assert seen.adjust(None, None) == {"exposure": None, "gain": None}
    with pytest.raises(UsageError, match="its exposure goes from 10 to 100000, not to 200000"):
        seen.adjust(200000, None)
    with pytest.raises(UsageError, match="its gain cannot be 13: "):
        seen.adjust(None, 13)
    with pytest.raises(DataError, match="its exposure was set to 130 and is 150; give one that it takes"):
        seen.adjust(130, None)
    assert seen.adjust(9990, None)["exposure"] == 10000.0  # within 1 %
