"""Calibrate a bundle anew: good parts, known defects or costs -> a threshold with its promise. Torch-free."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.run.model import Model
from flawmap.run.progress import progress
from flawmap.run.recipe import digest
from flawmap.types import Sample
from flawmap.verdict.calibration import POLICIES, Calibration, Parts, by_part
from flawmap.verdict.policies import Costs, cost, f1_oracle, manual, no_escape
from flawmap.verdict.regions import peak

_OF = {  # which wishes belong to which policy
    "false-alarm": {"false_alarm", "confidence"},
    "no-escape": {"margin"},
    "cost": {"escape_cost", "reject_cost", "defect_rate", "review_cost"},
    "manual": {"threshold"},
    "f1-oracle": set(),
}


@dataclass(frozen=True)
class Wishes:
    """What was asked for; None is not asked for. UsageError for a wish of another policy."""

    policy: str = "false-alarm"
    false_alarm: float | None = None  # of false-alarm: the rate
    confidence: float | None = None  # of false-alarm: with which it holds; None: on average over calibrations
    margin: float | None = None  # of no-escape: share of the way from the lowest defect to the median good part
    escape_cost: float | None = None
    reject_cost: float | None = None
    defect_rate: float | None = None  # of the line
    review_cost: float | None = None
    threshold: float | None = None  # of manual

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(f"no policy {self.policy!r}; there are: {', '.join(POLICIES)}")
        for policy, names in _OF.items():
            for name in names:
                if getattr(self, name) is not None and policy != self.policy:
                    raise UsageError(f"{name} belongs to the policy {policy}, and {self.policy} was chosen")
        needed = {"cost": ("escape_cost", "reject_cost", "defect_rate"), "manual": ("threshold",)}
        for name in needed.get(self.policy, ()):
            if getattr(self, name) is None:
                raise UsageError(f"the policy {self.policy} needs {name}")


def calibrate(
    model: Model,
    source: Any = None,
    *,
    defects: Any = None,
    per_picture: bool | None = None,
    rule: str | None = None,
    min_area_px: int | None = None,
    min_area_mm2: float | None = None,
    pitch_mm: float | None = None,
    part_pattern: str | None = None,
    skip_bad: bool = False,
    **wishes: Any,
) -> Model:
    """The model with another calibration, by good parts that it was not fitted on and, for some policies, by defects.

    source        good pictures; for the policies that know defects, its defective ones serve as well. Without good
                  pictures those of the model's own calibration are kept
    defects       pictures of known defects: a folder of kinds, a data set, a list
    per_picture   each picture is a part of its own: a promise about pictures, which does not hold for parts
    rule          the score of a part with several views: "largest" of theirs (default), or "mean"
    min_area_px   smaller regions are not marked (or min_area_mm2, with pitch_mm, the side of a pixel on the part)
    wishes        those of `Wishes`: policy, false_alarm, confidence, margin, escape_cost ...

    DataError for a picture that the model was fitted on; CalibrationError for what the parts cannot promise.
    """
    wish = _wishes(wishes)
    gate = _gate(min_area_px, min_area_mm2, pitch_mm)
    good, bad = _pictures(source, defects, wish.policy, part_pattern, skip_bad)
    known: dict[str, Any] = {
        "engine": model.engine.name,
        "precision": model.engine.name.split()[-1],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "defects_sha256": digest(bad) if bad else "",
    }
    if good:
        _refuse_fitted(model, good)
        how = {"unit": "picture" if per_picture else "part", "rule": rule or "largest"}
        known |= {"min_area_px": gate or 1, "pitch_mm": pitch_mm, "images": len(good), "data_sha256": digest(good)}
        parts = by_part([s.part for s in good], *_look(model, good, gate or 1), **how)
    else:
        parts, kept = _kept(model, per_picture, rule, gate)
        known |= kept | {"pitch_mm": pitch_mm or kept["pitch_mm"]}
    defective = None
    if bad:
        how = {"kinds": [s.kind or "defect" for s in bad], "unit": parts.unit, "rule": parts.rule}
        defective = by_part([s.part for s in bad], *_look(model, bad, known["min_area_px"]), **how)
    return recalibrated(model, _made(wish, parts, defective, known))


def recalibrated(model: Model, calibration: Calibration) -> Model:
    """The model with this calibration; what the bundle says of it elsewhere follows."""
    config = {**model.bundle.config, "map_typical": float(np.median(calibration.peaks))}
    golden = [{**entry, "nok": entry["score"] > calibration.threshold} for entry in model.bundle.json("golden.json")]
    card = model.card.split("\n\n", 2)
    files = {
        "calibration.json": json.dumps(calibration.to_dict(), indent=1).encode(),
        "config.json": json.dumps(config, indent=1).encode(),
        "golden.json": json.dumps(golden, indent=1).encode(),
        "card.md": "\n\n".join([card[0], calibration.sentence, *card[2:]]).encode(),
    }
    return Model(model.bundle.replace(files), model.engine.name.split()[0].removesuffix("runtime"))


def _wishes(given: dict[str, Any]) -> Wishes:
    names = {f.name for f in fields(Wishes)}
    if unknown := sorted(given.keys() - names):
        raise UsageError(f"calibrate knows no {', '.join(unknown)}; it knows {', '.join(sorted(names))}")
    return Wishes(**given)


def _made(wish: Wishes, good: Parts, bad: Parts | None, known: dict[str, Any]) -> Calibration:
    if wish.policy == "false-alarm":
        return Calibration.from_parts(good, false_alarm=wish.false_alarm, confidence=wish.confidence, **known)
    if wish.policy == "manual":
        return manual(good, float(wish.threshold or 0), bad, **known)
    if bad is None:
        raise DataError(f"the policy {wish.policy} takes known defects, and there are none: give a folder of them")
    if wish.policy == "no-escape":
        return no_escape(good, bad, margin=wish.margin or 0.0, **known)
    if wish.policy == "f1-oracle":
        return f1_oracle(good, bad, **known)
    costs = Costs(
        float(wish.escape_cost or 0), float(wish.reject_cost or 0), float(wish.defect_rate or 0), wish.review_cost
    )
    return cost(good, bad, costs, **known)


def _gate(area_px: int | None, area_mm2: float | None, pitch_mm: float | None) -> int | None:
    if pitch_mm is not None and not 0 < pitch_mm < float("inf"):
        raise UsageError(f"a pixel of {pitch_mm} mm: give the side of a pixel on the part, above 0")
    if area_mm2 is not None:
        if area_px is not None or pitch_mm is None:
            raise UsageError("give the least area in pixels, or in mm2 together with the pitch of a pixel")
        area_px = math.ceil(area_mm2 / pitch_mm**2 - 1e-9)
    if area_px is not None and area_px < 1:
        raise UsageError(f"a least area of {area_px} px: it is at least 1")
    return area_px


def _pictures(
    source: Any, defects: Any, policy: str, part_pattern: str | None, skip_bad: bool
) -> tuple[list[Sample], list[Sample]]:
    """Good parts and defective ones; of these all views, for a defect need not show in each."""
    found: list[Sample] = []
    if source is not None:
        found = _folder.find(source, part_pattern=part_pattern)
        if policy != "false-alarm" and any(s.split == "test" for s in found):
            found = [s for s in found if s.split == "test"]  # there the known defects are
        if unknown := [s.name for s in found if s.kind is None]:
            raise DataError(f"{source}: the data does not say whether {unknown[0]} is good")
    if defects is not None:
        found = [*found, *(s for s in _defects(defects, part_pattern) if not s.good)]
    broken = {s.part for s in found if not s.good}
    good, bad = [s for s in found if s.part not in broken], [s for s in found if s.part in broken]
    if policy == "false-alarm":
        if source is not None and not good:
            raise DataError(f"{source}: no good pictures to calibrate on")
        bad = []
    good, bad = (_folder.check(group, skip_bad=skip_bad)[0] if group else [] for group in (good, bad))
    return list(good), list(bad)


def _defects(source: Any, part_pattern: str | None) -> list[Sample]:
    """Where the data names no kind, it is the folder's name."""
    found = _folder.find(source, part_pattern=part_pattern, kind=None)
    return [
        replace(s, kind=s.name.split("/")[0] if "/" in s.name else "defect") if s.kind is None else s for s in found
    ]


def _kept(model: Model, per_picture: bool | None, rule: str | None, gate: int | None) -> tuple[Parts, dict[str, Any]]:
    """The good parts of the model's own calibration, where they can serve again, and what is known of them."""
    old = model.calibration
    if old is None or not old.peaks:
        raise DataError("no good pictures were given, and the bundle keeps no scores of good parts: give good pictures")
    differs = (per_picture not in (None, old.unit == "picture"), rule not in (None, old.rule))
    if any(differs) or gate not in (None, old.min_area_px):
        raise DataError(
            "the good parts that the bundle remembers were scored otherwise (per picture, by another rule for views, "
            "or with another least area): give good pictures"
        )
    if reason := model.unfit:
        raise CalibrationError(f"the good parts that the bundle remembers cannot serve: {reason}")
    same = ("min_area_px", "pitch_mm", "images", "data_sha256", "cross_fitted")
    known = {name: getattr(old, name) for name in same}
    return Parts(list(old.scores), list(old.peaks), [], old.views, old.unit, old.rule), known


def _look(model: Model, samples: Sequence[Sample], gate: int) -> tuple[list[float], list[float]]:
    """Score and peak of each picture."""
    scores, peaks = [], []
    with progress("calibrating", len(samples)) as tick:
        for number, sample in enumerate(samples):
            score, map = model.predict(sample.source)
            if not np.isfinite(score) or not np.isfinite(map).all():
                raise CalibrationError(f"{sample.name}: the score or the map is not a number; nothing can rest on it")
            scores.append(score)
            peaks.append(peak(map, gate))
            tick(number + 1)
    return scores, peaks


def _refuse_fitted(model: Model, samples: Sequence[Sample]) -> None:
    rows = [json.loads(line) for line in model.bundle.files["data.jsonl"].splitlines()]
    fitted = {row["sha256"]: row["name"] for row in rows if row.get("role", "").startswith("fit")}
    for sample in samples:
        if (name := fitted.get(_folder.sha256(sample))) is not None:
            raise DataError(
                f"{sample.name}: the model was fitted on this very picture ({name}); a calibration from pictures it "
                "knows would promise too much. Give good parts that it has not seen"
            )
