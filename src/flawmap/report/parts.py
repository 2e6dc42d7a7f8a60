"""Scores of pictures -> parts: what is counted, what is wrong, and which are worth looking at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flawmap.errors import DataError
from flawmap.types import GOOD, Verdict
from flawmap.verdict.rates import clopper_pearson

ROW = 8  # parts in a gallery
GALLERIES = (
    ("escapes", "Worst escapes", "Defective parts that pass, the least suspicious first."),
    ("alarms", "Worst false alarms", "Good parts that are refused, the strangest first."),
    ("borderline", "Borderline parts", "The parts closest to the threshold, on either side of it."),
)


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
    kind: str | None  # defective when one view is, else unknown when one is
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
    kind = next((k for k in kinds if k not in (GOOD, None)), None if None in kinds else GOOD)
    verdict = next((v for v in (Verdict.NOK, Verdict.REVIEW) if v in verdicts), verdicts[0])
    order = sorted(places, key=lambda p: -scores[p].score)
    return Part(name, kind, of([scores[p].score for p in places]), verdict, tuple(order))


def picks(
    parts: Sequence[Part], threshold: float, review: float | None = None, most: int = ROW
) -> dict[str, list[int]]:
    """Places of the parts in each gallery at a threshold; page.js chooses alike. Only parts with a verdict."""
    judged = [i for i, part in enumerate(parts) if part.verdict is not None]
    passing = threshold if review is None else min(review, threshold)
    escapes = [i for i in judged if parts[i].defective and parts[i].score <= passing]
    alarms = [i for i in judged if parts[i].kind == GOOD and parts[i].score > threshold]
    return {
        "escapes": sorted(escapes, key=lambda i: parts[i].score)[:most],
        "alarms": sorted(alarms, key=lambda i: -parts[i].score)[:most],
        "borderline": sorted(judged, key=lambda i: abs(parts[i].score - threshold))[:most],
    }


def shown(parts: Sequence[Part], threshold: float | None, most: int) -> set[int]:
    """Places of at most so many pictures: of wrong parts, then of those closest to the threshold by rank.

    Without a threshold: of the strangest.
    """
    order = sorted(range(len(parts)), key=lambda i: -parts[i].score)
    above = 0 if threshold is None else sum(part.score > threshold for part in parts)
    wrong = [i for i in order if parts[i].wrong]
    nearest = [order[rank] for rank in sorted(range(len(order)), key=lambda rank: abs(rank + 0.5 - above))]
    places = [place for i in dict.fromkeys([*wrong, *nearest]) for place in parts[i].views]
    return set(places[:most])
