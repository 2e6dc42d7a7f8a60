from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import BundleError, CalibrationError
from flawmap.types import Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.rates import clopper_pearson, least_parts, percent


def calibrate(scores, views=1, **options) -> Calibration:
    """One part for every `views` scores in a row; map peaks are twice the scores."""
    parts = [f"part-{i // views}" for i in range(len(scores))]
    return Calibration.from_good(parts, scores, [2 * s for s in scores], **options)


# The rank and what it promises


@pytest.mark.parametrize("hundredth", range(1, 100))
def test_99_parts_give_every_whole_per_cent_its_own_rank(hundredth):
    assert calibrate(range(99), false_alarm=hundredth / 100).rank == hundredth


def test_the_default_target_is_1_per_cent_or_one_in_n_plus_1():
    assert [calibrate(range(n)).target for n in (1, 8, 99, 150)] == [1 / 2, 1 / 9, 0.01, 0.01]
    assert [calibrate(range(n)).rank for n in (1, 8, 99, 150, 199, 1000)] == [1, 1, 1, 1, 2, 10]


def test_every_number_of_parts_can_keep_the_default_promise():
    for n in range(1, 1200):
        made = calibrate([0.0] * n)
        assert made.rank >= 1
        assert made.promise <= made.target * (1 + 1e-9)


def test_a_target_out_of_reach_is_refused_with_what_is_in_reach():
    with pytest.raises(CalibrationError) as refused:
        calibrate(range(8), false_alarm=0.01)
    assert str(refused.value) == (
        "8 good parts cannot promise 1.0 %: the least is 11.2 % on average; 1.0 % takes 99 parts"
    )


def test_the_least_parts_for_known_targets():
    assert [least_parts(t) for t in (0.5, 0.1, 0.05, 0.02, 0.01, 0.001, 0.03)] == [1, 9, 19, 49, 99, 999, 33]


@settings(deadline=None)
@given(st.floats(1e-6, 0.999))
def test_one_part_fewer_than_the_least_cannot_promise_the_target(target):
    n = least_parts(target)
    assert 1 / (n + 1) <= target * (1 + 2e-9)
    assert n <= 1 or 1 / n > target


@pytest.mark.parametrize(("n", "target"), [(50, 0.05), (90, 0.05), (99, 0.01), (200, 0.01), (1000, 0.05), (2, 0.9)])
def test_the_bound_is_the_beta_quantile_and_the_clopper_pearson_limit(n, target):
    made = calibrate(range(n), false_alarm=target)
    assert made.bound == pytest.approx(stats.beta.ppf(0.95, made.rank, n + 1 - made.rank), rel=1e-9)
    assert made.bound == pytest.approx(proportion_confint(made.rank - 1, n, alpha=0.10, method="beta")[1], rel=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 30), (3, 30), (29, 30), (30, 30), (17, 2000)])
def test_clopper_pearson_agrees_with_statsmodels(hits, n):
    assert clopper_pearson(hits, n) == pytest.approx(proportion_confint(hits, n, method="beta"), abs=1e-10)


def test_nothing_inspected_says_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.01, "1.0 %"), (0.0298, "3.0 %"), (1 / 9, "11.2 %"), (1 / 99, "1.1 %"), (0.001, "0.10 %"), (1 / 151, "0.67 %")],
)
def test_a_promised_rate_is_never_rounded_down(rate, words):
    assert percent(rate) == words
    assert float(words[:-2]) / 100 >= rate - 1e-9


def test_the_sentence_says_what_99_parts_promise():
    assert calibrate(range(99)).sentence == (
        "99 good parts promise at most 1.0 % false alarms on average over calibrations "
        "(95 % confidence: at most 3.0 %)."
    )


def test_the_sentence_names_views_and_cross_fitting():
    words = calibrate(range(60), views=3, cross_fitted=True).sentence
    assert words.startswith("20 good parts promise at most 4.8 % false alarms on average")
    assert "a part's score is the largest over its 3 views" in words
    assert "the scores come from cross-fitting, so the promise is approximate, checked by re-splitting" in words


# The threshold and the verdict


def test_the_threshold_stands_a_thousandth_above_the_kth_largest_part():
    made = calibrate([float(i) for i in range(1, 100)], false_alarm=0.03)
    assert made.scale == 97.0
    assert made.margin == pytest.approx(0.097)
    assert made.threshold == pytest.approx(97.097)
    assert made.map_threshold == pytest.approx(2 * 97.097)


def test_a_small_score_takes_its_scale_from_the_spread():
    made = calibrate([-100.0, -1.0, 0.0])
    assert made.scale == pytest.approx(np.std([-100, -1, 0]))
    assert made.threshold == pytest.approx(1e-3 * made.scale)


def test_the_part_that_set_the_threshold_stays_ok_under_the_engines_rounding():
    scores = np.random.default_rng(0).normal(5, 1, 99)
    made = calibrate(scores)
    assert made.verdict([scores.max() + 1e-4 * made.scale]) is Verdict.OK
    assert made.verdict([scores.max() + 2e-3 * made.scale]) is Verdict.NOK


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_equal_scores_are_all_ok_and_anything_clearly_above_is_not(value):
    made = calibrate([value] * 20)
    assert made.verdict([value]) is Verdict.OK
    assert made.verdict([value + 0.01]) is Verdict.NOK
    assert made.p_value(value) == 1.0


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60),
    st.floats(0.02, 0.98),
    st.data(),
)
def test_a_part_is_nok_if_and_only_if_its_p_value_is_within_the_promise(scores, target, data):
    target = max(target, 1 / (len(scores) + 1))
    made = calibrate(scores, false_alarm=target)
    edges = [made.threshold, np.nextafter(made.threshold, np.inf), *made.scores]
    score = float(data.draw(st.sampled_from(edges) | st.floats(-2e6, 2e6)))
    assert (made.verdict([score]) is Verdict.NOK) == (made.p_value(score) <= made.promise)


def test_a_p_value_counts_the_parts_at_least_as_strange():
    made = calibrate([1.0, 2.0, 3.0, 4.0])
    assert [made.p_value(s) for s in (0.0, 2.5, 4.0, 5.0)] == [1.0, 0.6, 0.4, 0.2]


def test_the_largest_view_makes_the_score_of_its_part():
    made = calibrate([1.0, 9.0, 2.0, 3.0, 4.0, 5.0], views=3)
    assert made.scores == (5.0, 9.0)
    assert (made.parts, made.images, made.views) == (2, 6, (3, 3))
    assert made.verdict([9.0, 0.0, 0.0]) is Verdict.OK
    assert made.verdict([0.0, 0.0, 9.1]) is Verdict.NOK


def test_another_number_of_views_is_refused():
    made = calibrate(range(60), views=3)
    for scores in ([], [1.0], [1.0] * 4):
        with pytest.raises(CalibrationError, match=f"judges parts of 3 views, this part has {len(scores)}"):
            made.verdict(scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_score_that_is_not_finite_never_passes(bad):
    made = calibrate(range(20))
    with pytest.raises(CalibrationError, match="not a finite number"):
        made.verdict([bad])
    with pytest.raises(CalibrationError, match="not a finite number"):
        made.p_value(bad)
    with pytest.raises(CalibrationError, match="the score of part 'b' is"):
        Calibration.from_good(["a", "b"], [1.0, bad], [1.0, 1.0])
    with pytest.raises(CalibrationError, match="the map peak of part 'b' is"):
        Calibration.from_good(["a", "b"], [1.0, 1.0], [1.0, bad])


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 5.0, np.nan])
def test_a_target_that_is_no_rate_is_refused(target):
    with pytest.raises(CalibrationError, match=r"write 1 % as 0\.01"):
        calibrate(range(20), false_alarm=target)


def test_no_parts_and_lists_of_unequal_length_are_refused():
    with pytest.raises(CalibrationError, match="no good parts"):
        calibrate([])
    with pytest.raises(CalibrationError, match="2 part names but 1 values"):
        Calibration.from_good(["a", "b"], [1.0], [1.0, 1.0])


# The file


def test_a_calibration_survives_json_exactly():
    scores = np.random.default_rng(1).normal(size=120).astype(np.float32)
    made = calibrate(
        scores, views=2, cross_fitted=True, data_sha256="ab", engine="onnxruntime 1.20", created="2025-01-01"
    )
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "f1-max"},
        {"threshold": 1e9},
        {"threshold": "high"},
        {"threshold": float("nan")},
        {"map_threshold": float("nan")},
        {"map_threshold": float("inf")},
        {"parts": 21},
        {"rank": 0},
        {"rank": True},
        {"margin": -1.0},
        {"views": [1]},
        {"views": [2, 1]},
        {"views": ["1", "1"]},
        {"scores": [1.0]},
        {"scores": [1.0, "2"]},
        {"scores": [float(s) for s in range(19, -1, -1)]},
        {"cross_fitted": 1},
        {"sentence": None},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_changed_file_is_refused(change):
    with pytest.raises(BundleError, match="calibrat"):
        Calibration.from_dict(calibrate(range(20)).to_dict() | change)


def test_a_file_without_one_of_its_entries_names_it():
    values = calibrate(range(20)).to_dict()
    del values["threshold"]
    with pytest.raises(BundleError, match="'threshold'"):
        Calibration.from_dict(values)


# The promise, by simulation: 2,000 calibrations each


@pytest.mark.parametrize(
    "law", [stats.norm(), stats.lognorm(1.0), stats.uniform()], ids=["normal", "lognormal", "uniform"]
)
@pytest.mark.parametrize(("n", "target"), [(19, 0.05), (99, 0.02)])
def test_the_promise_holds_on_average_and_with_confidence(law, n, target):
    draws = law.rvs((2000, n), random_state=np.random.default_rng(7))
    made = [calibrate(scores.tolist(), false_alarm=target) for scores in draws]
    rates = law.sf([c.threshold for c in made])
    assert rates.mean() == pytest.approx(made[0].promise, abs=0.004)
    assert np.mean(rates > made[0].bound) <= 0.05 + 0.015


def test_ties_only_lower_the_false_alarms():
    law = stats.poisson(3)
    draws = law.rvs((2000, 39), random_state=np.random.default_rng(8))
    rates = law.sf([calibrate(scores.tolist(), false_alarm=0.05).threshold for scores in draws])
    assert 0.01 < rates.mean() <= 0.05


def test_three_correlated_views_keep_the_promise_by_part_and_break_it_by_image():
    rng = np.random.default_rng(9)

    def photograph(*shape):
        return rng.normal(size=(*shape, 1)) + rng.normal(size=(*shape, 3))

    draws, fresh = photograph(2000, 19), photograph(100_000).max(axis=1)
    fresh.sort()

    def rate(thresholds):
        return 1 - np.searchsorted(fresh, thresholds, side="right").mean() / len(fresh)

    by_part = [calibrate(d.ravel().tolist(), views=3, false_alarm=0.05) for d in draws]
    by_image = [calibrate(d.ravel().tolist(), views=1, false_alarm=0.05) for d in draws]
    assert rate([c.threshold for c in by_part]) == pytest.approx(0.05, abs=0.004)
    assert rate([c.map_threshold / 2 for c in by_part]) == pytest.approx(0.05, abs=0.004)  # peaks are twice the scores
    assert rate([c.threshold for c in by_image]) > 0.08
