from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label, regionprops

from flawmap.errors import DataError
from flawmap.types import Region
from flawmap.verdict.regions import binary, regions


def test_two_blocks_are_two_regions_with_the_higher_peak_first():
    map = np.zeros((6, 8), np.float32)
    map[1:3, 1:4] = 2.0
    map[4, 6] = 5.0
    assert regions(map, 1.0) == (
        Region(box=(6, 4, 7, 5), area_px=1, centroid=(6.0, 4.0), peak=5.0),
        Region(box=(1, 1, 4, 3), area_px=6, centroid=(2.0, 1.5), peak=2.0),
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
