"""Events as they come, for pages and programs that listen: server-sent events, and the station's state in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse

from flawmap.errors import Unavailable
from flawmap.station.ledger import Row
from flawmap.station.line import Line

BEAT_S = 2.0  # between two states that are sent without being asked
WAITING = 200  # events of a listener that does not read; then it is sent away, and comes again
MOST = 50  # streams at once; more are refused, so that all else is still answered


class Streams:
    """The open streams of a line's events. Unavailable: there are too many."""

    def __init__(self, line: Line, ending: Callable[[], bool]) -> None:
        self.line, self.ending, self.open = line, ending, 0

    def answer(self) -> StreamingResponse:
        if self.open >= MOST:
            raise Unavailable(f"{MOST} streams of events are open already", "STREAMS", 5)
        return _Stream(self)


class _Stream(StreamingResponse):
    """Is counted until it has ended, however it does."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(_events(streams.line, streams.ending), media_type="text/event-stream")
        self.streams = streams
        streams.open += 1

    async def __call__(self, *asgi: Any) -> None:
        try:
            await super().__call__(*asgi)
        finally:
            self.streams.open -= 1


def state(line: Line) -> dict[str, Any]:
    times = sorted(line.times_ms)
    drift = line.drift
    return {
        "station": line.ledger.station,
        "ready": line.ready,
        "blocked": line.blocked,
        "fault": line.fault,
        "recipe": line.recipes.active.name,
        "inside": line.inside,
        "waiting": line.waiting,
        "counts": dict(line.counts),
        "p50_ms": times[len(times) // 2] if times else None,
        "p99_ms": times[min(len(times) - 1, int(len(times) * 0.99))] if times else None,
        "drift": {"alarm": bool(drift and drift.alarm_at), "signal": bool(drift and drift.signal_at)},
        "lamps": {name: list(lamp) for name, lamp in dict(line.lamps).items()},
    }


async def _events(line: Line, ending: Callable[[], bool]) -> AsyncIterator[str]:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]](WAITING)
    late = False

    def put(what: str, row: Row) -> None:
        nonlocal late
        if waiting.full():
            late = True
        else:
            waiting.put_nowait((what, row))

    end = line.listen(lambda what, row: _unless_closed(loop, put, what, row))
    try:
        yield _event("status", state(line))
        told = loop.time()
        while not (late or ending()):
            try:
                what, row = await asyncio.wait_for(waiting.get(), 0.25)
                yield _event(what, row)
            except TimeoutError:
                pass
            if loop.time() - told >= BEAT_S:
                told = loop.time()
                yield _event("status", state(line))
    finally:
        end()


def _unless_closed(loop: asyncio.AbstractEventLoop, put: Callable[..., None], what: str, row: Row) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(put, what, row)


def _event(what: str, content: Any) -> str:
    return f"event: {what}\ndata: {json.dumps(content)}\n\n"
