"""Two or more evaluations on the same parts, held against one another: the first one is the baseline.

An evaluation is the folder that `flawmap evaluate` writes. Everything but `picture_auroc` counts parts. Runs are
paired: each part is its own control, so that what is hard for both says nothing of either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, UsageError
from flawmap.report.versus import Change, Estimate, Kind, Pair, Part, Rate, Run, Versus, write
from flawmap.report.versus_plots import EXACT, LETTERS, THIN, auroc_text, p_value, share_of, signed
from flawmap.run.versus_read import Evaluation, common, names, read
from flawmap.types import GOOD, Verdict
from flawmap.verdict.bootstrap import bootstrap, paired
from flawmap.verdict.metrics import auroc
from flawmap.verdict.rates import clopper_pearson

ORACLE = "F1 oracle, read off known answers"  # a note of run/evaluate.py, too
EFFECTS = ("newly wrong", "to review", "changed", "from review", "mended")  # in the order of the list
Wrong = tuple[bool, bool, bool]  # of a part: wrong before, wrong after, for review after
LEVEL = 0.05  # of all comparisons of a page together: each of k is held against LEVEL / k (Bonferroni)
USED = re.compile(r"\d+ of the pictures (?:was|were) used to fit or calibrate this model")  # run/evaluate.py notes it


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
        if run["doubts"]:
            words[f"beware of {run['letter']}"] = " ".join(run["doubts"])
    for run in found["runs"]:
        told = [run["name"]]
        for key, what in (("escapes", "defective parts escape"), ("false_alarms", "good parts refused")):
            if (rate := run[key]) is not None:
                told.append(f"{rate['count']} of {rate['n']} {what}")
        if run["reviews"]:
            told.append(f"{run['reviews']} of {run['judged']} parts for review")
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


def _doubts(e: Evaluation, whole: bool) -> list[str]:
    """Why its verdicts, or its figures, look better than the line will be; sentences."""
    policy, found = (e.metrics.get("calibration") or {}).get("policy"), []
    for note in filter(_used, e.metrics.get("notes", ())):
        found.append(f"{note}{'' if whole else ' (counted over its whole evaluation)'}.")
    if policy == "f1-oracle":
        found.append(f"Its threshold is an {ORACLE}: it is no operating point and promises nothing.")
    if policy == "manual":
        found.append("Its threshold was set by hand: it promises nothing.")
    return found


def _used(note: str) -> bool:
    return USED.match(note) is not None


def _run(i: int, e: Evaluation, parts: Sequence[Part], pictures: Sequence[str], whole: bool) -> Run:
    """Figures of the compared parts; those of pixels and time are of the whole evaluation."""
    known = [part for part in parts if part.kind is not None]
    looked = [part for part in parts if part.verdicts[i] == Verdict.REVIEW]
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
        reviews=len(looked),
        reviews_good=sum(part.kind == GOOD for part in looked),
        reviews_defective=sum(part.kind not in (GOOD, None) for part in looked),
        judged=sum(part.verdicts[i] is not None for part in parts),
        undecided=sum(part.verdicts[i] is None for part in parts),
        part_auroc=Estimate(auroc(*by_part), *(bootstrap(*by_part, [p.name for p in known]) or ())),
        picture_auroc=Estimate(auroc(scores, defect), *(bootstrap(scores, defect, of_part) or ())),
        p_auroc=told.get("p_auroc") if whole else None,
        pro=told.get("pro") if whole else None,
        seconds_per_picture=told.get("seconds_per_picture"),
        protocol=told.get("protocol"),
        bundle_sha256=told.get("bundle_sha256"),
        pictures_sha256=told.get("pictures_sha256"),
        doubts=_doubts(e, whole),
    )


def _pair(i: int, evaluations: Sequence[Evaluation], parts: Sequence[Part], pictures: Sequence[str]) -> Pair:
    level = LEVEL / (len(evaluations) - 1)
    known = [part for part in parts if part.kind is not None]
    before, after = _labelled(evaluations[0], pictures), _labelled(evaluations[i], pictures)
    labels = [p.kind != GOOD for p in known]
    scores = [p.scores[0] for p in known], [p.scores[i] for p in known]
    of_parts = difference(*scores, labels, [p.name for p in known], level)
    changes = [
        change(group, [_pairs(p, i) for p in known if (p.kind == GOOD) == good and _both(p, i)])
        for group, good in (("defective", False), ("good", True))
    ]
    judged = [part for part in parts if _both(part, i)]
    changed = [part for part in judged if part.verdicts[0] != part.verdicts[i]]
    changed.sort(key=lambda p: (EFFECTS.index(_effect(p, i)), p.kind == GOOD, p.name))
    rows = [
        {
            "part": p.name,
            "kind": p.kind,
            "effect": _effect(p, i),
            "before": {"verdict": str(p.verdicts[0]), "score": p.scores[0]},
            "after": {"verdict": str(p.verdicts[i]), "score": p.scores[i]},
        }
        for p in changed
    ]
    said = sentence(LETTERS[0], LETTERS[i], of_parts, changes, level, reviews(judged, i))
    of_pictures = difference(before[0], after[0], before[1], before[2], level)
    return Pair(LETTERS[0], LETTERS[i], said, of_parts, of_pictures, changes, rows, level)


def _both(part: Part, i: int) -> bool:
    return part.verdicts[0] is not None and part.verdicts[i] is not None


def _pairs(part: Part, i: int) -> Wrong:
    return _wrong(part, 0), _wrong(part, i), part.verdicts[i] == Verdict.REVIEW


def _effect(part: Part, i: int) -> str:
    """Of another verdict. What a person has to look at now is not mended, whatever it was before."""
    if part.verdicts[i] == Verdict.REVIEW:
        return "to review"
    if part.kind is not None and _wrong(part, i):
        return "newly wrong"
    if part.verdicts[0] == Verdict.REVIEW:
        return "from review"
    return "mended" if part.kind is not None else "changed"


def reviews(parts: Sequence[Part], i: int) -> str:
    """A sentence on the parts that a person looks at with one run and not with the other; "" where there are none."""
    review = [tuple(part.verdicts[run] == Verdict.REVIEW for run in (0, i)) for part in parts]
    new, old = (
        [p for p, found in zip(parts, review, strict=True) if found == w] for w in ((False, True), (True, False))
    )
    goes, went = ("goes" if len(new) == 1 else "go"), ("goes" if len(old) == 1 else "go")
    if new and old:
        does = "does" if len(old) == 1 else "do"
        more = f" and {len(old)} no longer {does} ({_of_kinds(old)})"
        return f"{_count(len(new))} now {goes} to review ({_of_kinds(new)}){more}."
    if old:
        return f"{_count(len(old))} no longer {went} to review ({_of_kinds(old)})."
    return f"{_count(len(new))} now {goes} to review ({_of_kinds(new)})." if new else ""


def _count(n: int) -> str:
    return f"{n} part{'s' * (n != 1)}"


def _of_kinds(parts: Sequence[Part]) -> str:
    good, unknown = sum(p.kind == GOOD for p in parts), sum(p.kind is None for p in parts)
    told = f"{good} good, {len(parts) - good - unknown} defective"
    return f"{told}, {unknown} of which nobody has said" if unknown else told


def difference(
    before: Sequence[float],
    after: Sequence[float],
    labels: Sequence[bool],
    parts: Sequence[str],
    level: float = LEVEL,
) -> Estimate:
    """AUROC after less AUROC before, with its paired interval of confidence 1 - level."""
    one, other = auroc(before, labels), auroc(after, labels)
    if one is None or other is None:
        return Estimate(None)
    return Estimate(other - one, *(paired(before, after, labels, parts, level=1 - level) or ()))


def change(group: str, wrong: Sequence[Wrong]) -> Change:
    mended, spoiled, both = (
        sum(w[:2] == which for w in wrong) for which in ((True, False), (False, True), (True, True))
    )
    looked = sum(w == (True, False, True) for w in wrong)
    neither, least = len(wrong) - mended - spoiled - both, min(1.0, 2.0 ** (1 - mended - spoiled))
    return Change(group, len(wrong), neither, mended, looked, spoiled, both, mcnemar(mended, spoiled), least)


def mcnemar(mended: int, spoiled: int) -> float:
    """Two-sided exact p (McNemar 1947 by the binomial): how often a fair coin is as one-sided on the changed parts."""
    from scipy.special import bdtr

    changed = mended + spoiled
    return min(1.0, 2 * float(bdtr(min(mended, spoiled), changed, 0.5))) if changed else 1.0


def sentence(
    before: str, after: str, found: Estimate, changes: Sequence[Change], level: float = LEVEL, review: str = ""
) -> str:
    """What the pair shows, and whether it is more than chance at this level; `review` says who goes to a person."""
    said, told_apart = [], []
    for c in changes:
        if c.n and c.mended + c.spoiled == 0:
            none = "newly escapes and none stops" if c.group == "defective" else "is newly refused and none no longer"
            said.append(f"Of {c.n} {c.group} parts none {none}.")
        elif c.n:
            said.append(f"Of {c.n} {c.group} parts {_did(c, after)} (exact McNemar p {_equals(c.p)}).")
            if c.p < level:
                told_apart.append("escapes" if c.group == "defective" else "false alarms")
    if review:
        said.append(review)
    if found.value is not None:
        interval = ""
        if found.low is not None and found.high is not None:
            interval = f" ({share_of(1 - level)}: {signed(found.low)} to {signed(found.high)})"
            if found.low > 0 or found.high < 0:
                told_apart.append("ranking")
        said.append(f"Part AUROC differs by {signed(found.value)}{interval}.")
    if found.value is None and not any(c.n for c in changes):
        said.append("Nobody has said which parts are good, so neither run is right or wrong.")
    else:
        strict = f" (5{THIN}% over {round(LEVEL / level)} comparisons: {share_of(level)} each)" if level < LEVEL else ""
        what = " by escapes, false alarms or ranking" * bool(review)
        told = f" by {' and '.join(told_apart)}" if told_apart else what
        said.append(f"These parts {'' if told_apart else 'do not '}tell {before} and {after} apart{told}{strict}.")
    return " ".join(said)


def _did(c: Change, after: str) -> str:
    one_new, one_old = c.spoiled == 1, c.mended == 1
    if c.group == "defective":
        new, old = f"newly escape{'s' * one_new}", "no longer does" if one_old else "no longer do"
    else:
        new, old = f"{'is' if one_new else 'are'} newly refused", f"no longer {'is' if one_old else 'are'}"
    to_review = f", {c.to_review} of them for review instead" if c.to_review else ""
    return f"{c.spoiled} {new} with {after} and {c.mended} {old}{to_review}"


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
    if any((run.part_auroc.low or 0) > 1 - EXACT for run in runs):
        found.append(
            "An interval of no width comes from a perfect ranking: drawing these parts again shows no mistake."
        )
    if len(runs) > 2:
        count = len(runs) - 1
        each = share_of(LEVEL / count)
        found.append(f"There are {count} comparisons: each p is held against 5{THIN}% divided by {count}, {each}.")
    return found + [
        f"{run.letter}: {n}"
        for run, e in zip(runs, evaluations, strict=True)
        for n in e.metrics.get("notes", ())
        if not (_used(n) or ORACLE in n)
    ]
