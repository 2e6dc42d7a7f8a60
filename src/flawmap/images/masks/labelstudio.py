"""Label Studio's JSON: a list of tasks; masks as brushes, one a label, with rectangles and polygons read too.

A brush is an RGBA picture in run lengths of bits (runs.py). Polygons and rectangles are in per cent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from flawmap.images.masks.fields import Field, read_json
from flawmap.images.masks.levels import Found, Marked, Shape, on_picture
from flawmap.images.masks.outline import filled
from flawmap.images.masks.runs import brushed, unbrushed

SERVED = "/data/local-files/?d="  # where Label Studio serves files of its own machine from
LABELS = {"brushlabels", "polygonlabels", "rectanglelabels"}
SAID = {"choices", "textarea", "rating", "number", "datetime", "taxonomy"}  # of the whole picture: no shapes


def write(pictures: Iterable[Marked], new: Path, home: Path, how: str) -> None:
    tasks = []
    for number, picture in enumerate(pictures, 1):
        high, wide = picture.size_hw
        # A task of a good picture says so by an annotation without results; its size is kept beside it.
        data = {"image": SERVED + quote(picture.name, errors="surrogateescape"), "width": wide, "height": high}
        result = [_brush(shape, index, picture.size_hw) for index, shape in enumerate(picture.shapes)]
        annotation = {"id": number, "result": result, "was_cancelled": False, "ground_truth": False}
        tasks.append({"id": number, "data": data, "annotations": [annotation], "predictions": []})
    new.write_text(json.dumps(tasks), encoding="utf-8")


def _brush(shape: Shape, index: int, size_hw: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": f"brush{index}",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": size_hw[1],
        "original_height": size_hw[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brushed(on_picture(shape, size_hw)), "brushlabels": [shape.label]},
    }


def read(path: Path) -> Iterator[Found]:
    """DataError also for a task with two annotations: whose is the mask?"""
    for task in read_json(path).items():
        given = [each for each in task["annotations"].items() if not (each.has("was_cancelled") and _skipped(each))]
        if len(given) > 1:
            raise task.error(f"has {len(given)} annotations; keep one of them")
        if not given:
            continue  # nobody has looked at it
        results = given[0]["result"].items()
        sized = [each for each in results if each.has("original_width")]
        if sized:
            size = (sized[0]["original_height"].whole(1), sized[0]["original_width"].whole(1))
        elif results:
            raise results[0].error("has no original_width; export it again as JSON")
        else:
            data = task["data"]
            known = data.has("height") and data.has("width")
            size = (data["height"].whole(1), data["width"].whole(1)) if known else (0, 0)
        yield Found(_called(task["data"]["image"].text()), task.where, size, _drawing(results, size))


def _called(url: str) -> str:
    """The picture in the address that the tool serves it from; what was uploaded has eight hex digits before it."""
    path = unquote(url.rpartition("?d=")[2], errors="surrogateescape")
    upload = re.search(r"/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?([^/]+)$", path)
    return upload[1] if upload else path


def _skipped(annotation: Field) -> bool:
    return annotation["was_cancelled"].value is True


def _drawing(results: list[Field], size_hw: tuple[int, int]) -> Callable[[], Iterator[Shape]]:
    return lambda: (_shape(each, size_hw) for each in results if each["type"].text() not in SAID)


def _shape(result: Field, size_hw: tuple[int, int]) -> Shape:
    kind, value = result["type"].text(), result["value"]
    if kind not in LABELS:
        raise result["type"].error(f"{kind!r} is no area with a label; use brushes, polygons or rectangles, labelled")
    if (result["original_height"].whole(), result["original_width"].whole()) != size_hw:
        raise result.error("is of a picture of another size than the task's first; export it again")
    if result.has("image_rotation") and result["image_rotation"].number():
        raise result["image_rotation"].error("the picture was turned in the tool; turn it back, and export again")
    label = value[kind].items()
    if len(label) != 1:
        raise value[kind].error(f"{len(label)} labels where one is meant; keep one")
    name = label[0].text()
    if kind == "brushlabels":
        numbers = [each.whole() for each in value["rle"].items()]
        if max(numbers, default=0) > 255:
            raise value["rle"].error("holds a number above 255, which is no byte; export it again")
        return Shape(name, unbrushed(bytes(numbers), size_hw, value["rle"].where))
    per_cent = np.array(size_hw[::-1]) / 100
    if kind == "polygonlabels":
        return filled(name, value["points"].corners() * per_cent, size_hw)
    return filled(name, _rectangle(value) * per_cent, size_hw)


def _rectangle(value: Field) -> np.ndarray:
    x, y, wide, high = (value[key].number() for key in ("x", "y", "width", "height"))
    if value.has("rotation") and value["rotation"].number():
        raise value["rotation"].error("a turned rectangle is not read; draw it as a polygon")
    return np.array([[x, y], [x + wide, y], [x + wide, y + high], [x, y + high]])
