"""Drawn textures, the ten changes of DRAEM against NumPy, and shuffled cells."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from flawmap.synthesis import textures
from flawmap.synthesis.textures import augment, drawn, shuffled

KINDS = ("_clouds", "_bands", "_weave", "_grain", "_tiles")
RAMP = np.stack([np.tile(np.arange(256, dtype=np.uint8), (4, 1))] * 3, axis=-1)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def colourful(seed: int = 0, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return generator(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def changed(name: str, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.asarray(getattr(textures, name)(generator(seed), Image.fromarray(pixels)))


# ---- drawn


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (128, 224)])
def test_drawn_textures_fill_the_size_with_values_in_range(size: tuple[int, int]):
    for seed in range(40):
        texture = drawn(generator(seed), size)
        assert texture.shape == (3, *size)
        assert texture.dtype == np.float32
        assert texture.min() >= 0
        assert texture.max() <= 1
        assert np.array_equal(texture, drawn(generator(seed), size))


def test_no_two_drawn_textures_are_alike_and_hardly_one_is_flat():
    found = [drawn(generator(seed), (64, 64)) for seed in range(60)]
    apart = [np.abs(one - other).mean() for n, one in enumerate(found) for other in found[:n]]
    assert min(apart) > 0.02
    assert np.mean([texture.std(axis=(1, 2)).max() > 0.05 for texture in found]) > 0.9


def test_all_five_kinds_are_drawn_about_as_often(monkeypatch: pytest.MonkeyPatch):
    count = dict.fromkeys(KINDS, 0)
    for kind in KINDS:

        def counted(random: np.random.Generator, size: tuple[int, int], kind: str = kind) -> np.ndarray:
            count[kind] += 1
            return np.zeros(size, np.float32)

        monkeypatch.setattr(textures, kind, counted)
    for seed in range(500):
        drawn(generator(seed), (32, 32))
    assert sum(count.values()) == 500
    assert min(count.values()) > 60  # 100 expected, deviation 9
    assert max(count.values()) < 140


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_field_that_varies(kind: str):
    for seed in range(10):
        field = getattr(textures, kind)(generator(seed), (33, 47))
        assert field.shape == (33, 47)
        assert np.isfinite(field).all()
        assert np.ptp(field) > 0.1


def test_one_drawn_texture_in_four_is_grey():
    grey = np.mean([np.ptp(textures._palette(generator(seed), 3), axis=1).max() == 0 for seed in range(800)])
    assert grey == pytest.approx(0.25, abs=0.06)  # four deviations


def test_a_drawn_texture_runs_through_the_colours_of_its_palette(monkeypatch: pytest.MonkeyPatch):
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    monkeypatch.setattr(textures, "_palette", lambda random, count: colours[:count])
    for seed in range(40):
        texture = drawn(generator(seed), (64, 64))
        # a mixture of two neighbours, to which at most 0.06 of noise is added, the same in all three channels
        assert np.median(np.abs(texture.sum(axis=0) - 1)) < 0.18
        assert np.median(texture[0] * texture[2]) < 0.05
        assert texture.max(axis=(1, 2))[:2].min() > 0.7


# ---- the ten changes


def test_gamma_bends_each_channel_by_its_own_power():
    found = changed("_gamma", RAMP, 5)[0]
    for channel, power in enumerate(generator(5).uniform(0.5, 2, (3, 1))[:, 0]):
        assert found[:, channel] == pytest.approx(255 * (np.arange(256) / 255) ** power, abs=0.51)


def test_brightness_multiplies_and_adds_alike_in_all_channels():
    for seed in range(20):
        random = generator(seed)
        times, more = random.uniform(0.8, 1.2), random.uniform(-30, 30)
        found = changed("_brightness", RAMP, seed)[0]
        assert found[:, 0] == pytest.approx(np.clip(np.arange(256) * times + more, 0, 255), abs=0.51)
        assert np.ptp(found.astype(int), axis=1).max() == 0


def test_sharpness_moves_pixels_away_from_their_smoothed_neighbours():
    pixels = colourful().astype(float) / 2 + 64
    image = Image.fromarray(pixels.astype(np.uint8))
    found = changed("_sharpness", np.asarray(image), 2).astype(float)
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH), float)
    factor = generator(2).uniform(1, 3)
    inner = np.clip(smooth + factor * (np.asarray(image, float) - smooth), 0, 255)[1:-1, 1:-1]
    assert np.abs(found[1:-1, 1:-1] - inner).max() <= 1


def test_hue_turns_round_the_circle_and_keeps_the_value():
    pure = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    for seed in range(20):
        random = generator(seed)
        turn, more = (int(random.integers(-50, 51)) for _ in range(2))
        found = changed("_hue", pure, seed)[0] / 255
        for place, colour in enumerate(found):
            hue, saturation, value = colorsys.rgb_to_hsv(*colour)
            away = (hue - place / 3 - turn / 256 + 0.5) % 1 - 0.5
            assert abs(away) < 0.01
            assert saturation == pytest.approx(min(1, 1 + more / 255), abs=0.01)
            assert value == 1


def test_a_grey_picture_stays_grey_when_its_saturation_does_not_grow():
    grey = np.stack([generator().integers(0, 256, (8, 8), dtype=np.uint8)] * 3, axis=-1)
    seeds = [n for n in range(40) if (r := generator(n)).integers(-50, 51) * 0 + r.integers(-50, 51) <= 0]
    assert len(seeds) > 10
    assert all(np.array_equal(changed("_hue", grey, seed), grey) for seed in seeds)


def test_half_of_the_pictures_are_solarised_above_a_level_of_32_to_128():
    untouched = 0
    for seed in range(200):
        found = changed("_solarise", RAMP, seed)[0, :, 0].astype(int)
        turned = found != np.arange(256)
        untouched += not turned.any()
        if turned.any():
            level = int(np.argmax(turned))
            assert 32 <= level <= 128
            assert np.array_equal(found, np.where(np.arange(256) < level, np.arange(256), 255 - np.arange(256)))
    assert 70 < untouched < 130


def test_posterising_keeps_the_first_one_to_six_bits():
    seen = set()
    for seed in range(60):
        found = changed("_posterise", RAMP, seed)[0, :, 0].astype(int)
        bits = int(np.log2(len(np.unique(found))))
        assert np.array_equal(found, np.arange(256) >> (8 - bits) << (8 - bits))
        seen.add(bits)
    assert seen == {1, 2, 3, 4, 5, 6}


def test_turning_goes_up_to_45_degrees_either_way_and_fills_with_black():
    marked = np.full((65, 65, 3), 100, np.uint8)
    marked[30:35, 50:55] = 255  # right of the middle
    angles = []
    for seed in range(200):
        found = changed("_turn", marked, seed)[..., 0]
        y, x = np.nonzero(found > 180)
        angles.append(np.degrees(np.arctan2(32 - y.mean(), x.mean() - 32)))
        assert set(found[[0, 0, -1, -1], [0, -1, 0, -1]]) == {0} or abs(angles[-1]) < 4
    assert -46 < min(angles) < -40
    assert 40 < max(angles) < 46
    assert np.mean(angles) == pytest.approx(0, abs=4 * 26 / 200**0.5)


def test_inverting_contrast_and_equalising_are_among_the_ten():
    image = Image.fromarray(colourful(size=(256, 256)) // 2 + 30)
    inverted, stretched, equalised = (np.asarray(textures._CHANGES[n](generator(), image)) for n in (6, 7, 8))
    assert np.array_equal(inverted, 255 - np.asarray(image))
    assert (stretched.min(), stretched.max()) == (0, 255)
    quarters = np.bincount(equalised[..., 0].ravel(), minlength=256).reshape(4, 64).sum(axis=1)
    assert quarters == pytest.approx(256 * 256 / 4, rel=0.05)
    assert len(textures._CHANGES) == 10


def test_a_texture_is_changed_by_three_different_ones(monkeypatch: pytest.MonkeyPatch):
    done: list[int] = []

    def change(number: int) -> object:
        return lambda random, image: done.append(number) or image

    monkeypatch.setattr(textures, "_CHANGES", tuple(change(n) for n in range(10)))
    image, orders = Image.fromarray(colourful()), []
    for seed in range(400):
        done.clear()
        assert augment(generator(seed), image) is image
        orders.append(tuple(done))
    assert {len(set(order)) for order in orders} == {3}
    assert {order[0] for order in orders} == set(range(10))
    assert len(set(orders)) > 250  # of 720


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(32, 60), st.integers(32, 60))
def test_any_three_changes_leave_a_picture_of_the_same_size(seed: int, high: int, wide: int):
    before = colourful(seed, (high, wide))
    after = augment(generator(seed), Image.fromarray(before))
    assert after.size == (wide, high)
    assert after.mode == "RGB"
    assert np.array_equal(before, colourful(seed, (high, wide)))  # the picture itself is left alone


# ---- shuffled cells


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(32, 70), st.integers(32, 70), st.sampled_from([1, 2, 4, 8]))
def test_shuffling_is_a_permutation_of_the_cells(seed: int, high: int, wide: int, grid: int):
    image = colourful(seed, (high, wide))
    found = shuffled(generator(seed), image, grid)
    down, across = high // grid, wide // grid

    def cells(pixels: np.ndarray) -> list[bytes]:
        return [
            pixels[y * down : (y + 1) * down, x * across : (x + 1) * across].tobytes()
            for y in range(grid)
            for x in range(grid)
        ]

    assert sorted(cells(found)) == sorted(cells(image))
    assert [cells(image)[n] for n in generator(seed).permutation(grid * grid)] == cells(found)
    assert np.array_equal(found[grid * down :], image[grid * down :])
    assert np.array_equal(found[:, grid * across :], image[:, grid * across :])


def test_shuffling_moves_nearly_every_one_of_64_cells():
    numbers = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8), 4, axis=0), 4, axis=1)
    image = np.stack([numbers] * 3, axis=-1)
    stay = [np.mean(shuffled(generator(seed), image) == image) for seed in range(200)]
    assert np.mean(stay) == pytest.approx(1 / 64, abs=0.006)
