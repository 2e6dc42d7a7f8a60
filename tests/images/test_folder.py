from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images.folder import check, find, sha256, strays
from flawmap.types import Sample


def put(root: Path, *names: str) -> Path:
    """Small pictures, each of another grey; masks are white."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = 255 if name.startswith("ground_truth") else index
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)
    return root


def names(samples: list[Sample]) -> list[str]:
    return [sample.name for sample in samples]


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    return put(
        tmp_path,
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        "test/crack/000.png",
        "test/crack/001.png",
        "test/hole/000.jpg",
        "ground_truth/crack/000_mask.png",
        "ground_truth/hole/000.bmp",
    )


def test_the_mvtec_layout_gives_split_kind_and_mask(mvtec):
    found = {sample.name: (sample.split, sample.kind, sample.mask) for sample in find(mvtec)}
    assert found == {
        "test/crack/000.png": ("test", "crack", mvtec / "ground_truth/crack/000_mask.png"),
        "test/crack/001.png": ("test", "crack", None),
        "test/good/000.png": ("test", "good", None),
        "test/hole/000.jpg": ("test", "hole", mvtec / "ground_truth/hole/000.bmp"),
        "train/good/000.png": ("train", "good", None),
        "train/good/001.png": ("train", "good", None),
    }
    assert list(found) == sorted(found)
    assert all(sample.part == sample.name and sample.source == mvtec / sample.name for sample in find(str(mvtec)))


def test_without_ground_truth_all_masks_are_none(tmp_path):
    put(tmp_path, "train/good/0.png", "test/bad/0.png")
    assert [(sample.kind, sample.mask) for sample in find(tmp_path)] == [("bad", None), ("good", None)]


def test_a_folder_with_test_alone_gives_test_samples(tmp_path):
    put(tmp_path, "test/good/0.png", "test/crack/deep/0.png", "ground_truth/crack/deep/0_mask.png")
    samples = find(tmp_path)
    assert [(sample.split, sample.kind) for sample in samples] == [("test", "crack"), ("test", "good")]
    assert samples[0].mask == tmp_path / "ground_truth/crack/deep/0_mask.png"


def test_one_folder_is_good_throughout_nested_folders_and_any_case_of_suffix_included(tmp_path):
    put(tmp_path, "b.PNG", "a.jpeg", "day1/c.Tif", "day1/.hidden.png", ".cache/d.png", "day2/e.bmp")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    samples = find(tmp_path)
    assert names(samples) == ["a.jpeg", "b.PNG", "day1/c.Tif", "day2/e.bmp"]
    assert {(sample.split, sample.kind) for sample in samples} == {("train", "good")}
    assert {sample.kind for sample in find(tmp_path, kind=None)} == {None}


def test_a_folder_good_alone_is_taken(tmp_path):
    put(tmp_path, "good/a.png", "good/b.png")
    assert names(find(tmp_path)) == ["good/a.png", "good/b.png"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["good/a.png", "scratch/b.png"], "has good/ and other pictures beside it"),
        (["a.png", "bad/b.png"], "lies in a folder 'bad'"),
        (["bottle/test/good/a.png", "bottle/test/crack/b.png"], "lies in a folder 'test'"),
        (
            ["bottle/train/good/a.png", "bottle/test/crack/b.png"],
            "is a data set, of bottle; give one of them, such as .*",
        ),
        (
            ["mvtec/b/train/good/a.png", "mvtec/a/train/good/a.png"],
            "of mvtec/a, mvtec/b; give one of them, such as .*a$",
        ),
        (["a.png", "a_mask.png"], r"but a_mask\.png is called like the mask of a picture; give the folder above"),
        (["day/10000.png", "day/10000_GT.png"], r"but day/10000_GT\.png is called like the mask"),
        (["0001.PNG", "Label/0001_label.PNG"], r"but Label/0001_label\.PNG is called like the mask"),
        (["a.png", "ground_truth/crack/a_mask.png"], "lies in a folder 'ground_truth'"),
        (["Train/good/a.png", "Test/crack/a.png"], "the folder Test must be written test"),
        (["train/a.png"], r"train/a\.png must lie in train/good"),
        (["train/good/a.png", "train/bad/b.png"], r"train/bad/b\.png must lie in train/good"),
        (["train/good/a.png", "test/b.png"], r"test/b\.png must lie in test/good or test/<kind>"),
        (["train/good/a.png", "test/OK/b.png"], "would count as a defect; rename it to 'good'"),
        (["test/c/a.png", "ground_truth/c/a_mask.png", "ground_truth/c/a.bmp"], "masks of the same picture"),
    ],
)
def test_a_near_miss_of_a_layout_is_an_error(tmp_path, files, reason):
    put(tmp_path, *files)
    with pytest.raises(DataError, match=reason):
        find(tmp_path)


def test_pictures_to_be_judged_may_lie_in_any_folder(tmp_path):
    put(tmp_path, "bad/a.png", "good/b.png")
    assert [(sample.name, sample.kind) for sample in find(tmp_path, kind=None)] == [
        ("bad/a.png", None),
        ("good/b.png", None),
    ]


def test_an_empty_folder_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(DataError, match=r"looked for train/good .*\.png .*found nothing"):
        find(tmp_path)
    for index in range(12):
        (tmp_path / f"{index:02d}.txt").touch()
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"found 00\.txt, .*09\.txt and 3 more"):
        find(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        find(tmp_path / "gone")


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_links_are_followed_once_and_loops_end(tmp_path):
    put(tmp_path / "root", "a/1.png")
    put(tmp_path / "elsewhere", "2.png")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/self").symlink_to(tmp_path / "root/self")
    assert names(find(tmp_path / "root")) == ["a/1.png", "b/2.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="a superuser may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    put(tmp_path, "a.png", "locked/b.png")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            find(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_a_csv_list_gives_all_its_columns(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", "d.png", "m.png")
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,split,kind,mask,part\na.png,,good,,p1\nb.png,test,good,,p1\nc.png,,crack,m.png,\nd.png,test,,,\n",
        "utf-8",
    )
    found = [(s.name, s.split, s.kind, s.mask, s.part) for s in find(tmp_path / "list.csv")]
    assert found == [
        ("a.png", "train", "good", None, "p1"),
        ("b.png", "test", "good", None, "p1"),
        ("c.png", "test", "crack", tmp_path / "m.png", "c.png"),
        ("d.png", "test", "good", None, "d.png"),
    ]
    assert find(tmp_path / "list.csv", kind=None)[3].kind is None


def test_a_jsonl_list_gives_the_same_as_a_csv_list(tmp_path):
    put(tmp_path, "x/a.png", "b.png")
    rows = [{"path": "x/a.png", "part": "1"}, {"path": "b.png", "label": "crack", "mask": None}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = [(s.source, s.split, s.kind, s.mask, s.part) for s in find(tmp_path / "list.jsonl")]
    assert found == [
        (tmp_path / "x/a.png", "train", "good", None, "1"),
        (tmp_path / "b.png", "test", "crack", None, "b.png"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "path,colour\na.png,red\n", r"line 2: unknown columns colour; known are path, split, kind, label"),
        ("l.csv", "path,split\na.png,validation\n", r"line 2: split is 'validation'; known are train, test"),
        ("l.csv", "path\na.png\ngone.png\n", r"line 3: there is no file .*gone\.png"),
        ("l.csv", "path\na.png\n./a.png\n", r"line 3: a\.png stands in line 2 already"),
        ("l.csv", "path,kind\n,good\n", r"line 2: no path"),
        ("l.csv", "path,kind\na.png,Good\n", r"line 2: the kind Good would count as a defect"),
        ("l.csv", "path,kind,label\na.png,good,good\n", r"line 2: kind and label mean the same"),
        ("l.csv", "path,kind,split\na.png,crack,train\n", r"line 2: crack is in train"),
        ("l.csv", "path,kind,mask\na.png,crack,m.png\n", r"line 2: there is no mask"),
        ("l.csv", "path\na.png,b.png\n", r"line 2: give the columns"),
        ("l.csv", "path\n", r"no pictures"),
        ("l.csv", "", r"no pictures"),
        ("l.csv", 'path\n"a.png', r"cannot be read as UTF-8 csv"),
        ("l.jsonl", '{"path": "a.png"}\n[1]\n', r"line 2: give the columns"),
        ("l.jsonl", '{"path": 5}\n', r"line 1: give the columns"),
        ("l.jsonl", "{path}\n", r"cannot be read as UTF-8 jsonl"),
        ("parts.csv", "path,part\na.png,1\n", r"give its folder"),
    ],
)
def test_a_list_that_cannot_be_meant_is_an_error_with_its_line(tmp_path, name, text, reason):
    put(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        find(tmp_path / name)


def test_a_list_that_is_not_utf_8_is_an_error(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        find(tmp_path / "l.csv")


def test_files_arrays_and_samples_are_taken_as_given(tmp_path):
    put(tmp_path, "a.png")
    array = np.zeros((4, 6), np.uint8)
    own = Sample(array, "mine", "part")
    found = find([tmp_path / "a.png", str(tmp_path / "a.png"), array, own])
    assert names(found) == [(tmp_path / "a.png").as_posix()] * 2 + ["array-0002", "mine"]
    assert found[2].source is array
    assert found[3] is own
    assert names(find(tmp_path / "a.png")) == ["a.png"]
    assert names(find(array)) == ["array-0000"]
    assert len(find(np.zeros((3, 4, 6, 3), np.uint8))) == 3
    with pytest.raises(DataError, match="no pictures"):
        find([])
    with pytest.raises(UsageError, match="item 1 is a int"):
        find([array, 5])  # type: ignore[list-item]


def test_parts_csv_names_parts_and_the_others_are_their_own(mvtec):
    (mvtec / "parts.csv").write_text("path,part\ntrain/good/000.png,A\ntrain/good/001.png,A\n")
    parts = {sample.name: sample.part for sample in find(mvtec)}
    assert parts["train/good/000.png"] == parts["train/good/001.png"] == "A"
    assert parts["test/good/000.png"] == "test/good/000.png"
    with pytest.raises(UsageError, match=r"parts\.csv or a column part"):
        find(mvtec, part_pattern=r"(\d+)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,part\ngone.png,A\n", r"parts\.csv, line 2: there is no file"),
        ("path,part\na.png,\n", r"parts\.csv, line 2: no part"),
        ("path,part,view\na.png,A,1\n", r"parts\.csv, line 2: unknown columns view"),
    ],
)
def test_a_parts_csv_that_cannot_be_meant_is_an_error(tmp_path, text, reason):
    put(tmp_path, "a.png")
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        find(tmp_path)


def test_a_pattern_reads_the_part_from_the_name(tmp_path):
    put(tmp_path, "s7/p12_view1.png", "s7/p12_view2.png", "s7/p13_view1.png")
    assert [sample.part for sample in find(tmp_path, part_pattern=r"p(\d+)_")] == ["12", "12", "13"]
    assert [sample.part for sample in find(tmp_path, part_pattern=r"s(\d)/(?P<part>p\d+)")] == ["p12", "p12", "p13"]
    with pytest.raises(DataError, match=r"finds no part in the name s7/p13_view1\.png"):
        find(tmp_path, part_pattern=r"(p12)")
    for pattern, reason in [("(", "not a regular expression"), ("p12", "has no group")]:
        with pytest.raises(UsageError, match=reason):
            find(tmp_path, part_pattern=pattern)


def test_strays_are_the_files_that_are_no_part_of_the_data(mvtec):
    put(mvtec, "validation/good/0.png", "ground_truth/crack/099_mask.png")
    (mvtec / "license.txt").touch()
    (mvtec / "parts.csv").write_text("path,part\n")
    (mvtec / ".DS_Store").touch()
    expected = ["ground_truth/crack/099_mask.png", "license.txt", "validation/good/0.png"]
    assert sorted(strays(mvtec, find(mvtec))) == expected


def test_check_lists_all_that_cannot_be_read(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
    (tmp_path / "text.png").write_text("hello")
    samples = find(tmp_path)
    with pytest.raises(DataError, match=r"2 of 4 .*\n  cut\.png: .*truncated.*\n  text\.png: not a PNG") as caught:
        check(samples)
    assert str(tmp_path) not in str(caught.value)
    fine, bad = check(samples, skip_bad=True)
    assert names(fine) == ["a.png", "b.png"]
    assert [name for name, _ in bad] == ["cut.png", "text.png"]
    assert check(fine) == (fine, [])


def test_check_counts_beyond_twenty_and_never_leaves_nothing(tmp_path):
    for index in range(23):
        (tmp_path / f"{index:02d}.png").touch()
    with pytest.raises(DataError, match=r"23 of 23 .*") as caught:
        check(find(tmp_path))
    assert str(caught.value).count("empty") == 20
    assert str(caught.value).endswith("and 3 more")
    with pytest.raises(DataError, match="none is left"):
        check(find(tmp_path), skip_bad=True)


def test_check_reads_masks_and_holds_the_limit_of_size():
    picture = np.zeros((4, 6), np.uint8)
    with pytest.raises(DataError, match=r"p: .*the mask is 4 x 4 pixels, p is 6 x 4"):
        check([Sample(picture, "p", "p", "test", "crack", picture[:, :4])])
    with pytest.raises(DataError, match="more than max_mpx"):
        check([Sample(picture, "p", "p")], max_mpx=0.00001)


def test_sha256_is_of_the_bytes_of_a_file_and_of_shape_and_type_of_an_array(tmp_path):
    put(tmp_path, "a.png")
    assert sha256(find(tmp_path)[0]) == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    digests = {
        sha256(Sample(a, "n", "p"))
        for a in (array, array.reshape(4, 3), array.view(np.uint16), np.asfortranarray(array))
    }
    assert len(digests) == 3
    with pytest.raises(DataError, match="cannot be read"):
        sha256(Sample(tmp_path / "gone.png", "n", "p"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("category", "train", "test_good", "defects", "masks"),
    [
        ("mvtec/bottle", 209, 20, 63, 63),
        ("glassfiber/glassfiber", 90, 18, 20, 20),
        ("elpv/mono", 150, 60, 60, 0),
        ("magnetic_tile/magnetic_tile", 220, 90, 192, 192),
    ],
)
def test_real_categories_hold_what_their_sources_say(real, category, train, test_good, defects, masks):
    samples = find(real(category))
    assert sum(sample.split == "train" for sample in samples) == train
    assert sum(sample.split == "test" and sample.good for sample in samples) == test_good
    assert sum(not sample.good for sample in samples) == defects
    assert sum(sample.mask is not None for sample in samples) == masks
