"""Calibrate a bundle anew: good parts, known defects or costs -> a threshold with its promise. Torch-free."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import BundleError, CalibrationError, DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.run.bundle import Bundle
from flawmap.run.export import golden_anew
from flawmap.run.model import Model
from flawmap.run.progress import progress, say
from flawmap.run.recipe import CALIBRATION, digest
from flawmap.types import Sample
from flawmap.verdict.calibration import POLICIES, Calibration
from flawmap.verdict.parts import RULES, Parts, by_part, said_views
from flawmap.verdict.policies import Costs, cost, f1_oracle, manual, no_escape
from flawmap.verdict.regions import peak

EARLIER, DEFECT = "calibration before this one", "defect"  # roles in data.jsonl, beside those of a fit
_OF = {  # which wishes belong to which policy
    "false-alarm": {"false_alarm", "confidence"},
    "no-escape": {"margin"},
    "cost": {"escape_cost", "reject_cost", "defect_rate", "review_cost"},
    "manual": {"threshold"},
    "f1-oracle": set(),
}
_RATE = (lambda value: 0 < value < 1, "a rate between 0 and 1, such as 0.01 for 1 %")
_COST = (lambda value: 1e-12 <= value <= 1e12, "a number above 0, at most 1e12")
_RANGES = {
    **dict.fromkeys(("false_alarm", "confidence", "defect_rate"), _RATE),
    **dict.fromkeys(("escape_cost", "reject_cost", "review_cost"), _COST),
    "margin": (lambda value: 0 <= value <= 1, "the share of the way to the median good part, from 0 to 1"),
    "threshold": (math.isfinite, "a finite number"),
}


@dataclass(frozen=True)
class Wishes:
    """What was asked for; None is not asked for. UsageError for a wish of another policy, or one out of its range."""

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
        for name, (fits, words) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise UsageError(f"{name} is {value}: give {words}")


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
    wish = _wishes(wishes, rule, defects)
    gate = _gate(min_area_px, min_area_mm2, pitch_mm)
    good, bad = _pictures(source, defects, wish.policy, part_pattern, skip_bad)
    known: dict[str, Any] = {
        "engine": model.engine.name,
        "precision": model.engine.name.split()[-1],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
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
    bad, others = _seen_alike(bad, parts.views, parts.unit)
    if bad:
        known |= {"set_aside": others, "defects_sha256": digest(bad)}
        how = {"kinds": [s.kind or "defect" for s in bad], "unit": parts.unit, "rule": parts.rule}
        defective = by_part([s.part for s in bad], *_look(model, bad, known["min_area_px"]), **how)
    return recalibrated(model, _made(wish, parts, defective, known), good, bad)


def recalibrated(
    model: Model, calibration: Calibration, good: Sequence[Sample] = (), bad: Sequence[Sample] = ()
) -> Model:
    """The model with this calibration, which rests on `good` and `bad`; what the bundle says elsewhere follows."""
    bundle = model.bundle
    config = {**bundle.config, "map_typical": float(np.median(calibration.peaks))}
    card = model.card.split("\n\n", 2)
    files = {
        **golden_anew(model.engine, model.intake, bundle.files, calibration),
        "calibration.json": json.dumps(calibration.to_dict(), indent=1).encode(),
        "config.json": json.dumps(config, indent=1).encode(),
        "data.jsonl": _data(bundle, good, bad),
        "card.md": "\n\n".join([card[0], calibration.sentence, *card[2:]]).encode(),
    }
    return Model(Bundle(files, bundle.origin), model.engine.name.split()[0].removesuffix("runtime"))


def _data(bundle: Bundle, good: Sequence[Sample], bad: Sequence[Sample]) -> bytes:
    """The bundle's list of pictures, in its order, with those of the new calibration behind it."""
    rows = []
    for row in _rows(bundle):
        if row.get("role") == CALIBRATION and good:
            row = {**row, "role": EARLIER}
        if row.get("role") != DEFECT:
            rows.append(row)
    for role, samples in ((CALIBRATION, good), (DEFECT, bad)):
        rows += [{"name": s.name, "sha256": _folder.sha256(s), "part": s.part, "role": role} for s in samples]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _rows(bundle: Bundle) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in bundle.files["data.jsonl"].splitlines()]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{bundle.origin}: data.jsonl is missing or damaged; get the bundle again") from error


def _wishes(given: dict[str, Any], rule: str | None, defects: Any) -> Wishes:
    names = {f.name for f in fields(Wishes)}
    if unknown := sorted(given.keys() - names):
        raise UsageError(f"calibrate knows no {', '.join(unknown)}; it knows {', '.join(sorted(names))}")
    wish = Wishes(**given)
    if rule not in (None, *RULES):
        raise UsageError(f"no rule {rule!r} for views; there are: {', '.join(RULES)}")
    if defects is not None and wish.policy == "false-alarm":
        raise UsageError("defects say nothing about false alarms: choose a policy that knows them, or leave them out")
    return wish


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
    for value, what in ((pitch_mm, "a pixel"), (area_mm2, "a least area")):
        if value is not None and not 1e-9 <= value <= 1e9:
            raise UsageError(f"{what} of {value} mm (mm2): give a number above 0")
    if area_mm2 is not None:
        if area_px is not None or pitch_mm is None:
            raise UsageError("give the least area in pixels, or in mm2 together with the pitch of a pixel")
        area_px = max(1, math.ceil(area_mm2 / pitch_mm**2 - 1e-9))
    if area_px is not None and area_px < 1:
        raise UsageError(f"a least area of {area_px} px: it is at least 1")
    return area_px


def _pictures(
    source: Any, defects: Any, policy: str, part_pattern: str | None, skip_bad: bool
) -> tuple[list[Sample], list[Sample]]:
    """Good parts, and defective ones with all their views, for a defect need not show in each."""
    found: list[Sample] = [] if source is None else _folder.find(source, part_pattern=part_pattern)
    listed = isinstance(source, str | Path) and Path(source).is_file()  # a list need not say which split a row is of
    if policy != "false-alarm" and not listed and any(s.split == "test" for s in found):
        found = [s for s in found if s.split == "test"]  # there the known defects are
    if unknown := [s.name for s in found if s.kind is None]:
        raise DataError(f"{source}: the data does not say whether {unknown[0]} is good")
    good, bad = _apart(found)
    if any(s.good for s in found) and not good:
        raise DataError(f"{source}: no part is good in all its views, so none can calibrate; check the names of parts")
    if policy == "false-alarm":
        if source is not None and not good:
            raise DataError(f"{source}: no good pictures to calibrate on")
        bad = []
    if defects is not None:
        # The same name in two places is two parts.
        bad += [replace(s, part=f"defects: {s.part}") for s in _apart(_known(defects, part_pattern))[1]]
    good, bad = (_whole(group, skip_bad) if group else [] for group in (good, bad))
    _refuse_copies([*good, *bad])
    return good, bad


def _apart(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Those of parts that are good in all views, and the others."""
    broken = {s.part for s in samples if not s.good}
    return [s for s in samples if s.part not in broken], [s for s in samples if s.part in broken]


def _known(source: Any, part_pattern: str | None) -> list[Sample]:
    """Where the data names no kind, it is the folder's name."""
    found = _folder.find(source, part_pattern=part_pattern, kind=None)
    return [
        replace(s, kind=s.name.split("/")[0] if "/" in s.name else "defect") if s.kind is None else s for s in found
    ]


def _whole(samples: Sequence[Sample], skip_bad: bool) -> list[Sample]:
    """Those that can be read; a part that lacks a view would be judged by the views that are left, so it goes too."""
    kept, left_out = _folder.check(samples, skip_bad=skip_bad)
    gone = {name for name, _ in left_out}
    lost = {s.part for s in samples if s.name in gone}
    for name, reason in left_out:
        say(f"left out, with all views of its part: {name}: {reason}")
    return [s for s in kept if s.part not in lost]


def _refuse_copies(samples: Sequence[Sample]) -> None:
    """The same file as two parts would count twice, and as good and as defective it is one of the two."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(_folder.sha256(sample), sample)
        if other is not sample and other.part != sample.part:
            raise DataError(
                f"{sample.name} and {other.name} are the same file, as parts {sample.part!r} and {other.part!r}: a "
                "part counts once. Remove the copy, or say which pictures show one part"
            )


def _seen_alike(samples: Sequence[Sample], views: tuple[int, int], unit: str) -> tuple[list[Sample], int]:
    """Of defective parts those with as many views as the good ones have, and how many others there are."""
    if unit == "picture":  # each view stands alone, and one that shows nothing is no defect
        return [s for s in samples if not s.good], 0
    counts = Counter(s.part for s in samples)
    alike = {part for part, count in counts.items() if views[0] <= count <= views[1]}
    if samples and not alike:
        raise DataError(
            f"the good parts have {said_views(views)}, and no defective part has: a calibration judges parts that were "
            "photographed alike. Give defective parts with so many views"
        )
    return [s for s in samples if s.part in alike], len(counts) - len(alike)


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
    rows = _rows(model.bundle)
    fitted = {row["sha256"]: row["name"] for row in rows if row.get("role", "").startswith("fit")}
    for sample in samples:
        if (name := fitted.get(_folder.sha256(sample))) is not None:
            raise DataError(
                f"{sample.name}: the model was fitted on this very picture ({name}); a calibration from pictures it "
                "knows would promise too much. Give good parts that it has not seen"
            )
