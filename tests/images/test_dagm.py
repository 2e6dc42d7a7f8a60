from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.dagm import is_class, samples
from flawmap.images.folder import find, strays
from flawmap.images.masks.levels import read_mask
from flawmap.types import Sample

TRAIN = "1\n3\t0\t0003.PNG\t0\t0\n4\t1\t0004.PNG\t0\t0004_label.PNG\n10\t0\t0010.PNG\t0\t0\n"
TEST = "1\n1\t0\t0001.PNG\t0\t0\n2\t1\t0002.PNG\t0\t0002_label.PNG\n"


def write(root: Path, train: str | None = TRAIN, test: str | None = TEST, name: str = "Labels.txt") -> Path:
    """A class as published, of 6 x 4 pixels: 3, 4 and 10 to train on, 1 and 2 to test on; 2 and 4 are defective."""
    for folder, numbers, bad, text in [("Train", (3, 4, 10), 4, train), ("Test", (1, 2), 2, test)]:
        (root / folder / "Label").mkdir(parents=True)
        for number in numbers:
            Image.fromarray(np.full((4, 6), number, np.uint8)).save(root / folder / f"{number:04}.PNG")
        mask = np.zeros((4, 6), np.uint8)
        mask[1:3, 2:5] = 255
        Image.fromarray(mask).save(root / folder / "Label" / f"{bad:04}_label.PNG")
        if text is not None:
            (root / folder / "Label" / name).write_bytes(text.encode())
    return root


def facts(found: list[Sample]) -> list[tuple]:
    return [(sample.name, sample.split, sample.kind, sample.mask) for sample in found]


def expected(root: Path) -> list[tuple]:
    return [
        ("Test/0001.PNG", "test", "good", None),
        ("Test/0002.PNG", "test", "defect", root / "Test/Label/0002_label.PNG"),
        ("Train/0003.PNG", "train", "good", None),
        ("Train/0010.PNG", "train", "good", None),
    ]


def test_good_ones_of_train_are_trained_on_and_all_of_test_is_tested(tmp_path):
    root = write(tmp_path / "Class1")
    found = samples(root)
    assert facts(found) == expected(root)
    assert all(sample.part == sample.name and sample.source == root / sample.name for sample in found)
    assert found[1].mask is not None
    assert read_mask(found[1].mask, (4, 6)).defect.sum() == 6


def test_a_class_is_found_like_any_other_folder(tmp_path):
    root = write(tmp_path / "Class10")
    assert facts(find(root)) == facts(find(root, kind=None)) == expected(root)
    assert sorted(strays(root, find(root))) == [
        "Test/Label/Labels.txt",
        "Train/0004.PNG",
        "Train/Label/0004_label.PNG",
        "Train/Label/Labels.txt",
    ]


def test_parts_csv_names_the_parts_of_a_class_too(tmp_path):
    root = write(tmp_path / "Class1")
    (root / "parts.csv").write_text("path,part\nTrain/0003.PNG,A\n")
    assert [sample.part for sample in find(root)] == ["Test/0001.PNG", "Test/0002.PNG", "A", "Train/0010.PNG"]


@pytest.mark.parametrize(
    ("train", "test", "name"),
    [
        (None, None, ""),
        (TRAIN.replace("\n", "\r\n"), TEST.replace("\n", "\r\n"), "Labels.TXT"),
        (TRAIN.replace("0004_label.PNG", "0"), TEST.replace("0002_label.PNG", "0"), "labels.txt"),
        (TRAIN.replace(".PNG", ".png"), TEST.replace(".PNG", ".bmp"), "Labels.txt"),
        (TRAIN.replace("\t0\t0004_label.PNG", ""), TEST.replace("\t", " "), "Labels.txt"),
        (TRAIN.removeprefix("1\n"), "id\tflag\timage\t0\tlabel\n" + TEST.removeprefix("1\n"), "Labels.txt"),
        ("\ufeff" + TRAIN, TEST + "\n\n", "Labels.txt"),
    ],
    ids=["none", "windows", "no-label-named", "other-suffix", "columns", "first-line", "mark-and-blank-lines"],
)
def test_all_copies_of_the_list_that_go_around_say_the_same(tmp_path, train, test, name):
    root = write(tmp_path / "Class1", train, test, name)
    assert facts(samples(root)) == expected(root)


def test_suffixes_in_lower_case_are_read_too(tmp_path):
    root = write(tmp_path / "Class1")
    for path in sorted(root.rglob("*.PNG")):
        path.rename(path.with_suffix(".png"))
    assert [name for name, *_ in facts(samples(root))] == [
        "Test/0001.png",
        "Test/0002.png",
        "Train/0003.png",
        "Train/0010.png",
    ]
    assert samples(root)[1].mask == root / "Test/Label/0002_label.png"


def test_a_defect_without_a_label_has_no_mask(tmp_path):
    root = write(tmp_path / "Class1", test=TEST.replace("0002_label.PNG", "0"))
    (root / "Test/Label/0002_label.PNG").unlink()
    assert facts(samples(root))[1] == ("Test/0002.PNG", "test", "defect", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TRAIN.replace("4\t1", "4\t0"), r"line 3: the label 0004_label\.PNG is given to 0004\.PNG, which the flag"),
        (TRAIN.replace("4\t1\t0004.PNG\t0\t0004_label.PNG", "4\t0\t0004.PNG\t0\t0"), r"calls 0004\.PNG good, but"),
        (TRAIN.replace("3\t0\t0003", "4\t0\t0004"), r"line 3: 0004\.PNG stands there already"),
        (TRAIN + "11\t0\t0011.PNG\t0\t0\n", r"line 5: 0011\.PNG is not there"),
        (TRAIN.replace("3\t0\t0003", "3\t1\t0003").replace("\t0\t0\n", "\t0\t0003_label.PNG\n", 1), "is not there"),
        (TRAIN.removesuffix("10\t0\t0010.PNG\t0\t0\n"), r"says nothing of 0010\.PNG \(of 1 pictures\)"),
        (TRAIN.replace("4\t1", "4\t2"), r"line 3: is '4\\t2.*give id, 0 or 1, picture"),
    ],
)
def test_a_list_that_contradicts_the_files_or_itself_is_an_error(tmp_path, text, reason):
    root = write(tmp_path / "Class1", train=text)
    with pytest.raises(DataError, match=reason):
        samples(root)


def test_a_list_that_is_not_utf_8_is_an_error(tmp_path):
    root = write(tmp_path / "Class1")
    (root / "Train/Label/Labels.txt").write_bytes(b"1\n\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        samples(root)


def test_without_list_and_labels_no_picture_passes_as_good(tmp_path):
    root = write(tmp_path / "Class1", train=None)
    (root / "Train/Label/0004_label.PNG").unlink()
    with pytest.raises(DataError, match="nothing says which pictures are defective"):
        samples(root)


def test_a_label_without_its_picture_and_a_split_without_pictures_are_errors(tmp_path):
    root = write(tmp_path / "Class1", train=None)
    (root / "Train/0004.PNG").unlink()
    with pytest.raises(DataError, match=r"0004_label\.PNG: the picture of this label is missing"):
        samples(root)
    for path in root.glob("Test/*.PNG"):
        path.unlink()
    with pytest.raises(DataError, match=r"Test: no pictures; DAGM has Class1/Test/0001\.PNG"):
        samples(root)


def test_two_files_of_the_same_picture_are_an_error(tmp_path):
    root = write(tmp_path / "Class1")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / "Train/0003.bmp")
    with pytest.raises(DataError, match=r"0003\.PNG and 0003\.bmp belong to the same picture"):
        samples(root)


def test_a_class_is_told_by_its_name_and_the_case_of_its_folders(tmp_path, monkeypatch):
    assert is_class(Path("DAGM/Class7"), ["Test", "Train"])
    assert is_class(Path("class10"), ["Other", "Test", "Train"])
    assert not is_class(Path("Class7"), ["test", "train"])
    assert not is_class(Path("Class7"), ["Train"])
    assert not is_class(Path("Class7_def"), ["Test", "Train"])
    (tmp_path / "Class3").mkdir()
    monkeypatch.chdir(tmp_path / "Class3")
    assert is_class(Path("."), ["Test", "Train"])
