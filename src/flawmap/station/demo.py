"""`flawmap demo station`: a line on one machine. A folder is the camera, and a PLC asks for one part after another.

Everything is on loopback and below one folder: drawn fabric, a model of it, the ledger, kept pictures, challenge parts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import random
import shutil
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from flawmap.errors import UsageError
from flawmap.images import woven
from flawmap.station.keep import Rules
from flawmap.station.line import Line
from flawmap.station.serve import Settings, serve

GOOD = 3  # so many good parts to each bad one before the camera
CHALLENGE = 3  # of good and of bad parts
ANSWER_S = 15.0


def demo(out: Path, *, port: int = 8080, every_s: float = 2.0) -> dict[str, Any]:
    """Runs until it is told to stop. UsageError: the PLC is to wait for no time at all."""
    if not every_s > 0:
        raise UsageError("--every is above 0 s")
    bundle, parts = out / "woven.flaw", out / "woven-parts"
    if not bundle.exists():
        from flawmap.run.demo import demo as fitted

        fitted(out, woven=True)
    if not parts.is_dir():
        woven.write(parts)
    before, known = out / "camera", out / "challenge"
    _lay_out(parts / "test", before, known)
    plc = importlib.util.find_spec("asyncua") is not None
    endpoint = f"opc.tcp://127.0.0.1:{_free()}/flawmap"
    settings = Settings(
        recipes={"woven": bundle},
        station="demo",
        port=port,
        ledger=str(out / "station.db"),
        keep=out / "kept",
        rules=Rules(every=20, most_gb=0.5),
        camera=f"replay:{before}",
        challenge=known,
        opcua=endpoint if plc else "",
        every=None if plc else every_s,
    )
    ended = threading.Event()

    def started(line: Line) -> None:
        _say(f"parts come every {every_s:g} s; the ledger is {out / 'station.db'}. Stop with Ctrl-C")
        if plc:
            _say(f"a PLC triggers over OPC UA at {endpoint}")
            threading.Thread(target=lambda: asyncio.run(_plc(endpoint, every_s, ended)), daemon=True).start()
        else:
            _say('no PLC: pip install "flawmap[plc]" brings one; the camera runs by itself')

    try:
        serve(settings, started)
    finally:
        ended.set()
    return {"ledger": str(out / "station.db"), "check": f"flawmap ledger verify {out / 'station.db'}"}


def _lay_out(test: Path, before: Path, known: Path) -> None:
    """Pictures in the order in which the camera sees them, and the parts of the challenge."""
    kinds = {folder.name: sorted(folder.glob("*.png")) for folder in sorted(test.iterdir()) if folder.is_dir()}
    good, bad = kinds.pop("good"), [path for paths in zip(*kinds.values(), strict=False) for path in paths]
    for kind, paths in (("good", good[:CHALLENGE]), ("bad", bad[:CHALLENGE])):
        (known / kind).mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copy(path, known / kind / f"{path.parent.name}-{path.name}")
    left, shown = good[CHALLENGE:], []
    random.Random(0).shuffle(left)
    for number, path in enumerate(bad[CHALLENGE:]):
        shown += [left[(GOOD * number + step) % len(left)] for step in range(GOOD)] + [path]
    before.mkdir(exist_ok=True)
    for number, path in enumerate(shown):
        shutil.copy(path, before / f"{number:04}-{path.parent.name}.png")


async def _plc(endpoint: str, every_s: float, ended: threading.Event) -> None:
    """What a PLC does: waits for Ready, gives a PartId, raises Trigger, waits for ResultValid, takes it."""
    from asyncua.client.client import Client

    logging.getLogger("asyncua").setLevel(logging.ERROR)
    number = failed = 0
    while not ended.is_set():
        try:
            async with Client(endpoint) as client:
                space = await client.get_namespace_index("urn:flawmap:station")
                node = {name: client.get_node(f"ns={space};s={name}") for name in _NODES}
                while not ended.is_set():
                    number += 1
                    await _one(node, f"demo-{number:05}")
                    failed = 0
                    await asyncio.sleep(every_s)
        except Exception as error:  # the station is gone for a moment, or stops: a PLC goes on trying
            failed += 1
            if failed > 1 and not ended.is_set():
                _say(f"PLC: {type(error).__name__}: {error}")
            await asyncio.sleep(1.0)


_NODES = ("Ready", "PartId", "Trigger", "ResultValid", "Ack")


async def _one(node: dict[str, Any], part: str) -> None:
    await _until(node["Ready"], True)
    await node["PartId"].write_value(part)
    await node["Trigger"].write_value(True)
    await _until(node["ResultValid"], True)
    await node["Trigger"].write_value(False)
    await node["Ack"].write_value(True)
    await _until(node["ResultValid"], False)
    await node["Ack"].write_value(False)


async def _until(node: Any, value: bool) -> None:
    async with asyncio.timeout(ANSWER_S):
        while await node.read_value() is not value:
            await asyncio.sleep(0.02)


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _say(text: str) -> None:
    print(f"flawmap: {text}", file=sys.stderr, flush=True)
