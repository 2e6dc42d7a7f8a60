"""Where pictures come from on a disk or in memory: a folder, a list, files, arrays -> samples in a fixed order.

A folder is read in the MVTec layout when it has `train/` or `test/`:

    train/good/  test/good/  test/<kind>/  ground_truth/<kind>/<stem>_mask.<any>

as a data set of research where it has the layout of one (visa.py, dagm.py, btad.py, mvtec2.py, loco.py, ksdd.py,
ksdd2.py), else as one folder of good pictures, nested folders included. A list is a .csv with a header, or a .jsonl,
of: path (relative to the list), split, kind (or label), mask, part. A `parts.csv` (path, part) in the folder says which
pictures show one part; without it every picture is a part of its own, or of what the data set says.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawmap.errors import DataError, UsageError
from flawmap.images import btad, dagm, ksdd, ksdd2, loco, mvtec2, visa
from flawmap.images.decode import MAX_MPX, SUFFIXES, decode, each_mask, label
from flawmap.images.masks.levels import read_levels, sidecar
from flawmap.images.published import CLUTTER, rows
from flawmap.types import GOOD, Sample

PUBLISHED = (
    (visa.is_object, visa.of_object),
    (dagm.is_class, dagm.samples),
    (btad.is_category, btad.samples),
    (mvtec2.is_category, mvtec2.samples),
    (loco.is_category, loco.samples),
    (ksdd.is_category, ksdd.samples),
    (ksdd2.is_category, ksdd2.samples),
)
COLUMNS = ("path", "split", "kind", "label", "mask", "part")
LAYOUT = ("train", "test", "ground_truth")
STATE, DRAWING = "capture.json", "plan.svg"  # beside the pictures that flawmap capture took
MASK_ENDS = ("_mask", "_label", "_GT")  # of the name of a mask that lies beside its picture
NOT_GOOD = {
    *LAYOUT,
    "anomalous",
    "anomaly",
    "bad",
    "defect",
    "defective",
    "defects",
    "ko",
    "mask",
    "masks",
    "ng",
    "nok",
}
LOOKED_FOR = (
    "looked for train/good and test/<kind> (MVTec layout), or pictures ("
    + " ".join(sorted(SUFFIXES))
    + ") in the folder"
)

Origin = Path | str | np.ndarray | Iterable[Path | str | np.ndarray | Sample]


def find(source: Origin, *, part_pattern: str | None = None, kind: str | None = GOOD) -> list[Sample]:
    """The samples of a folder, list, file or array, or of many files and arrays, sorted by name where it is a folder.

    `kind` is what a picture is where nothing says so: good (for fitting) or None (to be judged).
    `part_pattern` is a regular expression searched in each name: its group `part`, or its first, is the part.
    DataError: nothing found, or a layout, list or parts.csv that cannot be meant. UsageError: two rules for parts.
    """
    if isinstance(source, np.ndarray):
        samples = _listed(source if source.ndim == 4 else [source], kind)
    elif not isinstance(source, Path | str):
        samples = _listed(source, kind)
    elif str(source) == "":
        raise UsageError("the name of a folder or file is empty; write . for the folder you are in")
    elif Path(source).is_dir():
        samples = _folder(Path(source), kind)
    elif not Path(source).exists():
        raise DataError(f"{source}: there is no such file or folder")
    elif Path(source).suffix.lower() in (".csv", ".jsonl"):
        samples = _list(Path(source), kind)
    else:
        samples = [Sample(Path(source), Path(source).name, Path(source).name, kind=kind)]
    if not samples:
        raise DataError("no pictures were given")
    if part_pattern is None:
        return samples
    if any(sample.part != sample.name for sample in samples):
        raise UsageError(
            "parts are named by the data (parts.csv or a column part) and by part_pattern; use one of them"
        )
    return _match_parts(samples, part_pattern)


def refuse_twice(paths: Iterable[Path | str]) -> None:
    """UsageError: a file stands twice among those given, links followed, and would count as two views of its part."""
    seen: set[tuple[int, int] | str] = set()
    for path in paths:
        try:
            stat = os.stat(path)
            file = (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)  # 0: the disk has no numbers
        except (OSError, ValueError):  # it is not there: told when it is read
            file = os.path.abspath(path)
        if file in seen:
            raise UsageError(f"{path} is given twice, by itself, in a folder or by a link; give every picture once")
        seen.add(file)


def strays(root: Path | str, samples: Iterable[Sample]) -> list[str]:
    """Names of the files under `root` that are neither a sample nor of its mask: left out, told by the audit."""
    root = Path(root)
    paths = (path for sample in samples for path in (sample.source, *each_mask(sample.mask)))
    paths = [path for path in paths if isinstance(path, Path)]
    used = {os.path.realpath(each) for path in paths for each in (path, sidecar(path))}
    if (root / STATE).is_file():  # a capture: each picture has its facts beside it
        used |= {os.path.realpath(path) for path in (root / STATE, root / DRAWING)}
        used |= {os.path.realpath(path.with_suffix(".json")) for path in paths}
    return [
        path.relative_to(root).as_posix()
        for path in _walk(root)
        if os.path.realpath(path) not in used and path not in (root / "parts.csv", root / loco.CONFIG)
    ]


def check(
    samples: Iterable[Sample], skip_bad: bool = False, max_mpx: float = MAX_MPX
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Decodes every picture and mask, so that work does not stop half way.

    Returns the samples that can be used and, with `skip_bad`, (name, reason) of the others. DataError: lists all that
    cannot be read; or none is left.
    """
    fine: list[Sample] = []
    bad: list[tuple[str, str]] = []
    for sample in samples:
        try:
            pixels = decode(sample.source, max_mpx)
            if sample.mask is not None:
                read_levels(sample.mask, pixels.shape[:2], sample.name)
            fine.append(sample)
        except DataError as error:
            bad.append((sample.name, str(error).removeprefix(f"{label(sample.source)}: ")))
    if bad and not (skip_bad and fine):
        lines = [f"  {name}: {reason}" for name, reason in bad[:20]]
        more = [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
        hint = "none is left" if skip_bad else "mend or remove them, or leave them out with skip_bad"
        head = f"{len(bad)} of {len(bad) + len(fine)} pictures cannot be used; {hint}:"
        raise DataError("\n".join([head, *lines, *more]))
    return fine, bad


def sha256(sample: Sample) -> str:
    """Of the file's bytes, or of an array's shape, type and bytes."""
    if isinstance(sample.source, bytes):
        return hashlib.sha256(sample.source).hexdigest()
    if isinstance(sample.source, Path):
        try:
            with sample.source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{sample.source}: cannot be read ({error.strerror})") from error
    array = np.ascontiguousarray(sample.source)
    return hashlib.sha256(f"{array.shape} {array.dtype.str}".encode() + array.tobytes()).hexdigest()


def _refuse_folder(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a missing ground_truth is fine, one that may not be read is not
        raise DataError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions"
        ) from error


def _walk(root: Path) -> Iterator[Path]:
    """Every file below, sorted in each folder, hidden ones and clutter left out; each folder once, links followed."""
    seen: set[str] = set()
    for directory, folders, files in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(files) if name[0] != "." and name.lower() not in CLUTTER)


def _pictures(root: Path) -> list[str]:
    """Names relative to the root, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in _walk(root) if path.suffix.lower() in SUFFIXES)


def _listed(sources: Iterable[Path | str | np.ndarray | Sample], kind: str | None) -> list[Sample]:
    samples = []
    for index, source in enumerate(sources):
        if isinstance(source, Sample):
            samples.append(source)
        elif isinstance(source, Path | str):
            name = Path(source).as_posix()
            samples.append(Sample(Path(source), name, name, kind=kind))
        elif isinstance(source, np.ndarray):
            name = f"array-{index:04d}"
            samples.append(Sample(source, name, name, kind=kind))
        else:
            raise UsageError(f"item {index} is a {type(source).__name__}; give paths, arrays or samples")
    return samples


def _folder(root: Path, kind: str | None) -> list[Sample]:
    try:
        found = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be read ({error.strerror}); check its permissions") from error
    folders = [name[:-1] for name in found if name.endswith("/")]
    for is_one, read in PUBLISHED:
        if is_one(root, folders):
            return _read_parts(root, read(root))
    for name in folders:
        if name.lower() in LAYOUT and name not in LAYOUT:
            raise DataError(f"{root}: the folder {name} must be written {name.lower()}; rename it")
    if "train" in folders or "test" in folders:
        samples = _mvtec(root)
    else:
        names = _pictures(root)
        if kind == GOOD:
            _refuse_mixed(root, folders, names)
        samples = [Sample(root / name, name, name, kind=kind) for name in names]
    if not samples:
        listed = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "") or "nothing"
        raise DataError(f"{root}: no pictures; {LOOKED_FOR}; found {listed}")
    return _read_parts(root, samples)


def _categories(root: Path, folders: list[str], levels: int = 2) -> list[str]:
    """Folders inside, up to two levels down, that are a category of a data set each."""
    found = []
    for name in folders:
        here = root / name
        inner = sorted(path.name for path in here.iterdir() if path.is_dir() and not path.name.startswith("."))
        if (here / "train/good").is_dir() or any(is_one(here, inner) for is_one, _ in PUBLISHED):
            found.append(name)
        elif levels > 1:
            found += [f"{name}/{each}" for each in _categories(here, inner, levels - 1)]
    return found


def _refuse_mixed(root: Path, folders: list[str], names: list[str]) -> None:
    """One folder is taken as good throughout, so a name that says otherwise is an error."""
    if inside := _categories(root, [name for name in folders if not name.startswith(".")]):
        listed = ", ".join(inside[:5]) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "")
        raise DataError(f"{root}: is a data set, of {listed}; give one of them, such as {root / inside[0]}")
    for name in names:
        if wrong := next((folder for folder in name.split("/")[:-1] if folder.lower() in NOT_GOOD), None):
            raise DataError(
                f"{root}: would be taken as good pictures only, but {name} lies in a folder {wrong!r}; give the folder "
                "that holds train/ and test/, or the folder of the good pictures alone"
            )
    stems = {Path(name).stem for name in names}
    for name in names:
        stem = Path(name).stem
        if any(stem.endswith(end) and stem.removesuffix(end) in stems for end in MASK_ENDS):
            raise DataError(
                f"{root}: would be taken as good pictures only, but {name} is called like the mask of a picture; give "
                "the folder above where this is part of a data set, or rename it"
            )
    others = [name for name in names if not name.startswith("good/")]
    if "good" in folders and others:
        raise DataError(
            f"{root}: has good/ and other pictures beside it ({others[0]}); give {root / 'good'} alone, or make it "
            "train/good, test/good and test/<kind>"
        )


def _mvtec(root: Path) -> list[Sample]:
    samples = []
    for split in ("train", "test"):
        for name in _pictures(root / split):
            kind, _, rest = name.partition("/")
            if not rest or (split == "train" and kind != GOOD):
                place = "train/good" if split == "train" else "test/good or test/<kind>"
                raise DataError(f"{root}: {split}/{name} must lie in {place}; move it there")
            _refuse_alias(kind, f"{root}: the folder {split}/{kind}")
            full = f"{split}/{name}"
            samples.append(Sample(root / full, full, full, split, kind))
    masks = masks_of(root / "ground_truth")
    return [
        replace(sample, mask=masks.get(sample.name.removeprefix("test/").rsplit(".", 1)[0]))
        if sample.split == "test"
        else sample
        for sample in sorted(samples, key=lambda sample: sample.name)
    ]


def masks_of(root: Path) -> dict[str, Path]:
    """<kind>/<stem> -> mask, with or without `_mask` behind the stem, in a folder laid out as ground_truth."""
    masks: dict[str, Path] = {}
    for name in _pictures(root):
        key = name.rsplit(".", 1)[0].removesuffix("_mask")
        if key in masks:
            raise DataError(f"{root}: {masks[key].name} and {name} are masks of the same picture; keep one")
        masks[key] = root / name
    return masks


def _refuse_alias(kind: str, where: str) -> None:
    if kind != GOOD and kind.lower() in (GOOD, "ok", "normal"):
        raise DataError(f"{where} would count as a defect; rename it to {GOOD!r}")


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place for errors, row without its empty cells); every row has a path, which exists and comes once."""
    seen: dict[str, str] = {}
    for line, row in rows(path):
        where = f"{path}, line {line}"
        if not isinstance(row, dict) or not all(isinstance(value, str | None) for value in row.values()):
            raise DataError(f"{where}: give the columns {', '.join(columns)}, each a text")
        if unknown := [str(column) for column in row if column not in columns]:
            raise DataError(f"{where}: unknown columns {', '.join(unknown)}; known are {', '.join(columns)}")
        cells = {column: value.strip() for column, value in row.items() if value and value.strip()}
        if "path" not in cells:
            raise DataError(f"{where}: no path")
        name = cells["path"] = Path(cells["path"]).as_posix()
        if name in seen:
            raise DataError(f"{where}: {name} stands in {seen[name]} already; keep one")
        if not (path.parent / name).is_file():
            raise DataError(f"{where}: there is no file {path.parent / name}; paths are relative to the list")
        seen[name] = f"line {line}"
        yield where, cells


def _list(path: Path, default: str | None) -> list[Sample]:
    if path.name == "parts.csv":
        raise DataError(f"{path}: says which pictures show one part, not what they are; give its folder")
    samples, unsaid = [], set()
    for where, row in _table(path, COLUMNS):
        if "kind" in row and "label" in row:
            raise DataError(f"{where}: kind and label mean the same; keep one")
        kind = row.get("kind", row.get("label", default))
        _refuse_alias(kind or GOOD, f"{where}: the kind {kind}")
        split = row.get("split", "train" if kind == GOOD else "test")
        if split not in ("train", "test"):
            raise DataError(f"{where}: split is {split!r}; known are train, test")
        if split == "train" and kind != GOOD:
            raise DataError(f"{where}: {kind} is in train, which takes good pictures only")
        mask = path.parent / row["mask"] if "mask" in row else None
        if mask is not None and not mask.is_file():
            raise DataError(f"{where}: there is no mask {mask}; paths are relative to the list")
        name = row["path"]
        samples.append(Sample(path.parent / name, name, row.get("part", name), split, kind, mask))
        unsaid |= set() if "split" in row else {name}
    broken = {s.part for s in samples if s.kind not in (GOOD, None)}  # their good views belong to the test as well
    return [replace(s, split="test") if s.name in unsaid and s.part in broken else s for s in samples]


def _read_parts(root: Path, samples: list[Sample]) -> list[Sample]:
    if not (root / "parts.csv").is_file():
        return samples
    parts = {}
    for where, row in _table(root / "parts.csv", ("path", "part")):
        if "part" not in row:
            raise DataError(f"{where}: no part")
        parts[row["path"]] = row["part"]
    return [replace(sample, part=parts.get(sample.name, sample.part)) for sample in samples]


def _match_parts(samples: list[Sample], pattern: str) -> list[Sample]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"part_pattern {pattern!r} is not a regular expression ({error})") from error
    if not expression.groups:
        raise UsageError(f"part_pattern {pattern!r} has no group; put the part in brackets, as in 'part(\\d+)'")
    group = "part" if "part" in expression.groupindex else 1
    parted = []
    for sample in samples:
        found = expression.search(sample.name)
        if found is None or not found[group]:
            raise DataError(f"part_pattern {pattern!r} finds no part in the name {sample.name}")
        parted.append(replace(sample, part=found[group]))
    return parted
