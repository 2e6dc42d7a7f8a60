"""Scores of pictures -> parts: what is counted, what is wrong, and which are worth looking at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flawmap.errors import DataError
from flawmap.types import GOOD, Verdict
from flawmap.verdict.rates import clopper_pearson

ROW = 8  # parts in a gallery
GALLERIES = (
    ("escapes", "Worst escapes", "Defective parts that pass, the least suspicious first."),
    ("alarms", "Worst false alarms", "Good parts that are refused, the strangest first."),
    ("borderline", "Borderline parts", "The parts closest to a threshold, on either side of it."),
)
RANKED = (  # the same where no verdict is given
    ("escapes", "Least strange defective parts", "By score alone: no verdict is given."),
    ("alarms", "Strangest good parts", "By score alone: no verdict is given."),
    ("borderline", "Strangest parts", "Of every kind."),
)


class Doubt(NamedTuple):
    """Why the counts of a test do not check its threshold."""

    said: str  # the threshold ...
    label: str  # of its point on the ROC


def doubt(policy: str, notes: Sequence[str]) -> Doubt | None:
    """None: the threshold was set without these parts, by a policy that promises something."""
    if policy == "f1-oracle":
        return Doubt("is an F1 oracle, read off known answers: it promises nothing", "F1 oracle, promises nothing")
    found = (re.match(r"(\d+) of the pictures (?:was|were) used to fit or calibrate", note) for note in notes)
    if used := next((match[1] for match in found if match and int(match[1])), ""):
        said = f"was read off these very parts ({used} of the pictures were used to fit or calibrate the model)"
        return Doubt(
            f"{said}: what is counted here promises nothing", "threshold read off these parts, promises nothing"
        )
    if policy == "manual":
        return Doubt("was chosen by hand: it promises nothing", "threshold chosen by hand, promises nothing")
    return None


class Scored(NamedTuple):
    """The score of one picture that was evaluated."""

    name: str
    part: str
    kind: str | None  # "good", the kind of defect, or None when unknown
    score: float
    verdict: Verdict | None


class Part(NamedTuple):
    """All views of one part."""

    name: str
    kind: str | None  # defective when one view is, else good when one is known to be
    score: float
    verdict: Verdict | None
    views: tuple[int, ...]  # places in the list of pictures, the strangest first

    @property
    def defective(self) -> bool:
        return self.kind not in (GOOD, None)

    @property
    def wrong(self) -> str:
        """ "escape", "false alarm", or nothing."""
        if self.verdict == Verdict.OK and self.defective:
            return "escape"
        return "false alarm" if self.verdict == Verdict.NOK and self.kind == GOOD else ""


class Rate(NamedTuple):
    """`wrong` of `n` parts got the wrong verdict; low and high are the 95 % Clopper-Pearson bounds of that share."""

    wrong: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, wrong: int, n: int) -> Rate:
        return cls(wrong, n, *clopper_pearson(wrong, n))

    @classmethod
    def given(cls, values: Any) -> Rate | None:
        return None if values is None else cls(values["count"], values["n"], values["low"], values["high"])

    @property
    def rate(self) -> float | None:
        return self.wrong / self.n if self.n else None


def by_part(scores: Sequence[Scored], of: Callable[[list[float]], float] = max) -> list[Part]:
    """In the order in which parts are first met; `of` makes a part's score from its views'.

    A part is NOK when one view is, else REVIEW when one is. DataError for scores that are not finite numbers.
    """
    views: dict[str, list[int]] = {}
    for place, view in enumerate(scores):
        if not math.isfinite(view.score):
            raise DataError(f"{view.name}: the score is {view.score}, not a finite number; nothing can be shown of it")
        views.setdefault(view.part, []).append(place)
    return [_part(name, places, scores, of) for name, places in views.items()]


def _part(name: str, places: list[int], scores: Sequence[Scored], of: Callable[[list[float]], float]) -> Part:
    kinds = [scores[p].kind for p in places]
    verdicts = [scores[p].verdict for p in places]
    kind = next((k for k in kinds if k not in (GOOD, None)), GOOD if GOOD in kinds else None)
    verdict = next((v for v in (Verdict.NOK, Verdict.REVIEW) if v in verdicts), verdicts[0])
    order = sorted(places, key=lambda p: -scores[p].score)
    return Part(name, kind, of([scores[p].score for p in places]), verdict, tuple(order))


def picks(
    parts: Sequence[Part], threshold: float, review: float | None = None, most: int = ROW
) -> dict[str, list[int]]:
    """Places of the parts in each gallery at a threshold; page.js chooses alike. Only parts with a verdict."""
    judged = [i for i, part in enumerate(parts) if part.verdict is not None]
    passing = threshold if review is None else min(review, threshold)

    def far(i: int) -> float:
        return min(abs(parts[i].score - threshold), abs(parts[i].score - passing))

    escapes = [i for i in judged if parts[i].defective and parts[i].score <= passing]
    alarms = [i for i in judged if parts[i].kind == GOOD and parts[i].score > threshold]
    return {
        "escapes": sorted(escapes, key=lambda i: parts[i].score)[:most],
        "alarms": sorted(alarms, key=lambda i: -parts[i].score)[:most],
        "borderline": sorted(judged, key=far)[:most],
    }


def promised(sentence: str) -> str:
    """A calibration's sentence for the page, without the pages of documentation it names: they are not here."""
    return re.sub(r" \(docs/\w+\.md\)", "", sentence).replace(" %", "\N{NARROW NO-BREAK SPACE}%")


def reviews(parts: Sequence[Part], review: float | None) -> tuple[int, int, str] | None:
    """How many parts of how many go to review, and of which kinds; None without a band."""
    judged = [part for part in parts if part.verdict is not None]
    if review is None or not judged:
        return None
    waiting = [part for part in judged if part.verdict == Verdict.REVIEW]
    good, bad = sum(p.kind == GOOD for p in waiting), sum(p.defective for p in waiting)
    more = f", unknown {len(waiting) - good - bad}" if any(p.kind is None for p in judged) else ""
    return len(waiting), len(judged), f"good {good}, defective {bad}{more}"


def shown(parts: Sequence[Part], threshold: float | None, most: int, review: float | None = None) -> set[int]:
    """Places of at most so many pictures: of wrong parts, then of those closest to a threshold by rank.

    Without a threshold: of the strangest.
    """
    order = sorted(range(len(parts)), key=lambda i: -parts[i].score)
    cuts = [threshold, threshold if review is None else review]
    above = [0 if cut is None else sum(part.score > cut for part in parts) for cut in cuts]
    wrong = [i for i in order if parts[i].wrong]
    nearest = [
        order[rank] for rank in sorted(range(len(order)), key=lambda rank: min(abs(rank + 0.5 - n) for n in above))
    ]
    places = [place for i in dict.fromkeys([*wrong, *nearest]) for place in parts[i].views]
    return set(places[:most])
