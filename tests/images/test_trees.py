"""Every data set as it is published, as its user meets it: the root, a category, and what lies on the way to it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap import cli
from flawmap.errors import DataError
from flawmap.images.audit import audit
from flawmap.images.datasets import LAYOUTS, dataset
from flawmap.images.folder import find, strays
from flawmap.images.masks.levels import read_mask
from flawmap.types import Sample

SIDE = 16
DEFECT = SIDE * SIDE // 16  # pixels


def image(root: Path, *names: str) -> None:
    """Noise, another one for every name."""
    for name in names:
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(60, 200, (SIDE, SIDE, 3), np.uint8)
        _save(root / name, pixels)


def mask(root: Path, *names: str, value: int = 255) -> None:
    for name in names:
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[: SIDE // 4, : SIDE // 4] = value
        _save(root / name, pixels)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mvtec(root: Path) -> None:
    image(root, *(f"bottle/{name}/000.png" for name in ("train/good", "test/good", "test/broken_large")))
    mask(root, "bottle/ground_truth/broken_large/000_mask.png")
    image(root, "wood/train/good/000.png", "wood/test/good/000.png")
    (root / "bottle/readme.txt").touch()


def mpdd(root: Path) -> None:
    image(root, *(f"metal_plate/{name}/000.png" for name in ("train/good", "test/good", "test/scratches")))
    mask(root, "metal_plate/ground_truth/scratches/000_mask.png")


def mvtec2(root: Path) -> None:
    image(root, *(f"can/{name}/good/000_regular.png" for name in ("train", "validation", "test_public")))
    image(root, "can/test_public/bad/000_overexposed.png", "can/test_private/000_regular.png")
    image(root, "can/test_private_mixed/000_mixed.png")
    mask(root, "can/test_public/ground_truth/bad/000_overexposed_mask.png")


def loco(root: Path) -> None:
    kinds = "logical_anomalies", "structural_anomalies"
    image(root, *(f"pushpins/{name}/good/000.png" for name in ("train", "validation", "test")))
    image(root, *(f"pushpins/test/{kind}/000.png" for kind in kinds))
    mask(root, *(f"pushpins/ground_truth/{kind}/000/000.png" for kind in kinds), value=241)
    entry = {"defect_name": "x", "pixel_value": 241, "saturation_threshold": 10, "relative_saturation": False}
    (root / "pushpins/defects_config.json").write_text(json.dumps([entry]))


def visa(root: Path) -> None:
    image(root, "candle/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0001.JPG")
    image(root, "candle/Data/Images/Anomaly/000.JPG")
    mask(root, "candle/Data/Masks/Anomaly/000.png", value=3)
    (root / "split_csv").mkdir()
    (root / "candle/image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\n"
        "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
        "candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n"
    )


def visa_rearranged(root: Path) -> None:
    image(root, *(f"candle/{name}.JPG" for name in ("train/good/0000", "test/good/0001", "test/bad/000")))
    mask(root, "candle/ground_truth/bad/000.png")


def dagm_bare(root: Path) -> None:
    """Copies without Labels.txt."""
    for folder, good, bad in (("Train", 576, 581), ("Test", 1, 2)):
        image(root, f"Class1/{folder}/{good:04}.PNG", f"Class1/{folder}/{bad:04}.PNG")
        mask(root, f"Class1/{folder}/Label/{bad:04}_label.PNG")


def dagm(root: Path) -> None:
    dagm_bare(root)
    for folder, good, bad in (("Train", 576, 581), ("Test", 1, 2)):
        (root / f"Class1/{folder}/Label/Labels.txt").write_text(
            f"1\n{good}\t0\t{good:04}.PNG\t0\t0\n{bad}\t1\t{bad:04}.PNG\t0\t{bad:04}_label.PNG\n"
        )


def btad(root: Path) -> None:
    image(root, "01/train/ok/0000.bmp", "01/test/ok/0000.bmp", "01/test/ko/0001.bmp")
    mask(root, "01/ground_truth/ko/0001.png")
    image(root, "03/train/ok/0000.bmp", "03/test/ok/0000.bmp", "03/test/ko/0001.bmp")
    mask(root, "03/ground_truth/ko/0001.bmp")


def ksdd(root: Path) -> None:
    """Three items, one a fold."""
    for item in ("kos01", "kos02", "kos03"):
        image(root, f"KolektorSDD/{item}/Part0.jpg", f"KolektorSDD/{item}/Part1.jpg")
        mask(root, f"KolektorSDD/{item}/Part0_label.bmp", value=0)
        mask(root, f"KolektorSDD/{item}/Part1_label.bmp")


def ksdd2(root: Path) -> None:
    for good in ("train/10000", "test/20000"):
        image(root, f"KolektorSDD2/{good}.png")
        mask(root, f"KolektorSDD2/{good}_GT.png", value=0)
    image(root, "KolektorSDD2/test/20001.png")
    mask(root, "KolektorSDD2/test/20001_GT.png")


# tree -> its kind, its categories, and of the first of these: good to train on, good and defective to test on
TREES: dict[Callable[[Path], None], tuple[str, tuple[str, ...], tuple[int, int, int]]] = {
    mvtec: ("mvtec", ("bottle", "wood"), (1, 1, 1)),
    mpdd: ("mvtec", ("metal_plate",), (1, 1, 1)),
    mvtec2: ("mvtec2", ("can",), (2, 1, 1)),
    loco: ("loco", ("pushpins",), (2, 1, 2)),
    visa: ("visa", ("candle",), (1, 1, 1)),
    visa_rearranged: ("mvtec", ("candle",), (1, 1, 1)),
    dagm: ("dagm", ("Class1",), (1, 1, 1)),
    dagm_bare: ("dagm", ("Class1",), (1, 1, 1)),
    btad: ("btad", ("01", "03"), (1, 1, 1)),
    ksdd: ("ksdd", ("KolektorSDD",), (2, 1, 1)),
    ksdd2: ("ksdd2", ("KolektorSDD2",), (1, 1, 1)),
}
each_tree = pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)


def facts(sample: Sample) -> tuple:
    return sample.source, sample.name, sample.part, sample.split, sample.kind, sample.mask


def test_every_kind_has_a_tree():
    assert {kind for kind, *_ in TREES.values()} == set(LAYOUTS)


@each_tree
def test_a_root_is_recognised_and_a_category_is_read_by_its_folder_alone(tmp_path, tree):
    tree(tmp_path)
    kind, categories, counts = TREES[tree]
    found = dataset(tmp_path)
    assert (found.kind, found.categories) == (kind, categories)
    samples = find(tmp_path / categories[0])
    assert [facts(s) for s in found.samples(categories[0])] == [facts(s) for s in samples]
    test = [s for s in samples if s.split == "test"]
    assert (len(samples) - len(test), sum(s.good for s in test), sum(not s.good for s in test)) == counts
    assert all(s.good for s in samples if s.split == "train")
    for sample in test:
        marked = 0 if sample.mask is None else read_mask(sample.mask, (SIDE, SIDE)).defect.sum()
        assert marked == (0 if sample.good else DEFECT)


@each_tree
def test_the_audit_of_a_category_finds_nothing_that_would_spoil_a_result(tmp_path, tree, capsys):
    tree(tmp_path)
    root = tmp_path / TREES[tree][1][0]
    samples = find(root)
    assert [f for f in audit(samples, strays(root, samples)).findings if f.severity == "error"] == []
    assert cli.main(["data", str(root)]) == 0
    assert f"{'train':<6} {'good':<20} {TREES[tree][2][0]:>8}" in capsys.readouterr().out


@each_tree
def test_a_root_or_the_folder_above_is_never_taken_as_good_pictures_but_named_with_its_categories(
    tmp_path, tree, capsys
):
    tree(tmp_path / "root")
    categories = TREES[tree][1]
    with pytest.raises(DataError, match=rf"root: is a data set, of {', '.join(categories)}; give one of them, such as"):
        find(tmp_path / "root")
    with pytest.raises(DataError, match=rf"is a data set, of root/{categories[0]}"):
        find(tmp_path)
    assert cli.main(["data", str(tmp_path / "root")]) == 3
    assert str(tmp_path / "root" / categories[0]) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tree", "folder", "reason"),
    [
        (visa, "candle/Data/Images", "lies in a folder 'Anomaly'"),
        (dagm, "Class1/Train", r"Label/0581_label\.PNG is called like the mask of a picture"),
        (ksdd, "KolektorSDD/kos01", r"Part0_label\.bmp is called like the mask of a picture"),
        (ksdd2, "KolektorSDD2/train", r"10000_GT\.png is called like the mask of a picture; give the folder above"),
        (mvtec2, "can/test_public", "lies in a folder 'bad'"),
        (btad, "01/test", "lies in a folder 'ko'"),
        (loco, "pushpins/test", r"has good/ and other pictures beside it \(logical_anomalies/000\.png\)"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_within_a_category_that_is_not_all_good_is_an_error(tmp_path, tree, folder, reason):
    tree(tmp_path)
    with pytest.raises(DataError, match=reason):
        find(tmp_path / folder)


def test_an_object_of_visa_without_the_split_file_above_it_is_an_error(tmp_path, monkeypatch):
    visa(tmp_path)
    monkeypatch.chdir(tmp_path / "candle")
    assert [sample.name for sample in find(".")] == [
        "Data/Images/Anomaly/000.JPG",
        "Data/Images/Normal/0000.JPG",
        "Data/Images/Normal/0001.JPG",
    ]
    (tmp_path / "split_csv/1cls.csv").unlink()
    with pytest.raises(DataError, match=r"there is no split_csv/1cls\.csv or 1cls\.csv; it is part of VisA"):
        find(tmp_path / "candle")
