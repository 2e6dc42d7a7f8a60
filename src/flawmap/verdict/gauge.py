"""Gauge R&R on the score: how much of its spread is the parts', how much the measurement's (AIAG, Measurement Systems
Analysis, 4th edition, chapter III B, the ANOVA method).

One station: each part is presented several times, and the spread within a part is the repeatability (EV); there is no
reproducibility. Several stations: parts x stations x trials, crossed, both random; the interaction is pooled with the
repeatability where its F test gives p > 0.25. A variance that comes out negative is set to 0 and named.

A score is no length: a good part's score has no tolerance, and defective parts may score a hundred times as high. Then
the parts' spread is all defects and every gauge looks fine; do the study on the parts near the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawmap.errors import DataError

POOL = 0.25
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Reading:
    part: str
    trial: str
    score: float
    station: str = ""


def gauge(readings: Sequence[Reading]) -> dict[str, Any]:
    """The study of a balanced set of readings: standard deviations, shares of the variance, %GRR, ndc, ANOVA table.

    Raises DataError for scores that are not finite, fewer than two parts or two trials, or a reading that is missing or
    there twice.
    """
    scores_PST = table(readings)
    rows = _anova(scores_PST)
    variances, notes = _components(rows, scores_PST.shape)
    grr = variances["EV"] + variances["AV"] + variances["INT"]
    total = grr + variances["PV"]
    if not total > 0:
        raise DataError("all scores are the same: there is no spread to divide between parts and measurement")
    variances |= {"GRR": grr, "TV": total}
    deviations = {name: math.sqrt(value) for name, value in variances.items()}
    percent = 100 * deviations["GRR"] / deviations["TV"]
    error = rows["repeatability"]
    return {
        "parts": scores_PST.shape[0],
        "stations": scores_PST.shape[1],
        "trials": scores_PST.shape[2],
        **deviations,
        "study_variation_percent": {name: 100 * sd / deviations["TV"] for name, sd in deviations.items()},
        "contribution_percent": {name: 100 * value / total for name, value in variances.items()},
        "grr_percent": percent,
        "ndc": math.floor(1.41 * deviations["PV"] / deviations["GRR"]) if grr > 0 else None,
        "grade": "acceptable" if percent < 10 else "marginal" if percent <= 30 else "unacceptable",
        "EV_low_high": _interval(error["ss"], error["df"]),
        "anova": rows,
        "notes": notes + (["no spread within the parts: the same scores in every trial"] if grr == 0 else []),
    }


def table(readings: Sequence[Reading]) -> np.ndarray:
    """(parts, stations, trials) scores, each in sorted order."""
    cells: dict[tuple[str, str, str], float] = {}
    for r in readings:
        if not math.isfinite(r.score):
            raise DataError(f"part {r.part}, trial {r.trial}: the score is {r.score}, not a finite number")
        if (r.part, r.station, r.trial) in cells:
            raise DataError(f"part {r.part} has trial {r.trial} twice; a trial is one score of the part")
        cells[r.part, r.station, r.trial] = float(r.score)
    names = [sorted({key[place] for key in cells}) for place in range(3)]
    for what, least, have in zip(("part", "station", "trial"), (2, 1, 2), names, strict=True):
        if len(have) < least:
            raise DataError(f"{len(have)} {what}: a gauge study takes at least {least} {what}s")
    for part in names[0]:
        for station in names[1]:
            for trial in names[2]:
                if (part, station, trial) not in cells:
                    at = f" at station {station}" if station else ""
                    raise DataError(f"part {part} lacks trial {trial}{at}: present every part equally often")
    return np.array([[[cells[p, s, t] for t in names[2]] for s in names[1]] for p in names[0]])


def _anova(x_PST: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Sums of squares, degrees of freedom, mean squares, F and p of a balanced study, interaction pooled if need be."""
    parts, stations, trials = x_PST.shape
    x_PST = x_PST - x_PST[:1, :1, :1]  # so that equal scores give sums of exactly 0
    within = x_PST - x_PST[:, :, :1]
    mean, of_part, of_station = x_PST.mean(), x_PST.mean(axis=(1, 2)), x_PST.mean(axis=(0, 2))
    cell = x_PST.mean(axis=2)
    ss = {
        "part": stations * trials * float(((of_part - mean) ** 2).sum()),
        "station": parts * trials * float(((of_station - mean) ** 2).sum()),
        "interaction": trials * float(((cell - of_part[:, None] - of_station[None, :] + mean) ** 2).sum()),
        "repeatability": float(((within - within.mean(axis=2, keepdims=True)) ** 2).sum()),
    }
    df = {
        "part": parts - 1,
        "station": stations - 1,
        "interaction": (parts - 1) * (stations - 1),
        "repeatability": parts * stations * (trials - 1),
    }
    if stations == 1:
        ss, df = ({name: values[name] for name in ("part", "repeatability")} for values in (ss, df))
        return _tests(ss, df, "repeatability")
    full = _tests(ss, df, "interaction")
    p = full["interaction"]["p"]
    if p is None or p <= POOL:
        return full
    pooled_ss = {"part": ss["part"], "station": ss["station"], "repeatability": ss["interaction"] + ss["repeatability"]}
    pooled_df = {**{k: df[k] for k in ("part", "station")}, "repeatability": df["interaction"] + df["repeatability"]}
    return {**_tests(pooled_ss, pooled_df, "repeatability"), "interaction_before_pooling": full["interaction"]}


def _tests(ss: dict[str, Any], df: dict[str, Any], against: str) -> dict[str, dict[str, float | None]]:
    """Mean squares, and F with its p of each effect: of the interaction against the repeatability, else `against`."""
    from scipy.stats import f as fisher

    rows: dict[str, dict[str, float | None]] = {}
    for name in ss:
        rows[name] = {"ss": ss[name], "df": df[name], "ms": ss[name] / df[name], "F": None, "p": None}
    for name, row in rows.items():
        error = "repeatability" if name == "interaction" else against
        if name == "repeatability" or not (rows[error]["ms"] or 0) > 0:
            continue
        row["F"] = ss[name] / df[name] / (ss[error] / df[error])
        row["p"] = float(fisher.sf(row["F"], df[name], df[error]))
    return rows


def _components(rows: dict[str, Any], shape: tuple[int, ...]) -> tuple[dict[str, float], list[str]]:
    """Variances EV, AV, INT, PV from the expected mean squares, those below 0 set to 0."""
    parts, stations, trials = shape
    ms = {name: row["ms"] for name, row in rows.items()}
    against = ms.get("interaction", ms["repeatability"])
    raw = {
        "EV": ms["repeatability"],
        "AV": (ms["station"] - against) / (parts * trials) if "station" in ms else 0.0,
        "INT": (ms["interaction"] - ms["repeatability"]) / trials if "interaction" in ms else 0.0,
        "PV": (ms["part"] - against) / (stations * trials),
    }
    notes = [
        f"the variance {name} came out negative ({value:.3g}) and is set to 0"
        for name, value in raw.items()
        if value < 0
    ]
    if "interaction_before_pooling" in rows:
        p = rows["interaction_before_pooling"]["p"]
        notes.append(f"interaction of part and station pooled with the repeatability (p = {p:.3f} > {POOL})")
    if stations == 1:
        notes.append("one station: repeatability only, no reproducibility")
    return {name: max(0.0, value) for name, value in raw.items()}, notes


def _interval(ss: Any, df: Any) -> tuple[float, float]:
    """95 % of the repeatability, for normal errors: sqrt(ss / chi-square quantiles)."""
    from scipy.stats import chi2

    tail = (1 - CONFIDENCE) / 2
    return math.sqrt(ss / float(chi2.isf(tail, df))), math.sqrt(ss / float(chi2.ppf(tail, df)))
