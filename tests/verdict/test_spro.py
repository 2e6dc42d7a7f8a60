from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawmap.errors import DataError
from flawmap.verdict.pixels import PixelMetrics


class Wide(PixelMetrics):
    SPRO_LIMIT = 0.5


class AsPro(PixelMetrics):
    SPRO_LIMIT = PixelMetrics.PRO_LIMIT


def row(*values):
    return np.array([values], np.float32)


def at(*places, width=12):
    mask = np.zeros((1, width), bool)
    mask[0, list(places)] = True
    return mask


def measure(pictures, kind: type[PixelMetrics] = Wide, **options):
    """Pictures are (map, regions)."""
    metrics = kind(**options)
    for map, regions in pictures:
        metrics.add(map, good=not regions, regions=regions)
    return metrics.result()


def slow_spro(pictures, limit):
    """The definition, one threshold after the other: the mean over regions of min(found / enough, 1)."""
    outside = [map[~np.any([r for r, _ in regions], axis=0)] if regions else map.ravel() for map, regions in pictures]
    good = np.concatenate(outside)
    x, y = [0.0], [0.0]
    for threshold in sorted({float(v) for map, _ in pictures for v in map.flat}, reverse=True):
        x.append(float(np.mean(good >= threshold)))
        found = [
            min(np.sum(map[region] >= threshold) / min(enough, region.sum()), 1)
            for map, regions in pictures
            for region, enough in regions
        ]
        y.append(float(np.mean(found)))
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        end = min(x1, limit)
        if x0 < limit and x1 > x0:
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def test_a_region_is_found_in_full_once_its_saturation_is_reached():
    map = row(9, 8, 1, 0, 7, 7, 6, 6, 5, 5, 4, 4)
    assert measure([(map, [(at(0, 1, 2, 3), 2)])])["spro"] == pytest.approx(1.0, abs=1e-12)
    assert measure([(map, [(at(0, 1, 2, 3), 4)])])["spro"] == pytest.approx(0.5, abs=1e-12)
    assert measure([(map, [(at(0, 1, 2, 3), 2.5)])])["spro"] == pytest.approx(0.8, abs=1e-12)


def test_two_regions_weigh_the_same_whatever_their_saturations():
    map = row(9, 8, 1, 1, 8.5, 0, 7, 6, 5, 4, 3, 2)
    regions = [(at(0, 1, 2, 3), 1), (at(4, 5), 2)]
    # Before the first good pixel the first is full and the second half; the rest lies below all good pixels.
    found = measure([(map, regions)])
    assert found["spro"] == pytest.approx(0.75, abs=1e-12)
    assert (found["regions"], found["spro_limit"]) == (2, 0.5)


def test_a_pixel_of_two_regions_counts_in_both():
    map = row(0, 9, 0, 8, 7, 6, 5, 4, 3, 2, 1, 1)
    assert measure([(map, [(at(0, 1), 2), (at(1, 2), 1)])])["spro"] == pytest.approx(0.75, abs=1e-12)


def test_a_tie_with_good_pixels_rises_in_a_straight_line_to_its_end():
    map = row(5, 5, 5, 5, 5, 5, 1, 1, 1, 1, 1, 1)
    # The region of three, enough at two, ties with three of nine good pixels: from (0, 0) to (1/3, 1), then flat.
    found = measure([(map, [(at(0, 1, 2), 2)])])
    assert found["spro"] == pytest.approx((1 / 3 / 2 + (0.5 - 1 / 3)) / 0.5, abs=1e-12)
    assert found["spro_error"] == 0.0


def test_a_region_that_is_empty_is_left_out():
    map = row(9, 8, 1, 0, 7, 7, 6, 6, 5, 5, 4, 4)
    found = measure([(map, [(at(0, 1, 2, 3), 4), (at(), 3)])])
    assert found["spro"] == pytest.approx(0.5, abs=1e-12)
    assert found["regions"] == 1


def test_a_saturation_beyond_the_region_counts_as_its_size():
    map = row(9, 8, 1, 0, 7, 7, 6, 6, 5, 5, 4, 4)
    assert measure([(map, [(at(0, 1), 50)])])["spro"] == pytest.approx(1.0, abs=1e-12)


def world(seed, levels):
    rng = np.random.default_rng(seed)
    pictures = []
    for i in range(4):
        map = rng.normal(size=(14, 12))
        regions = []
        for _ in range(i):
            region = np.zeros(map.shape, bool)
            y, x = rng.integers(0, 9, 2)
            region[y : y + 4, x : x + 5] = True
            regions.append((region, float(rng.uniform(0.5, 25))))
            map += region
        pictures.append((np.round(map * levels).astype(np.float32) if levels else map.astype(np.float32), regions))
    return pictures


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 1, 4]))
def test_spro_agrees_with_its_definition_on_overlapping_regions(seed, levels):
    pictures = world(seed, levels)
    for kind in (PixelMetrics, Wide):
        assert measure(pictures, kind)["spro"] == pytest.approx(slow_spro(pictures, kind.SPRO_LIMIT), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 16, 100]))
def test_within_its_bins_the_error_of_spro_is_never_above_the_one_it_states(seed, cap):
    pictures = world(seed, None)
    exact, coarse = measure(pictures), measure(pictures, cap=cap)
    assert abs(coarse["spro"] - exact["spro"]) <= coarse["spro_error"] + 1e-9


def test_components_that_saturate_at_their_size_make_it_pro():
    rng = np.random.default_rng(1)
    map, mask = rng.normal(size=(2, 20, 20)).astype(np.float32), np.zeros((20, 20), bool)
    mask[2:5, 3:9] = mask[12:18, 10:19] = True
    top, low = mask.copy(), mask.copy()
    top[10:], low[:10] = False, False
    metrics = AsPro()
    metrics.add(map[0] + mask, mask, good=False, regions=[(top, top.sum()), (low, low.sum())])
    metrics.add(map[1], good=True)
    found = metrics.result()
    assert found["spro"] == pytest.approx(found["pro"], abs=1e-12)


def test_without_regions_of_every_defective_picture_spro_is_undefined():
    map = row(*range(12))
    metrics = PixelMetrics()
    metrics.add(map, at(3), good=False)
    found = metrics.result()
    assert (found["spro"], found["spro_error"], found["why"]) == (None, None, None)
    assert found["spro_why"] == "no regions with their saturation were given"
    metrics.add(map, good=False, regions=[(at(3), 1)])
    assert metrics.result()["spro_why"] == "1 of the defective pictures came without regions"
    assert PixelMetrics().result()["spro_why"] == "no picture has a defect pixel"


def test_regions_that_contradict_the_mask_the_map_or_themselves_are_refused():
    map = row(*range(12))
    metrics = PixelMetrics()
    with pytest.raises(DataError, match="the regions together are not the mask"):
        metrics.add(map, at(3, 4), good=False, regions=[(at(3), 1)])
    with pytest.raises(DataError, match="bring the map to the regions' size"):
        metrics.add(map, good=False, regions=[(at(3, width=5), 1)])
    for wrong in (0, -1, np.nan, np.inf):
        with pytest.raises(DataError, match="a region's saturation is"):
            metrics.add(map, good=False, regions=[(at(3), wrong)])
    with pytest.raises(DataError, match="a good picture has a mask"):
        metrics.add(map, good=True, regions=[(at(3), 1)])
