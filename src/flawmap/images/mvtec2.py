"""MVTec AD 2, eight objects under changing light, as it is published: one folder an object.

    can/train/good/000_regular.png         can/validation/good/000_regular.png
    can/test_public/good/000_regular.png   can/test_public/bad/000_shift_1.png
    can/test_public/ground_truth/bad/000_shift_1_mask.png

Roles: train/good and validation/good are both good pictures to train on (names keep their folder), because what a
method needs to be held back, for its scale and its threshold, is cut from them by part. test_public is the test.
test_private and test_private_mixed have no labels, their answers are on MVTec's server: they are not read.

In a name the number is the thing shown and the word the light (regular, underexposed, overexposed, shift_1 ...). In
test_public the same things stand under every light, so pictures of one folder with one number are views of one part.
That a number means one thing is taken from the names and their counts, not from the paper; and numbers are taken to
begin anew in every folder.

Heckler-Kram, Neudeck, Scheler, Koenig, Steger: The MVTec AD 2 dataset, 2025, https://arxiv.org/abs/2503.21622.
CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from flawmap.images.published import match, pictures
from flawmap.types import GOOD, Sample

BAD = "bad"
PUBLIC = "test_public"
FOLDERS: tuple[tuple[str, Literal["train", "test"], str], ...] = (
    (f"{PUBLIC}/bad", "test", BAD),
    (f"{PUBLIC}/good", "test", GOOD),
    ("train/good", "train", GOOD),
    ("validation/good", "train", GOOD),
)


def is_category(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is an object: test_public tells it from the first MVTec AD."""
    return {"train", PUBLIC} <= set(folders) and (root / "train/good").is_dir()


def samples(root: Path) -> list[Sample]:
    """The samples of an object, sorted by name: "test_public/bad/000_regular.png" is "bad", with a mask.

    DataError: a folder that is missing or empty, a file that is no picture, a mask or a picture without its other.
    """
    truth = f"{PUBLIC}/ground_truth/bad"
    masks = {
        stem.removesuffix("_mask"): path
        for stem, path in pictures(root / truth, f"{truth}/000_regular_mask.png").items()
    }
    found = []
    for folder, split, kind in FOLDERS:
        here = pictures(root / folder, f"{folder}/000_regular.png")
        if kind == BAD:
            match(here, masks, root / folder, truth)
        for stem, path in here.items():
            number = re.match(r"(\d+)_", stem)
            name = f"{folder}/{path.name}"
            part = f"{folder}/{number[1]}" if number else name
            found.append(Sample(path, name, part, split, kind, masks[stem] if kind == BAD else None))
    return found
