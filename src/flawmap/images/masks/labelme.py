"""LabelMe's JSON, one file a picture in a folder: shapes of type "mask" (a PNG inside the file) or polygons.

Written without the tool, which is GPL: the fields are those that its files have. A mask's two points are its first and
its last pixel, both inside.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.decode import decode
from flawmap.images.masks.fields import Field, read_json
from flawmap.images.masks.levels import Found, Marked, Shape
from flawmap.images.masks.outline import filled, outline


def write(pictures: Iterable[Marked], new: Path, home: Path, how: str) -> None:
    """`how`: "" or "polygon". The paths of the pictures are those seen from `home`, where `new` will lie."""
    new.mkdir()
    for picture in pictures:
        name = Path(picture.name).with_suffix(".json")
        path = new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise DataError(f"{picture.name}: another picture there is called the same but for its suffix; rename one")
        source = os.path.abspath(picture.source) if picture.source else picture.name
        high, wide = picture.size_hw
        found = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [row for shape in picture.shapes for row in _rows(shape, how)],
            "imagePath": os.path.relpath(source, os.path.abspath((home / name).parent)) if picture.source else source,
            "imageData": None,
            "imageHeight": high,
            "imageWidth": wide,
        }
        path.write_text(json.dumps(found), encoding="utf-8")


def _rows(shape: Shape, how: str) -> Iterator[dict[str, Any]]:
    common: dict[str, Any] = {"label": shape.label, "group_id": None, "description": "", "flags": {}}
    if how == "polygon":
        for polygon in outline(shape):
            yield common | {"shape_type": "polygon", "points": [list(corner) for corner in polygon], "mask": None}
        return
    high, wide = shape.mask.shape
    points = [[shape.left, shape.top], [shape.left + wide - 1, shape.top + high - 1]]
    buffer = io.BytesIO()
    Image.fromarray(shape.mask.astype(np.uint8)).save(buffer, format="PNG")
    yield common | {"shape_type": "mask", "points": points, "mask": base64.b64encode(buffer.getvalue()).decode()}


def read(path: Path) -> Iterator[Found]:
    """A folder, searched below, or one file."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .json of LabelMe in it; give the folder with one for each picture")
    for each in files:
        file = read_json(each)
        size = (file["imageHeight"].whole(1), file["imageWidth"].whole(1))
        named = file["imagePath"].text()
        # The file lies where its picture would, which is surer than a path that was written on another machine.
        beside = each.relative_to(path).with_suffix(Path(named).suffix) if path.is_dir() else Path(named)
        yield Found(beside.as_posix(), str(each), size, _drawing(file["shapes"], size))


def _drawing(shapes: Field, size_hw: tuple[int, int]) -> Any:
    return lambda: (_shape(shape, size_hw) for shape in shapes.items())


def _shape(shape: Field, size_hw: tuple[int, int]) -> Shape:
    label, kind = shape["label"].text(), shape["shape_type"].text()
    if kind == "polygon":
        return filled(label, shape["points"].corners(), size_hw)
    points = [[number.number() for number in point.items()] for point in shape["points"].items()]
    if kind not in ("rectangle", "mask", "circle"):
        raise shape.error(f"a {kind} of {label} marks no area; draw it as a polygon or a mask")
    if len(points) != 2 or any(len(point) != 2 for point in points):
        raise shape["points"].error(f"a {kind} takes two points of x and y")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return filled(label, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), size_hw)
    if kind == "circle":  # the centre and a point on it
        turns, radius = np.linspace(0, 2 * np.pi, 720, endpoint=False), float(np.hypot(x1 - x0, y1 - y0))
        return filled(label, np.stack([x0 + radius * np.cos(turns), y0 + radius * np.sin(turns)], 1), size_hw)
    left, top = int(x0), int(y0)
    return Shape(label, _inner(shape["mask"], (int(y1) - top + 1, int(x1) - left + 1)), left, top)


def _inner(mask: Field, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w) bool of the PNG in the file."""
    try:
        values = decode(base64.b64decode(mask.text(), validate=True))
    except (binascii.Error, DataError, ValueError) as error:
        raise mask.error(f"holds no PNG ({error}); save the picture's file again") from error
    if values.shape[:2] != size_hw:
        raise mask.error(
            f"is {values.shape[1]} x {values.shape[0]} pixels, its points span {size_hw[1]} x {size_hw[0]}; save the "
            "picture's file again"
        )
    return np.asarray(values.any(axis=2))
