"""What operators' decisions say of the threshold: a proposal with its promise in words. It changes nothing by itself.

Operators decide on parts that the station showed them, mostly those that it refused: no random sample of good parts,
nor of bad ones. They show where a threshold fails; they cannot prove where one holds. So a promise about false alarms
rests on the calibration's own good parts, and the decisions only move the threshold to where none of them is wrong.
Where no threshold does that, none is proposed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawmap.station.ledger import Ledger, Row, now
from flawmap.station.recipes import Recipe
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.parts import Parts, above
from flawmap.verdict.policies import manual, no_escape
from flawmap.verdict.rates import at_least, clopper_pearson, percent, upper

MOST_ROWS = 5000  # of the ledger, newest first, that are looked at
CHOSEN = (
    "The parts decided on were shown because of the station's own verdict, so they are no random sample: they show "
    "where a threshold fails, and cannot prove where one holds. The false alarms above rest on the calibration alone."
)
STRONGER = (
    "A threshold set by hand promises less than a calibration: collect good parts at random, judged or not, and run "
    "the second command on a folder of their pictures."
)
UNKNOWN = (
    "No defective part is known, so nothing is known of what escapes at a higher threshold: judge known defective "
    "parts before it is used."
)
BAND = "This calibration sends parts to review between two thresholds; the command makes a single one."


@dataclass(frozen=True)
class Decided:
    """A part, and what a person says of it: its newest decision counts."""

    part: str
    good: bool
    score: float  # of a good part judged several times its largest, of a bad one its smallest
    seq: int  # row of the ledger decided on
    decision: str
    reason: str
    who: str


@dataclass(frozen=True)
class Proposal:
    action: str  # raise, lower, keep, or none: nothing can be proposed
    words: str  # why
    threshold: float  # the one in use
    proposed: float | None
    promise: str  # what `command` would write into the bundle; of keep and none the promise in use
    cautions: tuple[str, ...]
    commands: tuple[str, ...]
    judged: int  # parts with this calibration, among the last rows of the ledger
    good: tuple[Decided, ...]
    bad: tuple[Decided, ...]
    recipe: str
    bundle: str
    calibration: str
    ledger: tuple[int, str]  # number and hash of the newest row that it rests on
    made: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"about": "a proposal: nothing was changed", **asdict(self)}


def propose(ledger: Ledger, recipe: Recipe, path: Path) -> Proposal:
    """By the decisions on parts that this very calibration judged; `path`: the bundle, for the command lines."""
    calibration = recipe.model.calibration
    assert calibration
    head = ledger.head()
    found = decided(ledger.rows(kinds=("decision",), limit=MOST_ROWS), recipe)
    rows = ledger.rows(kinds=("verdict",), recipe=recipe.name, limit=MOST_ROWS)
    judged = len({row["part"] for row in judged_by(recipe, rows)})
    good, bad = (tuple(d for d in found if d.good is kind) for kind in (True, False))
    action, words, proposed = weighed(calibration, good, bad, max(judged, len(good) + len(bad)))
    cautions: list[str] = []
    promise = calibration.sentence
    if proposed is not None:
        promise = manual(_good(calibration), proposed, cross_fitted=calibration.cross_fitted).sentence
        cautions += [CHOSEN, STRONGER]
        if action == "raise" and not bad and not calibration.defect_scores:
            cautions.insert(0, UNKNOWN)
        if calibration.review_threshold is not None:
            cautions.append(BAND)
    return Proposal(
        action=action,
        words=words,
        threshold=calibration.threshold,
        proposed=proposed,
        promise=promise,
        cautions=tuple(cautions),
        commands=_commands(path, proposed),
        judged=judged,
        good=good,
        bad=bad,
        recipe=recipe.name,
        bundle=recipe.bundle,
        calibration=recipe.calibration,
        ledger=head,
        made=now(),
    )


def decided(rows: Sequence[Row], recipe: Recipe) -> list[Decided]:
    """Decisions, newest first, as parts. What another calibration judged has other scores and is left out."""
    seen: set[int] = set()
    found: dict[str, Decided] = {}
    for row in rows:
        good = says_good(row)
        same = row["bundle"] == recipe.bundle and row["calibration"] == recipe.calibration
        if not same or row["score"] is None or row["refers"] in seen:
            continue
        seen.add(row["refers"])
        if good is None:
            continue
        before = found.get(row["part"])
        if before and (before.good is not good or (row["score"] <= before.score) is good):
            continue
        found[row["part"]] = Decided(
            row["part"], good, row["score"], row["refers"], row["code"], row["reason"] or "", row["who"] or ""
        )
    return list(found.values())


def judged_by(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """Rows of the line's own parts whose scores compare: of this very bundle and calibration, no challenge parts."""
    ours = recipe.bundle, recipe.calibration
    return [row for row in rows if (row["bundle"], row["calibration"]) == ours and row["source"] != "challenge"]


def says_good(decision: Mapping[str, Any]) -> bool | None:
    """What a decision says of the part; None: it agreed that a person has to look, which says neither."""
    if decision["code"] == "agreed":
        return {"OK": True, "NOK": False}.get(decision["verdict"])
    return decision["code"] == "false alarm"


def weighed(
    calibration: Calibration, good: Sequence[Decided], bad: Sequence[Decided], judged: int
) -> tuple[str, str, float | None]:
    """What to do, why, and the threshold for it."""
    threshold, review = calibration.threshold, calibration.review_threshold
    passing = threshold if review is None else review
    escaped = [d for d in bad if d.score <= passing]
    refused = [d for d in good if d.score > threshold]
    if not good and not bad:
        return "none", "No operator has decided on a part that this calibration judged.", None
    if escaped:
        return _lowered(calibration, good, bad, len(escaped))
    if not refused:
        return "keep", f"No decision on {_many(len(good) + len(bad))} speaks against the threshold.", None
    least, most = clopper_pearson(len(refused), judged)
    promised = calibration.promise or calibration.bound
    words = (
        f"{len(refused)} of {_many(judged)} judged with this calibration {_were(len(refused))} called a false alarm: "
        f"a rate of {at_least(least)} to {percent(most)} (95 %)"
    )
    if least <= promised:
        return "keep", f"{words}, and at most {percent(promised)} are promised: that is as promised.", None
    top = above(sorted(d.score for d in good), 1)[0]
    lowest = min([*(d.score for d in bad), *calibration.defect_scores], default=None)
    if lowest is not None and top >= lowest:
        return (
            "none",
            f"{words}, more than the {percent(promised)} promised. But a good part scores as high as a bad one "
            f"({top:.4g}, {lowest:.4g}): no threshold passes all good parts and refuses all bad ones. Fit again with "
            "the good parts that were refused, or photograph them so that the defect shows.",
            None,
        )
    safe = ""
    if bad:
        none = percent(upper(0, len(bad)))
        safe = f" It refuses {_all(len(bad))} called really bad (of bad parts like these at most {none} escape, 95 %)."
    return "raise", f"{words}, more than the {percent(promised)} promised. Above it no decided good part.{safe}", top


def _lowered(
    calibration: Calibration, good: Sequence[Decided], bad: Sequence[Decided], escaped: int
) -> tuple[str, str, float]:
    scores = sorted(d.score for d in bad)
    known = Parts(scores, scores, ["really bad"] * len(scores), calibration.views)
    lower = no_escape(_good(calibration), known).threshold
    lost = sum(d.score > lower for d in good)
    words = (
        f"{escaped} of {_many(len(bad))} that operators call bad {_were(escaped)} not refused. Just below the lowest "
        f"of them none would pass; of bad parts like these at most {percent(upper(0, len(bad)))} would (95 %). "
        f"{lost} of {_many(len(good))} called good would be refused there."
    )
    return "lower", words, lower


def _good(calibration: Calibration) -> Parts:
    """The good parts that calibrated."""
    scores, peaks = list(calibration.scores), list(calibration.peaks or calibration.scores)
    return Parts(scores, peaks, [], calibration.views, calibration.unit, calibration.rule)


def _commands(path: Path, proposed: float | None) -> tuple[str, ...]:
    new = path.with_name(f"{path.stem}-new{path.suffix}")
    bundle, save = shlex.quote(str(path)), shlex.quote(str(new))
    fresh = f"flawmap calibrate {bundle} FOLDER-OF-GOOD-PARTS --save {save} --policy false-alarm"
    if proposed is None:
        return (fresh,)
    return f"flawmap calibrate {bundle} --save {save} --policy manual --threshold {proposed!r}", fresh


def _many(n: int) -> str:
    return f"{n} part{'s' * (n != 1)}"


def _all(n: int) -> str:
    return "the part" if n == 1 else f"all {n} parts"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
