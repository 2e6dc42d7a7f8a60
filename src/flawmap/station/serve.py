"""`flawmap serve`: puts a station together, runs it until it is told to stop, and finishes what it accepted."""

from __future__ import annotations

import logging
import math
import ssl
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
from flawmap.station.plant import connect
from flawmap.station.recipes import Recipes
from flawmap.station.server import Server, bound, config

try:
    import uvicorn
except ImportError as error:
    raise MissingExtra("uvicorn", "serve", "the station") from error

STOP_S = 20  # beyond the deadline of parts, for what was accepted when the station is told to stop


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
    good: Path | None = None
    rules: Rules = field(default_factory=Rules)
    engine: str = "onnx"
    key: Path | None = None
    watch: Path | None = None
    part_pattern: str | None = None
    camera: str = ""
    every: float | None = None
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
    modbus_plcs: Sequence[str] = ()
    ack_s: float | None = None
    mqtt: str = ""
    mqtt_ca: Path | None = None
    webhooks: Sequence[str] = ()


def serve(settings: Settings, started: Callable[[Line], None] | None = None) -> None:
    """Runs until SIGINT or SIGTERM. UsageError: a bind beyond this machine without tokens, TLS by halves, no recipe.

    started  is called when parts are accepted
    """
    if not (math.isfinite(settings.deadline_s) and settings.most_bytes >= 1 and 0 <= settings.port < 65536):
        raise UsageError("the deadline is a number of seconds, a request has at least a byte, a port is below 65536")
    access, hosts = _access(settings)
    server = Server(_config(settings))
    with ExitStack() as open_things:
        sockets = [open_things.enter_context(each) for each in bound(settings.host, settings.port)]
        line = assembled(settings)
        open_things.enter_context(server.told())
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
        limits: dict[str, Any] = {"most_bytes": settings.most_bytes, "ending": lambda: server.ending}
        server.config.app = create_app(line, access, challenge=challenge, hosts=hosts, good=settings.good, **limits)
        connect(settings, line, open_things)
        if started:
            started(line)
        scheme = "https" if settings.tls_cert else "http"
        reach = "this machine only" if loopback(settings.host) else "the network, with tokens"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = sockets[0].getsockname()[1]  # which the system has chosen where 0 was asked for
        print(f"flawmap: {scheme}://{host}:{port} ({reach})", file=sys.stderr, flush=True)
        server.run(sockets)


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
    if settings.tls_cert and settings.tls_key:
        _check_tls(settings.tls_cert, settings.tls_key)
    logging.getLogger("flawmap.station").setLevel(logging.INFO)
    return config(
        settings.deadline_s + STOP_S,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


def _check_tls(cert: Path, key: Path) -> None:
    """UsageError: they are no pair. A key with a password is refused: nobody is there to type it."""
    for path in (cert, key):
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise UsageError(f"{cert}, {key}: no certificate in PEM with its key, unencrypted: {error}") from error
