"""A file of another tool, read with suspicion: whatever is missing or of another type is an error with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError

FARTHEST = 1e6  # px: no corner of a real shape lies so far outside
MOST = 2**53


@dataclass(frozen=True, slots=True)
class Field:
    """A value and its place, such as `a.json: annotations[3].bbox`."""

    value: Any
    where: str

    def error(self, what: str) -> DataError:
        return DataError(f"{self.where}: {what}")

    def __getitem__(self, key: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.error(f"must be an object with {key!r}, is {_kind(self.value)}")
        if key not in self.value:
            raise self.error(f"has no {key!r}; export it again, or add it")
        return Field(self.value[key], f"{self.where}{'.' if ': ' in self.where else ': '}{key}")

    def has(self, key: str) -> bool:
        """Whether it is an object that has more than null there."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def items(self) -> list[Field]:
        if not isinstance(self.value, list):
            raise self.error(f"must be a list, is {_kind(self.value)}")
        dot = "" if ": " in self.where else ": "
        return [Field(item, f"{self.where}{dot}[{index}]") for index, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"must be a text, is {_kind(self.value)}")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"must be a number, is {_kind(self.value)}")
        if not abs(self.value) <= FARTHEST:  # nor is NaN
            raise self.error("is no number of pixels")
        return float(self.value)

    def whole(self, least: int = 0) -> int:
        value = self.value
        if isinstance(value, float) and abs(value) < MOST and value == int(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
            raise self.error(f"must be a whole number of at least {least}, is {str(self.value)[:40]!r}")
        return value

    def corners(self) -> np.ndarray:
        """(n, 2) float64 of [[x, y], ...]; at least three."""
        rows = [[number.number() for number in row.items()] for row in self.items()]
        if len(rows) < 3 or any(len(row) != 2 for row in rows):
            raise self.error("is no polygon; it takes at least three corners of x and y")
        return np.array(rows)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        hint = "; it is a zip: unpack it first" if path.read_bytes()[:2] == b"PK" else ""
        raise DataError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}){hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the file") from error


def read_json(path: Path) -> Field:
    try:
        return Field(json.loads(read_text(path)), str(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not JSON ({error}); export it again") from error


def once(fields: Iterator[tuple[int, Field]]) -> dict[int, Field]:
    """By their ids. DataError: an id comes twice."""
    found: dict[int, Field] = {}
    for number, field in fields:
        if number in found:
            raise field.error(f"the id {number} stands in {found[number].where} already; ids must differ")
        found[number] = field
    return found
