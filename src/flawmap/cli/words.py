"""What all verbs share: how one is added, which words are a method's options, and how results are printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
