"""What machine cameras send: each format against values that are known, packed ones against a loop over their bits."""

from __future__ import annotations

import numpy as np
import pytest

from flawmap.errors import DataError
from flawmap.images.formats import Frame, pixels

H, W = 5, 7  # an odd count: the last group of a packed picture is not full


def _grey(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, (H, W)).astype(np.uint16)


def _bits(values: np.ndarray, bits: int) -> bytes:
    """One value after the other, its lowest bit first: PFNC's p."""
    whole = sum(int(value) << bits * number for number, value in enumerate(values.ravel()))
    return whole.to_bytes(-(-values.size * bits // 8), "little")


def _pairs(values: np.ndarray, bits: int) -> bytes:
    """GigE Vision's Packed: the high eight bits of each of two values, and their low ones in the byte between."""
    out, low = bytearray(), bits - 8
    flat = [*map(int, values.ravel()), 0]
    for a, b in zip(flat[::2], flat[1::2], strict=True):
        out += bytes([a >> low, (a & (1 << low) - 1) | (b & (1 << low) - 1) << 4, b >> low])
    return bytes(out)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_values_stay_as_they_are(bits: int) -> None:
    sent = _grey(bits)
    found = pixels(Frame(sent.astype(np.uint8 if bits == 8 else "<u2").tobytes(), f"Mono{bits}", W, H))
    assert found.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(found, sent)


@pytest.mark.parametrize("bits", [10, 12])
def test_packed_values_are_those_that_were_packed(bits: int) -> None:
    sent = _grey(bits)
    for name, data in ((f"Mono{bits}p", _bits(sent, bits)), (f"Mono{bits}Packed", _pairs(sent, bits))):
        np.testing.assert_array_equal(pixels(Frame(data, name, W, H)), sent, err_msg=name)
        with pytest.raises(DataError, match=f"7 x 5 {name} are more"):
            pixels(Frame(data[:-2], name, W, H))
        with pytest.raises(DataError, match=f"between rows; set its PixelFormat to Mono{bits}"):
            pixels(Frame(data, name, W, H, padding=1))


@pytest.mark.parametrize(
    ("name", "order"), [("RGB8", "RGB"), ("BGR8", "BGR"), ("RGBa8", "RGBa"), ("BGRa8", "BGRa"), ("BGRA8Packed", "BGRA")]
)
def test_colours_come_out_red_first_and_without_alpha(name: str, order: str) -> None:
    red, green, blue = (np.full((H, W), value, np.uint8) for value in (200, 100, 50))
    planes = {"R": red, "G": green, "B": blue, "a": red * 0, "A": red * 0}
    found = pixels(Frame(np.stack([planes[each] for each in order], -1).tobytes(), name, W, H))
    np.testing.assert_array_equal(found, np.stack([red, green, blue], -1))


def test_deep_colours_rows_that_are_filled_up_and_the_other_end_first() -> None:
    sent = np.random.default_rng(0).integers(0, 4096, (H, W, 3)).astype(np.uint16)
    for order, big in (("<u2", False), (">u2", True)):
        rows = sent.astype(order).reshape(H, -1).view(np.uint8)
        filled = np.hstack([rows, np.full((H, 5), 255, np.uint8)]).tobytes()
        np.testing.assert_array_equal(pixels(Frame(filled, "RGB12", W, H, 5, big)), sent)


@pytest.mark.parametrize(("first", "second"), [("RG", "GB"), ("GR", "BG"), ("GB", "RG"), ("BG", "GR")])
@pytest.mark.parametrize("bits", [8, 12])
def test_bayer_gives_the_colour_that_it_was_made_of(first: str, second: str, bits: int) -> None:
    pytest.importorskip("cv2")
    colour = {"R": 200, "G": 100, "B": 50}
    cell = np.array([[colour[each] for each in row] for row in (first, second)], np.uint8 if bits == 8 else "<u2")
    found = pixels(Frame(np.tile(cell, (6, 6)).tobytes(), f"Bayer{first}{bits}", 12, 12))
    assert found.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(found.reshape(-1, 3), np.full((144, 3), (200, 100, 50)))


def test_what_is_not_read_is_named() -> None:
    with pytest.raises(DataError, match="sends YUV422_8, which is not read here; set its PixelFormat to one of Mono8"):
        pixels(Frame(bytes(2 * H * W), "YUV422_8", W, H))
    with pytest.raises(DataError, match="sends 34 bytes, 7 x 5 Mono8 are more"):
        pixels(Frame(bytes(34), "Mono8", W, H))
