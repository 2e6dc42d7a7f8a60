from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.measure import label, regionprops
from skimage.morphology import area_opening

from flawmap.errors import DataError
from flawmap.types import Region
from flawmap.verdict.regions import binary, contour, peak, regions


def test_two_blocks_are_two_regions_with_the_higher_peak_first():
    map = np.zeros((6, 8), np.float32)
    map[1:3, 1:4] = 2.0
    map[4, 6] = 5.0
    assert regions(map, 1.0) == (
        Region((6, 4, 7, 5), 1, centroid=(6.0, 4.0), peak=5.0, contour=((6, 4), (7, 4), (7, 5), (6, 5))),
        Region((1, 1, 4, 3), 6, centroid=(2.0, 1.5), peak=2.0, contour=((1, 1), (4, 1), (4, 3), (1, 3))),
    )


def test_a_diagonal_line_of_pixels_is_one_region():
    (found,) = regions(np.eye(5, dtype=np.float32), 0.5)
    assert (found.area_px, found.box, found.centroid) == (5, (0, 0, 5, 5), (2.0, 2.0))


def test_a_value_at_the_threshold_is_not_above_it():
    map = np.full((3, 3), 1.0, np.float32)
    assert not binary(map, 1.0).any()
    assert binary(map, np.nextafter(1.0, 0.0)).all()
    assert regions(map, 1.0) == ()


def test_small_regions_are_left_out():
    map = np.zeros((5, 5), np.float32)
    map[0, 0], map[2:4, 2:4] = 9.0, 1.0
    assert [r.area_px for r in regions(map, 0.5)] == [1, 4]
    assert [r.area_px for r in regions(map, 0.5, min_area_px=4)] == [4]
    assert regions(map, 0.5, min_area_px=5) == ()


def test_random_maps_agree_with_scikit_image():
    map = np.random.default_rng(0).normal(size=(60, 45)).astype(np.float32)
    ours = {r.box: r for r in regions(map, 1.0)}
    theirs = regionprops(label(map > 1.0, connectivity=2), intensity_image=map)
    assert len(theirs) > 50
    for r in theirs:
        top, left, bottom, right = r.bbox
        found = ours[left, top, right, bottom]
        y, x = r.centroid
        assert (found.area_px, found.peak) == (r.area, r.intensity_max)
        assert found.centroid == pytest.approx((x, y))
    assert [r.peak for r in regions(map, 1.0)] == sorted((r.peak for r in ours.values()), reverse=True)


def test_a_map_with_nan_is_refused_rather_than_empty():
    map = np.zeros((4, 4), np.float32)
    map[1, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        regions(map, 0.5)
    with pytest.raises(DataError, match=r"a map is \(H, W\)"):
        binary(np.zeros((1, 4, 4), np.float32), 0.5)


def _area(corners) -> float:
    """Of a polygon, positive when clockwise in a picture (Gauss)."""
    x, y = np.array(corners, float).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


@pytest.mark.parametrize("seed", range(20))
def test_a_contour_encloses_the_region_and_its_holes(seed):
    random = np.random.default_rng(seed)
    map = gaussian_filter(random.random((30, 40)), random.choice([0, 0.7, 2]))
    threshold = float(np.quantile(map, random.uniform(0.2, 0.95)))
    labels = label(map > threshold, connectivity=2)
    found = {region.box: region for region in regions(map, threshold)}
    for theirs in regionprops(labels):
        top, left, bottom, right = theirs.bbox
        ours = found[left, top, right, bottom]
        if ours.area_px != theirs.area:  # another region with the same box
            continue
        assert _area(ours.contour) == binary_fill_holes(theirs.image).sum()
        xs, ys = zip(*ours.contour, strict=True)
        assert (min(xs), min(ys), max(xs), max(ys)) == ours.box
        steps = np.diff([*ours.contour, ours.contour[0]], axis=0)
        assert ((steps == 0).sum(axis=1) == 1).all()  # along the grid
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all()  # every corner is one


def test_a_contour_goes_through_a_diagonal_and_keeps_out_of_a_hole():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert contour(ring, (5, 7)) == ((5, 7), (8, 7), (8, 10), (5, 10))
    assert contour(np.eye(2, dtype=bool)) == ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1), (0, 1))


def test_areas_on_the_part_come_from_the_pitch_and_small_ones_are_left_out():
    map = np.zeros((20, 20))
    map[2:6, 3:8], map[10, 10] = 1.0, 9.0
    (found,) = regions(map, 0.5, min_area_px=2, pitch_mm=0.1)
    assert (found.area_px, found.area_mm2) == (20, pytest.approx(0.2))
    assert regions(map, 0.5, 21) == ()


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=12)), st.data())
def test_the_peak_of_an_area_is_that_of_the_area_opening(map, data):
    least = data.draw(st.integers(1, map.size))
    found = peak(map.astype(np.float32), least)
    assert found == area_opening(map, least, connectivity=2).max()
    assert regions(map.astype(float), found, least) == ()
    if found > map.min():
        assert regions(map.astype(float), np.nextafter(found, -np.inf), least)


def test_a_patch_that_does_not_fit_and_a_map_that_failed_are_refused():
    with pytest.raises(DataError, match="7 px does not fit a map of 3 x 2"):
        peak(np.zeros((2, 3)), 7)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(DataError):
            peak(np.array([[0.0, value]]))
