"""CVAT for images 1.1: one XML file, masks as run lengths by rows inside their box, or polygons.

The format: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/. A document that brings a DTD or entities is
refused unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from flawmap.errors import DataError
from flawmap.images.masks.fields import Field, read_text
from flawmap.images.masks.levels import Found, Marked, Shape
from flawmap.images.masks.outline import filled, outline
from flawmap.images.masks.runs import lengths, unrolled

NO_AREA = {"polyline", "points", "cuboid", "skeleton"}
NO_SHAPE = {"tag"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(pictures: Iterable[Marked], new: Path, home: Path, how: str) -> None:
    """`how`: "" or "polygon"."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, picture in enumerate(pictures):
        for text in (picture.name, *(shape.label for shape in picture.shapes)):
            if _NOT_XML.search(text):
                raise DataError(f"{text!r}: XML cannot hold this name; rename it")
        high, wide = picture.size_hw
        size = {"width": str(wide), "height": str(high)}
        image = ElementTree.SubElement(root, "image", {"id": str(number), "name": picture.name} | size)
        for shape in picture.shapes:
            common = {"label": shape.label, "source": "manual", "occluded": "0", "z_order": "0"}
            if how == "polygon":
                for polygon in outline(shape):
                    points = ";".join(f"{x},{y}" for x, y in polygon)
                    ElementTree.SubElement(image, "polygon", common | {"points": points})
            else:
                box = {"left": shape.left, "top": shape.top, "width": shape.mask.shape[1]}
                box |= {"height": shape.mask.shape[0], "rle": ", ".join(map(str, lengths(shape.mask)))}
                ElementTree.SubElement(image, "mask", common | {key: str(value) for key, value in box.items()})
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(new, encoding="utf-8", xml_declaration=True)


def read(path: Path) -> Iterator[Found]:
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: brings a DTD, which CVAT does not write; export it again")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is not XML ({error}); export it again as CVAT for images 1.1") from error
    if root.tag != "annotations":
        raise DataError(f"{path}: begins with <{root.tag}>, not <annotations>; export it as CVAT for images 1.1")
    if root.find("track") is not None:
        raise DataError(f"{path}: is of a video (<track>); export it as CVAT for images 1.1")
    for number, image in enumerate(root.iter("image")):
        where = f"{path}: image {image.get('name') or number}"
        values = _Values(image, where)
        size = (values.whole("height", 1), values.whole("width", 1))
        yield Found(values.text("name"), where, size, _drawing(image, where, size))


def _drawing(image: ElementTree.Element, where: str, size_hw: tuple[int, int]) -> Callable[[], Iterator[Shape]]:
    return lambda: (
        _shape(each, f"{where}, {each.tag} {number}", size_hw)
        for number, each in enumerate(image)
        if each.tag not in NO_SHAPE
    )


def _shape(element: ElementTree.Element, where: str, size_hw: tuple[int, int]) -> Shape:
    values = _Values(element, where)
    label = values.text("label")
    if element.tag == "polygon":
        return filled(label, values.list("points", ";").corners(), size_hw)
    if element.tag == "box":
        x0, y0, x1, y1 = (values.number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        if values.get("rotation") and values.number("rotation"):
            raise DataError(f"{where}: a turned box is not read; draw it as a polygon")
        return filled(label, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), size_hw)
    if element.tag == "ellipse":
        x, y, wide, high = (values.number(key) for key in ("cx", "cy", "rx", "ry"))
        turns = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        return filled(label, np.stack([x + wide * np.cos(turns), y + high * np.sin(turns)], 1), size_hw)
    if element.tag != "mask":
        what = "marks no area" if element.tag in NO_AREA else "is not known here"
        raise DataError(f"{where}: a {element.tag} of {label} {what}; draw it as a polygon or a mask")
    left, top, wide, high = (values.whole(key) for key in ("left", "top", "width", "height"))
    if left + wide > size_hw[1] or top + high > size_hw[0]:
        raise DataError(f"{where}: the box of the mask reaches out of the picture; export it again")
    runs = [each.whole() for each in values.list("rle", ",").items()]
    return Shape(label, unrolled(runs, (high, wide), f"{where}.rle"), left, top)


class _Values:
    """The attributes of an element."""

    def __init__(self, element: ElementTree.Element, where: str) -> None:
        self.get, self.where = element.get, where

    def text(self, key: str) -> str:
        value = self.get(key)
        if not value:
            raise DataError(f"{self.where}: has no {key}; export it again")
        return value

    def number(self, key: str) -> float:
        return Field(_number(self.text(key)), f"{self.where}.{key}").number()

    def whole(self, key: str, least: int = 0) -> int:
        return Field(_number(self.text(key)), f"{self.where}.{key}").whole(least)

    def list(self, key: str, between: str) -> Field:
        """Of "1, 2" the numbers; of "1,2;3,4" the pairs."""
        words = self.text(key).split(between)
        value = [_number(word) for word in words] if between == "," else [_pair(word) for word in words]
        return Field(value, f"{self.where}.{key}")


def _pair(text: str) -> list[float | str]:
    return [_number(word) for word in text.split(",")]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
