from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from flawmap.errors import DataError
from flawmap.verdict.gauge import Reading, gauge, table

# The study of AIAG's manual: 10 parts, appraisers A, B, C, three trials each.
AIAG = {
    "A": """ .29 -.56 1.34  .47  -.80  .02 .59 -.31 2.26 -1.36
             .41 -.68 1.17  .50  -.92 -.11 .75 -.20 1.99 -1.25
             .64 -.58 1.27  .64  -.84 -.21 .66 -.17 2.01 -1.31""",
    "B": """ .08 -.47 1.19  .01  -.56 -.20 .47 -.63 1.80 -1.68
             .25 -1.22 .94 1.03 -1.20  .22 .55  .08 2.12 -1.62
             .07 -.68 1.34  .20 -1.28  .06 .83 -.34 2.19 -1.50""",
    "C": """ .04 -1.38 .88  .14 -1.46 -.29 .02 -.46 1.77 -1.49
            -.11 -1.13 1.09 .20 -1.07 -.67 .01 -.56 1.45 -1.77
            -.15 -.96  .67  .11 -1.45 -.49 .21 -.49 1.87 -2.16""",
}


def _aiag() -> list[Reading]:
    return [
        Reading(f"{part:02}", str(trial), float(value), station)
        for station, text in AIAG.items()
        for trial, line in enumerate(text.splitlines())
        for part, value in enumerate(line.split())
    ]


def _readings(x_PST: np.ndarray) -> list[Reading]:
    return [Reading(f"{p:02}", f"{t}", float(v), f"{s}") for (p, s, t), v in np.ndenumerate(x_PST)]


def _drawn(seed: int, shape: tuple[int, int, int], part=1.0, station=0.3, both=0.0, error=0.2) -> np.ndarray:
    draw = np.random.default_rng(seed)
    p, s, _ = shape
    x = draw.normal(0, part, (p, 1, 1)) + draw.normal(0, station, (1, s, 1)) + draw.normal(0, both, (p, s, 1))
    return x + draw.normal(0, error, shape)


def _theirs(readings: list[Reading], formula: str) -> Any:
    rows = [(r.part, r.station, r.trial, r.score) for r in readings]
    return anova_lm(ols(formula, pandas.DataFrame(rows, columns=["part", "station", "trial", "score"])).fit())


def test_the_study_of_the_aiag_manual_gives_its_published_figures() -> None:
    """Sums of squares, standard deviations, %GRR 27.9 and ndc 4 by the ANOVA method, interaction pooled."""
    found = gauge(_aiag())
    ss = {name: row["ss"] for name, row in found["anova"].items()}
    assert ss["part"] == pytest.approx(88.3619, abs=1e-3)
    assert ss["station"] == pytest.approx(3.1673, abs=1e-3)
    assert ss["interaction_before_pooling"] == pytest.approx(0.3590, abs=1e-3)
    assert ss["repeatability"] == pytest.approx(2.7589 + 0.3590, abs=1e-3)
    expected = {"EV": 0.199933, "AV": 0.226838, "INT": 0, "PV": 1.042327, "GRR": 0.302373, "TV": 1.085}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=5e-4)
    assert found["grr_percent"] == pytest.approx(27.9, abs=0.05)
    assert (found["ndc"], found["grade"]) == (4, "marginal")
    assert any(note.startswith("interaction of part and station pooled") for note in found["notes"])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 3), st.integers(2, 3), st.sampled_from([0.0, 0.5]))
def test_the_mean_squares_of_stations_are_those_of_statsmodels(
    seed: int, parts: int, stations: int, trials: int, both: float
) -> None:
    readings = _readings(_drawn(seed, (parts, stations, trials), both=both))
    found, full = gauge(readings)["anova"], _theirs(readings, "score ~ C(part) * C(station)")
    interaction = full.loc["C(part):C(station)"]
    names = {"part": "C(part)", "station": "C(station)", "repeatability": "Residual"}
    if interaction["PR(>F)"] <= 0.25:
        theirs = full
        names["interaction"] = "C(part):C(station)"
        assert found["interaction"]["p"] == pytest.approx(interaction["PR(>F)"], rel=1e-6)
    else:
        theirs = _theirs(readings, "score ~ C(part) + C(station)")
        assert found["interaction_before_pooling"]["p"] == pytest.approx(interaction["PR(>F)"], rel=1e-6)
        assert "interaction" not in found
    for ours, name in names.items():
        assert found[ours]["ms"] == pytest.approx(theirs.loc[name, "mean_sq"], rel=1e-8)
        assert found[ours]["df"] == theirs.loc[name, "df"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(2, 4))
def test_the_mean_squares_of_one_station_are_those_of_statsmodels(seed: int, parts: int, trials: int) -> None:
    readings = [Reading(r.part, r.trial, r.score) for r in _readings(_drawn(seed, (parts, 1, trials)))]
    found, theirs = gauge(readings), _theirs(readings, "score ~ C(part)")
    part, error = found["anova"]["part"], found["anova"]["repeatability"]
    assert part["ms"] == pytest.approx(theirs.loc["C(part)", "mean_sq"], rel=1e-8)
    assert error["ms"] == pytest.approx(theirs.loc["Residual", "mean_sq"], rel=1e-8)
    assert part["p"] == pytest.approx(theirs.loc["C(part)", "PR(>F)"], rel=1e-6)
    assert found["EV"] == pytest.approx(math.sqrt(error["ms"]))
    assert found["PV"] == pytest.approx(math.sqrt(max(0, (part["ms"] - error["ms"]) / trials)))
    assert (found["AV"], found["INT"]) == (0, 0)


def test_a_study_of_four_scores_by_hand() -> None:
    """Parts 1, 3 and 5, 9: means 2 and 7; within SS 2 + 8 on 2 df, between SS 25 on 1."""
    found = gauge([Reading("a", "1", 1), Reading("a", "2", 3), Reading("b", "1", 5), Reading("b", "2", 9)])
    assert found["EV"] == pytest.approx(math.sqrt(5))
    assert found["PV"] == pytest.approx(math.sqrt(10))
    assert found["TV"] == pytest.approx(math.sqrt(15))
    assert found["grr_percent"] == pytest.approx(100 / math.sqrt(3))
    assert found["ndc"] == 1  # floor(1.41 x 1.414)
    assert found["grade"] == "unacceptable"
    assert found["contribution_percent"]["PV"] == pytest.approx(200 / 3)


def test_the_components_are_found_on_average() -> None:
    """Variances 1, 0.09, 0.16 and 0.04 of part, station, interaction and error; 300 studies, 20 x 6 x 3."""
    squares = {name: [] for name in ("PV", "AV", "INT", "EV")}
    for seed in range(300):
        found = gauge(_readings(_drawn(seed, (20, 6, 3), both=0.4)))
        for name, values in squares.items():
            values.append(found[name] ** 2)
    for name, true in (("PV", 1.0), ("AV", 0.09), ("INT", 0.16), ("EV", 0.04)):
        values = np.array(squares[name])
        assert values.mean() == pytest.approx(true, abs=4 * values.std() / math.sqrt(len(values)))


def test_the_interval_of_the_repeatability_covers_it() -> None:
    hits = 0
    for seed in range(400):
        low, high = gauge(_readings(_drawn(seed, (8, 1, 3))))["EV_low_high"]
        hits += low <= 0.2 <= high
    assert 0.92 < hits / 400 < 0.98


def test_a_negative_variance_is_set_to_zero_and_named() -> None:
    found = gauge([Reading("a", "1", 0), Reading("a", "2", 4), Reading("b", "1", 1), Reading("b", "2", 3.5)])
    assert found["PV"] == 0
    assert (found["grr_percent"], found["ndc"]) == (100, 0)
    assert found["notes"][0].startswith("the variance PV came out negative (-2.75)")
    assert found["notes"][1] == "one station: repeatability only, no reproducibility"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.integers(-8, 8), st.integers(-100, 100))
def test_order_shift_and_scale_of_the_scores_change_no_percentage(
    seed: int, shuffle: random.Random, power: int, shift: int
) -> None:
    x = _drawn(seed, (5, 2, 3), both=0.3)
    plain = gauge(_readings(x))
    moved = _readings(x * 2.0**power + shift)
    shuffle.shuffle(moved)
    found = gauge(moved)
    assert found["grr_percent"] == pytest.approx(plain["grr_percent"], rel=1e-6)
    assert found["ndc"] == plain["ndc"]
    assert found["TV"] == pytest.approx(plain["TV"] * 2.0**power, rel=1e-6)


def test_more_spread_within_the_parts_is_a_worse_gauge() -> None:
    found = [gauge(_readings(_drawn(3, (20, 1, 3), error=error))) for error in (0.02, 0.1, 0.3, 1.0)]
    assert [f["grr_percent"] for f in found] == sorted(f["grr_percent"] for f in found)
    assert [f["grade"] for f in found] == ["acceptable", "acceptable", "marginal", "unacceptable"]
    assert [f["ndc"] for f in found] == sorted((f["ndc"] for f in found), reverse=True)


def test_scores_that_do_not_move_are_told_and_all_equal_ones_refused() -> None:
    found = gauge([Reading(str(p), str(t), 0.1 + p) for p in range(4) for t in range(3)])
    assert (found["GRR"], found["ndc"], found["grr_percent"]) == (0, None, 0)
    assert "the same scores in every trial" in found["notes"][-1]
    with pytest.raises(DataError, match="all scores are the same"):
        gauge([Reading(str(p), str(t), 0.1) for p in range(4) for t in range(3)])


def test_an_interaction_without_any_error_is_not_pooled() -> None:
    x = np.array([[[1.0, 1.0], [2.0, 2.0]], [[5.0, 5.0], [3.0, 3.0]]])
    found = gauge(_readings(x))
    assert found["EV"] == 0
    assert found["INT"] > 0
    assert found["anova"]["interaction"]["p"] is None


def test_what_is_no_study_is_refused() -> None:
    whole = _readings(_drawn(0, (3, 2, 2)))
    for readings, message in (
        ([], "0 part"),
        (whole[:-1], "part 02 lacks trial 1 at station 1"),
        ([*whole, whole[0]], "part 00 has trial 0 twice"),
        ([Reading("a", "1", 1.0), Reading("a", "2", 2.0)], "1 part: a gauge study takes at least 2 parts"),
        ([Reading("a", "1", 1.0), Reading("b", "1", 2.0)], "at least 2 trials"),
        ([*whole[:-1], Reading("02", "1", math.nan, "1")], "part 02, trial 1: the score is nan"),
        ([*whole[:-1], Reading("02", "1", math.inf, "1")], "not a finite number"),
    ):
        with pytest.raises(DataError, match=message):
            table(readings)
