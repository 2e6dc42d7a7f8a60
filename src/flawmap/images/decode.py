"""From a file's bytes to pixels: the one road, walked in fitting and at the line alike (on to the network: intake.py).

Read are PNG, JPEG, BMP and single-page TIFF, in grey, palette or RGB, 8 or 16 bits a channel; and arrays. The rules:

size        more than `max_mpx` megapixels, or 65,535 pixels a side, are refused from the header, before anything is
            decoded
colour      grey is repeated three times, a palette is looked up, 1-bit becomes 0 and 255; CMYK, float, 32-bit and
            signed pictures are refused
alpha       an opaque alpha channel is dropped; otherwise the picture is laid over black (rounded); a picture that is
            transparent everywhere is refused
turning     the EXIF orientation is applied
16 bits     all are kept; divided by one white level per model: the smallest of 1023, 4095, 16383, 65535 that no fitted
            picture exceeds. A brighter picture is refused, never clipped
depth       one model, one depth: 8-bit and 16-bit pictures are never mixed, because their scales differ
resizing    Pillow's bilinear filter, antialiased, in the picture's own depth (16-bit: in float)

A truncated file is an error, and so is one whose data end before its last pixel (whole.py). A TIFF compressed as JPEG,
whose missing end could not be seen, is refused. Damage that leaves a valid stream (a flipped bit inside a JPEG) cannot
be seen here.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from flawmap.errors import DataError, UsageError
from flawmap.images.whole import load, refuse_uncovered

Source = Path | str | bytes | np.ndarray

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MAX_MPX = 64.0
MOST_SIDE = 65_535  # as of JPEG: borders of regions are walked pixel by pixel
MOST_ID = 15  # masks up to this value hold 0 and 1, or the ids of classes, as VisA's do
WHITES = (1023, 4095, 16383, 65535)
# The readers are called directly: Image.open would hold the picture against Pillow's global bomb limit, not ours.
READERS: dict[str, tuple[tuple[bytes, ...], type[ImageFile]]] = {
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    "JPEG": ((b"\xff\xd8\xff",), JpegImageFile),
    "BMP": ((b"BM",), BmpImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
}
MODES_8 = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
MODES_16 = {"I;16", "I;16B", "I;16L"}
RAW_16 = {f"{colour};16{order}" for colour in ("RGB", "RGBX", "RGBA") for order in "BLN"} | {"LA;16B"}
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
TIFF_BITS, TIFF_COMPRESSION, TIFF_PHOTOMETRIC, TIFF_PLANAR, TIFF_FORMAT = 258, 259, 262, 284, 339
TIFF_JPEGS = (6, 7)  # of compressions, the old one and the new one
TURNED = 0x0112  # the EXIF tag of orientation
NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG that can turn it
RESAVE = "save it as a grey or RGB PNG of 8 or 16 bits"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before it is decoded; width and height as stored, not yet turned by EXIF."""

    width: int
    height: int
    mode: str  # Pillow's name
    bits: int  # 8 or 16 a channel
    format: str  # PNG, JPEG, BMP, TIFF or array


def probe(source: Source, max_mpx: float = MAX_MPX) -> Header:
    """The header alone. DataError: not a picture that is read here, or larger than `max_mpx` megapixels."""
    with _blame(source):
        if isinstance(source, np.ndarray):
            return _array_header(source, max_mpx)
        with _handle(source) as file:
            return _open(file, max_mpx)[1]


def size_of(source: Source, max_mpx: float = MAX_MPX) -> tuple[int, int]:
    """Height and width as decoded; from the header where no EXIF can have turned them."""
    header = probe(source, max_mpx)
    turned = False
    if header.format not in ("array", "BMP") and header.height != header.width and not isinstance(source, np.ndarray):
        with _blame(source), _handle(source) as file:
            if header.format == "PNG":  # its EXIF can follow the pixels, and Pillow would look for it by decoding them
                content = file.read()
                turned = any(note in content for note in NOTES)
            else:
                turned = READERS[header.format][1](file).getexif().get(TURNED, 1) > 4
    high, wide = decode(source, max_mpx).shape[:2] if turned else (header.height, header.width)
    return high, wide


def decode(source: Source, max_mpx: float = MAX_MPX) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 by the rules above; may share memory with an array that was given."""
    pixels = np.asarray(read_pixels(source, max_mpx))
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def each_mask(given: Source | tuple[Source, ...] | None) -> tuple[Source, ...]:
    """What the mask of a sample is made of: nothing, one file or array, or several."""
    return given if isinstance(given, tuple) else () if given is None else (given,)


def mask_values(source: Source, size_hw: tuple[int, int], of: str) -> np.ndarray:
    """(H, W) as the mask holds them, of several channels the largest; what they mean, says masks/levels.py.

    DataError: not as large as the picture.
    """
    if isinstance(source, np.ndarray) and source.dtype == bool:
        source = source.astype(np.uint8)
    values = np.asarray(read_pixels(source, max(MAX_MPX, size_hw[0] * size_hw[1] / 1e6)))
    values = values if values.ndim == 2 else values.max(axis=2)
    if values.shape != tuple(size_hw):
        raise DataError(
            f"{label(source)}: the mask is {values.shape[1]} x {values.shape[0]} pixels, {of} is "
            f"{size_hw[1]} x {size_hw[0]}; give a mask of the picture's size"
        )
    return values


def white_level(peak: int) -> int:
    """The smallest white level not below the brightest value seen in 16-bit pictures (10, 12, 14 or 16 bits in use)."""
    return next(white for white in WHITES if white >= peak)


ONE_DEPTH = "their scales differ, so use one depth throughout, in fitting and at the line"


def label(source: Source) -> str:
    """What an error calls a picture."""
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    return f"picture of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def read_pixels(source: Source, max_mpx: float) -> Image.Image | np.ndarray:
    """L or RGB as Pillow's image (so that the hot road is copied once), else (H, W) or (H, W, 3) uint8 or uint16."""
    with _blame(source):
        if isinstance(source, np.ndarray):
            header = _array_header(source, max_mpx)
            array = source if source.ndim == 2 else source[..., 0] if header.mode == "L" else source
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            return _over_black(array) if header.mode == "RGBA" else array
        with _handle(source) as file:
            image, header = _open(file, max_mpx)
            if header.bits == 16:
                return _sixteen(image, file, max_mpx)
            load(image)
            ImageOps.exif_transpose(image, in_place=True)
            if image.has_transparency_data:
                return _over_black(np.asarray(image.convert("RGBA")))
            return (
                image.convert("L" if image.mode in ("1", "L") else "RGB") if image.mode not in ("L", "RGB") else image
            )


@contextmanager
def _blame(source: Source) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the picture."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{label(source)}: {error}") from error.__cause__
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{label(source)}: there is no such file") from error
    except PermissionError as error:
        raise DataError(f"{label(source)}: may not be read; check its permissions") from error
    except MemoryError as error:
        raise DataError(f"{label(source)}: too large for the memory of this machine") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, warnings, ...
        raise DataError(f"{label(source)}: truncated or damaged ({error}); take or copy the picture again") from error


def _handle(source: Path | str | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path | str):
        raise UsageError(f"a picture is a path, bytes or an array, not {type(source).__name__}")
    path = Path(source)
    if path.exists() and not path.is_file():
        raise DataError("a folder, not a picture" if path.is_dir() else "not a regular file")
    return path.open("rb")


def _open(file: BinaryIO, max_mpx: float) -> tuple[ImageFile, Header]:
    file.seek(0)
    magic = file.read(8)
    file.seek(0)
    if not magic:
        raise DataError("empty (0 bytes); take or copy the picture again")
    form = next((form for form, (starts, _) in READERS.items() if magic.startswith(starts)), None)
    if form is None:
        raise DataError(f"not a {', '.join(READERS)} picture; {RESAVE}")
    try:
        image = READERS[form][1](file)
    except SyntaxError as error:
        raise DataError(f"a {form} whose header cannot be read ({error}); {RESAVE}") from error
    _check_size(image.width, image.height, max_mpx)
    refuse_uncovered(image)
    return image, Header(image.width, image.height, image.mode, _depth(image), form)


def _check_size(width: int, height: int, max_mpx: float) -> None:
    if width * height == 0:
        raise DataError("has no pixels")
    if max(width, height) > MOST_SIDE:
        raise DataError(f"{width} x {height}: a side is longer than {MOST_SIDE} pixels; cut it into several pictures")
    if width * height > max_mpx * 1e6:
        raise DataError(
            f"{width} x {height} is {width * height / 1e6:.1f} megapixels, more than max_mpx = {max_mpx:g}; "
            "crop or reduce it, or raise max_mpx"
        )


def _raw(image: ImageFile) -> str:
    """Pillow's raw mode: how the samples lie in the file."""
    if not image.tile:
        raise DataError("holds no pixels; take or copy the picture again")
    args = image.tile[0].args
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _depth(image: ImageFile) -> int:
    """8 or 16; DataError for every kind of picture that could not be read exactly."""
    if getattr(image, "is_animated", False):
        raise DataError("holds several pages or frames; save each as a picture of its own")
    tags = getattr(image, "tag_v2", {})
    if any(value != 1 for value in tags.get(TIFF_FORMAT, (1,))):
        raise DataError(f"has signed or float samples; {RESAVE}")
    if tags.get(TIFF_COMPRESSION) in TIFF_JPEGS:
        raise DataError("a TIFF compressed as JPEG, of which a missing end cannot be seen; save it as a PNG")
    deep = image.mode in MODES_16 or _raw(image)[:-1].endswith(";16") or max(tags.get(TIFF_BITS, (8,))) > 8
    if not deep and image.mode in MODES_8:
        return 8
    if image.mode not in MODES_16 and _raw(image) not in RAW_16:
        raise DataError(f"mode {image.mode} ({_raw(image)}) is not read; {RESAVE}")
    if len(tags.get(TIFF_BITS, ())) > 1 and tags.get(TIFF_PLANAR, 1) != 1:
        raise DataError(f"has 16 bits in separate colour planes, which Pillow does not read; {RESAVE}")
    if tags.get(TIFF_PHOTOMETRIC, 1) == 0 or "transparency" in image.info:
        raise DataError(f"has 16 bits and an inverted scale or a transparent colour, which is not read; {RESAVE}")
    return 16


def _sixteen(image: ImageFile, file: BinaryIO, max_mpx: float) -> np.ndarray:
    """Pillow keeps the high byte of 16-bit colour; read again with the byte order swapped, it keeps the low one."""
    raw = _raw(image)
    if image.mode in MODES_16:
        return _upright(image).astype(np.uint16)  # in this machine's byte order
    if raw == "LA;16B":  # four bytes a pixel, so RGBA hands out all of them
        halves = _upright(image, "RGBA").astype(np.uint16)
        grey, alpha = (halves[..., i] << 8 | halves[..., i + 1] for i in (0, 2))
        return _over_black(np.stack([grey, grey, grey, alpha], axis=2))
    high = _upright(image).astype(np.uint16)
    low = _upright(_open(file, max_mpx)[0], raw[:-1] + OTHER_BYTE[raw[-1]])
    pixels = high << 8 | low
    return _over_black(pixels) if pixels.shape[2] == 4 else pixels


def _upright(image: ImageFile, raw: str | None = None) -> np.ndarray:
    """Decodes, with the samples read as `raw` where given, and turns as EXIF says."""
    if raw is not None:
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
        ]
    load(image)
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image)


def _array_header(array: np.ndarray, max_mpx: float) -> Header:
    shape = (*array.shape, 1) if array.ndim == 2 else array.shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(shape[2]) if len(shape) == 3 else None
    if mode is None:
        raise DataError("a picture is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); transpose or index the array")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise DataError(
            "a picture is uint8 or uint16; convert with .astype(np.uint8) where values go from 0 to 255, "
            "with (255 * a).round().astype(np.uint8) where they go from 0 to 1"
        )
    _check_size(array.shape[1], array.shape[0], max_mpx)
    return Header(array.shape[1], array.shape[0], mode, 8 * array.dtype.itemsize, "array")


def _over_black(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) -> (H, W, 3): the alpha rule."""
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    full = int(np.iinfo(pixels.dtype).max)
    if (alpha == full).all():
        return colour
    if not alpha.any():
        raise DataError(f"transparent everywhere; {RESAVE} without alpha")
    return ((colour.astype(np.uint32) * alpha + full // 2) // full).astype(pixels.dtype)
