from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawmap.images.tiles import Grid, Layout


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(8, 96), st.integers(0, 40))
def test_tiles_cover_every_pixel_overlap_as_asked_and_a_map_cut_into_them_comes_back(
    high: int, wide: int, tile: int, overlap: int
):
    overlap = min(overlap, tile - 1)
    grid = Grid((high, wide), tile, overlap)
    assert grid.size == (max(high, tile), max(wide, tile))
    for starts, side in ((grid.tops, grid.size[0]), (grid.lefts, grid.size[1])):
        assert starts[0] == 0
        assert starts[-1] + tile == side
        assert all(overlap <= tile - (b - a) for a, b in pairwise(starts))
    whole = np.random.default_rng(high * wide).random(grid.size, dtype=np.float32)
    tiles = [_cut(grid, whole, number) for number in range(len(grid))]
    np.testing.assert_allclose(grid.blend(tiles), whole, atol=1e-5)
    assert grid.seam(tiles).max(initial=0) < 1e-5


def test_weights_fall_off_over_the_overlap_and_not_at_the_border():
    grid = Grid((10, 16), 10, 4)
    assert (grid.tops, grid.lefts) == ([0], [0, 6])
    blended = grid.blend([np.zeros((10, 10), np.float32), np.ones((10, 10), np.float32)])
    np.testing.assert_allclose(blended[3], [*[0] * 6, 0.125, 0.375, 0.625, 0.875, *[1] * 6], atol=1e-6)


def test_the_seam_is_how_far_tiles_are_from_the_blended_map_where_two_meet():
    grid = Grid((10, 16), 10, 4)
    gaps = grid.seam([np.zeros((10, 10), np.float32), np.ones((10, 10), np.float32)])
    assert len(gaps) == 2 * 10 * 4
    np.testing.assert_allclose(sorted(set(np.round(gaps, 5).tolist())), [0.125, 0.375, 0.625, 0.875])
    assert len(Grid((10, 10), 10, 4).seam([np.ones((10, 10), np.float32)])) == 0


def test_of_several_scales_the_largest_value_counts_in_the_size_of_the_first():
    layout = Layout([Grid((20, 20), 10, 0), Grid((10, 10), 10, 0)])
    assert len(layout) == 5
    assert [layout.place(number) for number in range(5)] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    with pytest.raises(IndexError):
        layout.place(5)
    fine = [np.full((10, 10), value, np.float32) for value in (1, 2, 3, 4)]
    joined = layout.join([*fine, np.full((10, 10), 2.5, np.float32)])
    assert joined.shape == (20, 20)
    assert (joined[0, 0], joined[0, 19], joined[19, 0], joined[19, 19]) == (2.5, 2.5, 3, 4)


def test_one_map_at_a_time_is_asked_for():
    asked: list[int] = []

    def maps():
        for number in range(4):
            asked.append(number)
            yield np.full((10, 10), number, np.float32)

    Layout([Grid((20, 20), 10, 0)]).join(maps())
    assert asked == [0, 1, 2, 3]


def _cut(grid: Grid, whole: np.ndarray, number: int) -> np.ndarray:
    top, left = grid.corner(number)
    return whole[top : top + grid.tile, left : left + grid.tile]
