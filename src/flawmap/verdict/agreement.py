"""Attribute agreement: does a station say the same of a part each time, and is it right? (AIAG, Measurement Systems
Analysis, 4th edition, chapter III C.)

Every part is presented several times (trials), and its reference, good or defective, is known. A trial means that the
part was taken out and presented again; a station says of one file what it said before, which measures nothing.

Presentations of one part resemble each other, so bounds count parts. Where a rate counts decisions its upper bound is
that of "the part was judged wrongly at least once", which is never below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawmap.errors import DataError
from flawmap.verdict.acceptance import rate
from flawmap.verdict.rates import upper

GRADES = ("acceptable", "marginal", "unacceptable")
# AIAG's table: effectiveness at least, miss rate and false-alarm rate at most.
ACCEPTABLE, MARGINAL = (0.90, 0.02, 0.05), (0.80, 0.05, 0.10)
GOOD_KAPPA, POOR_KAPPA = 0.75, 0.40
LEAST_PARTS = 20
_NORMAL = 1.959963984540054  # 97.5 % point


@dataclass(frozen=True, slots=True)
class Decision:
    part: str
    trial: str
    nok: bool  # what the station said; sent to review is not passed, hence true
    defective: bool  # what is known of the part


def agreement(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Effectiveness, miss and false-alarm rate, kappas and AIAG's grade of one station over repeated presentations.

    Raises DataError for fewer than two trials, a part that lacks a trial or has it twice, or a reference that changes.
    """
    parts, trials, nok, defective = _table(decisions)
    wrong = nok != defective[:, None]
    bad, good = wrong[defective], wrong[~defective]
    found: dict[str, Any] = {
        "parts": len(parts),
        "trials": len(trials),
        "effectiveness": rate(int((~wrong.any(axis=1)).sum()), len(parts)),
        "repeatable": rate(int((nok == nok[:, :1]).all(axis=1).sum()), len(parts)),
        "miss": _decisions(bad),
        "false_alarm": _decisions(good),
        "kappa": cohen(nok.ravel(), np.repeat(defective, len(trials)))["kappa"],
        "kappa_by_trial": {trial: cohen(nok[:, i], defective) for i, trial in enumerate(trials)},
        "kappa_between_trials": fleiss(nok),
    }
    found["grades"] = _grades(found)
    found["notes"] = _notes(found, bad, good)
    return found


def cohen(said: np.ndarray, known: np.ndarray) -> dict[str, float | None]:
    """Cohen's kappa of two (N,) bool arrays, with its 95 % interval (Fleiss, Cohen and Everitt 1969, large N).

    The interval takes the N as independent: one trial, not several of the same parts. All None where both are constant
    and alike, for then agreement by chance is certain too.
    """
    n = len(said)
    table = np.array([[np.sum((said == a) & (known == b)) for b in (False, True)] for a in (False, True)]) / max(n, 1)
    row, column = table.sum(axis=1), table.sum(axis=0)
    agreed, chance = float(np.trace(table)), float(row @ column)
    if n == 0 or chance >= 1:
        return {"kappa": None, "low": None, "high": None}
    kappa = (agreed - chance) / (1 - chance)
    both = row[None, :] + column[:, None]  # of cell (a, b): the marginals of b among the first, of a among the second
    own = np.diag(table) @ (1 - np.diag(both) * (1 - kappa)) ** 2
    off = (1 - kappa) ** 2 * (np.sum(table * both**2) - np.diag(table) @ np.diag(both) ** 2)
    variance = (own + off - (kappa - chance * (1 - kappa)) ** 2) / ((1 - chance) ** 2 * n)
    reach = _NORMAL * math.sqrt(max(0.0, float(variance)))
    return {"kappa": float(kappa), "low": float(kappa) - reach, "high": min(1.0, float(kappa) + reach)}


def fleiss(nok: np.ndarray) -> float | None:
    """Fleiss' kappa (1971) of (parts, trials) bool: agreement of the trials among each other, beyond chance.

    None where every decision is the same.
    """
    trials = nok.shape[1]
    counts = np.stack([nok.sum(axis=1), (~nok).sum(axis=1)], axis=1)
    agreed = float(((counts**2).sum(axis=1) - trials).mean()) / (trials * (trials - 1))
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if chance >= 1 else (agreed - chance) / (1 - chance)


def _table(decisions: Sequence[Decision]) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Parts, trials, (parts, trials) bool of what was said, (parts,) bool of what is known; in sorted order."""
    cells: dict[tuple[str, str], bool] = {}
    known: dict[str, bool] = {}
    for d in decisions:
        if (d.part, d.trial) in cells:
            raise DataError(f"part {d.part} has trial {d.trial} twice; a trial is one verdict of the part")
        if known.setdefault(d.part, d.defective) != d.defective:
            raise DataError(f"part {d.part} is good in one trial and defective in another; mend its reference")
        cells[d.part, d.trial] = bool(d.nok)
    parts, trials = sorted(known), sorted({trial for _, trial in cells})
    if len(trials) < 2:
        raise DataError(f"{len(trials)} presentation of each part: agreement takes at least 2 trials")
    for part in parts:
        if lacks := [trial for trial in trials if (part, trial) not in cells]:
            raise DataError(f"part {part} lacks trial {', '.join(lacks)}: present every part in every trial")
    nok = np.array([[cells[part, trial] for trial in trials] for part in parts], bool)
    return parts, trials, nok, np.array([known[part] for part in parts], bool)


def _decisions(wrong: np.ndarray) -> dict[str, Any]:
    """Of (parts, trials) bool: how many decisions are wrong, how many parts were judged wrongly once or more, bound."""
    once = int(wrong.any(axis=1).sum())
    n = wrong.size
    return {
        "count": int(wrong.sum()),
        "n": n,
        "rate": float(wrong.mean()) if n else None,
        "parts_at_least_once": once,
        "parts": len(wrong),
        "upper": upper(once, len(wrong)),
    }


def _grades(found: dict[str, Any]) -> dict[str, str | None]:
    """AIAG's; `overall` is the worst of the three rates. A kappa from 0.75 on is good, from 0.40 fair."""
    values = (found["effectiveness"]["rate"], found["miss"]["rate"], found["false_alarm"]["rate"])
    grades: dict[str, str | None] = {}
    for place, (name, value) in enumerate(zip(("effectiveness", "miss", "false_alarm"), values, strict=True)):
        grades[name] = None if value is None else _grade(value, ACCEPTABLE[place], MARGINAL[place], place == 0)
    given = [grade for grade in grades.values() if grade is not None]
    grades["overall"] = max(given, key=GRADES.index)
    for name in ("kappa", "kappa_between_trials"):
        k = found[name]
        grades[name] = None if k is None else "good" if k >= GOOD_KAPPA else "fair" if k >= POOR_KAPPA else "poor"
    return grades


def _grade(value: float, acceptable: float, marginal: float, more_is_better: bool) -> str:
    value, acceptable, marginal = (v if more_is_better else -v for v in (value, acceptable, marginal))
    return GRADES[0] if value >= acceptable else GRADES[1] if value >= marginal else GRADES[2]


def _notes(found: dict[str, Any], bad: np.ndarray, good: np.ndarray) -> list[str]:
    notes = []
    if found["parts"] < LEAST_PARTS:
        notes.append(
            f"{found['parts']} parts: AIAG asks for at least {LEAST_PARTS}, better 50, a third of them borderline"
        )
    for wrong, what in ((bad, "defective"), (good, "good")):
        if not len(wrong):
            notes.append(
                f"no {what} part was presented: one of the rates and the kappas against the reference say nothing"
            )
    return notes
