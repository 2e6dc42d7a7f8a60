"""Masks go to COCO, LabelMe, CVAT and Label Studio and come back the same to the pixel; broken files are named."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools import mask as oracle

from flawmap.cli import main
from flawmap.errors import DataError, UsageError
from flawmap.images.masks import runs
from flawmap.images.masks.exchange import READERS, WRITERS, export_masks, import_masks
from flawmap.images.masks.levels import Shape, levels_of, on_picture, read_levels, shapes_of
from flawmap.images.masks.outline import filled, outline

# pycocotools does not know numpy 2's `copy` of __array__ yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

HIGH, WIDE = 24, 31


def _made() -> dict[str, np.ndarray]:
    """(24, 31) uint8 of 0, 128, 255 each."""
    y, x = np.mgrid[:HIGH, :WIDE]
    away = np.hypot(y - 11, x - 14)
    corners = np.zeros((HIGH, WIDE), bool)
    corners[4, 4] = corners[5, 5] = corners[6, 4] = corners[5, 3] = True  # a ring of four that touch at corners
    island = (away < 10) & ~((away > 3) & (away < 7))
    sieve = (away < 10) & ~((y % 3 == 1) & (x % 2 == 1))
    pixel = (y == 0) & (x == WIDE - 1)
    masks = {"hole": (away < 9) & (away > 4), "parts": (y % 9 < 3) & (x % 8 < 4), "pixel": pixel, "corners": corners}
    masks |= {"island": island, "sieve": sieve, "chess": (y + x) % 2 == 0, "empty": y < 0, "full": y >= 0}
    levels = {name: np.where(mask, 255, 0).astype(np.uint8) for name, mask in masks.items()}
    band = np.where(away < 6, 255, np.where(away < 8, 128, 0)).astype(np.uint8)
    return levels | {"band": band, "all-ignored": np.where(away < 6, 128, 0).astype(np.uint8)}


MADE = _made()


def _data(root: Path, masks: dict[str, np.ndarray]) -> Path:
    """In MVTec's layout: two good pictures, and one of the kind "scratch ü" for every mask."""
    for name in ("train/good/000", "test/good/000", *(f"test/scratch ü/{name}" for name in masks)):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = masks[path.stem].shape if path.stem in masks else (HIGH, WIDE)
        Image.fromarray(np.full(size, 90, np.uint8)).save(path)
    for name, levels in masks.items():
        path = root / "ground_truth/scratch ü" / f"{name}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    return root


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return _data(tmp_path / "data", MADE)


def _exported(data: Path, kind: str) -> Path:
    out = data.parent / ("out" if kind.startswith("labelme") else "out.file")
    export_masks(data, out, kind)
    return out


@pytest.mark.parametrize("kind", WRITERS)
def test_masks_come_back_the_same_to_the_pixel(kind: str, data: Path) -> None:
    out = data.parent / "marks" / "out"
    said = export_masks(data, out, kind)
    assert (said["pictures"], said["ignoring"], said["cut"], said["left_out"]) == (2 + len(MADE), 2, 0, 0)
    back = import_masks(out, data, kind.partition("-")[0], data.parent / "back")
    assert (back["masks"], back["empty"], back["ignoring"], back["without"]) == (len(MADE), 2, 2, 0)
    found = {path.name: _pixels(path) for path in (data.parent / "back").rglob("*.png")}
    assert found.keys() == {f"{name}_mask.png" for name in MADE}
    for name, levels in MADE.items():
        np.testing.assert_array_equal(found[f"{name}_mask.png"], levels, err_msg=name)
        assert (data.parent / f"back/scratch ü/{name}_mask.png").is_file()
    assert sorted(path.name for path in data.parent.rglob("*.new")) == []


@pytest.mark.parametrize("kind", ["coco", "coco-rle", "coco-polygon"])
def test_pycocotools_reads_the_same_masks(kind: str, data: Path) -> None:
    file = json.loads(_exported(data, kind).read_text())
    labels = {each["id"]: each["name"] for each in file["categories"]}
    assert set(labels.values()) == {"scratch ü", "ignore"}
    for image in file["images"]:
        size = (image["height"], image["width"])
        levels = np.zeros(size, np.uint8)
        for mark in file["annotations"]:
            if mark["image_id"] != image["id"]:
                continue
            shape = mark["segmentation"]
            if not isinstance(shape, dict) or isinstance(shape["counts"], list):
                shape = oracle.frPyObjects(shape, *size)
            mask = oracle.decode(oracle.merge(shape) if isinstance(shape, list) else shape) > 0
            assert mask.sum() == mark["area"]
            assert oracle.toBbox(oracle.encode(np.asfortranarray(mask, np.uint8))).tolist() == mark["bbox"]
            levels[mask] = 128 if labels[mark["category_id"]] == "ignore" else 255
        stem = Path(image["file_name"]).stem
        np.testing.assert_array_equal(levels, MADE.get(stem, np.zeros(size, np.uint8)), err_msg=stem)


masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_any_mask_has_a_polygon_and_runs_that_say_it(mask: np.ndarray) -> None:
    size = mask.shape
    whole = Shape("a", mask)
    polygons = [np.array(polygon, float) for polygon in outline(whole)]
    for polygon in polygons:  # corners only, along the grid
        step = np.roll(polygon, -1, axis=0) - polygon
        assert ((step == 0).sum(axis=1) == 1).all()
    found = np.zeros(size, np.uint8)
    for polygon in polygons:
        found += on_picture(filled("a", polygon, size), size)
    np.testing.assert_array_equal(found, mask)  # and no pixel in two
    counts = runs.lengths_by_columns(mask, 0, 0, size)
    text = oracle.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert runs.packed(counts) == text
    assert runs.unpacked(text, "here") == counts
    left, columns = runs.unrolled_columns(counts, size, "here")
    np.testing.assert_array_equal(on_picture(Shape("a", columns, left), size), mask)
    np.testing.assert_array_equal(runs.unrolled(runs.lengths(mask), size, "here"), mask)
    around = np.pad(mask, ((2, 1), (1, 3)))
    placed = runs.lengths_by_columns(mask, 1, 2, around.shape)
    assert runs.packed(placed) == oracle.encode(np.asfortranarray(around, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(runs.unbrushed(bytes(runs.brushed(mask)), size, "here"), mask)


def test_long_runs_are_those_of_pycocotools_too() -> None:
    mask = np.zeros((900, 1100), bool)
    mask[100:700, 3] = mask[500, 700:] = mask[-1, -1] = True
    text = oracle.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert runs.packed(runs.lengths_by_columns(mask, 0, 0, mask.shape)) == text
    np.testing.assert_array_equal(runs.unbrushed(bytes(runs.brushed(mask)), mask.shape, "here"), mask)


def test_a_polygon_holds_the_pixels_whose_centres_it_holds() -> None:
    random = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(WIDE) + 0.5, np.arange(HIGH) + 0.5), -1).reshape(-1, 2)
    for _ in range(40):  # convex or not, never through itself, some of it outside
        turns = np.sort(random.uniform(0, 2 * np.pi, 12))
        radius = random.uniform(2, 22, 12)
        corners = np.stack([14 + radius * np.cos(turns), 11 + radius * np.sin(turns)], 1)
        inside = Outline(np.vstack([corners, corners[:1]])).contains_points(centres).reshape(HIGH, WIDE)
        np.testing.assert_array_equal(on_picture(filled("a", corners, (HIGH, WIDE)), (HIGH, WIDE)), inside)


def test_a_polygon_far_outside_marks_nothing() -> None:
    corners = np.array([[-90.0, -90], [-80, -90], [-80, -80]])
    for moved in ((0, 0), (500, 0), (0, 500)):
        assert not on_picture(filled("a", corners + moved, (HIGH, WIDE)), (HIGH, WIDE)).any()


def test_a_brush_of_other_lengths_and_with_single_values_is_read() -> None:
    # 1 x 3 pixels: eight values alone (0, 0, 0, 0, 0, 0, 0, 200), then a run of four with the 255.
    bits = f"{12:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (2, 3, 5, 9))
    bits += "0" + "01" + f"{7:03b}" + "00000000" * 7 + f"{200:08b}"
    bits += "1" + "10" + f"{3:05b}" + "11111111"
    bits += "0" * (-len(bits) % 8)
    found = runs.unbrushed(int(bits, 2).to_bytes(len(bits) // 8, "big"), (1, 3), "here")
    assert found.tolist() == [[False, True, True]]


def test_only_what_is_pure_or_has_a_sidecar_holds_ignored_pixels(tmp_path: Path) -> None:
    def levels(values: list[int], dtype: type = np.uint8) -> tuple[list[int], bool]:
        Image.fromarray(np.array([values], dtype)).save(tmp_path / "mask.png")
        found, cut = read_levels(tmp_path / "mask.png", (1, len(values)), "a")
        return found[0].tolist(), cut

    assert levels([0, 128, 255]) == ([0, 128, 255], False)
    assert levels([0, 128, 255], np.uint16) == ([0, 128, 255], False)  # 8 bits, written as 16
    assert levels([0, 127, 128, 255]) == ([0, 0, 255, 255], True)
    assert levels([0, 3, 15]) == ([0, 255, 255], False)
    assert levels([0, 128, 65535], np.uint16) == ([0, 0, 255], True)
    (tmp_path / "mask.png.json").write_text('{"ignore": 128}')
    assert levels([0, 127, 128, 129]) == ([0, 0, 128, 255], True)
    for said, why in (("{", "cannot be read as JSON"), ('{"ignore": 7}', "says something else")):
        (tmp_path / "mask.png.json").write_text(said)
        with pytest.raises(DataError, match=rf"mask.png.json: {why}.*or remove it"):
            levels([0, 127, 128, 129])


def test_shapes_are_patches_and_what_overlaps_is_ignored() -> None:
    levels = np.array([[255, 0, 255], [0, 255, 0], [0, 0, 0], [255, 128, 128]], np.uint8)
    shapes = shapes_of(levels, "hole")
    assert [(each.label, each.left, each.top, int(each.mask.sum())) for each in shapes] == [
        ("hole", 0, 0, 3),
        ("hole", 0, 3, 1),
        ("ignore", 1, 3, 2),
    ]
    over = [Shape("ignore", np.ones((1, 2), bool), -1, 0), Shape("hole", np.ones((2, 9), bool), 0, -1)]
    assert levels_of(over, (2, 3)).tolist() == [[128, 255, 255], [0, 0, 0]]


# ---- what the tools themselves write


def test_labelme_s_own_shapes_are_read(data: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8)).save(buffer, "PNG")
    inner = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        {"label": "a", "shape_type": "mask", "points": [[3.0, 4.0], [4.0, 5.0]], "mask": inner},
        {"label": "a", "shape_type": "rectangle", "points": [[12, 9], [10, 7]]},
        {"label": "ignore", "shape_type": "circle", "points": [[20.5, 12.5], [22, 12.5]]},
    ]
    _labelme(data.parent / "x/hole.json", imagePath="..\\data\\test\\scratch ü\\hole.png", shapes=shapes)
    import_masks(data.parent / "x/hole.json", data, "labelme", data.parent / "back")
    expected = np.zeros((HIGH, WIDE), np.uint8)
    expected[4, 3] = expected[5, 3:5] = expected[7:9, 10:12] = 255
    expected[11:14, 19:22] = 128  # corners are 1.41 away
    np.testing.assert_array_equal(_pixels(data.parent / "back/scratch ü/hole_mask.png"), expected)


def _labelme(path: Path, **changed: Any) -> Path:
    content = {"version": "5.5.0", "imagePath": "hole.png", "imageHeight": HIGH, "imageWidth": WIDE, "shapes": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changed))
    return path


def test_cvat_s_own_shapes_are_read(data: Path) -> None:
    shapes = """<mask label="a" left="3" top="4" width="3" height="2" rle="0, 2, 2, 2" z_order="0"/>
    <box label="a" xtl="10.00" ytl="7.00" xbr="12.00" ybr="9.00"/><tag label="seen"/>
    <ellipse label="a" cx="25.5" cy="20.5" rx="2.5" ry="0.9"/>
    <polygon label="ignore" points="20.00,1.00;22.00,1.00;22.00,3.00;20.00,3.00"/>"""
    path = data.parent / "annotations.xml"
    image = f'<image id="0" name="hole.png" width="{WIDE}" height="{HIGH}">{shapes}</image>'
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?><annotations><meta/>{image}</annotations>')
    import_masks(path, data, "cvat", data.parent / "back")
    expected = np.zeros((HIGH, WIDE), np.uint8)
    expected[4, 3:5] = expected[5, 4:6] = expected[7:9, 10:12] = expected[20, 23:28] = 255
    expected[1:3, 20:22] = 128
    np.testing.assert_array_equal(_pixels(data.parent / "back/scratch ü/hole_mask.png"), expected)


def test_label_studio_s_own_shapes_are_read(data: Path) -> None:
    common = {"original_width": WIDE, "original_height": HIGH, "image_rotation": 0}
    x, y = 100 / WIDE, 100 / HIGH
    box = {"x": 10 * x, "y": 7 * y, "width": 2 * x, "height": 2 * y, "rotation": 0, "rectanglelabels": ["a"]}
    corners = [[20 * x, y], [22 * x, y], [22 * x, 3 * y], [20 * x, 3 * y]]
    result = [
        common | {"type": "rectanglelabels", "value": box},
        common | {"type": "polygonlabels", "value": {"points": corners, "polygonlabels": ["ignore"]}},
        {"type": "choices", "value": {"choices": ["bad"]}},
    ]
    annotations = [{"result": result}, {"result": [], "was_cancelled": True}]
    tasks = [{"data": {"image": "/data/upload/3/0a1b2c3d-hole.png"}, "annotations": annotations}]
    tasks.append({"data": {"image": "/data/upload/3/0a1b2c3e-full.png"}, "annotations": []})
    (data.parent / "tasks.json").write_text(json.dumps(tasks))
    said = import_masks(data.parent / "tasks.json", data, "labelstudio", data.parent / "back")
    assert (said["masks"], said["without"]) == (1, len(MADE) - 1)
    expected = np.zeros((HIGH, WIDE), np.uint8)
    expected[7:9, 10:12] = 255
    expected[1:3, 20:22] = 128
    np.testing.assert_array_equal(_pixels(data.parent / "back/scratch ü/hole_mask.png"), expected)


def test_the_verb_goes_there_and_back_and_says_what_is_missing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, back = str(data.parent / "a.xml"), str(data.parent / "back")
    assert main(["masks", "export", str(data), "--format", "cvat", "--out", file, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        **{"out": file, "format": "cvat", "pictures": 2 + len(MADE), "shapes": said["shapes"]},
        **{"ignoring": 2, "cut": 0, "left_out": 0},
    }
    assert Path(file).read_text().count("<mask ") == said["shapes"]
    assert main(["masks", "import", str(data), "--format", "cvat", "--file", file, "--out", back]) == 0
    assert f"masks     {len(MADE)}\n" in capsys.readouterr().out
    np.testing.assert_array_equal(_pixels(Path(back, "scratch ü/band_mask.png")), MADE["band"])
    for words, missing in ((["export"], "--out"), (["import"], "--file")):
        with pytest.raises(SystemExit) as stopped:
            main(["masks", *words, str(data), "--format", "cvat"])
        assert stopped.value.code == 2
        assert f"the following arguments are required: {missing}" in capsys.readouterr().err
    for words, code, message in (
        (["import", str(data), "--format", "cvat-polygon", "--file", file], 2, "no format 'cvat-polygon'; there are: "),
        (["export", str(data), "--format", "yolo", "--out", "x"], 2, "no format 'yolo'; there are: coco, "),
        (["export", str(data), "--format", "coco", "--out", "x", "--file", "y"], 2, "unknown: --file y"),
        (["import", file, "--format", "cvat", "--file", file], 3, "must be the folder that holds train/ and test/"),
    ):
        assert main(["masks", *words]) == code
        assert message in capsys.readouterr().err


# ---- what is broken


def _coco(**changed: Any) -> Callable[[Any], Any]:
    return lambda content: content["annotations"][1].update(changed)  # of the picture band.png


def _result(path: str, value: Any) -> Callable[[Any], Any]:
    def do(tasks: Any) -> None:
        here = next(task for task in tasks if task["annotations"][0]["result"])["annotations"][0]["result"][0]
        *way, last = path.split(".")
        for step in way:
            here = here[step]
        here[last] = value

    return do


JSON_TROUBLES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("coco", lambda c: [], r"must be an object with 'categories', is a list"),
    ("coco", lambda c: c.pop("images") and None, r"has no 'images'; export it again"),
    ("coco", lambda c: c["images"].append(c["images"][0]), r"images\[13\]: the id 1 stands in .*images\[0\] already"),
    ("coco", lambda c: c["images"][1].update(id=99), r"annotations\[0\].image_id: there is no image 2"),
    ("coco", lambda c: c["images"][3].update(file_name="moon.png"), r"images\[3\]: there is no picture 'moon.png' in"),
    ("coco", lambda c: c["images"][3].update(file_name="000.png"), r"'000.png' may be test/good/000.png, train/good"),
    ("coco", lambda c: c["images"][3].update(height=9), r"is of a picture of 31 x 9, test/scratch ü/\S+ is 31 x 24"),
    ("coco", lambda c: c["images"][3].update(height=10**12), r"images\[3\]: is of a picture of 31 x 1000000000000"),
    ("coco", _coco(image_id=77), r"annotations\[1\].image_id: there is no image 77"),
    ("coco", _coco(image_id=1), r"images\[0\]: marks a defect on test/good/000.png, which is called good; move"),
    ("coco", _coco(category_id=9), r"annotations\[1\].category_id: there is no category 9"),
    ("coco", _coco(category_id="1"), r"category_id: must be a whole number of at least 0, is '1'"),
    ("coco", _coco(segmentation=[]), r"segmentation: is empty: a scratch ü without its outline"),
    ("coco", _coco(segmentation=[[1, 2, 3, 4]]), r"segmentation\[0\]: is no polygon; it takes x and y of at least"),
    ("coco", _coco(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), r"segmentation\[0\]\[5\]: is no number of pixels"),
    ("coco", _coco(segmentation=[[1, 2, 3, 4, 5, 1e300]]), r"segmentation\[0\]\[5\]: is no number of pixels"),
    ("coco", _coco(segmentation=7), r"segmentation: must be an object with 'size', is a number"),
    ("coco", _coco(segmentation={"size": [3, 3], "counts": "9"}), r"size: is \[3, 3\], the picture's is \[24, 31\]"),
    ("coco", _coco(segmentation={"size": [24, 31], "counts": "~"}), r"counts: '~' stands where COCO's run lengths"),
    ("coco", _coco(segmentation={"size": [24, 31], "counts": "o"}), r"counts: the run lengths end in the middle"),
    ("coco", _coco(segmentation={"size": [24, 31], "counts": [5]}), r"counts: the runs are 5 pixels long, the mask"),
    ("coco", _coco(segmentation={"size": [24, 31], "counts": [745, -1]}), r"counts\[1\]: must be a whole number"),
    ("labelstudio", lambda c: {}, r"must be a list, is an object"),
    ("labelstudio", lambda c: c[5]["annotations"].append(c[5]["annotations"][0]), r"\[5\]: has 2 annotations; keep"),
    ("labelstudio", _result("type", "keypointlabels"), r"type: 'keypointlabels' is no area with a label"),
    ("labelstudio", _result("type", "brush"), r"type: 'brush' is no area with a label"),
    ("labelstudio", _result("image_rotation", 90), r"image_rotation: the picture was turned in the tool"),
    ("labelstudio", _result("original_width", None), r"\[1\].*\[0\]: has no original_width"),
    ("labelstudio", _result("value.brushlabels", ["a", "b"]), r"brushlabels: 2 labels where one is meant"),
    ("labelstudio", _result("value.rle", [0, 0, 11]), r"rle: the brush is cut off"),
    ("labelstudio", _result("value.rle", [0, 0, 11, 256]), r"rle: holds a number above 255"),
    ("labelstudio", _result("value.rle", [255] * 16), r"rle: the brush holds 4294967295 values of 32 bits, a picture"),
]


@pytest.mark.parametrize(("kind", "do", "message"), JSON_TROUBLES, ids=range(len(JSON_TROUBLES)))
def test_broken_json_is_an_error_with_its_place_and_writes_nothing(
    kind: str, do: Callable[[Any], Any], message: str, data: Path
) -> None:
    path = _exported(data, kind)
    content = json.loads(path.read_text())
    changed = do(content)
    path.write_text(json.dumps(content if changed is None else changed))
    before = sorted(data.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as raised:
        import_masks(path, data, kind, data.parent / "back")
    assert str(raised.value).startswith(str(path))
    assert sorted(data.parent.rglob("*")) == before


LABELME_TROUBLES: list[tuple[dict[str, Any], str]] = [
    ({"shapes": {}}, r"shapes: must be a list"),
    (
        {"shapes": [{"label": "a", "shape_type": "line", "points": [[1, 2], [3, 4]]}]},
        r"a line of a marks no area; draw",
    ),
    ({"shapes": [{"label": "a", "shape_type": "polygon", "points": [[1, 2]]}]}, r"shapes\[0\].points: is no polygon"),
    ({"shapes": [{"label": "a", "shape_type": "rectangle", "points": [[1, 2]]}]}, r"points: a rectangle takes two"),
    (
        {"shapes": [{"label": "a", "shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "?"}]},
        r"mask: holds no PNG",
    ),
    ({"shapes": [{"shape_type": "mask", "points": []}]}, r"shapes\[0\]: has no 'label'"),
    ({"imageHeight": 0}, r"imageHeight: must be a whole number of at least 1"),
    ({"imagePath": None}, r"imagePath: must be a text, is empty"),
    ({"imageHeight": 10}, r"is of a picture of 31 x 10"),
]


@pytest.mark.parametrize(("changed", "message"), LABELME_TROUBLES, ids=range(len(LABELME_TROUBLES)))
def test_a_broken_file_of_labelme_is_named(changed: dict[str, Any], message: str, data: Path) -> None:
    path = _labelme(data.parent / "x/hole.json", **changed)
    with pytest.raises(DataError, match=message) as raised:
        import_masks(path, data, "labelme", data.parent / "back")
    assert str(raised.value).startswith(str(path))
    assert not (data.parent / "back").exists()


CVAT_TROUBLES = [
    ('<mask label="a" left="0" top="0" width="3" height="2" rle="0, 2"/>', r"mask 0.rle: the runs are 2 pixels long"),
    ('<mask label="a" left="0" top="0" width="3" height="2" rle="0, x"/>', r"rle\[1\]: must be a whole number"),
    ('<mask label="a" left="30" top="0" width="3" height="2" rle="6"/>', r"box of the mask reaches out of the picture"),
    ('<mask left="0" top="0" width="3" height="2" rle="6"/>', r"image hole.png, mask 0: has no label"),
    ('<polygon label="a" points="1,2;3,4"/>', r"polygon 0.points: is no polygon"),
    ('<polygon label="a" points="1,2;3,4;5"/>', r"polygon 0.points: is no polygon"),
    ('<polyline label="a" points="1,2;3,4"/>', r"a polyline of a marks no area; draw"),
    ('<box label="a" xtl="1" ytl="1" xbr="5" ybr="5" rotation="30"/>', r"box 0: a turned box is not read; draw it"),
    ("<mask", r"is not XML"),
]


@pytest.mark.parametrize(("inner", "message"), CVAT_TROUBLES, ids=range(len(CVAT_TROUBLES)))
def test_a_broken_file_of_cvat_is_named(inner: str, message: str, data: Path) -> None:
    path = data.parent / "annotations.xml"
    path.write_text(f'<annotations><image name="hole.png" width="{WIDE}" height="{HIGH}">{inner}</image></annotations>')
    with pytest.raises(DataError, match=message) as raised:
        import_masks(path, data, "cvat", data.parent / "back")
    assert str(raised.value).startswith(str(path))
    assert not (data.parent / "back").exists()


def test_xml_with_entities_of_a_video_or_of_something_else_is_refused(data: Path) -> None:
    path = data.parent / "annotations.xml"
    for text, message in (
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "brings a DTD"),
        ("<annotations><track/></annotations>", "is of a video"),
        ("<html/>", "begins with <html>, not <annotations>"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            import_masks(path, data, "cvat", data.parent / "back")


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_absent_cut_or_a_zip_is_named(kind: str, data: Path) -> None:
    path = data.parent / "a.json"
    with pytest.raises(DataError, match=r"a\.json: there is no such file"):
        import_masks(path, data, kind, data.parent / "back")
    whole = _exported(data, kind)
    content = (whole if whole.is_file() else next(whole.rglob("*.json"))).read_bytes()
    for broken, message in ((content[:-9], "is not (JSON|XML)"), (b"PK\3\4\xff\xfe", "it is a zip: unpack it first")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=message):
            import_masks(path, data, kind, data.parent / "back")
    assert not (data.parent / "back").exists()


def test_what_is_there_is_never_written_over(data: Path) -> None:
    path = _exported(data, "coco")
    before = path.read_bytes()
    for again in (
        lambda: export_masks(data, path, "coco"),
        lambda: import_masks(path, data, "coco"),  # into ground_truth
    ):
        with pytest.raises(UsageError, match="is there already; move it away, or name another with --out"):
            again()
    assert path.read_bytes() == before
    shutil.rmtree(data / "ground_truth")
    assert import_masks(path, data, "coco")["out"] == str(data / "ground_truth")
    np.testing.assert_array_equal(_pixels(data / "ground_truth/scratch ü/band_mask.png"), MADE["band"])


def test_an_export_that_fails_leaves_nothing(data: Path) -> None:
    (data / "ground_truth/scratch ü/sieve_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for kind in WRITERS:
        with pytest.raises(DataError, match=r"sieve_mask\.png"):
            export_masks(data, data.parent / "out", kind)
        assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_pictures_without_a_mask_are_left_out_and_counted(data: Path) -> None:
    (data / "ground_truth/scratch ü/hole_mask.png").unlink()
    said = export_masks(data, data.parent / "out", "coco")
    assert (said["pictures"], said["left_out"]) == (1 + len(MADE), 1)
    assert import_masks(data.parent / "out", data, "coco", data.parent / "back")["without"] == 1
    assert not (data.parent / "back/scratch ü/hole_mask.png").exists()


@pytest.mark.data
@pytest.mark.parametrize(
    "category", ["mvtec/bottle", "glassfiber/glassfiber", "magnetic_tile/magnetic_tile", "aitex/fabric_02"]
)
def test_real_masks_come_back_the_same_to_the_pixel(category: str, real: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    names = sorted(path.relative_to(real(category)) for path in real(category).glob("ground_truth/*/*.png"))
    names = names[:: max(1, len(names) // 6)]
    assert len(names) >= 6
    expected = {}
    for name in names:
        expected[name.relative_to("ground_truth")] = _pixels(real(category) / name)
        picture = Path("test", name.parent.name, name.stem.removesuffix("_mask"))
        source = next((real(category) / picture.parent).glob(f"{picture.name}.*"))
        for each in (real(category) / name, source):
            to = root / each.relative_to(real(category))
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(each, to)
    for kind in WRITERS:
        assert export_masks(root, tmp_path / kind, kind)["pictures"] == len(names)
        import_masks(tmp_path / kind, root, kind.partition("-")[0], tmp_path / f"{kind}-back")
        back = tmp_path / f"{kind}-back"
        assert {path.relative_to(back) for path in back.rglob("*.png")} == expected.keys()
        for name, pixels in expected.items():
            assert set(np.unique(pixels)) <= {0, 255}
            np.testing.assert_array_equal(_pixels(back / name), pixels, err_msg=str(name))


ODD = (None, True, -1, 10**30, 1e308, "", "x", [], {}, [[]], {"a": 1}, "\ud800", 0.5)


@pytest.mark.parametrize("kind", READERS)
def test_whatever_is_changed_in_a_file_is_a_named_error_or_a_whole_import(kind: str, tmp_path: Path) -> None:
    data = _data(tmp_path / "data", {name: MADE[name] for name in ("pixel", "corners", "band")})
    out = _exported(data, kind)
    path = out if out.is_file() else sorted(out.rglob("*.json"))[-1]
    whole = path.read_text()
    random = np.random.default_rng(0)
    refused = []
    for _ in range(60):
        at = int(random.integers(len(whole)))
        broken = whole[:at] + chr(int(random.integers(32, 127))) + whole[at + 1 :]
        if kind != "cvat":
            content = json.loads(whole)
            _odd(content, random)
            broken = json.dumps(content)
        path.write_text(broken)
        try:
            import_masks(out, data, kind, tmp_path / "back")
            shutil.rmtree(tmp_path / "back")
        except DataError as error:
            refused.append(str(error))
        assert not [each for each in tmp_path.iterdir() if each not in (data, out)]
    assert len(refused) > 15
    assert [error for error in refused if str(out) not in error] == []


def _odd(content: Any, random: np.random.Generator) -> None:
    """Puts something odd at a random place."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[int(random.integers(len(keys)))]
    if isinstance(content[key], dict | list) and content[key] and random.random() < 0.8:
        _odd(content[key], random)
    else:
        content[key] = ODD[int(random.integers(len(ODD)))]
