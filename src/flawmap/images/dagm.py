"""DAGM 2007, drawn textures with drawn defects, as it is published: one folder a class.

    Class1/Train/0576.PNG  Class1/Train/Label/0581_label.PNG  Class1/Train/Label/Labels.txt    (Test/ alike)

Labels.txt has a first line to skip, then a picture a line: id, flag (1: defective), picture, 0, its label or 0. Only
defective pictures have a label, a coarse ellipse around the defect. Without Labels.txt a picture with a label is
defective. Used without supervision: the good pictures of Train to train on, all of Test to test on; the defective ones
of Train are dropped. Names are matched without case and suffix, since copies differ in both.

Wieler, Hahn: Weakly supervised learning for industrial optical inspection, DAGM symposium 2007.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from flawmap.errors import DataError
from flawmap.images.decode import SUFFIXES
from flawmap.types import GOOD, Sample

DEFECT = "defect"
SPLITS: tuple[tuple[str, Literal["train", "test"]], ...] = (("Test", "test"), ("Train", "train"))


def is_class(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is a class: their case tells it from MVTec's layout on any disk."""
    named = re.fullmatch(r"class\d+", root.absolute().name, re.IGNORECASE)
    return named is not None and {"Train", "Test"} <= set(folders)


def samples(root: Path) -> list[Sample]:
    """The samples of a class, sorted by name: "Train/0576.PNG" is good, of "Test/..." some are a defect with a mask.

    DataError: a split without pictures or labels, or labels that contradict each other or the files.
    """
    found = []
    for folder, split in SPLITS:
        pictures = _by_stem(root / folder)
        if not pictures:
            raise DataError(f"{root / folder}: no pictures; DAGM has {root.name}/{folder}/0001.PNG and so on")
        masks = _by_stem(root / folder / "Label")
        defective = _defective(root / folder / "Label", pictures, masks)
        for stem, path in pictures.items():
            if split == "train" and stem in defective:
                continue
            name = f"{folder}/{path.name}"
            kind = DEFECT if stem in defective else GOOD
            found.append(Sample(path, name, name, split, kind, masks.get(stem)))
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        stem = _stem(path.name)
        if stem in found:
            raise DataError(f"{folder}: {found[stem].name} and {path.name} belong to the same picture; keep one")
        found[stem] = path
    return found


def _stem(name: str) -> str:
    """ "0001" of 0001.PNG and of 0001_label.PNG."""
    return Path(name).stem.lower().removesuffix("_label")


def _defective(folder: Path, pictures: dict[str, Path], masks: dict[str, Path]) -> set[str]:
    """Stems of the defective pictures, by Labels.txt where it is there, else by the labels."""
    listed = next((path for path in _files(folder) if path.name.lower() == "labels.txt"), None)
    if listed is None and not masks:
        raise DataError(
            f"{folder}: neither Labels.txt nor labels (0001_label.PNG), so nothing says which pictures are defective; "
            "copy the folder from the data set again"
        )
    defective = set(masks) if listed is None else _read(listed, pictures, masks)
    if strange := sorted(set(masks) - set(pictures)):
        raise DataError(f"{masks[strange[0]]}: the picture of this label is missing; copy the data set again")
    if strange := sorted(set(masks) - defective):
        raise DataError(f"{listed}: calls {pictures[strange[0]].name} good, but it has a label; remove what is wrong")
    return defective


def _read(path: Path, pictures: dict[str, Path], masks: dict[str, Path]) -> set[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    flags: dict[str, bool] = {}
    for number, line in enumerate(lines, 1):
        cells = line.split()
        fits = len(cells) in (3, 4, 5) and cells[1] in ("0", "1")
        if not cells or (number == 1 and not fits):
            continue
        where = f"{path}, line {number}"
        if not fits:
            raise DataError(f"{where}: is {line.strip()!r}; give id, 0 or 1, picture, 0, label or 0")
        stem = _stem(cells[2])
        if stem in flags or stem not in pictures:
            wrong = "stands there already" if stem in flags else "is not there"
            raise DataError(f"{where}: {cells[2]} {wrong}; copy the data set again, or remove the line")
        flags[stem] = cells[1] == "1"
        if (label := cells[4] if len(cells) == 5 else "0") != "0" and (not flags[stem] or stem not in masks):
            wrong = "is not there" if flags[stem] else f"is given to {cells[2]}, which the flag calls good"
            raise DataError(f"{where}: the label {label} {wrong}; copy the data set again, or mend the line")
    if missing := [file.name for stem, file in pictures.items() if stem not in flags]:
        raise DataError(f"{path}: says nothing of {missing[0]} (of {len(missing)} pictures); copy the data set again")
    return {stem for stem, flag in flags.items() if flag}
