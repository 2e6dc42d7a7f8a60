"""The promises by simulation, where the truth is known: a short version of benchmarks/calibration.py.

Rates of a threshold are exact (the distribution's own), so that all chance is in the calibrations. Bands are four
Monte-Carlo errors wide.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from flawmap.verdict import policies, rates
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.parts import by_part

LAWS = {
    "normal": stats.norm(),
    "exponential": stats.expon(),
    "no variance": stats.pareto(1.5),
    "ties": stats.poisson(3),
}


def within(share: float, most: float, repeats: int) -> bool:
    """Not above `most` by more than four Monte-Carlo errors."""
    return share <= most + 4 * (most * (1 - most) / repeats) ** 0.5


def calibrate(scores, views=1, **options) -> Calibration:
    names = [f"part-{i // views}" for i in range(len(scores))]
    return Calibration.from_good(names, scores, scores, **options)


def photographs(rng, repeats, n, alike):
    """Three views of each part, standard normal, correlated by `alike`: (repeats, n, 3)."""
    own, common = rng.standard_normal((repeats, n, 3)), rng.standard_normal((repeats, n, 1))
    return alike**0.5 * common + (1 - alike) ** 0.5 * own


def refused(thresholds, alike):
    """P(one of three views is above each threshold), by integration over what they share."""
    common = np.linspace(-8, 8, 2001)
    weight = stats.norm.pdf(common) / stats.norm.pdf(common).sum()
    inside = stats.norm.cdf((thresholds[:, None] - alike**0.5 * common) / (1 - alike) ** 0.5) ** 3
    return 1 - inside @ weight


def parts(scores, kinds=()):
    return by_part([str(i) for i in range(len(scores))], list(scores), list(scores), kinds)


# false-alarm


@pytest.mark.parametrize(("n", "target"), [(20, 0.15), (99, 0.05)])
@pytest.mark.parametrize("name", LAWS)
def test_a_rate_with_confidence_is_exceeded_by_as_many_calibrations_as_beta_says(name, n, target):
    law, repeats = LAWS[name], 1500
    draws = law.rvs((repeats, n), random_state=np.random.default_rng(n))
    made = [calibrate(scores, false_alarm=target, confidence=0.95) for scores in draws.tolist()]
    over = float(np.mean(law.sf([c.threshold for c in made]) > target))
    allowed = stats.beta.sf(target, made[0].rank, n + 1 - made[0].rank)
    assert allowed <= 0.05
    assert within(over, allowed, repeats)
    if name in ("normal", "exponential"):  # no ties, and a margin that is nothing beside the spread
        assert over >= allowed - 4 * (allowed * (1 - allowed) / repeats) ** 0.5


@pytest.mark.parametrize("alike", [0.5, 0.9])
def test_three_views_by_part_keep_both_promises_and_pictures_break_them(alike):
    repeats, n = 800, 60
    draws = photographs(np.random.default_rng(3), repeats, n, alike)
    flat = draws.reshape(repeats, -1).tolist()

    def rate(**options):
        return refused(np.array([calibrate(s, 3, **options).threshold for s in flat]), alike)

    by_part_, sure = rate(false_alarm=0.05), rate(false_alarm=0.05, confidence=0.95)
    assert by_part_.mean() == pytest.approx(3 / 61, abs=4 * by_part_.std() / repeats**0.5)
    assert within(float(np.mean(sure > 0.05)), 0.05, repeats)
    by_picture = rate(false_alarm=0.05, unit="picture")
    assert by_picture.mean() > 1.4 * 0.05
    surely = rate(false_alarm=0.05, confidence=0.95, unit="picture")
    assert np.mean(surely > 0.05) > 0.25


# A memory, calibrated by leaving parts out


def distances(patches, memory):
    """Each part's strangest patch, by its nearest in the memory: (n, P, D) -> (n,)"""
    n, P, D = patches.shape
    return cdist(patches.reshape(-1, D), memory.reshape(-1, D)).min(axis=1).reshape(n, P).max(axis=1)


def test_leave_part_out_scores_of_a_full_memory_keep_the_promise_and_its_own_parts_do_not():
    rng, repeats, n = np.random.default_rng(4), 400, 20
    crossed, own = [], []
    for _ in range(repeats):
        world = rng.normal(size=(n + 100, 1, 4)) + rng.normal(size=(n + 100, 6, 4)) * rng.uniform(0.3, 1)
        good, new = world[:n], world[n:]
        left_out = np.empty(n)
        for fold in range(5):
            left_out[fold::5] = distances(good[fold::5], np.delete(good, np.s_[fold::5], axis=0))
        judged = distances(new, good)
        crossed.append(np.mean(judged > calibrate(left_out).threshold))
        own.append(np.mean(judged > calibrate(distances(good, good)).threshold))
    assert np.mean(crossed) <= 1 / 21 + 4 * np.std(crossed) / repeats**0.5
    assert np.mean(crossed) > 0.01
    assert np.mean(own) == 1.0


def test_leave_part_out_scores_of_patchcore_with_coreset_and_re_weighting_keep_the_promise():
    import torch

    from flawmap.detectors import create
    from flawmap.types import Batch

    options = {"size": 32, "stages": (2,), "neighbourhood": 1, "equalise": False, "keep": 0.1, "neighbours": 9}
    detector = create("patchcore", options, pretrained=False)
    torch.manual_seed(5)
    repeats, n, (channels, high, wide) = 150, 20, detector.backbone.shapes[0]
    mix = torch.randn(5, channels)

    def scores(fitted, judged):
        with torch.inference_mode():
            detector.begin([Batch(image=fitted, features=(fitted,))])
            return [detector.head((feat,)).score.numpy() for feat in judged]

    rate = []
    for _ in range(repeats):
        hidden = torch.randn(n + 200, high * wide, 5) + 0.7 * torch.randn(n + 200, 1, 5)
        feat = (hidden @ mix).transpose(1, 2).unflatten(2, (high, wide))
        good, new, left_out = feat[:n], feat[n:], np.empty(n)
        for fold in range(5):
            inside = [i for i in range(n) if i % 5 != fold]
            (left_out[fold::5],) = scores(good[inside], [good[fold::5]])
        (judged,) = scores(good, [new])
        rate.append(np.mean(judged > calibrate(left_out.tolist()).threshold))
    assert np.mean(rate) <= 1 / 21 + 4 * np.std(rate) / repeats**0.5
    assert np.mean(rate) > 0.005


# no-escape


@pytest.mark.parametrize("n", [10, 59])
@pytest.mark.parametrize("name", LAWS)
def test_the_printed_bound_of_escapes_covers_the_truth_with_and_without_a_margin(name, n):
    law, repeats, rng = LAWS[name], 800, np.random.default_rng(n)
    shift = law.ppf(0.977) - law.median()
    good, bad = law.rvs((repeats, 50), random_state=rng), law.rvs((repeats, n), random_state=rng) + shift
    for margin in (0.0, 0.2):
        made = [policies.no_escape(parts(g), parts(d), margin=margin) for g, d in zip(good, bad, strict=True)]
        at = np.array([c.threshold for c in made])
        bound = made[0].escape_bound
        assert bound == pytest.approx(1 - 0.05 ** (1 / n))
        missed = float(np.mean(law.cdf(at - shift) > bound))
        assert within(missed, 0.05, repeats)
        if name == "normal" and not margin:
            assert missed >= 0.05 - 4 * (0.05 * 0.95 / repeats) ** 0.5
        intervals = [rates.clopper_pearson(c.refused, 50) for c in made]
        outside = [not low <= rate <= high for (low, high), rate in zip(intervals, law.sf(at), strict=True)]
        assert within(float(np.mean(outside)), 0.05, repeats)


def test_the_bound_of_escapes_says_nothing_of_a_kind_that_nobody_knew():
    repeats, rng, means = 800, np.random.default_rng(6), {"near": 2.0, "middle": 3.0, "far": 4.0}
    escaped = {kind: [] for kind in means}
    for _ in range(repeats):
        kinds = [kind for kind in means for _ in range(10)]
        defects = parts(rng.normal([means[k] for k in kinds]), kinds)
        for kind, (_, count, threshold) in policies.by_kind(parts(rng.normal(size=50)), defects).items():
            assert count == 10
            escaped[kind].append(stats.norm.cdf(threshold - means[kind]))
    bound = rates.upper(0, 20)
    assert np.mean(np.array(escaped["near"]) <= bound) < 0.3  # would be 0.95 for a kind like the known ones
    assert np.mean(np.array(escaped["far"]) <= bound) > 0.99


# cost


@pytest.mark.parametrize("review", [None, 0.2])
def test_the_bounds_of_cost_allow_for_a_threshold_chosen_by_the_same_scores_and_plain_limits_do_not(review):
    repeats, n, m, rng = 800, 99, 59, np.random.default_rng(7)
    price = policies.Costs(escape=20, reject=1, defect_rate=0.02, review=review)
    printed, plain = [], []
    for _ in range(repeats):
        c = policies.cost(parts(rng.normal(size=n)), parts(rng.normal(2, size=m)), price)
        passing = c.threshold if c.review_threshold is None else c.review_threshold
        missed = sum(s <= passing for s in c.defect_scores)
        alarms, escapes = stats.norm.sf(c.threshold), stats.norm.cdf(passing - 2)
        printed.append((alarms > c.bound, escapes > c.escape_bound))
        plain.append((alarms > rates.upper(c.refused, n), escapes > rates.upper(missed, m)))
    assert np.mean(printed, axis=0).max() <= 0.02
    assert np.mean(plain, axis=0).max() > 0.08
