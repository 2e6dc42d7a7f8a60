from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace

from flawmap.errors import DataError
from flawmap.images.quality import LUMA, brightness, grey, saturation, sharpness


def _picture(seed: int, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(23, 31), (23, 31, 3), (1, 9), (9, 1, 3), (1, 1)])
def test_sharpness_is_the_variance_of_the_laplacian_of_scipy(shape: tuple[int, ...], dtype: type) -> None:
    picture = _picture(0, shape, dtype)
    plain = picture / np.iinfo(dtype).max
    plain = plain if plain.ndim == 2 else plain @ np.array(LUMA)
    assert sharpness(picture) == pytest.approx(laplace(plain).var(), rel=1e-5, abs=1e-12)
    assert brightness(picture) == pytest.approx(plain.mean(), rel=1e-6)


def test_grey_is_that_of_pillow_to_its_rounding() -> None:
    picture = _picture(1, (40, 50, 3))
    assert np.abs(np.asarray(Image.fromarray(picture).convert("L")) - grey(picture) * 255).max() <= 1


def test_a_blurred_picture_is_less_sharp_and_as_bright() -> None:
    picture = _picture(2, (64, 64)) // 2
    found = [picture, *(gaussian_filter(picture, sigma, mode="reflect") for sigma in (0.7, 1.5, 3))]
    sharp = [sharpness(p) for p in found]
    assert sharp == sorted(sharp, reverse=True)
    assert sharp[-1] < sharp[0] / 1000
    assert brightness(found[-1]) == pytest.approx(brightness(picture), abs=0.01)


def test_a_flat_picture_has_no_sharpness_and_its_own_brightness() -> None:
    flat = np.full((8, 8, 3), 51, np.uint8)
    assert sharpness(flat) == pytest.approx(0, abs=1e-12)
    assert brightness(flat) == pytest.approx(0.2, abs=1e-6)


@given(st.integers(0, 100), st.integers(1, 60))
def test_saturation_is_the_share_of_pixels_at_white_in_any_channel(seed: int, level: int) -> None:
    picture = _picture(seed, (7, 11, 3)) // 4
    count = min(level, 77)
    places = np.random.default_rng(seed).choice(77, count, replace=False)
    picture.reshape(-1, 3)[places, seed % 3] = 255
    assert saturation(picture) == pytest.approx(count / 77)


def test_twelve_bits_are_held_against_their_own_white() -> None:
    picture = np.full((4, 4), 2047, np.uint16)
    picture[0, 0] = 4095
    assert brightness(picture, white=4095) == pytest.approx((15 * 2047 + 4095) / 16 / 4095, rel=1e-6)
    assert (saturation(picture, white=4095), saturation(picture)) == (1 / 16, 0)
    with pytest.raises(DataError, match=r"brightest value is 4095, above the white level 1023"):
        sharpness(picture, white=1023)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    for measure in (brightness, sharpness, saturation):
        with pytest.raises(DataError, match="picture"):
            measure(image)
