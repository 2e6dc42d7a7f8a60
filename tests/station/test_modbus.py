"""The Modbus TCP server against a client of pymodbus on loopback."""

from __future__ import annotations

import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pymodbus", reason="pymodbus is not installed: pip install flawmap[plc]")
from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from flawmap.errors import UsageError
from flawmap.station.cell import Cell
from flawmap.station.handshake import Answer, Code, Signals, State
from flawmap.station.line import Line, Picture
from flawmap.station.modbus import COILS, INPUTS, LENGTH, PART_WORDS, REGISTERS, Modbus, text, words

PAGE = Path(__file__).parents[2] / "docs" / "plc.md"
AT = {name: (address, count) for address, count, name in REGISTERS}


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Plc:
    """What a PLC does, over the network."""

    def __init__(self, port: int) -> None:
        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=3)
        assert self.client.connect()

    def inputs(self) -> dict[str, bool]:
        return dict(zip(INPUTS, self.client.read_discrete_inputs(0, count=len(INPUTS)).bits, strict=False))

    def registers(self) -> dict[str, Any]:
        """All of one moment."""
        raw = self.client.read_input_registers(0, count=LENGTH).registers
        found = {name: raw[address : address + count] for name, (address, count) in AT.items()}
        values = {name: part[0] if len(part) == 1 else part for name, part in found.items()}
        for name, code in (("JobId", "I"), ("Row", "I"), ("Score", "f"), ("Threshold", "f")):
            values[name] = struct.unpack(f">{code}", struct.pack(">2H", *found[name]))[0]
        values["ResultPartId"] = text(found["ResultPartId"])
        bits = {name: bool(values["Status"] >> bit & 1) for bit, name in enumerate(INPUTS)}
        return values | bits

    def name(self, part: str) -> None:
        raw = part.encode("ascii").ljust(2 * PART_WORDS, b"\0")
        assert not self.client.write_registers(0, list(struct.unpack(f">{PART_WORDS}H", raw))).isError()

    def trigger(self, on: bool) -> None:
        assert not self.client.write_coil(0, on).isError()

    def ack(self, on: bool) -> None:
        assert not self.client.write_coil(1, on).isError()

    def until(self, name: str, value: Any, seconds: float = 5.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (found := self.registers())[name] != value:
            assert time.monotonic() < end, f"{name} never became {value}: {found}"
            time.sleep(0.005)
        return found

    def part(self, part: str, seconds: float = 5.0) -> dict[str, Any]:
        """The whole handshake of one part."""
        self.until("Ready", True)
        self.name(part)
        self.trigger(True)
        found = self.until("ResultValid", True, seconds)
        self.trigger(False)
        self.until("ResultValid", False)
        return found


@pytest.fixture
def served(line: Line, pictures: dict[str, Picture]) -> Iterator[Callable[..., tuple[Modbus, Plc]]]:
    """A server, and a PLC that is connected to it; the camera gives the picture that the PartId begins with."""
    made: list[tuple[Modbus, Plc]] = []

    def serve(grab: Any = None, **times: float) -> tuple[Modbus, Plc]:
        cell = Cell(line, grab or (lambda part: [pictures[part.split("-")[0]]]), source="modbus", **times)
        server = Modbus(cell, port=_port())
        made.append((server, Plc(server.port)))
        return made[-1]

    yield serve
    for server, plc in made:
        plc.client.close()
        server.close(0)


def test_parts_are_ok_and_nok_as_their_rows_say(line: Line, served: Any) -> None:
    _, plc = served()
    for part, ok in (("good", True), ("bad", False), ("good-2", True), ("broken", False)):
        found = plc.part(part)
        row = line.ledger.get(found["Row"])
        assert row is not None
        assert (found["OK"], found["NOK"], found["Ready"], found["Busy"]) == (ok, not ok, False, False)
        assert (found["ResultPartId"], row["part"], row["source"]) == (part, part, "modbus")
        assert Code(found["ErrorCode"]).name == (row["code"] or "NONE")
        if row["kind"] == "verdict":
            assert found["Score"] == pytest.approx(row["score"], rel=1e-6)
            assert found["Threshold"] == pytest.approx(row["threshold"], rel=1e-6)
    found = plc.until("Ready", True)
    assert (found["State"], found["Version"], found["JobId"]) == (State.READY.number, 1, 4)


def test_discrete_inputs_and_the_status_word_say_the_same(served: Any) -> None:
    _, plc = served(heartbeat_s=100.0)
    plc.until("Ready", True)
    plc.name("good")
    plc.trigger(True)
    found = plc.until("ResultValid", True)
    assert plc.inputs() == {name: found[name] for name in INPUTS}
    assert plc.inputs() == dict.fromkeys(INPUTS, False) | {"ResultValid": True, "OK": True}


def test_a_trigger_while_busy_makes_the_part_nok(served: Any, pictures: dict[str, Picture]) -> None:
    gate = threading.Event()

    def slow(part: str) -> list[Picture]:
        gate.wait(5)
        return [pictures["good"]]

    _, plc = served(slow)
    plc.until("Ready", True)
    plc.name("one")
    plc.trigger(True)
    plc.until("Busy", True)
    plc.trigger(False)
    plc.trigger(True)
    found = plc.until("ResultValid", True)
    assert (found["OK"], found["NOK"], Code(found["ErrorCode"])) == (False, True, Code.OVERRUN)
    assert found["ResultPartId"] == "one"
    plc.trigger(False)
    assert plc.until("ErrorCode", Code.BUSY)["Ready"] is False
    gate.set()
    plc.until("Ready", True)


def test_a_camera_that_fails_is_nok_with_its_code(line: Line, served: Any) -> None:
    def broken(part: str) -> list[Picture]:
        raise OSError("cable")

    _, plc = served(broken)
    found = plc.part("a")
    assert (found["NOK"], Code(found["ErrorCode"])) == (True, Code.NO_PICTURE)
    row = line.ledger.get(found["Row"])
    assert row is not None
    assert "cable" in row["reason"]


def test_a_plc_that_goes_away_gets_its_result_withdrawn_and_finds_its_way_back(served: Any, until: Any) -> None:
    server, plc = served(ack_s=0.2)
    plc.until("Ready", True)
    plc.name("good")
    plc.trigger(True)
    plc.until("OK", True)
    plc.client.close()
    until(lambda: server.cell.peers == 0)
    until(lambda: server.cell.line.lamps["plc"] == ("bad", "modbus: not connected, Error, ACK_TIMEOUT"))
    again = Plc(server.port)
    found = again.until("ResultValid", True)
    assert (found["OK"], found["NOK"], Code(found["ErrorCode"])) == (False, True, Code.ACK_TIMEOUT)
    again.ack(True)
    again.trigger(False)
    again.ack(False)
    assert again.part("good")["OK"]
    again.client.close()


def test_a_ledger_that_is_locked_is_nok_and_ready_comes_back_with_it(line: Line, served: Any) -> None:
    _, plc = served()
    plc.until("Ready", True)
    line.ledger.engine.dispose()
    with line.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")  # else the test waits 5 s; the pool keeps it
    lock = sqlite3.connect(line.ledger.engine.url.database or "", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    found = plc.part("good")
    assert (found["OK"], found["NOK"], Code(found["ErrorCode"]), found["Row"]) == (False, True, Code.LEDGER, 0)
    lock.execute("ROLLBACK")
    lock.close()
    plc.until("Ready", True, 12)
    assert plc.part("good")["OK"]


def test_the_heart_beats_and_a_line_that_ends_stops_it(line: Line, served: Any) -> None:
    _, plc = served(heartbeat_s=0.05)
    plc.until("Heartbeat", True)
    plc.until("Heartbeat", False)
    line.close()
    plc.until("State", State.HALTED.number)
    still = plc.inputs()["Heartbeat"]
    time.sleep(0.3)
    assert plc.inputs()["Heartbeat"] is still


def test_what_is_not_in_the_map_cannot_be_written(served: Any) -> None:
    _, plc = served()
    assert plc.client.write_coil(2, True).isError()
    assert plc.client.write_coils(0, [True] * 16).isError()
    assert plc.client.write_register(PART_WORDS, 1).isError()
    assert plc.client.read_input_registers(LENGTH, count=1).isError()
    assert not plc.inputs()["Busy"]


def test_words_hold_what_does_not_fit_them() -> None:
    signals = Signals(answer=Answer("é" * 100, score=1e300, row=2**40 + 5), job=2**32 + 7)
    raw = words(signals)
    assert len(raw) == LENGTH
    assert raw[4:8] == [0, 7, 0, 5]
    assert struct.unpack(">f", struct.pack(">2H", *raw[8:10]))[0] == float("inf")
    assert text(raw[12:]) == "?" * 64
    assert text([0x4120, 0x2000]) == "A"


def test_another_address_than_loopback_takes_the_plcs_that_may_connect(line: Line) -> None:
    cell = Cell(line, lambda part: [])
    with pytest.raises(UsageError, match="knows no password"):
        Modbus(cell, "0.0.0.0", _port())
    with pytest.raises(UsageError, match="named by its IP address"):
        Modbus(cell, "0.0.0.0", _port(), plcs=["plc.local"])
    server = Modbus(cell, "127.0.0.1", _port())
    with pytest.raises(UsageError, match="cannot listen"):
        Modbus(cell, "127.0.0.1", server.port)
    server.close(0)


def _own_address() -> str | None:
    """Of this machine, besides loopback. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        try:
            found.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return found.getsockname()[0]


@pytest.mark.parametrize("named", [True, False])
def test_over_the_network_only_a_plc_that_is_named_gets_in(line: Line, named: bool) -> None:
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    cell = Cell(line, lambda part: [])
    server = Modbus(cell, address, _port(), plcs=[address if named else "192.0.2.7"])
    client = ModbusTcpClient(address, port=server.port, timeout=1, retries=0)
    client.connect()
    try:
        if named:
            assert client.read_discrete_inputs(0, count=1).bits[0] in (True, False)
            assert cell.peers == 1
        else:
            with pytest.raises((ModbusException, OSError)):
                client.read_discrete_inputs(0, count=1)
            assert cell.peers == 0
    finally:
        client.close()
        server.close(0)


def test_who_may_connect_is_told_by_address(line: Line) -> None:
    cell = Cell(line, lambda part: [])
    server = Modbus(cell, "127.0.0.1", _port(), plcs=["192.0.2.7", "2001:db8::1"])
    asked = ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "127.0.0.1", "::1", "192.0.2.8", "2001:db8::2")
    assert [server._allows(address) for address in asked] == [True] * 5 + [False] * 2
    server.close(0)


def test_every_register_and_coil_stands_in_the_page() -> None:
    page = PAGE.read_text("utf-8")
    for address, name in enumerate(COILS):
        assert f"| coil {address} | `{name}` |" in page
    for address, name in enumerate(INPUTS):
        assert f"| discrete input {address} | `{name}` |" in page
    for address, count, name in REGISTERS:
        where = f"{address}" if count == 1 else f"{address} to {address + count - 1}"
        assert f"| input register {where} | `{name}` |" in page
    assert f"| holding register 0 to {PART_WORDS - 1} | `PartId` |" in page
