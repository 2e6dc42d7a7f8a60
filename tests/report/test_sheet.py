from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flawmap.report.heatmap import HALO, LINE
from flawmap.report.sheet import APART, GAP, TEXT, sheet

RED, GREEN, BLUE, BROWN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (120, 60, 10)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (60, 60)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def box(page: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all that has this colour, which must fill the box."""
    found = (np.asarray(page) == colour).all(axis=-1)
    y, x = np.nonzero(found)
    left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
    assert found[top:bottom, left:right].all()
    return int(left), int(top), int(right), int(bottom)


def ink(page: Image.Image, left: int, top: int, right: int, bottom: int) -> int:
    """Pixels that are not near white."""
    return int((np.asarray(page.convert("L").crop((left, top, right, bottom))) < 170).sum())


def test_pictures_stand_in_their_places_in_their_own_size():
    page = sheet([[plain(RED), plain(GREEN)], [plain(BLUE), plain(BROWN)]])
    assert page.size == (GAP + 2 * (60 + GAP), GAP + 2 * (60 + GAP))
    assert box(page, RED) == (GAP, GAP, GAP + 60, GAP + 60)
    assert box(page, GREEN) == (2 * GAP + 60, GAP, 2 * GAP + 120, GAP + 60)
    assert box(page, BLUE) == (GAP, 2 * GAP + 60, GAP + 60, 2 * GAP + 120)
    assert box(page, BROWN)[:2] == (2 * GAP + 60, 2 * GAP + 60)


def test_all_pictures_get_the_height_that_is_asked_for_and_the_first_ones_shape():
    page = sheet([[plain(RED, (40, 80)), plain(GREEN, (100, 200)), plain(BLUE, (7, 9))]], cell=50)
    for colour in (RED, GREEN, BLUE):
        left, top, right, bottom = box(page, colour)
        assert (right - left, bottom - top) == (100, 50)


def test_an_empty_place_stays_white_and_short_rows_are_allowed():
    page = sheet([[None, plain(GREEN)], [plain(BLUE)]])
    assert box(page, GREEN)[:2] == (2 * GAP + 60, GAP)
    assert ink(page, 0, 0, GAP + 60, GAP + 60) == 0
    assert ink(page, 2 * GAP + 60 + 1, 2 * GAP + 60 + 1, *page.size) == 0


def test_rows_fill_the_groups_from_left_to_right_then_down():
    page = sheet([[plain(RED)], [plain(GREEN)], [plain(BLUE)], [plain(BROWN)], [plain((9, 9, 9))]], groups=2)
    across, down = 60 + APART, 60 + GAP
    places = [box(page, colour)[:2] for colour in (RED, GREEN, BLUE, BROWN, (9, 9, 9))]
    assert places == [(GAP + x * across, GAP + y * down) for y in range(3) for x in range(2)][:5]
    assert page.size == (GAP + 60 + across + GAP, GAP + 3 * down)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_words_stand_over_every_column_of_every_group(groups: int):
    rows = [[plain(RED), plain(GREEN)]] * 3
    page, silent = sheet(rows, columns=("one", "two"), groups=groups), sheet(rows, groups=groups)
    assert page.size == (silent.size[0], silent.size[1] + TEXT)
    for group in range(groups):
        for place in range(2):
            left = GAP + group * (2 * 60 + GAP + APART) + place * (60 + GAP)
            over = np.asarray(page.convert("L").crop((left, 0, left + 60, TEXT + GAP - 2))) < 170
            assert over.sum() > 20
            assert np.nonzero(over)[1].mean() == pytest.approx(30, abs=3)  # in the column's middle


def test_words_are_as_many_as_there_are_rows_to_stand_over():
    page = sheet([[plain(RED)]], columns=("one",), groups=3)
    assert ink(page, GAP + 60 + GAP, 0, page.size[0], TEXT) == 0


def test_names_stand_on_the_left_of_their_rows_and_make_room():
    page = sheet([[plain(RED)], [plain(GREEN)]], names=("a long name", "short"))
    left = box(page, RED)[0]
    assert left == box(page, GREEN)[0] > 60
    assert ink(page, 0, GAP, left - 2, GAP + 60) > ink(page, 0, 2 * GAP + 60, left - 2, page.size[1]) > 20


def test_notes_stand_under_their_rows_and_a_long_one_keeps_to_its_group():
    rows = [[plain(RED), plain(GREEN)], [plain(BLUE), plain(BROWN)]]
    page = sheet(rows, notes=("x" * 300, "short"), groups=2)
    assert page.size[1] == GAP + 60 + GAP + TEXT
    edge = GAP + 2 * 60 + GAP
    under = GAP + 60 + 2
    assert ink(page, GAP, under, edge, page.size[1]) > 100
    assert ink(page, edge + 2, under, edge + APART - 2, page.size[1]) == 0
    assert ink(page, edge + APART, under, page.size[0], page.size[1]) > 20


def test_a_cut_note_keeps_its_end():
    rows = [[plain(RED, (100, 100))]]
    long, end = sheet(rows, notes=("y" * 200 + " 4.1 %",)), sheet(rows, notes=("..." + "y" * 3 + " 4.1 %",))
    assert ink(long, GAP, 108, 106, 130) > ink(end, GAP, 108, 106, 130)
    assert long.size == end.size


def test_a_caption_stands_below_and_widens_the_page_when_it_must():
    bare, short = sheet([[plain(RED)]]), sheet([[plain(RED)]], caption="a\nb")
    assert short.size == (bare.size[0], bare.size[1] + 2 * TEXT + GAP)
    assert ink(short, 0, bare.size[1], *short.size) > 10
    wide = sheet([[plain(RED)]], caption="words " * 40)
    assert wide.size[0] > 600
    assert ink(wide, wide.size[0] - 2, 0, *wide.size) == 0


def test_a_white_picture_has_a_visible_end():
    page = np.asarray(sheet([[plain((255, 255, 255))]]))
    frame = (page == (200, 200, 200)).all(axis=-1)
    assert frame.sum() == 4 * 61
    assert not frame[GAP : GAP + 60, GAP : GAP + 60].any()


@pytest.mark.parametrize("cell", [20, 60, 75])
def test_a_mask_is_black_and_white_and_loses_no_pixel_when_shrunk(cell: int):
    mask = np.zeros((60, 60), bool)
    mask[31, 13] = True
    shown = np.asarray(sheet([[mask]], cell=cell))[GAP : GAP + cell, GAP : GAP + cell]
    assert set(np.unique(shown)) == {0, 255}
    assert (shown == 255).all(axis=-1).sum() == {20: 1, 60: 1, 75: 1}[cell]
    y, x = (int(where[0]) for where in np.nonzero(shown[..., 0]))
    assert (abs(y - 31 * cell / 60), abs(x - 13 * cell / 60)) <= (1, 1)


def test_an_outline_runs_round_the_mask_and_leaves_its_inside_as_it_is():
    image, mask = plain((100, 120, 140)), np.zeros((60, 60), bool)
    mask[20:40, 10:30] = True
    image[mask] = (7, 77, 177)
    shown = np.asarray(sheet([[(image, mask)]]))[GAP : GAP + 60, GAP : GAP + 60]
    line, halo = ((shown == colour).all(axis=-1) for colour in (LINE, HALO))
    assert (shown[mask] == (7, 77, 177)).all()
    assert line.sum() == 22 * 22 - 20 * 20
    assert halo.sum() == 24 * 24 - 22 * 22
    assert line[19, 9:31].all()
    assert (shown[~(mask | line | halo)] == (100, 120, 140)).all()


def test_an_outline_is_as_thin_on_a_picture_that_is_shown_larger():
    image, mask = plain(BROWN, (30, 30)), np.zeros((30, 30), bool)
    mask[10:20, 10:20] = True
    shown = np.asarray(sheet([[(image, mask)]], cell=120))[GAP : GAP + 120, GAP : GAP + 120]
    assert (shown == LINE).all(axis=-1).sum() == 42 * 42 - 40 * 40


def test_the_arrays_that_are_shown_are_left_alone():
    image, mask = plain(BROWN), np.zeros((60, 60), bool)
    mask[5:9, 5:9] = True
    sheet([[image, mask, (image, mask)]], cell=40)
    assert (image == BROWN).all()
    assert mask.sum() == 16
