"""GenTL producers, the libraries through which cameras of the GenICam standard are reached, and what they find.

A producer is a .cti file in a folder that GENICAM_GENTL64_PATH names; the installer of a camera's maker sets it. It
runs inside this process, and may crash it: `asked` looks through one in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, MissingExtra

GENTL = "GENICAM_GENTL64_PATH"
SEARCH_MS = 1000  # for what is asked of a network
ASK_S = 30.0  # after which a producer is taken to hang
OPEN = ("3", "4", "5", "6")  # of GenTL's DEVICE_ACCESS_STATUS
NEEDED = ("GCInitLib", "TLOpen", "IFOpenDevice", "DevOpenDataStream")  # a library without them crashes the binding
ALTERED_SEARCH = 8  # of Windows: what a library needs lies beside it


@dataclass(frozen=True)
class Device:
    producer: str
    id: str
    serial: str
    vendor: str
    model: str
    called: str  # by its user
    used: bool  # by a program; by this one, too
    info: Any = field(default=None, compare=False)  # the binding's own

    @property
    def says(self) -> str:
        return " ".join(filter(None, (self.vendor, self.model, self.serial)))

    @property
    def key(self) -> str:
        return self.serial or self.id

    def fits(self, key: str) -> bool:
        return key in ("", self.serial, self.id, self.called)


def binding() -> tuple[Any, Any]:
    """genapi and gentl."""
    try:
        from genicam import genapi, gentl
    except ImportError as error:
        raise MissingExtra("genicam", "capture", "a GenICam camera") from error
    return genapi, gentl


def producers() -> list[Path]:
    """Of all folders, in their order; in a folder by name."""
    folders = [Path(folder) for folder in os.environ.get(GENTL, "").split(os.pathsep) if folder]
    return list(dict.fromkeys(path.absolute() for folder in folders for path in sorted(folder.glob("*.cti"))))


def asked(path: Path) -> list[Device]:
    """What a producer finds, in a process of its own. DataError: it cannot be used, and why."""
    binding()
    command = [sys.executable, "-m", "flawmap.images.gentl", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{path}: does not answer within {ASK_S:g} s") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise DataError(f"{path}: crashed when it was asked (exit code {done.returncode}); ask its maker for another")
    told = json.loads(lines[-1])
    if isinstance(told, str):
        raise DataError(told)
    return [Device(**each) for each in told]


class Producer:
    """A producer, loaded. A library may be begun once in a process, so those who use it at a time share it."""

    def __init__(self, path: Path) -> None:
        self.path, self.users = path, 0
        self._gentl = binding()[1]
        self._library = self._gentl.GenTLProducer.create_producer()
        self._interfaces: dict[str, Any] = {}
        self._system: Any = None
        _refuse_others(path)
        try:
            self._library.open(str(path))
            self._system = self._library.create_system()
            self._system.open()
        except self._gentl.GenericException as error:
            self.close()
            raise DataError(f"{path}: is no producer that can be used: {error}") from error

    def devices(self) -> list[Device]:
        found = []
        try:
            self._system.update_interface_info_list(SEARCH_MS)
            for info in self._system.interface_info_list:
                interface = self._interfaces.get(info.id_) or info.create_interface()
                with suppress(self._gentl.GenericException):  # a network card that is down hides no other
                    if info.id_ not in self._interfaces:
                        interface.open()
                        self._interfaces[info.id_] = interface
                    interface.update_device_info_list(SEARCH_MS)
                    found += [self._device(each) for each in interface.device_info_list]
        except self._gentl.GenericException as error:
            _LOADED.pop(self.path, None)  # whoever asks next loads it anew
            raise DataError(f"{self.path}: finds no cameras: {error}") from error
        return found

    def _device(self, info: Any) -> Device:
        def text(name: str) -> str:
            try:
                return str(getattr(info, name) or "")
            except self._gentl.GenericException:
                return ""

        known = text("id_"), text("serial_number"), text("vendor"), text("model"), text("user_defined_name")
        return Device(str(self.path), *known, text("access_status") in OPEN, info)

    def close(self) -> None:
        for each in (*self._interfaces.values(), self._system, self._library):
            with suppress(self._gentl.GenericException):
                if each is not None and each.is_open():
                    each.close()
        self._interfaces.clear()


_LOADED: dict[Path, Producer] = {}
LOCK = threading.RLock()


def hold(path: Path) -> Producer:
    with LOCK:
        producer = _LOADED.get(path) or Producer(path)
        _LOADED[path] = producer
        producer.users += 1
        return producer


def drop(producer: Producer) -> None:
    with LOCK:
        producer.users -= 1
        if not producer.users:
            if _LOADED.get(producer.path) is producer:
                del _LOADED[producer.path]
            producer.close()


def _refuse_others(path: Path) -> None:
    """DataError: not a library, or not a producer."""
    try:
        library = ctypes.CDLL(str(path), winmode=ALTERED_SEARCH)
    except OSError as error:
        raise DataError(f"{path}: is no library that can be loaded: {error}") from error
    if missing := [name for name in NEEDED if not hasattr(library, name)]:
        raise DataError(f"{path}: is a library, but no GenTL producer: it has no {', '.join(missing)}")


def _tell(path: Path) -> None:
    """What `asked` reads: a line of JSON, the devices or the error."""
    try:
        producer = hold(path)
        told = [asdict(replace(each, info=None)) for each in producer.devices()]
        drop(producer)
    except DataError as error:
        told = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    _tell(Path(sys.argv[1]))
