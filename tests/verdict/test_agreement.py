from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import DataError
from flawmap.verdict.agreement import Decision, agreement, cohen, fleiss


def _decisions(rows: Sequence[tuple[bool, Sequence[bool]]]) -> list[Decision]:
    """(reference, one verdict a trial) of each part."""
    return [
        Decision(f"part {i:02}", f"{t}", nok, defective)
        for i, (defective, said) in enumerate(rows)
        for t, nok in enumerate(said)
    ]


def _random(seed: int, parts: int, trials: int, wrong: float = 0.15) -> list[tuple[bool, list[bool]]]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(parts):
        defective = bool(draw.random() < 0.4)
        rows.append((defective, [bool(defective ^ (draw.random() < wrong)) for _ in range(trials)]))
    return rows


def _theirs(said: np.ndarray, known: np.ndarray):
    with np.errstate(invalid="ignore", divide="ignore"):  # statsmodels gives NaN where the variance is 0
        return cohens_kappa(np.histogram2d(said, known, bins=2, range=[[0, 1], [0, 1]])[0])


ROWS = [
    *[(False, [False] * 3)] * 22,
    *[(False, [False, True, False])] * 2,
    *[(True, [True] * 3)] * 24,
    *[(True, [True, True, False])] * 1,
    *[(True, [False] * 3)] * 1,
]


def test_the_figures_of_a_study_counted_by_hand() -> None:
    found = agreement(_decisions(ROWS))
    assert (found["parts"], found["trials"]) == (50, 3)
    assert (found["effectiveness"]["count"], found["effectiveness"]["n"]) == (46, 50)
    assert found["repeatable"]["count"] == 47
    miss, alarm = found["miss"], found["false_alarm"]
    assert (miss["count"], miss["n"], miss["parts_at_least_once"], miss["parts"]) == (4, 78, 2, 26)
    assert (alarm["count"], alarm["n"], alarm["parts_at_least_once"], alarm["parts"]) == (2, 72, 2, 24)
    low, high = proportion_confint(46, 50, method="beta")
    assert (found["effectiveness"]["low"], found["effectiveness"]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert miss["upper"] == pytest.approx(proportion_confint(2, 26, alpha=0.1, method="beta")[1])
    assert found["grades"] == {
        "effectiveness": "acceptable",  # 92 %
        "miss": "unacceptable",  # 5.1 %
        "false_alarm": "acceptable",  # 2.8 %
        "overall": "unacceptable",
        "kappa": "good",
        "kappa_between_trials": "good",
    }
    assert found["notes"] == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(2, 4))
def test_the_kappas_are_those_of_statsmodels(seed: int, parts: int, trials: int) -> None:
    rows = _random(seed, parts, trials)
    assume(len({defective for defective, _ in rows}) == 2)
    nok, known = np.array([said for _, said in rows]), np.array([defective for defective, _ in rows])
    found = agreement(_decisions(rows))
    assert found["kappa"] == pytest.approx(_theirs(nok.ravel(), np.repeat(known, trials)).kappa, abs=1e-12)
    if nok.all() or not nok.any():
        assert found["kappa_between_trials"] is None
    else:
        theirs = fleiss_kappa(aggregate_raters(nok.astype(int))[0])
        assert found["kappa_between_trials"] == pytest.approx(theirs, abs=1e-12)
    for trial in range(trials):
        theirs = _theirs(nok[:, trial], known)
        ours, reach = found["kappa_by_trial"][str(trial)], np.nan_to_num(theirs.std_kappa) * 1.959963984540054
        assert ours["kappa"] == pytest.approx(theirs.kappa, abs=1e-12)
        assert ours["low"] == pytest.approx(theirs.kappa - reach, abs=1e-6)
        assert ours["high"] == pytest.approx(min(1, theirs.kappa + reach), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_decisions_is_irrelevant(seed: int, shuffle: random.Random) -> None:
    decisions = _decisions(_random(seed, 12, 3))
    found = agreement(decisions)
    shuffle.shuffle(decisions)
    assert agreement(decisions) == found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 35))
def test_a_decision_mended_never_makes_a_figure_worse(seed: int, at: int) -> None:
    decisions = _decisions(_random(seed, 12, 3, wrong=0.4))
    before = agreement(decisions)
    one = decisions[at]
    decisions[at] = Decision(one.part, one.trial, one.defective, one.defective)
    after = agreement(decisions)
    assert after["effectiveness"]["count"] >= before["effectiveness"]["count"]
    for name in ("miss", "false_alarm"):
        assert after[name]["count"] <= before[name]["count"]
        assert after[name]["upper"] <= before[name]["upper"]


def test_the_bound_of_the_miss_rate_covers_it_though_presentations_of_a_part_resemble_each_other() -> None:
    """Parts miss with their own probability; an interval that counted 3 x 20 decisions would be too narrow."""
    draw, covered, naive, studies = np.random.default_rng(0), 0, 0, 800
    for _ in range(studies):
        chance = draw.beta(0.05, 0.45, 20)  # mean 10 %: most parts never, a few nearly always
        missed = draw.random((20, 3)) < chance[:, None]
        found = agreement(_decisions([(True, list(~row)) for row in missed] + [(False, [False] * 3)]))
        covered += found["miss"]["upper"] >= 0.1
        count = int(missed.sum())
        naive += bool(count == 60 or proportion_confint(count, 60, alpha=0.1, method="beta")[1] >= 0.1)
    assert covered / studies >= 0.95
    assert naive / studies < 0.92


@pytest.mark.parametrize(
    ("wrong_good", "wrong_bad", "grade"),
    [
        *((0, 0, "acceptable"), (5, 0, "acceptable"), (0, 2, "acceptable"), (6, 0, "marginal"), (0, 3, "marginal")),
        *((10, 5, "marginal"), (11, 0, "unacceptable"), (0, 6, "unacceptable")),
    ],
)
def test_the_grades_are_those_of_the_table_of_the_aiag(wrong_good: int, wrong_bad: int, grade: str) -> None:
    """100 good and 100 defective decisions, so that counts are per cent; the wrong ones lie in as few parts as can."""
    rows = []
    for defective, wrong in ((False, wrong_good), (True, wrong_bad)):
        flat = [defective ^ (i < wrong) for i in range(100)]
        rows += [(defective, flat[i : i + 10]) for i in range(0, 100, 10)]
    assert agreement(_decisions(rows))["grades"]["overall"] == grade


def test_effectiveness_is_graded_at_90_and_80_per_cent() -> None:
    """50 parts of 50 trials, each wrong part wrong once, so that the two rates stay small."""
    for wrong, grade in ((5, "acceptable"), (6, "marginal"), (10, "marginal"), (11, "unacceptable")):
        rows = [(i % 2 == 0, [(i % 2 == 0) ^ (t == 0 and i < wrong) for t in range(50)]) for i in range(50)]
        grades = agreement(_decisions(rows))["grades"]
        assert (grades["effectiveness"], grades["overall"]) == (grade, grade)


def test_what_is_undefined_is_none_and_few_parts_are_told() -> None:
    found = agreement(_decisions([(False, [False, False])] * 5))
    assert found["effectiveness"]["rate"] == 1
    assert found["effectiveness"]["low"] == pytest.approx(0.025 ** (1 / 5))
    assert (found["kappa"], found["kappa_between_trials"], found["miss"]["rate"]) == (None, None, None)
    assert found["miss"]["upper"] == 1
    assert found["grades"]["miss"] is None
    assert found["notes"][0].startswith("5 parts: AIAG asks for at least 20")
    assert found["notes"][1].startswith("no defective part was presented")
    assert cohen(np.zeros(0, bool), np.zeros(0, bool))["kappa"] is None
    assert fleiss(np.ones((4, 3), bool)) is None


def test_what_is_no_study_is_refused() -> None:
    for decisions, message in (
        ([], "0 presentation"),
        (_decisions([(False, [False])]), "at least 2 trials"),
        ([*_decisions(ROWS), Decision("part 00", "0", True, False)], "part 00 has trial 0 twice"),
        (_decisions(ROWS)[:-1], "part 49 lacks trial 2"),
        ([Decision("a", "1", True, True), Decision("a", "2", True, False)], "good in one trial and defective"),
    ):
        with pytest.raises(DataError, match=message):
            agreement(decisions)
