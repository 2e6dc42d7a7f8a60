"""The handshake as a Modbus TCP server: coils to write, discrete inputs and input registers to read.

Modbus knows no password and no encryption. On another address than loopback only the PLCs that are named are let in;
keep it on a network of its own. The status word lies beside the data in the input registers: one read gets all of one
moment.
"""

from __future__ import annotations

import ipaddress
import logging
import struct
from collections.abc import Sequence
from typing import Any

from flawmap.errors import MissingExtra, UsageError
from flawmap.station.access import loopback
from flawmap.station.beside import Beside
from flawmap.station.cell import Cell
from flawmap.station.handshake import Signals

try:
    from pymodbus.constants import ExcCodes
    from pymodbus.server import ModbusTcpServer
    from pymodbus.server.requesthandler import ServerRequestHandler
    from pymodbus.simulator import DataType, SimData, SimDevice
except ImportError as error:
    raise MissingExtra("pymodbus", "plc", "Modbus") from error

VERSION = 1  # of this map
COILS = ("Trigger", "Ack")
INPUTS = ("Ready", "Busy", "ResultValid", "OK", "NOK", "Review", "Heartbeat")
PART_WORDS = 32  # 64 characters of ASCII, two a register, the first one in the high byte
# Input registers: address, registers, name. Numbers of 32 bits have their high word first.
REGISTERS = (
    (0, 1, "Status"),
    (1, 1, "ErrorCode"),
    (2, 1, "State"),
    (3, 1, "Version"),
    (4, 2, "JobId"),
    (6, 2, "Row"),
    (8, 2, "Score"),
    (10, 2, "Threshold"),
    (12, PART_WORDS, "ResultPartId"),
)
LENGTH = 12 + PART_WORDS
_LOG = logging.getLogger("flawmap.station")
_READS_INPUTS, _READS_REGISTERS = 2, 4
_WRITES_COILS, _WRITES_REGISTERS = (5, 15), (6, 16, 22, 23)


class Modbus:
    """Runs beside the service until it is closed. The cell is its own: one PLC, one handshake.

    plcs  addresses that may connect, besides loopback

    UsageError: another address than loopback without `plcs`, or one that cannot be listened on.
    """

    def __init__(self, cell: Cell, host: str = "127.0.0.1", port: int = 502, *, plcs: Sequence[str] = ()) -> None:
        try:
            self.plcs = {ipaddress.ip_address(plc) for plc in plcs}
        except ValueError as error:
            raise UsageError(f"a PLC is named by its IP address: {error}") from error
        if not loopback(host) and not self.plcs:
            raise UsageError(
                f"Modbus on {host}: others can reach it, and it knows no password: name the PLCs' addresses"
            )
        self.cell, self.host, self.port = cell, host, port
        self._part = ""
        self._beside = Beside("modbus")
        try:
            self._beside.run(self._open())
        except (OSError, RuntimeError) as error:
            self._beside.close()
            raise UsageError(f"Modbus cannot listen on {host}, port {port}: {error}") from error

    def close(self, wait_s: float = 2.0) -> None:
        self.cell.close(wait_s)
        self._beside.run(self._server.shutdown())
        self._beside.close()

    async def _open(self) -> None:
        blocks = (
            [SimData(0, values=[False] * 16, datatype=DataType.BITS)],
            [SimData(0, values=[False] * 16, datatype=DataType.BITS)],
            [SimData(0, count=PART_WORDS, datatype=DataType.REGISTERS)],
            [SimData(0, count=LENGTH, datatype=DataType.REGISTERS)],
        )
        device = SimDevice(0, simdata=blocks, action=self._asked)
        self._server = _Server(device, address=(self.host, self.port), trace_connect=self._connected)
        self._server.allows = self._allows
        await self._server.serve_forever(background=True)

    def _allows(self, address: str) -> bool:
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None) or found
        return mapped.is_loopback or mapped in self.plcs

    def _connected(self, on: bool) -> None:
        self.cell.peers = max(0, self.cell.peers + (1 if on else -1))

    async def _asked(
        self, function: int, start: int, address: int, count: int, registers: list[int], values: Any
    ) -> ExcCodes | None:
        """Is called before a request is answered: fills in what is read, and takes what is written."""
        if function == _READS_INPUTS:
            registers[0] = status(self.cell.signals)
        elif function == _READS_REGISTERS:
            registers[:LENGTH] = words(self.cell.signals)
        elif function in _WRITES_REGISTERS and values:
            after = list(registers[:PART_WORDS])
            after[address : address + len(values)] = values
            self._part = text(after)
        elif function in _WRITES_COILS and values:
            if address + len(values) > len(COILS):
                return ExcCodes.ILLEGAL_ADDRESS
            for name, value in zip(COILS[address:], values, strict=False):
                if name == "Trigger":
                    self.cell.handshake.trigger(bool(value), self._part)
                else:
                    self.cell.handshake.ack(bool(value))
        return None


class _Server(ModbusTcpServer):
    allows: Any = None

    def callback_new_connection(self) -> ServerRequestHandler:
        return _Handler(self, self.trace_packet, self.trace_pdu, self.trace_connect)


class _Handler(ServerRequestHandler):
    """Closes the connection of who is not let in before a byte of it is read."""

    refused = False

    def connection_made(self, transport: Any) -> None:
        address = transport.get_extra_info("peername")[0]
        if not self.server.allows(address):
            _LOG.warning("Modbus: %s is none of the PLCs that may connect", address)
            self.refused = True
            self.server.active_connections.pop(self.unique_id, None)
            transport.abort()
            return
        super().connection_made(transport)

    def connection_lost(self, reason: Exception | None) -> None:
        if not self.refused:
            super().connection_lost(reason)


def status(signals: Signals) -> int:
    """The discrete inputs as bits of one word, the first one in bit 0."""
    on = (signals.ready, signals.busy, signals.result_valid, signals.ok, signals.nok, signals.review, signals.heartbeat)
    return sum(value << bit for bit, value in enumerate(on))


def words(signals: Signals) -> list[int]:
    """All input registers."""
    answer = signals.answer
    head = (status(signals), int(signals.code), signals.state.number, VERSION)
    packed = struct.pack(">4H2I", *head, signals.job & 0xFFFFFFFF, answer.row & 0xFFFFFFFF)
    packed += _real(answer.score) + _real(answer.threshold)
    packed += answer.part.encode("ascii", "replace")[: 2 * PART_WORDS].ljust(2 * PART_WORDS, b"\0")
    return list(struct.unpack(f">{LENGTH}H", packed))


def text(registers: Sequence[int]) -> str:
    """ASCII in registers, up to the first NUL; blanks around it are left out."""
    raw = struct.pack(f">{len(registers)}H", *registers)
    return raw.split(b"\0")[0].decode("ascii", "backslashreplace").strip()


def _real(value: float) -> bytes:
    try:
        return struct.pack(">f", value)
    except OverflowError:
        return struct.pack(">f", float("inf") if value > 0 else float("-inf"))
