"""VisA, photographs of twelve objects, as it is published: one folder an object, and a split file for all.

    1cls.csv or split_csv/1cls.csv        object,split,label,image,mask; paths relative to the root
    candle/Data/Images/Normal/0000.JPG    candle/Data/Images/Anomaly/000.JPG    candle/Data/Masks/Anomaly/000.png

Masks hold the ids of classes (1 to 9): every one is a defect, and so are they read (masks/levels.py). The re-arranged
form (candle/train/good, test/good, test/bad, ground_truth/bad) is MVTec's layout, which folder.py reads.

Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference self-supervised pre-training for anomaly detection and
segmentation, ECCV 2022, https://arxiv.org/abs/2207.14315. CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flawmap.errors import DataError
from flawmap.images.published import rows
from flawmap.types import GOOD, Sample

SPLIT_FILES = ("split_csv/1cls.csv", "1cls.csv")
COLUMNS = ("object", "split", "label", "image", "mask")
KINDS = {"normal": GOOD, "anomaly": "anomaly"}


def objects(root: Path) -> tuple[str, ...]:
    """The objects of the split file whose pictures are there, sorted; none where there is no split file."""
    path = _split_file(root)
    if path is None:
        return ()
    listed = {row["object"] for _, row in _rows(path)}
    return tuple(sorted(name for name in listed if (root / name / "Data").is_dir()))


def is_object(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is an object."""
    return "Data" in folders and any((root / "Data/Images" / kind).is_dir() for kind in ("Normal", "Anomaly"))


def of_object(root: Path) -> list[Sample]:
    """The samples of an object by its own folder: the split file lies above it. Errors are those of `samples`."""
    root = root.resolve() if root.name in ("", "..") else root
    return samples(root.parent, root.name)


def samples(root: Path, name: str) -> list[Sample]:
    """The samples of an object, sorted by name, which is relative to the object: "Data/Images/Normal/0000.JPG".

    DataError: no split file, or a row that cannot be meant or whose files are missing.
    """
    path = _split_file(root)
    if path is None:
        raise DataError(f"{root}: there is no {' or '.join(SPLIT_FILES)}; it is part of VisA, copy it from there")
    found: dict[str, Sample] = {}
    for where, row in _rows(path):
        if row["object"] != name:
            continue
        sample = _sample(root, where, row)
        if sample.name in found:
            raise DataError(f"{where}: {row['image']} stands there already; keep one")
        found[sample.name] = sample
    if not found:
        raise DataError(f"{path}: has no pictures of {name}; its objects are {', '.join(objects(root)) or 'not here'}")
    return [found[key] for key in sorted(found)]


def _split_file(root: Path) -> Path | None:
    return next((root / name for name in SPLIT_FILES if (root / name).is_file()), None)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for line, row in rows(path):
        if set(row) != set(COLUMNS):
            raise DataError(f"{path}, line {line}: the columns are not {', '.join(COLUMNS)}; give VisA's 1cls.csv")
        yield f"{path}, line {line}", {column: (value or "").strip() for column, value in row.items()}


def _sample(root: Path, where: str, row: dict[str, str]) -> Sample:
    kind, split, image = KINDS.get(row["label"]), row["split"], row["image"]
    if kind is None:
        raise DataError(f"{where}: the label is {row['label']!r}; known are {', '.join(KINDS)}")
    if split not in ("train", "test"):
        raise DataError(f"{where}: split is {split!r}; known are train, test")
    if split == "train" and kind != GOOD:
        raise DataError(f"{where}: an anomaly is in train, which takes normal pictures only; give VisA's 1cls.csv")
    if not image.startswith(f"{row['object']}/"):
        raise DataError(f"{where}: the image {image!r} does not lie in {row['object']}/; mend the line")
    for file in (image, row["mask"]):
        if file and not (root / file).is_file():
            raise DataError(f"{where}: there is no file {root / file}; copy the data set again")
    name = image.removeprefix(f"{row['object']}/")
    return Sample(root / image, name, name, split, kind, root / row["mask"] if row["mask"] else None)
