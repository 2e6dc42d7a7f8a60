"""Two or more evaluations on the same parts, held against one another: the first one is the baseline.

An evaluation is the folder that `flawmap evaluate` writes. Everything but `picture_auroc` counts parts. Runs are
paired: each part is its own control, so that what is hard for both says nothing of either.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, UsageError
from flawmap.report.versus import Change, Estimate, Kind, Pair, Part, Rate, Run, Versus, write
from flawmap.report.versus_plots import EXACT, LETTERS, THIN, auroc_text, p_value, signed
from flawmap.types import GOOD, Verdict
from flawmap.verdict.bootstrap import bootstrap, paired
from flawmap.verdict.metrics import auroc
from flawmap.verdict.rates import clopper_pearson

COLUMNS = ("name", "part", "kind", "score", "verdict")
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Picture:
    part: str
    kind: str | None
    score: float
    verdict: Verdict | None  # its part's


@dataclass(frozen=True, slots=True)
class Evaluation:
    name: str
    pictures: Mapping[str, Picture]  # by name
    metrics: Mapping[str, Any]


def report(folders: Sequence[Path], out: Path, *, shared: bool = False) -> dict[str, Any]:
    """Writes the page, and gives its content as plain values: `page`, `parts`, `runs`, `pairs`, `kinds`, `notes`."""
    found = versus(folders, shared=shared)
    page = write(found, out)
    counts = {"good": found.count(True), "defective": found.count(False), "unknown": found.count(None)}
    about = {"page": str(page), "pictures": found.pictures, "parts": len(found.parts), **counts, "baseline": LETTERS[0]}
    content = asdict(found)
    return about | {key: content[key] for key in ("runs", "pairs", "kinds", "notes")}


def in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """The same for a person's table."""
    words = {"parts": f"{found['parts']}, of them {found['good']} good and {found['defective']} defective"}
    for run in found["runs"]:
        told = [run["name"]]
        for key, what in (("escapes", "defective parts escape"), ("false_alarms", "good parts refused")):
            if (rate := run[key]) is not None:
                told.append(f"{rate['count']} of {rate['n']} {what}")
        told.append(f"part AUROC {auroc_text(run['part_auroc']['value'])}")
        words[run["letter"]] = ", ".join(told)
    for pair in found["pairs"]:
        words[f"{pair['after']} against {pair['before']}"] = pair["sentence"]
    words |= {f"note {number + 1}": note for number, note in enumerate(found["notes"])}
    return {key: text.replace("\N{NARROW NO-BREAK SPACE}", " ") for key, text in words.items()} | {
        "comparison": found["page"]
    }


def versus(folders: Sequence[Path], *, shared: bool = False) -> Versus:
    """Reads and compares. With `shared` only parts that all have alike, else DataError at the first difference.

    UsageError for fewer than two folders, one given twice, or more than a page can tell apart.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise UsageError(f"{len(folders)} evaluations: a comparison takes 2 to {len(LETTERS)}")
    paths = [folder.resolve() for folder in folders]
    if twice := next((folders[i] for i, path in enumerate(paths) if path in paths[:i]), None):
        raise UsageError(f"{twice} was given twice: give each evaluation once")
    evaluations = [read(folder, name) for folder, name in zip(folders, names(paths), strict=True)]
    kept, notes = common(evaluations, shared)
    parts = [_part(name, pictures, evaluations) for name, pictures in kept.items()]
    pictures = [name for names_of_part in kept.values() for name in names_of_part]
    whole = len(pictures) == len(evaluations[0].pictures) == max(len(e.pictures) for e in evaluations)
    runs = [_run(i, e, parts, pictures, whole) for i, e in enumerate(evaluations)]
    pairs = [_pair(i, evaluations, parts, pictures) for i in range(1, len(evaluations))]
    notes += _notes(runs, evaluations, parts, whole)
    return Versus(runs, pairs, _kinds(parts, len(runs)), parts, len(pictures), notes)


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, less what they end on together."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        ends = [path.parts[-count:] for path in paths]
        if len(set(ends)) == len(ends):
            break
    while all(len(end) > 1 for end in ends) and len({end[-1] for end in ends}) == 1:
        ends = [end[:-1] for end in ends]
    return ["/".join(end) for end in ends]


def read(folder: Path, name: str) -> Evaluation:
    """What `flawmap evaluate` left in a folder. DataError where that is not there, torn, or no number."""
    try:
        with (folder / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder}: no evaluation can be read ({what}); give folders that flawmap evaluate wrote"
        ) from error
    if not rows or not set(COLUMNS) <= rows[0].keys() or not isinstance(metrics, dict):
        raise DataError(f"{folder}: scores.csv has no pictures or lacks one of {', '.join(COLUMNS)}; evaluate again")
    pictures: dict[str, Picture] = {}
    for number, row in enumerate(rows):
        where = f"{folder / 'scores.csv'}, line {number + 2}"
        try:
            picture = Picture(
                row["part"],
                row["kind"] or None,
                float(row["score"]),
                Verdict(row["verdict"]) if row["verdict"] else None,
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}; evaluate again") from error
        if not math.isfinite(picture.score):
            raise DataError(f"{where}: the score is {row['score']}, not a finite number; nothing can be compared")
        if row["name"] in pictures:
            raise DataError(f"{where}: {row['name']} stands there twice; evaluate again")
        pictures[row["name"]] = picture
    return Evaluation(name, pictures, metrics)


def common(evaluations: Sequence[Evaluation], shared: bool) -> tuple[dict[str, list[str]], list[str]]:
    """Part -> its pictures, as the baseline orders them, of the parts that all runs have alike; and what was left out.

    DataError, naming the first difference, unless `shared`; and where no part is common.
    """
    grouped = [_grouped(e) for e in evaluations]
    differs: dict[str, str] = {}
    for letter, e, group in zip(LETTERS[1:], evaluations[1:], grouped[1:], strict=False):
        for part in sorted(grouped[0].keys() | group.keys()):
            if part not in differs and (why := _difference(part, grouped[0], group, letter)):
                differs[part] = f"{why} (A is {evaluations[0].name}, {letter} is {e.name})"
    kept = {part: list(pictures) for part, pictures in grouped[0].items() if part not in differs}
    if not differs:
        return kept, []
    first = differs[min(differs)]
    if not shared:
        raise DataError(
            f"the evaluations are not of the same data: {first}; {len(differs)} parts differ. Evaluate all on the same "
            "pictures, or compare what they have in common with --shared"
        )
    if not kept:
        raise DataError(f"the evaluations have no part in common: {first}")
    every = len(kept) + len(differs)
    return kept, [
        f"{len(differs)} of {every} parts were left out, since not all runs have them with the same pictures and kinds "
        f"({', '.join(_missing(letter, group, differs) for letter, group in zip(LETTERS, grouped, strict=False))}). "
        f"First: {first}"
    ]


def _missing(letter: str, group: Mapping[str, Any], differs: Mapping[str, str]) -> str:
    return f"{letter} lacks {sum(part not in group for part in differs)}"


def _grouped(e: Evaluation) -> dict[str, dict[str, str | None]]:
    """Part -> picture -> kind."""
    found: dict[str, dict[str, str | None]] = {}
    for name, picture in e.pictures.items():
        found.setdefault(picture.part, {})[name] = picture.kind
    return found


def _difference(part: str, first: Mapping[str, Any], other: Mapping[str, Any], letter: str) -> str | None:
    """In words; None where a part is the same in both."""
    sides = ((first, other, letter), (other, first, "A"))
    for has, lacks, who in sides:
        if part not in lacks:
            return f"{who} lacks the part {part} ({next(iter(has[part]))})"
    for has, lacks, who in sides:
        if missing := next((name for name in has[part] if name not in lacks[part]), None):
            return f"{who} lacks the picture {missing} of the part {part}"
    for name, kind in first[part].items():
        if kind != other[part][name]:
            return (
                f"{name} is {kind or 'of unknown kind'} in A and {other[part][name] or 'of unknown kind'} in {letter}"
            )
    return None


def _part(name: str, pictures: Sequence[str], evaluations: Sequence[Evaluation]) -> Part:
    """Its score by each run's rule for views; defective where one view is, else unknown where one is."""
    kinds = [evaluations[0].pictures[p].kind for p in pictures]
    kind = next((k for k in kinds if k not in (GOOD, None)), None if None in kinds else GOOD)
    scores, verdicts = [], []
    for e in evaluations:
        views = [e.pictures[p] for p in pictures]
        if len({view.verdict for view in views}) > 1:
            raise DataError(f"{e.name}: the views of the part {name} have several verdicts; evaluate again")
        values = [view.score for view in views]
        mean = (e.metrics.get("calibration") or {}).get("rule") == "mean"
        scores.append(sum(values) / len(values) if mean else max(values))
        verdicts.append(views[0].verdict)
    return Part(name, kind, scores, verdicts)


def _wrong(part: Part, run: int) -> bool:
    """A defective part that passes, or a good one that is refused. A part for review is neither."""
    return part.verdicts[run] == (Verdict.NOK if part.kind == GOOD else Verdict.OK)


def _rate(parts: Sequence[Part], run: int) -> Rate | None:
    judged = [part for part in parts if part.verdicts[run] is not None]
    if not judged:
        return None
    count = sum(_wrong(part, run) for part in judged)
    return Rate(count, len(judged), *clopper_pearson(count, len(judged)))


def _labelled(e: Evaluation, pictures: Sequence[str]) -> tuple[list[float], list[bool], list[str]]:
    known = [e.pictures[name] for name in pictures if e.pictures[name].kind is not None]
    return [p.score for p in known], [p.kind != GOOD for p in known], [p.part for p in known]


def _run(i: int, e: Evaluation, parts: Sequence[Part], pictures: Sequence[str], whole: bool) -> Run:
    """Figures of the compared parts; those of pixels and time are of the whole evaluation."""
    known = [part for part in parts if part.kind is not None]
    scores, defect, of_part = _labelled(e, pictures)
    by_part = [p.scores[i] for p in known], [p.kind != GOOD for p in known]
    told, calibration = e.metrics, e.metrics.get("calibration") or {}
    return Run(
        letter=LETTERS[i],
        name=e.name,
        method=told.get("method"),
        sentence=calibration.get("sentence"),
        policy=calibration.get("policy"),
        threshold=calibration.get("threshold"),
        review_threshold=calibration.get("review_threshold"),
        escapes=_rate([part for part in known if part.kind != GOOD], i),
        false_alarms=_rate([part for part in known if part.kind == GOOD], i),
        reviews=sum(part.verdicts[i] == Verdict.REVIEW for part in parts),
        undecided=sum(part.verdicts[i] is None for part in parts),
        part_auroc=Estimate(auroc(*by_part), *(bootstrap(*by_part, [p.name for p in known]) or ())),
        picture_auroc=Estimate(auroc(scores, defect), *(bootstrap(scores, defect, of_part) or ())),
        p_auroc=told.get("p_auroc") if whole else None,
        pro=told.get("pro") if whole else None,
        seconds_per_picture=told.get("seconds_per_picture"),
        protocol=told.get("protocol"),
        bundle_sha256=told.get("bundle_sha256"),
        pictures_sha256=told.get("pictures_sha256"),
    )


def _pair(i: int, evaluations: Sequence[Evaluation], parts: Sequence[Part], pictures: Sequence[str]) -> Pair:
    known = [part for part in parts if part.kind is not None]
    before, after = _labelled(evaluations[0], pictures), _labelled(evaluations[i], pictures)
    labels = [p.kind != GOOD for p in known]
    of_parts = difference([p.scores[0] for p in known], [p.scores[i] for p in known], labels, [p.name for p in known])
    changes = [
        change(group, [(_wrong(p, 0), _wrong(p, i)) for p in known if (p.kind == GOOD) == good and _both(p, i)])
        for group, good in (("defective", False), ("good", True))
    ]
    changed = [part for part in parts if _both(part, i) and part.verdicts[0] != part.verdicts[i]]
    changed.sort(key=lambda p: (_order(p, i), p.kind == GOOD, p.name))
    rows = [
        {
            "part": p.name,
            "kind": p.kind,
            "effect": ("newly wrong", "changed", "mended")[_order(p, i)] if p.kind else "changed",
            "before": {"verdict": str(p.verdicts[0]), "score": p.scores[0]},
            "after": {"verdict": str(p.verdicts[i]), "score": p.scores[i]},
        }
        for p in changed
    ]
    said = sentence(LETTERS[0], LETTERS[i], of_parts, changes)
    of_pictures = difference(before[0], after[0], before[1], before[2])
    return Pair(LETTERS[0], LETTERS[i], said, of_parts, of_pictures, changes, rows)


def _both(part: Part, i: int) -> bool:
    return part.verdicts[0] is not None and part.verdicts[i] is not None


def _order(part: Part, i: int) -> int:
    """0 newly wrong, 1 changed but neither, 2 mended."""
    return 1 if part.kind is None else 1 + _wrong(part, 0) - _wrong(part, i)


def difference(
    before: Sequence[float], after: Sequence[float], labels: Sequence[bool], parts: Sequence[str]
) -> Estimate:
    """AUROC after less AUROC before, with its paired interval."""
    one, other = auroc(before, labels), auroc(after, labels)
    if one is None or other is None:
        return Estimate(None)
    return Estimate(other - one, *(paired(before, after, labels, parts) or ()))


def change(group: str, wrong: Sequence[tuple[bool, bool]]) -> Change:
    """From (wrong before, wrong after) of each part."""
    mended, spoiled = (sum(pair == which for pair in wrong) for which in ((True, False), (False, True)))
    both = sum(all(pair) for pair in wrong)
    right, least = len(wrong) - mended - spoiled - both, min(1.0, 2.0 ** (1 - mended - spoiled))
    return Change(group, len(wrong), right, mended, spoiled, both, mcnemar(mended, spoiled), least)


def mcnemar(mended: int, spoiled: int) -> float:
    """Two-sided exact p (McNemar 1947 by the binomial): how often a fair coin is as one-sided on the changed parts."""
    from scipy.special import bdtr

    changed = mended + spoiled
    return min(1.0, 2 * float(bdtr(min(mended, spoiled), changed, 0.5))) if changed else 1.0


def sentence(before: str, after: str, found: Estimate, changes: Sequence[Change]) -> str:
    """What the pair shows, and whether it is more than chance."""
    said, told_apart = [], []
    for c in changes:
        if not c.n:
            continue
        if c.mended + c.spoiled == 0:
            said.append(f"Of {c.n} {c.group} parts none became right or wrong.")
            continue
        said.append(
            f"Of {c.n} {c.group} parts {_did(c.group, c.spoiled, c.mended, after)} (exact McNemar p {_equals(c.p)})."
        )
        if c.p < LEVEL:
            told_apart.append("escapes" if c.group == "defective" else "false alarms")
    if found.value is not None:
        interval = ""
        if found.low is not None and found.high is not None:
            interval = f" (95{THIN}%: {signed(found.low)} to {signed(found.high)})"
            if found.low > 0 or found.high < 0:
                told_apart.append("ranking")
        said.append(f"Part AUROC differs by {signed(found.value)}{interval}.")
    if said:
        apart = f"tell {before} and {after} apart"
        said.append(
            f"These parts {apart} by {' and '.join(told_apart)}." if told_apart else f"These parts do not {apart}."
        )
    return " ".join(said) or "Nobody has said which parts are good, so neither run is right or wrong."


def _did(group: str, spoiled: int, mended: int, after: str) -> str:
    if group == "defective":
        new, old = f"newly escape{'s' * (spoiled == 1)}", "no longer does" if mended == 1 else "no longer do"
    else:
        new, old = f"{'is' if spoiled == 1 else 'are'} newly refused", f"no longer {'is' if mended == 1 else 'are'}"
    return f"{spoiled} {new} with {after} and {mended} {old}"


def _equals(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def _kinds(parts: Sequence[Part], runs: int) -> list[Kind]:
    good = [part for part in parts if part.kind == GOOD]
    found = []
    for name in sorted({part.kind for part in parts if part.kind not in (GOOD, None)}):
        of_kind = [part for part in parts if part.kind == name]
        labels = [False] * len(good) + [True] * len(of_kind)
        aurocs = [auroc([p.scores[i] for p in good + of_kind], labels) for i in range(runs)]
        found.append(Kind(str(name), len(of_kind), aurocs, [_rate(of_kind, i) for i in range(runs)]))
    return found


def _notes(runs: Sequence[Run], evaluations: Sequence[Evaluation], parts: Sequence[Part], whole: bool) -> list[str]:
    found = []
    hashes = {run.pictures_sha256 for run in runs}
    if None in hashes:
        found.append("Pictures are paired by name; not all runs say which pixels they saw (evaluate again to know).")
    elif len(hashes) > 1 and whole:
        found.append("The pictures have the same names but not the same content: parts are paired by name.")
    if len({run.protocol for run in runs}) > 1:
        found.append("Maps and masks were compared at different sizes: Pixel AUROC and PRO do not compare.")
    if not whole:
        found.append("Pixel AUROC and PRO are left out: they are known of whole evaluations only.")
    for i, run in enumerate(runs):
        if i and all(part.scores[0] == part.scores[i] for part in parts):
            found.append(f"{run.letter} gives every part the score that A gives it: only their thresholds can differ.")
        if run.undecided:
            found.append(
                f"{run.letter} gave {run.undecided} of {len(parts)} parts no verdict: they are not in its counts."
            )
        if run.policy == "f1-oracle":
            found.append(f"The threshold of {run.letter} was read off answers: its verdicts promise nothing.")
    if any((run.part_auroc.low or 0) > 1 - EXACT for run in runs):
        found.append(
            "An interval of no width comes from a perfect ranking: drawing these parts again shows no mistake."
        )
    if len(runs) > 2:
        found.append(f"There are {len(runs) - 1} comparisons: hold each p against 5 % divided by {len(runs) - 1}.")
    return found + [
        f"{run.letter}: {n}" for run, e in zip(runs, evaluations, strict=True) for n in e.metrics.get("notes", ())
    ]
