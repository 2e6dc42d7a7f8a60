from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.regression import SplitConformalRegressor
from mapie.risk_control import BinaryClassificationController
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import CalibrationError
from flawmap.verdict.rates import FEW, anywhere, at_least, clopper_pearson, least_parts, percent, rank, upper


@pytest.mark.parametrize(
    ("n", "bound"), [(10, 0.259), (13, 0.206), (20, 0.139), (30, 0.095), (59, 0.050), (149, 0.020), (299, 0.010)]
)
def test_none_of_n_bounds_the_rate_as_the_closed_form_does(n, bound):
    assert upper(0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-12)
    assert round(upper(0, n), 3) == bound


@settings(deadline=None)
@given(st.integers(1, 3000), st.data(), st.floats(0.5, 0.999))
def test_the_upper_limit_is_that_of_statsmodels(n, data, confidence):
    hits = data.draw(st.integers(0, n))
    theirs = proportion_confint(hits, n, alpha=2 * (1 - confidence), method="beta")[1] if hits < n else 1.0
    assert upper(hits, n, confidence) == pytest.approx(theirs, rel=1e-9)
    low, high = clopper_pearson(hits, n, confidence)
    assert 0 <= low <= hits / n <= high <= 1
    assert anywhere(hits, n, confidence) >= upper(hits, n, confidence)


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_the_rank_with_confidence_is_the_largest_whose_beta_quantile_keeps_the_target(n, target, confidence):
    ranks = np.arange(1, n + 1)
    kept = stats.beta.ppf(confidence, ranks, n + 1 - ranks) <= target
    if not kept.any():
        with pytest.raises(CalibrationError, match="cannot promise"):
            rank(target, n, confidence)
        assert least_parts(target, confidence) > n
        return
    k = rank(target, n, confidence)
    assert k == ranks[kept].max() or stats.beta.ppf(confidence, k, n + 1 - k) == pytest.approx(target, rel=1e-7)
    if confidence >= 0.7:  # above the quantile of the mean: a confidence then costs false alarms
        assert k <= rank(max(target, 1 / (n + 1)), n)
    assert least_parts(target, confidence) <= n


def test_the_published_ranks():  # of field notes on tolerance limits: 1 % with 95 % confidence
    assert [rank(0.01, n, 0.95) for n in (299, 500, 2000)] == [1, 2, 13]
    assert [least_parts(t, 0.95) for t in (0.05, 0.01, 0.001)] == [59, 299, 2995]


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_a_larger_target_never_has_a_smaller_rank(n, one, other):
    low, high = sorted((max(one, 1 / (n + 1)), max(other, 1 / (n + 1))))
    assert rank(low, n) <= rank(high, n)


def test_what_cannot_be_promised_with_confidence_is_refused_with_what_can():
    with pytest.raises(CalibrationError) as refused:
        rank(0.01, 90, 0.95)
    assert str(refused.value) == (
        "90 good parts cannot promise 1.0 %: the least is 3.3 % with 95 % confidence; 1.0 % takes 299 parts"
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan"), 5.0])
def test_what_is_no_rate_is_refused(value):
    for call in (lambda: rank(value, 50), lambda: rank(0.1, 50, value), lambda: least_parts(0.1, value)):
        with pytest.raises(CalibrationError, match="not a rate between 0 and 1"):
            call()
    with pytest.raises(CalibrationError, match="no proportion"):
        upper(3, 2)


def test_limits_are_rounded_away_from_what_they_promise():
    assert (percent(0.0421), at_least(0.0429), at_least(0.00999), percent(1 / 3)) == (
        "4.3 %",
        "4.2 %",
        "0.99 %",
        "33.4 %",
    )


# Beside MAPIE


class Nothing(RegressorMixin, BaseEstimator):
    """Foretells 0, so that what is left of a score is the score."""

    fitted_ = True

    def fit(self, X: np.ndarray, y: np.ndarray) -> Nothing:
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X))


@pytest.mark.parametrize(("n", "target"), [(101, 0.01), (99, 0.07), (150, 0.02), (37, 0.1)])
def test_the_order_statistic_is_the_conformal_quantile_of_mapie(n, target):
    scores = np.random.default_rng(n).exponential(size=n)
    theirs = SplitConformalRegressor(Nothing(), confidence_level=1 - target, prefit=True)
    theirs.conformalize(np.zeros((n, 1)), scores)
    _, interval = theirs.predict_interval(np.zeros((1, 1)))
    assert np.sort(scores)[-rank(target, n)] == pytest.approx(interval[0, 1, 0], rel=1e-12)


@pytest.mark.parametrize(("n", "target"), [(120, 0.05), (400, 0.05), (400, 0.02)])
def test_mapies_risk_control_of_false_alarms_never_goes_below_the_tolerance_rank(n, target):
    """Its bound (Hoeffding-Bentkus) is valid and wider than the exact one: its threshold is ours or a higher one."""
    scores = np.sort(np.random.default_rng(n).uniform(0, 0.9, n))
    ours = scores[-rank(target, n, 0.95)]

    def accepts(threshold: float) -> bool:
        control = BinaryClassificationController(
            lambda X: np.column_stack([1 - X[:, 0], X[:, 0]]),
            risk="fpr",
            target_level=target,
            confidence_level=0.95,
            best_predict_param_choice="recall",
            list_predict_params=np.array([threshold]),
        )
        # One defective part far above, because a risk and its choice need both classes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no threshold is valid is what is asked here
            control.calibrate(np.append(scores, 1.0)[:, None], np.append(np.zeros(n, int), 1))
        return len(control.valid_predict_params) > 0

    valid = [score for score in scores if accepts(float(np.nextafter(score, 1)))]
    assert valid
    assert min(valid) >= ours
    assert np.sum((scores > ours) & (scores < min(valid))) <= 5


@pytest.mark.parametrize("hits", [0, 1, FEW - 1, FEW, FEW + 1])
@pytest.mark.parametrize("n", [FEW + 2, 1000, 100_000])
def test_the_limit_of_few_hits_of_many_is_the_beta_quantile_to_the_last_digits(hits, n):
    for confidence in (0.05, 0.5, 0.95, 0.9999):
        exact = stats.beta.ppf(confidence, hits + 1, n - hits)
        assert upper(hits, n, confidence) == pytest.approx(exact, rel=1e-11)
