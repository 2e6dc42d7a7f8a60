"""The handshake as an OPC UA server. Names follow OPC 40100-1 (machine vision); it claims no conformance.

On this machine's loopback it is open. Elsewhere it takes certificates: Basic256Sha256, signed and encrypted, and only
clients whose certificates lie in a folder. Data are written before ResultValid goes on, and after it has gone off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flawmap.errors import MissingExtra, UsageError
from flawmap.station.access import loopback
from flawmap.station.beside import Beside
from flawmap.station.cell import Cell
from flawmap.station.handshake import Signals

try:
    from asyncua import ua
    from asyncua.common.callback import CallbackType
    from asyncua.crypto.permission_rules import User, UserRole
    from asyncua.server.server import Server
    from asyncua.ua.status_codes import StatusCodes
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
except ImportError as error:
    raise MissingExtra("asyncua", "plc", "OPC UA") from error

ENDPOINT = "opc.tcp://127.0.0.1:4840/flawmap"
NAMESPACE = "urn:flawmap:station"
_LOG = logging.getLogger("flawmap.station")
_BOOL, _TEXT, _REAL = ua.VariantType.Boolean, ua.VariantType.String, ua.VariantType.Double
_WORD, _LONG = ua.VariantType.UInt16, ua.VariantType.UInt32
_BAD_STATE: Any = StatusCodes.BadInvalidState


@dataclass(frozen=True)
class Node:
    """A variable: its string NodeId is its name; `read` takes its value from the signals, None: the PLC writes it."""

    folder: str
    name: str
    type: ua.VariantType
    read: Callable[[Signals], Any] | None = None


# In the order in which they are written while ResultValid is off: what a result says comes before that it is one.
NODES = (
    Node("ResultManagement", "ResultPartId", _TEXT, lambda s: s.answer.part),
    Node("ResultManagement", "Verdict", _TEXT, lambda s: s.answer.verdict),
    Node("ResultManagement", "Reason", _TEXT, lambda s: s.answer.reason),
    Node("ResultManagement", "Score", _REAL, lambda s: s.answer.score),
    Node("ResultManagement", "Threshold", _REAL, lambda s: s.answer.threshold),
    Node("ResultManagement", "Row", _LONG, lambda s: s.answer.row),
    Node("ResultManagement", "RowHash", _TEXT, lambda s: s.answer.hash),
    Node("Signals", "ErrorCode", _WORD, lambda s: int(s.code)),
    Node("Signals", "ErrorName", _TEXT, lambda s: s.code.name),
    Node("Signals", "JobId", _LONG, lambda s: s.job),
    Node("Signals", "OK", _BOOL, lambda s: s.ok),
    Node("Signals", "NOK", _BOOL, lambda s: s.nok),
    Node("Signals", "Review", _BOOL, lambda s: s.review),
    Node("Signals", "ResultValid", _BOOL, lambda s: s.result_valid),
    Node("Signals", "Busy", _BOOL, lambda s: s.busy),
    Node("Signals", "Ready", _BOOL, lambda s: s.ready),
    Node("Signals", "Heartbeat", _BOOL, lambda s: s.heartbeat),
    Node("VisionStateMachine", "CurrentState", _TEXT, lambda s: s.state.words),
    Node("VisionStateMachine", "StateNumber", _WORD, lambda s: s.state.number),
    Node("Signals", "PartId", _TEXT),
    Node("Signals", "Trigger", _BOOL),
    Node("Signals", "Ack", _BOOL),
)
FOLDERS = ("VisionStateMachine", "Signals", "ResultManagement")
_EMPTY = {_BOOL: False, _TEXT: "", _REAL: 0.0, _WORD: 0, _LONG: 0}


class OpcUa:
    """Runs beside the service until it is closed. The cell is its own: one PLC, one handshake.

    endpoint          where it listens
    certificate, key  of this server, PEM or DER; with both, only secured connections are taken, on loopback as well
    trusted           a folder of the certificates of the clients that are let in, PEM or DER

    UsageError: another address than loopback without all three of them, or none of a client in the folder.
    """

    def __init__(
        self,
        cell: Cell,
        endpoint: str = ENDPOINT,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        trusted: Path | None = None,
    ) -> None:
        given = [path for path in (certificate, key, trusted) if path is not None]
        host = urlsplit(endpoint).hostname or ""
        if not endpoint.startswith("opc.tcp://") or not host:
            raise UsageError(f"an endpoint of OPC UA is like {ENDPOINT}, not {endpoint!r}")
        if given and len(given) < 3:
            raise UsageError("a secured OPC UA server takes a certificate, its key, and a folder of trusted clients")
        if not given and not loopback(host):
            raise UsageError(f"{endpoint}: others can reach it: give a certificate, its key and trusted clients")
        self.cell, self.endpoint = cell, endpoint
        self._part = ""
        self._written: dict[str, Any] = {}
        self._clients = _Clients(trusted) if trusted is not None else None
        self._beside = Beside("opcua")
        try:
            self._beside.run(self._open(certificate, key))
        except OSError as error:
            self._beside.close()
            raise UsageError(f"{endpoint}: {error.strerror or error}") from error
        except BaseException:
            self._beside.close()
            raise
        cell.listen(lambda signals: self._beside.loop.call_soon_threadsafe(self._changes.put_nowait, signals))
        self._beside.loop.call_soon_threadsafe(self._changes.put_nowait, cell.signals)

    def close(self, wait_s: float = 2.0) -> None:
        self.cell.close(wait_s)
        self._beside.run(self._server.stop())
        self._beside.close()

    async def _open(self, certificate: Path | None, key: Path | None) -> None:
        self._changes: asyncio.Queue[Signals] = asyncio.Queue()
        self._server = server = Server(user_manager=self._clients)  # pyright: ignore[reportArgumentType]
        await server.init()
        server.set_endpoint(self.endpoint)
        server.set_server_name("flawmap station")
        await server.set_application_uri(NAMESPACE)
        server.set_identity_tokens([ua.AnonymousIdentityToken])  # who a client is, its certificate says
        if certificate and key:
            await server.load_certificate(certificate)
            await server.load_private_key(key)
            server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        else:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        await self._nodes(server)
        server.subscribe_server_callback(CallbackType.PostWrite, self._wrote)
        await server.start()
        self._publisher = asyncio.create_task(self._publish())

    async def _nodes(self, server: Server) -> None:
        space = await server.register_namespace(NAMESPACE)
        self._ids = {node.name: _id(node.name, space) for node in NODES}
        self._names = {node_id: name for name, node_id in self._ids.items()}
        system = await server.nodes.objects.add_object(_id("VisionSystem", space), f"{space}:VisionSystem")
        folders = {name: await system.add_object(_id(name, space), f"{space}:{name}") for name in FOLDERS}
        for node in NODES:
            value = ua.Variant(_EMPTY[node.type], node.type)
            made = await folders[node.folder].add_variable(self._ids[node.name], f"{space}:{node.name}", value)
            if node.read is None:
                await made.set_writable()
        method = _id("StartSingleJob", space)
        named = f"{space}:StartSingleJob"
        await folders["VisionStateMachine"].add_method(method, named, self._start_single_job, [_TEXT], [_LONG])

    async def _start_single_job(self, parent: ua.NodeId, part: Any) -> Any:
        """A trigger of no length: its result is taken with Ack. BadInvalidState: it is an overrun, or not ready."""
        if self.cell.handshake.pulse(str(part.Value or "")):
            return [ua.Variant(self.cell.signals.job, _LONG)]
        return ua.StatusCode(_BAD_STATE)

    def _wrote(self, event: Any, _: Any) -> None:
        """What a client has written, in the order of its request."""
        if not event.is_external:
            return
        for wrote, status in zip(event.request_params.NodesToWrite, event.response_params, strict=True):
            name = self._names.get(wrote.NodeId)
            if name is None or not status.is_good():
                continue
            value = wrote.Value.Value.Value if wrote.Value.Value else None
            if name == "PartId":
                self._part = str(value or "")
            elif name == "Trigger":
                self.cell.handshake.trigger(bool(value), self._part)
            elif name == "Ack":
                self.cell.handshake.ack(bool(value))

    async def _publish(self) -> None:
        while True:
            signals = await self._changes.get()
            self.cell.peers = len(self._server.bserver.clients) if self._server.bserver else 0
            try:
                for node in NODES if signals.result_valid else reversed(NODES):
                    if node.read is not None:
                        await self._write(node, node.read(signals))
            except Exception:  # one value that cannot be written must not silence the others that follow
                _LOG.exception("OPC UA")

    async def _write(self, node: Node, value: Any) -> None:
        if node.name in self._written and self._written[node.name] == value:
            return
        self._written[node.name] = value
        moment: Any = datetime.now(UTC)
        said = ua.DataValue(ua.Variant(value, node.type), SourceTimestamp=moment)
        await self._server.write_attribute_value(self._ids[node.name], said)


def _id(name: Any, space: Any) -> ua.NodeId:
    return ua.NodeId(name, space)


class _Clients:
    """Lets in whose channel was opened with one of the certificates of a folder, while that is valid."""

    def __init__(self, folder: Path) -> None:
        self._known: dict[bytes, x509.Certificate] = {}
        for path in sorted(folder.glob("*")):
            content = path.read_bytes()
            load = x509.load_pem_x509_certificate if b"-----BEGIN" in content else x509.load_der_x509_certificate
            try:
                found = load(content)
            except ValueError as error:
                raise UsageError(f"{path}: no certificate of X.509: {error}") from error
            self._known[found.public_bytes(Encoding.DER)] = found
        if not self._known:
            raise UsageError(f"{folder}: holds no certificate: put those of the clients there that may connect")

    def get_user(
        self, iserver: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        if isinstance(certificate, x509.Certificate):
            certificate = certificate.public_bytes(Encoding.DER)
        found = self._known.get(certificate or b"")
        if found is None or not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
            _LOG.warning("OPC UA: a client whose certificate is not trusted, or not valid now, was refused")
            return None
        return User(role=UserRole.User)
