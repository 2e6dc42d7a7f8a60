"""Round trips of the handshake: from the write of Trigger to the result in the PLC's hands, on loopback.

python benchmarks/plc.py [--parts 300]

A station with a ledger on the disk (durability strict), PaDiM on Lite0, 256 px; a PLC in a process of its own that asks
for ResultValid, and waits 2 ms before it asks again. What the line itself took is the row's `latency_ms`: waiting for
a judge, decoding and the graph, not the writing of the row.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from paired import CATEGORY, bundle, made_by, section
from results import DATA, HERE

from flawmap.station.cell import Cell
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipes

PAGE = HERE.parent / "docs" / "plc.md"
WARM = 10
ASKS_S = 0.002
Trip = tuple[float, int]  # seconds, row


def over_opcua(endpoint: str, parts: int, results: Any) -> None:
    """The PLC, with asyncua."""
    from asyncua import Client, ua

    async def run() -> list[Trip]:
        async with Client(endpoint) as client:
            space = await client.get_namespace_index("urn:flawmap:station")
            names = ("PartId", "Trigger", "ResultValid", "OK", "NOK", "Row", "Ready")
            node = {name: client.get_node(ua.NodeId(name, space)) for name in names}
            read = [node[name] for name in ("ResultValid", "OK", "NOK", "Row", "Ready")]
            trips = []
            for number in range(parts):
                while not (await client.read_values(read))[4]:
                    await asyncio.sleep(0.001)
                begun = time.perf_counter()
                await client.write_values([node["PartId"], node["Trigger"]], [f"part-{number}", True])
                while not (found := await client.read_values(read))[0]:
                    await asyncio.sleep(ASKS_S)
                trips.append((time.perf_counter() - begun, found[3]))
                await node["Trigger"].write_value(False)
            return trips

    results.put(asyncio.run(run()))


def over_modbus(port: int, parts: int, results: Any) -> None:
    """The PLC, with pymodbus."""
    from pymodbus.client import ModbusTcpClient

    from flawmap.station.modbus import LENGTH, PART_WORDS

    client = ModbusTcpClient("127.0.0.1", port=port)
    client.connect()

    def look() -> tuple[int, int]:
        words = client.read_input_registers(0, count=LENGTH).registers
        return words[0], words[6] << 16 | words[7]

    trips = []
    for number in range(parts):
        while not look()[0] & 1:
            time.sleep(0.001)
        raw = f"part-{number}".encode().ljust(2 * PART_WORDS, b"\0")
        begun = time.perf_counter()
        client.write_registers(0, list(struct.unpack(f">{PART_WORDS}H", raw)))
        client.write_coil(0, True)
        while not (found := look())[0] & 4:
            time.sleep(ASKS_S)
        trips.append((time.perf_counter() - begun, found[1]))
        client.write_coil(0, False)
    client.close()
    results.put(trips)


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def measured(plc: Any, where: Any, parts: int) -> list[Trip]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=plc, args=(where, parts + WARM, results))
    process.start()
    trips = results.get(timeout=170)
    process.join()
    return trips[WARM:]


def row(name: str, line: Line, trips: list[Trip]) -> str:
    took = np.array([seconds * 1e3 for seconds, _ in trips])
    rows = [line.ledger.get(number) for _, number in trips]
    judged = np.array([found["latency_ms"] for found in rows if found is not None and found["kind"] == "verdict"])
    assert len(judged) == len(took), "not every part got a verdict"
    cells = [f"{np.percentile(values, p):.1f}" for values in (took, judged, took - judged) for p in (50, 99)]
    return f"| {name} | {len(took)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, default=300)
    args = parser.parse_args()
    from flawmap.station.modbus import Modbus
    from flawmap.station.opcua import OpcUa

    paths = sorted((DATA / CATEGORY / "test" / "good").glob("*.png"))
    pictures = [Picture(path.name, path.read_bytes()) for path in paths]

    def grab(part: str) -> list[Picture]:
        return [pictures[int(part.split("-")[1]) % len(pictures)]]

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Recipes({"bottle": bundle("padim")}), Ledger(Path(folder) / "line.db"))
        opcua = OpcUa(Cell(line, grab, source="opcua"), f"opc.tcp://127.0.0.1:{port()}/flawmap")
        lines.append(row("OPC UA", line, measured(over_opcua, opcua.endpoint, args.parts)))
        opcua.close(0)
        modbus = Modbus(Cell(line, grab, source="modbus"), port=port())
        lines.append(row("Modbus TCP", line, measured(over_modbus, modbus.port, args.parts)))
        modbus.close(0)
        line.close()
    text = [
        f"{made_by('plc.py')} Milliseconds from the write of Trigger until the PLC has read the result; "
        "pictures of MVTec bottle (900 x 900 PNG), PaDiM on Lite0 at 256 px, every row on the disk before its answer. "
        f"The PLC is a process on the same machine that asks, and waits {ASKS_S * 1e3:g} ms before it asks again. "
        "Beside the line are the loopback, the server, the row's writing, the camera (a list in memory) and the PLC's "
        "waiting; its p99 is that of the differences. Other work on the machine makes all of it longer.",
        "",
        "| | parts | round trip p50 | p99 | of it the line p50 | p99 | beside it p50 | p99 |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
    ]
    section("Round trips", text, PAGE)


if __name__ == "__main__":
    main()
