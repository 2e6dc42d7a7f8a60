"""COCO's instances in one JSON file: run lengths (as text or as numbers) or polygons, one annotation a patch.

Bits of the format: https://cocodataset.org/#format-data. Run lengths go by columns; polygons of an annotation are
joined, so that a hole needs a slit (outline.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.images.masks.fields import Field, once, read_json
from flawmap.images.masks.levels import Found, Marked, Shape
from flawmap.images.masks.outline import filled, outline
from flawmap.images.masks.runs import lengths_by_columns, packed, unpacked, unrolled_columns


def write(pictures: Iterable[Marked], new: Path, home: Path, how: str) -> None:
    """`how`: "", "rle" or "polygon". `home` is where `new` will lie."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids: dict[str, int] = {}
    for number, picture in enumerate(pictures, 1):
        high, wide = picture.size_hw
        images.append({"id": number, "file_name": picture.name, "height": high, "width": wide})
        for shape in picture.shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids.setdefault(shape.label, len(ids) + 1),
                    "segmentation": _segmentation(shape, picture.size_hw, how),
                    "bbox": [shape.left, shape.top, shape.mask.shape[1], shape.mask.shape[0]],
                    "area": int(shape.mask.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()]
    found = {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}
    new.write_text(json.dumps(found), encoding="utf-8")


def _segmentation(shape: Shape, size_hw: tuple[int, int], how: str) -> Any:
    if how == "polygon":
        return [[value for corner in polygon for value in corner] for polygon in outline(shape)]
    runs = lengths_by_columns(shape.mask, shape.left, shape.top, size_hw)
    return {"size": list(size_hw), "counts": runs if how == "rle" else packed(runs)}


def read(path: Path) -> Iterator[Found]:
    file = read_json(path)
    names = once((each["id"].whole(), each) for each in file["categories"].items())
    images = once((each["id"].whole(), each) for each in file["images"].items())
    marks: dict[int, list[Field]] = {number: [] for number in images}
    for mark in file["annotations"].items():
        number = mark["image_id"].whole()
        if number not in images:
            raise mark["image_id"].error(f"there is no image {number}; export the file again")
        if mark["category_id"].whole() not in names:
            raise mark["category_id"].error(f"there is no category {mark['category_id'].value}; export the file again")
        marks[number].append(mark)
    labels = {number: each["name"].text() for number, each in names.items()}
    for number, image in images.items():
        size = (image["height"].whole(1), image["width"].whole(1))
        drawn = _drawing(marks[number], labels, size)
        yield Found(image["file_name"].text(), image.where, size, drawn)


def _drawing(marks: Sequence[Field], labels: dict[int, str], size_hw: tuple[int, int]) -> Any:
    return lambda: (shape for mark in marks for shape in _shapes(mark, labels[mark["category_id"].whole()], size_hw))


def _shapes(mark: Field, label: str, size_hw: tuple[int, int]) -> list[Shape]:
    outlined = mark["segmentation"]
    if isinstance(outlined.value, list):
        if not outlined.value:
            raise outlined.error(f"is empty: a {label} without its outline (a box alone marks no pixels); outline it")
        return [filled(label, _corners(polygon), size_hw) for polygon in outlined.items()]
    size = tuple(each.whole() for each in outlined["size"].items())
    if size != size_hw:
        raise outlined["size"].error(f"is {list(size)}, the picture's is {list(size_hw)}; export it again")
    counts = outlined["counts"]
    if isinstance(counts.value, str):
        runs = unpacked(counts.value, counts.where)
    else:
        runs = [each.whole() for each in counts.items()]
    left, columns = unrolled_columns(runs, size_hw, counts.where)
    return [Shape(label, columns, left)]


def _corners(polygon: Field) -> np.ndarray:
    values = [each.number() for each in polygon.items()]
    if len(values) < 6 or len(values) % 2:
        raise polygon.error("is no polygon; it takes x and y of at least three corners, one after another")
    return np.array(values).reshape(-1, 2)
