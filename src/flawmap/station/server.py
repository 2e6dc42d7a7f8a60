"""uvicorn, with what it lacks for a station: connections that do nothing go, and a signal is no sudden end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from flawmap.errors import MissingExtra, UsageError
from flawmap.station.access import loopback

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtra("uvicorn", "serve", "the station") from error

HEAD_S = 10.0  # in which the first line and the headers of a request must have come
WRITE_S = 30.0  # in which a client must have taken something of what waits for it
CONNECTIONS = 200  # beyond them the one that has been idle for longest goes


class Server(uvicorn.Server):
    """Says that it ends as soon as it is told to, so that streams of events do not hold it up."""

    ending = False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Not uvicorn's own, which sends itself the signal anew in the end: the process would die before its last row.

        A second SIGINT does not wait for those who are being answered.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.ending = self.should_exit = True

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Signals are heard until the last row is written, not only while uvicorn listens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def config(stop_s: float, **more: Any) -> uvicorn.Config:
    """What a server of ours has in common; `stop_s` is for what was accepted when it is told to stop."""
    return uvicorn.Config(
        app="",
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=2 * CONNECTIONS,  # of tasks; connections are held at their number by Protocol
        timeout_keep_alive=15,
        timeout_graceful_shutdown=math.ceil(stop_s),
        **more,
    )


class Protocol(H11Protocol):
    """A client that sends no request, sends one for ever, or does not read its answer is not waited for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since, self._late, self._stuck = time.monotonic(), self._in(HEAD_S, self._close_if_idle), None
        if len(self.connections) > CONNECTIONS:
            idle = [each for each in self.connections if isinstance(each, Protocol) and each.idle]
            min(idle, key=lambda each: each._since, default=self).transport.abort()

    @property
    def idle(self) -> bool:
        """Nothing is being answered on it."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.idle and self._late is None:  # part of a head, or of a body that nobody reads
            self._since, self._late = time.monotonic(), self._in(HEAD_S, self._close_if_idle)
        elif not self.idle and self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_if_idle(self) -> None:
        self._late = None
        if self.idle:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look(None)

    def _look(self, waited: int | None) -> None:
        """Once more in some seconds, or the end where nothing was taken meanwhile."""
        waits = self.transport.get_write_buffer_size()
        if waited is not None and waits >= waited:
            self.transport.abort()
        else:
            self._stuck = self._in(WRITE_S, self._look, waits)

    def resume_writing(self) -> None:
        self._forget()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _in(self, seconds: float, what: Any, *args: Any) -> asyncio.TimerHandle | None:
        return self.loop.call_later(seconds, what, *args)


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets for all addresses of a host, before anything is loaded or written. UsageError: one cannot be had."""
    found: list[socket.socket] = []
    try:
        asked = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(asked):
            if loopback(host) and not loopback(str(address[0])):
                raise UsageError(f"{host} is {address[0]} here, which is no address of this machine alone")
            made = socket.socket(family, kind, protocol)
            found.append(made)
            exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)  # Windows would share the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR if exclusive is None else exclusive, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((address[0], port or found[0].getsockname()[1], *address[2:]))
    except (OSError, OverflowError, UnicodeError) as error:
        for made in found:
            made.close()
        words = getattr(error, "strerror", None) or error
        raise UsageError(f"{host}:{port} cannot be listened on: {words}; choose another --port or --host") from error
    return found
