"""What readers of data sets share: rows of a list, pictures by their stem, masks to pictures, empty masks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flawmap.errors import DataError
from flawmap.images.decode import SUFFIXES, decode

CLUTTER = {"thumbs.db", "desktop.ini"}


def pictures(folder: Path, example: str) -> dict[str, Path]:
    """Name without suffix -> picture, sorted; hidden files and clutter are passed over, folders too.

    DataError: no such folder, nothing in it (`example` says what the data set has there), a file that is no picture,
    or two pictures of one name.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except FileNotFoundError:
        raise DataError(f"{folder}: there is no such folder; the data set has {example}; copy it again") from None
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error
    found: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith(".") or path.name.lower() in CLUTTER:
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: is no picture ({' '.join(sorted(SUFFIXES))}); save it as one, or remove it")
        if path.stem in found:
            raise DataError(f"{folder}: {found[path.stem].name} and {path.name} have the same name; keep one")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: no pictures; the data set has {example}; copy it again")
    return found


def match(stems: Iterable[str], masks: Mapping[str, Path], folder: Path, masks_in: str) -> None:
    """Every picture of `folder` has a mask and every mask a picture. DataError: names the first that has none."""
    wanted = sorted(stems)
    if missing := [stem for stem in wanted if stem not in masks]:
        raise DataError(
            f"{folder}: {missing[0]} has no mask in {masks_in} (of {len(missing)}); copy the data set again"
        )
    if strange := sorted(set(masks) - set(wanted)):
        raise DataError(f"{masks[strange[0]]}: the picture of this mask is missing; copy the data set again")


def marked(mask: Path) -> bool:
    """Whether any pixel of a mask is not black, which is how these data sets call a picture defective."""
    return bool(decode(mask).any())


def rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line, row) of a .csv or .jsonl."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((line, json.loads(text)) for line, text in enumerate(file, 1) if text.strip())
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 {path.suffix[1:]} ({error})") from error
