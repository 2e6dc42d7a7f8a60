"""What is shown of a view: its file, its map, and the map over the picture."""

from __future__ import annotations

import io

import numpy as np

from flawmap.errors import DataError
from flawmap.images.decode import decode
from flawmap.images.png import write_png
from flawmap.report import heatmap
from flawmap.run.show import scale
from flawmap.station.ledger import Row
from flawmap.station.line import Line
from flawmap.station.recent import thinned

MEDIA = ("image/png", "image/jpeg", "application/octet-stream")


class Gone(LookupError):
    """There is no such thing, or not any more."""


def shown(line: Line, row: Row, number: int, what: str) -> tuple[bytes, str]:
    """Gone: it was not kept."""
    if not 0 <= number < len(row["views"]):
        raise Gone(f"row {row['seq']} has {len(row['views'])} views")
    view, found = row["views"][number], line.recent.get(row["seq"], number)
    content = found.content if found else line.keep.read(view["path"]) if line.keep and view["path"] else None
    if content is not None and what == "picture":
        return _picture(content)
    map = found.map if found else None
    if content is None or map is None:
        raise Gone(f"the {what} of row {row['seq']} is not there any more")
    if what == "map":
        return _npy(thinned(map)), "application/octet-stream"
    pixels = decode(content)
    drawn = heatmap.overlay(pixels, map, scale(line.recipes.get(row["recipe"]).model))
    return write_png(drawn), "image/png"


def _picture(content: bytes) -> tuple[bytes, str]:
    """As it came where browsers show that; else a PNG of it. Its name and kind are ours, never the sender's."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content, "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return content, "image/jpeg"
    try:
        return write_png(heatmap.picture(decode(content))), "image/png"
    except DataError as error:
        raise Gone(f"it is no picture: {error}") from error


def _npy(map: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, map, allow_pickle=False)
    return file.getvalue()
