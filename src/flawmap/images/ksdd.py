"""KolektorSDD, surfaces of electrical commutators, as it is published: one folder an item, which is the part.

    kos01/Part0.jpg    kos01/Part0_label.bmp

Every picture has a label; where no pixel of it is set, the picture is good. There is no folder for training. The paper
cuts the items into three folds, but publishes them only as pickled files, which are not opened here. So the items are
cut into three folds by split.folds, in the order of a hash of their names: one fold is the test with all its pictures,
of the other two the good pictures are trained on and the defective ones are left out, so that no item is on both sides.
Hence results compare with others only where they are cut by item too; libraries that draw single pictures do not.

Of its eight pictures (one item has seven) every item has one that is defective, two items have two. So no item of the
test is good, and one to train on shows fewer pictures than one to test on: only figures by picture can be had from this
set, no false alarms of parts and hardly a verdict.

Tabernik, Sela, Skvarc, Skocaj: Segmentation-based deep-learning approach for surface-defect detection, Journal of
Intelligent Manufacturing 2020. CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from flawmap.errors import DataError, UsageError
from flawmap.images.published import marked, match, pictures
from flawmap.images.split import folds
from flawmap.types import GOOD, Sample

DEFECT = "defect"
FOLDS = 3
SEED = 0
LABEL = "_label"


def is_category(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is the whole set: by the items' names, whatever is missing in them."""
    return any(re.fullmatch(r"kos\d+", name) and (root / name).is_dir() for name in folders)


def samples(root: Path, fold: int = 0) -> list[Sample]:
    """The samples, sorted by name: "kos01/Part0.jpg" is of the part kos01. `fold`, from 0, is the one that is tested.

    DataError: fewer items than folds, an empty item, a file that is no picture, a label or a picture without its other.
    """
    return [sample for sample in _cut(root, fold) if sample.good or sample.split == "test"]


def left_out(root: Path, fold: int = 0) -> list[str]:
    """Names of the defective pictures of training items."""
    return [sample.name for sample in _cut(root, fold) if not sample.good and sample.split == "train"]


def _cut(root: Path, fold: int) -> list[Sample]:
    if fold not in range(FOLDS):
        raise UsageError(f"fold is {fold}; give one from 0 to {FOLDS - 1}")
    items = sorted(path for path in root.iterdir() if path.is_dir() and re.fullmatch(r"kos\d+", path.name))
    if len(items) < FOLDS:
        raise DataError(f"{root}: {len(items)} items, too few for {FOLDS} folds; the data set has kos01 to kos50")
    found = [sample for item in items for sample in _item(item)]
    tested = {sample.part for sample in folds(found, FOLDS, SEED)[fold]}
    return [replace(sample, split="test" if sample.part in tested else "train") for sample in found]


def _item(item: Path) -> list[Sample]:
    here = pictures(item, f"{item.name}/Part0.jpg and {item.name}/Part0_label.bmp")
    labels = {stem.removesuffix(LABEL): path for stem, path in here.items() if stem.endswith(LABEL)}
    parts = {stem: path for stem, path in here.items() if not stem.endswith(LABEL)}
    match(parts, labels, item, f"{item.name}/PartN{LABEL}.bmp")
    found = []
    for stem, path in parts.items():
        bad = marked(labels[stem])
        kind, mask = (DEFECT, labels[stem]) if bad else (GOOD, None)
        found.append(Sample(path, f"{item.name}/{path.name}", item.name, kind=kind, mask=mask))
    return found
