"""The verb that takes pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flawmap.cli.words import add_verb, show
from flawmap.errors import UsageError


def capture(verbs: Any) -> None:
    verb = add_verb(verbs, "capture", _run, "take the pictures of a plan, or list the cameras of this machine")
    verb.add_argument("plan", metavar="PLAN", help="a TOML file; or the word cameras: list those that are found")
    verb.add_argument("--out", type=Path, metavar="DIR", help="where pictures go; a folder that is begun goes on")
    verb.add_argument("--camera", default="", metavar="NAME", help="in place of the plan's: replay:DIR, genicam:0 ...")
    verb.add_argument("--dry-run", action="store_true", help="move nothing: draw poses and shots, estimate the time")


def _run(args: argparse.Namespace) -> None:
    if args.plan == "cameras":
        _cameras(args)
        return
    from flawmap.run.capture import capture, rehearse

    if args.out is None:
        raise UsageError("capture needs --out DIR, the folder for the pictures")
    if args.dry_run:
        show(args, rehearse(Path(args.plan), args.out))
        return
    show(args, capture(Path(args.plan), args.out, args.camera))


def _cameras(args: argparse.Namespace) -> None:
    from flawmap.images.attached import attached

    found = attached()
    if args.json:
        print(json.dumps(found))
        return
    for each in found["cameras"]:
        print("  ".join(filter(None, (each["camera"], each["device"], each["says"], each["but"]))))
    if not found["cameras"]:
        print("no camera was found; looked at:", file=sys.stderr)
        for line in found["looked"]:
            print(f"  {line}", file=sys.stderr)
