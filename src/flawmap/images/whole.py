"""Files whose data end too early, and which Pillow hands out all the same: what is missing would be black or grey.

PNG   the stream is whole, but holds fewer rows than the header says
TIFF  the strips or tiles do not cover the picture
JPEG  an end was put behind what is left of the data, as programs do that mend files. What cannot be seen: an end within
      the last block (16 x 16 pixels at most), and a progressive picture whose last scans are missing as wholes
"""

from __future__ import annotations

import io
import re
import zlib
from itertools import pairwise
from typing import IO

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from flawmap.errors import DataError

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the colour type of PNG
TIFF_PLANAR = 284
PIECE = 1 << 20
MOST_SCANS = 100  # encoders write about ten; each costs a pass over the whole picture, however few bytes it has
NO_DATA = 128  # the grey of a block that a JPEG has no data for
BLOCK = 8  # pixels of a JPEG, each way
MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")  # neither an escape nor filling nor the end of a restart interval
START, END, SCAN, ALONE = 0xD8, 0xD9, 0xDA, 0x01  # of markers: the last has no segment, as START has none
AGAIN = "take or copy the picture again"


def refuse_uncovered(image: ImageFile) -> None:
    """Of a TIFF, before it is loaded. DataError: its strips or tiles leave a part of the picture out."""
    planes = len(image.getbands()) if getattr(image, "tag_v2", {}).get(TIFF_PLANAR, 1) == 2 else 1
    corners = [tile.extents for tile in image.tile if tile.extents]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in corners)
    if area < image.width * image.height * planes:
        raise DataError(f"truncated: its strips or tiles do not cover {image.width} x {image.height} pixels; {AGAIN}")


def load(image: ImageFile) -> None:
    """Decodes the picture. DataError: its data end before its last pixel, or it has scans beyond measure."""
    file = image.fp
    assert file is not None
    if isinstance(image, JpegImageFile) and "progressive" in image.info:
        scans = _bytes(file).count(b"\xff\xda")
        if scans > MOST_SCANS:
            raise DataError(f"a JPEG of {scans} scans, more than {MOST_SCANS}; save it as a plain one")
    image.load()
    if isinstance(image, PngImageFile) and _perhaps_short(image, file) and not _rows_are_there(file):
        raise DataError(f"truncated: it holds fewer than its {image.height} rows; {AGAIN}")
    if isinstance(image, JpegImageFile) and _perhaps_cut(image) and _cut(image, _bytes(file)):
        raise DataError(f"truncated: its data end before its last pixel; {AGAIN}")


def _bytes(file: IO[bytes]) -> bytes:
    """All of the file; the position stays."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def _perhaps_short(image: ImageFile, file: IO[bytes]) -> bool:
    """Whether one of the last two rows is 0 throughout, as rows are that never came; counting them costs a decoding."""
    file.seek(28)
    if file.read(1) != b"\0":  # interlaced: rows come in another order
        return True
    size = image.width, image.height
    rows = (image.crop((0, row, size[0], row + 1)) for row in range(max(0, size[1] - 2), size[1]))
    return any(row.getbbox(alpha_only=False) is None for row in rows)


def _rows_are_there(file: IO[bytes]) -> bool:
    """Whether the stream of a PNG is as long as its header says."""
    file.seek(16)
    header = file.read(13)
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits = header[8] * SAMPLES[header[9]]
    missing = 0
    for left, top, right, down in ADAM7 if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    stream = zlib.decompressobj()
    file.seek(8)
    while missing > 0 and len(head := file.read(8)) == 8:
        data = file.read(int.from_bytes(head[:4]))
        while head[4:] == b"IDAT" and data and missing > 0:
            missing -= len(stream.decompress(data, PIECE))
            data = stream.unconsumed_tail
        file.seek(4, io.SEEK_CUR)
    return missing <= 0


def _perhaps_cut(image: JpegImageFile) -> bool:
    """A missing end is grey in the last block; of a progressive picture it is coarse and cannot be told.

    Only the brightness is looked at: colour is smoothed over from the blocks beside it, where few rows are left.
    """
    wide, high = (min(4, (side - 1) % BLOCK + 1) for side in image.size)
    corner = image.crop((image.width - wide, image.height - high, *image.size))
    return "progressive" in image.info or all(abs(grey - NO_DATA) <= 1 for grey in corner.convert("L").tobytes())


def _cut(image: JpegImageFile, data: bytes) -> bool:
    """Whether it would decode more: noise behind a scan is skipped in a whole picture and seen in a cut one."""
    noise = bytes(range(255))  # of a cut file the last byte may be an escape, which 0 completes
    noise += b"".join(bytes((0xFF, 0xD0 + number)) + noise for number in range(8))  # or the end of a restart interval
    pieces = [data[begin:end] for begin, end in pairwise((0, *_ends(data), len(data)))]
    other = JpegImageFile(io.BytesIO(noise.join(pieces)))
    try:
        other.load()
    except OSError:
        return True
    return other.tobytes() != image.tobytes()


def _ends(data: bytes) -> list[int]:
    """Where the data of each scan of a JPEG end; what stands behind the picture's end, or in a segment, is not read."""
    ends: list[int] = []
    found = MARKER.search(data)
    while found and data[found.end() - 1] != END:
        kind, place = data[found.end() - 1], found.end()
        if kind not in (START, ALONE):
            place += int.from_bytes(data[place : place + 2])
        found = MARKER.search(data, place)
        if kind == SCAN:
            ends.append(found.start() if found else len(data))
    return ends
