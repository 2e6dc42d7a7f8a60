"""What of a picture is seen: regions, polygons, tiles. Depth, colour and size are in test_decode.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.intake import Intake

rng = np.random.default_rng(0)
PICTURE = rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)
DEEP = rng.integers(0, 4096, (60, 100), dtype=np.uint16)
TRIANGLE = ((10, 10), (40, 10), (10, 40))
SCENE = {"scene": (60, 100)}
TILED = {"tile": 32, "overlap": 8, "scales": (1.0,), **SCENE}


def test_a_tile_is_the_picture_at_its_own_resolution():
    view = Intake((32, 32), **TILED).view(PICTURE)
    assert (view.size, len(view)) == ((60, 100), 3 * 4)
    for number in range(len(view)):
        top, left = view.layout.grids[0].corner(number)
        tile = view.tile(number)
        assert tile.flags.c_contiguous
        np.testing.assert_array_equal(tile * 255, PICTURE[top : top + 32, left : left + 32].transpose(2, 0, 1))


def test_sixteen_bits_are_cut_as_well():
    view = Intake((32, 32), 4095, **TILED).view(DEEP)
    tile = view.tile(0)
    np.testing.assert_allclose(tile[0] * 4095, DEEP[:32, :32], rtol=1e-6)
    np.testing.assert_array_equal(tile[0], tile[2])


def test_a_side_shorter_than_a_tile_is_stretched_to_it():
    view = Intake((64, 64), tile=64, overlap=0, scales=(1.0, 0.5), **SCENE).view(PICTURE)
    assert [grid.size for grid in view.layout.grids] == [(64, 100), (64, 64)]
    assert all(view.tile(number).shape == (3, 64, 64) for number in range(len(view)))


def test_nothing_outside_the_region_is_seen():
    intake = Intake.fit([PICTURE], (20, 30), roi=(30, 20, 60, 40))
    assert intake.scene == (60, 100)
    np.testing.assert_array_equal(intake(PICTURE)[0] * 255, PICTURE[20:40, 30:60].transpose(2, 0, 1))
    assert intake.seen((60, 100)) == (30, 20, 60, 40)
    assert intake.seen((120, 200)) == (60, 40, 120, 80)  # another binning of the same camera
    with pytest.raises(DataError, match=r"100 x 70.*fitted on pictures of 100 x 60"):
        intake(np.zeros((70, 100), np.uint8))


@pytest.mark.parametrize("picture", [PICTURE, PICTURE[..., 0].copy(), DEEP])
def test_polygons_are_black_and_the_callers_array_stays_as_it_is(picture: np.ndarray):
    before = picture.copy()
    intake = Intake.fit([picture], (60, 100), ignore=(TRIANGLE,))
    hidden = intake.hidden((60, 100))
    assert hidden is not None
    assert hidden[12, 12]
    assert not hidden[38, 38]
    seen, size = intake(picture)
    assert size == (60, 100)
    assert not seen[:, hidden].any()
    shown = seen[0][~hidden] * (intake.white or 255)
    np.testing.assert_allclose(shown, (before if before.ndim == 2 else before[..., 0])[~hidden], rtol=1e-6)
    np.testing.assert_array_equal(picture, before)


def test_the_bundle_keeps_it_all_and_bundles_of_before_still_load():
    intake = Intake((32, 32), roi=(1, 2, 50, 51), ignore=(TRIANGLE,), **TILED)
    again = Intake.from_dict(json.loads(json.dumps(intake.to_dict())))
    assert again.to_dict() == intake.to_dict()
    assert again.layout((60, 100)).grids[0].size == (49, 49)
    assert Intake.from_dict({"size": [4, 6], "white": None, "max_mpx": 64.0}) == Intake((4, 6))
    assert len(intake.words) == 3
    assert not Intake((4, 6)).words


def test_another_binning_is_cut_at_the_fitted_size_and_another_shape_is_refused():
    intake = Intake((32, 32), **TILED)
    small = np.asarray(Image.fromarray(PICTURE).resize((50, 30), Image.Resampling.BILINEAR))
    view = intake.view(small)
    assert (view.size, len(view), view.layout.grids[0].size) == ((30, 50), 12, (60, 100))
    intake.view(np.zeros((31, 50), np.uint8))  # rounding of a side
    with pytest.raises(DataError, match="give pictures of that shape"):
        intake.view(np.zeros((60, 120), np.uint8))


def test_glare_under_a_polygon_is_not_held_against_the_white_level():
    deep = DEEP.copy()
    deep[12, 12] = 60_000
    intake = Intake((60, 100), 4095, ignore=(TRIANGLE,), **SCENE)
    assert intake(deep)[0].max() <= 1
    with pytest.raises(DataError, match="brighter"):
        Intake((60, 100), 4095)(deep)


def test_what_needs_the_whole_picture_says_so():
    with pytest.raises(UsageError, match="sees a picture in tiles"):
        Intake((32, 32), **TILED)(PICTURE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tile": 32, "overlap": 32, "scales": (1.0,), **SCENE}, "overlap is 32"),
        ({"tile": 32, "overlap": -1, "scales": (1.0,), **SCENE}, "overlap is -1"),
        ({"tile": 32, "overlap": None, "scales": (1.0,), **SCENE}, "overlap is None"),
        ({"tile": 16, "overlap": 0, "scales": (1.0,), **SCENE}, "must be the same"),
        ({"tile": 32, "overlap": 0, "scales": (), **SCENE}, "scales are"),
        ({"tile": 32, "overlap": 0, "scales": (2.0,), **SCENE}, "at most 1"),
        ({"tile": 32, "overlap": 0, "scales": (0.5, 1.0), **SCENE}, "largest first"),
        ({"overlap": 8}, "give tile as well"),
        ({**TILED, "resize": 40}, "not both"),
        ({"tile": 32, "overlap": 8, "scales": (1.0,)}, "need the size"),
        ({"tile": 32, "overlap": 8, "scales": 1.0, **SCENE}, "scales are 1.0"),
        ({"roi": (0, 0, 10, 10)}, "need the size"),
        ({"roi": (1, 2, 30), **SCENE}, "give left, top, right, bottom"),
        ({"roi": (5, 5, 6, 6), **SCENE}, "a side below 8 px"),
        ({"roi": (0, 0, 50, 50), "resize": 40, **SCENE}, "choose one"),
        ({"ignore": (((0, 0, 1), (1, 1), (0, 1)),), **SCENE}, "not x,y"),
        ({"roi": (0, 0, 50, 61), **SCENE}, "does not lie"),
        ({"roi": (0, 0, 101, 10), "scene": (60, 100)}, "does not lie in pictures of 100 x 60"),
        ({"roi": (10, 0, 10, 10), "scene": (60, 100)}, "does not lie"),
        ({"ignore": (((0, 0), (1, 1)),), "scene": (60, 100)}, "3 or more corners"),
        ({"ignore": (((0, 0), (1, 1), (0, 61)),), "scene": (60, 100)}, "does not lie"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict, said: str):
    with pytest.raises(UsageError, match=said):
        Intake((32, 32), **wrong)
