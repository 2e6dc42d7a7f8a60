"""What all cameras of the GenICam standard have in common, whoever's library opens them: genicam.py, basler.py.

A picture is taken after it was asked for. A camera with a software trigger is triggered, once a picture. One without is
started, gives its first picture, and is stopped. Whatever goes wrong, the camera is let go, and opened anew when it is
asked again: so no late picture of an earlier part is taken for the next.

After the camera's key may stand features, set in their order whenever it is opened: ?PixelFormat=Mono12&Gamma=1
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from flawmap.errors import DataError, UsageError
from flawmap.images.camera import Shot
from flawmap.images.formats import Frame, pixels
from flawmap.images.png import write_png

WAIT_S = 5.0  # for a picture, above its exposure
OLD = 100  # pictures at most that nobody asked for, and that lie ready
FEATURES = {"exposure": ("ExposureTime", "ExposureTimeAbs"), "gain": ("Gain", "GainRaw")}  # the second: before SFNC 2
MANUAL = {"exposure": {"ExposureMode": "Timed", "ExposureAuto": "Off"}, "gain": {"GainAuto": "Off"}}


class Incomplete(Exception):
    """A picture of which a part was lost on the way."""


class Gone(Exception):
    """The camera was unplugged, or closed from outside."""


class Feature(Protocol):
    """A node of a camera's GenApi description."""

    value: Any

    def limits(self) -> tuple[float, float]: ...

    def choices(self) -> tuple[str, ...]:
        """Of an enumeration."""
        ...

    def read(self, text: str) -> None:
        """Sets it to what is written, whatever its type."""
        ...


class Driver(Protocol):
    """An open camera. Its `errors` may come out of each call."""

    key: str  # by which it is opened again
    says: str  # maker, model, serial number
    errors: tuple[type[Exception], ...]

    def feature(self, name: str) -> Feature | None:
        """None: it has none of that name, or not now."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def trigger(self) -> None:
        """Runs TriggerSoftware, when the camera is ready for it."""
        ...

    def frame(self, wait_s: float) -> Frame | None:
        """The next picture; None: there came none. Incomplete: a part of it was lost."""
        ...

    def close(self) -> None: ...


class Industrial:
    """A camera of the GenICam standard. Exposure is in microseconds, gain as the camera has it, mostly dB.

    open_driver  opens the camera of a key; raises DataError or UsageError with what stands against it
    """

    exposure_unit = "us"

    def __init__(self, kind: str, which: str, open_driver: Callable[[str], Driver]) -> None:
        self._kind, self._open_driver = kind, open_driver
        self._key, _, features = which.partition("?")
        self._features = _pairs(features, f"{kind}:{which}")
        self.name = f"{kind}:{self._key}"
        self._lock = threading.Lock()
        self._count = 0
        self._driver: Driver | None = None
        self._triggered = False
        self._open()

    def grab(self, views: int = 1) -> list[Shot]:
        with self._lock:
            shots = list[Shot]()
            for _ in range(views):
                content = write_png(self._checked(self._one))
                self._count += 1
                shots.append(Shot(f"frame-{self._count:06}.png", content))
            return shots

    def adjust(self, exposure: float | None, gain: float | None) -> dict[str, float | None]:
        with self._lock:
            wanted = {"exposure": exposure, "gain": gain}
            return {
                what: self._checked(lambda d, w=what, v=value: self._set(d, w, v)) for what, value in wanted.items()
            }

    def after(self, name: str) -> None:
        """What a camera sees has no order."""

    def close(self) -> None:
        with self._lock:
            self._release()

    def _open(self) -> Driver:
        driver = self._driver = self._open_driver(self._key)
        self._key = self._key or driver.key  # the only camera that there was stays the one that is meant
        self.name = f"{self._kind}:{self._key} ({driver.says})"
        try:
            for name, value in self._features:
                self._write(driver, name, value)
            self._triggered = _arm(driver)
            if self._triggered:
                driver.start()
        except driver.errors as error:
            self._release()
            raise DataError(f"{self.name}: cannot be made ready: {_first(error)}") from error
        except UsageError:
            self._release()
            raise
        return driver

    def _write(self, driver: Driver, name: str, value: str) -> None:
        found = driver.feature(name)
        if found is None:
            raise UsageError(f"{self.name}: has no feature {name}")
        try:
            found.read(value)
        except driver.errors as error:
            raise UsageError(f"{self.name}: its {name} cannot be {value!r}: {_first(error)}") from error

    def _checked(self, do: Callable[[Driver], Any]) -> Any:
        """What the library raises is told by the camera's name."""
        driver = self._driver or self._open()
        try:
            return do(driver)
        except driver.errors as error:
            self._release()
            raise DataError(
                f"{self.name}: does not answer: {_first(error)}; is it plugged in, and used by nobody else?"
            ) from error
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error

    def _one(self, driver: Driver) -> Any:
        exposure = _feature(driver, *FEATURES["exposure"])
        wait_s = WAIT_S + (float(exposure.value) * 1e-6 if exposure else 0.0)
        try:
            if self._triggered:
                _drop_old(driver)
                driver.trigger()
            else:
                driver.start()
            frame = driver.frame(wait_s)
            if frame is None:
                raise DataError(f"gives no picture within {wait_s:.3g} s")
            if not self._triggered:
                driver.stop()
        except Incomplete as error:
            self._release()
            raise DataError(f"a frame was missed: {error}; look at cable, network card and bandwidth") from error
        except BaseException:  # what was asked for may still come, and is of this part
            self._release()
            raise
        return pixels(frame)

    def _set(self, driver: Driver, what: str, value: float | None) -> float | None:
        if value is None:
            return None
        found = _feature(driver, *FEATURES[what])
        if found is None:
            raise UsageError(f"{self.name}: its {what} cannot be set: it has no {FEATURES[what][0]}; leave {what} out")
        for name, choice in MANUAL[what].items():
            _choose(driver, name, choice)
        low, high = found.limits()
        if not low <= value <= high:
            raise UsageError(f"{self.name}: its {what} goes from {low:g} to {high:g}, not to {value:g}")
        try:
            found.value = value
        except driver.errors as error:
            raise UsageError(f"{self.name}: its {what} cannot be {value:g}: {_first(error)}") from error
        set_to = float(found.value)
        if abs(set_to - value) > 0.01 * max(abs(value), 1):
            raise DataError(f"its {what} was set to {value:g} and is {set_to:g}; give one that it takes")
        return set_to

    def _release(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None


def _arm(driver: Driver) -> bool:
    """Whether each picture is triggered from here. No other trigger is waited for."""
    _choose(driver, "AcquisitionMode", "Continuous")
    selector = _feature(driver, "TriggerSelector")
    for which in selector.choices() if selector is not None else ():
        with suppress(*driver.errors):  # it may be listed, and not be there in this mode
            _choose(driver, "TriggerSelector", which)
            _choose(driver, "TriggerMode", "Off")
    if selector is not None and not _choose(driver, "TriggerSelector", "FrameStart"):
        return False
    if _choose(driver, "TriggerSource", "Software"):
        return _choose(driver, "TriggerMode", "On")
    _choose(driver, "TriggerMode", "Off")
    return False


def _drop_old(driver: Driver) -> None:
    for _ in range(OLD):
        with suppress(Incomplete):
            if driver.frame(0.0) is None:
                return
    raise DataError("sends pictures that nobody asked for, though it is triggered by software")


def _choose(driver: Driver, name: str, choice: str) -> bool:
    """Whether it is so now. What is so already may well be fixed."""
    found = _feature(driver, name)
    if found is None or choice not in found.choices():
        return False
    if found.value != choice:
        found.value = choice
    return True


def _feature(driver: Driver, *names: str) -> Feature | None:
    return next((found for found in map(driver.feature, names) if found is not None), None)


def _pairs(text: str, where: str) -> list[tuple[str, str]]:
    pairs = [each.partition("=") for each in text.split("&") if each]
    if wrong := [name for name, sign, _ in pairs if not (name and sign)]:
        raise UsageError(f"{where}: {wrong[0]!r} sets nothing; write ?FEATURE=VALUE&FEATURE=VALUE")
    return [(name, value) for name, _, value in pairs]


def _first(error: Exception) -> str:
    """What a library says, on one line, without the place in its source."""
    return " ".join(re.sub(r" : \w+ thrown .*", "", str(error), flags=re.DOTALL).split()) or type(error).__name__
