from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.audit import audit
from flawmap.images.folder import find
from flawmap.images.masks.levels import read_mask
from flawmap.images.visa import objects, samples

HEAD = "object,split,label,image,mask\n"
ROWS = """\
pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,
candle,train,normal,candle/Data/Images/Normal/0836.JPG,
candle,train,normal,candle/Data/Images/Normal/0451.JPG,
candle,test,normal,candle/Data/Images/Normal/0012.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
fryum,train,normal,fryum/Data/Images/Normal/000.JPG,
"""


def ids() -> np.ndarray:
    """(4, 6): the mask of a picture with defects of the classes 1, 2, 3 and 9."""
    mask = np.zeros((4, 6), np.uint8)
    mask[0, :4] = 1, 2, 3, 9
    return mask


def write(root: Path, rows: str = ROWS, split: str = "split_csv/1cls.csv") -> Path:
    """VisA as published, of 6 x 4 pixels; the folder of fryum is not there."""
    pictures = [f"candle/Data/Images/{name}" for name in ("Normal/0836", "Normal/0451", "Normal/0012")]
    pictures += ["candle/Data/Images/Anomaly/000", "candle/Data/Images/Anomaly/001", "pcb1/Data/Images/Normal/0000"]
    for grey, name in enumerate(pictures):
        path = root / f"{name}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 40 * grey, np.uint8)).save(path)
    masks = root / "candle/Data/Masks/Anomaly"
    masks.mkdir(parents=True)
    for name, mask in [("000.png", ids()), ("001.png", np.full((4, 6), 2, np.uint8))]:
        Image.fromarray(mask).save(masks / name)
    (root / split).parent.mkdir(exist_ok=True)
    (root / split).write_bytes((HEAD + rows).encode())
    return root


@pytest.mark.parametrize("split", ["split_csv/1cls.csv", "1cls.csv"])
def test_an_object_is_read_by_the_split_file(tmp_path, split):
    write(tmp_path, split=split)
    found = samples(tmp_path, "candle")
    masks = tmp_path / "candle/Data/Masks/Anomaly"
    assert [(sample.name, sample.split, sample.kind, sample.mask) for sample in found] == [
        ("Data/Images/Anomaly/000.JPG", "test", "anomaly", masks / "000.png"),
        ("Data/Images/Anomaly/001.JPG", "test", "anomaly", masks / "001.png"),
        ("Data/Images/Normal/0012.JPG", "test", "good", None),
        ("Data/Images/Normal/0451.JPG", "train", "good", None),
        ("Data/Images/Normal/0836.JPG", "train", "good", None),
    ]
    assert all(s.part == s.name and s.source == tmp_path / "candle" / s.name for s in found)


def test_masks_of_class_ids_are_defect_wherever_they_are_not_zero(tmp_path):
    bad = [sample for sample in samples(write(tmp_path), "candle") if not sample.good]
    assert bad[0].mask is not None
    assert bad[1].mask is not None
    np.testing.assert_array_equal(read_mask(bad[0].mask, (4, 6)).defect, ids() > 0)
    assert read_mask(bad[1].mask, (4, 6)).defect.all()
    assert not {"mask-empty", "mask-grey", "mask-misfit"} & {f.code for f in audit(bad).findings}


def test_objects_are_those_of_the_split_file_whose_folder_is_there(tmp_path):
    assert objects(tmp_path) == ()
    assert objects(write(tmp_path)) == ("candle", "pcb1")


def test_a_split_file_with_windows_line_ends_and_a_mark_reads_the_same(tmp_path):
    before = [(s.name, s.split, s.kind, s.mask) for s in samples(write(tmp_path), "candle")]
    (tmp_path / "split_csv/1cls.csv").write_bytes(("\ufeff" + HEAD + ROWS).replace("\n", "\r\n").encode())
    assert [(s.name, s.split, s.kind, s.mask) for s in samples(tmp_path, "candle")] == before


def test_the_re_arranged_form_is_mvtecs_layout(tmp_path):
    for name in ("train/good/0836.JPG", "test/good/0012.JPG", "test/bad/000.JPG", "ground_truth/bad/000.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 6), 255, np.uint8)).save(path)
    assert [(sample.name, sample.split, sample.kind, sample.mask) for sample in find(tmp_path)] == [
        ("test/bad/000.JPG", "test", "bad", tmp_path / "ground_truth/bad/000.png"),
        ("test/good/0012.JPG", "test", "good", None),
        ("train/good/0836.JPG", "train", "good", None),
    ]


NORMAL = "candle/Data/Images/Normal/0836.JPG"
ANOMALY = "candle/Data/Images/Anomaly/000.JPG"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"candle,train,good,{NORMAL},", r"line 2: the label is 'good'; known are normal, anomaly"),
        (f"candle,val,normal,{NORMAL},", r"line 2: split is 'val'; known are train, test"),
        (f"candle,train,anomaly,{ANOMALY},", r"line 2: an anomaly is in train"),
        (f"candle,test,normal,pcb1/{NORMAL},", r"line 2: the image .* does not lie in candle/"),
        ("candle,test,normal,candle/gone.JPG,", r"line 2: there is no file .*gone\.JPG; copy the data set again"),
        (f"candle,test,anomaly,{ANOMALY},candle/gone.png", r"line 2: there is no file .*gone\.png"),
        ("candle,test,normal,,", r"line 2: the image '' does not lie in candle/"),
        (f"candle,test,normal,{NORMAL},,more", r"line 2: the columns are not object, split, label, image, mask"),
        (f"candle,train,normal,{NORMAL},\ncandle,test,normal,{NORMAL},", r"line 3: .*0836\.JPG stands there already"),
        ("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,", r"no pictures of candle; its objects are pcb1"),
        ('candle,"', r"cannot be read as UTF-8 csv"),
    ],
)
def test_a_row_that_cannot_be_meant_is_an_error_with_its_line(tmp_path, row, reason):
    write(tmp_path, row + "\n")
    with pytest.raises(DataError, match=reason):
        samples(tmp_path, "candle")


def test_a_row_may_end_before_its_empty_mask(tmp_path):
    write(tmp_path, f"candle,test,normal,{NORMAL}\n")
    assert [(sample.split, sample.mask) for sample in samples(tmp_path, "candle")] == [("test", None)]


def test_another_table_and_no_table_are_errors(tmp_path):
    write(tmp_path)
    (tmp_path / "split_csv/1cls.csv").write_text("path,kind\na.png,good\n")
    with pytest.raises(DataError, match=r"line 2: the columns are not object, .*; give VisA's 1cls\.csv"):
        objects(tmp_path)
    (tmp_path / "split_csv/1cls.csv").unlink()
    with pytest.raises(DataError, match=r"there is no split_csv/1cls\.csv or 1cls\.csv; it is part of VisA"):
        samples(tmp_path, "candle")
