"""Verbs of the line: the service, its tokens and its ledger."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flawmap.cli.words import about_key, add_verb, show
from flawmap.errors import GateError, UsageError


def serve(verbs: Any) -> None:
    verb = add_verb(
        verbs, "serve", _run_serve, "a station: inspects over HTTP, from a folder or for a PLC, with a page"
    )
    verb.add_argument(
        "bundles", nargs="+", metavar="BUNDLE", help="one or more, each FILE or NAME=FILE; the first is used"
    )
    verb.add_argument("--station", default="station", metavar="NAME", help="its name in the ledger; default: station")
    verb.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; any other takes tokens")
    verb.add_argument("--port", type=int, default=8080, help="default: 8080")
    verb.add_argument("--tokens", type=Path, metavar="FILE", help="lines that flawmap token made; else FLAWMAP_TOKENS")
    verb.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="answer to this host name, too")
    verb.add_argument("--tls-cert", type=Path, metavar="PEM", help="with --tls-key: https")
    verb.add_argument("--tls-key", type=Path, metavar="PEM", help="with --tls-cert: https")
    verb.add_argument("--ledger", default="station.db", metavar="URL", help="a file, or postgresql+psycopg://...")
    verb.add_argument("--durability", choices=("strict", "normal"), default="strict", help="default: strict")
    verb.add_argument("--engine", choices=("onnx", "openvino"), default="onnx", help="default: onnx")
    verb.add_argument("--waiting", type=int, default=32, metavar="N", help="parts that may wait: 32; more get a 503")
    verb.add_argument("--judges", type=int, default=2, metavar="N", help="parts judged at once: 2")
    verb.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="a part that waited longer is an error: 10"
    )
    verb.add_argument("--most-mb", type=float, default=64.0, metavar="MB", help="of a request: 64")
    _about_pictures(verb)
    _about_challenge(verb)
    _about_plant(verb)
    about_key(verb)


def _about_pictures(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--watch", type=Path, metavar="DIR", help="inspect every new picture in this folder")
    verb.add_argument("--camera", default="", metavar="NAME", help="replay:DIR, uvc:0, genicam:WHICH, rtsp://...")
    verb.add_argument("--every", type=float, metavar="S", help="the camera takes a part every so many seconds")
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--keep", type=Path, metavar="DIR", help="keep pictures of parts here")
    verb.add_argument(
        "--good", type=Path, metavar="DIR", help="the pictures it was fitted on: a part's page shows the nearest"
    )
    verb.add_argument("--keep-every", type=int, default=100, metavar="N", help="and of one OK part in N: 100; 0: none")
    verb.add_argument(
        "--keep-near", type=float, default=3.0, metavar="X", help="and OK with p at most X times the limit: 3"
    )
    verb.add_argument("--keep-gb", type=float, default=20.0, metavar="GB", help="the oldest go beyond it: 20")
    verb.add_argument("--keep-free-gb", type=float, default=1.0, metavar="GB", help="left free on the disk: 1")


def _about_challenge(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--challenge", type=Path, metavar="DIR", help="known parts in its folders good and bad")
    verb.add_argument("--block", action="store_true", help="judge nothing else until the challenge has passed")
    verb.add_argument("--shift", action="append", default=[], metavar="HH:MM", help="it has to pass anew at this time")


def _about_plant(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--opcua", default="", metavar="URL", help="an OPC UA server: opc.tcp://127.0.0.1:4840/flawmap")
    verb.add_argument("--opcua-keys", type=Path, metavar="DIR", help="certificates of the server and of its clients")
    verb.add_argument("--modbus", default="", metavar="HOST:PORT", help="a Modbus TCP server: 127.0.0.1:5020")
    verb.add_argument("--modbus-plc", action="append", default=[], metavar="IP", help="let this PLC in, and no other")
    verb.add_argument("--ack", type=float, metavar="S", help="in which a PLC has to take a result: 5")
    verb.add_argument("--mqtt", default="", metavar="URL", help="publish to a broker: mqtts://user@host:8883")
    verb.add_argument("--mqtt-ca", type=Path, metavar="PEM", help="whose certificates of a broker are believed")
    verb.add_argument("--webhook", action="append", default=[], metavar="URL", help="post every part there, signed")


def _run_serve(args: argparse.Namespace) -> None:
    from flawmap.station.keep import Rules
    from flawmap.station.serve import Settings, serve

    if args.block and not args.challenge:
        raise UsageError("--block goes with --challenge")
    rules = Rules(args.keep_near, args.keep_every, args.keep_gb, args.keep_free_gb)
    same = "station host port tokens tls_cert tls_key ledger durability engine waiting judges camera every watch "
    same += "part_pattern keep good challenge block opcua opcua_keys modbus mqtt mqtt_ca"
    settings = Settings(
        recipes=_named(args.bundles),
        rules=rules,
        hosts=args.allow_host,
        key=args.key,
        deadline_s=args.deadline,
        most_bytes=int(args.most_mb * 1e6) if 0 < args.most_mb < 1e5 else 0,
        shifts=args.shift,
        webhooks=args.webhook,
        modbus_plcs=args.modbus_plc,
        ack_s=args.ack,
        **{name: getattr(args, name) for name in same.split()},
    )
    serve(settings)


def _named(bundles: list[str]) -> dict[str, Path]:
    """NAME=FILE, or a file's own name without .flaw."""
    found: dict[str, Path] = {}
    for word in bundles:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = Path(word).name.removesuffix(".flaw"), word
        if name in found:
            raise UsageError(f"two recipes are called {name!r}; give names: NAME=FILE")
        found[name] = Path(path)
    return found


def token(verbs: Any) -> None:
    verb = add_verb(verbs, "token", _run_token, "make a token for a station, and the line that lets it in")
    verb.add_argument("name", help="who it is for, as it will stand in the ledger")
    verb.add_argument("role", choices=("view", "operate", "admin"), help="each may do what those before it may")
    verb.add_argument("--tokens", type=Path, metavar="FILE", help="add the line to this file")


def _run_token(args: argparse.Namespace) -> None:
    from flawmap.station.access import new_token

    made, line = new_token(args.name, args.role)
    if args.tokens:
        _append(args.tokens, line)
    show(args, {"token": made, "line": line})


def _append(path: Path, line: str) -> None:
    """To a file that its owner alone may read, from the moment it is there; a last line without an end gets one."""
    before = path.read_bytes() if path.exists() else b""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        path.chmod(0o600)
        file.write(f"{line}\n" if before.endswith(b"\n") or not before else f"\n{line}\n")


def ledger(verbs: Any) -> None:
    verb = add_verb(verbs, "ledger", _run_ledger, "check or export the ledger of a station")
    verb.add_argument(
        "what", choices=("verify", "head", "export"), help="check the chain, tell its newest row, or export"
    )
    verb.add_argument("ledger", help="a file, or postgresql+psycopg://...")
    verb.add_argument(
        "--head", action="append", default=[], metavar="N:HASH", help="verify: the chain has to hold this row"
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="export: a file, .csv or .parquet")


def _run_ledger(args: argparse.Namespace) -> None:
    from flawmap.station.exports import existing, export

    found = existing(args.ledger)
    if args.what == "export":
        if args.out is None:
            raise UsageError("export needs --out FILE, .csv or .parquet")
        show(args, {"rows": export(found, args.out), "file": str(args.out)})
        return
    if args.what == "head":
        seq, digest = found.head()
        show(args, {"head": f"{seq}:{digest}"})
        return
    count, wrong = found.verify(_heads(args.head))
    for line in wrong[:50]:
        print(f"flawmap: {args.ledger}: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps({"rows": count, "wrong": wrong}))
    if wrong:
        raise GateError(f"{args.ledger}: {len(wrong)} faults in {count} rows: the ledger was changed")
    if not args.json:
        show(args, {"rows": count, "chain": "whole", "head": "{}:{}".format(*found.head())})


def _heads(given: list[str]) -> dict[int, str]:
    heads = {}
    for head in given:
        seq, _, digest = head.partition(":")
        if not seq.isdecimal() or len(digest) != 64:
            raise UsageError(f"--head {head!r}: give N:HASH, as an answer or `flawmap ledger head` tells it")
        heads[int(seq)] = digest
    return heads
