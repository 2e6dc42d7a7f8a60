"""`flawmap serve`: puts a station together, runs it until it is told to stop, and finishes what it accepted."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flawmap.errors import MissingExtra, UsageError
from flawmap.station.access import ENVIRONMENT, Access, loopback, read_tokens
from flawmap.station.app import MOST_BYTES, create_app
from flawmap.station.challenge import Challenge
from flawmap.station.keep import Keep, Rules
from flawmap.station.ledger import Ledger
from flawmap.station.line import Line
from flawmap.station.recipes import Recipes
from flawmap.station.watch import Watch

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtra("uvicorn", "serve", "the station") from error

HEAD_S = 10.0  # in which the first line and the headers of a request must have come
STOP_S = 20  # for what was accepted, when the station is told to stop
CONNECTIONS = 200


@dataclass
class Settings:
    """What a station is started with; see `flawmap serve --help`."""

    recipes: Mapping[str, Path]
    station: str = "station"
    host: str = "127.0.0.1"
    port: int = 8080
    tokens: Path | None = None
    hosts: Sequence[str] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ledger: str = "station.db"
    durability: str = "strict"
    keep: Path | None = None
    rules: Rules = field(default_factory=Rules)
    engine: str = "onnx"
    key: Path | None = None
    watch: Path | None = None
    part_pattern: str | None = None
    waiting: int = 32
    judges: int = 2
    deadline_s: float = 10.0
    most_bytes: int = MOST_BYTES
    challenge: Path | None = None
    block: bool = False
    shifts: Sequence[str] = ()
    opcua: str = ""
    opcua_keys: Path | None = None
    modbus: str = ""
    mqtt: str = ""
    webhooks: Sequence[str] = ()


class _Server(uvicorn.Server):
    """Says that it ends as soon as it is told to, so that streams of events do not hold it up."""

    ending = False

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.ending = True
        super().handle_exit(sig, frame)


class _Protocol(H11Protocol):
    """A connection on which no request comes within some seconds is closed: uvicorn would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)


def serve(settings: Settings, started: Callable[[Line], None] | None = None) -> None:
    """Runs until SIGINT or SIGTERM. UsageError: a bind beyond this machine without tokens, TLS by halves, no recipe.

    started  is called when parts are accepted
    """
    access, hosts = _access(settings)
    with ExitStack() as open_things:
        line = assembled(settings)
        open_things.callback(line.close)
        challenge = None
        if settings.challenge is not None:
            challenge = Challenge(
                line,
                settings.challenge,
                block=settings.block,
                shifts=settings.shifts,
                part_pattern=settings.part_pattern,
            )
            open_things.callback(challenge.close)
        server = _Server(_config(settings))
        app = create_app(
            line,
            access,
            challenge=challenge,
            hosts=hosts,
            most_bytes=settings.most_bytes,
            ending=lambda: server.ending,
        )
        server.config.app = app
        _sources(settings, line, open_things)
        if started:
            started(line)
        scheme = "https" if settings.tls_cert else "http"
        reach = "this machine only" if loopback(settings.host) else "the network, with tokens"
        print(f"flawmap: {scheme}://{settings.host}:{settings.port} ({reach})", file=sys.stderr, flush=True)
        server.run()
    if not server.started:
        raise UsageError(f"{settings.host}:{settings.port} cannot be listened on; is it in use?")


def assembled(settings: Settings) -> Line:
    """The line of a station, without its doors."""
    recipes = Recipes(settings.recipes, engine=settings.engine, key=settings.key)
    ledger = Ledger(settings.ledger, station=settings.station, durability=settings.durability)
    keep = Keep(settings.keep, settings.rules) if settings.keep else None
    judges = 1 if settings.engine == "openvino" else settings.judges  # its request takes one picture at a time
    how = {"waiting": settings.waiting, "judges": judges, "deadline_s": settings.deadline_s}
    return Line(recipes, ledger, keep, **how)


def _access(settings: Settings) -> tuple[Access, Sequence[str] | None]:
    """Tokens, and the names the station answers to; None: any."""
    access = Access(read_tokens(settings.tokens))
    if not loopback(settings.host):
        if not access.needed:
            raise UsageError(
                f"{settings.host} can be reached from other machines: give tokens with --tokens FILE or {ENVIRONMENT}; "
                "flawmap token NAME ROLE makes one"
            )
        if not settings.tls_cert:
            print(f"flawmap: {settings.host}: without TLS tokens can be read on the network", file=sys.stderr)
        return access, [*settings.hosts] or None
    return access, ["127.0.0.1", "localhost", "::1", settings.host, *settings.hosts]


def _config(settings: Settings) -> uvicorn.Config:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise UsageError("TLS takes both --tls-cert and --tls-key")
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: there is no such file")
    logging.getLogger("flawmap.station").setLevel(logging.INFO)
    return uvicorn.Config(
        app="",
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        http=_Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=STOP_S,
    )


def _sources(settings: Settings, line: Line, open_things: ExitStack) -> None:
    if settings.watch is not None:
        watch = Watch(line, settings.watch, part_pattern=settings.part_pattern)
        open_things.callback(watch.close)
