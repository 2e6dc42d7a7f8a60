"""The OPC UA server against a client of asyncua on loopback, open and with certificates."""

from __future__ import annotations

import asyncio
import datetime
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("asyncua", reason="asyncua is not installed: pip install flawmap[plc]")
from asyncua import Client, ua
from asyncua.crypto.cert_gen import dump_private_key_as_pem, generate_private_key, generate_self_signed_app_certificate
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from flawmap.errors import UsageError
from flawmap.station.cell import Cell
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.opcua import NAMESPACE, NODES, OpcUa, _Clients
from flawmap.station.recipes import Recipes

PAGE = Path(__file__).parents[2] / "docs" / "plc.md"


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _serve(line: Line, pictures: dict[str, Picture], **how: Any) -> OpcUa:
    """A server whose camera gives the picture that the PartId begins with; of "slow" it gives none until it is told."""

    def grab(part: str) -> list[Picture]:
        kind = part.split("-")[0]
        if kind == "slow":
            GATE.wait(5)
        return [pictures["good" if kind == "slow" else kind]]

    cell = Cell(line, grab, source="opcua", heartbeat_s=0.1)
    return OpcUa(cell, f"opc.tcp://127.0.0.1:{_port()}/flawmap", **how)


GATE = threading.Event()


@pytest.fixture(scope="module")
def server(recipes: Recipes, pictures: dict[str, Picture], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpcUa]:
    """One for all tests: a server of asyncua takes seconds to start."""
    line = Line(recipes, Ledger(tmp_path_factory.mktemp("opcua") / "line.db"))
    made = _serve(line, pictures)
    yield made
    made.close(0)
    line.close()


class Plc:
    """What a PLC does, over the network."""

    def __init__(self, client: Client, space: int) -> None:
        self.client, self.space = client, space

    def node(self, name: str) -> Any:
        return self.client.get_node(ua.NodeId(name, self.space))

    async def read(self, *names: str) -> list[Any]:
        """In one request, so that all is of one moment."""
        return await self.client.read_values([self.node(name) for name in names])

    async def write(self, **values: Any) -> None:
        """In one request, in this order."""
        await self.client.write_values([self.node(name) for name in values], list(values.values()))

    async def until(self, name: str, value: Any, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while (await self.read(name))[0] != value:
                await asyncio.sleep(0.005)

    async def part(self, part: str) -> dict[str, Any]:
        """The whole handshake of one part."""
        await self.until("Ready", True)
        await self.write(PartId=part, Trigger=True)
        await self.until("ResultValid", True)
        names = ("OK", "NOK", "Review", "ErrorName", "ResultPartId", "Row", "RowHash", "Score", "Verdict", "Ready")
        found = dict(zip(names, await self.read(*names), strict=True))
        await self.write(Trigger=False)
        await self.until("ResultValid", False)
        return found


def talk(server: OpcUa, story: Callable[[Plc], Any], prepare: Callable[[Client], Any] | None = None) -> Any:
    """Runs a story of a PLC that is connected."""

    async def run() -> Any:
        client = Client(server.endpoint, timeout=5)
        if prepare is not None:
            await prepare(client)
        async with client:
            return await story(Plc(client, await client.get_namespace_index(NAMESPACE)))

    return asyncio.run(run())


def test_parts_are_ok_and_nok_as_their_rows_say(server: OpcUa) -> None:
    line = server.cell.line

    async def story(plc: Plc) -> None:
        for part, ok in (("good", True), ("bad", False), ("good-2", True), ("broken", False)):
            found = await plc.part(part)
            row = line.ledger.get(found["Row"])
            assert row is not None
            assert (found["OK"], found["NOK"], found["Ready"]) == (ok, not ok, False)
            assert (found["ResultPartId"], row["part"], row["source"]) == (part, part, "opcua")
            assert found["RowHash"] == row["hash"]
            assert found["ErrorName"] == (row["code"] or "NONE")
            if row["kind"] == "verdict":
                assert (found["Verdict"], found["Score"]) == (row["verdict"], row["score"])
        await plc.until("CurrentState", "Operational.Ready")

    talk(server, story)


def test_start_single_job_is_a_trigger_and_a_second_one_is_refused_and_makes_the_first_nok(server: OpcUa) -> None:
    async def story(plc: Plc) -> None:
        machine = plc.node("VisionStateMachine")
        await plc.until("Ready", True)
        job = await machine.call_method(f"{plc.space}:StartSingleJob", "slow-1")
        await plc.until("CurrentState", "Operational.SingleExecution")
        with pytest.raises(ua.UaStatusCodeError, match="BadInvalidState"):
            await machine.call_method(f"{plc.space}:StartSingleJob", "good-2")
        await plc.until("ResultValid", True)
        assert await plc.read("OK", "NOK", "ErrorName", "ResultPartId") == [False, True, "OVERRUN", "slow-1"]
        GATE.set()
        await plc.write(Ack=True)
        await plc.until("ResultValid", False)
        await plc.write(Ack=False)
        await plc.until("Ready", True)
        assert await machine.call_method(f"{plc.space}:StartSingleJob", "good-3") == job + 1
        await plc.until("ResultValid", True)
        assert await plc.read("OK", "NOK", "ResultPartId") == [True, False, "good-3"]
        await plc.write(Ack=True)
        await plc.write(Ack=False)

    talk(server, story)


def test_result_valid_comes_after_all_data_for_who_subscribes(server: OpcUa) -> None:
    seen = []

    class Handler:
        def __init__(self, plc: Plc) -> None:
            self.names = {plc.node(node.name).nodeid: node.name for node in NODES}

        def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
            seen.append((self.names[node.nodeid], value))

    async def story(plc: Plc) -> None:
        await plc.until("Ready", True)
        subscription = await plc.client.create_subscription(10, Handler(plc))
        await subscription.subscribe_data_change([plc.node(node.name) for node in NODES if node.read])
        await plc.part("good-last")
        await asyncio.sleep(0.2)

    talk(server, story)
    later = seen[seen.index(("ResultPartId", "good-last")) :]
    names = [name for name, value in later if value not in (False, "", 0)]
    assert max(names.index(name) for name in ("Row", "RowHash", "OK")) < names.index("ResultValid")


def test_a_plc_that_goes_away_gets_its_result_withdrawn_and_finds_its_way_back(
    server: OpcUa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.cell.handshake, "ack_s", 0.2)

    async def leaves(plc: Plc) -> None:
        await plc.until("Ready", True)
        await plc.write(PartId="good", Trigger=True)
        await plc.until("OK", True)

    async def comes_back(plc: Plc) -> None:
        await plc.until("ErrorName", "ACK_TIMEOUT")
        await plc.until("ResultValid", True)
        assert await plc.read("OK", "NOK", "CurrentState", "Trigger") == [False, True, "Error", True]
        await plc.write(Trigger=False)
        assert (await plc.part("good"))["OK"]

    talk(server, leaves)
    talk(server, comes_back)
    assert [row["code"] for row in server.cell.line.ledger.rows(limit=3)] == [None, "ACK_TIMEOUT", None]


def test_a_plc_writes_its_own_signals_and_nothing_else(server: OpcUa) -> None:
    async def story(plc: Plc) -> None:
        for node in NODES:
            value = (await plc.read(node.name))[0]
            variant = ua.DataValue(ua.Variant(value, node.type))
            if node.read is None:
                await plc.node(node.name).write_value(variant)
            else:
                with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
                    await plc.node(node.name).write_value(variant)
        with pytest.raises(ua.UaStatusCodeError, match="BadTypeMismatch"):
            await plc.node("Trigger").write_value(7, ua.VariantType.Int32)

    talk(server, story)


# ---- who is let in


def _identity(folder: Path, name: str, days: int = 30) -> tuple[Path, Path]:
    """A certificate and its key."""
    key = generate_private_key()
    names = [x509.UniformResourceIdentifier(NAMESPACE if name == "server" else "urn:plc"), x509.DNSName("localhost")]
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    made = generate_self_signed_app_certificate(key, name, {"organizationName": "test"}, names, uses, days)
    certificate, private = folder / f"{name}.der", folder / f"{name}.pem"
    certificate.write_bytes(made.public_bytes(Encoding.DER))
    private.write_bytes(dump_private_key_as_pem(key))
    return certificate, private


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_with_certificates_only_a_trusted_client_gets_in_and_a_line_that_ends_stops_the_heart(
    line: Line, pictures: dict[str, Picture], tmp_path: Path
) -> None:
    certificate, key = _identity(tmp_path, "server")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    known, stranger = _identity(trusted, "known"), _identity(tmp_path, "stranger")
    known[1].rename(tmp_path / "known.pem")
    server = _serve(line, pictures, certificate=certificate, key=key, trusted=trusted)

    def secured(certificate: Path, private: Path) -> Callable[[Client], Any]:
        async def prepare(client: Client) -> None:
            client.application_uri = "urn:plc"
            await client.set_security(
                SecurityPolicyBasic256Sha256, certificate, private, server_certificate=tmp_path / "server.der"
            )

        return prepare

    async def good(plc: Plc) -> dict[str, Any]:
        return await plc.part("good")

    async def ends(plc: Plc) -> None:
        await plc.until("Heartbeat", True)
        await plc.until("Heartbeat", False)
        line.close()
        await plc.until("CurrentState", "Halted")
        await plc.write(PartId="good", Trigger=True)
        await plc.until("ResultValid", True)
        assert await plc.read("OK", "NOK", "Ready", "ErrorName") == [False, True, False, "CLOSING"]
        before = await plc.read("Heartbeat")
        await asyncio.sleep(0.3)
        assert await plc.read("Heartbeat") == before

    try:
        assert talk(server, good, secured(known[0], tmp_path / "known.pem"))["OK"]
        count = line.ledger.head()[0]
        with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
            talk(server, good, secured(*stranger))
        with pytest.raises((ua.UaError, ConnectionError, TimeoutError)):
            talk(server, good)
        assert line.ledger.head()[0] == count
        talk(server, ends, secured(known[0], tmp_path / "known.pem"))
    finally:
        server.close(0)


def test_another_address_than_loopback_takes_certificates(line: Line, tmp_path: Path) -> None:
    cell = Cell(line, lambda part: [])
    empty = tmp_path / "trusted"
    empty.mkdir()
    paths = {"certificate": tmp_path / "c.der", "key": tmp_path / "k.pem"}
    for endpoint in ("opc.tcp://0.0.0.0:4840/flawmap", "opc.tcp://192.168.0.5:4840", "opc.tcp://[::]:4840"):
        with pytest.raises(UsageError, match="others can reach it"):
            OpcUa(cell, endpoint)
    with pytest.raises(UsageError, match="takes a certificate, its key, and a folder"):
        OpcUa(cell, "opc.tcp://0.0.0.0:4840", **paths)
    with pytest.raises(UsageError, match="holds no certificate"):
        OpcUa(cell, "opc.tcp://0.0.0.0:4840", **paths, trusted=empty)
    (empty / "x.der").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"x\.der: no certificate"):
        OpcUa(cell, "opc.tcp://0.0.0.0:4840", **paths, trusted=empty)
    with pytest.raises(UsageError, match="an endpoint of OPC UA is like"):
        OpcUa(cell, "http://127.0.0.1")
    cell.close(0)


@pytest.mark.slow
def test_a_port_that_is_taken_is_an_error_that_says_so(line: Line) -> None:
    cell = Cell(line, lambda part: [])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="in use"):
            OpcUa(cell, f"opc.tcp://127.0.0.1:{taken.getsockname()[1]}")
    cell.close(0)


def test_a_certificate_that_is_over_lets_nobody_in(tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    path, _ = _identity(trusted, "old", days=0)
    (trusted / "old.pem").unlink()
    content = path.read_bytes()
    assert x509.load_der_x509_certificate(content).not_valid_after_utc <= datetime.datetime.now(datetime.UTC)
    assert _Clients(trusted).get_user(None, certificate=content) is None
    assert _Clients(trusted).get_user(None) is None


def test_every_node_stands_in_the_page() -> None:
    text = PAGE.read_text("utf-8")
    for node in NODES:
        assert f"| {node.folder} | `{node.name}` | {node.type.name} | {'read' if node.read else 'write'} |" in text
