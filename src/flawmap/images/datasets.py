"""One front for the data sets of research: a root folder -> its kind, its categories, and the samples of each.

MVTec AD and all that has its layout, such as MPDD (folder.py), VisA (visa.py), DAGM 2007 (dagm.py), BTAD (btad.py),
MVTec AD 2 (mvtec2.py), MVTec LOCO AD (loco.py), KolektorSDD (ksdd.py), KolektorSDD2 (ksdd2.py). The last two are one
category each, so their own folder serves as well as the one above.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flawmap.errors import DataError, UsageError
from flawmap.images import btad, dagm, ksdd, ksdd2, loco, mvtec2, visa
from flawmap.images.folder import find
from flawmap.types import Sample

LAYOUTS = {
    "mvtec": """\
MVTec AD: 15 categories, 3629 pictures to train on, 1725 to test on (MPDD, 6 categories, is alike)
  bottle/
    train/good/000.png
    test/good/000.png
    test/<kind>/000.png
    ground_truth/<kind>/000_mask.png""",
    "visa": """\
VisA: 12 objects, 8659 normal pictures to train on, 962 normal and 1200 anomalous to test on
  split_csv/1cls.csv  (or 1cls.csv)
  candle/
    Data/Images/Normal/0000.JPG
    Data/Images/Anomaly/000.JPG
    Data/Masks/Anomaly/000.png
or re-arranged, each object in the layout of MVTec AD
  candle/
    train/good/0000.JPG
    test/good/0001.JPG
    test/bad/000.JPG
    ground_truth/bad/000.png""",
    "dagm": """\
DAGM 2007: 10 classes; Class1 to 6: 575 pictures in Train, 575 in Test; Class7 to 10: 1150 and 1150
  Class1/
    Train/0576.PNG
    Train/Label/Labels.txt
    Train/Label/0581_label.PNG  (defective pictures only)
    Test/  (alike)""",
    "btad": """\
BTAD: 3 products, 1799 pictures to train on, 741 to test on, 290 of them defective
  01/
    train/ok/0000.bmp  (or .png)
    test/ok/0000.bmp
    test/ko/0000.bmp
    ground_truth/ko/0000.png  (or .bmp)""",
    "mvtec2": """\
MVTec AD 2: 8 objects; the private test sets have no labels and are not read
  can/
    train/good/000_regular.png
    validation/good/000_regular.png
    test_public/good/000_regular.png
    test_public/bad/000_regular.png
    test_public/ground_truth/bad/000_regular_mask.png""",
    "loco": """\
MVTec LOCO AD: 5 categories, 1772 pictures to train on and 304 to validate on, 1568 to test on, 993 of them anomalous
  pushpins/
    defects_config.json
    train/good/000.png
    validation/good/000.png
    test/good/000.png
    test/logical_anomalies/000.png
    test/structural_anomalies/000.png
    ground_truth/logical_anomalies/000/000.png  (a file for every region; structural_anomalies alike)""",
    "ksdd": """\
KolektorSDD: 50 items, 399 pictures, 52 of them defective; cut by item into three folds, the first to test on
  KolektorSDD/
    kos01/Part0.jpg
    kos01/Part0_label.bmp  (black where nothing is wrong)""",
    "ksdd2": """\
KolektorSDD2: 2331 pictures in train, 246 of them defective (left out); 1004 in test, 110 of them defective
  KolektorSDD2/
    train/10000.png
    train/10000_GT.png  (black where nothing is wrong)
    test/  (alike)""",
}
LOOKED_FOR = {
    "mvtec": "folders with train/good",
    "visa": f"{' or '.join(visa.SPLIT_FILES)} beside <object>/Data",
    "dagm": "folders ClassN with Train and Test",
    "btad": "folders with train/ok and test",
    "mvtec2": "folders with train/good and test_public",
    "loco": f"folders with test/{' or test/'.join(loco.KINDS)}, and validation or {loco.CONFIG}",
    "ksdd": "folders kosNN in a folder",
    "ksdd2": "train and test with <number>_GT.png in a folder",
}
IS_CATEGORY: dict[str, Callable[[Path, list[str]], bool]] = {
    # Those of MVTec AD 2 and of MVTec LOCO AD have train/good too.
    "mvtec": lambda root, folders: (
        (root / "train/good").is_dir() and not any(each.is_category(root, folders) for each in (mvtec2, loco))
    ),
    "visa": lambda root, folders: (root / "Data/Images").is_dir(),
    "dagm": dagm.is_class,
    "btad": btad.is_category,
    "mvtec2": mvtec2.is_category,
    "loco": loco.is_category,
    "ksdd": ksdd.is_category,
    "ksdd2": ksdd2.is_category,
}
WHOLE = ("ksdd", "ksdd2")  # kinds whose one category is the whole set


@dataclass(frozen=True, slots=True)
class DataSet:
    """A root folder whose layout is known."""

    root: Path
    kind: str  # one of LAYOUTS
    categories: tuple[str, ...]  # as in "bottle", or "mvtec/bottle" where they lie two levels down

    def samples(self, category: str) -> list[Sample]:
        """Sorted by name, which is relative to the category. DataError: it is not there, or cannot serve."""
        if category not in self.categories:
            raise DataError(f"{self.root}: there is no category {category!r}; there are {', '.join(self.categories)}")
        if self.kind == "visa" and (self.root / category / "Data").is_dir():
            return visa.samples(self.root, category)
        return find(self.root / category)


def dataset(root: Path, kind: str = "") -> DataSet:
    """The data set in a folder, whose kind is seen from its layout unless it is given.

    VisA re-arranged cannot be told from MVTec's layout: it is "mvtec" unless kind says "visa". Of a set that is one
    category, its own folder may be given: the root is then the folder above.
    UsageError: an unknown kind. DataError: no such folder, nothing or several kinds in it, or it is one category.
    """
    wanted = tuple(LAYOUTS) if not kind else (kind,)
    trees = "\n\n".join(layout(each) for each in wanted)
    if not root.is_dir():
        wrong = "is not a folder" if root.exists() else "there is no such folder"
        raise DataError(f"{root}: {wrong}; expected is a folder that holds\n\n{trees}")
    found = {each: categories for each in wanted if (categories := _categories(root, each))}
    if kind == "visa" and not found and (categories := _categories(root, "mvtec")):
        found = {kind: categories}
    if len(found) > 1:
        several = " and ".join(f"{each} ({', '.join(categories[:3])})" for each, categories in found.items())
        raise DataError(f"{root}: holds {several}; give kind, or the folder of one of them")
    if found:
        return DataSet(root, *found.popitem())
    if whole := [each for each in WHOLE if each in wanted and _is_category(root, each)]:
        root = root.resolve() if root.name in ("", "..") else root
        return DataSet(root.parent, whole[0], (root.name,))
    if any(_is_category(root, each) for each in LAYOUTS):
        raise DataError(f"{root}: is one category, not a data set; give the folder above, {root.absolute().parent}")
    here = _folders(root, files=True)
    listed = ", ".join(here[:10]) + (f" and {len(here) - 10} more" if len(here) > 10 else "") or "nothing"
    looked = "; ".join(LOOKED_FOR[each] for each in wanted)
    raise DataError(f"{root}: no data set; looked for {looked}; found {listed}. Expected is\n\n{trees}")


def layout(kind: str) -> str:
    """The folders and published sizes of a data set, for people. UsageError: an unknown kind."""
    if kind not in LAYOUTS:
        raise UsageError(f"unknown kind {kind!r} of data set; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[kind]


def _categories(root: Path, kind: str) -> tuple[str, ...]:
    if kind == "visa":
        return visa.objects(root)
    found: list[str] = []
    for name in _folders(root):
        if _is_category(root / name, kind):
            found.append(name)
        else:
            inner = _folders(root / name)
            found += [f"{name}/{each}" for each in inner if _is_category(root / name / each, kind)]
    return tuple(found)


def _is_category(folder: Path, kind: str) -> bool:
    return IS_CATEGORY[kind](folder, _folders(folder))


def _folders(root: Path, files: bool = False) -> list[str]:
    """Names of the folders in a folder, numbers in them sorted as such; hidden ones left out."""
    try:
        found = [path.name for path in root.iterdir() if path.name[0] != "." and (files or path.is_dir())]
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be read ({error.strerror}); check its permissions") from error
    return sorted(found, key=lambda name: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)])
