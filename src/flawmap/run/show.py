"""What the report of a run shows: chosen here, drawn by report/.

Pictures are read again when the page asks for them, one at a time; of their maps, small ones were kept while judging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from flawmap.images.decode import decode
from flawmap.images.masks.levels import read_mask
from flawmap.report.heatmap import Scale, anchored
from flawmap.report.page import Gallery, Picture, Report, Scored, write
from flawmap.report.parts import picks
from flawmap.run.bundle import given, seams
from flawmap.run.export import judged_alone
from flawmap.run.model import Model
from flawmap.run.nearest import crop, nearest
from flawmap.types import GOOD, Sample

if TYPE_CHECKING:
    from flawmap.run.evaluate import Evaluated
    from flawmap.run.fitting import Fitting

ROW = 8  # pictures in a gallery


def fit_report(model: Model, fitting: Fitting) -> Path:
    """What was fitted and promised, and the good pictures that were found strangest when they were left out."""
    found = sorted(fitting.calibrated, key=lambda entry: -entry.score)
    maps = fitting.kept_maps()
    kept = [entry for entry in found if entry.sample.name in maps]
    middle = sorted(kept, key=lambda entry: abs(entry.score - found[len(found) // 2].score)) if found else []
    galleries = [
        Gallery(
            "Strangest good pictures",
            [_good(model, entry, maps) for entry in kept[:ROW]],
            "Scored by a model that had not seen them. A defect among them means that the folder is not clean.",
        ),
        Gallery("Usual good pictures", [_good(model, entry, maps) for entry in middle[:ROW]], "Near the median score."),
    ]
    report = Report(
        title=_title(model),
        subtitle=f"fitted on {len(fitting.samples)} good pictures",
        scale=scale(model),
        calibration=model.calibration,
        galleries=[gallery for gallery in galleries if gallery.pictures],
        facts=facts(model),
        notes=[f"left out: {name}: {reason}" for name, reason in fitting.left_out],
        losses=_losses(fitting),
    )
    return write(report, fitting.run / "report.html")


def test_report(model: Model, evaluated: Evaluated, path: Path) -> Path:
    """What the model makes of a test set."""
    scores = [Scored(e.sample.name, e.sample.part, e.sample.kind, e.score, e.verdict) for e in evaluated.pictures]
    report = Report(
        title=_title(model),
        subtitle=f"tested on {len(evaluated.pictures)} pictures of {evaluated.source}",
        scale=scale(model),
        calibration=model.calibration,
        metrics=evaluated.metrics,
        scores=scores,
        facts=facts(model),
        notes=evaluated.notes,
        embedding=None if evaluated.embedding is None else (evaluated.embedding, [s.name for s in scores]),
    )
    why = _explained(report)
    return write(replace(report, picture=lambda i: _tested(model, evaluated.pictures[i], i in why)), path)


def bundle_report(model: Model, path: Path) -> Path:
    """What a bundle is and promises, from the bundle alone: with the pictures it carries to check itself."""
    pictures, calibration, unfit = [], model.calibration, model.unfit
    for entry in model.bundle.json("golden.json"):
        content = model.bundle.files[f"golden/{entry['name']}"]
        score, map = model.predict(content)
        verdict = None if unfit else judged_alone(score, calibration)
        pictures.append(Picture(entry["name"], entry["name"], None, score, verdict, decode(content), map))
    note = "Carried along to check the engine."
    if any(picture.name.startswith("below-") for picture in pictures):
        note = f"{note[:-1]}; some were disturbed until they stood next to a threshold."
    if calibration and unfit:  # as the model refuses to judge, so the page promises nothing
        calibration = replace(calibration, sentence=f"No promise and no verdict: {unfit}.")
    report = Report(
        title=_title(model),
        subtitle="what the bundle is and promises",
        scale=scale(model),
        calibration=calibration,
        galleries=[Gallery("Golden pictures", pictures, note)] if pictures else [],
        facts=facts(model),
    )
    return write(report, path)


def scale(model: Model) -> Scale:
    """One colour scale for every map of this model, anchored at its map threshold."""
    typical = float(model.bundle.config.get("map_typical", 0.0))
    if model.calibration:
        return anchored(typical, model.calibration.map_threshold)
    span = max(abs(typical), 1e-6)
    return Scale(typical - span, typical, typical + span)


def facts(model: Model) -> list[tuple[str, list[tuple[str, Any]]]]:
    config, recipe = model.bundle.config, model.bundle.config["recipe"]
    machine = config["environment"]
    promise: list[tuple[str, Any]] = []
    if model.calibration:
        c = model.calibration
        views = f"{c.views[0]}" if c.views[0] == c.views[1] else f"{c.views[0]} to {c.views[1]}"
        promise = [
            ("policy", c.policy),
            ("good parts, pictures", f"{c.parts}, {c.images}"),
            ("views a part", views),
            ("threshold", f"{c.threshold:.6g}"),
            *([] if c.review_threshold is None else [("review above", f"{c.review_threshold:.6g}")]),
            ("map threshold", f"{c.map_threshold:.6g}"),
            ("scores from", "cross-fitting" if c.cross_fitted else "parts held out of fitting"),
            *([("known defective parts", len(c.defect_scores))] if c.defect_scores else []),
            *((f"cost: {name.replace('_', ' ')}", f"{value:g}") for name, value in c.costs.items()),
            ("calibrated on, SHA-256", c.data_sha256),
            ("with", c.engine),
            ("made", c.created),
        ]
    return [
        (
            "Method",
            [
                ("method", config["title"]),
                ("paper", config["paper"]),
                *(("pictures", line) for line in [*model.intake.words, *seams(config)]),
                *config["options"].items(),
            ],
        ),
        ("Promise", promise),
        (
            "Trust",
            [
                ("pictures, SHA-256", recipe["data_sha256"]),
                *given(config),
                ("engines", " and ".join(config["parity"]["engines"])),
                ("their largest difference", f"{config['parity']['worst_score']:.1e} of the score scale"),
                ("bundle, SHA-256", model.bundle.sha256),
                ("seed", recipe["seed"]),
            ],
        ),
        ("Machine", [("python", machine["python"]), ("cores", machine["cores"]), *machine["packages"].items()]),
    ]


def _title(model: Model) -> str:
    return f"{model.bundle.config['title']} on {Path(model.bundle.config['recipe']['data']).name}"


def _good(model: Model, entry: Any, maps: Mapping[str, np.ndarray]) -> Picture:
    s = entry.sample
    verdict = judged_alone(entry.score, model.calibration)
    image = decode(s.source)
    return Picture(
        s.name, s.part, GOOD, entry.score, verdict, image, model.over(maps[s.name].astype(np.float32), image.shape[:2])
    )


def _tested(model: Model, entry: Any, explained: bool) -> Picture:
    s: Sample = entry.sample
    image = decode(s.source)
    map = model.predict(s.source)[1] if entry.small is None else entry.small
    mask, ignored = (None, None) if s.mask is None else read_mask(s.mask, image.shape[:2], s.name)
    near = _near(model, s) if explained else {}
    return Picture(s.name, s.part, s.kind, entry.score, entry.verdict, image, map, mask, ignored=ignored, **near)


def _explained(report: Report) -> set[int]:
    """The pictures that the galleries open with: of these the nearest good patch is looked for, which takes a while."""
    if report.threshold is None:
        return set()
    parts = report.parts()
    chosen = picks(parts, report.threshold, report.review)
    return {parts[i].views[0] for group in chosen.values() for i in group}


def _near(model: Model, sample: Sample) -> dict[str, Any]:
    """The good patch nearest to a picture's strangest place, where the method remembers patches."""
    near = nearest(model, sample.source)
    if near is None:
        return {}
    root = _root(sample)
    return {"near": root and crop(root, near), "near_name": near.name, "near_at": near.at}


def _root(sample: Sample) -> Path | None:
    """The folder that the names of its data set are relative to; the training pictures may lie there too."""
    if not isinstance(sample.source, Path):
        return None
    depth = len(PurePosixPath(sample.name).parts)
    return sample.source.parents[depth - 1] if depth <= len(sample.source.parents) else None


def _losses(fitting: Fitting) -> list[float]:
    """One a step; empty for a method that does not train."""
    steps = [entry for entry in fitting.log.entries() if entry.get("event") == "step"]
    return [float(entry["loss"]) for entry in steps if entry.get("loss") is not None]
