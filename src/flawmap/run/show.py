"""What the report of a run shows: chosen here, drawn by report/. Galleries are read and scored again, not kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flawmap.images.decode import decode, read_mask
from flawmap.report.heatmap import Scale, anchored
from flawmap.report.page import Gallery, Picture, Report, Scored, write
from flawmap.run.bundle import given
from flawmap.run.model import Model
from flawmap.types import GOOD, Sample, Verdict

if TYPE_CHECKING:
    from flawmap.run.evaluate import Evaluated
    from flawmap.run.fit import Fitting

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
    )
    return write(report, fitting.run / "report.html")


def test_report(model: Model, evaluated: Evaluated, path: Path) -> Path:
    """What the model makes of a test set."""
    bad = [e for e in evaluated.pictures if not e.sample.good]
    good = [e for e in evaluated.pictures if e.sample.good]
    missed = sorted((e for e in bad if e.verdict == Verdict.OK), key=lambda e: e.score)
    alarms = sorted((e for e in good if e.verdict == Verdict.NOK), key=lambda e: -e.score)
    wanted = [
        ("Worst misses", missed, "Defective parts that passed, the least suspicious first."),
        ("Worst false alarms", alarms, "Good parts that were rejected, the strangest first."),
        ("Hardest defects", sorted(bad, key=lambda e: e.score), "The lowest scores among defective pictures."),
        ("Strangest good pictures", sorted(good, key=lambda e: -e.score), "The highest scores among good pictures."),
        ("Typical defects", _typical(bad), "The median score of each kind, and its neighbours."),
    ]
    galleries = []
    for title, entries, note in wanted:
        pictures = [_tested(model, entry) for entry in entries[:ROW]]
        if pictures:
            galleries.append(Gallery(title, pictures, note))
    report = Report(
        title=_title(model),
        subtitle=f"tested on {len(evaluated.pictures)} pictures of {evaluated.source}",
        scale=scale(model),
        calibration=model.calibration,
        metrics=evaluated.metrics,
        scores=[Scored(e.sample.name, e.sample.part, e.sample.kind, e.score, e.verdict) for e in evaluated.pictures],
        galleries=galleries,
        facts=facts(model),
        notes=evaluated.notes,
    )
    return write(report, path)


def bundle_report(model: Model, path: Path) -> Path:
    """What a bundle is and promises, from the bundle alone: with the pictures it carries to check itself."""
    pictures = []
    for entry in model.bundle.json("golden.json"):
        content = model.bundle.files[f"golden/{entry['name']}"]
        score, map = model.predict(content)
        verdict = None if model.calibration is None else Verdict.NOK if entry["nok"] else Verdict.OK
        pictures.append(Picture(entry["name"], entry["name"], None, score, verdict, decode(content), map))
    note = "Carried along to check the engine; two were disturbed until they stood next to the threshold."
    report = Report(
        title=_title(model),
        subtitle="what the bundle is and promises",
        scale=scale(model),
        calibration=model.calibration,
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
            ("map threshold", f"{c.map_threshold:.6g}"),
            ("scores from", "cross-fitting" if c.cross_fitted else "parts held out of fitting"),
            ("made", c.created),
        ]
    return [
        ("Method", [("method", config["title"]), ("paper", config["paper"]), *config["options"].items()]),
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
    nok = model.calibration and entry.score > model.calibration.threshold
    verdict = None if model.calibration is None else Verdict.NOK if nok else Verdict.OK
    image = decode(s.source)
    return Picture(
        s.name, s.part, GOOD, entry.score, verdict, image, model.over(maps[s.name].astype(np.float32), image.shape[:2])
    )


def _tested(model: Model, entry: Any) -> Picture:
    s: Sample = entry.sample
    image = decode(s.source)
    map = model.predict(s.source)[1]
    mask = None if s.mask is None else read_mask(s.mask, image.shape[:2])
    return Picture(s.name, s.part, s.kind, entry.score, entry.verdict, image, map, mask)


def _typical(entries: Sequence[Any]) -> list[Any]:
    kinds: dict[str, list[Any]] = {}
    for entry in sorted(entries, key=lambda e: e.score):
        kinds.setdefault(entry.sample.kind or "", []).append(entry)
    return _in_turn([sorted(group, key=lambda e: abs(group.index(e) - len(group) / 2)) for group in kinds.values()])


def _in_turn(groups: Iterable[list[Any]]) -> list[Any]:
    groups = [list(group) for group in groups]
    return [group[rank] for rank in range(max(map(len, groups), default=0)) for group in groups if rank < len(group)]
