"""KolektorSDD2, surfaces of one product, as it is published: training and test in a folder each.

    train/10000.png    train/10000_GT.png    test/20000.png    test/20000_GT.png

Every picture has a mask; where no pixel of it is set, the picture is good. Good pictures of train are trained on, all
of test is tested; the defective ones of train (246 of 2331) are left out, and `left_out` names them. The published
archive holds "10301 (copy).png" and "10301_GT (copy).png" in train, doubles of 10301: copies are passed over. Nothing
says which pictures show the same item, so every picture is a part.

Bozic, Tabernik, Skocaj: Mixed supervision for surface-defect detection, Computers in Industry 2021. CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from flawmap.errors import DataError
from flawmap.images.published import marked, match, pictures
from flawmap.types import GOOD, Sample

DEFECT = "defect"
MASK = "_GT"
SPLITS: tuple[Literal["test", "train"], ...] = ("test", "train")


def is_category(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is the whole set: masks lie beside the pictures."""
    return set(SPLITS) <= set(folders) and any(any((root / split).glob(f"*{MASK}.png")) for split in SPLITS)


def samples(root: Path) -> list[Sample]:
    """The samples, sorted by name: "test/20000.png" is good, or "defect" with a mask.

    DataError: an empty split, a file that is not called as published, a mask or a picture without its other.
    """
    return [sample for sample in _read(root) if sample.good or sample.split == "test"]


def left_out(root: Path) -> list[str]:
    """Names of the defective pictures of train."""
    return [sample.name for sample in _read(root) if not sample.good and sample.split == "train"]


def _read(root: Path) -> list[Sample]:
    found = []
    for split in SPLITS:
        number = {"train": "10000", "test": "20000"}[split]
        here = pictures(root / split, f"{split}/{number}.png and {split}/{number}{MASK}.png")
        named = {stem: path for stem, path in here.items() if not stem.endswith(" (copy)")}
        if strange := [path for stem, path in named.items() if not re.fullmatch(rf"\d+({MASK})?", stem)]:
            raise DataError(
                f"{strange[0]}: is not called as in {number}.png or {number}{MASK}.png; rename or remove it"
            )
        masks = {stem.removesuffix(MASK): path for stem, path in named.items() if stem.endswith(MASK)}
        images = {stem: path for stem, path in named.items() if not stem.endswith(MASK)}
        match(images, masks, root / split, f"{split}/<number>{MASK}.png")
        for stem, path in images.items():
            name = f"{split}/{path.name}"
            kind, mask = (DEFECT, masks[stem]) if marked(masks[stem]) else (GOOD, None)
            found.append(Sample(path, name, name, split, kind, mask))
    return found
