from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from flawmap.errors import DataError
from flawmap.report import heatmap
from flawmap.report.heatmap import Scale, anchored, colour, outline, outlined, overlay, resized, thumbnail

SCALE = Scale(1.0, 2.0, 4.0)
LUMA = np.array([0.2126, 0.7152, 0.0722])


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_the_typical_value_is_clear_and_the_veil_only_grows_to_the_threshold():
    rgba = colour(np.linspace(0, 2, 201, dtype=np.float32)[None], SCALE)[0]
    assert rgba[:101, 3].max() == 0
    assert (np.diff(rgba[:, 3].astype(int)) >= 0).all()
    assert rgba[-1, 3] == round(255 * heatmap.VEIL_ALPHA)


def test_above_the_threshold_lightness_and_opacity_rise_without_a_step_back():
    rgba = colour(np.linspace(2.0001, 4, 300, dtype=np.float32)[None], SCALE)[0].astype(float)
    luma = rgba[:, :3] @ LUMA
    assert (np.diff(luma) > -0.8).all()  # one step of rounding in the channels
    assert (np.diff(luma[::10]) > 0).all()
    assert (np.diff(rgba[:, 3]) >= 0).all()


def test_the_ramp_starts_at_the_threshold_with_a_step_that_shows_on_any_picture():
    below, above = np.nextafter(np.float32(2), np.float32(1)), np.nextafter(np.float32(2), np.float32(3))
    for grey in (0, 128, 255):
        image = np.full((1, 2, 3), grey, np.uint8)
        left, right = overlay(image, row(below, above), SCALE)[0].astype(int)
        assert np.abs(left - right).max() >= 60


def test_a_pixel_at_the_threshold_is_not_marked_and_one_above_is():
    at, above = colour(row(2.0, 2.001), SCALE)[0]
    assert tuple(at[:3]) == tuple(heatmap.VEIL.astype(int))
    assert tuple(above[:3]) == tuple(heatmap.RAMP[0].astype(int))


def test_the_scale_saturates_at_its_stated_ends():
    rgba = colour(row(-9, 1.0, 4.0, 400.0), SCALE)[0]
    assert rgba[0, 3] == rgba[1, 3] == 0
    assert (rgba[2] == rgba[3]).all()
    assert tuple(rgba[3, :3]) == (0xFC, 0xFF, 0xA4)


def test_the_same_value_has_the_same_colour_on_every_picture():
    quiet, loud = row(1.2, 3.0, 1.1), row(99.0, 3.0, 7.0)
    assert (colour(quiet, SCALE)[0, 1] == colour(loud, SCALE)[0, 1]).all()


def test_no_red_is_set_against_green():
    red, green, _ = heatmap.RAMP.T
    assert (red > green).sum() == len(heatmap.RAMP) - 1  # all but the last, a pale yellow
    assert (np.diff(green) > 0).all()


def test_a_scale_without_a_threshold_is_the_bare_ramp():
    rgba = colour(row(1.0, 1.5, 2.0), Scale(1.0, 1.0, 2.0))[0]
    assert rgba[0, 3] == 0
    assert rgba[1, 3] > 180


def test_the_anchored_scale_needs_only_the_calibration():
    assert anchored(1.0, 2.0) == Scale(1.0, 2.0, 4.0)
    flat = anchored(5.0, 5.0)
    assert flat.low < flat.threshold == 5.0 < flat.high


@pytest.mark.parametrize("scale", [Scale(2, 1, 3), Scale(0, 1, 1), Scale(0, float("nan"), 2)])
def test_a_scale_out_of_order_is_refused(scale):
    with pytest.raises(DataError, match="low <= threshold < high"):
        colour(row(1.0), scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(value):
    with pytest.raises(DataError, match="not finite"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.full((8, 8), value, np.float32), SCALE)


def test_the_overlay_has_the_size_of_the_image_and_blends_as_written():
    image = np.full((20, 30, 3), 100, np.uint8)
    seen = overlay(image, np.full((7, 5), 4.0, np.float32), SCALE)
    assert seen.shape == (20, 30, 3)
    assert seen.dtype == np.uint8
    alpha = round(0.92 * 255) / 255
    expected = 100 * (1 - alpha) + np.array([0xFC, 0xFF, 0xA4]) * alpha
    assert (seen == expected.round()).all()


def test_one_strange_pixel_survives_shrinking():
    map = np.zeros((1000, 700), np.float32)
    map[777, 333] = 5.0
    assert resized(map, (50, 40)).max() == 5.0
    assert resized(map > 1, (50, 40)).sum() == 1


def test_shrinking_takes_the_largest_of_each_cell():
    map = np.random.default_rng(0).normal(size=(13, 9)).astype(np.float32)
    small = resized(map, (5, 4))
    for i in range(5):
        for j in range(4):
            cell = map[i * 13 // 5 : (i + 1) * 13 // 5, j * 9 // 4 : (j + 1) * 9 // 4]
            assert small[i, j] == cell.max()


def test_enlarging_stays_within_the_values_of_the_map():
    map = np.random.default_rng(1).normal(size=(6, 30)).astype(np.float32)
    large = resized(map, (60, 20))
    assert large.shape == (60, 20)
    assert map.min() <= large.min() <= large.max() <= map.max()
    mask = resized(np.eye(3, dtype=bool), (9, 9))
    assert (mask == np.kron(np.eye(3), np.ones((3, 3))).astype(bool)).all()


@pytest.mark.parametrize("reach", [1, 2])
def test_the_outline_equals_scipys_dilation_less_the_mask(reach):
    mask = np.random.default_rng(2).random((40, 50)) > 0.97
    mask[0, 0] = mask[39, 10] = True
    grown = binary_dilation(mask, np.ones((3, 3)), iterations=reach)
    assert (outline(mask, reach) == (grown & ~mask)).all()


def test_the_outline_leaves_the_defect_itself_untouched():
    image = np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 25:30] = True
    before = image.copy()
    drawn = outlined(image, mask)
    assert (image == before).all()
    assert (drawn[mask] == image[mask]).all()
    assert tuple(drawn[19, 27]) == heatmap.LINE
    assert tuple(drawn[17, 27]) == heatmap.HALO
    assert tuple(drawn[16, 27]) == tuple(image[16, 27])


def test_a_thumbnail_keeps_its_proportions_and_is_never_enlarged():
    assert thumbnail(np.zeros((300, 900, 3), np.uint8), 256).shape == (85, 256, 3)
    assert thumbnail(np.zeros((30, 20, 3), np.uint8), 256).shape == (30, 20, 3)


def test_grey_and_16_bit_pictures_are_shown_and_others_are_refused():
    assert tuple(heatmap.picture(np.full((2, 2), 65535, np.uint16))[0, 0]) == (255, 255, 255)
    with pytest.raises(DataError, match=r"\(3, 8, 8\) of float32"):
        heatmap.picture(np.zeros((3, 8, 8), np.float32))
