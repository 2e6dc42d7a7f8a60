"""Any picture that is read here -> a PNG of the same pixels, 8 or 16 bits, grey or colour."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from flawmap.images.decode import probe, read_pixels


def as_png(content: bytes, max_mpx: float) -> tuple[bytes, np.ndarray]:
    """The PNG, and its pixels (H, W) or (H, W, 3), uint8 or uint16. A PNG stays as it is, byte for byte.

    DataError: not a picture that is read here.
    """
    pixels = np.asarray(read_pixels(content, max_mpx))
    return (content if probe(content, max_mpx).format == "PNG" else write_png(pixels)), pixels


def write_png(pixels: np.ndarray) -> bytes:
    """Pillow's; but it has no 16-bit colour, so that is written here."""
    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        return _deep_colour(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _deep_colour(pixels: np.ndarray) -> bytes:
    """Samples of two bytes, the high one first; a row begins with its filter, 2: what follows is less the row above."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    data = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)  # 2: RGB
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(data.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
