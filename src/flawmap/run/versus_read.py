"""Folders that `flawmap evaluate` wrote -> evaluations, and the parts that they have in common."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawmap.errors import DataError
from flawmap.report.versus_plots import LETTERS
from flawmap.types import Verdict

COLUMNS = ("name", "part", "kind", "score", "verdict")


@dataclass(frozen=True, slots=True)
class Picture:
    part: str
    kind: str | None
    score: float
    verdict: Verdict | None  # its part's


@dataclass(frozen=True, slots=True)
class Evaluation:
    name: str
    pictures: Mapping[str, Picture]  # by name
    metrics: Mapping[str, Any]


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, less what they end on together."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        ends = [path.parts[-count:] for path in paths]
        if len(set(ends)) == len(ends):
            break
    while all(len(end) > 1 for end in ends) and len({end[-1] for end in ends}) == 1:
        ends = [end[:-1] for end in ends]
    return ["/".join(end) for end in ends]


def read(folder: Path, name: str) -> Evaluation:
    """What `flawmap evaluate` left in a folder. DataError where that is not there, torn, or no number."""
    try:
        with (folder / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder}: no evaluation can be read ({what}); give folders that flawmap evaluate wrote"
        ) from error
    if not rows or not set(COLUMNS) <= rows[0].keys() or not isinstance(metrics, dict):
        raise DataError(f"{folder}: scores.csv has no pictures or lacks one of {', '.join(COLUMNS)}; evaluate again")
    pictures: dict[str, Picture] = {}
    for number, row in enumerate(rows):
        where = f"{folder / 'scores.csv'}, line {number + 2}"
        try:
            picture = Picture(
                row["part"],
                row["kind"] or None,
                float(row["score"]),
                Verdict(row["verdict"]) if row["verdict"] else None,
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}; evaluate again") from error
        if not math.isfinite(picture.score):
            raise DataError(f"{where}: the score is {row['score']}, not a finite number; nothing can be compared")
        if row["name"] in pictures:
            raise DataError(f"{where}: {row['name']} stands there twice; evaluate again")
        pictures[row["name"]] = picture
    return Evaluation(name, pictures, metrics)


def common(evaluations: Sequence[Evaluation], shared: bool) -> tuple[dict[str, list[str]], list[str]]:
    """Part -> its pictures, as the baseline orders them, of the parts that all runs have alike; and what was left out.

    DataError, naming the first difference, unless `shared`; and where no part is common.
    """
    grouped = [_grouped(e) for e in evaluations]
    differs: dict[str, str] = {}
    for letter, e, group in zip(LETTERS[1:], evaluations[1:], grouped[1:], strict=False):
        for part in sorted(grouped[0].keys() | group.keys()):
            if part not in differs and (why := _difference(part, grouped[0], group, letter)):
                differs[part] = f"{why} (A is {evaluations[0].name}, {letter} is {e.name})"
    kept = {part: list(pictures) for part, pictures in grouped[0].items() if part not in differs}
    if not differs:
        return kept, []
    first = differs[min(differs)]
    if not shared:
        raise DataError(
            f"the evaluations are not of the same data: {first}; {len(differs)} parts differ. Evaluate all on the same "
            "pictures, or compare what they have in common with --shared"
        )
    if not kept:
        raise DataError(f"the evaluations have no part in common: {first}")
    every = len(kept) + len(differs)
    return kept, [
        f"{len(differs)} of {every} parts were left out, since not all runs have them with the same pictures and kinds "
        f"({', '.join(_missing(letter, group, differs) for letter, group in zip(LETTERS, grouped, strict=False))}). "
        f"First: {first}"
    ]


def _missing(letter: str, group: Mapping[str, Any], differs: Mapping[str, str]) -> str:
    return f"{letter} lacks {sum(part not in group for part in differs)}"


def _grouped(e: Evaluation) -> dict[str, dict[str, str | None]]:
    """Part -> picture -> kind."""
    found: dict[str, dict[str, str | None]] = {}
    for name, picture in e.pictures.items():
        found.setdefault(picture.part, {})[name] = picture.kind
    return found


def _difference(part: str, first: Mapping[str, Any], other: Mapping[str, Any], letter: str) -> str | None:
    """In words; None where a part is the same in both."""
    sides = ((first, other, letter), (other, first, "A"))
    for has, lacks, who in sides:
        if part not in lacks:
            return f"{who} lacks the part {part} ({next(iter(has[part]))})"
    for has, lacks, who in sides:
        if missing := next((name for name in has[part] if name not in lacks[part]), None):
            return f"{who} lacks the picture {missing} of the part {part}"
    for name, kind in first[part].items():
        if kind != other[part][name]:
            return (
                f"{name} is {kind or 'of unknown kind'} in A and {other[part][name] or 'of unknown kind'} in {letter}"
            )
    return None
