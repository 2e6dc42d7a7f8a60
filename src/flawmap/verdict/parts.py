"""Pictures as parts: what is counted, and the words that a promise needs about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawmap.errors import CalibrationError

# The engines agree to 1e-4 of the score scale. Ten times that above the order statistic, rounding cannot flip the
# verdict of the very part that set the threshold. A higher threshold only lowers false alarms: the promise stays valid.
MARGIN = 1e-3
RULES = ("largest", "mean")
UNITS = ("part", "picture")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Parts:
    """Pictures as parts, ascending by score; the peaks ascend on their own."""

    scores: list[float]
    peaks: list[float]
    kinds: list[str]  # in the order of the scores
    views: tuple[int, int]
    unit: str = "part"
    rule: str = "largest"


def by_part(
    parts: Sequence[str],
    scores: Sequence[float],
    peaks: Sequence[float],
    kinds: Sequence[str] = (),
    *,
    unit: str = "part",
    rule: str = "largest",
) -> Parts:
    """Pictures as parts: the score by the rule, the peak the largest over the views, the kind that of a defective view.

    With the unit "picture" each picture is a part of its own. Raises CalibrationError for lengths that differ, values
    that are not finite, no parts, an unknown unit or rule.
    """
    for word, known in ((unit, UNITS), (rule, RULES)):
        if word not in known:
            raise CalibrationError(f"{word!r} is not one of {', '.join(known)}")
    for what, values in (("score", scores), ("map peak", peaks), *((("kind", kinds),) if kinds else ())):
        if len(parts) != len(values):
            raise CalibrationError(f"{len(parts)} part names but {len(values)} values ({what}): one of each a picture")
    if len(parts) == 0:
        raise CalibrationError("no good parts to calibrate on: hold some out of fitting")
    rows: dict[Any, list[int]] = {}
    for row, part in enumerate(parts):
        finite(scores[row], f"the score of part {part!r}")
        finite(peaks[row], f"the map peak of part {part!r}")
        rows.setdefault(row if unit == "picture" else part, []).append(row)
    one = (lambda s: float(np.mean(s))) if rule == "mean" else max
    scored = [float(one([scores[r] for r in group])) for group in rows.values()]
    kind = [next((kinds[r] for r in group if kinds[r] != "good"), "good") if kinds else "" for group in rows.values()]
    order = sorted(range(len(scored)), key=scored.__getitem__)
    counts = [len(group) for group in rows.values()]
    return Parts(
        [scored[i] for i in order],
        sorted(float(max(peaks[r] for r in group)) for group in rows.values()),
        [kind[i] for i in order],
        (min(counts), max(counts)),
        unit,
        rule,
    )


def above(values: Sequence[float], k: int) -> tuple[float, float, float]:
    """Threshold, margin and scale for the k-th largest of ascending values."""
    order = values[-k]
    scale = max(abs(order), float(np.std(values)))
    margin = MARGIN * scale
    return order + margin, margin, scale


def finite(value: float, what: str) -> float:
    if not abs(value) <= LARGEST:
        raise CalibrationError(f"{what} is {value}: not a finite number, so no verdict can rest on it")
    return float(value)


def said_views(views: tuple[int, int]) -> str:
    least, most = views
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"{count} view{'s' * (most > 1)}"


def caveats(good: Parts, crossed: bool) -> str:
    """What else a sentence has to say, before its full stop."""
    words = ""
    if good.unit == "picture":
        words += (
            "; this counts pictures, not parts: a part of several views is refused when one of them is, more often "
            "than that, and views of one part are not independent, so that even for pictures it promises too much"
        )
    elif good.views[1] > 1:
        the = "the largest over" if good.rule == "largest" else "the mean of"
        words += f"; a part's score is {the} its {said_views(good.views)}"
        if good.views[0] < good.views[1]:
            words += ", for parts that come with so many views as often as these"
    if crossed:
        words += (
            "; the scores come from cross-fitting, so the promise is approximate, checked by re-splitting "
            "(docs/promise.md)"
        )
    return words
