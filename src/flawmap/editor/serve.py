"""`flawmap masks edit`: puts the editor together, and runs it until it is told to stop."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from flawmap.editor.app import author, create_app
from flawmap.editor.maps import Maps
from flawmap.editor.pictures import Pictures
from flawmap.errors import UsageError
from flawmap.run.model import load
from flawmap.station.access import ENVIRONMENT, Access, loopback, read_tokens
from flawmap.station.server import Server, bound, config

STOP_S = 10  # for what is being saved or judged when the editor is told to stop


def edit(
    data: Path,
    *,
    model: Path | None = None,
    who: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8090,
    tokens: Path | None = None,
    hosts: Sequence[str] = (),
    started: Callable[[str, int], None] | None = None,
) -> None:
    """Runs until SIGINT or SIGTERM. UsageError: a bind beyond this machine without tokens, or a port that is taken.

    started  is called with the address and the number of pictures once it is listened on
    """
    access = Access(read_tokens(tokens))
    if not loopback(host) and not access.needed:
        raise UsageError(
            f"{host} can be reached from other machines: give tokens with --tokens FILE or {ENVIRONMENT}; "
            "flawmap token NAME operate makes one"
        )
    if not loopback(host):
        print(f"flawmap: {host}: without TLS tokens can be read on the network", file=sys.stderr)
    if not 0 <= port < 65536:
        raise UsageError(f"--port {port}: give a number below 65536; 0 for any that is free")
    name = author(_login() if who is None else who)
    server = Server(config(STOP_S))
    with ExitStack() as open_things:
        sockets = [open_things.enter_context(each) for each in bound(host, port)]
        pictures = Pictures(data)
        maps = None
        if model is not None:
            maps = Maps(load(model))
            open_things.callback(maps.close)
        open_things.enter_context(server.told())
        names = None if not loopback(host) and not hosts else ["127.0.0.1", "localhost", "::1", host, *hosts]
        server.config.app = create_app(pictures, access, who=name, maps=maps, hosts=names)
        port = sockets[0].getsockname()[1]  # which the system has chosen where 0 was asked for
        reach = "this machine only" if loopback(host) else "the network, with tokens"
        shown = f"[{host}]" if ":" in host else host
        for each in sockets:
            each.listen()  # who is told the address may ask at once
        url = f"http://{shown}:{port}"
        print(f"flawmap: {len(pictures)} pictures at {url} ({reach})", file=sys.stderr, flush=True)
        if started:
            started(url, len(pictures))
        server.run(sockets)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
