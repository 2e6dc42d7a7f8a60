from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from flawmap.verdict.pixels import PixelMetrics

LOW, HIGH = 0.01, 0.3


class Wide(PixelMetrics):
    """A band that small pictures resolve."""

    AUPIMO_BAND = (LOW, HIGH)
    AUPIMO_POINTS = -1


def pictures(seed, levels=None, side=12):
    """Two good pictures of different size, and three defective ones: (map, mask)."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(5):
        mask = np.zeros((side, side + i), bool)
        if i >= 2:
            mask[1 : 3 + i, 2:8] = True
        map = rng.normal(size=mask.shape) + mask
        found.append(((np.round(map * levels) if levels else map).astype(np.float32), mask))
    return found


def measure(found, kind: type[PixelMetrics] = Wide, **options):
    metrics = kind(**options)
    for map, mask in found:
        metrics.add(map, mask, good=not mask.any())
    return metrics


def slow(found):
    """By definition: threshold by threshold, straight lines between them, an integral over log of the rate."""
    good = [map for map, mask in found if not mask.any()]
    values = []
    for map, mask in found:
        if not mask.any():
            continue
        x, y = [0.0], [0.0]
        for threshold in sorted({float(v) for m, _ in found for v in m.flat}, reverse=True):
            x.append(float(np.mean([np.mean(m >= threshold) for m in good])))
            y.append(float(np.mean(map[mask] >= threshold)))
        area = 0.0
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
            start, end = max(x0, LOW), min(x1, HIGH)
            if start < end:
                area += quad(lambda v, a=x0, b=x1, c=y0, d=y1: (c + (d - c) * (v - a) / (b - a)) / v, start, end)[0]
        values.append(area / np.log(HIGH / LOW))
    return values


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 1, 3]))
def test_aupimo_agrees_with_a_slow_loop_over_all_thresholds(seed, levels):
    found = pictures(seed, levels)
    metrics, expected = measure(found), slow(found)
    result = metrics.result()
    assert metrics.aupimo_of_pictures() == pytest.approx(expected, abs=1e-9)
    assert result["aupimo"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert (result["aupimo_error"], result["aupimo_why"]) == (0.0, None)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 16, 64, 200]))
def test_within_its_bins_the_error_of_aupimo_is_never_above_the_one_it_states(seed, cap):
    found = pictures(seed)
    exact, coarse = measure(found).result(), measure(found, cap=cap).result()
    assert abs(coarse["aupimo"] - exact["aupimo"]) <= coarse["aupimo_error"] + 1e-9


def test_a_constant_map_earns_what_chance_does():
    mask = np.zeros((8, 8), bool)
    mask[2:4] = True
    found = measure([(np.ones((8, 8), np.float32), mask & False), (np.ones((8, 8), np.float32), mask)])
    # Recall equals the rate: the integral of x over d log x is the width of the band.
    assert found.result()["aupimo"] == pytest.approx((HIGH - LOW) / np.log(HIGH / LOW), abs=1e-12)


def test_in_the_band_of_the_paper_each_defect_pixel_counts_by_the_good_pixels_above_it():
    rng = np.random.default_rng(2)
    good = [rng.normal(size=(256, 256)).astype(np.float32) for _ in range(7)]
    mask = np.zeros((256, 256), bool)
    mask[20:120, 30:100] = True  # 7,000 pixels: more than are kept of a picture
    bad = [rng.normal(3 + i, 1.5, (256, 256)).astype(np.float32) for i in range(2)]
    metrics = measure([(map, mask & False) for map in good] + [(map, mask) for map in bad], PixelMetrics)
    ranked = np.sort(np.ravel(good))
    rate = [1 - np.searchsorted(ranked, map[mask]) / ranked.size for map in bad]
    expected = [np.mean(np.log(1e-4 / np.clip(x, 1e-5, 1e-4)) / np.log(10)) for x in rate]
    found = metrics.result()
    assert found["aupimo"] == pytest.approx(np.mean(expected), abs=found["aupimo_error"] + 1e-9)
    assert found["aupimo_error"] < 1e-4
    assert 0.1 < expected[0] < expected[1] < 0.9
    assert metrics.aupimo_of_pictures() == pytest.approx(expected, abs=1 / 8192 + 1e-4)


def test_a_lost_picture_has_no_value_and_is_not_in_the_mean():
    found = pictures(3)
    metrics = measure(found)
    without = metrics.aupimo_of_pictures()
    assert without is not None
    metrics.add(np.zeros((12, 12), np.float32), np.zeros((12, 12), bool), good=False)
    assert metrics.result()["aupimo"] == pytest.approx(without.mean(), abs=1e-12)
    np.testing.assert_array_equal(metrics.aupimo_of_pictures(), [*without, np.nan])


def test_good_pictures_weigh_the_same_whatever_their_size():
    mask = np.array([[True, False]])
    small, large = np.array([[5.0, 0.0]], np.float32), np.arange(100, dtype=np.float32).reshape(10, 10) / 100 - 1
    metrics = measure([(small, mask & False), (large, large > 9), (np.array([[3.0, 9.0]], np.float32), mask)])
    # Above 3 stands half of the small picture: a mean rate of 1/4 (pooled it would be 1/102).
    expected = (np.log(HIGH) - np.log(0.25)) / np.log(HIGH / LOW)
    assert metrics.result()["aupimo"] == pytest.approx(expected, abs=1e-12)


def test_good_pictures_that_do_not_resolve_the_band_leave_it_undefined_and_say_so():
    metrics = measure(pictures(0), PixelMetrics)
    found = metrics.result()
    assert (found["aupimo"], found["aupimo_error"], metrics.aupimo_of_pictures()) == (None, None, None)
    assert "the good pictures give 0 thresholds at false-positive rates from 1e-05 to 0.0001" in found["aupimo_why"]
    assert found["why"] is None
    alone = measure(pictures(0)[2:])
    assert alone.result()["aupimo_why"] == "there is no good picture"
    assert alone.aupimo_of_pictures() is None
