from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from flawmap.errors import DataError
from flawmap.verdict.bootstrap import _weighted_auroc, bootstrap, paired


def pictures(seed, parts=20, views=3, decimals=1):
    """Scores, labels and part names; a part shifts all its views, and half of the parts are defective in some."""
    rng = np.random.default_rng(seed)
    part = np.repeat(np.arange(parts), views)
    label = (part < parts // 2) & (rng.random(len(part)) < 0.7) | (part < parts // 2) & (np.arange(len(part)) % 3 == 0)
    scores = np.round(rng.normal(size=parts)[part] + 0.5 * rng.normal(size=len(part)) + label, decimals)
    return scores, label, part.astype(str)


@pytest.mark.parametrize("seed", range(3))
def test_a_weighted_auroc_is_that_of_scikit_learn(seed):
    scores, labels, _ = pictures(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(scores))).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    assert _weighted_auroc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_a_plain_loop_that_draws_parts():
    scores, labels, parts = pictures(1)
    rng = np.random.default_rng(9)
    bad = sorted({p for p, d in zip(parts, labels, strict=True) if d})
    good = sorted(set(parts) - set(bad))
    found = []
    for _ in range(1000):
        drawn = [*rng.choice(bad, len(bad)), *rng.choice(good, len(good))]
        index = np.concatenate([np.flatnonzero(parts == p) for p in drawn])
        above = scores[index][labels[index], None] - scores[index][~labels[index]]
        found.append(np.mean((above > 0) + (above == 0) / 2))
    # Two sets of 1,000 and 4,000 draws: each end is known to about 0.006.
    assert bootstrap(scores, labels, parts, draws=4000) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.02)


def test_more_views_that_say_the_same_do_not_narrow_the_interval():
    scores, labels, parts = pictures(2, views=1)
    once = bootstrap(scores, labels, parts)
    assert once is not None
    assert bootstrap(np.tile(scores, 4), np.tile(labels, 4), np.tile(parts, 4)) == pytest.approx(once, abs=1e-12)
    by_picture = bootstrap(np.tile(scores, 4), np.tile(labels, 4), np.arange(4 * len(scores)).astype(str))
    assert by_picture is not None
    assert by_picture[1] - by_picture[0] < 0.6 * (once[1] - once[0])


def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, labels, parts = norm.cdf(1 / np.sqrt(2)), np.repeat([True, False], 40), [str(i) for i in range(80)]
    hits = 0
    for _ in range(200):
        interval = bootstrap(rng.normal(size=80) + labels, labels, parts, draws=300)
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    # 95 % less what the percentile bootstrap lacks at 40 parts (about 2 %), within 3 standard errors of 200 repeats.
    assert 0.88 <= hits / 200 <= 0.985


def _auroc(scores, labels):
    above = scores[labels, None] - scores[~labels]
    return np.mean((above > 0) + (above == 0) / 2)


def test_the_interval_of_a_difference_is_that_of_a_plain_loop_that_draws_parts_once_for_both():
    before, labels, parts = pictures(1)
    after = np.round(before + np.random.default_rng(5).normal(0.1, 0.6, len(before)), 1)
    rng = np.random.default_rng(9)
    bad = sorted({p for p, d in zip(parts, labels, strict=True) if d})
    good = sorted(set(parts) - set(bad))
    found = []
    for _ in range(1000):
        drawn = [*rng.choice(bad, len(bad)), *rng.choice(good, len(good))]
        index = np.concatenate([np.flatnonzero(parts == p) for p in drawn])
        found.append(_auroc(after[index], labels[index]) - _auroc(before[index], labels[index]))
    # As above: two sets of 1,000 and 4,000 draws of differences whose deviation is below 0.1.
    expected = np.quantile(found, [0.025, 0.975])
    assert paired(before, after, labels, parts, draws=4000) == pytest.approx(expected, abs=0.02)
    assert expected[0] < _auroc(after, labels) - _auroc(before, labels) < expected[1]


def test_the_same_ranking_differs_by_nothing_and_two_that_are_exchanged_by_the_opposite():
    scores, labels, parts = pictures(4)
    other = np.round(scores + np.random.default_rng(6).normal(size=len(scores)), 1)
    assert paired(scores, np.exp(scores), labels, parts) == (0, 0)
    there, back = paired(scores, other, labels, parts), paired(other, scores, labels, parts)
    assert there is not None
    assert back is not None
    assert there == pytest.approx((-back[1], -back[0]), abs=1e-12)


def test_pairing_narrows_the_interval_of_two_rankings_that_find_the_same_parts_hard():
    scores, labels, parts = pictures(3, parts=40)
    other = scores + np.random.default_rng(7).normal(0, 0.1, len(scores))
    both, alone = paired(scores, other, labels, parts), bootstrap(scores, labels, parts)
    assert both is not None
    assert alone is not None
    assert both[1] - both[0] < 0.4 * (alone[1] - alone[0])


def test_an_interval_of_a_difference_covers_the_true_one_about_as_often_as_it_says():
    """Scores x + 1.2 d and x + e + 0.8 d of good (d = 0) and defective (d = 1) parts, x and e normal."""
    rng, labels, parts = np.random.default_rng(1), np.repeat([True, False], 40), [str(i) for i in range(80)]
    truth, hits = norm.cdf(0.8 / 2) - norm.cdf(1.2 / np.sqrt(2)), 0
    for _ in range(200):
        shared = rng.normal(size=80)
        after = shared + rng.normal(size=80) + 0.8 * labels
        interval = paired(shared + 1.2 * labels, after, labels, parts, draws=300)
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert 0.88 <= hits / 200 <= 0.985


def test_the_seed_decides_the_interval_and_a_lower_level_narrows_it():
    scores, labels, parts = pictures(3)
    wide, narrow = bootstrap(scores, labels, parts), bootstrap(scores, labels, parts, level=0.5)
    assert wide is not None
    assert narrow is not None
    assert wide == bootstrap(scores, labels, parts)
    assert wide != bootstrap(scores, labels, parts, seed=1)
    assert wide[0] < narrow[0] < roc_auc_score(labels, scores) < narrow[1] < wide[1]


def test_fewer_than_two_parts_of_a_class_give_no_interval():
    assert bootstrap([1, 2, 3, 4], [True, True, False, False], ["a", "a", "b", "c"]) is None
    assert bootstrap([1, 2, 3, 4], [True, True, False, False], ["a", "b", "c", "c"]) is None
    assert bootstrap([1, 2], [False, False], ["a", "b"]) is None
    assert bootstrap([], [], []) is None
    assert paired([1, 2, 3, 4], [1, 2, 3, 4], [True, True, False, False], ["a", "a", "b", "c"]) is None


def test_wrong_input_is_refused():
    with pytest.raises(DataError, match="2 scores, 2 labels and 1 part names"):
        bootstrap([1, 2], [True, False], ["a"])
    with pytest.raises(DataError, match="1 of 2 scores are NaN or infinite"):
        bootstrap([1, np.nan], [True, False], ["a", "b"])
    with pytest.raises(DataError, match="1 of 2 scores are NaN or infinite"):
        paired([1, 2], [1, np.inf], [True, False], ["a", "b"])
    with pytest.raises(DataError, match="3 scores, 2 labels and 2 part names"):
        paired([1, 2], [1, 2, 3], [True, False], ["a", "b"])
