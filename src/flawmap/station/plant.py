"""What stands around a station: cameras that run by themselves, PLCs that trigger, and who is told of every part."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flawmap.errors import FlawmapError, LedgerError, Unavailable, UsageError
from flawmap.images.camera import Camera, camera
from flawmap.station.ledger import now
from flawmap.station.line import Line, Picture
from flawmap.station.watch import Watch

if TYPE_CHECKING:
    from flawmap.station.serve import Settings

MQTT_PASSWORD, WEBHOOK_SECRET = "FLAWMAP_MQTT_PASSWORD", "FLAWMAP_WEBHOOK_SECRET"
_LOG = logging.getLogger("flawmap.station")


def connect(settings: Settings, line: Line, open_things: ExitStack) -> None:
    """Opens all that the settings name; each is closed with `open_things`. UsageError: one lacks what it needs."""
    if settings.watch is not None:
        watch = Watch(line, settings.watch, part_pattern=settings.part_pattern)
        open_things.callback(watch.close)
    seen = camera(settings.camera) if settings.camera else None
    if seen is not None:
        open_things.callback(seen.close)
        line.lamps["camera"] = ("ok", seen.name)
    if settings.every is not None:
        if seen is None or not settings.every > 0:
            raise UsageError("--every SECONDS goes with --camera, and is above 0")
        open_things.callback(Running(line, seen, settings.every).close)
    _plcs(settings, line, seen, open_things)
    _listeners(settings, line, open_things)


def grab(line: Line, seen: Camera) -> list[Picture]:
    """As many views as the recipe in use judges; the camera's lamp says how that went."""
    try:
        shots = seen.grab(line.recipes.active.views[0])
    except Exception as error:
        line.lamps["camera"] = ("bad", str(error))
        raise
    line.lamps["camera"] = ("ok", seen.name)
    return [Picture(*shot) for shot in shots]


class Running:
    """A camera that takes a part every so many seconds. What comes while the station is full or blocked is left out."""

    def __init__(self, line: Line, seen: Camera, every_s: float) -> None:
        self.line, self.seen, self.every_s = line, seen, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.every_s, time.monotonic())
            try:
                self._one()
            except Unavailable:
                continue
            except FlawmapError as error:
                self._failed(str(error))
            except Exception as error:
                _LOG.exception("camera")
                self._failed(f"{type(error).__name__}: {error}")

    def _one(self) -> None:
        if not self.line.ready and not self.line.fault:
            return
        pictures = grab(self.line, self.seen)
        self.line.submit(f"{now()} {pictures[0].name}", pictures, source="camera")

    def _failed(self, reason: str) -> None:
        """A part that was not seen is an error in the ledger, once for each time the camera was asked."""
        try:
            self.line.fail(now(), "CAMERA", reason, "camera")
        except LedgerError as error:
            _LOG.error("%s", error)


def _plcs(settings: Settings, line: Line, seen: Camera | None, open_things: ExitStack) -> None:
    if not (settings.opcua or settings.modbus):
        return
    if seen is None:
        raise UsageError("a PLC triggers a camera: give --camera")
    from flawmap.station.cell import Cell

    times = {} if settings.ack_s is None else {"ack_s": settings.ack_s}

    def take(_: str) -> Sequence[Picture]:
        return grab(line, seen)

    if settings.opcua:
        from flawmap.station.opcua import OpcUa

        keys = settings.opcua_keys
        how = {} if keys is None else {"certificate": keys / "certificate.pem", "key": keys / "key.pem"}
        trusted = {} if keys is None else {"trusted": keys / "trusted"}
        cell = Cell(line, take, source="opcua", lamp="plc", **times)
        open_things.callback(OpcUa(cell, settings.opcua, **how, **trusted).close)
    if settings.modbus:
        from flawmap.station.modbus import Modbus

        host, _, port = settings.modbus.rpartition(":")
        if not host or not port.isdecimal():
            raise UsageError(f"--modbus {settings.modbus!r}: give HOST:PORT")
        cell = Cell(line, take, source="modbus", lamp="modbus" if settings.opcua else "plc", **times)
        open_things.callback(Modbus(cell, host, int(port), plcs=settings.modbus_plcs).close)


def _listeners(settings: Settings, line: Line, open_things: ExitStack) -> None:
    if settings.mqtt:
        from flawmap.station.mqtt import Mqtt

        url = urlsplit(settings.mqtt)
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname or url.password:
            raise UsageError(f"--mqtt is mqtt://USER@HOST:PORT or mqtts://...; the password stands in {MQTT_PASSWORD}")
        password = os.environ.get(MQTT_PASSWORD)
        how = {"user": url.username, "password": password, "tls": url.scheme == "mqtts", "ca": settings.mqtt_ca}
        open_things.callback(Mqtt(line, url.hostname, url.port, **how).close)
    for number, url in enumerate(settings.webhooks):
        from flawmap.station.webhook import Webhook

        secret = os.environ.get(WEBHOOK_SECRET, "").encode()
        if not secret:
            raise UsageError(f"--webhook signs what it sends: put a secret into {WEBHOOK_SECRET}")
        lamp = "webhook" if number == 0 else f"webhook {number + 1}"
        open_things.callback(Webhook(line, url, secret, lamp=lamp).close)
