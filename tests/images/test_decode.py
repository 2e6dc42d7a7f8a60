from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import WHITES, decode, probe, white_level
from flawmap.images.intake import Intake
from flawmap.images.masks.levels import read_mask

rng = np.random.default_rng(0)
GREY_8 = rng.integers(0, 256, (5, 7), dtype=np.uint8)
RGB_8 = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA_8 = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
GREY_16 = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
RGB_16 = rng.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
RGBA_16 = rng.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}


def write(array: np.ndarray, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def png(array: np.ndarray, extra: bytes = b"") -> bytes:
    """Written by hand from the PNG specification: 8 or 16 bits, grey, grey + alpha, RGB or RGBA."""
    array = array[..., None] if array.ndim == 2 else array
    height, width, channels = array.shape
    bits = 8 * array.itemsize
    rows = b"".join(b"\0" + row.astype(f">u{array.itemsize}").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, bits, PNG_COLOUR[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(array: np.ndarray, order: str = "<", photometric: int | None = None, form: int = 1, planar: int = 1) -> bytes:
    """Written by hand from the TIFF 6.0 specification: one raw strip; four channels are RGB and unassociated alpha."""
    shaped = array[..., None] if array.ndim == 2 else array
    height, width, channels = shaped.shape
    data = (np.moveaxis(shaped, 2, 0) if planar == 2 else shaped).astype(array.dtype.newbyteorder(order)).tobytes()
    plane = len(data) // (channels if planar == 2 else 1)
    bits, end = 8 * array.itemsize, 8 + len(data)
    strips = [8 + i * plane for i in range(len(data) // plane)]
    tags = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1])]
    tags += [(262, [photometric if photometric is not None else 1 if channels < 3 else 2]), (273, strips)]
    tags += [(277, [channels]), (278, [height]), (279, [plane] * len(strips)), (284, [planar])]
    tags += [(338, [2])] if channels in (2, 4) else []
    tags += [(339, [form] * channels)]
    directory, overflow, after = b"", b"", end + 2 + 12 * len(tags) + 4
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            packed, overflow = struct.pack(f"{order}I", after + len(overflow)), overflow + packed
        directory += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", end)
    return head + data + struct.pack(f"{order}H", len(tags)) + directory + bytes(4) + overflow


def grey3(array: np.ndarray) -> np.ndarray:
    return np.stack([array] * 3, axis=2)


def over_black(array: np.ndarray) -> np.ndarray:
    full = np.iinfo(array.dtype).max
    return np.floor(array[..., :3].astype(float) * array[..., 3:] / full + 0.5).astype(array.dtype)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (write(GREY_8, "PNG"), grey3(GREY_8)),
        (write(RGB_8, "PNG"), RGB_8),
        (write(GREY_8, "BMP"), grey3(GREY_8)),
        (write(RGB_8, "BMP"), RGB_8),
        (write(RGB_8, "TIFF"), RGB_8),
        (write(RGB_8, "TIFF", compression="tiff_lzw"), RGB_8),
        (write(GREY_8 > 127, "PNG"), grey3(np.where(GREY_8 > 127, 255, 0).astype(np.uint8))),
        (tiff(GREY_8, ">"), grey3(GREY_8)),
        (tiff(RGB_8, planar=2), RGB_8),
        (tiff(GREY_8, photometric=0), grey3(255 - GREY_8)),
    ],
    ids=["png-l", "png-rgb", "bmp-l", "bmp-rgb", "tiff", "tiff-lzw", "1-bit", "tiff-be", "planes", "white-is-zero"],
)
def test_8_bit_pictures_keep_every_pixel(source, expected):
    pixels = decode(source)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("array", [GREY_16, RGB_16], ids=["grey", "rgb"])
def test_16_bit_pictures_keep_all_16_bits(array, order):
    expected = grey3(array) if array.ndim == 2 else array
    for source in (png(array), tiff(array, order), array.astype(array.dtype.newbyteorder(order))):
        pixels = decode(source)
        assert pixels.dtype == np.uint16
        assert pixels.dtype.isnative
        np.testing.assert_array_equal(pixels, expected)


def test_16_bit_colour_agrees_with_files_that_opencv_wrote():
    cv2 = pytest.importorskip("cv2")
    for suffix, options in [
        (".png", []),
        (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
        (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
        (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 8]),
    ]:
        source = cv2.imencode(suffix, RGB_16[..., ::-1], options)[1].tobytes()
        np.testing.assert_array_equal(decode(source), RGB_16)
        source = cv2.imencode(suffix, RGBA_16[..., [2, 1, 0, 3]], options)[1].tobytes()
        np.testing.assert_array_equal(decode(source), over_black(RGBA_16))


def test_16_bit_colour_agrees_with_tiled_and_compressed_files_that_tifffile_wrote():
    tifffile = pytest.importorskip("tifffile")
    picture = rng.integers(0, 65536, (40, 33, 3), dtype=np.uint16)
    for order in "<>":
        for options in ({}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, picture, byteorder=order, photometric="rgb", **options)
            np.testing.assert_array_equal(decode(buffer.getvalue()), picture)


@pytest.mark.parametrize("array", [RGBA_8, RGBA_16], ids=["8", "16"])
def test_alpha_is_laid_over_black_wherever_it_stands(array):
    for source in (png(array), tiff(array), tiff(array, ">"), array):
        np.testing.assert_array_equal(decode(source), over_black(array))


def test_grey_with_alpha_is_laid_over_black():
    for grey, alpha in ((GREY_8, RGBA_8[..., 3]), (GREY_16, RGBA_16[..., 3])):
        both = np.stack([grey, alpha], axis=2)
        np.testing.assert_array_equal(decode(png(both)), over_black(np.dstack([grey, grey, grey, alpha])))


def test_an_opaque_alpha_channel_changes_nothing():
    for array in (RGBA_8.copy(), RGBA_16.copy()):
        array[..., 3] = np.iinfo(array.dtype).max
        np.testing.assert_array_equal(decode(png(array)), array[..., :3])


def test_a_picture_that_is_transparent_everywhere_is_refused():
    array = RGBA_8.copy()
    array[..., 3] = 0
    with pytest.raises(DataError, match="transparent everywhere"):
        decode(array)


def test_a_palette_is_looked_up_and_its_transparent_colour_is_black():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    expected = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]])
    np.testing.assert_array_equal(decode(buffer.getvalue()), expected)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    expected[:, 1] = 0
    np.testing.assert_array_equal(decode(buffer.getvalue()), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(write(RGB_8, "PNG", exif=exif)), turned(RGB_8))
    np.testing.assert_array_equal(decode(png(RGB_16, chunk(b"eXIf", exif.tobytes()[6:]))), turned(RGB_16))
    assert Intake((4, 4))(write(RGB_8, "PNG", exif=exif))[1] == turned(RGB_8).shape[:2]
    jpeg = Image.open(io.BytesIO(write(RGB_8, "JPEG")))
    np.testing.assert_array_equal(decode(write(RGB_8, "JPEG", exif=exif)), turned(np.asarray(jpeg)))


def test_an_array_is_never_modified():
    for array in (GREY_8, GREY_8[..., None], RGB_8, RGBA_8, RGB_16, RGBA_16):
        frozen = array.copy()
        frozen.flags.writeable = False
        assert decode(frozen).shape == (5, 7, 3)
        Intake((3, 3), None if array.itemsize == 1 else 65535)(frozen)
        np.testing.assert_array_equal(frozen, array)


@pytest.mark.parametrize(
    ("source", "header"),
    [
        (write(GREY_8, "PNG"), (7, 5, "L", 8, "PNG")),
        (write(RGB_8, "JPEG"), (7, 5, "RGB", 8, "JPEG")),
        (write(RGB_8, "BMP"), (7, 5, "RGB", 8, "BMP")),
        (png(RGB_16), (7, 5, "RGB", 16, "PNG")),
        (png(GREY_16), (7, 5, "I;16", 16, "PNG")),
        (tiff(RGB_16, ">"), (7, 5, "RGB", 16, "TIFF")),
        (RGBA_16, (7, 5, "RGBA", 16, "array")),
        (GREY_8, (7, 5, "L", 8, "array")),
    ],
)
def test_the_header_tells_size_mode_depth_and_format(source, header):
    found = probe(source)
    assert (found.width, found.height, found.mode, found.bits, found.format) == header


def test_a_bomb_is_refused_from_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    for read in (probe, decode, Intake((8, 8))):
        with pytest.raises(DataError, match=r"bomb\.png: 60000 x 50000 is 3000\.0 megapixels, more than max_mpx = 64"):
            read(tmp_path / "bomb.png")
    assert probe(bomb, max_mpx=3000).width == 60_000
    with pytest.raises(DataError, match="max_mpx"):
        decode(np.zeros((11, 10), np.uint8), max_mpx=0.0001)


def test_what_cannot_be_read_exactly_is_refused():
    pages = io.BytesIO()
    first = Image.fromarray(RGB_8)
    first.save(pages, "TIFF", save_all=True, append_images=[first])
    moving = io.BytesIO()
    first.save(moving, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB_8)])
    gif = io.BytesIO()
    first.save(gif, "GIF")
    cmyk = io.BytesIO()
    first.convert("CMYK").save(cmyk, "JPEG")
    for source, reason in [
        (pages.getvalue(), "several pages or frames"),
        (moving.getvalue(), "several pages or frames"),
        (gif.getvalue(), "not a PNG, JPEG, BMP, TIFF picture"),
        (cmyk.getvalue(), "mode CMYK"),
        (write(GREY_8.astype(np.float32), "TIFF"), "signed or float"),
        (write(GREY_8.astype(np.int32), "TIFF"), "signed or float"),
        (tiff(GREY_16.astype(np.uint32)), "mode I "),
        (tiff(GREY_8, form=2), "signed or float"),
        (tiff(GREY_16, photometric=0), "inverted scale"),
        (tiff(RGB_16, planar=2), "not read"),
        (png(RGB_16, chunk(b"tRNS", bytes(6))), "transparent colour"),
        (b"", "empty"),
        (b"not a picture", "not a PNG"),
    ]:
        for read in (probe, decode):
            with pytest.raises(DataError, match=reason):
                read(source)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (GREY_8 / 255, "uint8 or uint16; convert"),
        (GREY_8.astype(np.int64), "uint8 or uint16; convert"),
        (GREY_8 > 127, "uint8 or uint16; convert"),
        (np.zeros((5, 7, 2), np.uint8), "a picture is"),
        (np.zeros((1, 5, 7, 3), np.uint8), "a picture is"),
        (np.zeros(7, np.uint8), "a picture is"),
        (np.uint8(7), "a picture is"),
        (np.zeros((0, 7), np.uint8), "no pixels"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array, reason):
    with pytest.raises(DataError, match=reason):
        decode(np.asarray(array))


def test_errors_name_the_file_and_the_reason(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(write(RGB_8, "PNG")[:-40])
    (tmp_path / "locked.png").symlink_to(tmp_path / "gone.png")
    for name, reason in [("none.png", "no such file"), ("empty.png", "empty"), ("locked.png", "no such file")]:
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            probe(tmp_path / name)
    with pytest.raises(DataError, match="a folder"):
        decode(tmp_path)
    with pytest.raises(DataError, match=r"cut\.png: truncated"):
        decode(tmp_path / "cut.png")
    with pytest.raises(UsageError, match="not int"):
        decode(5)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a named pipe")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        decode(tmp_path / "pipe.png")


WRITTEN = [
    write(RGB_8, "PNG"),
    write(RGB_8, "JPEG"),
    write(GREY_8, "JPEG", progressive=True),
    write(RGB_8, "BMP"),
    write(RGB_8, "TIFF"),
    write(GREY_8, "TIFF", compression="tiff_lzw"),
    png(RGB_16),
    png(GREY_16),
    tiff(RGB_16),
    tiff(RGBA_16, ">"),
]


def test_a_file_cut_anywhere_is_refused_or_complete():
    for source in WRITTEN:
        whole = decode(source)
        for length in range(len(source)):
            try:
                pixels = decode(source[:length])
            except DataError:
                continue
            np.testing.assert_array_equal(pixels, whole)


def holds(read) -> None:
    """A DataError or a picture: nothing else comes out."""
    try:
        pixels = read()
    except DataError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype in (np.uint8, np.uint16)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0"]),
    st.binary(max_size=300),
)
@example(b"BM", b"")
def test_random_bytes_are_refused_cleanly(magic, rest):
    holds(lambda: decode(magic + rest, max_mpx=0.05))
    holds(lambda: np.zeros((1, 1, 3), np.uint8) if probe(magic + rest, max_mpx=0.05).width else None)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(WRITTEN), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_files_are_refused_cleanly(source, damage):
    damaged = bytearray(source)
    for place, value in damage:
        damaged[place % len(damaged)] = value
    holds(lambda: decode(bytes(damaged), max_mpx=0.05))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(WRITTEN[-4:]), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_16_bit_headers_are_refused_cleanly(source, place, bytes_):
    place = len(source) - 1 - place % len(source)
    holds(lambda: decode(source[:place] + bytes_ + source[place + len(bytes_) :], max_mpx=0.05))


def test_the_network_input_is_pillows_antialiased_bilinear_over_255():
    picture = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    values, original = Intake((20, 30))(write(picture, "PNG"))
    expected = np.asarray(Image.fromarray(picture).resize((30, 20), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_array_equal(values, expected.transpose(2, 0, 1))
    assert (original, values.dtype, values.flags.c_contiguous) == ((60, 90), np.float32, True)


def test_a_picture_of_the_right_size_is_not_resampled():
    for picture in (RGB_8, write(RGB_8, "PNG")):
        values, original = Intake((5, 7))(picture)
        np.testing.assert_array_equal(values, RGB_8.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        assert original == (5, 7)


def test_grey_is_repeated_into_three_channels():
    values, _ = Intake((4, 4))(GREY_8)
    np.testing.assert_array_equal(values, Intake((4, 4))(grey3(GREY_8))[0])
    deep, _ = Intake((4, 4), 65535)(GREY_16)
    np.testing.assert_array_equal(deep, Intake((4, 4), 65535)(grey3(GREY_16))[0])


def test_16_bit_values_are_divided_by_the_white_level_in_float():
    picture = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
    same, original = Intake((40, 40), 4095)(png(picture))
    np.testing.assert_allclose(same[1], picture / 4095, rtol=1e-6)
    assert original == (40, 40)
    small, _ = Intake((10, 8), 4095)(picture)
    np.testing.assert_allclose(small[2], triangle(10) @ (picture / 4095) @ triangle(8).T, atol=1e-6)


def triangle(count: int, given: int = 40) -> np.ndarray:
    """(count, given): the antialiased bilinear filter, a triangle as wide as the reduction, pixel by pixel."""
    weights, scale = np.zeros((count, given)), given / count
    for i in range(count):
        for j in range(given):
            weights[i, j] = max(0.0, 1 - abs((j + 0.5) / scale - (i + 0.5)))
        weights[i] /= weights[i].sum()
    return weights


def test_full_white_is_exactly_one_after_resizing():
    for white in WHITES:
        values, _ = Intake((17, 13), white)(np.full((50, 60), white, np.uint16))
        assert values.max() <= 1
        assert values.min() > 1 - 1e-6


def test_a_16_bit_picture_above_the_white_level_is_refused():
    with pytest.raises(DataError, match=r"brighter \(4321\) than the 16-bit white level 4095"):
        Intake((4, 4), 4095)(np.full((4, 4), 4321, np.uint16))


def test_depths_are_never_mixed():
    with pytest.raises(DataError, match="has 16 bits a channel, this model was fitted on 8-bit"):
        Intake((4, 4))(GREY_16)
    with pytest.raises(DataError, match="has 8 bits a channel, this model was fitted on 16-bit"):
        Intake((4, 4), 4095)(GREY_8)
    with pytest.raises(DataError, match=r"has 16 bits a channel and .* has 8"):
        Intake.fit([GREY_8, GREY_16], (4, 4))


@pytest.mark.parametrize(
    ("peak", "white"),
    [
        (0, 1023),
        (1023, 1023),
        (1024, 4095),
        (4095, 4095),
        (4096, 16383),
        (16383, 16383),
        (16384, 65535),
        (65535, 65535),
    ],
)
def test_the_white_level_is_the_smallest_that_holds_the_peak(peak, white):
    assert white_level(peak) == white
    assert Intake.fit([np.full((2, 2), peak, np.uint16), np.zeros((2, 2), np.uint16)], (4, 4)).white == white


def test_fitting_an_intake_reads_only_the_headers_of_8_bit_pictures(tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(write(RGB_8, "PNG")[:60])
    assert Intake.fit([cut, cut], (4, 6)) == Intake((4, 6), None)
    with pytest.raises(DataError, match="truncated"):
        decode(cut)


def test_an_intake_goes_through_json_and_back():
    import json

    intake = Intake((320, 256), 16383, 12.5)
    assert Intake.from_dict(json.loads(json.dumps(intake.to_dict()))) == intake
    with pytest.raises(UsageError, match="known are"):
        Intake.from_dict({"size": [2, 2], "white": None})
    for size, white, mpx in [((0, 4), None, 1.0), ((4, 4), 255, 1.0), ((4, 4), None, 0.0), ((4, 4.0), None, 1.0)]:
        with pytest.raises(UsageError):
            Intake(size, white, mpx)


def test_a_mask_is_defect_above_127_or_non_zero_where_nothing_exceeds_15():
    values = np.array([[0, 1, 127], [128, 255, 3]], np.uint8)
    np.testing.assert_array_equal(read_mask(write(values, "PNG"), (2, 3)).defect, values > 127)
    ones = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    for source in (ones, ones.astype(bool), write(ones, "PNG"), ones.astype(np.uint16)):
        mask = read_mask(source, (2, 3)).defect
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, ones == 1)
    for ids in (np.array([[0, 2, 9], [0, 0, 15]], dtype) for dtype in (np.uint8, np.uint16)):
        np.testing.assert_array_equal(read_mask(write(ids, "PNG"), (2, 3)).defect, ids > 0)
    assert not read_mask(np.array([[0, 2, 9], [0, 0, 16]], np.uint8), (2, 3)).defect.any()
    assert not read_mask(np.zeros((2, 3), np.uint8), (2, 3)).defect.any()


def test_a_red_mask_counts_though_its_grey_value_is_low():
    red = np.zeros((2, 3, 3), np.uint8)
    red[0, 0, 0] = 255
    assert read_mask(write(red, "PNG"), (2, 3)).defect.sum() == 1


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path):
    (tmp_path / "m.png").write_bytes(write(GREY_8, "PNG"))
    with pytest.raises(DataError, match=r"m\.png: the mask is 7 x 5 pixels, a\.png is 5 x 7"):
        read_mask(tmp_path / "m.png", (7, 5), of="a.png")
