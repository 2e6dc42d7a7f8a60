"""A bundle in int8: its graph quantised, calibrated anew by the engine that judges, and held against the old one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flawmap.errors import CalibrationError, DataError, GateError
from flawmap.images import folder as _folder
from flawmap.images.intake import Intake
from flawmap.run import loss
from flawmap.run.bundle import Bundle, carded, graph_line
from flawmap.run.calibrate import DEFECT, calibrate
from flawmap.run.engine import TOLERANCE, OnnxEngine, OpenVinoEngine
from flawmap.run.graph import described
from flawmap.run.model import Model
from flawmap.run.quantise import BITS, quantised
from flawmap.run.recipe import CALIBRATION, digest
from flawmap.types import Sample
from flawmap.verdict.calibration import DEFAULT_TARGET, Calibration
from flawmap.verdict.rates import upper

RANGES = 64  # pictures that the ranges are taken from
LEAST = 8  # of them, or all where fewer were fitted on
TILES = 4  # of each, where the model sees tiles

Rows = Sequence[Mapping[str, Any]]


def in_int8(
    model: Model,
    engine: str,
    pictures: Any,
    fresh: Any = None,
    part_pattern: str | None = None,
    *,
    most_lost: float = loss.MOST_LOST,
    most_flipped: float = loss.MOST_FLIPPED,
) -> tuple[Model, dict[str, str]]:
    """The model in int8, and what is said of it to people.

    engine    onnx or openvino: which one judges, hence calibrates
    pictures  where those lie that the model was fitted on and calibrated with; a labelled test split is judged too
    fresh     good parts that the model has not seen, in place of those that calibrated it

    DataError: too few of the pictures are there, or the calibration cannot be repeated. CalibrationError: the fresh
    parts promise less than the old ones did. GateError: too much is lost.
    """
    if model.calibration is None:
        raise GateError(
            f"{model.bundle.origin}: not calibrated, so no verdict can be held against one: calibrate first"
        )
    found = _folder.find(pictures, part_pattern=part_pattern)
    seen = {_folder.sha256(sample): sample for sample in found}
    rows: Rows = [json.loads(line) for line in model.bundle.files["data.jsonl"].splitlines()]
    fitted = _fitted(rows, seen, pictures)
    good = _fresh(fresh, part_pattern) if fresh is not None else _calibrating(model.calibration, rows, seen, pictures)
    if fresh is not None:
        _no_looser(model.calibration, good, fresh)
    bad = _defects(model.calibration, rows, seen, pictures)
    labelled = [s for s in found if s.split == "test" and s.kind is not None]
    graph, nodes = quantised(model.bundle.files["model.onnx"], _inputs(model.intake, fitted))
    made = _calibrated(_bare(model.bundle, graph, engine), engine, model.calibration, good, bad)
    found_loss = loss.compare(model, made, good, labelled)
    loss.gate(found_loss, most_lost, most_flipped)
    known = {"nodes": nodes, "weight_bits": BITS, "ranges": len(fitted), "ranges_sha256": digest(fitted)}
    made = _told(made, model.bundle if fresh is None else None, {**known, "loss": found_loss.to_dict()}, found_loss)
    assert made.calibration is not None
    return made, {
        "quantised": f"{nodes} nodes, by the ranges of {len(fitted)} fitted pictures",
        "loss": found_loss.sentence,
        "promise": made.calibration.sentence,
    }


def _fitted(rows: Rows, seen: Mapping[str, Sample], where: Any) -> list[Sample]:
    """Up to 64 pictures that the model was fitted on, evenly over all of them."""
    wanted = [row["sha256"] for row in rows if row.get("role", "").startswith("fit")]
    there = [seen[sha256] for sha256 in wanted if sha256 in seen]
    if len(there) < min(LEAST, len(wanted)):
        raise DataError(
            f"{where}: holds {len(there)} of the {len(wanted)} pictures that the model was fitted on (by SHA-256), and "
            f"the ranges take {min(LEAST, len(wanted))}: give the folder it was fitted on"
        )
    return [there[i] for i in np.linspace(0, len(there) - 1, min(RANGES, len(there))).round().astype(int)]


def _calibrating(old: Calibration, rows: Rows, seen: Mapping[str, Sample], where: Any) -> list[Sample]:
    """The good pictures that calibrated the model, as parts of the names they had."""
    if old.cross_fitted:
        raise DataError(
            "the model was calibrated by cross-fitting: every good picture was judged by a fit without it, and these "
            "fits are not kept, so that cannot be repeated in int8. Give good parts that it has not seen with --fresh"
        )
    wanted = [row for row in rows if row.get("role") == CALIBRATION]
    if missing := [row["name"] for row in wanted if row["sha256"] not in seen]:
        raise DataError(
            f"{where}: lacks {len(missing)} of the {len(wanted)} good pictures that calibrated the model, such as "
            f"{missing[0]}: give the folder that holds them, or other good parts with --fresh"
        )
    return [replace(seen[row["sha256"]], part=row["part"], split="train") for row in wanted]


def _fresh(source: Any, part_pattern: str | None) -> list[Sample]:
    found = [s for s in _folder.find(source, part_pattern=part_pattern) if s.good]
    if not found:
        raise DataError(f"{source}: no good pictures to calibrate on")
    return [replace(sample, split="train") for sample in found]


def _no_looser(old: Calibration, good: Sequence[Sample], source: Any) -> None:
    """CalibrationError: a rate that nobody asked for is found anew by the number of parts, and fewer allow more."""
    if old.target is None:
        return
    parts = len(good) if old.unit == "picture" else len({sample.part for sample in good})
    least = 1 / (parts + 1) if old.confidence is None else upper(0, parts, old.confidence)
    if least <= old.target * (1 + 1e-9):
        return
    needed = 1 / old.target - 1
    if old.confidence is not None:
        needed = math.log1p(-old.confidence) / math.log1p(-old.target)
    raise CalibrationError(
        f"{source}: {parts} good {old.unit}s promise no less than {least:.3g} false alarms, and the model was "
        f"calibrated for {old.target:.3g}: give {math.ceil(needed * (1 - 1e-9))} or more with --fresh. To accept more "
        "false alarms, first calibrate the bundle with these parts and the wanted --false-alarm, then export that"
    )


def _defects(old: Calibration, rows: Rows, seen: Mapping[str, Sample], where: Any) -> list[Sample]:
    """The known defects that the policy rests on."""
    wanted = [row for row in rows if row.get("role") == DEFECT]
    if not old.defect_scores:
        return []
    if missing := [row["name"] for row in wanted if row["sha256"] not in seen]:
        raise DataError(
            f"{where}: lacks {len(missing)} of the {len(wanted)} known defects that the policy {old.policy} rests on, "
            f"such as {missing[0]}: give a folder that holds them too"
        )
    # Their parts are named again by `calibrate`, as defects.
    return [replace(seen[row["sha256"]], part=row["part"].removeprefix("defects: ")) for row in wanted]


def _inputs(intake: Intake, samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    """(1, 3, H, W) as the network takes them; of tiled pictures a few tiles each."""
    for sample in samples:
        view = intake.view(sample.source)
        for number in np.linspace(0, len(view) - 1, min(TILES, len(view))).round().astype(int):
            yield view.tile(int(number))[None]


def _bare(bundle: Bundle, graph: bytes, engine: str) -> Bundle:
    """The bundle with another graph, of which nothing is known yet: neither threshold nor golden scores."""
    judge = (OpenVinoEngine if engine == "openvino" else OnnxEngine)(graph)
    parity = {"engines": [judge.name], "tolerance": TOLERANCE, "worst_score": 0.0, "worst_map": 0.0}
    config = {**bundle.config, "parity": parity, "graph": described(graph)}
    files = {name: content for name, content in bundle.files.items() if name != "calibration.json"}
    files |= {"model.onnx": graph, "config.json": json.dumps(config, indent=1).encode(), "golden.json": b"[]"}
    return Bundle(files, bundle.origin)


def _calibrated(bundle: Bundle, engine: str, old: Calibration, good: Sequence[Sample], bad: Sequence[Sample]) -> Model:
    """By the policy of the old calibration."""
    wishes: dict[str, Any] = {"policy": old.policy}
    if old.policy == "false-alarm":
        least = 1 / (old.parts + 1) if old.confidence is None else upper(0, old.parts, old.confidence)
        # A rate that nobody asked for is found anew by the number of parts.
        wishes |= {"confidence": old.confidence}
        wishes |= {} if old.target == max(DEFAULT_TARGET, least) else {"false_alarm": old.target}
    elif old.policy == "no-escape":
        wishes |= {"margin": old.closer}
    elif old.policy == "manual":
        wishes |= {"threshold": old.threshold}
    elif old.policy == "cost":
        wishes |= {"escape_cost": old.costs["escape"], "reject_cost": old.costs["reject"]}
        wishes |= {"defect_rate": old.costs["defect_rate"], "review_cost": old.costs.get("review")}
    return calibrate(
        Model(bundle, engine),
        good,
        defects=list(bad) or None,
        per_picture=old.unit == "picture" or None,
        rule=old.rule,
        min_area_px=old.min_area_px,
        pitch_mm=old.pitch_mm,
        **wishes,
    )


def _told(made: Model, same: Bundle | None, known: Mapping[str, Any], lost: loss.Loss) -> Model:
    """The bundle says what was quantised and what that costs. `same`: its pictures are those of this bundle."""
    config = {**made.bundle.config, "int8": dict(known)}
    files = {
        "config.json": json.dumps(config, indent=1).encode(),
        "card.md": carded(made.card, graph_line(config), f"Precision: {lost.sentence}"),
    }
    if same is not None:
        files["data.jsonl"] = same.files["data.jsonl"]  # which would name the same pictures twice
    engine = "openvino" if made.engine.name.startswith("openvino") else "onnx"
    return Model(made.bundle.replace(files), engine)
