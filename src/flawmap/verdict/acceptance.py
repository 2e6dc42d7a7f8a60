"""Acceptance rates: escapes and false alarms of parts with known defects, by kind and by size, with their bounds.

Each part counts once. Bounds are exact (Clopper and Pearson 1934) for parts drawn at random from those the station will
see, and each holds on its own: of twenty intervals of 95 %, one may miss. A defective part that is OK escaped, a good
part that is NOK is a false alarm; what went to review is neither, and is counted beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flawmap.errors import DataError
from flawmap.types import GOOD, Verdict
from flawmap.verdict.rates import clopper_pearson, percent, upper

UNKNOWN = "no mask"


@dataclass(frozen=True, slots=True)
class Judged:
    """A part (or one presentation of it), what a person says of it, and what the station said."""

    part: str
    kind: str  # "good", or the kind of defect
    verdict: Verdict | None  # None: it could not be judged
    size_px: int | None = None  # of the largest defect area over its views; None: no mask, or good

    @property
    def defective(self) -> bool:
        return self.kind != GOOD

    @property
    def passed(self) -> bool:
        return self.verdict == Verdict.OK


def size_bin(area_px: int | None) -> str:
    """The power of ten that an area in px falls into: "<100", "100 to 999", "1000 to 9999", and so on."""
    if area_px is None:
        return UNKNOWN
    if area_px < 1:
        raise DataError(f"a defect of {area_px} px is none")
    if area_px < 100:
        return "<100"
    power = len(str(area_px)) - 1
    return f"{10**power} to {10 ** (power + 1) - 1}"


def rate(count: int, n: int) -> dict[str, Any]:
    """count of n with its two-sided 95 % interval `low`, `high` and its one-sided 95 % limit `upper`."""
    low, high = clopper_pearson(count, n)
    return {
        "count": count,
        "n": n,
        "rate": count / n if n else None,
        "low": low,
        "high": high,
        "upper": upper(count, n),
    }


def rates(parts: Sequence[Judged]) -> dict[str, Any]:
    """Escapes and false alarms over all parts, escapes of each kind and size, and what could not be judged.

    Raises DataError for no parts, and for a part that is there twice.
    """
    if not parts:
        raise DataError("no parts to accept a station on")
    names = [p.part for p in parts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the part {twice} is there twice: each part counts once; repeated presentations are trials")
    judged = [p for p in parts if p.verdict is not None]
    good, bad = [p for p in judged if not p.defective], [p for p in judged if p.defective]
    kinds = sorted({p.kind for p in bad})
    sizes = sorted({size_bin(p.size_px) for p in bad}, key=_order)
    false_alarms = rate(sum(p.verdict == Verdict.NOK for p in good), len(good))
    escapes = _escapes(bad)
    return {
        "parts": len(parts),
        "not_judged": len(parts) - len(judged),
        "review_good": sum(p.verdict == Verdict.REVIEW for p in good),
        "review_defective": sum(p.verdict == Verdict.REVIEW for p in bad),
        "escapes": escapes,
        "false_alarms": false_alarms,
        "kinds": {kind: _escapes([p for p in bad if p.kind == kind]) for kind in kinds},
        "sizes": {size: _escapes([p for p in bad if size_bin(p.size_px) == size]) for size in sizes},
        "sentences": [_said(escapes, "defective", "escape"), _said(false_alarms, "good", "be refused")],
    }


def _escapes(bad: Sequence[Judged]) -> dict[str, Any]:
    return rate(sum(p.passed for p in bad), len(bad))


def _order(size: str) -> float:
    if size == UNKNOWN:
        return math.inf
    return 0.0 if size.startswith("<") else float(size.split()[0])


def _said(found: dict[str, Any], what: str, does: str) -> str:
    count, n = found["count"], found["n"]
    if not n:
        return f"no {what} parts were judged: nothing can be said of how many {does}"
    past = "escaped" if does == "escape" else "refused"
    many = f"{count} of {n} {what} part{'s' * (n > 1)} {past}"
    return f"{many}: with 95 % confidence at most {percent(found['upper'])} {does}"
