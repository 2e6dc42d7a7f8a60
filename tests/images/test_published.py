"""Data sets of research as published, on small made-up trees: BTAD, MVTec AD 2, KolektorSDD, KolektorSDD2, MPDD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.images import btad, ksdd, ksdd2, mvtec2
from flawmap.images.audit import audit
from flawmap.images.datasets import DataSet, dataset
from flawmap.images.folder import find, strays
from flawmap.images.masks.levels import read_mask
from flawmap.types import Sample


def put(root: Path, *names: str, mask: bool = False) -> Path:
    """Pictures of 6 x 4 pixels; a mask has a defect of 6 of them."""
    for name in names:
        pixels = np.zeros((4, 6), np.uint8) if mask else np.random.default_rng(len(name)).integers(0, 256, (4, 6))
        if mask:
            pixels[1:3, 2:5] = 255
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def black(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4)).save(path)
    return root


def facts(found: list[Sample]) -> list[tuple]:
    return [(sample.name, sample.split, sample.kind, sample.mask) for sample in found]


def btad_tree(root: Path, image: str = "bmp", mask: str = "png") -> Path:
    put(root, *(f"{folder}/0000.{image}" for folder in ("train/ok", "test/ok", "test/ko")), f"train/ok/0001.{image}")
    return put(root, f"ground_truth/ko/0000.{mask}", mask=True)


def mvtec2_tree(root: Path) -> Path:
    put(root, "train/good/000_regular.png", "train/good/001_regular.png", "validation/good/000_regular.png")
    put(root, "test_public/good/000_regular.png", "test_public/good/000_shift_1.png")
    put(root, "test_public/bad/000_regular.png", "test_public/bad/000_shift_1.png")
    truth = "test_public/ground_truth/bad"
    put(root, f"{truth}/000_regular_mask.png", f"{truth}/000_shift_1_mask.png", mask=True)
    return put(root, "test_private/000_regular.png", "test_private_mixed/000_mixed.png")


def ksdd_tree(root: Path, items: int = 6) -> Path:
    """Two pictures an item, the second one defective."""
    for number in range(1, items + 1):
        item = f"kos{number:02}"
        put(root, f"{item}/Part0.jpg", f"{item}/Part1.jpg")
        black(root, f"{item}/Part0_label.bmp")
        put(root, f"{item}/Part1_label.bmp", mask=True)
    return root


def ksdd2_tree(root: Path) -> Path:
    put(root, "train/10000.png", "train/10001.png", "test/20000.png", "test/20001.png")
    black(root, "train/10000_GT.png", "test/20000_GT.png")
    return put(root, "train/10001_GT.png", "test/20001_GT.png", mask=True)


TREES: dict[str, Callable[[Path], Path]] = {
    "btad": btad_tree,
    "mvtec2": mvtec2_tree,
    "ksdd": ksdd_tree,
    "ksdd2": ksdd2_tree,
}
READERS = {"btad": btad.samples, "mvtec2": mvtec2.samples, "ksdd": ksdd.samples, "ksdd2": ksdd2.samples}


@pytest.mark.parametrize(("image", "mask"), [("bmp", "png"), ("png", "png"), ("bmp", "bmp"), ("BMP", "PNG")])
def test_btad_finds_a_mask_by_its_stem_whatever_the_extensions(tmp_path, image, mask):
    root = btad_tree(tmp_path / "01", image, mask)
    black(root, "ground_truth/ok/0000.png")
    found = btad.samples(root)
    assert facts(found) == [
        (f"test/ko/0000.{image}", "test", "ko", root / f"ground_truth/ko/0000.{mask}"),
        (f"test/ok/0000.{image}", "test", "good", None),
        (f"train/ok/0000.{image}", "train", "good", None),
        (f"train/ok/0001.{image}", "train", "good", None),
    ]
    assert all(sample.part == sample.name and sample.source == root / sample.name for sample in found)
    assert found[0].mask is not None
    assert read_mask(found[0].mask, (4, 6)).defect.sum() == 6


def test_mvtec_ad_2_trains_on_validation_too_tests_in_public_and_counts_lights_as_views(tmp_path):
    root = mvtec2_tree(tmp_path / "can")
    found = mvtec2.samples(root)
    truth = root / "test_public/ground_truth/bad"
    assert facts(found) == [
        ("test_public/bad/000_regular.png", "test", "bad", truth / "000_regular_mask.png"),
        ("test_public/bad/000_shift_1.png", "test", "bad", truth / "000_shift_1_mask.png"),
        ("test_public/good/000_regular.png", "test", "good", None),
        ("test_public/good/000_shift_1.png", "test", "good", None),
        ("train/good/000_regular.png", "train", "good", None),
        ("train/good/001_regular.png", "train", "good", None),
        ("validation/good/000_regular.png", "train", "good", None),
    ]
    assert [sample.part for sample in found] == [
        *["test_public/bad/000"] * 2,
        *["test_public/good/000"] * 2,
        *("train/good/000", "train/good/001", "validation/good/000"),
    ]
    assert "test_private/000_regular.png" in strays(root, found)


def test_a_name_of_mvtec_ad_2_without_a_number_is_a_part_of_its_own(tmp_path):
    root = put(mvtec2_tree(tmp_path / "can"), "train/good/extra.png")
    assert {s.part for s in mvtec2.samples(root) if s.name == "train/good/extra.png"} == {"train/good/extra.png"}


def test_kolektor_is_cut_by_item_into_three_folds_that_test_every_item_once(tmp_path):
    root = ksdd_tree(tmp_path / "KolektorSDD")
    tested = []
    for fold in range(3):
        found = ksdd.samples(root, fold)
        train, test = ({s.part for s in found if s.split == split} for split in ("train", "test"))
        assert (len(train), len(test), train & test) == (4, 2, set())
        assert all(sample.good for sample in found if sample.split == "train")
        assert ksdd.left_out(root, fold) == [f"{item}/Part1.jpg" for item in sorted(train)]
        assert len(found) + len(ksdd.left_out(root, fold)) == 12
        tested += test
    assert sorted(tested) == [f"kos{number:02}" for number in range(1, 7)]


def test_kolektor_says_by_its_labels_what_is_defective_and_never_changes_its_cut(tmp_path):
    root = ksdd_tree(tmp_path / "KolektorSDD")
    found = ksdd.samples(root)
    assert [sample.name for sample in found] == sorted(sample.name for sample in found)
    assert {sample.part for sample in found if sample.split == "test"} == {"kos02", "kos06"}
    assert facts(found)[:3] == [
        ("kos01/Part0.jpg", "train", "good", None),
        ("kos02/Part0.jpg", "test", "good", None),
        ("kos02/Part1.jpg", "test", "defect", root / "kos02/Part1_label.bmp"),
    ]
    assert not {"part-across-splits", "mask-empty", "mask-on-good"} & {f.code for f in audit(found).findings}


def test_kolektor_of_a_few_items_or_another_fold_is_an_error(tmp_path):
    root = ksdd_tree(tmp_path / "KolektorSDD", items=2)
    with pytest.raises(DataError, match=r"KolektorSDD: 2 items, too few for 3 folds; the data set has kos01 to kos50"):
        ksdd.samples(root)
    with pytest.raises(UsageError, match="fold is 3; give one from 0 to 2"):
        ksdd.samples(root, 3)


def test_kolektor_2_leaves_out_the_defective_ones_of_train_and_says_which(tmp_path):
    root = ksdd2_tree(tmp_path / "KolektorSDD2")
    found = ksdd2.samples(root)
    assert facts(found) == [
        ("test/20000.png", "test", "good", None),
        ("test/20001.png", "test", "defect", root / "test/20001_GT.png"),
        ("train/10000.png", "train", "good", None),
    ]
    assert all(sample.part == sample.name for sample in found)
    assert ksdd2.left_out(root) == ["train/10001.png"]


def test_a_single_faint_pixel_in_a_mask_makes_a_picture_defective(tmp_path):
    root = ksdd2_tree(tmp_path / "KolektorSDD2")
    faint = np.zeros((4, 6), np.uint8)
    faint[0, 0] = 1
    Image.fromarray(faint).save(root / "train/10000_GT.png")
    assert ksdd2.left_out(root) == ["train/10000.png", "train/10001.png"]


def test_copies_that_lie_in_the_archive_of_kolektor_2_are_passed_over(tmp_path):
    root = put(ksdd2_tree(tmp_path / "KolektorSDD2"), "train/10000 (copy).png", "train/10000_GT (copy).png")
    assert [s.name for s in ksdd2.samples(root)] == ["test/20000.png", "test/20001.png", "train/10000.png"]


def test_another_name_in_kolektor_2_is_an_error(tmp_path):
    root = put(ksdd2_tree(tmp_path / "KolektorSDD2"), "train/10002_gt.png")
    with pytest.raises(DataError, match=r"10002_gt\.png: is not called as in 10000\.png or 10000_GT\.png"):
        ksdd2.samples(root)


def test_mpdd_is_mvtecs_layout_and_needs_no_reader_of_its_own(tmp_path):
    root = tmp_path / "MPDD/bracket_black"
    put(root, "train/good/000.png", "test/good/000.png", "test/hole/000.png", "test/scratches/026.png")
    put(root, "ground_truth/hole/000_mask.png", "ground_truth/scratches/026_mask.png", mask=True)
    put(tmp_path, "MPDD/tubes/train/good/000.png")
    found = dataset(tmp_path / "MPDD")
    assert found == DataSet(tmp_path / "MPDD", "mvtec", ("bracket_black", "tubes"))
    assert facts(found.samples("bracket_black")) == [
        ("test/good/000.png", "test", "good", None),
        ("test/hole/000.png", "test", "hole", root / "ground_truth/hole/000_mask.png"),
        ("test/scratches/026.png", "test", "scratches", root / "ground_truth/scratches/026_mask.png"),
        ("train/good/000.png", "train", "good", None),
    ]


@pytest.mark.parametrize("kind", TREES)
def test_a_data_set_is_recognised_by_its_layout_and_found_like_any_other_folder(tmp_path, kind):
    above = tmp_path / "above"
    root = TREES[kind](above / "set")
    found = dataset(above)
    assert found == dataset(above, kind) == DataSet(above, kind, ("set",))
    assert (
        facts(found.samples("set")) == facts(READERS[kind](root)) == facts(find(root)) == facts(find(root, kind=None))
    )
    assert all(sample.source == root / sample.name for sample in found.samples("set"))
    assert dataset(tmp_path) == DataSet(tmp_path, kind, ("above/set",))


def test_both_of_mvtec_under_one_root_are_told_apart_by_kind(tmp_path):
    put(mvtec2_tree(tmp_path / "can").parent, "bottle/train/good/000.png")
    with pytest.raises(DataError, match=r"holds mvtec \(bottle\) and mvtec2 \(can\); give kind"):
        dataset(tmp_path)
    assert dataset(tmp_path, "mvtec").categories == ("bottle",)
    assert dataset(tmp_path, "mvtec2").categories == ("can",)


@pytest.mark.parametrize("kind", ["ksdd", "ksdd2"])
def test_a_set_of_one_category_may_be_given_by_its_own_folder(tmp_path, monkeypatch, kind):
    root = TREES[kind](tmp_path / "set")
    assert dataset(root) == dataset(root, kind) == DataSet(tmp_path, kind, ("set",))
    monkeypatch.chdir(root)
    assert dataset(Path(".")) == DataSet(tmp_path.resolve(), kind, ("set",))


@pytest.mark.parametrize("kind", ["btad", "mvtec2"])
def test_a_category_is_not_a_data_set(tmp_path, kind):
    with pytest.raises(DataError, match="set: is one category, not a data set; give the folder above"):
        dataset(TREES[kind](tmp_path / "set"))


@pytest.mark.parametrize(
    ("kind", "looked"),
    [
        ("btad", "folders with train/ok and test; found nothing. Expected is\n\nBTAD"),
        ("mvtec2", "folders with train/good and test_public; found nothing. Expected is\n\nMVTec AD 2"),
        ("ksdd", "folders kosNN in a folder; found nothing. Expected is\n\nKolektorSDD"),
        ("ksdd2", "train and test with <number>_GT.png in a folder; found nothing. Expected is\n\nKolektorSDD2"),
    ],
)
def test_an_empty_folder_is_an_error_that_shows_what_was_looked_for(tmp_path, kind, looked):
    with pytest.raises(DataError, match=looked):
        dataset(tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "gone", "reason"),
    [
        (
            "btad",
            "ground_truth/ko/0000.png",
            r"ground_truth/ko: no pictures; the data set has ground_truth/ko/0000\.png",
        ),
        (
            "btad",
            "test/ok/0000.bmp",
            r"test/ok: no pictures; the data set has test/ok/0000\.bmp or \.png; copy it again",
        ),
        ("btad", "test/ko/0000.bmp", r"test/ko: no pictures"),
        ("mvtec2", "validation/good/000_regular.png", r"validation/good: no pictures"),
        (
            "mvtec2",
            "test_public/ground_truth/bad/000_shift_1_mask.png",
            r"test_public/bad: 000_shift_1 has no mask in test_public/ground_truth/bad \(of 1\); copy",
        ),
        ("mvtec2", "test_public/bad/000_regular.png", r"000_regular_mask\.png: the picture of this mask is missing"),
        ("ksdd", "kos03/Part0_label.bmp", r"kos03: Part0 has no mask in kos03/PartN_label\.bmp \(of 1\)"),
        ("ksdd", "kos03/Part0.jpg", r"Part0_label\.bmp: the picture of this mask is missing; copy the data set again"),
        ("ksdd2", "train/10000_GT.png", r"train: 10000 has no mask in train/<number>_GT\.png \(of 1\)"),
        ("ksdd2", "test/20001.png", r"20001_GT\.png: the picture of this mask is missing; copy the data set again"),
    ],
)
def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path, kind, gone, reason):
    root = TREES[kind](tmp_path / "set")
    (root / gone).unlink()
    with pytest.raises(DataError, match=reason):
        find(root)


@pytest.mark.parametrize(
    ("kind", "folder", "stem"),
    [
        ("btad", "test/ko", "0000"),
        ("mvtec2", "train/good", "000_regular"),
        ("ksdd", "kos02", "Part0"),
        ("ksdd2", "test", "20000"),
    ],
)
def test_a_file_that_is_no_picture_or_stands_twice_is_an_error_and_clutter_is_not(tmp_path, kind, folder, stem):
    root = TREES[kind](tmp_path / "set")
    before = facts(find(root))
    (root / folder / "Thumbs.db").touch()
    (root / folder / ".hidden").touch()
    assert facts(find(root)) == before
    put(root, f"{folder}/{stem}.tif")
    with pytest.raises(DataError, match=rf"{folder}: {stem}\.\w+ and {stem}\.\w+ have the same name; keep one"):
        find(root)
    (root / folder / f"{stem}.tif").unlink()
    (root / folder / "9.gif").touch()
    with pytest.raises(
        DataError, match=rf"{folder}/9\.gif: is no picture \(\.bmp .*\.tiff\); save it as one, or remove"
    ):
        find(root)


@pytest.mark.parametrize(
    ("kind", "folder"), [("btad", "test/ok"), ("mvtec2", "test_public/good"), ("mvtec2", "validation/good")]
)
def test_a_folder_that_is_missing_is_an_error_that_says_what_is_in_it(tmp_path, kind, folder):
    root = TREES[kind](tmp_path / "set")
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(DataError, match=rf"{folder}: there is no such folder; the data set has {folder}/000"):
        find(root)


def test_an_item_without_pictures_is_an_error(tmp_path):
    root = ksdd_tree(tmp_path / "KolektorSDD")
    (root / "kos07").mkdir()
    with pytest.raises(DataError, match=r"kos07: no pictures; the data set has kos07/Part0\.jpg and kos07/Part0_label"):
        find(root)


def test_parts_csv_adds_to_the_parts_that_a_data_set_knows(tmp_path):
    root = ksdd_tree(tmp_path / "KolektorSDD")
    (root / "parts.csv").write_text("path,part\nkos01/Part0.jpg,A\n")
    assert [sample.part for sample in find(root)][:3] == ["A", "kos02", "kos02"]


def test_a_folder_of_good_pictures_with_other_names_is_read_as_before(tmp_path):
    put(tmp_path, "kosmos/a.png", "b.png")
    assert [sample.name for sample in find(tmp_path)] == ["b.png", "kosmos/a.png"]
    own = put(tmp_path / "own", "train/good/0.png", "test/good/0.png", "test_public/x.png")
    (own / "test_public/x.png").unlink()
    (own / "test_public").rmdir()
    assert [sample.name for sample in find(own)] == ["test/good/0.png", "train/good/0.png"]
