"""What all verbs share: how one is added, which words are a method's options, and how results are printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawmap.errors import UsageError


def add_verb(verbs: Any, name: str, run: Any, text: str, **more: Any) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False, **more)
    verb.set_defaults(run=run)
    verb.add_argument("--json", action="store_true", help="results as JSON on stdout")
    return verb


def about_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--part-pattern", metavar="REGEX", help="its first group in a picture's name is the part shown")
    verb.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be used, and list them")


def about_key(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--key", type=Path, metavar="PEM", help="refuse what was not signed with its private half")


def about_view(verb: argparse.ArgumentParser) -> None:
    """What of a picture is seen, and how it is cut."""
    verb.add_argument("--tile", type=int, metavar="PX", help="cut pictures into squares at their own resolution")
    verb.add_argument("--overlap", type=int, metavar="PX", help="of tiles, at least; default: an eighth of a tile")
    verb.add_argument("--scales", metavar="S,S", help="cut into tiles at these shares of the picture's size: 1,0.5")
    verb.add_argument("--roi", metavar="L,T,R,B", help="see this rectangle only: left, top, right, bottom in pixels")
    verb.add_argument(
        "--ignore", action="append", metavar="POLYGON", help='black out a polygon: "x,y x,y x,y"; may be given often'
    )


def view(args: argparse.Namespace) -> dict[str, Any]:
    """tile, overlap, scales, roi, ignore. UsageError: one cannot be read."""
    polygons = [[_numbers(corner, float, "--ignore", 2) for corner in text.split()] for text in args.ignore or ()]
    return {
        "tile": args.tile,
        "overlap": args.overlap,
        "scales": None if args.scales is None else _numbers(args.scales, float, "--scales"),
        "roi": None if args.roi is None else _numbers(args.roi, int, "--roi", 4),
        "ignore": polygons or None,
    }


def _numbers(text: str, kind: type, what: str, count: int | None = None) -> list[Any]:
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or len(found) != (count or len(found)):
        raise UsageError(f"{what} {text!r}: give {count or 'some'} numbers with a comma between two")
    return found


def tied(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Of a verb that takes a method's options, `--keep 0.1 DATA` becomes `--keep=0.1 DATA`.

    argparse would take the value of a flag that it does not know for DATA. All options of methods take a value.
    """
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    tied, left = list(words[:1]), list(words[1:])
    verb = verbs.choices.get(words[0]) if words else None
    if verb is None or not verb.get_default("takes_options"):
        return list(words)
    known = verb._option_string_actions
    while left:
        word = left.pop(0)
        alone = word.startswith("--") and len(word) > 2 and "=" not in word and word not in known
        tied.append(f"{word}={left.pop(0)}" if alone and left else word)
    return tied


def options(rest: Sequence[str]) -> dict[str, str]:
    """--name=value of a method's options."""
    found: dict[str, str] = {}
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"unexpected {word!r}: options of the method are --NAME VALUE")
        if not equals:
            raise UsageError(f"option {word} needs a value")
        found[name.replace("-", "_")] = value
    return found


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(found, default=str))
        return
    width = max(map(len, found), default=0)
    for key, value in found.items():
        print(f"{key:<{width}}  {value}")
