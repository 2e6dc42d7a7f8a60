from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.datasets import DataSet, dataset, layout
from flawmap.images.folder import find


def put(root: Path, *names: str) -> Path:
    for grey, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), grey, np.uint8)).save(path)
    return root


def mvtec(root: Path, *categories: str) -> Path:
    for category in categories:
        put(root / category, "train/good/000.png", "test/good/000.png", "test/crack/000.png")
    return root


def visa(root: Path) -> Path:
    put(root, "pcb1/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0000.JPG")
    rows = [f"{name},train,normal,{name}/Data/Images/Normal/0000.JPG,\n" for name in ("pcb1", "candle")]
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n" + "".join(rows))
    return root


def dagm(root: Path, *classes: str) -> Path:
    for name in classes:
        put(root / name, "Train/0002.PNG", "Test/0001.PNG", "Train/Label/0002_label.PNG", "Test/Label/0001_label.PNG")
        put(root / name, "Train/0003.PNG")
    return root


def names(found: DataSet, category: str) -> list[str]:
    return [sample.name for sample in found.samples(category)]


def test_folders_with_train_good_are_categories_of_mvtec(tmp_path):
    mvtec(tmp_path, "wood", "bottle")
    put(tmp_path, "docs/page.png", ".cache/train/good/000.png")
    (tmp_path / "license.txt").touch()
    found = dataset(tmp_path)
    assert found == DataSet(tmp_path, "mvtec", ("bottle", "wood"))
    assert names(found, "wood") == ["test/crack/000.png", "test/good/000.png", "train/good/000.png"]
    assert [sample.source for sample in found.samples("wood")] == [s.source for s in find(tmp_path / "wood")]


def test_categories_two_levels_down_are_named_with_their_data_set(tmp_path):
    mvtec(tmp_path, "mvtec/wood", "mvtec/bottle", "own", "elpv/mono")
    found = dataset(tmp_path)
    assert (found.kind, found.categories) == ("mvtec", ("elpv/mono", "mvtec/bottle", "mvtec/wood", "own"))
    assert names(found, "mvtec/wood") == ["test/crack/000.png", "test/good/000.png", "train/good/000.png"]
    assert dataset(tmp_path / "mvtec").categories == ("bottle", "wood")


def test_a_split_file_makes_it_visa(tmp_path):
    found = dataset(visa(tmp_path))
    assert (found.kind, found.categories) == ("visa", ("candle", "pcb1"))
    assert names(found, "pcb1") == ["Data/Images/Normal/0000.JPG"]
    assert found.samples("pcb1")[0].source == tmp_path / "pcb1/Data/Images/Normal/0000.JPG"
    assert dataset(tmp_path, "visa") == found


def test_visa_re_arranged_is_mvtecs_layout_and_visa_where_that_is_said(tmp_path):
    mvtec(tmp_path, "candle")
    assert dataset(tmp_path).kind == "mvtec"
    found = dataset(tmp_path, "visa")
    assert found == DataSet(tmp_path, "visa", ("candle",))
    assert names(found, "candle") == ["test/crack/000.png", "test/good/000.png", "train/good/000.png"]


def test_classes_make_it_dagm_and_are_sorted_by_their_number(tmp_path):
    dagm(tmp_path, "Class10", "Class2", "Class1")
    found = dataset(tmp_path)
    assert (found.kind, found.categories) == ("dagm", ("Class1", "Class2", "Class10"))
    assert [(s.name, s.kind) for s in found.samples("Class2")] == [
        ("Test/0001.PNG", "defect"),
        ("Train/0003.PNG", "good"),
    ]


def test_a_class_within_a_folder_of_its_name_is_found_too(tmp_path):
    assert dataset(dagm(tmp_path, "Class1/Class1")).categories == ("Class1/Class1",)


def test_two_kinds_under_one_root_are_told_apart_by_kind(tmp_path):
    dagm(mvtec(tmp_path, "bottle"), "Class1")
    with pytest.raises(DataError, match=r"holds mvtec \(bottle\) and dagm \(Class1\); give kind"):
        dataset(tmp_path)
    assert dataset(tmp_path, "mvtec").categories == ("bottle",)
    assert dataset(tmp_path, "dagm").categories == ("Class1",)


def test_a_category_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    found = dataset(mvtec(tmp_path, "wood", "bottle"))
    with pytest.raises(DataError, match=r"there is no category 'cable'; there are bottle, wood"):
        found.samples("cable")


def test_a_folder_that_is_missing_is_an_error_with_the_layouts(tmp_path):
    with pytest.raises(DataError) as caught:
        dataset(tmp_path / "gone")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'gone'}: there is no such folder; expected is a folder that holds\n\nMVTec AD")
    assert text.endswith("\n\n".join(map(layout, ("mvtec", "visa", "dagm", "btad", "mvtec2", "loco", "ksdd", "ksdd2"))))
    with pytest.raises(DataError) as caught:
        dataset(tmp_path / "gone", "dagm")
    assert str(caught.value).endswith(f"holds\n\n{layout('dagm')}")
    assert "MVTec" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is not a folder"):
        dataset(tmp_path / "file")


def test_a_folder_without_a_data_set_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(DataError, match=r"no data set; looked for folders with train/good; .*ClassN.*; found nothing"):
        dataset(tmp_path)
    put(tmp_path, *[f"{number}.png" for number in range(12)])
    with pytest.raises(DataError, match=re.escape("found 0.png, 1.png, 2.png, 3.png")) as caught:
        dataset(tmp_path, "visa")
    assert "9.png and 2 more. Expected is\n\nVisA: 12 objects" in str(caught.value)
    assert "looked for split_csv/1cls.csv or 1cls.csv beside <object>/Data; found" in str(caught.value)


def test_visa_without_its_split_file_is_an_error_that_names_it(tmp_path):
    visa(tmp_path)
    (tmp_path / "split_csv/1cls.csv").unlink()
    with pytest.raises(
        DataError, match=r"no data set; looked for .*split_csv/1cls\.csv .*found candle, pcb1, split_csv"
    ):
        dataset(tmp_path)


def test_a_category_is_not_a_data_set(tmp_path):
    roots = mvtec(tmp_path, "bottle") / "bottle", dagm(tmp_path, "Class1") / "Class1", visa(tmp_path) / "pcb1"
    for root in roots:
        with pytest.raises(
            DataError, match=re.escape(f"is one category, not a data set; give the folder above, {tmp_path}")
        ):
            dataset(root)


def test_an_unknown_kind_is_an_error_that_lists_the_known(tmp_path):
    for ask in (lambda: layout("coco"), lambda: dataset(tmp_path, "coco")):
        with pytest.raises(UsageError, match="unknown kind 'coco' of data set; known are mvtec, visa, dagm, btad"):
            ask()


def test_a_layout_shows_the_folders_and_the_published_sizes():
    shown = {
        "mvtec": ("15 categories", "3629", "1725", "train/good", "ground_truth/<kind>/000_mask.png"),
        "visa": ("12 objects", "8659", "962", "1200", "1cls.csv", "Data/Masks/Anomaly/000.png", "ground_truth/bad"),
        "dagm": ("10 classes", "575", "1150", "Train/Label/Labels.txt", "_label.PNG"),
        "btad": ("3 products", "1799", "741", "290", "train/ok", "ground_truth/ko"),
        "mvtec2": ("8 objects", "validation/good", "test_public/ground_truth/bad/000_regular_mask.png"),
        "loco": (
            "5 categories",
            "1772",
            "304",
            "1568",
            "defects_config.json",
            "ground_truth/logical_anomalies/000/000",
        ),
        "ksdd": ("50 items", "399", "52", "kos01/Part0_label.bmp"),
        "ksdd2": ("2331", "246", "1004", "110", "10000_GT.png"),
    }
    for kind, words in shown.items():
        assert [word for word in words if word not in layout(kind)] == []


@pytest.mark.data
def test_a_root_of_real_data_sets_gives_every_category_once(real):
    root = real("mvtec/bottle").parents[1]
    found = dataset(root)
    assert found.kind == "mvtec"
    assert "mvtec/bottle" in found.categories
    assert len(set(found.categories)) == len(found.categories)
    samples = found.samples("mvtec/bottle")
    assert (sum(s.split == "train" for s in samples), sum(s.split == "test" for s in samples)) == (209, 83)
