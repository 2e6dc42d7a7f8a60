"""Every row of the ledger to an MQTT broker, as JSON, and whether the station lives. It takes no commands.

flawmap/STATION/part, /decision, /event, /fault; retained: flawmap/STATION/state, which the broker sets to offline when
the station is gone. Messages wait in a bounded outbox while the broker is away, and are sent at least once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

from flawmap.errors import MissingExtra, UsageError
from flawmap.station.access import loopback
from flawmap.station.beside import Beside
from flawmap.station.ledger import Row, now
from flawmap.station.line import Line
from flawmap.station.outbox import Outbox, message

try:
    import aiomqtt
except ImportError as error:
    raise MissingExtra("aiomqtt", "plc", "MQTT") from error

STATE_S = 1.0  # how often the state is looked at; it is sent when it has changed
_LOG = logging.getLogger("flawmap.station")


class Mqtt:
    """Runs beside the service until it is closed.

    tls              a secured connection; the broker's certificate is held against `ca`, or the system's authorities
    certificate, key of this client, where the broker asks for one
    most             messages that wait while the broker is away; then the oldest are lost, and counted
    retry_s          the first pause after a failure, doubled up to the second

    UsageError: a password that would go over the network in the clear, or files that make no TLS.
    """

    def __init__(
        self,
        line: Line,
        host: str,
        port: int | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        most: int = 1000,
        retry_s: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        station = line.ledger.station
        if not station or set(station) & set("+#/\0"):
            raise UsageError(f"station {station!r}: a name that is part of an MQTT topic has no +, # or /")
        if password and not tls and not loopback(host):
            raise UsageError(
                f"MQTT to {host} with a password and without TLS: it would go over the network in the clear"
            )
        if (ca or certificate or key) and not tls:
            raise UsageError("MQTT with certificates and without TLS: ask for TLS")
        self.line, self.where = line, f"{host}:{port or (8883 if tls else 1883)}"
        self.topic = f"flawmap/{station}"
        will = aiomqtt.Will(f"{self.topic}/state", json.dumps({"state": "offline", "station": station}), 1, True)
        self._how: dict[str, Any] = {"hostname": host, "port": port or (8883 if tls else 1883), "will": will}
        self._how |= {
            "username": user,
            "password": password,
            "tls_context": _tls(ca, certificate, key) if tls else None,
        }
        self._how |= {"timeout": 5.0, "keepalive": 10}
        self.retry_s, self.sent = retry_s, 0
        self.outbox = Outbox(most, self._wake)
        self._beside = Beside("mqtt")
        self._beside.run(self._begin())
        self._unlisten = line.listen(lambda what, row: self.outbox.put((what, row)))

    def close(self, wait_s: float = 2.0) -> None:
        """Sends what waits, for so long, says offline, and ends."""
        self._unlisten()
        self._ending = True
        self._wake()
        with suppress(TimeoutError):
            self._beside.run(asyncio.wait_for(asyncio.shield(self._task), wait_s))
        self._beside.close()
        self.line.lamps["mqtt"] = ("off", "closed")

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._beside.loop.call_soon_threadsafe(self._woken.set)

    async def _begin(self) -> None:
        self._ending, self._woken = False, asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        pause = self.retry_s[0]
        while True:
            try:
                async with aiomqtt.Client(**self._how) as client:
                    pause = self.retry_s[0]
                    self._light("ok", f"connected to {self.where}")
                    await self._connected(client)
                    return
            except (aiomqtt.MqttError, OSError) as error:
                self._light("bad", f"{self.where}: {error}")
                _LOG.warning("MQTT: %s: %s; again in %g s", self.where, error, pause)
            except Exception as error:  # a fault of ours must not end the sending for good
                self._light("bad", f"{self.where}: {type(error).__name__}: {error}")
                _LOG.exception("MQTT")
            if self._ending:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, self.retry_s[1])

    async def _connected(self, client: aiomqtt.Client) -> None:
        """Until the end, or an error. Listening beside sending finds out at once that the broker is gone."""
        tasks = [asyncio.create_task(self._send(client)), asyncio.create_task(_gone(client))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, client: aiomqtt.Client) -> None:
        said = None
        while True:
            self._woken.clear()
            state = self._state()
            if state != said:
                await client.publish(f"{self.topic}/state", json.dumps(state | {"time": now()}), qos=1, retain=True)
                said = state
            while (found := self.outbox.first()) is not None:
                number, (what, row) = found
                await client.publish(f"{self.topic}/{what}", self._payload(what, row), qos=1)
                self.outbox.remove(number)
                self.sent += 1
            lost = f", {self.outbox.lost} messages lost" if self.outbox.lost else ""
            self._light("warn" if lost else "ok", f"connected to {self.where}, {self.sent} sent{lost}")
            if self._ending:
                await client.publish(f"{self.topic}/state", self._how["will"].payload, qos=1, retain=True)
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), STATE_S)

    def _payload(self, what: str, row: Row) -> str:
        return json.dumps(message(what, row, self.line.ledger.station))

    def _state(self) -> dict[str, Any]:
        line, recipe = self.line, self.line.recipes.active
        found = {"state": "online", "station": line.ledger.station, "ready": line.ready, "blocked": line.blocked}
        found |= {"fault": line.fault, "recipe": recipe.name, "bundle": recipe.bundle, "lost": self.outbox.lost}
        return found

    def _light(self, state: str, text: str) -> None:
        waiting = f", {len(self.outbox)} waiting" if state == "bad" else ""
        self.line.lamps["mqtt"] = (state, f"MQTT: {text}{waiting}")


async def _gone(client: aiomqtt.Client) -> None:
    """MqttError, when the connection ends. Nothing is subscribed to."""
    async for _ in client.messages:
        pass


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"MQTT with TLS: {error}: look at the files of certificates and keys") from error
    return context
