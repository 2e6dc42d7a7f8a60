"""MVTec LOCO AD, five products with logical and structural anomalies, as it is published: one folder a product.

    pushpins/train/good/000.png        pushpins/validation/good/000.png        pushpins/defects_config.json
    pushpins/test/good/000.png         pushpins/test/logical_anomalies/000.png (and structural_anomalies)
    pushpins/ground_truth/logical_anomalies/000/000.png    001.png    ...

The mask of a picture is a folder with a file for every region, and all of them together are the mask. A region has one
value, 255 or a little less, that names its defect. `defects_config.json` says of each defect after how many pixels a
region counts as found in full: its saturation, for sPRO. It is a number of pixels, or a share of the region's area.

Roles: train/good and validation/good are both good pictures to train on (names keep their folder), because what a
method needs to be held back, for its scale and its threshold, is cut from them by part. Every picture is a part.

Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond dents and scratches: logical constraints in unsupervised anomaly
detection and localization, IJCV 130, 2022, https://doi.org/10.1007/s11263-022-01578-9. CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from flawmap.errors import DataError
from flawmap.images.decode import decode
from flawmap.images.published import match, pictures
from flawmap.types import GOOD, Sample

CONFIG = "defects_config.json"
TRUTH = "ground_truth"
KINDS = ("logical_anomalies", "structural_anomalies")
FOLDERS: tuple[tuple[str, Literal["train", "test"], str], ...] = (
    (f"test/{GOOD}", "test", GOOD),
    *((f"test/{kind}", "test", kind) for kind in KINDS),
    (f"train/{GOOD}", "train", GOOD),
    (f"validation/{GOOD}", "train", GOOD),
)
DARKEST = 129  # as mask, all above half of the range is a defect, and 128 alone is ignored (masks/levels.py)


class Saturation(NamedTuple):
    """When a region of a defect counts as found in full."""

    threshold: float  # pixels, or a share of the region's area
    relative: bool


def is_category(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is a product: the kinds, and what MVTec's layout has not."""
    kinds = any((root / "test" / kind).is_dir() for kind in KINDS)
    return kinds and ("validation" in folders or (root / CONFIG).is_file())


def samples(root: Path) -> list[Sample]:
    """The samples of a product, sorted by name: "test/logical_anomalies/000.png" has a tuple of files as its mask.

    DataError: a folder that is missing or empty, a file that is no picture, a picture without its folder of masks or
    the other way round, a defects_config.json that is missing or cannot be meant.
    """
    _config(root)
    found = []
    for folder, split, kind in FOLDERS:
        here = pictures(root / folder, f"{folder}/000.png")
        masks = {} if kind == GOOD else _masks(root, kind)
        if kind != GOOD:
            match(here, {stem: files[0].parent for stem, files in masks.items()}, root / folder, f"{TRUTH}/{kind}")
        for stem, path in here.items():
            name = f"{folder}/{path.name}"
            found.append(Sample(path, name, name, split, kind, masks.get(stem)))
    return found


def regions(sample: Sample) -> list[tuple[np.ndarray, float]]:
    """The regions of a picture, each as its mask (H, W) bool and its saturation in pixels, at most its area.

    None for a good picture, and for one of another data set: it is of this one where its masks are files in
    ground_truth/<one of KINDS>/<stem>. DataError: a file of no value or of several, of a value that defects_config.json
    lacks, or of another size than the others; or that file is missing or cannot be meant.
    """
    paths = [path for path in sample.mask if isinstance(path, Path)] if isinstance(sample.mask, tuple) else []
    if not all(len(path.parents) > 3 and _is_truth(path) for path in paths) or not paths:
        return []
    config = _config(paths[0].parents[3])
    found: list[tuple[np.ndarray, float]] = []
    for path in paths:
        mask, saturation = _region(path, config)
        if found and mask.shape != found[0][0].shape:
            raise DataError(f"{path}: has another size than {paths[0].name} beside it; copy the data set again")
        found.append((mask, saturation))
    return found


def _is_truth(path: Path) -> bool:
    return path.parents[1].name in KINDS and path.parents[2].name == TRUTH


def _masks(root: Path, kind: str) -> dict[str, tuple[Path, ...]]:
    """Stem of the picture -> the files of its regions."""
    folder, example = root / TRUTH / kind, f"{TRUTH}/{kind}/000/000.png"
    try:
        stems = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no such folder; the data set has {example}; copy it again") from None
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error
    return {stem: tuple(pictures(folder / stem, example).values()) for stem in stems}


def _region(path: Path, config: dict[int, Saturation]) -> tuple[np.ndarray, float]:
    values = decode(path).max(axis=2)
    mask = values > 0
    marked = [int(value) for value in np.unique(values[mask])]
    if len(marked) != 1:
        held = f"the values {', '.join(map(str, marked[:5]))}" if marked else "no defect"
        raise DataError(f"{path}: holds {held}; a file is one region, of one value. Copy the data set again")
    if marked[0] not in config:
        known = ", ".join(map(str, sorted(config)))
        raise DataError(f"{path}: {CONFIG} says nothing of the value {marked[0]}; it knows {known}. Copy both again")
    threshold, relative = config[marked[0]]
    area = float(np.count_nonzero(mask))
    return mask, threshold * area if relative else min(threshold, area)


def _config(root: Path) -> dict[int, Saturation]:
    """Value in a mask -> the saturation of its defect."""
    path = root / CONFIG
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{root}: there is no {CONFIG}; it is part of MVTec LOCO AD, copy it from there") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); copy the data set again") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: is not a list of defects; copy the data set again")
    found: dict[int, Saturation] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}, defect {number}"
        value, saturation = _defect(entry, where)
        if value in found:
            raise DataError(f"{where}: the value {value} is given twice; copy the data set again")
        found[value] = saturation
    return found


def _defect(entry: Any, where: str) -> tuple[int, Saturation]:
    keys = ("pixel_value", "saturation_threshold", "relative_saturation")
    if not isinstance(entry, dict) or not set(keys) <= set(entry):
        raise DataError(f"{where}: has not all of {', '.join(keys)}; copy the data set again")
    value, threshold, relative = (entry[key] for key in keys)
    if type(value) is not int or not DARKEST <= value <= 255:
        raise DataError(f"{where}: pixel_value is {value!r}; the data set has integers from {DARKEST} to 255")
    most = 1 if relative is True else 2**31
    if type(threshold) not in (int, float) or not 0 < threshold <= most or not isinstance(relative, bool):
        raise DataError(
            f"{where}: saturation_threshold is {threshold!r} and relative_saturation {relative!r}; the data set has "
            "pixels above 0 and false, or a share up to 1 and true"
        )
    return value, Saturation(float(threshold), relative)
