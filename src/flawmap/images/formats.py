"""What a machine camera sends -> pixels, by the name of its PixelFormat (GenICam SFNC and PFNC, and older names).

Values stay as they are: 10, 12 and 14 bits come to lie at the low end of 16. Only Bayer is reckoned with: OpenCV makes
its colours. What is not read here is refused by name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from flawmap.errors import DataError, MissingExtra

READ = "Mono8 to Mono16, Mono10p, Mono12p, Mono10Packed, Mono12Packed, RGB8, BGR8, RGBa8, BGRa8, RGB16, BayerRG8, ..."
_MONO = re.compile(r"Mono(8|10|12|14|16)")
_PACKED = re.compile(r"Mono(10|12)(p|Packed)")
_COLOUR = re.compile(r"(RGB|BGR|RGBa|BGRa|RGBA|BGRA)(8|10|12|14|16)(Packed)?")  # of colours, Packed means side by side
_BAYER = re.compile(r"Bayer(RG|GR|GB|BG)(8|10|12|14|16)")
_ROWS = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}  # the two rows of a pattern; OpenCV spells out both


class Frame(NamedTuple):
    data: bytes
    format: str
    width: int
    height: int
    padding: int = 0  # bytes at the end of each row
    big: bool = False  # the high byte of 16 bits comes first


def pixels(frame: Frame) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8 or uint16. DataError: a format that is not read here, or too few bytes."""
    name = frame.format
    if match := _MONO.fullmatch(name):
        return _plain(frame, int(match[1]), 1)[..., 0]
    if match := _PACKED.fullmatch(name):
        return _unpacked(frame, int(match[1]), match[2] == "p")
    if match := _COLOUR.fullmatch(name):
        seen = _plain(frame, int(match[2]), len(match[1]))[..., :3]
        return np.ascontiguousarray(seen[..., ::-1] if match[1].startswith("B") else seen)
    if match := _BAYER.fullmatch(name):
        return _coloured(_plain(frame, int(match[2]), 1)[..., 0], match[1])
    raise DataError(f"sends {name}, which is not read here; set its PixelFormat to one of {READ}")


def _rows(frame: Frame, length: int) -> np.ndarray:
    """(H, length) bytes, without what fills up the rows."""
    step = length + frame.padding
    if len(frame.data) < step * frame.height:
        raise DataError(f"sends {len(frame.data)} bytes, {frame.width} x {frame.height} {frame.format} are more")
    data = np.frombuffer(frame.data, np.uint8, step * frame.height)
    return np.ascontiguousarray(data.reshape(frame.height, step)[:, :length])


def _plain(frame: Frame, bits: int, channels: int) -> np.ndarray:
    size = 1 if bits == 8 else 2
    rows = _rows(frame, size * channels * frame.width)
    if size == 2:
        rows = rows.view(">u2" if frame.big else "<u2").astype(np.uint16)
    return rows.reshape(frame.height, frame.width, channels)


def _unpacked(frame: Frame, bits: int, stream: bool) -> np.ndarray:
    """`stream`: PFNC's, values follow each other from the lowest bit on. Else GigE Vision's: two in three bytes.

    Neither ends a row with a byte: a picture is one run of values.
    """
    if frame.padding:
        raise DataError(
            f"sends {frame.format} with {frame.padding} bytes between rows; set its PixelFormat to Mono{bits}"
        )
    count = frame.width * frame.height
    group, values = (3, 2) if bits == 12 or not stream else (5, 4)
    groups = -(-count // values)
    short = groups * group - len(frame.data)
    if -(-count * 8 * group // values // 8) > len(frame.data):
        raise DataError(f"sends {len(frame.data)} bytes, {frame.width} x {frame.height} {frame.format} are more")
    data = frame.data[: groups * group] + b"\0" * max(0, short)
    part = np.frombuffer(data, np.uint8).reshape(groups, group).astype(np.uint16)
    if stream:
        low, mask = np.arange(values) * bits, (1 << bits) - 1
        wide = [part[:, b // 8] | part[:, b // 8 + 1] << 8 for b in low]
        found = np.stack([word >> (b % 8) & mask for word, b in zip(wide, low, strict=True)], 1)
    else:
        more = bits - 8
        low = np.stack([part[:, 1] & (1 << more) - 1, part[:, 1] >> 4 & (1 << more) - 1], 1)
        found = part[:, ::2] << more | low
    return found.reshape(-1)[:count].reshape(frame.height, frame.width).astype(np.uint16)


def _coloured(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "capture", "a Bayer camera") from error
    return cv2.cvtColor(mosaic, getattr(cv2, f"COLOR_Bayer{_ROWS[pattern]}2RGB"))
