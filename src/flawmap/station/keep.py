"""Which pictures of inspected parts are kept, where, and what makes room for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flawmap.errors import UsageError
from flawmap.types import Verdict

_SUFFIX = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"BM": ".bmp"}


@dataclass(frozen=True)
class Rules:
    """All that is not OK, what is near the threshold, and one OK part in so many.

    near    OK parts whose p-value is at most so many times that of the threshold
    every   one OK part in so many; 0: none
    most_gb, least_free_gb  the oldest pictures go when the folder is larger, or the disk has less left
    """

    near: float = 3.0
    every: int = 100
    most_gb: float = 20.0
    least_free_gb: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 0 or not (self.near >= 0 and self.most_gb > 0 and self.least_free_gb >= 0):
            raise UsageError("rules for keeping pictures are not negative, and most_gb is above 0")


class Keep:
    """Writes pictures below a folder, by day: 2026-11-28/<sha256>.png. Never raises for a disk: says why not.

    The same picture is written once a day. What a folder of an earlier run holds counts.
    """

    def __init__(self, folder: Path, rules: Rules | None = None) -> None:
        self.folder, self.rules = folder, rules or Rules()
        folder.mkdir(parents=True, exist_ok=True)
        self._files = sorted(((path, path.stat().st_size) for path in _pictures(folder)), key=_by_age)
        self._bytes = sum(size for _, size in self._files)

    def wanted(self, seen: int, verdict: Verdict | None, p_value: float | None, least: float) -> bool:
        """Whether the pictures of a part are kept. `least`: the p-value at the threshold; `seen`: OK parts so far."""
        if verdict != Verdict.OK:
            return True
        if p_value is not None and p_value <= self.rules.near * least:
            return True
        return self.rules.every > 0 and seen % self.rules.every == 0

    def write(self, day: str, sha256: str, content: bytes) -> tuple[str | None, str]:
        """Path relative to the folder, and "" or why nothing was written."""
        path = self.folder / day / f"{sha256}{_suffix(content)}"
        name = path.relative_to(self.folder).as_posix()
        try:
            if path.exists():
                return name, ""
            self._make_room(len(content))
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".new")
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            return None, f"picture not kept: {error.strerror or error}"
        self._files.append((path, len(content)))
        self._bytes += len(content)
        return name, ""

    def read(self, name: str) -> bytes | None:
        """A picture that was kept, or None where it has made room for others."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            return None
        try:
            return path.read_bytes()
        except OSError:
            return None

    def _make_room(self, needed: int) -> None:
        """OSError: no room, with nothing left to remove."""
        most, least = self.rules.most_gb * 1e9, self.rules.least_free_gb * 1e9
        while self._bytes + needed > most or shutil.disk_usage(self.folder).free - needed < least:
            if not self._files:
                raise OSError("the disk has less room than is to be left free, or the picture is larger than all room")
            path, size = self._files.pop(0)
            path.unlink(missing_ok=True)
            self._bytes -= size
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _pictures(folder: Path) -> Iterator[Path]:
    """What is of a day's folder; a file that was half written when the power failed is removed."""
    for path in folder.glob("????-??-??/*"):
        if path.suffix == ".new":
            path.unlink()
        else:
            yield path


def _by_age(entry: tuple[Path, int]) -> tuple[str, float]:
    return entry[0].parent.name, entry[0].stat().st_mtime


def _suffix(content: bytes) -> str:
    return next((suffix for starts, suffix in _SUFFIX.items() if content.startswith(starts)), ".bin")
