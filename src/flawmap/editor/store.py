"""Masks on disk while they are edited: written whole or not at all, never without what was there before.

ground_truth/<kind>/<stem>_mask.png                     the mask
ground_truth/.history/<kind>/<stem>/<time>-<who>.png    what it was before <who> saved at <time>
ground_truth/.history/log.jsonl                         every save, one line each

A version is the SHA-256 of the mask's file, or "none". Who saves says which version was changed; where another one is
on disk by then, nothing is written. Names that begin with a dot are no data for flawmap: no audit or metric sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.errors import DataError, FlawmapError
from flawmap.images.decode import read_pixels
from flawmap.images.masks.levels import DEFECT, IGNORE, read_levels, sidecar
from flawmap.images.png import write_png
from flawmap.run.claim import claimed
from flawmap.types import Sample

NONE = "none"  # the version of a mask that is not there
HISTORY, LOG, LOCK = ".history", "log.jsonl", ".lock"
WAIT_S = 5.0  # for another program that saves a mask of the same data
GREY = 0  # the colour of a PNG that is one grey channel
PLAIN = {b"IHDR", b"IDAT", b"IEND"}
MOST_WHO = 60


class Conflict(FlawmapError):
    """Another version is on disk than the one that was changed."""

    def __init__(self, version: str, who: str, when: str) -> None:
        words = f"{who or 'somebody'} has changed this mask meanwhile" if when else "this mask was changed meanwhile"
        super().__init__(f"{words}: look at both, then save over it or take it")
        self.version, self.who, self.when = version, who, when


class Empty(FlawmapError):
    """Nothing is marked on a picture that is called defective."""


@dataclass(frozen=True, slots=True)
class Version:
    """One mask that a picture has or had."""

    version: str
    who: str  # empty: it was not saved here
    when: str
    kept: str | None  # its file below .history; None: it is the one on disk


class Store:
    """The masks of one data set."""

    def __init__(self, root: Path) -> None:
        self.home = root / "ground_truth"
        self.history = self.home / HISTORY
        self._lock = threading.Lock()
        self._log: dict[str, list[dict[str, Any]]] = {}  # picture -> its saves, oldest first
        self._read_to = 0  # bytes of the log
        self._reading = threading.Lock()

    def saves(self, name: str) -> list[dict[str, Any]]:
        """Those of this editor and of any other at work on the same data, oldest first."""
        self._read_on()
        return list(self._log.get(name, ()))

    def all_saves(self) -> dict[str, list[dict[str, Any]]]:
        """By picture."""
        self._read_on()
        return dict(self._log)

    def _read_on(self) -> None:
        with self._reading:
            lines, self._read_to = _lines(self.history / LOG, self._read_to)
            for line in lines:
                self._log.setdefault(line["picture"], []).append(line)

    def version(self, mask: Path | None) -> str:
        """Of the file as it is now."""
        content = _content(mask)
        return NONE if content is None else _digest(content)

    def levels(self, sample: Sample, size: tuple[int, int]) -> tuple[np.ndarray, str, bool]:
        """(H, W) uint8 of 0, 128, 255; its version; whether other greys were cut. Of one reading of the file."""
        content = _content(_mask(sample))
        if content is None:
            return np.zeros(size, np.uint8), NONE, False
        levels, cut = self._read(content, _mask(sample), size, sample.name)
        return levels, _digest(content), cut

    def _read(self, content: bytes, path: Path | None, size: tuple[int, int], of: str) -> tuple[np.ndarray, bool]:
        """A sidecar counts as long as the file beside it is the one that was read."""
        if path is not None and sidecar(path).exists():
            return read_levels(path, size, of)
        return read_levels(content, size, of)

    def versions(self, sample: Sample) -> list[Version]:
        """Oldest first; what has its place keeps it. The last is on disk where it is not `kept`."""
        saves, now = self.saves(sample.name), self.version(_mask(sample))
        made = {save["version"]: save for save in saves}
        found = [Version(save["before"], "", "", save["kept"]) for save in saves if save["kept"]]
        found = [_signed(each, saves, index) for index, each in enumerate(found)]
        if now != NONE:
            last = made.get(now, {})
            found.append(Version(now, last.get("who", ""), last.get("time", ""), None))
        return found

    def kept(self, sample: Sample, number: int) -> bytes:
        """The file of an earlier version. DataError: there is none."""
        versions = self.versions(sample)
        if not 0 <= number < len(versions):
            raise DataError(f"{sample.name}: there are {len(versions)} versions")
        kept = versions[number].kept
        content = _content(self.history / kept if kept else _mask(sample))
        if content is None:
            raise DataError(f"{sample.name}: the file of that version is gone")
        return content

    def save(self, sample: Sample, content: bytes | None, base: str, who: str, action: str = "save") -> Path | None:
        """Puts a file in the mask's place, and gives that place; None takes the mask away. Conflict: `base` is old."""
        old = _mask(sample)
        path = old if old is not None and old.suffix == ".png" else self.place(sample)
        with self._alone():
            before = _content(old)
            found = NONE if before is None else _digest(before)
            if found != base:
                last = next((save for save in reversed(self.saves(sample.name)) if save["version"] == found), {})
                raise Conflict(found, last.get("who", ""), last.get("time", ""))
            now = _now()
            kept = None if before is None else self._keep(sample, before, now, who, old)
            if content is not None:
                _put(content, path)
            if old is not None and (content is None or old != path):
                old.unlink()
            self._write_down(
                {
                    "time": now,
                    "who": who,
                    "action": action,
                    "picture": sample.name,
                    "version": NONE if content is None else _digest(content),
                    "before": found,
                    "kept": kept,
                }
            )
        return None if content is None else path

    def place(self, sample: Sample) -> Path:
        """Where MVTec's layout has the mask of a picture."""
        inside = Path(sample.name).relative_to("test").with_suffix("")
        return self.home / inside.parent / f"{inside.name}_mask.png"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Neither another thread nor another editor of the same data."""
        end = time.monotonic() + WAIT_S
        with self._lock:
            while True:
                with claimed(self.history / LOCK) as mine:
                    if mine:
                        yield
                        return
                if time.monotonic() > end:
                    raise FlawmapError(f"{self.history / LOCK}: another program is saving; try again")
                time.sleep(0.02)

    def _keep(self, sample: Sample, content: bytes, now: str, who: str, old: Path | None) -> str:
        inside = Path(sample.name).relative_to("test").with_suffix("")
        stamp = re.sub(r"[-:]", "", now).replace(".", "-")
        short = re.sub(r"[^A-Za-z0-9._-]+", "_", who).strip("._")[:MOST_WHO] or "unknown"
        suffix = old.suffix if old is not None else ".png"
        path = self.history / inside / f"{stamp}-{short}{suffix}"
        while path.exists():  # two saves in a millisecond
            path = path.with_name(f"{path.stem}-{secrets.token_hex(2)}{suffix}")
        _put(content, path)
        return path.relative_to(self.history).as_posix()

    def _write_down(self, line: dict[str, Any]) -> None:
        """A line that a crash left half written is ended first, and is lost alone."""
        path = self.history / LOG
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def checked(content: bytes, size: tuple[int, int], good: bool, empty: bool) -> tuple[bytes, np.ndarray]:
    """A mask as a page sends it: its file as it will be written, and its levels.

    DataError: no grey PNG of 8 bits, not as large as the picture, other values than 0, 128 and 255, or a defect on a
    good picture. Empty: nothing is marked, and `empty` does not say that this is meant.
    """
    head = content[:26]
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise DataError("the mask is no PNG")
    wide, high = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    if (high, wide) != size:
        raise DataError(f"the mask is {wide} x {high} pixels, the picture is {size[1]} x {size[0]}")
    if (head[24], head[25]) != (8, GREY):
        raise DataError("the mask must be a grey PNG of 8 bits")
    if other := set(_chunks(content)) - PLAIN:  # a tag could turn it
        raise DataError(f"the mask must be a plain PNG, without {', '.join(map(repr, sorted(other)))}")
    levels = np.asarray(read_pixels(content, size[0] * size[1] / 1e6 + 1))
    counts = np.bincount(levels.ravel(), minlength=256)
    if counts[0] + counts[IGNORE] + counts[DEFECT] != levels.size:
        grey = next(value for value in np.flatnonzero(counts).tolist() if value not in (0, IGNORE, DEFECT))
        raise DataError(f"the mask holds {grey}; it may hold 0, {IGNORE} (ignore) and {DEFECT} (defect)")
    if good and counts[DEFECT]:
        raise DataError("the picture is called good and cannot have a defect; move it to test/<kind> first")
    if not good and not counts[DEFECT] and not empty:
        raise Empty("no pixel is marked as defect, and the picture is called defective")
    return write_png(levels), levels


def _chunks(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(content):
        yield content[at + 4 : at + 8]
        at += 12 + int.from_bytes(content[at : at + 4], "big")


def _mask(sample: Sample) -> Path | None:
    return sample.mask if isinstance(sample.mask, Path) else None


def _signed(version: Version, saves: list[dict[str, Any]], index: int) -> Version:
    """Who made what was kept: the newest save of these very bytes before it was replaced."""
    replaced = [at for at, save in enumerate(saves) if save["kept"]][index]
    made = next((save for save in reversed(saves[:replaced]) if save["version"] == version.version), None)
    return version if made is None else Version(version.version, made["who"], made["time"], version.kept)


def _lines(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The saves that stand behind a place in the log, and where its last whole line ends."""
    try:
        if not path.exists() or path.stat().st_size <= start:
            return [], start
        with path.open("rb") as file:
            file.seek(start)
            whole, end, _ = file.read().rpartition(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    found = []
    for text in whole.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # half of a line, of a crash
        if isinstance(line, dict) and _is_save(line):
            found.append(line)
    return found, start + len(whole) + len(end)


def _is_save(line: dict[str, Any]) -> bool:
    words = all(isinstance(line.get(key), str) for key in ("time", "who", "picture", "version", "before"))
    kept = line.get("kept")
    if not words or kept is None:
        return words and "kept" in line
    return isinstance(kept, str) and not Path(kept).is_absolute() and ".." not in Path(kept).parts


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _put(content: bytes, path: Path) -> None:
    """Whole or not at all, also when the power goes."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        _sync(path.parent)
    except OSError as error:
        why = f"{path}: cannot be written ({error.strerror}); nothing was changed"
        raise FlawmapError(why) from error
    finally:
        new.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
