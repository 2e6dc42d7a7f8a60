from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest, norm

from flawmap.errors import CalibrationError
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.drift import (
    Limits,
    Martingale,
    ewma,
    limits,
    log_wealth,
    online_p_values,
    p_chart,
    reject_limits,
    shewhart,
)
from flawmap.verdict.parts import by_part
from flawmap.verdict.policies import Costs, cost, manual

# Montgomery, Introduction to Statistical Quality Control: 20 values of N(10, 1), then 10 of N(11, 1).
TABLE = [9.45, 7.99, 9.29, 11.66, 12.16, 10.18, 8.04, 11.46, 9.20, 10.34, 9.03, 11.47, 10.51, 9.40, 10.08]
TABLE += [9.37, 10.62, 10.31, 8.52, 10.84, 10.90, 9.33, 12.29, 11.50, 10.60, 11.08, 10.38, 11.62, 11.31, 10.52]
KNOWN = Limits(10.0, 1.0, 7.0, 13.0, 1000)


# ---- the martingale


def test_the_wealth_is_that_of_the_simple_jumper_written_out() -> None:
    """Algorithm 1 of Vovk et al. 2021, with the money on each bet and no logarithms."""
    p = np.random.default_rng(0).beta(0.6, 1, 300)
    money, path = {-1: 1 / 3, 0: 1 / 3, 1: 1 / 3}, []
    total = 1.0
    for value in p:
        for e in money:
            money[e] = 0.99 * money[e] + 0.01 / 3 * total
        for e in money:
            money[e] *= 1 + e * (value - 0.5)
        total = sum(money.values())
        path.append(math.log(total))
    np.testing.assert_allclose(log_wealth(p), path, atol=1e-9)
    assert path[-1] > 3


def test_a_part_is_ranked_among_all_parts_before_it() -> None:
    """Against counting: strictly stranger parts, and a uniform share of those that are as strange."""
    random = np.random.default_rng(1)
    reference, scores = random.integers(0, 6, 12).astype(float), random.integers(0, 6, 3000).astype(float)
    p = online_p_values(reference, scores, seed=5)
    before = list(reference)
    for value, score in zip(p, scores, strict=True):
        above, same = sum(s > score for s in before), 1 + sum(s == score for s in before)
        assert above / (len(before) + 1) <= value <= (above + same) / (len(before) + 1)
        before.append(score)
    assert kstest(p, "uniform").pvalue > 0.01  # ties are broken evenly
    assert abs(np.corrcoef(p[:-1], p[1:])[0, 1]) < 0.06  # 3 / sqrt(3000)


def _ranked_in_the_calibration_alone(reference: np.ndarray, line: np.ndarray, ties: np.ndarray) -> np.ndarray:
    return ((reference[None, :] > line[:, None]).sum(axis=1) + ties) / (len(reference) + 1)


def test_the_bound_holds_with_online_ranks_and_breaks_with_ranks_in_a_fixed_calibration_set() -> None:
    """Nothing changes: 30 calibration parts, 300 at the line, alarm wanted in at most 5 % of such lines."""
    random, ours, fixed, lines, alpha = np.random.default_rng(2), 0, 0, 600, 0.05
    for seed in range(lines):
        scores = random.gamma(2, size=330)
        line = Martingale(scores[:30], alpha=alpha, seed=seed)
        ours += any(line.add(score).alarm for score in scores[30:])
        p = _ranked_in_the_calibration_alone(scores[:30], scores[30:], random.random(300))
        fixed += bool(log_wealth(p).max() >= -math.log(alpha))
    assert binom.sf(ours - 1, lines, alpha) > 0.01  # no evidence of more than 5 %
    assert ours > 0
    assert binom.sf(fixed - 1, lines, alpha) < 1e-30
    assert fixed / lines > 0.25


def test_ties_do_not_break_the_bound() -> None:
    random, lines, alpha = np.random.default_rng(3), 500, 0.1
    alarms = 0
    for seed in range(lines):
        line = Martingale(random.integers(0, 3, 20).astype(float), alpha=alpha, seed=seed)
        alarms += any(line.add(float(score)).alarm for score in random.integers(0, 3, 200))
    assert binom.sf(alarms - 1, lines, alpha) > 0.01


def test_all_equal_scores_give_uniform_p_values_and_no_alarm() -> None:
    line = Martingale([1.0] * 10, alpha=0.01)
    found = [line.add(1.0) for _ in range(2000)]
    assert kstest([bet.p_value for bet in found], "uniform").pvalue > 0.01
    assert not found[-1].alarm


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_change_in_either_direction_is_found(shift: float) -> None:
    random, at = np.random.default_rng(4), []
    for seed in range(20):
        line = Martingale(random.normal(size=99), alpha=0.01, seed=seed)
        for _ in range(100):
            line.add(random.normal())
        assert not line.alarm
        for _ in range(400):
            line.add(random.normal() + shift)
        assert line.alarm_at is not None
        at.append(line.alarm_at - 100)
    assert 15 < np.median(at) < 80


def test_the_first_signal_of_a_line_in_control_comes_after_so_many_parts_on_average() -> None:
    """every = 200: the Shiryaev-Roberts sum less the number of parts is a martingale, so the mean is 200 or more."""
    first, random = [], np.random.default_rng(5)
    for seed in range(150):
        line = Martingale(random.normal(size=5), every=200, seed=seed)
        while line.signal_at is None:
            line.add(random.normal())
        first.append(line.signal_at)
    mean, error = np.mean(first), np.std(first) / math.sqrt(len(first))
    assert mean + 3 * error > 200
    assert mean - 3 * error < 400  # and not much later: it is a bound that is nearly met


def test_the_signal_does_not_tire_where_the_alarm_does() -> None:
    random = np.random.default_rng(6)
    line = Martingale(random.normal(size=99), alpha=0.01, every=100_000)
    for _ in range(5000):
        line.add(random.normal())
    assert line.log_wealth < -10
    assert (line.alarm_at, line.signal_at) == (None, None)
    while line.alarm_at is None:
        line.add(random.normal() + 2)
    assert line.signal_at is not None
    assert line.signal_at - 5000 < 50
    assert line.alarm_at - line.signal_at > 20


def test_a_wealth_beyond_every_float_stays_a_number() -> None:
    assert log_wealth(np.full(5000, 0.0))[-1] > math.log(1.7976931348623157e308)
    assert log_wealth(np.tile([0.0, 1.0], 60_000))[-1] < math.log(5e-324)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-3, 3), max_size=8),
    st.lists(st.integers(-3, 3), max_size=30),
    st.integers(0, 30),
    st.integers(0, 2**31),
)
def test_a_station_that_restarts_has_the_same_future(
    reference: list[int], scores: list[int], cut: int, seed: int
) -> None:
    whole = Martingale(reference, seed=seed)
    expected = [whole.add(score) for score in scores]
    first = Martingale(reference, seed=seed)
    for score in scores[:cut]:
        first.add(score)
    second = Martingale.from_dict(json.loads(json.dumps(first.to_dict())))
    assert [second.add(score) for score in scores[cut:]] == expected[cut:]
    assert second.to_dict() == whole.to_dict()


def test_a_restart_at_the_edge_of_a_block_of_random_numbers_has_the_same_future() -> None:
    scores = np.random.default_rng(7).normal(size=1100)
    whole = Martingale([], seed=3)
    expected = [whole.add(score) for score in scores]
    for cut in (1023, 1024, 1025):
        line = Martingale([], seed=3)
        for score in scores[:cut]:
            line.add(score)
        line = Martingale.from_dict(line.to_dict())
        assert [line.add(score) for score in scores[cut:]] == expected[cut:]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1000, 1000), max_size=10), st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_monotone_transforms_and_the_order_of_the_reference_change_nothing(
    reference: list[int], scores: list[int]
) -> None:
    plain = online_p_values(reference, scores, seed=1)
    cubes = [[value**3 / 8 for value in values] for values in (reference, scores)]
    np.testing.assert_array_equal(online_p_values(*cubes, seed=1), plain)
    np.testing.assert_array_equal(online_p_values(reference[::-1], scores, seed=1), plain)


def test_what_is_no_score_is_refused_and_changes_nothing() -> None:
    line = Martingale([1.0, 2.0])
    line.add(1.5)
    before = line.to_dict()
    for score in (math.nan, math.inf, -math.inf):
        with pytest.raises(CalibrationError, match="not a finite number"):
            line.add(score)
        with pytest.raises(CalibrationError, match="score of the reference"):
            Martingale([score])
    assert line.to_dict() == before
    for wrong in ({"alpha": 0.0}, {"alpha": 1.0}, {"jump": 1.5}, {"seed": -1}, {"every": 1}):
        with pytest.raises(CalibrationError, match="give a"):
            Martingale([], **wrong)
    with pytest.raises(CalibrationError, match="from 0 to 1"):
        log_wealth([0.5, math.nan])


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": None},
        {"shares": [1.0, 1.0, 1.0]},
        {"alarm_at": 3},
        {"scores": [math.nan]},
        {"log_wealth": 9.0},
        {"more": 1},
        {"scores": 7},
    ],
)
def test_a_state_that_was_damaged_is_refused(change: dict) -> None:
    line = Martingale([1.0], seed=1)
    line.add(2.0)
    with pytest.raises(CalibrationError):
        Martingale.from_dict(line.to_dict() | change)
    state = line.to_dict()
    del state["seed"]
    with pytest.raises(CalibrationError, match="missing or unknown seed"):
        Martingale.from_dict(state)


def _played(alarm: bool) -> dict:
    line = Martingale([1.0, 2.0, 3.0], alpha=0.01, every=1000)
    for number in range(50):
        line.add(float(number) if alarm else float(number % 4))
    assert line.alarm == alarm == (line.signal_at is not None)
    return json.loads(json.dumps(line.to_dict()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"log_wealth": 0.0, "log_peak": 0.0, "log_recent": 0.0, "alarm_at": None, "signal_at": None}, "log_wealth"),
        ({"log_wealth": 0.0}, "log_wealth"),
        ({"signal_at": None}, "signal_at"),
        ({"signal_at": "never"}, "signal_at"),
        ({"alarm_at": None}, "alarm_at"),
        ({"alarm_at": 10**9}, "alarm_at"),
        ({"log_recent": 1e6}, "log_recent"),
        ({"scores": [0.0, 1.0, 2.0]}, "scores|shares"),
        ({"reference": [1.0, 2.0]}, "shares"),
        ({"seed": 1.5}, "seed"),
        ({"seed": False}, "seed"),
        ({"seed": 3}, "shares"),
        ({"scores": "0123"}, "begin a new one"),
        ({"scores": [10**400]}, "begin a new one"),
        ({"reference": None}, "begin a new one"),
        ({"every": "many"}, "begin a new one"),
        ({"shares": [0.2, 0.3, 0.5]}, "shares"),
        ({"shares": None}, "shares"),
    ],
)
def test_a_state_that_its_own_scores_do_not_give_is_refused(change: dict, named: str) -> None:
    state = _played(alarm=True)
    assert Martingale.from_dict(state).to_dict() == state
    with pytest.raises(CalibrationError, match=named):
        Martingale.from_dict(state | change)


def test_an_alarm_that_was_never_given_is_refused_too() -> None:
    state = _played(alarm=False)
    for change in ({"alarm_at": 7}, {"signal_at": 7}, {"scores": state["scores"][::-1]}, {"log_peak": 9.0}):
        with pytest.raises(CalibrationError, match="its scores do not give this"):
            Martingale.from_dict(state | change)
    for wrong in (None, [1], "x", {1: 2}):
        with pytest.raises(CalibrationError, match="begin a new one"):
            Martingale.from_dict(wrong)  # type: ignore[arg-type]


# ---- the reference that a calibration gives


def _parts(scores: list[float], **how: object) -> Calibration:
    return Calibration.from_good([str(i) for i in range(len(scores))], scores, scores, **how)  # type: ignore[arg-type]


def test_the_reference_is_the_good_parts_below_the_one_that_set_the_threshold() -> None:
    scores = np.random.default_rng(0).gamma(2, size=99).tolist()
    made = _parts(scores, false_alarm=0.05)
    assert made.rank == 5
    line = Martingale.of(made, alpha=0.05, every=500, seed=4)
    assert line.reference == sorted(scores)[:94]
    assert (line.alpha, line.every, line.seed) == (0.05, 500, 4)
    good = by_part([str(i) for i in range(99)], scores, scores)
    by_hand = manual(good, sorted(scores)[90])
    assert Martingale.of(by_hand).reference == sorted(scores)[:91]


def test_parts_that_go_to_review_are_not_ok_and_not_in_the_reference() -> None:
    random = np.random.default_rng(1)
    good, bad = random.normal(0, 1, 200).tolist(), random.normal(2, 1, 50).tolist()
    names = [str(i) for i in range(200)]
    made = cost(by_part(names, good, good), by_part(names[:50], bad, bad), Costs(20, 5, 0.1, 0.5))
    assert made.review_threshold is not None
    assert made.review_threshold < made.threshold
    reference = Martingale.of(made).reference
    assert reference == sorted(s for s in good if s <= made.review_threshold)
    assert 0 < len(reference) < sum(s <= made.threshold for s in good)


def test_without_exchangeable_scores_the_reference_is_empty() -> None:
    scores = [1.0, 2.0, 3.0, 4.0]
    assert Martingale.of(_parts(scores)).reference == [1.0, 2.0, 3.0]
    assert Martingale.of(_parts(scores, cross_fitted=True)).reference == []
    assert Martingale.of(_parts(scores, unit="picture")).reference == []


def _nearest(memory: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - memory[None]) ** 2).sum(axis=-1)).min(axis=1)


def test_the_bound_breaks_on_scores_of_cross_fitting_and_holds_with_the_reference_that_is_chosen() -> None:
    """A memory of 20 parts, nearest distance; 5 folds calibrate, the memory of all judges a line that never changes."""
    random, filled, ours, lines, alpha = np.random.default_rng(0), 0, 0, 600, 0.05
    for seed in range(lines):
        parts, line = random.normal(size=(20, 2)), random.normal(size=(300, 2))
        scores, fold = np.empty(20), np.arange(20) % 5
        for k in range(5):
            scores[fold == k] = _nearest(parts[fold != k], parts[fold == k])
        made = _parts(scores.tolist(), cross_fitted=True)
        passed = [score for score in _nearest(parts, line).tolist() if score <= made.threshold]
        for reference in (False, True):
            rule = {"alpha": alpha, "seed": seed}
            watch = Martingale(made.scores[:-1], **rule) if reference else Martingale.of(made, **rule)
            alarm = any(watch.add(score).alarm for score in passed)
            filled, ours = filled + (alarm and reference), ours + (alarm and not reference)
    assert binom.sf(filled - 1, lines, alpha) < 1e-10
    assert binom.sf(ours - 1, lines, alpha) > 0.01
    assert ours > 0


def test_the_bound_holds_for_ok_parts_of_a_small_calibration_that_set_its_own_threshold() -> None:
    random, alarms, lines, alpha = np.random.default_rng(6), 0, 600, 0.05
    for seed in range(lines):
        made = _parts(random.gamma(2, size=10).tolist())
        watch = Martingale.of(made, alpha=alpha, seed=seed)
        line = random.gamma(2, size=400)
        alarms += any(watch.add(score).alarm for score in line[line <= made.threshold].tolist())
    assert binom.sf(alarms - 1, lines, alpha) > 0.01
    assert alarms > 0


@pytest.mark.parametrize(("quiet", "least", "most"), [(5, 0.05, 0.5), (20, 0.9, 1.0)])
def test_an_empty_reference_sees_a_change_once_enough_parts_have_come(quiet: int, least: float, most: float) -> None:
    """By 2 standard deviations, alpha 1 %: the table in docs/drift.md."""
    random, found = np.random.default_rng(quiet), 0
    for seed in range(60):
        line = Martingale([], alpha=0.01, seed=seed)
        for score in (*random.normal(size=quiet), *random.normal(2, size=400)):
            line.add(score)
        found += (line.alarm_at or 0) > quiet
    assert least <= found / 60 <= most


# ---- the charts


def test_ewma_is_the_recursion_with_the_limits_of_the_textbook() -> None:
    """Montgomery's example: weight 0.1, width 2.7; the first values and limits, the last limits, and the signals."""
    chart = ewma(TABLE, KNOWN, weight=0.1, width=2.7)
    z, expected = 10.0, []
    for value in TABLE:
        z = 0.1 * value + 0.9 * z
        expected.append(z)
    np.testing.assert_allclose(chart.values, expected, atol=1e-12)
    np.testing.assert_allclose(chart.values[:3], [9.945, 9.7495, 9.70355], atol=1e-9)
    np.testing.assert_allclose((chart.low[0], chart.high[0]), (9.73, 10.27), atol=1e-9)
    np.testing.assert_allclose((chart.low[1], chart.high[1]), (9.64, 10.36), atol=0.005)
    np.testing.assert_allclose((chart.low[-1], chart.high[-1]), (9.38, 10.62), atol=0.005)
    assert np.flatnonzero(chart.signals).tolist() == [28, 29]
    variances = [0.01 * sum(0.9 ** (2 * k) for k in range(i + 1)) for i in range(len(TABLE))]
    np.testing.assert_allclose(chart.high, 10 + 2.7 * np.sqrt(variances), atol=1e-12)


def test_ewma_with_weight_one_is_the_shewhart_chart() -> None:
    chart = ewma(TABLE, limits(TABLE, width=1.5), weight=1, width=1.5)
    np.testing.assert_array_equal(chart.signals, shewhart(TABLE, limits(TABLE, width=1.5)))
    np.testing.assert_allclose(chart.values, TABLE, atol=1e-12)
    assert 0 < chart.signals.sum() < len(TABLE)


def test_limits_are_the_moving_range_or_the_median_deviation() -> None:
    classical, robust = limits(TABLE), limits(TABLE, robust=True)
    ranges = [abs(a - b) for a, b in pairwise(TABLE)]
    assert classical.centre == pytest.approx(sum(TABLE) / 30)
    assert classical.sigma == pytest.approx(sum(ranges) / 29 / 1.128, rel=1e-3)
    assert classical.high == pytest.approx(sum(TABLE) / 30 + 2.66 * sum(ranges) / 29, rel=1e-3)  # 3 / 1.128
    deviations = sorted(abs(v - np.median(TABLE)) for v in TABLE)
    assert robust.sigma == pytest.approx((deviations[14] + deviations[15]) / 2 / norm.ppf(0.75))
    wild = limits([*TABLE[:29], 1e6], robust=True)
    assert abs(wild.sigma - robust.sigma) < 0.2
    assert limits([*TABLE[:29], 1e6]).sigma > 1e4


def test_both_kinds_of_limits_find_the_spread_of_a_normal_reference() -> None:
    values = np.random.default_rng(8).normal(5, 2, 20_000)
    for robust in (False, True):
        found = limits(values, robust=robust)
        assert found.centre == pytest.approx(5, abs=0.07)
        assert found.sigma == pytest.approx(2, rel=0.03)


def _run_lengths(draw: int, lines: int, flags) -> np.ndarray:
    random, lengths = np.random.default_rng(draw), []
    for _ in range(lines):
        signals = np.flatnonzero(flags(random.normal(size=6000)))
        lengths.append(signals[0] + 1 if len(signals) else 6000)
    return np.array(lengths)


def test_a_shewhart_chart_in_control_signals_every_370_values() -> None:
    standard = Limits(0.0, 1.0, -3.0, 3.0, 1000)
    assert 1 / (2 * norm.sf(3)) == pytest.approx(370.4, abs=0.05)
    lengths = _run_lengths(9, 1500, lambda x: shewhart(x, standard))
    assert lengths.mean() == pytest.approx(370.4, abs=3 * lengths.std() / math.sqrt(1500))


def _markov_run_length(weight: float, width: float, cells: int = 401) -> float:
    """ARL of an EWMA with its final limits, by the Markov chain of Brook and Evans (Lucas and Saccucci 1990)."""
    reach = width * math.sqrt(weight / (2 - weight))
    edges = np.linspace(-reach, reach, cells + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    at = (edges[None, :] - (1 - weight) * middle[:, None]) / weight
    stay = np.diff(norm.cdf(at), axis=1)
    return float(np.linalg.solve(np.eye(cells) - stay, np.ones(cells))[cells // 2])


def test_an_ewma_chart_in_control_signals_about_as_often_and_finds_a_small_shift_sooner() -> None:
    """Lucas and Saccucci 1990: about 370 with weight 0.2 and width 2.86; limits of the first values make it less."""
    final = _markov_run_length(0.2, 2.86)
    assert final == pytest.approx(370, rel=0.02)
    standard = Limits(0.0, 1.0, -3.0, 3.0, 1000)
    lengths = _run_lengths(10, 1500, lambda x: ewma(x, standard).signals)
    error = lengths.std() / math.sqrt(1500)
    assert final * 0.93 - 3 * error < lengths.mean() < final + 3 * error
    shifted = _run_lengths(11, 300, lambda x: ewma(x + 1, standard).signals)
    single = _run_lengths(11, 300, lambda x: shewhart(x + 1, standard))
    assert shifted.mean() < 12
    assert 35 < single.mean() < 55  # 43.9 by 1 / (P(z > 2) + P(z < -4))


@given(st.integers(1, 400), st.floats(0.001, 0.999), st.sampled_from([0.00135, 0.025, 0.2]))
def test_the_limits_of_rejects_are_the_tails_of_the_binomial_counted_out(parts: int, rate: float, tail: float) -> None:
    least, most = reject_limits(rate, parts, tail)
    chances = binom.pmf(np.arange(parts + 1), parts, rate)
    assert chances[:least].sum() <= tail * (1 + 1e-9)
    assert chances[: least + 1].sum() > tail * (1 - 1e-9)
    assert chances[most + 1 :].sum() <= tail * (1 + 1e-9)
    assert chances[most:].sum() > tail * (1 - 1e-9)


def test_a_p_chart_flags_shifts_with_too_many_or_too_few_rejects() -> None:
    least, most = reject_limits(0.05, 400)
    assert (least, most) == (8, 34)
    flags = p_chart([20, most, most + 1, least, least - 1, 1], [400] * 5 + [20], 0.05)
    assert flags.tolist() == [False, False, True, False, True, False]
    assert reject_limits(0.01, 50)[0] == 0  # none of 50 is no signal at 1 %


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf], [[1.0, 2.0]]])
def test_a_reference_that_gives_no_limits_is_refused(values: list) -> None:
    for robust in (False, True):
        with pytest.raises(CalibrationError):
            limits(values, robust=robust)


def test_charts_refuse_what_they_cannot_draw() -> None:
    for chart in (shewhart, ewma):
        with pytest.raises(CalibrationError, match="1 of 2 values are NaN or infinite"):
            chart([1.0, math.nan], KNOWN)
    assert shewhart([], KNOWN).shape == ewma([], KNOWN).values.shape == (0,)
    for wrong in ({"weight": 0.0}, {"weight": 1.1}, {"width": 0.0}):
        with pytest.raises(CalibrationError, match="weight"):
            ewma(TABLE, KNOWN, **wrong)
    with pytest.raises(CalibrationError, match="3 rejects of 2 parts"):
        p_chart([3], [2], 0.1)
    with pytest.raises(CalibrationError, match="one of each a batch"):
        p_chart([1, 2], [5], 0.1)
    for rate, parts in ((0.0, 5), (1.0, 5), (math.nan, 5), (0.1, 0)):
        with pytest.raises(CalibrationError):
            reject_limits(rate, parts)
    with pytest.raises(CalibrationError, match="half of the values"):
        limits([1.0, 1.0, 1.0, 2.0], robust=True)
