"""From a data set's masks to another tool's file and back, whole or not at all, and the same to the pixel."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images.decode import each_mask, size_of
from flawmap.images.folder import find
from flawmap.images.masks import coco, cvat, labelme, labelstudio
from flawmap.images.masks.levels import (
    DEFECT,
    IGNORE,
    IGNORED,
    Found,
    Marked,
    levels_of,
    read_levels,
    save_levels,
    shapes_of,
)
from flawmap.types import Sample

READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    "coco": coco.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "labelstudio": labelstudio.read,
}
WRITERS = {
    "coco": (coco, ""),
    "coco-rle": (coco, "rle"),
    "coco-polygon": (coco, "polygon"),
    "labelme": (labelme, ""),
    "labelme-polygon": (labelme, "polygon"),
    "cvat": (cvat, ""),
    "cvat-polygon": (cvat, "polygon"),
    "labelstudio": (labelstudio, ""),
}
SHOWN = 3


def export_masks(data: Path | str, out: Path, kind: str) -> dict[str, Any]:
    """Writes the masks of a data set to the new file or folder `out`, and reads it again before it is named so.

    Good pictures go along without shapes; defective ones without a mask are left out, since nobody has said where.
    DataError: a picture or mask cannot be read, a good picture has a defect, or the file would say other masks.
    """
    if kind not in WRITERS:
        raise UsageError(f"no format {kind!r}; there are: {', '.join(WRITERS)}")
    form, how = WRITERS[kind]
    samples = find(data)
    chosen = [sample for sample in samples if sample.mask is not None or sample.good]
    said: dict[str, str] = {}
    counts = {"pictures": len(chosen), "shapes": 0, "ignoring": 0, "cut": 0, "left_out": len(samples) - len(chosen)}
    with _whole(out) as new:
        marked = _marked(chosen, said, counts, apart=form is not labelstudio)
        form.write(marked, new, out, how)
        read = {found.called: _digest(levels_of(found.draw(), found.size_hw)) for found in form.read(new)}
        if wrong := [name for name in said if read.get(name) != said[name]]:
            raise DataError(f"{out}: would not say the same mask as {wrong[0]}; choose another format, and report this")
    return {"out": str(out), "format": kind, **counts}


def _marked(samples: Iterable[Sample], said: dict[str, str], counts: dict[str, int], apart: bool) -> Iterator[Marked]:
    for sample in samples:
        size = size_of(sample.source)
        levels = np.zeros(size, np.uint8)
        if sample.mask is not None:
            levels, cut = read_levels(each_mask(sample.mask), size, sample.name)
            counts["cut"] += cut
        if sample.kind == IGNORED:
            raise DataError(f"{sample.name}: a kind called {IGNORED!r} would mean pixels to ignore; rename its folder")
        if sample.good:
            _refuse_defect(levels, sample.name, "has a mask with a defect")
        shapes = shapes_of(levels, sample.kind or "defect", apart)
        counts["shapes"] += len(shapes)
        counts["ignoring"] += bool((levels == IGNORE).any())
        said[sample.name] = _digest(levels)
        yield Marked(sample.name, sample.source if isinstance(sample.source, Path) else None, size, shapes)


def import_masks(file: Path, data: Path | str, kind: str, out: Path | None = None) -> dict[str, Any]:
    """Writes the shapes in another tool's file as MVTec's masks for the pictures of `data`.

    `out` is a new folder, by default `ground_truth` in `data`. All defective pictures of the file get a mask, good
    ones only where they have something to ignore. DataError: the file is broken, names a picture that is not there
    or one twice, is of other sizes, or marks a defect on a good picture.
    """
    if kind not in READERS:
        raise UsageError(f"no format {kind!r}; there are: {', '.join(READERS)}")
    if not Path(data).is_dir():
        raise DataError(f"{data}: must be the folder that holds train/ and test/")
    samples = find(data)
    if other := [sample.name for sample in samples if sample.name.split("/")[0] not in ("train", "test")]:
        raise DataError(f"{data}: {other[0]} lies neither in train/ nor in test/; masks are written for MVTec's layout")
    home = Path(data) / "ground_truth" if out is None else out
    places = _Places(samples, data)
    seen: dict[str, str] = {}
    counts = {"pictures": 0, "masks": 0, "empty": 0, "ignoring": 0}
    with _whole(home) as new:
        new.mkdir()
        for found in READERS[kind](file):
            sample = places.of(found)
            if sample.name in seen:
                raise DataError(f"{found.where}: {sample.name} stands in {seen[sample.name]} already; keep one")
            seen[sample.name] = found.where
            levels = _levels(found, sample)
            counts["pictures"] += 1
            counts["ignoring"] += bool((levels == IGNORE).any())
            if sample.good and not levels.any():
                continue
            counts["masks"] += 1
            counts["empty"] += not (levels == DEFECT).any()
            stem = Path(sample.name.partition("/")[2]).with_suffix("")
            save_levels(levels, new / stem.parent / f"{stem.name}_mask.png")
    without = sum(not sample.good and sample.name not in seen for sample in samples)
    return {"out": str(home), "format": kind, **counts, "without": without}


def _levels(found: Found, sample: Sample) -> np.ndarray:
    size = size_of(sample.source)
    if found.size_hw != (0, 0) and found.size_hw != size:
        raise DataError(
            f"{found.where}: is of a picture of {found.size_hw[1]} x {found.size_hw[0]}, {sample.name} is {size[1]} x "
            f"{size[0]}; give the pictures that were marked"
        )
    levels = levels_of(found.draw(), size)
    if sample.good:
        _refuse_defect(levels, found.where, f"marks a defect on {sample.name}")
    return levels


def _refuse_defect(levels: np.ndarray, where: str, what: str) -> None:
    if (levels == DEFECT).any():
        raise DataError(f"{where}: {what}, which is called good; move the picture to test/<kind>, or unmark it")


class _Places:
    """Which picture a tool means: by its name in the data, by a longer path, or by a shorter one if only one fits."""

    def __init__(self, samples: list[Sample], data: Path | str) -> None:
        self.samples, self.data = {sample.name: sample for sample in samples}, data
        self.ends: dict[str, list[str]] = defaultdict(list)
        for name in self.samples:
            parts = name.split("/")
            for index in range(len(parts)):
                self.ends["/".join(parts[index:])].append(name)

    def of(self, found: Found) -> Sample:
        parts = found.called.replace("\\", "/").split("/")
        longer = (name for index in range(len(parts)) if (name := "/".join(parts[index:])) in self.samples)
        fits = self.ends.get(found.called) or self.ends.get("/".join(parts)) or list(longer)[:1]
        if len(fits) == 1:
            return self.samples[fits[0]]
        if not fits:
            raise DataError(f"{found.where}: there is no picture {found.called!r} in {self.data}; give its folder")
        listed = ", ".join(fits[:SHOWN]) + (f" and {len(fits) - SHOWN} more" if len(fits) > SHOWN else "")
        raise DataError(f"{found.where}: {found.called!r} may be {listed}; write the path below {self.data}")


def _digest(levels: np.ndarray) -> str:
    return hashlib.sha256(f"{levels.shape}".encode() + levels.tobytes()).hexdigest()


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A name beside `out` to write to, which becomes `out` when all went well and is gone when not."""
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} is there already; move it away, or name another with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    try:
        yield new
        os.replace(new, out)
    finally:
        if new.is_dir():
            shutil.rmtree(new)
        new.unlink(missing_ok=True)
