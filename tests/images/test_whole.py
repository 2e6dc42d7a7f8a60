"""Files whose data end before their last pixel, which Pillow fills with black or grey."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.decode import decode, probe

rng = np.random.default_rng(0)
SMOOTH = np.clip(128 + 60 * np.sin(np.mgrid[:48, :64].sum(axis=0) / 5)[..., None] + [0, 20, 40], 1, 255).astype(
    np.uint8
)
END = b"\xff\xd9"


def saved(picture: np.ndarray, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], bits: int, colour: int, rows: bytes, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("bits", "colour", "row"), [(8, 0, 9), (8, 2, 27), (16, 0, 18), (16, 2, 54), (16, 4, 36), (1, 0, 2), (8, 6, 36)]
)
def test_a_png_with_fewer_rows_than_its_header_says_is_refused(bits: int, colour: int, row: int):
    rows = [b"\0" + bytes(rng.integers(1, 256, row, dtype=np.uint8)) for _ in range(7)]
    assert decode(png((9, 7), bits, colour, b"".join(rows))).shape == (7, 9, 3)
    for there in range(7):
        with pytest.raises(DataError, match="truncated"):
            decode(png((9, 7), bits, colour, b"".join(rows[:there])))


def test_an_interlaced_png_that_lacks_rows_of_a_pass_is_refused():
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in SMOOTH[y::dy, x::dx]]
    np.testing.assert_array_equal(decode(png((64, 48), 8, 2, b"".join(rows), 1)), SMOOTH)
    for there in (1, len(rows) // 2, len(rows) - 1):
        with pytest.raises(DataError, match="truncated"):
            decode(png((64, 48), 8, 2, b"".join(rows[:there]), 1))


def test_a_whole_png_whose_last_rows_are_black_is_read():
    dark = SMOOTH.copy()
    dark[40:] = 0
    for picture in (dark, dark[..., 0], dark[..., 0].astype(np.uint16), dark[:1] * 0, dark > 200):
        data = saved(picture[..., 0] if picture.dtype == bool else picture, "PNG")
        assert not decode(data)[-1].any()
    assert not decode(saved(np.zeros((2000, 2000), np.uint8), "PNG")).any()  # more than a piece of the stream


def test_a_tiff_whose_strips_do_not_cover_it_is_refused_from_its_header():
    page = bytearray(saved(SMOOTH, "TIFF"))
    at = int.from_bytes(page[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(page[at : at + 2], "little"), 12):
        if int.from_bytes(page[entry : entry + 2], "little") == 257:
            page[entry + 8 : entry + 12] = struct.pack("<I", 200)
    for read in (probe, decode):
        with pytest.raises(DataError, match="truncated: its strips or tiles do not cover 64 x 200 pixels"):
            read(bytes(page))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("picture", [SMOOTH, SMOOTH[..., 0].copy()], ids=["colour", "grey"])
def test_a_jpeg_with_an_end_put_behind_what_was_left_is_refused_or_lacks_a_block_at_most(
    picture: np.ndarray, options: dict
):
    whole = saved(picture, "JPEG", quality=90, **options)
    pixels, begin, refused = decode(whole), whole.index(b"\xff\xda") + 20, 0
    for length in range(begin, len(whole) - 2, 7):
        try:
            found = decode(whole[:length] + END)
        except DataError:
            refused += 1
            continue
        if "progressive" not in options:  # of a progressive one whole scans may be missing
            missing = (found != pixels).any(axis=2)
            missing[-17:, -17:] = False  # the last block, and the pixel beside it, for which colour is smoothed
            assert not missing.any()
    assert refused > 0.8 * len(range(begin, len(whole) - 2, 7))


@pytest.mark.parametrize("size", [(49, 49), (33, 58), (42, 65), (41, 51)])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}])
def test_a_jpeg_a_little_larger_than_its_blocks_lacks_the_last_at_most(size: tuple[int, int], options: dict):
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([80 + 2 * x, 200 - 3 * y, 40 + x + y], axis=2).astype(np.uint8)
    whole = saved(picture, "JPEG", quality=95, **options)
    pixels, refused = decode(whole), 0
    block = [(side - 1) // 16 * 16 - 1 for side in size]  # the pixel beside it is smoothed over
    for length in range(whole.index(b"\xff\xda") + 20, len(whole) - 2, 3):
        try:
            missing = (decode(whole[:length] + END) != pixels).any(axis=2)
        except DataError:
            refused += 1
            continue
        missing[block[0] :, block[1] :] = False
        assert not missing.any()
    assert refused > 100


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_what_stands_behind_the_end_or_in_a_segment_hides_no_cut(options: dict):
    junk = bytes(rng.integers(0, 256, 300, dtype=np.uint8))
    preview = saved(SMOOTH[:16, :16], "JPEG")
    whole = saved(SMOOTH, "JPEG", quality=90, **options)
    whole = whole[:2] + b"\xff\xe3" + struct.pack(">H", len(preview) + 2) + preview + whole[2:]
    half = whole[: (whole.rindex(b"\xff\xda") + len(whole)) // 2]
    note = b"\xff\xfe\0\x06note"
    for behind in (b"", END, END * 3, junk + END, preview, b"\xff" * 3 + END, note + END):
        np.testing.assert_array_equal(decode(whole + behind), decode(whole))
        with pytest.raises(DataError, match="truncated"):
            decode(half + END + behind)
    np.testing.assert_array_equal(decode(whole[:-2] + note + END), decode(whole))
    with pytest.raises(DataError, match="truncated"):
        decode(half + note + END)  # the data end at the note


def test_a_tiff_compressed_as_jpeg_is_refused():
    for read in (probe, decode):
        with pytest.raises(DataError, match=r"a TIFF compressed as JPEG.*save it as a PNG"):
            read(saved(SMOOTH, "TIFF", compression="jpeg"))


def test_whole_jpegs_that_look_cut_are_read():
    grey = np.full((48, 64, 3), 128, np.uint8)
    for picture in (grey, grey[..., 0], grey[:1, :1], grey[:9, :9]):
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
            np.testing.assert_array_equal(
                decode(saved(picture, "JPEG", **options)), grey[: len(picture), : len(picture[0])]
            )
    behind = saved(grey, "JPEG") + saved(SMOOTH, "JPEG")  # as cameras put a small one behind
    np.testing.assert_array_equal(decode(behind), grey)


def test_scans_beyond_measure_and_sides_beyond_measure_are_refused():
    whole = saved(SMOOTH, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(DataError, match="scans, more than 100"):
        decode(whole[:-2] + last * 100 + END)
    with pytest.raises(DataError, match="70000 x 1: a side is longer than 65535 pixels"):
        probe(np.zeros((1, 70_000), np.uint8))
