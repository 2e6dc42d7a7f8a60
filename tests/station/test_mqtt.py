"""MQTT against a broker of amqtt in this process, on loopback."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiomqtt", reason="aiomqtt is not installed: pip install flawmap[plc]")
pytest.importorskip("amqtt", reason="amqtt is not installed: pip install flawmap[dev]")
import aiomqtt
from amqtt.broker import Broker
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flawmap.errors import UsageError
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.mqtt import Mqtt
from flawmap.station.recipes import Recipes

PAGE = Path(__file__).parents[2] / "docs" / "plc.md"
FAST = (0.05, 0.2)


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = made.add_extension(x509.SubjectAlternativeName([address]), False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    certificate, private = folder / "broker.pem", folder / "broker.key"
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private


class Hub:
    """A broker, and a listener of it that keeps what it hears, in a thread of their own."""

    def __init__(self, port: int, **listener: Any) -> None:
        self.port, self.heard = port, list[tuple[str, Any, bool]]()
        self._listener = {"type": "tcp", "bind": f"127.0.0.1:{port}"} | listener
        self._started, self._stop = threading.Event(), asyncio.Event()
        self.context: ssl.SSLContext | None = None
        if listener:
            self.context = ssl.create_default_context(cafile=str(listener["certfile"]))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        broker = Broker({"listeners": {"default": self._listener}, "plugins": plugins})
        await broker.start()
        async with aiomqtt.Client("127.0.0.1", self.port, tls_context=self.context) as client:
            await client.subscribe("flawmap/#", qos=1)
            listening = asyncio.create_task(self._listen(client))
            self._started.set()
            await self._stop.wait()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await broker.shutdown()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _listen(self, client: Any) -> None:
        async for found in client.messages:
            self.heard.append((str(found.topic), json.loads(found.payload), found.retain))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def of(self, topic: str) -> list[Any]:
        return [said for name, said, _ in self.heard if name == f"flawmap/s1/{topic}"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub(_port())
    yield made
    made.close()


def test_parts_and_events_are_heard_as_they_stand_in_the_ledger(
    line: Line, hub: Hub, pictures: dict[str, Picture], until: Any
) -> None:
    sender = Mqtt(line, "127.0.0.1", hub.port, retry_s=FAST)
    until(lambda: hub.of("state"))
    assert {name: hub.of("state")[0][name] for name in ("state", "ready", "recipe")} == {
        "state": "online",
        "ready": True,
        "recipe": "square",
    }
    rows = [line.inspect(part, [pictures[part]]) for part in ("good", "bad", "broken")]
    line.decide(rows[1]["seq"], "agreed", "a square", "anna")
    line.event("TEST", "an event")
    until(lambda: hub.of("event"))
    heard = hub.of("part")
    assert [(said["row"], said["hash"], said["part"], said["verdict"], said["code"]) for said in heard] == [
        (row["seq"], row["hash"], row["part"], row["verdict"], row["code"]) for row in rows
    ]
    assert hub.of("decision")[0]["refers"] == rows[1]["seq"]
    line.block("challenge parts")
    until(lambda: hub.of("state")[-1]["ready"] is False)
    assert hub.of("state")[-1]["blocked"] == "challenge parts"
    until(lambda: line.lamps["mqtt"][0] == "ok")
    sender.close()
    until(lambda: hub.of("state")[-1]["state"] == "offline")
    assert line.lamps["mqtt"] == ("off", "closed")


class Wire:
    """A cable between the station and the broker, that can be cut."""

    def __init__(self, port: int) -> None:
        self._to, self._ends = port, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._to))
        self._ends = [near, far]
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while found := one.recv(65536):
                other.sendall(found)

    def cut(self) -> None:
        for each in (*self._ends, self._listener):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_the_broker_says_offline_when_the_station_is_gone_without_a_word(line: Line, hub: Hub, until: Any) -> None:
    wire = Wire(hub.port)
    sender = Mqtt(line, "127.0.0.1", wire.port, retry_s=(60, 60))
    until(lambda: hub.of("state"))
    assert hub.of("state")[-1]["state"] == "online"
    wire.cut()
    until(lambda: hub.of("state")[-1]["state"] == "offline", 10)
    until(lambda: line.lamps["mqtt"][0] == "bad")
    sender.close(0)


def test_a_broker_that_comes_back_gets_what_happened_meanwhile(
    line: Line, pictures: dict[str, Picture], until: Any
) -> None:
    first = Hub(_port())
    sender = Mqtt(line, "127.0.0.1", first.port, retry_s=FAST, most=3)
    until(lambda: first.of("state"))
    first.close()
    until(lambda: line.lamps["mqtt"][0] == "bad")
    begun = time.monotonic()
    rows = [line.inspect(f"part-{number}", [pictures["good"]]) for number in range(5)]
    assert time.monotonic() - begun < 4.0
    assert {row["verdict"] for row in rows} == {"OK"}
    assert sender.outbox.lost == 2
    until(lambda: "3 waiting" in line.lamps["mqtt"][1])
    again = Hub(first.port)
    until(lambda: len(again.of("part")) == 3)
    assert [said["part"] for said in again.of("part")] == ["part-2", "part-3", "part-4"]
    until(lambda: line.lamps["mqtt"][0] == "warn")
    assert "2 messages lost" in line.lamps["mqtt"][1]
    sender.close()
    again.close()


def test_without_a_broker_the_lamp_says_why_and_closing_does_not_wait(line: Line, until: Any) -> None:
    sender = Mqtt(line, "127.0.0.1", _port(), retry_s=(30, 30))
    until(lambda: "refused" in line.lamps.get("mqtt", ("", ""))[1])
    begun = time.monotonic()
    sender.close(0.2)
    assert time.monotonic() - begun < 3


def _refused(line: Line, port: int, until: Any) -> None:
    other = Mqtt(line, "127.0.0.1", port, tls=True, retry_s=FAST)
    until(lambda: "CERTIFICATE_VERIFY_FAILED" in line.lamps["mqtt"][1])
    other.close(0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tls_holds_the_broker_s_certificate_against_the_ca_given(line: Line, tmp_path: Path, until: Any) -> None:
    certificate, key = _certificate(tmp_path)
    hub = Hub(_port(), ssl=True, certfile=certificate, keyfile=key)
    trusting = Mqtt(line, "127.0.0.1", hub.port, tls=True, ca=certificate, user="u", password="p", retry_s=FAST)
    until(lambda: hub.of("state"))
    trusting.close()
    _refused(line, hub.port, until)
    hub.close()
    gc.collect()  # paho leaves a socket whose certificate was refused to the collector


def test_what_would_be_sent_in_the_clear_or_makes_no_topic_is_refused(
    line: Line, recipes: Recipes, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="in the clear"):
        Mqtt(line, "broker.example", user="u", password="p")
    with pytest.raises(UsageError, match="ask for TLS"):
        Mqtt(line, "127.0.0.1", ca=tmp_path / "ca.pem")
    with pytest.raises(UsageError, match="look at the files"):
        Mqtt(line, "127.0.0.1", tls=True, ca=tmp_path / "ca.pem")
    other = Line(recipes, Ledger(tmp_path / "x.db", station="hall/1"))
    with pytest.raises(UsageError, match="part of an MQTT topic"):
        Mqtt(other, "127.0.0.1")
    other.close()


def test_every_topic_stands_in_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for topic in ("part", "decision", "event", "fault", "state"):
        assert f"`flawmap/STATION/{topic}`" in text
