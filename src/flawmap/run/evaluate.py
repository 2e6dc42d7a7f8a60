"""Evaluate a bundle on a test set: torch-free, with the engine that judges at the line."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import BundleError, CalibrationError, DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.loco import regions
from flawmap.images.masks.levels import read_mask
from flawmap.images.protocol import Protocol
from flawmap.images.protocol import protocol as chosen
from flawmap.report.gallery import codes
from flawmap.run.model import Model
from flawmap.run.progress import progress
from flawmap.run.recipe import digest, write_csv, write_json
from flawmap.run.show import scale, test_report
from flawmap.types import GOOD, Sample, Verdict
from flawmap.verdict.bootstrap import bootstrap
from flawmap.verdict.metrics import auroc, average_precision, fpr_at_no_escape, summary
from flawmap.verdict.pixels import PixelMetrics


@dataclass(frozen=True)
class Scored:
    """One picture of the test; verdict and p-value are those of its part."""

    sample: Sample
    score: float
    peak: float
    verdict: Verdict | None = None
    p_value: float | None = None
    part_score: float | None = None  # by the calibration's rule for views
    small: np.ndarray | None = field(default=None, repr=False, compare=False)  # its map for the report, 4 kB of uint8


@dataclass(frozen=True)
class Evaluated:
    source: str
    pictures: Sequence[Scored]
    metrics: dict[str, Any]
    notes: Sequence[str]
    embedding: np.ndarray | None = None  # (N, 2): where each picture lies among the others


def evaluate(
    model: Model,
    source: Any,
    out: Path,
    *,
    part_pattern: str | None = None,
    skip_bad: bool = False,
    name: str = "",
    protocol: str | Protocol = "plain",
    tsne: bool = False,
) -> Evaluated:
    """Judges all pictures of `test` (or all, where there is no train and test), and writes scores, metrics, report.

    `name` is what the report calls the pictures, where `source` is no path. `protocol` says at what size maps and masks
    are compared; how pictures come to the network's size is the bundle's. `tsne` lays the pictures out (needs torch).
    With `skip_bad` a part with a view that cannot be read is left out with all its views, and noted.
    """
    samples = _folder.find(source, part_pattern=part_pattern, kind=None)
    tested, notes = usable([s for s in samples if s.split == "test"] or samples, skip_bad)
    if part_pattern is not None:
        notes += mixed(tested)
    title = name or (Path(source).name if isinstance(source, (str, Path)) else "pictures")
    return judge(model, tested, notes, out, title, protocol=protocol, tsne=tsne)


def judge(
    model: Model,
    tested: Sequence[Sample],
    notes: Sequence[str],
    out: Path,
    title: str,
    *,
    protocol: str | Protocol = "plain",
    tsne: bool = False,
) -> Evaluated:
    """The work of `evaluate` on samples that were chosen and checked; `notes` is what is known of the choice."""
    if tsne and model.intake.tile is not None:
        raise UsageError("t-SNE lays out whole pictures, and this model sees tiles: evaluate it without")
    notes = [*notes, *_doubts(model, tested)]
    pixels, scored = Pixels(model, chosen(protocol)), []
    with progress("inspecting", len(tested)) as tick:
        for number, sample in enumerate(tested):
            scored.append(_score(model, sample, pixels))
            tick(number + 1)
    scored = _judged(model, scored, notes)
    notes += pixels.notes()
    metrics = {**_image_metrics(scored), **pixels.result(), "seconds_per_picture": pixels.seconds / len(tested)}
    evaluated = Evaluated(title, scored, metrics, notes, _laid_out(model, tested) if tsne else None)
    out.mkdir(parents=True, exist_ok=True)
    head = ["name", "part", "kind", "score", "peak", "verdict", "p_value"]
    write_csv(out / "scores.csv", head, [_row(entry) for entry in scored])
    about = {"pictures_sha256": digest(tested), **_made_by(model)}
    write_json(out / "metrics.json", {**metrics, "notes": notes, **about})
    test_report(model, evaluated, out / "report.html")
    return evaluated


def usable(samples: Sequence[Sample], skip_bad: bool) -> tuple[list[Sample], list[str]]:
    """The samples that can be judged, and notes; everything is decoded, so that work does not stop half way.

    A part is judged by all its views (and in a study by all presentations): where one cannot be read, with `skip_bad`
    all of the part is left out, and no defect passes because only its other views were seen. DataError: a picture that
    cannot be read without `skip_bad`, or no part is left.
    """
    fine, bad = _folder.check(samples, skip_bad=skip_bad)
    if not bad:
        return fine, []
    notes = [f"left out: {name}: {reason}" for name, reason in bad]
    broken = {name for name, _ in bad}
    parts = dict.fromkeys(s.part for s in samples if s.name in broken)
    for part in parts:
        others = sum(s.part == part for s in fine)
        if others:
            notes.append(f"left out: part {part}: a picture of it cannot be read, so none of it counts ({others} more)")
    kept = [s for s in fine if s.part not in parts]
    if not kept:
        raise DataError("\n".join(["every part has a picture that cannot be read; mend them:", *notes[:20]]))
    return kept, notes


def mixed(samples: Sequence[Sample]) -> list[str]:
    """A note where a pattern put pictures of several kinds into one part: mostly the same number in other folders."""
    kinds: dict[str, set[str]] = {}
    for sample in samples:
        if sample.kind is not None:
            kinds.setdefault(sample.part, set()).add(sample.kind)
    parts = [part for part, found in kinds.items() if len(found) > 1]
    if not parts:
        return []
    found = kinds[parts[0]]
    what = "good and defective pictures" if GOOD in found else f"pictures of {' and '.join(sorted(found))}"
    more = f" (and {len(parts) - 1} parts more)" if len(parts) > 1 else ""
    return [f"part {parts[0]} has {what}{more}: is the part pattern too short?"]


def known(model: Model, samples: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Those of the samples, by SHA-256, that fitted or calibrated the model, and their role in it."""
    try:
        rows = [json.loads(line) for line in model.bundle.files.get("data.jsonl", b"").splitlines()]
        roles = {row["sha256"]: row["role"] for row in rows if "role" in row}
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{model.bundle.origin}: data.jsonl is damaged; get the bundle again") from error
    pairs = ((sample, roles.get(_folder.sha256(sample))) for sample in samples)
    return [(sample, role) for sample, role in pairs if role is not None]


def refuse_known(model: Model, samples: Sequence[Sample]) -> None:
    """Of a study that someone signs. DataError: names the picture and its role."""
    if found := known(model, samples):
        sample, role = found[0]
        more = f", as were {len(found) - 1} more of the pictures" if len(found) > 1 else ""
        raise DataError(
            f"{sample.name}: this very picture was used to make the model (role {role!r}){more}: rates on it are too "
            "good to be accepted; give parts that the model has not seen, or evaluate without --acceptance"
        )


def _doubts(model: Model, samples: Sequence[Sample]) -> list[str]:
    """What makes the rates look better than the line will be."""
    doubts = []
    if model.calibration is not None and model.calibration.policy == "f1-oracle":
        doubts.append(
            "the threshold is an F1 oracle, read off known answers: its rates are those of no operating point"
        )
    if found := len(known(model, samples)):
        are = "was" if found == 1 else "were"
        doubts.append(f"{found} of the pictures {are} used to fit or calibrate this model: rates on them are too good")
    return doubts


def _laid_out(model: Model, samples: Sequence[Sample]) -> np.ndarray:
    from flawmap.run.embed import embedding

    return embedding(model, samples)


def _made_by(model: Model) -> dict[str, Any]:
    """What is said of the model beside its figures, so that a comparison (run/versus.py) needs no bundle."""
    told = ("policy", "sentence", "threshold", "review_threshold", "rule")
    calibration = model.calibration and {key: getattr(model.calibration, key, None) for key in told}
    return {"method": model.bundle.config["title"], "bundle_sha256": model.bundle.sha256, "calibration": calibration}


def in_words(evaluated: Evaluated) -> dict[str, str]:
    """The figures for a person's table; what is undefined says why."""
    m = evaluated.metrics
    words = {"pictures": str(m["pictures"])}
    for key, label in (("i_auroc", "I-AUROC"), ("p_auroc", "P-AUROC"), ("p_ap", "P-AP"), ("pro", "PRO")):
        value = m.get(key)
        why = (
            m.get("why")
            if key in ("p_auroc", "p_ap", "pro")
            else m.get("why_no_metrics", "good and defective are needed")
        )
        words[label] = f"{value:.4f}" if value is not None else f"undefined: {why}"
    for key, label in (("false_alarms", "false alarms"), ("escapes", "escapes")):
        if (rate := m.get(key)) is not None:
            bounds = f"95 % bounds {rate['low']:.1%} to {rate['high']:.1%}"
            words[label] = f"{rate['count']} of {rate['n']} parts ({bounds})"
    if m.get("reviews"):
        words["for review"] = f"{m['reviews']} of {m['parts']} parts"
    words["a picture takes"] = f"{m['seconds_per_picture'] * 1000:.0f} ms from disk to map"
    for number, note in enumerate(evaluated.notes):
        words[f"note {number + 1}"] = note
    return words


class Pixels:
    """Maps and masks under one protocol, on their way into the metrics; counts what a crop takes from the masks."""

    def __init__(self, model: Model, protocol: Protocol) -> None:
        self.model, self.protocol, self.metrics = model, protocol, PixelMetrics()
        self.sentence = protocol.said(model.intake)
        self.seconds = 0.0  # from disk to map
        self.lost: list[str] = []
        self.cut: list[str] = []
        self.ignoring: list[str] = []

    def add(self, sample: Sample, map: np.ndarray, whole: np.ndarray) -> None:
        """A map as the network gives it, and the same over the whole picture."""
        size = whole.shape
        mask, ignored = (None, None) if sample.mask is None else read_mask(sample.mask, size, sample.name)
        if mask is not None and mask.any():
            seen = self._seen(mask)
            if not self._placed(mask).any() or not seen.any():
                self.lost.append(sample.name)
            elif mask.sum() != seen.sum():
                self.cut.append(sample.name)
        map = whole if self.protocol.at == "picture" else map
        given = [self._region(*region) for region in regions(sample)]
        seen = [(region, saturation) for region, saturation in given if region.any()]
        placed = None if mask is None else self._placed(mask)
        if given and placed is not None:  # pixels that are in the union's reduction but in no region's are none's
            placed = np.logical_or.reduce([region for region, _ in given])
        if ignored is not None:
            self.ignoring.append(sample.name)
            ignored = self._placed(ignored, least=0)
        self.metrics.add(map, placed, good=sample.good, regions=seen, ignored=ignored)

    def _seen(self, mask: np.ndarray) -> np.ndarray:
        """What of a mask lies where the model looks."""
        left, top, right, bottom = self.model.intake.seen((mask.shape[0], mask.shape[1]))
        hidden = self.model.intake.hidden((mask.shape[0], mask.shape[1]))
        return (mask if hidden is None else mask & ~hidden)[top:bottom, left:right]

    def _placed(self, mask: np.ndarray, least: float = 0.5) -> np.ndarray:
        return mask if self.protocol.at == "picture" else self.protocol.reduced(mask, self.model.intake, least)

    def _region(self, mask: np.ndarray, saturation: float) -> tuple[np.ndarray, float]:
        """Its saturation is so many pixels of a picture; where the picture shrinks, so do they."""
        placed = self._placed(mask)
        left, top, right, bottom = self.model.intake.seen((mask.shape[0], mask.shape[1]))
        shrunk = placed.size / ((right - left) * (bottom - top)) if self.protocol.at == "network" else 1.0
        return placed, min(saturation * shrunk, float(placed.sum()))

    def notes(self) -> list[str]:
        found = []
        if self.lost:
            found.append(
                f"{len(self.lost)} defective pictures lost their whole defect to what is not seen: {self.lost[0]}"
            )
        if self.cut:
            found.append(f"{len(self.cut)} defective pictures lost a part of it to what is not seen: {self.cut[0]}")
        if self.ignoring:
            masks = f"{len(self.ignoring)} masks have" if len(self.ignoring) > 1 else "1 mask has"
            found.append(f"{masks} pixels to ignore, which count in no pixel metric: {self.ignoring[0]}")
        return found

    def result(self) -> dict[str, Any]:
        words = {"protocol": self.sentence, "lost_defects": len(self.lost), "cut_defects": len(self.cut)}
        return {**self.metrics.result(), **words}


def look(model: Model, sample: Sample) -> tuple[float, np.ndarray, tuple[int, int]]:
    """`Model.look`, where neither score nor map may be NaN: CalibrationError."""
    score, map, size = model.look(sample.source)
    if not np.isfinite(score) or not np.isfinite(map).all():
        raise CalibrationError(f"{sample.name}: the score or the map is not a number, so no verdict can be given")
    return score, map, size


def _score(model: Model, sample: Sample, pixels: Pixels) -> Scored:
    begun = time.monotonic()
    score, map, size = look(model, sample)
    whole = model.over(map, size)
    pixels.seconds += time.monotonic() - begun
    if sample.kind is not None:
        pixels.add(sample, map, whole)
    return Scored(sample, score, float(whole.max()), small=codes(whole, scale(model)))


def _judged(model: Model, scored: list[Scored], notes: list[str]) -> list[Scored]:
    """Verdicts by part. A part with another number of views than the calibration knows gets none, and is noted."""
    if model.calibration is None:
        notes.append("the model is not calibrated: scores and maps, no verdicts")
        return scored
    if model.unfit:
        notes.append(f"no verdicts: {model.unfit}, with flawmap calibrate")
        return scored
    parts: dict[str, list[Scored]] = {}
    for entry in scored:
        parts.setdefault(entry.sample.part, []).append(entry)
    judged, refused = {}, 0
    for part, views in parts.items():
        try:
            judged[part] = model.judge([v.score for v in views])
        except CalibrationError:
            refused += 1
            judged[part] = (model.calibration.score([v.score for v in views]), None, None)
    if refused:
        low, high = model.calibration.views
        count = f"{low}" if low == high else f"{low} to {high}"
        notes.append(f"{refused} of {len(parts)} parts got no verdict: the calibration judges parts of {count} views")
    found = []
    for entry in scored:
        score, verdict, p_value = judged[entry.sample.part]
        found.append(replace(entry, verdict=verdict, p_value=p_value, part_score=score))
    return found


def _image_metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """AUROC and AP count pictures, as the field does; escapes and false alarms count parts that got a verdict."""
    told = [e for e in scored if e.sample.kind is not None]
    if not told:
        return {"pictures": len(scored), "why_no_metrics": "the data does not say which pictures are good"}
    defect = [not e.sample.good for e in told]
    scores = [e.score for e in told]
    parts = _by_part(told)
    judged = [p for p in parts if p.verdict is not None]
    by_part = summary([p.score for p in parts], [p.sample.kind for p in parts])
    found = {**by_part, "part_auroc": by_part["i_auroc"], "pictures": len(scored), "parts": len(parts)}
    found |= {"i_auroc": auroc(scores, defect), "i_ap": average_precision(scores, defect)}
    bounds = bootstrap(scores, defect, [e.sample.part for e in told])
    found |= dict(zip(("i_auroc_low", "i_auroc_high"), bounds or (None, None), strict=True))
    found["fpr_at_no_escape_oracle"] = fpr_at_no_escape([p.score for p in parts], [not p.sample.good for p in parts])
    if judged:
        counts = summary(
            [p.score for p in judged], [p.sample.kind for p in judged], [p.verdict or Verdict.NOK for p in judged]
        )
        found |= {key: counts[key] for key in ("false_alarms", "escapes", "reviews")}
        for kind, row in found["kinds"].items():
            row["escapes"] = counts["kinds"].get(kind, {}).get("escapes")
            row["judged"] = counts["kinds"].get(kind, {}).get("n", 0)
    return found


def _by_part(scored: Sequence[Scored]) -> list[Scored]:
    """The strangest view of every part; a part is defective when one of its views is."""
    parts: dict[str, Scored] = {}
    for entry in scored:
        seen = parts.get(entry.sample.part)
        if seen is None:
            parts[entry.sample.part] = entry
            continue
        kind = next((e.sample.kind for e in (seen, entry) if not e.sample.good), seen.sample.kind)
        strangest = max(seen, entry, key=lambda e: e.score)
        parts[entry.sample.part] = replace(strangest, sample=replace(strangest.sample, kind=kind))
    return [e if e.part_score is None else replace(e, score=e.part_score) for e in parts.values()]


def _row(entry: Scored) -> list[str]:
    s, p_value = entry.sample, "" if entry.p_value is None else repr(entry.p_value)
    return [s.name, s.part, s.kind or "", repr(entry.score), repr(entry.peak), str(entry.verdict or ""), p_value]
