"""Fit: good pictures in, a calibrated bundle out; the stages of the work are in fitting.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flawmap.detectors import create
from flawmap.detectors.base import SynthesisDetector
from flawmap.errors import DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.intake import tuples
from flawmap.images.protocol import Protocol
from flawmap.images.protocol import protocol as chosen
from flawmap.images.split import shots as _shots
from flawmap.run import parallel
from flawmap.run.engine import device_named
from flawmap.run.feed import folders_of, generic_of, synthesis_of
from flawmap.run.fitting import Fitting
from flawmap.run.model import Model, load
from flawmap.run.progress import say
from flawmap.run.recipe import Recipe, digest, run_folder
from flawmap.run.watch import Watch
from flawmap.types import Sample


def fit(
    source: Any,
    method: str = "patchcore",
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    false_alarm: float | None = None,
    confidence: float | None = None,
    held_out: float = 0.2,
    folds: int = 5,
    shots: int | None = None,
    draw: int = 0,
    out: str | Path = "runs",
    part_pattern: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    resume: bool | str | Path = False,
    name: str = "",
    protocol: str | Protocol = "plain",
    tile: int | None = None,
    overlap: int | None = None,
    scales: Sequence[float] | None = None,
    roi: Sequence[int] | None = None,
    ignore: Sequence[Sequence[tuple[float, float]]] | None = None,
    watch: Watch | None = None,
) -> Model:
    """A calibrated model from good pictures: a folder, a list (.csv, .jsonl), files or arrays.

    Of a data set only the good pictures of train are used; with `shots` so many of their parts. `held_out` is the share
    of the parts that calibrate: with 0 there is no verdict. `resume` goes on with the newest unfinished run of the same
    recipe, or with the run folder it names. `name` is what the pictures are called where `source` is no path.

    tile, overlap   cut pictures into squares of so many pixels at their own resolution; overlap: an eighth of a tile
    scales          cut them at their own size times each of these; (1,) unless given
    roi, ignore     left, top, right, bottom: nothing else is seen; polygons of (x, y): blacked out, marked nowhere
    """
    if not 0 <= held_out < 1 or folds < 2:
        raise UsageError("held_out is a share from 0 to below 1, folds are at least 2")
    detector = create(method, {"seed": seed, **_tiled(chosen(protocol).options(options or {}), tile)})
    parallel.check(detector, isinstance(detector, SynthesisDetector))
    _ = synthesis_of(detector), generic_of(detector)  # their folders are read before there is a run
    samples, left_out = _pictures(source, part_pattern, shots, draw, skip_bad)
    data = name or (str(source) if isinstance(source, (str, Path)) else "pictures")
    asked = {"seed": seed, "held_out": held_out, "folds": folds, "shots": shots, "false_alarm": false_alarm}
    asked |= {"confidence": confidence, "draw": draw if shots is not None else None, "device": device_named(device)}
    asked |= {"resize": chosen(protocol).resize, **_view(tile, overlap, scales, roi, ignore)}
    given = {**detector.given(), **folders_of(detector)}
    recipe = Recipe(data, digest(samples), method, asdict(detector.config), given, **asked)
    return _together(Fitting(recipe, detector, samples, left_out, watch), Path(out), resume)


def _view(
    tile: int | None, overlap: int | None, scales: Sequence[float] | None, roi: Any, ignore: Any
) -> dict[str, Any]:
    """Fields of the recipe, defaults written out."""
    if tile is not None:
        overlap = tile // 8 if overlap is None else overlap
        scales = (1.0,) if scales is None else scales
    return {"tile": tile, "overlap": overlap, "scales": tuples(scales), "roi": tuples(roi), "ignore": tuples(ignore)}


def _tiled(options: dict[str, Any], tile: int | None) -> dict[str, Any]:
    """The network takes a tile. UsageError: the options name another size."""
    if tile is None:
        return options
    if str(options.get("size", tile)) != str(tile):
        raise UsageError(f"the size is that of a tile: {tile} px, the options say {options['size']}")
    return {**options, "size": tile}


def _together(fitting: Fitting, out: Path, resume: bool | str | Path) -> Model:
    """The run, by as many processes as torchrun has started."""
    with parallel.group(fitting.device):
        if parallel.rank() == 0:
            run = run_folder(out, fitting.recipe, resume)
            parallel.same_path(run, fitting.device)
            model = fitting.go(run)
            parallel.wait()
            return model
        run = parallel.same_path(None, fitting.device)
        fitting.help(run)
        parallel.wait()
    return load(run / "bundle.flaw")


def _pictures(
    source: Any, part_pattern: str | None, shots: int | None, draw: int, skip_bad: bool
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Good pictures that can be used, and those left out with the reason."""
    samples = [s for s in _folder.find(source, part_pattern=part_pattern) if s.split == "train" and s.good]
    if not samples:
        raise DataError(f"{source}: no good pictures to fit on")
    if shots is not None:
        samples = _shots(samples, shots, draw)
    say(f"checking {len(samples)} pictures")
    samples, left_out = _folder.check(samples, skip_bad=skip_bad)
    for picture, reason in left_out:
        say(f"left out: {picture}: {reason}")
    return samples, left_out
