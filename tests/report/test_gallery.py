from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask

from flawmap.errors import DataError
from flawmap.report import gallery, heatmap
from flawmap.report.gallery import Picture, Shrinker, codes, colours, contour
from flawmap.report.heatmap import Scale

SCALE = Scale(0.5, 1.0, 2.0)
RNG = np.random.default_rng(0)


def noisy(side: int, **more) -> Picture:
    image = RNG.integers(0, 255, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side), bool)
    mask[side // 4 : side // 2, side // 3 : side // 2] = True
    map = RNG.gamma(4, 0.3, (side, side)).astype(np.float32)
    return Picture("a.png", "a", "crack", 1.5, None, image, **{"map": map, "mask": mask, **more})


def test_a_code_is_above_127_exactly_where_the_map_is_above_the_threshold():
    values = np.array([[0.4, 0.5, 0.999999, 1.0, np.nextafter(1.0, 2), 1.004, 2.0, 9.0]])
    found = codes(values, SCALE)
    assert (found > 127).tolist() == [[False, False, False, False, True, True, True, True]]
    assert found[0, [0, 1, 6, 7]].tolist() == [0, 0, 255, 255]


def test_the_colours_of_the_codes_are_the_heat_maps_own():
    values = RNG.uniform(0.4, 2.2, (40, 40)).astype(np.float32)
    ours = colours(SCALE)[codes(values, SCALE)].astype(int)
    assert np.abs(ours - heatmap.colour(values, SCALE)).max() <= 3  # 256 steps


def test_a_small_map_keeps_its_peak_and_codes_pass_through():
    map = np.zeros((500, 300), np.float32)
    map[311, 7] = 1.8
    small = codes(map, SCALE)
    assert small.shape == (64, 38)
    assert small.max() == codes(np.array([[1.8]]), SCALE)[0, 0]
    assert (codes(small, SCALE) == small).all()


def test_a_map_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="not finite"):
        codes(np.array([[np.nan]]), SCALE)


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask inside a path, by scikit-image and the even-odd rule."""
    found = np.zeros(shape, bool)
    for loop in re.findall(r"M(\d+) (\d+)((?:[hv]-?\d+)*)z", path):
        x, y = int(loop[0]), int(loop[1])
        corners = [(y, x)]
        for way, run in re.findall(r"([hv])(-?\d+)", loop[2]):
            x, y = (x + int(run), y) if way == "h" else (x, y + int(run))
            corners.append((y, x))
        found ^= polygon2mask(shape, np.array(corners) - 0.5)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_contour_encloses_the_mask_and_nothing_else(seed):
    random = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(random.normal(size=(31, 43)), 1.2 * (seed % 3)) > 0.1  # blobs, holes, single pixels
    path = contour(mask)
    assert (filled(path, mask.shape) == mask).all()
    strokes = [abs(int(run)) for run in re.findall(r"[hv](-?\d+)", path)]
    edges = np.abs(np.diff(np.pad(mask, 1).astype(int), axis=0)).sum()
    edges += np.abs(np.diff(np.pad(mask, 1).astype(int), axis=1)).sum()
    assert 0 < sum(strokes) <= edges  # the last stroke of a loop is the "z"


def test_pictures_keep_to_the_budget_together_and_shrink_as_little_as_they_must():
    for count, budget in ((3, 2_000_000), (20, 300_000), (20, 60_000)):
        shrink = Shrinker(count, budget, SCALE)
        rows = [row for row in (shrink(noisy(300)) for _ in range(count)) if row]
        assert len(rows) + shrink.dropped == count
        used = sum(len(row[i]) for row in rows for i in (4, 5, 6, 8))
        assert used == budget - shrink.budget <= budget
        if budget == 2_000_000:
            assert shrink.sides == [256] * 3
        if budget == 300_000:
            assert used > 0.7 * budget
            assert not shrink.dropped


def test_a_row_holds_the_picture_the_map_and_the_place_of_its_strangest_spot():
    near = np.full((40, 20, 3), 9, np.uint8)
    row = Shrinker(1, 1_000_000, SCALE)(noisy(100, near=near, near_name="train/1.png", near_at=(10, 20, 30, 40)))
    assert row is not None
    assert row[2:4] == [100, 100]
    image, map, patch = (Image.open(io.BytesIO(base64.b64decode(row[i]))) for i in (4, 5, 8))
    assert (image.format, image.size) == ("JPEG", (100, 100))
    assert (map.format, map.mode, map.size) == ("PNG", "L", (64, 64))
    assert patch.size == (20, 40)
    assert row[9:] == ["train/1.png", [0.1, 0.2, 0.3, 0.4]]


def test_the_area_of_a_mask_is_in_pixels_of_the_picture():
    coarse = np.zeros((10, 10), bool)
    coarse[2:4, 5] = True
    assert noisy(100, mask=coarse).area == 200
    assert noisy(100, mask=None).area == 0


def test_what_the_browser_paints_is_the_overlay():
    picture = noisy(64)
    ours = gallery.painted(picture.image, codes(picture.map, SCALE), SCALE).astype(int)
    assert np.abs(ours - heatmap.overlay(picture.image, picture.map, SCALE)).max() <= 4
