"""MVTec LOCO AD on a small made-up tree: masks of several files, and the regions of them with their saturation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.audit import audit
from flawmap.images.datasets import DataSet, dataset
from flawmap.images.decode import each_mask
from flawmap.images.folder import check, find, strays
from flawmap.images.loco import regions, samples
from flawmap.images.masks.levels import read_mask
from flawmap.types import Sample

# Three defects, as the published files say it: pixels; more pixels than the region has; a share of its area.
CONFIG = [
    {
        "defect_name": "1_additional_pushpin",
        "pixel_value": 255,
        "saturation_threshold": 5,
        "relative_saturation": False,
    },
    {"defect_name": "missing_pushpin", "pixel_value": 254, "saturation_threshold": 900, "relative_saturation": False},
    {"defect_name": "broken", "pixel_value": 234, "saturation_threshold": 0.5, "relative_saturation": True},
]
LOGICAL = "ground_truth/logical_anomalies"
STRUCTURAL = "ground_truth/structural_anomalies"


def region(value: int, rows: slice, columns: slice) -> np.ndarray:
    """(8, 12): a rectangle of `value` on black."""
    mask = np.zeros((8, 12), np.uint8)
    mask[rows, columns] = value
    return mask


FIRST, SECOND = region(255, slice(0, 4), slice(0, 3)), region(254, slice(3, 5), slice(2, 6))  # share a pixel
BROKEN = region(234, slice(6, 8), slice(4, 11))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(root: Path) -> Path:
    """A product of pictures of 12 x 8 pixels; the first logical anomaly has two regions."""
    names = ["train/good/000.png", "train/good/001.png", "validation/good/000.png", "test/good/000.png"]
    names += ["test/logical_anomalies/000.png", "test/logical_anomalies/001.png", "test/structural_anomalies/000.png"]
    for seed, name in enumerate(names):
        save(root / name, np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8))
    save(root / LOGICAL / "000/000.png", FIRST)
    save(root / LOGICAL / "000/001.png", SECOND)
    save(root / LOGICAL / "001/000.png", SECOND)
    save(root / STRUCTURAL / "000/000.png", BROKEN)
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    return root


def named(found: list[Sample]) -> dict[str, Sample]:
    return {sample.name: sample for sample in found}


def test_a_product_is_read_with_a_tuple_of_files_as_the_mask_of_a_picture(tmp_path):
    root = write(tmp_path / "pushpins")
    found = samples(root)
    assert [(sample.name, sample.split, sample.kind, sample.mask) for sample in found] == [
        ("test/good/000.png", "test", "good", None),
        (
            "test/logical_anomalies/000.png",
            "test",
            "logical_anomalies",
            (root / LOGICAL / "000/000.png", root / LOGICAL / "000/001.png"),
        ),
        ("test/logical_anomalies/001.png", "test", "logical_anomalies", (root / LOGICAL / "001/000.png",)),
        ("test/structural_anomalies/000.png", "test", "structural_anomalies", (root / STRUCTURAL / "000/000.png",)),
        ("train/good/000.png", "train", "good", None),
        ("train/good/001.png", "train", "good", None),
        ("validation/good/000.png", "train", "good", None),
    ]
    assert all(sample.part == sample.name and sample.source == root / sample.name for sample in found)


def test_the_mask_of_a_picture_is_the_union_of_its_files_whatever_their_values(tmp_path):
    found = named(samples(write(tmp_path / "pushpins")))
    both = found["test/logical_anomalies/000.png"].mask
    assert both is not None
    mask = read_mask(both, (8, 12)).defect
    np.testing.assert_array_equal(mask, (FIRST > 0) | (SECOND > 0))
    assert (mask.dtype, mask.sum()) == (bool, 12 + 8 - 1)
    broken = found["test/structural_anomalies/000.png"].mask
    assert broken is not None
    np.testing.assert_array_equal(read_mask(broken, (8, 12)).defect, BROKEN == 234)


def test_regions_are_the_files_and_their_saturation_is_in_pixels_and_at_most_the_area(tmp_path):
    found = named(samples(write(tmp_path / "pushpins")))
    first, second = regions(found["test/logical_anomalies/000.png"])
    np.testing.assert_array_equal(first[0], FIRST > 0)
    np.testing.assert_array_equal(second[0], SECOND > 0)
    assert (first[1], second[1]) == (5.0, 8.0)  # of 12 and of 8 pixels; 900 is more than there are
    [(mask, saturation)] = regions(found["test/structural_anomalies/000.png"])
    assert (mask.dtype, mask.sum(), saturation) == (bool, 14, 7.0)  # half of 14


def test_good_pictures_and_those_of_other_data_sets_have_no_regions(tmp_path):
    root = write(tmp_path / "pushpins")
    found = named(samples(root))
    bad = found["test/structural_anomalies/000.png"]
    assert regions(found["test/good/000.png"]) == []
    assert regions(replace(bad, mask=root / STRUCTURAL / "000/000.png")) == []
    assert regions(replace(bad, mask=(BROKEN, FIRST))) == []
    own = tmp_path / "own/a.png", tmp_path / "own/b.png"
    for path in own:
        save(path, BROKEN)
    assert regions(replace(bad, mask=own)) == []
    assert regions(replace(bad, mask=(Path("a.png"),))) == []
    assert regions(replace(bad, mask=())) == []


def test_a_product_is_known_by_its_layout_from_a_path_of_any_form(tmp_path, monkeypatch):
    root = write(tmp_path / "mvtec_loco_anomaly_detection/pushpins")
    write(root.parent / "juice_bottle")
    assert dataset(root.parent) == DataSet(root.parent, "loco", ("juice_bottle", "pushpins"))
    assert dataset(root.parent, "loco").samples("pushpins")[1].mask == samples(root)[1].mask
    with pytest.raises(
        DataError, match="no data set; looked for folders with train/good; found juice_bottle, pushpins"
    ):
        dataset(root.parent, "mvtec")
    with pytest.raises(DataError, match="pushpins: is one category, not a data set; give the folder above"):
        dataset(root)
    monkeypatch.chdir(root)
    assert [len(regions(sample)) for sample in find(".")] == [0, 2, 1, 1, 0, 0, 0]


def test_all_three_of_mvtec_under_one_root_are_told_apart_by_kind(tmp_path):
    write(tmp_path / "pushpins")
    save(tmp_path / "bottle/train/good/000.png", FIRST)
    for folder in ("train/good", "test_public/good"):
        save(tmp_path / "can" / folder / "000_regular.png", FIRST)
    for kind, name in (("mvtec", "bottle"), ("mvtec2", "can"), ("loco", "pushpins")):
        assert dataset(tmp_path, kind).categories == (name,)
    with pytest.raises(DataError, match=r"holds mvtec \(bottle\) and mvtec2 \(can\) and loco \(pushpins\); give kind"):
        dataset(tmp_path)


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        DataError,
        match=r"folders with test/logical_anomalies or test/structural_anomalies, and validation or "
        r"defects_config\.json; found nothing\. Expected is\n\nMVTec LOCO AD: 5 categories",
    ):
        dataset(tmp_path, "loco")


def test_kinds_of_these_names_in_mvtecs_layout_are_mvtecs(tmp_path):
    root = tmp_path / "own"
    for name in ("train/good/0.png", "test/logical_anomalies/0.png", "ground_truth/logical_anomalies/0_mask.png"):
        save(root / name, FIRST)
    assert dataset(tmp_path).kind == "mvtec"
    assert [sample.mask for sample in find(root)] == [root / "ground_truth/logical_anomalies/0_mask.png", None]


def test_the_audit_and_the_check_count_every_file_of_a_mask(tmp_path):
    root = write(tmp_path / "pushpins")
    found = find(root)
    assert check(found) == (found, [])
    assert strays(root, found) == []
    assert [(g.split, g.kind, g.pictures, g.masks) for g in audit(found).groups] == [
        ("train", "good", 3, 0),
        ("test", "good", 1, 0),
        ("test", "logical_anomalies", 2, 2),
        ("test", "structural_anomalies", 1, 1),
    ]
    assert not audit(found).spoils
    save(root / LOGICAL / "000/001.png", np.arange(96, dtype=np.uint8).reshape(8, 12))
    assert [(f.code, f.names) for f in audit(found).findings if f.code.startswith("mask")] == [
        ("mask-grey", ("test/logical_anomalies/000.png: 96 levels",))
    ]
    save(root / LOGICAL / "000/001.png", SECOND[:, :10])
    [finding] = [f for f in audit(found).findings if f.code == "mask-misfit"]
    assert "000/001.png: the mask is 10 x 8 pixels, test/logical_anomalies/000.png is 12 x 8" in finding.names[0]
    with pytest.raises(DataError, match=r"1 of 7 pictures cannot be used.*\n.*001\.png: the mask is 10 x 8 pixels"):
        check(found)


def test_a_mask_may_be_several_arrays_too_but_not_none_at_all():
    halves = (FIRST > 0, SECOND)
    np.testing.assert_array_equal(read_mask(halves, (8, 12)).defect, (FIRST > 0) | (SECOND > 0))
    assert [len(each_mask(given)) for given in (None, (), FIRST, halves)] == [0, 0, 1, 2]
    with pytest.raises(DataError, match=r"a\.png: its mask is of no files; give None where there is no mask"):
        read_mask((), (8, 12), of="a.png")


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("train/good", r"train/good: there is no such folder; the data set has train/good/000\.png; copy it again"),
        ("validation/good", r"validation/good: there is no such folder"),
        ("test/good", r"test/good: there is no such folder"),
        ("test/structural_anomalies", r"test/structural_anomalies: there is no such folder"),
        (STRUCTURAL, r"structural_anomalies: there is no such folder; the data set has ground_truth/structural_anomal"),
        (f"{LOGICAL}/001", r"test/logical_anomalies: 001 has no mask in ground_truth/logical_anomalies \(of 1\); copy"),
        (f"{LOGICAL}/001/000.png", r"001: no pictures; the data set has ground_truth/logical_anomalies/000/000\.png"),
        ("test/logical_anomalies/001.png", r"logical_anomalies/001: the picture of this mask is missing; copy the"),
        ("defects_config.json", r"pushpins: there is no defects_config\.json; it is part of MVTec LOCO AD, copy it"),
    ],
)
def test_a_file_or_folder_that_is_missing_is_an_error_that_names_it(tmp_path, gone, reason):
    root = write(tmp_path / "pushpins")
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=reason):
        find(root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", r"defects_config\.json: cannot be read as JSON \(Expecting value"),
        ("{}", r"defects_config\.json: is not a list of defects"),
        ("[]", r"is not a list of defects"),
        ('[{"pixel_value": 255}]', r"defect 1: has not all of pixel_value, saturation_threshold, relative_saturation"),
        (json.dumps([*CONFIG, CONFIG[0]]), r"defect 4: the value 255 is given twice; copy the data set again"),
        (json.dumps([CONFIG[0] | {"pixel_value": 100}]), r"defect 1: pixel_value is 100; .* integers from 129 to 255"),
        (json.dumps([CONFIG[0] | {"pixel_value": True}]), r"pixel_value is True"),
        (json.dumps([CONFIG[0] | {"saturation_threshold": 0}]), r"saturation_threshold is 0 and relative.* False"),
        (json.dumps([CONFIG[0] | {"saturation_threshold": float("nan")}]), r"saturation_threshold is nan"),
        (json.dumps([CONFIG[2] | {"saturation_threshold": 1.5}]), r"saturation_threshold is 1\.5 and relative.* True"),
        (json.dumps([CONFIG[0] | {"relative_saturation": 1}]), r"relative_saturation 1; the data set has pixels"),
    ],
)
def test_a_config_that_cannot_be_meant_is_an_error_before_the_work(tmp_path, text, reason):
    root = write(tmp_path / "pushpins")
    (root / "defects_config.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        find(root)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (FIRST * 0, r"000/001\.png: holds no defect; a file is one region, of one value"),
        (np.maximum(FIRST, SECOND), r"000/001\.png: holds the values 254, 255; a file is one region, of one value"),
        (region(240, slice(0, 2), slice(0, 2)), r"says nothing of the value 240; it knows 234, 254, 255"),
        (SECOND[:, :10], r"000/001\.png: has another size than 000\.png beside it"),
    ],
)
def test_a_mask_that_is_not_one_region_of_a_known_defect_is_an_error(tmp_path, pixels, reason):
    root = write(tmp_path / "pushpins")
    save(root / LOGICAL / "000/001.png", pixels)
    with pytest.raises(DataError, match=reason):
        regions(find(root)[1])
