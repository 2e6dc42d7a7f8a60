"""Inspect files and print what is found, a line a part; a picture that cannot be judged is an error, never OK."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, FlawmapError, UsageError
from flawmap.images.decode import READERS, decode
from flawmap.images.folder import find, refuse_twice
from flawmap.run.ahead import ahead
from flawmap.run.look import decoded
from flawmap.run.model import Model
from flawmap.types import Inspection, Sample, Verdict

STDIN = "-"  # among the sources: one picture from standard input, called stdin
MOST_NAME = 200  # bytes of a file's name, for maps and overlays
ORACLE = "its threshold is an oracle: read off the answers, no operating point"


def inspect(
    model: Model,
    sources: Sequence[str],
    *,
    part_pattern: str | None = None,
    overlay: Path | None = None,
    maps: Path | None = None,
    as_json: bool = False,
) -> int:
    """Prints every part's verdict; returns the exit code: 0, or that of the first part that could not be judged.

    sources       files, folders and lists, and "-" for a picture from standard input
    part_pattern  pictures whose names it gives the same part are views of it, in whichever of the sources they are

    UsageError: a picture is given twice, or standard input is a terminal.
    """
    code, policy = 0, model.calibration.policy if model.calibration else None
    if policy == "f1-oracle":
        print(f"flawmap: {model.bundle.origin}: {ORACLE}", file=sys.stderr)
    parts = _parts(sources, part_pattern, model.intake.max_mpx)
    stems = _stems(parts)
    pictures = ([sample.source for sample in views] for views in parts.values())
    read = ahead(partial(decoded, model.intake), pictures)
    for (part, views), ready in zip(parts.items(), read, strict=True):
        try:
            if isinstance(ready, FlawmapError):
                raise ready
            found = model.inspect_part(ready, names=[s.name for s in views], part=part)
            _keep(model, found, views, [stems[view.name] for view in views], overlay, maps)
        except FlawmapError as error:
            code = code or error.exit_code
            print(f"flawmap: {_on_a_line(part)}: no verdict: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"part": part, "verdict": None, "policy": policy, "error": str(error)}), flush=True)
            continue
        print(json.dumps(_entry(found, policy)) if as_json else _line(found), flush=True)
    return code


def _parts(sources: Sequence[str], part_pattern: str | None, max_mpx: float) -> dict[str, list[Sample]]:
    """Pictures by part. The same name in two folders is two pictures: names then carry the folder."""
    parts: dict[str, list[Sample]] = {}
    if list(sources).count(STDIN) > 1:
        raise UsageError("standard input, -, is given twice; it holds one picture")
    found: list[Sample] = []
    for source in sources:
        given = [Sample(_piped(max_mpx), "stdin", "stdin", kind=None)] if source == STDIN else source
        found += find(given, part_pattern=part_pattern, kind=None)
    files = [sample.source for sample in found if isinstance(sample.source, Path)]
    alone = len(sources) == 1 and Path(sources[0]).is_dir() and all(sample.part == sample.name for sample in found)
    if not alone:  # of one folder each name is there once, and a link in it is a part of its own
        # A file called stdin would be a view of what is piped in.
        refuse_twice(files if STDIN not in sources else [*files, Path("stdin")])
    for sample in found:
        name = str(sample.source) if len(sources) > 1 and isinstance(sample.source, Path) else sample.name
        part = name if part_pattern is None and sample.part == sample.name else sample.part
        parts.setdefault(part, []).append(replace(sample, name=name, part=part))
    return parts


def _piped(max_mpx: float) -> bytes:
    """Standard input, unless it does not begin as a picture or is longer than any can be: it may never end."""
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("standard input, -, is closed; pipe a picture in: flawmap inspect BUNDLE - < photo.png")
    if sys.stdin.isatty():
        raise UsageError("standard input, -, is a terminal; pipe a picture in: flawmap inspect BUNDLE - < photo.png")
    most = int(8e6 * max_mpx) + 2**26  # 16 bits of four channels, and as much again as notes may take
    head = sys.stdin.buffer.read(8)
    if not any(head.startswith(starts) for starts, _ in READERS.values()):
        return head
    data = head + sys.stdin.buffer.read(most)
    if len(data) > most:
        raise DataError(f"stdin: more than {most} bytes, which no picture of {max_mpx:g} megapixels has")
    return data


def _stems(parts: dict[str, list[Sample]]) -> dict[str, str]:
    """What the files of each picture are called: its name without suffix, with it where that name is taken."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in (sample.name for views in parts.values() for sample in views):
        flat = name.lstrip("/").replace("/", "_")
        wishes = (os.fsdecode(os.fsencode(wish)[-MOST_NAME:]) for wish in (Path(flat).stem, flat))
        numbered = (f"{os.fsdecode(os.fsencode(flat)[-MOST_NAME:])}-{number}" for number in count(2))
        stems[name] = next(stem for stem in chain(wishes, numbered) if stem not in taken)
        taken.add(stems[name])
    return stems


def _on_a_line(text: str) -> str:
    """A name may hold a line's end, which would make a line of its own, or bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line(found: Inspection) -> str:
    verdict = found.verdict or "no verdict (not calibrated)"
    p_value = "" if found.p_value is None else f"  p {found.p_value:.4f}"
    where = [
        f"{r.box[0]},{r.box[1]} {r.box[2] - r.box[0]}x{r.box[3] - r.box[1]}" for view in found.regions for r in view
    ]
    show = found.verdict in (Verdict.NOK, Verdict.REVIEW) and where
    regions = f"  at {'; '.join(where[:3])}{' ...' if len(where) > 3 else ''}" if show else ""
    return f"{verdict:<4} {found.score:10.4f}{p_value}  {_on_a_line(found.part)}{regions}"


def _entry(found: Inspection, policy: str | None) -> dict[str, Any]:
    return {
        "part": found.part,
        "verdict": found.verdict,
        "policy": policy,
        "score": found.score,
        "p_value": found.p_value,
        "threshold": found.threshold,
        "views": [
            {
                "name": name,
                "score": score,
                "regions": [
                    {
                        "box": r.box,
                        "area_px": r.area_px,
                        "area_mm2": r.area_mm2,
                        "centroid": r.centroid,
                        "peak": r.peak,
                        "contour": r.contour,
                    }
                    for r in regions
                ],
            }
            for name, score, regions in zip(found.names, found.scores, found.regions, strict=True)
        ],
    }


def _keep(
    model: Model,
    found: Inspection,
    views: Sequence[Sample],
    stems: Sequence[str],
    overlay: Path | None,
    maps: Path | None,
) -> None:
    for sample, map, stem in zip(views, found.maps, stems, strict=True):
        if maps is not None:
            maps.mkdir(parents=True, exist_ok=True)
            np.save(maps / f"{stem}.npy", map, allow_pickle=False)
        if overlay is not None:
            from PIL import Image

            from flawmap.report import heatmap
            from flawmap.run.show import scale

            overlay.mkdir(parents=True, exist_ok=True)
            drawn = heatmap.overlay(decode(sample.source), map, scale(model))
            Image.fromarray(drawn).save(overlay / f"{stem}.png")
