"""Acceptance of a station with a bundle: rates by kind and size, agreement and gauge R&R over repeated presentations.

Pictures become presentations: a part, shown once, at one station, in all its views. `--trial-pattern` is searched in
each picture's name and tells which: its one group is the trial, or its groups `trial` and `station`. A folder that
holds one of them is then left out of the name, and of a file's name the group's text alone; what remains is the same
for every presentation of a part, and `--part-pattern` is searched in it. Where the data does not say what a picture is,
the first folder that remains does: `trial-1/good/007_a.png` is a good part's, and `trial-1/ground_truth/scratch/` holds
masks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flawmap.errors import CalibrationError, DataError, UsageError
from flawmap.images import folder as _folder
from flawmap.images.decode import size_of
from flawmap.images.masks.levels import read_mask
from flawmap.run.evaluate import Evaluated, judge, look, mixed, refuse_known, usable
from flawmap.run.model import Model
from flawmap.run.progress import progress
from flawmap.run.recipe import write_csv, write_json
from flawmap.types import GOOD, Sample, Verdict
from flawmap.verdict.acceptance import Judged, rates
from flawmap.verdict.agreement import Decision, agreement
from flawmap.verdict.gauge import Reading, gauge

NO_TRIALS = "no repeated presentation was given (--trial-pattern): nothing is known of repeatability"
COLUMNS = ["part", "station", "trial", "kind", "size_px", "score", "verdict", "outcome"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture stands in the study."""

    station: str
    trial: str


@dataclass(frozen=True, slots=True)
class Presentation:
    """A part as it was shown once: verdict and score over all its views."""

    place: Place
    judged: Judged
    score: float


def accept(
    model: Model,
    source: Any,
    out: Path,
    *,
    trial_pattern: str | None = None,
    part_pattern: str | None = None,
    skip_bad: bool = False,
    protocol: str = "plain",
    tsne: bool = False,
) -> tuple[Evaluated, dict[str, Any]]:
    """`evaluate`, and beside its files `acceptance.json` and `acceptance.csv` (one row a presentation).

    With trials, `evaluate` judges the first presentation of every part, and so do the rates: a part counts once.
    With `skip_bad` a part with a picture that cannot be read is left out of all trials. Before anything is judged:
    CalibrationError for a model that gives no verdicts, or whose threshold is an oracle; DataError for pictures of
    unknown kind or that fitted or calibrated the model, the same file given as two presentations, parts that were not
    all presented equally often, fewer than two trials at a station.
    """
    _refuse_model(model)
    if trial_pattern is None:
        samples = _folder.find(source, part_pattern=part_pattern, kind=None)
        placed = {("", ""): [s for s in samples if s.split == "test"] or samples}
    else:
        placed = place(_folder.find(source, kind=None), trial_pattern, part_pattern)
        _refuse_unequal(placed)
    every = [sample for samples in placed.values() for sample in samples]
    if unknown := [s.name for s in every if s.kind is None]:
        raise DataError(f"{unknown[0]}: nothing says whether it is good, so nothing can be accepted on it")
    fine, notes = usable(every, skip_bad)
    kept = {id(sample) for sample in fine}
    placed = {key: [s for s in samples if id(s) in kept] for key, samples in placed.items()}
    _refuse_copies(placed)
    refuse_known(model, fine)
    first, *others = placed
    hints = [] if part_pattern is None else mixed(placed[first])
    notes += hints
    title = Path(source).name if isinstance(source, str | Path) else "pictures"
    found = judge(model, placed[first], notes, out, title, protocol=protocol, tsne=tsne)
    scored = [(Place(*first), e.sample, e.score) for e in found.pictures]
    shown = _presentations(model, scored + _scored(model, [(Place(*key), s) for key in others for s in placed[key]]))
    if trial_pattern is None:
        accepted = {"stations": [_station(shown)], "gauge": None, "gauge_good": None, "notes": [NO_TRIALS]}
    else:
        accepted = _study(shown, hints)
    accepted["notes"] += notes
    write_json(out / "acceptance.json", {**accepted, "bundle_sha256": model.bundle.sha256})
    write_csv(out / "acceptance.csv", COLUMNS, [_row(p) for p in shown])
    return found, accepted


def place(
    samples: Sequence[Sample], trial_pattern: str, part_pattern: str | None = None
) -> dict[tuple[str, str], list[Sample]]:
    """(station, trial) -> its samples, with part, kind and mask as the name without both says.

    Raises UsageError for a pattern that cannot be meant, DataError for a name without a trial or without a kind.
    """
    expression, part_of = _expression(trial_pattern), _part(part_pattern)
    tested = [s for s in samples if s.split == "test"] or list(samples)
    placed: dict[tuple[str, str], list[Sample]] = {}
    masks: dict[tuple[str, str, str], Any] = {}
    for sample in tested:
        key, name = _cut(sample.name, expression)
        name = name.removeprefix("test/")
        if sample.kind is None and name.startswith("ground_truth/"):
            stem = name.removeprefix("ground_truth/").rsplit(".", 1)[0].removesuffix("_mask")
            masks[(*key, stem)] = sample.source
            continue
        kind = sample.kind or name.rpartition("/")[0].split("/")[0]
        if not kind or (sample.kind is None and kind == "train"):
            raise DataError(
                f"{sample.name}: nothing says whether it is good; put it in a folder good/ or <kind of defect>/, and "
                "give the presentations alone"
            )
        given = sample.part != sample.name
        if given and part_pattern is not None:
            raise UsageError("parts are named by the data and by part_pattern; use one of them")
        part = sample.part if given else part_of(name)
        placed.setdefault(key, []).append(replace(sample, kind=kind, part=part, split="test"))
    for key, group in placed.items():
        names = [_cut(s.name, expression)[1].removeprefix("test/").rsplit(".", 1)[0] for s in group]
        placed[key] = [
            s if s.mask is not None or s.good else replace(s, mask=masks.get((*key, name)))
            for s, name in zip(group, names, strict=True)
        ]
    return dict(sorted(placed.items(), key=lambda item: tuple(map(_natural, item[0]))))


def in_words(accepted: dict[str, Any]) -> dict[str, str]:
    """The acceptance as a person's table."""
    words: dict[str, str] = {}
    for entry in accepted["stations"]:
        at = f"{entry['station']}: " if entry["station"] else ""
        words |= _rates_in_words(at, entry["rates"])
        if entry["agreement"]:
            words |= _agreement_in_words(at, entry["agreement"])
    for key, of in (("gauge", "the score"), ("gauge_good", "the score, good parts alone")):
        if accepted[key]:
            words |= _gauge_in_words(of, accepted[key])
    for number, note in enumerate(accepted["notes"]):
        words[f"acceptance note {number + 1}"] = note
    return words


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"trial_pattern {pattern!r} is not a regular expression ({error})") from error
    named = set(expression.groupindex)
    if not (named == {"trial"} or named == {"trial", "station"} or (not named and expression.groups == 1)):
        raise UsageError(
            f"trial_pattern {pattern!r}: give one group, the trial, as in 'trial-(\\d+)', or groups named trial and "
            "station, as in '(?P<station>[AB])/trial-(?P<trial>\\d+)'"
        )
    return expression


def _part(pattern: str | None) -> Any:
    """Name without its trial -> part. Without a pattern every picture that remains is a part of its own."""
    if pattern is None:
        return lambda name: name

    def part(name: str) -> str:
        one = Sample(Path(name), name, name, kind=None)
        return _folder._match_parts([one], pattern)[0].part

    return part


def _cut(name: str, expression: re.Pattern[str]) -> tuple[tuple[str, str], str]:
    """(station, trial), and the name without them: folders that hold one are left out, of the file's name the text."""
    match = expression.search(name)
    groups = expression.groupindex
    trial = match and match["trial" if groups else 1]
    station = match["station"] if match and "station" in groups else ""
    if match is None or not trial or ("station" in groups and not station):
        raise DataError(f"trial_pattern {expression.pattern!r} finds no trial in the name {name}")
    spans = sorted((match.span(group) for group in (groups or (1,))), reverse=True)
    folders = name.rfind("/") + 1
    file = name[folders:]
    for begin, end in spans:
        if begin >= folders:
            file = file[: begin - folders] + file[end - folders :]
    kept, at = [], 0
    for piece in name[:folders].split("/")[:-1]:
        if not any(begin < at + len(piece) + 1 and end > at for begin, end in spans):
            kept.append(piece)
        at += len(piece) + 1
    return (station, trial), "/".join([*kept, file])


def _natural(text: str) -> tuple[list[tuple[str, int]], str]:
    """To sort as people count: trial 9 before 10."""
    return [(words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d*)", text)], text


def _refuse_model(model: Model) -> None:
    if model.calibration is None or model.unfit:
        raise CalibrationError(f"{model.unfit or 'the model is not calibrated'}: it gives no verdicts to be accepted")
    if model.calibration.policy == "f1-oracle":
        raise CalibrationError(
            "the threshold is an F1 oracle, read off known answers, and no operating point: nothing can be accepted "
            "with it; calibrate with another policy"
        )


def _refuse_unequal(placed: dict[tuple[str, str], list[Sample]]) -> None:
    """Before anything is scored: at each station the same trials, two or more, and in each every part and view."""
    trials: dict[str, list[str]] = {}
    for station, trial in placed:
        trials.setdefault(station, []).append(trial)
    begun, *_ = trials
    for station, its in trials.items():
        at = f"station {station}: " if station else ""
        if len(its) < 2:
            raise DataError(f"{at}{len(its)} presentation of each part: agreement takes at least 2 trials")
        if its != trials[begun]:
            raise DataError(
                f"station {begun} has the trials {', '.join(trials[begun])}, station {station} {', '.join(its)}: "
                "present every part equally often at each station, and number the trials alike, from 1 at each"
            )
    views = {key: Counter(sample.part for sample in samples) for key, samples in placed.items()}
    first, *others = views
    for key in others:
        for part in sorted(views[first].keys() | views[key].keys()):
            if views[first][part] != views[key][part]:
                told = [f"{views[k][part]} pictures in {' '.join(filter(None, k))}" for k in (first, key)]
                raise DataError(f"part {part} has {told[0]} and {told[1]}: present every part equally often")


def _refuse_copies(placed: dict[tuple[str, str], list[Sample]]) -> None:
    seen: dict[str, tuple[tuple[str, str], str]] = {}
    for key, samples in placed.items():
        for sample in samples:
            before = seen.setdefault(_folder.sha256(sample), (key, sample.name))
            if before[0] != key:
                raise DataError(
                    f"{sample.name} is the same file as {before[1]}: a trial is the part presented again, not one "
                    "picture scored twice, which always agrees with itself"
                )


def _scored(model: Model, pictures: Sequence[tuple[Place, Sample]]) -> list[tuple[Place, Sample, float]]:
    if not pictures:
        return []
    found = []
    with progress("inspecting again", len(pictures)) as tick:
        for where, sample in pictures:
            found.append((where, sample, look(model, sample)[0]))
            tick(len(found))
    return found


def _presentations(model: Model, scored: Sequence[tuple[Place, Sample, float]]) -> list[Presentation]:
    assert model.calibration is not None
    groups: dict[tuple[Place, str], list[tuple[Sample, float]]] = {}
    for where, sample, score in scored:
        groups.setdefault((where, sample.part), []).append((sample, score))
    found = []
    for (where, part), views in groups.items():
        scores = [score for _, score in views]
        try:
            score, verdict, _ = model.judge(scores)
        except CalibrationError:  # more views than the calibration knows, or fewer
            score, verdict = model.calibration.score(scores), None
        kind = next((s.kind for s, _ in views if not s.good), GOOD) or GOOD
        sizes = [size for s, _ in views if (size := _size(s)) is not None]
        found.append(Presentation(where, Judged(part, kind, verdict, max(sizes, default=None)), score))
    return found


def _size(sample: Sample) -> int | None:
    """Pixels of the defect's mask, without those to ignore; None: good, no mask, or a mask that is empty."""
    if sample.mask is None or sample.good:
        return None
    return int(read_mask(sample.mask, size_of(sample.source), sample.name).defect.sum()) or None


def _study(shown: Sequence[Presentation], hints: Sequence[str] = ()) -> dict[str, Any]:
    """Rates of the first trial and agreement over all, of each station; gauge R&R over all stations."""
    stations = sorted({p.place.station for p in shown}, key=_natural)
    trials = sorted({p.place.trial for p in shown}, key=_natural)
    notes = [f"rates count the first presentation of each part (trial {trials[0]}); agreement and gauge R&R count all"]
    unjudged = sum(p.judged.verdict is None for p in shown)
    if unjudged:
        raise DataError(
            f"{unjudged} of {len(shown)} presentations got no verdict (first: part "
            f"{next(p.judged.part for p in shown if p.judged.verdict is None)}): give every view that the calibration "
            f"knows, or say with part_pattern which pictures show one part{''.join(f'; {hint}' for hint in hints)}"
        )
    found = []
    for station in stations:
        here = [p for p in shown if p.place.station == station]
        said = [Decision(p.judged.part, p.place.trial, not p.judged.passed, p.judged.defective) for p in here]
        agreed = agreement(said)
        agreed["kappa_by_trial"] = {trial: agreed["kappa_by_trial"][trial] for trial in trials}
        found.append({**_station([p for p in here if p.place.trial == trials[0]]), "agreement": agreed})
    both = {"gauge": _gauge(shown, notes), "gauge_good": _gauge([p for p in shown if not p.judged.defective], notes)}
    return {"stations": found, **both, "notes": notes}


def _gauge(shown: Sequence[Presentation], notes: list[str]) -> dict[str, Any] | None:
    """The study of these presentations; None, and a note, where they make none (one part, or one score throughout)."""
    try:
        return gauge([Reading(p.judged.part, p.place.trial, p.score, p.place.station) for p in shown])
    except DataError as error:
        notes.append(f"no gauge R&R of {len(shown)} scores: {error}")
        return None


def _station(shown: Sequence[Presentation]) -> dict[str, Any]:
    station = shown[0].place.station if shown else ""
    return {"station": station or None, "rates": rates([p.judged for p in shown]), "agreement": None}


def _row(shown: Presentation) -> list[Any]:
    j = shown.judged
    outcome = "right" if j.passed != j.defective else "escape" if j.passed else "false alarm"
    outcome = "review" if j.verdict == Verdict.REVIEW else outcome
    size = "" if j.size_px is None else j.size_px
    said = "" if j.verdict is None else str(j.verdict)
    return [
        *(j.part, shown.place.station, shown.place.trial, j.kind, size, repr(shown.score), said),
        outcome if j.verdict is not None else "not judged",
    ]


def _rates_in_words(at: str, found: dict[str, Any]) -> dict[str, str]:
    words = {f"{at}escapes of parts": found["sentences"][0], f"{at}false alarms of parts": found["sentences"][1]}
    for name in ("kinds", "sizes"):
        for key, value in found[name].items():
            label = f"{at}  kind {key}" if name == "kinds" else f"{at}  size {key}" + " px" * (key[0] in "<123456789")
            words[label] = _count(value)
    if reviewed := found["review_good"] + found["review_defective"]:
        words[f"{at}review"] = f"{reviewed} parts, {found['review_good']} of them good"
    if found["not_judged"]:
        words[f"{at}not judged"] = f"{found['not_judged']} of {found['parts']} parts got no verdict"
    return words


def _count(value: dict[str, Any]) -> str:
    return f"{value['count']} of {value['n']} escaped (95 % bounds {value['low']:.1%} to {value['high']:.1%})"


def _agreement_in_words(at: str, found: dict[str, Any]) -> dict[str, str]:
    e, grades = found["effectiveness"], found["grades"]
    words = {
        f"{at}effectiveness": f"{e['count']} of {e['n']} parts right in all {found['trials']} trials "
        f"({e['rate']:.1%}, 95 % bounds {e['low']:.1%} to {e['high']:.1%}): {grades['effectiveness']}"
    }
    for key, label in (("miss", "miss rate"), ("false_alarm", "false-alarm rate")):
        value = found[key]
        words[f"{at}{label}"] = (
            "undefined: no such part was presented"
            if value["rate"] is None
            else f"{value['count']} of {value['n']} decisions ({value['rate']:.1%}, with 95 % confidence at most "
            f"{value['upper']:.1%}): {grades[key]}"
        )
    for key, label in (("kappa", "kappa against the reference"), ("kappa_between_trials", "kappa between trials")):
        value = found[key]
        words[f"{at}{label}"] = (
            "undefined: all decisions are the same" if value is None else f"{value:.3f}: {grades[key]}"
        )
    words[f"{at}agreement (AIAG)"] = str(grades["overall"])
    for number, note in enumerate(found["notes"]):
        words[f"{at}agreement note {number + 1}"] = note
    return words


def _gauge_in_words(of: str, found: dict[str, Any]) -> dict[str, str]:
    shape = (
        f"{found['parts']} parts, {found['stations']} station{'s' * (found['stations'] > 1)}, {found['trials']} trials"
    )
    spread = ", ".join(f"{name} {found[name]:.4g}" for name in ("EV", "AV", "INT", "GRR", "PV", "TV"))
    ndc = "unlimited" if found["ndc"] is None else str(found["ndc"])
    words = {
        f"gauge R&R of {of}": f"{found['grr_percent']:.1f} % of the study variation, ndc {ndc}: {found['grade']}",
        "  deviations" + " of good parts" * ("good" in of): f"{spread} ({shape})",
    }
    for number, note in enumerate(found["notes"]):
        words["  note" + " on good parts" * ("good" in of) + f" {number + 1}"] = note
    return words
