from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import DataError
from flawmap.types import Verdict
from flawmap.verdict.metrics import auroc, average_precision, f1_max, fpr_at_no_escape, roc, summary


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=40))
def test_auroc_and_average_precision_agree_with_scikit_learn_with_ties(pairs):
    scores, labels = [s / 4 for s, _ in pairs], [d for _, d in pairs]
    if all(labels) or not any(labels):
        assert auroc(scores, labels) is None
        assert average_precision(scores, labels) is None
        assert f1_max(scores, labels) == (None, None)
        return
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    best, threshold = f1_max(scores, labels)
    assert best == pytest.approx(max(f1_score(labels, np.array(scores) >= s) for s in scores), abs=1e-12)
    assert best == pytest.approx(f1_score(labels, np.array(scores) > threshold), abs=1e-12)


def test_equal_scores_rank_at_chance():
    assert auroc([1.0] * 10, [True] * 4 + [False] * 6) == 0.5
    assert average_precision([1.0] * 10, [True] * 4 + [False] * 6) == pytest.approx(0.4)


def test_neighbouring_double_scores_are_told_apart():
    assert auroc([1.0, np.nextafter(1.0, 2.0)], [False, True]) == 1.0


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max])
def test_a_score_that_is_not_finite_is_refused(metric):
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match="1 of 3 scores are NaN or infinite"):
            metric([0.0, bad, 1.0], [False, True, True])
    with pytest.raises(DataError, match="one of each a picture"):
        metric([0.0, 1.0], [True])


def test_a_summary_counts_false_alarms_and_escapes_by_kind():
    scores = [0.1, 0.2, 0.6, 0.3, 0.9, 0.15, 0.8]
    kinds = ["good", "good", "good", "good", "hole", "scratch", "scratch"]
    verdicts = [Verdict.NOK if s > 0.5 else Verdict.OK for s in scores]
    found = summary(scores, kinds, verdicts)
    assert (found["good"], found["defective"]) == (4, 3)
    assert found["i_auroc"] == pytest.approx(roc_auc_score([0, 0, 0, 0, 1, 1, 1], scores))
    assert found["i_ap"] == pytest.approx(average_precision_score([0, 0, 0, 0, 1, 1, 1], scores))
    assert found["f1_max_oracle"] == pytest.approx(0.8)
    assert 0.6 <= found["f1_max_oracle_threshold"] < 0.8
    assert found["kinds"] == {
        "hole": {"n": 1, "auroc": 1.0, "escapes": 0},
        "scratch": {"n": 2, "auroc": pytest.approx(5 / 8), "escapes": 1},
    }
    for name, hits, n in (("false_alarms", 1, 4), ("escapes", 1, 3)):
        low, high = proportion_confint(hits, n, method="beta")
        assert found[name] == {
            "count": hits, "n": n, "rate": hits / n, "low": pytest.approx(low), "high": pytest.approx(high)
        }  # fmt: skip


def test_a_summary_of_good_pictures_only_leaves_the_rest_undefined():
    found = summary([0.1, 0.2], ["good", "good"], [Verdict.OK, Verdict.OK])
    assert found["i_auroc"] is None
    assert found["kinds"] == {}
    assert found["escapes"] == {"count": 0, "n": 0, "rate": None, "low": 0.0, "high": 1.0}
    assert found["false_alarms"]["count"] == 0
    assert summary([0.1], ["good"])["false_alarms"] is None


def test_a_summary_refuses_unknown_kinds_nan_and_missing_verdicts():
    with pytest.raises(DataError, match="1 pictures of unknown kind"):
        summary([0.1, 0.2], ["good", None])
    with pytest.raises(DataError, match="NaN"):
        summary([0.1, np.nan], ["good", "hole"])
    with pytest.raises(DataError, match="1 verdicts for 2 pictures"):
        summary([0.1, 0.2], ["good", "hole"], [Verdict.OK])
    with pytest.raises(DataError, match="one of each a picture"):
        summary([0.1], ["good", "hole"])


@pytest.mark.parametrize("seed", range(4))
def test_roc_and_the_price_of_no_escape_are_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    labels = random.random(60) < 0.4
    scores = np.round(random.normal(size=60) + labels, 1)  # with ties
    found = roc(scores, labels)
    assert found is not None
    for ours, theirs in zip(found, metrics.roc_curve(labels, scores, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs)
    price = fpr_at_no_escape(scores, labels)
    assert price is not None
    alarms, hits, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    first = int(np.argmax(hits == 1))
    assert (price["rate"], price["threshold"]) == (pytest.approx(alarms[first]), thresholds[first])
    assert price["low"] < price["rate"] < price["high"]
    assert price["n"] == int((~labels).sum())


def test_without_both_classes_there_is_no_curve_and_no_price() -> None:
    assert roc([1.0, 2.0], [False, False]) is None
    assert fpr_at_no_escape([1.0, 2.0], [True, True]) is None
