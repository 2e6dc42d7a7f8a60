"""Inspect files and print what is found, a line a part; a picture that cannot be judged is an error, never OK."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import FlawmapError
from flawmap.images.decode import decode
from flawmap.images.folder import find
from flawmap.run.model import Model
from flawmap.types import Inspection, Sample, Verdict

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
    """Prints every part's verdict; returns the exit code: 0, or that of the first part that could not be judged."""
    code, policy = 0, model.calibration.policy if model.calibration else None
    if policy == "f1-oracle":
        print(f"flawmap: {model.bundle.origin}: {ORACLE}", file=sys.stderr)
    for part, views in _parts(sources, part_pattern).items():
        try:
            found = model.inspect_part([s.source for s in views], names=[s.name for s in views], part=part)
            _keep(model, found, views, overlay, maps)
        except FlawmapError as error:
            code = code or error.exit_code
            print(f"flawmap: {part}: no verdict: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"part": part, "verdict": None, "policy": policy, "error": str(error)}), flush=True)
            continue
        print(json.dumps(_entry(found, policy)) if as_json else _line(found), flush=True)
    return code


def _parts(sources: Sequence[str], part_pattern: str | None) -> dict[str, list[Sample]]:
    """Pictures by part. The same name in two folders is two pictures: names then carry the folder."""
    parts: dict[str, list[Sample]] = {}
    several = len(sources) > 1
    for source in sources:
        for sample in find(source, part_pattern=part_pattern, kind=None):
            name = str(sample.source) if several else sample.name
            part = name if sample.part == sample.name else sample.part
            parts.setdefault(part, []).append(replace(sample, name=name, part=part))
    return parts


def _line(found: Inspection) -> str:
    verdict = found.verdict or "no verdict (not calibrated)"
    p_value = "" if found.p_value is None else f"  p {found.p_value:.4f}"
    where = [
        f"{r.box[0]},{r.box[1]} {r.box[2] - r.box[0]}x{r.box[3] - r.box[1]}" for view in found.regions for r in view
    ]
    show = found.verdict in (Verdict.NOK, Verdict.REVIEW) and where
    regions = f"  at {'; '.join(where[:3])}{' ...' if len(where) > 3 else ''}" if show else ""
    return f"{verdict:<4} {found.score:10.4f}{p_value}  {found.part}{regions}"


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


def _keep(model: Model, found: Inspection, views: Sequence[Sample], overlay: Path | None, maps: Path | None) -> None:
    for sample, map in zip(views, found.maps, strict=True):
        stem = Path(sample.name).with_suffix("").as_posix().lstrip("/").replace("/", "_")
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
