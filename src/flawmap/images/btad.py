"""BTAD, photographs of three products of a factory, as it is published: one folder a product.

    01/train/ok/0000.bmp    01/test/ok/0000.bmp    01/test/ko/0000.bmp    01/ground_truth/ko/0000.png

Pictures and masks are BMP or PNG by product (01: BMP and PNG, 02: PNG and PNG, 03: BMP and BMP), so a mask is found by
its stem. Some copies have ground_truth/ok too, which is not read.

Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL, a vision transformer network for image anomaly detection and
localization, ISIE 2021. CC BY-SA, as its own README says.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flawmap.images.published import match, pictures
from flawmap.types import GOOD, Sample

BAD = "ko"


def is_category(root: Path, folders: Iterable[str]) -> bool:
    """Whether a folder, which holds `folders`, is a product: good pictures are called ok, not good."""
    return {"train", "test"} <= set(folders) and (root / "train/ok").is_dir()


def samples(root: Path) -> list[Sample]:
    """The samples of a product, sorted by name: "train/ok/0000.bmp" is good, "test/ko/0000.bmp" is "ko" with a mask.

    DataError: a folder that is missing or empty, a file that is no picture, a mask or a picture without its other.
    """
    bad = pictures(root / "test/ko", "test/ko/0000.bmp or .png")
    masks = pictures(root / "ground_truth/ko", "ground_truth/ko/0000.png or .bmp")
    match(bad, masks, root / "test/ko", "ground_truth/ko")
    found = [_sample(f"test/ko/{path.name}", path, BAD, masks[stem]) for stem, path in bad.items()]
    for folder in ("test/ok", "train/ok"):
        good = pictures(root / folder, f"{folder}/0000.bmp or .png")
        found += [_sample(f"{folder}/{path.name}", path, GOOD, None) for path in good.values()]
    return found


def _sample(name: str, path: Path, kind: str, mask: Path | None) -> Sample:
    return Sample(path, name, name, "train" if name.startswith("train/") else "test", kind, mask)
