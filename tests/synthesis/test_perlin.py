"""Perlin noise against a loop over pixels, and the outlines that are cut from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import label

from flawmap.synthesis import perlin
from flawmap.synthesis.perlin import blots, noise

EIGHT = np.ones((3, 3))
LEVELS = (0.0, 0.5, 1.1)


def slow(angle: np.ndarray, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """The definition: at each corner of its cell a slope of length 1; their heights here, mixed by the fade curve."""
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            down, across = (y + 0.5) * cells[0] / size[0], (x + 0.5) * cells[1] / size[1]
            top, left = math.floor(down), math.floor(across)
            for row in (top, top + 1):
                for column in (left, left + 1):
                    far = abs(down - row), abs(across - column)
                    fade = [1 - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in far]
                    slope = math.cos(angle[row, column]), math.sin(angle[row, column])
                    height = (across - column) * slope[0] + (down - row) * slope[1]
                    out[y, x] += math.sqrt(2) * fade[0] * fade[1] * height
    return out


@pytest.mark.parametrize(
    ("size", "cells"),
    [((16, 16), (1, 1)), ((24, 24), (4, 2)), ((33, 20), (2, 8)), ((8, 40), (5, 3)), ((32, 32), (32, 32))],
)
def test_noise_is_what_a_loop_over_its_pixels_gives(size: tuple[int, int], cells: tuple[int, int]):
    angle = np.random.default_rng(3).uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    ours = noise(np.random.default_rng(3), size, cells)
    assert ours.dtype == np.float32
    assert ours == pytest.approx(slow(angle, size, cells), abs=3e-6)


def test_noise_is_zero_on_the_corners_of_its_cells():
    # 48 pixels over 32 cells: the middle of every third pixel, from the second on, falls on a corner
    hills = noise(np.random.default_rng(0), (48, 48), (32, 32))
    assert np.abs(hills[1::3, 1::3]).max() < 1e-5
    assert np.abs(hills).max() > 0.5


def test_noise_is_centred_and_its_highest_hills_reach_one():
    hills = np.stack([noise(np.random.default_rng(n), (64, 64), (8, 8)) for n in range(50)])
    assert abs(hills.mean()) < 0.01
    assert 0.85 < np.abs(hills).max() <= 1.001
    assert (np.abs(hills) > 0.5).mean() == pytest.approx(0.1, abs=0.03)


def test_noise_is_smooth_between_neighbouring_pixels():
    hills = noise(np.random.default_rng(1), (256, 256), (4, 4))
    steepest = math.sqrt(2) * 4 / 256 * (1 + 2 * 15 / 8)  # slope of 1, and the fade's steepest 15/8 of heights up to 1
    assert np.abs(np.diff(hills, axis=0)).max() < steepest
    assert np.abs(np.diff(hills, axis=1)).max() < steepest


def test_cells_across_and_down_are_not_mixed_up():
    down = noise(np.random.default_rng(0), (64, 64), (16, 1))
    across = noise(np.random.default_rng(0), (64, 64), (1, 16))
    turns = [int((np.diff(np.sign(field), axis=axis) != 0).sum()) for field in (down, across) for axis in (0, 1)]
    assert turns[0] > 3 * turns[1]
    assert turns[3] > 3 * turns[2]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (128, 96)])
def test_blots_are_seeded_masks_of_the_picture(size: tuple[int, int]):
    one, same, other = (blots(np.random.default_rng(seed), size, 0.5, 5) for seed in (0, 0, 1))
    assert one.shape == size
    assert one.dtype == bool
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_blots_are_what_stands_above_the_threshold():
    shares = [
        np.mean([blots(np.random.default_rng(n), (64, 64), level, 5).mean() for n in range(60)]) for level in LEVELS
    ]
    assert shares[0] > 0.4  # of noise that is as often above zero as below, less the corners
    assert 0.03 < shares[1] < 0.1
    assert shares[2] == 0


def test_without_turning_blots_are_the_noise_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perlin, "ROTATION", 0.0)
    for seed in range(20):
        random = np.random.default_rng(seed)
        cells = tuple(2 ** int(random.integers(0, 6)) for _ in range(2))
        hills = noise(random, (64, 64), (cells[0], cells[1]))
        assert np.array_equal(blots(np.random.default_rng(seed), (64, 64), 0.5, 5), hills > 0.5)


def test_turned_blots_lie_at_any_angle_and_unturned_ones_along_the_sides(monkeypatch: pytest.MonkeyPatch):
    turned = _tilts()
    monkeypatch.setattr(perlin, "ROTATION", 0.0)
    straight = _tilts()
    assert np.mean(_slanted(straight)) < 0.2
    assert np.mean(_slanted(turned)) > 0.3
    assert turned.min() < -60
    assert turned.max() > 60


def test_cells_are_drawn_apart_for_each_side_and_up_to_the_finest(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def spy(random: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
        seen.append(cells)
        return np.zeros(size, np.float32)

    monkeypatch.setattr(perlin, "noise", spy)
    for seed in range(600):
        blots(np.random.default_rng(seed), (8, 8), 0.5, 5)
    pairs, counts = np.unique(np.array(seen), axis=0, return_counts=True)
    assert {tuple(pair) for pair in pairs} == {(2**down, 2**across) for down in range(6) for across in range(6)}
    assert counts.min() >= 4
    assert counts.max() < 45


def _tilts() -> np.ndarray:
    """Degrees that long blots are turned by, from -90 to 90, by their second moments."""
    found = []
    for seed in range(120):
        numbered, many = label(blots(np.random.default_rng(seed), (96, 96), 0.5, 5), EIGHT)
        for number in range(1, many + 1):
            y, x = np.nonzero(numbered == number)
            if len(y) < 40:
                continue
            values, vectors = np.linalg.eigh(np.cov(x, y))
            if values[1] > 9 * max(values[0], 1e-9):
                found.append(math.degrees(math.atan2(vectors[1, 1], vectors[0, 1])) % 180)
    tilts = np.array(found)
    return np.where(tilts > 90, tilts - 180, tilts)


def _slanted(tilts: np.ndarray) -> np.ndarray:
    """Away from both directions of the sides by more than 20 degrees."""
    away = np.abs(tilts) % 90
    return (away > 20) & (away < 70)
