"""Basler cameras through their maker's library (extra `basler`): GigE, USB, and the emulated ones of PYLON_CAMEMU.

basler:          the only camera that is found
basler:WHICH     by its serial number or its name
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.images import industrial
from flawmap.images.formats import Frame
from flawmap.images.industrial import Gone, Incomplete, Industrial


class Device(NamedTuple):
    serial: str
    vendor: str
    model: str
    called: str  # by its user
    device: str  # how pylon reaches it
    info: Any

    @property
    def says(self) -> str:
        return " ".join(filter(None, (self.vendor, self.model, self.serial)))


def basler_camera(which: str) -> Industrial:
    return Industrial("basler", which, _Camera)


def devices() -> list[Device]:
    """DataError: the library finds none, for a reason."""
    pylon, genapi = _binding()
    try:
        return [_device(each) for each in pylon.TlFactory.GetInstance().EnumerateDevices()]
    except genapi.GenericException as error:
        raise DataError(f"pylon finds no cameras: {error}") from error


def _device(info: Any) -> Device:
    called = info.GetUserDefinedName() if info.IsUserDefinedNameAvailable() else ""
    known = info.GetSerialNumber(), info.GetVendorName(), info.GetModelName()
    return Device(*known, called, info.GetDeviceClass(), info)


def _binding() -> Any:
    try:
        with warnings.catch_warnings():  # it crashes where a warning is made an error
            warnings.simplefilter("ignore", DeprecationWarning)
            from pypylon import genicam, pylon
    except ImportError as error:
        raise MissingExtra("pypylon", "basler", "a Basler camera") from error
    return pylon, genicam


class _Camera:
    """The driver of one camera."""

    def __init__(self, key: str) -> None:
        self._pylon, self._genapi = _binding()
        self.errors: tuple[type[Exception], ...] = (self._genapi.GenericException, Gone)
        found = _chosen(key, devices())
        self.key, self.says = found.serial, found.says
        self._camera: Any = None
        try:
            self._camera = self._pylon.InstantCamera(self._pylon.TlFactory.GetInstance().CreateDevice(found.info))
            self._camera.Open()
        except self.errors as error:
            self.close()
            raise DataError(f"basler:{self.key}: cannot be opened, is it used by nobody else? {error}") from error
        self._nodes = self._camera.GetNodeMap()

    def feature(self, name: str) -> _Node | None:
        if not self._camera.IsOpen() or self._camera.IsCameraDeviceRemoved():
            raise Gone("it was unplugged or closed")
        node = self._nodes.GetNode(name)
        return _Node(node) if self._genapi.IsAvailable(node) else None

    def start(self) -> None:
        self._format = self._nodes.GetNode("PixelFormat").GetValue()
        self._camera.StartGrabbing(self._pylon.GrabStrategy_OneByOne)

    def stop(self) -> None:
        self._camera.StopGrabbing()

    def trigger(self) -> None:
        """A trigger that comes before the camera is ready would be lost."""
        if self._camera.CanWaitForFrameTriggerReady():
            self._camera.WaitForFrameTriggerReady(round(1000 * industrial.WAIT_S), self._pylon.TimeoutHandling_Return)
        self._nodes.GetNode("TriggerSoftware").Execute()

    def frame(self, wait_s: float) -> Frame | None:
        result = self._camera.RetrieveResult(round(1000 * wait_s), self._pylon.TimeoutHandling_Return)
        if not result.IsValid():
            return None
        try:
            if not result.GrabSucceeded():
                raise Incomplete(f"{result.GetErrorDescription()} (error {result.GetErrorCode():#x})")
            size = result.GetWidth(), result.GetHeight()
            return Frame(bytes(result.GetBuffer()), self._format, *size, result.GetPaddingX())
        finally:
            result.Release()

    def close(self) -> None:
        for step in ("StopGrabbing", "Close", "DestroyDevice"):
            with suppress(*self.errors):
                if self._camera is not None:
                    getattr(self._camera, step)()


class _Node:
    def __init__(self, node: Any) -> None:
        self._node = node

    @property
    def value(self) -> Any:
        return self._node.GetValue()

    @value.setter
    def value(self, value: Any) -> None:
        self._node.SetValue(round(value) if type(self._node).__name__ == "IntegerParameter" else value)

    def limits(self) -> tuple[float, float]:
        return float(self._node.GetMin()), float(self._node.GetMax())

    def choices(self) -> tuple[str, ...]:
        return tuple(getattr(self._node, "Symbolics", ()))

    def read(self, text: str) -> None:
        self._node.FromString(text)


def _chosen(key: str, found: list[Device]) -> Device:
    fit = [each for each in found if key in ("", each.serial, each.called)]
    if len(fit) == 1:
        return fit[0]
    there = ", ".join(f"basler:{each.serial} ({each.says})" for each in found)
    if fit:
        raise UsageError(f"basler:{key}: {len(fit)} cameras are meant; name one: {there}")
    if found:
        raise DataError(f"basler:{key}: is not there; there are: {there}")
    raise DataError(f"basler:{key}: no camera is found; is it plugged in, and its network card set as pylon wants it?")
