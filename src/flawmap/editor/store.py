"""Masks on disk while they are edited: written whole or not at all, never without what was there before.

ground_truth/<kind>/<stem>_mask.png                     the mask
ground_truth/.history/<kind>/<stem>/<time>-<who>.png    what it was before <who> saved at <time>; its sidecar beside it
ground_truth/.history/log.jsonl                         every save, one line each (log.py)

A version is the SHA-256 of the mask's file, or "none". Who saves says which version was changed; where another one is
on disk by then, nothing is written. Names that begin with a dot are no data for flawmap: no audit or metric sees them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawmap.editor.files import content_of, digest, put, refused, remove_unfinished, sync
from flawmap.editor.log import VOID, Log
from flawmap.errors import DataError, FlawmapError
from flawmap.images.decode import SUFFIXES, label, mask_values, probe
from flawmap.images.masks.levels import levels_in, sidecar
from flawmap.images.png import write_png
from flawmap.run.claim import claimed
from flawmap.types import Sample

NONE = "none"  # the version of a mask that is not there
HISTORY, LOG, LOCK = ".history", "log.jsonl", ".lock"
WAIT_S = 5.0  # for another program that saves a mask of the same data
MOST_WHO = 60


class Conflict(FlawmapError):
    """Another version is on disk than the one that was changed."""

    def __init__(self, version: str, who: str, when: str) -> None:
        words = f"{who or 'somebody'} has changed this mask meanwhile" if when else "this mask was changed meanwhile"
        super().__init__(f"{words}: look at both, then save over it or take it")
        self.version, self.who, self.when = version, who, when


@dataclass(frozen=True, slots=True)
class Version:
    """One mask that a picture has or had."""

    version: str
    who: str  # empty: it was not saved here
    when: str
    kept: str | None  # its file below .history; None: it is the one on disk


class Read(NamedTuple):
    """A mask as it is on disk."""

    levels: np.ndarray  # (H, W) uint8 of 0, 128, 255
    version: str
    cut: bool  # it holds other greys, which were cut
    unread: str  # why it cannot be read, and so is empty here; or ""


class Store:
    """The masks of one data set."""

    def __init__(self, root: Path) -> None:
        self.home = root / "ground_truth"
        self.history = self.home / HISTORY
        self.log = Log(self.history / LOG)
        self._lock = threading.Lock()

    def tidy(self, samples: Iterable[Sample]) -> None:
        """Removes what killed saves left half written, where no other editor is saving."""
        folders = {self.place(sample.name).parent for sample in samples}
        remove_unfinished(sorted({self.history, *folders}), self.history / LOCK)

    def saves(self, name: str) -> list[dict[str, Any]]:
        """Those of this editor and of any other at work on the same data, oldest first."""
        found = self.log.of(name)
        if found and found[-1] is self.log.last and not self._came(found[-1]):
            found.pop()
        return found

    def all_saves(self) -> dict[str, list[dict[str, Any]]]:
        """By picture."""
        found = self.log.all()
        last = self.log.last
        if last is not None and not self._came(last):
            found[last["picture"]] = found[last["picture"]][:-1]
        return found

    def _came(self, line: dict[str, Any]) -> bool:
        """Whether the mask was put in place after its line was written: not where the one before is there still."""
        if line["version"] == line["before"]:
            return True
        try:
            return self.version(self.found(line["picture"])) != line["before"]
        except ValueError:  # it cannot be read, or the log names what no disk can
            return True

    def version(self, mask: Path | None) -> str:
        """Of the file as it is now."""
        content = content_of(mask)
        return NONE if content is None else digest(content)

    def levels(self, sample: Sample, size: tuple[int, int]) -> Read:
        """All of one reading of the file."""
        path = _mask(sample)
        content = content_of(path)
        if content is None or path is None:
            return Read(np.zeros(size, np.uint8), NONE, False, "")
        try:
            levels, cut = self.read(content, path, size, sample.name)
        except DataError as error:  # it can be drawn anew: a save keeps the file
            return Read(np.zeros(size, np.uint8), digest(content), False, str(error))
        return Read(levels, digest(content), cut, "")

    def read(self, content: bytes, path: Path, size: tuple[int, int], of: str) -> tuple[np.ndarray, bool]:
        """Levels, and whether other greys were cut, of a file that has been read. DataError: says which and why."""
        try:
            values = mask_values(content, size, of)
        except DataError as error:
            raise DataError(f"{path}: {_why(error, content)}") from error
        return levels_in(values, path)

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

    def kept(self, sample: Sample, number: int) -> tuple[bytes, Path]:
        """An earlier version, and its file. DataError: there is none."""
        versions = self.versions(sample)
        if not 0 <= number < len(versions):
            raise DataError(f"{sample.name}: there are {len(versions)} versions")
        kept = versions[number].kept
        path = self.history / kept if kept else _mask(sample)
        content = content_of(path)
        if content is None or path is None:
            raise DataError(f"{sample.name}: the file of that version is gone")
        return content, path

    def again(self, sample: Sample, number: int, size: tuple[int, int]) -> tuple[bytes, np.ndarray]:
        """An earlier version as a PNG that means the same in the mask's place, and its levels."""
        content, path = self.kept(sample, number)
        levels, _ = self.read(content, path, size, sample.name)
        as_is = probe(content, size[0] * size[1] / 1e6 + 1).format == "PNG"
        # Beside its place a sidecar may lie that was not there, or none that was.
        if as_is and np.array_equal(self.read(content, self._target(sample), size, sample.name)[0], levels):
            return content, levels
        return write_png(levels), levels

    def save(self, sample: Sample, content: bytes | None, base: str, who: str, action: str = "save") -> Path | None:
        """Puts a file in the mask's place, and gives that place; None takes the mask away.

        Conflict: `base` is old. FlawmapError: the disk takes nothing; what was there is there still.
        """
        old, path = _mask(sample), self._target(sample)
        with self._alone():
            before = content_of(old)
            found = NONE if before is None else digest(before)
            if found != base:
                last = next((save for save in reversed(self.saves(sample.name)) if save["version"] == found), {})
                raise Conflict(found, last.get("who", ""), last.get("time", ""))
            if old is not None and old != path and path.exists():
                raise DataError(f"{old} and {path.name} are masks of the same picture; keep one")
            self._settle()
            line = {
                "time": _now(),
                "who": who,
                "action": action,
                "picture": sample.name,
                "version": NONE if content is None else digest(content),
                "before": found,
                "kept": None,
            }
            if before is not None and old is not None:
                line["kept"] = self._keep(sample, before, line["time"], who, old)
            try:
                self.log.write(line)
                return self._replace(old, path, content)
            except FlawmapError:
                self._undo(line)
                raise

    def _replace(self, old: Path | None, path: Path, content: bytes | None) -> Path | None:
        """Of a picture there is never more than one mask, nor none between two."""
        if content is not None:
            place = path if old is None else old
            put(content, place)
            if place != path:
                with contextlib.suppress(OSError):  # what was saved keeps its old name
                    os.rename(place, path)
                    place = path
                sync(path.parent)
            return place
        if old is not None:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                raise refused(old, error) from error
            sync(old.parent)
        return None

    def _undo(self, line: dict[str, Any]) -> None:
        """Takes back a save that could not be done. What cannot be written now is seen to by the next save."""
        if self._came(line):
            return
        if line["kept"] is not None:
            kept = self.history / line["kept"]
            with contextlib.suppress(OSError):
                kept.unlink(missing_ok=True)
                sidecar(kept).unlink(missing_ok=True)
        with contextlib.suppress(FlawmapError):
            self.log.write({**line, "action": VOID})

    def _settle(self) -> None:
        """Takes back the line of a save that was killed before its mask was there."""
        self.log.all()
        if self.log.last is not None and not self._came(self.log.last):
            self.log.write({**self.log.last, "action": VOID})

    def place(self, name: str) -> Path:
        """Where MVTec's layout has the mask of a picture."""
        inside = Path(name).relative_to("test").with_suffix("")
        return self.home / inside.parent / f"{inside.name}_mask.png"

    def found(self, name: str) -> Path | None:
        """The mask of a picture on disk, whichever name of those that are read it has."""
        place = self.place(name)
        if place.is_file():
            return place
        stem = place.name.removesuffix("_mask.png")
        try:
            names = sorted(os.listdir(place.parent))
        except OSError:
            return None
        paths = [place.with_name(each) for each in names if each.rsplit(".", 1)[0].removesuffix("_mask") == stem]
        return next((path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()), None)

    def _target(self, sample: Sample) -> Path:
        """Where the mask is saved."""
        old = _mask(sample)
        return old if old is not None and old.suffix.lower() == ".png" else self.place(sample.name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Neither another thread nor another editor of the same data. FlawmapError: the disk takes nothing."""
        if self.history.exists() and not self.history.is_dir():
            raise FlawmapError(f"{self.history}: is no folder; move it away, then save again. Nothing was changed")
        end = time.monotonic() + WAIT_S
        with self._lock:
            while True:
                with ExitStack() as stack:
                    try:
                        mine = stack.enter_context(claimed(self.history / LOCK))
                    except OSError as error:
                        raise refused(self.home, error) from error
                    if mine:
                        yield
                        return
                if time.monotonic() > end:
                    raise FlawmapError(f"{self.history / LOCK}: another program is saving; try again")
                time.sleep(0.02)

    def _keep(self, sample: Sample, content: bytes, now: str, who: str, old: Path) -> str:
        """Its sidecar, too: without it the file may mean something else."""
        inside = Path(sample.name).relative_to("test").with_suffix("")
        stamp = re.sub(r"[-:]", "", now).replace(".", "-")
        short = re.sub(r"[^A-Za-z0-9._-]+", "_", who).strip("._")[:MOST_WHO] or "unknown"
        path = self.history / inside / f"{stamp}-{short}{old.suffix}"
        while path.exists():  # two saves in a millisecond
            path = path.with_name(f"{path.stem}-{secrets.token_hex(2)}{old.suffix}")
        put(content, path)
        beside = content_of(sidecar(old))
        if beside is not None:
            put(beside, sidecar(path))
        return path.relative_to(self.history).as_posix()


def _mask(sample: Sample) -> Path | None:
    return sample.mask if isinstance(sample.mask, Path) else None


def _signed(version: Version, saves: list[dict[str, Any]], index: int) -> Version:
    """Who made what was kept: the newest save of these very bytes before it was replaced."""
    replaced = [at for at, save in enumerate(saves) if save["kept"]][index]
    made = next((save for save in reversed(saves[:replaced]) if save["version"] == version.version), None)
    return version if made is None else Version(version.version, made["who"], made["time"], version.kept)


def _why(error: DataError, content: bytes) -> str:
    """What is wrong with a mask, without the words of whoever reads pictures."""
    if isinstance(error.__cause__, MemoryError):
        return "the mask is too large for the memory of this machine"
    if error.__cause__ is not None:
        return "the mask is cut off or damaged; copy it again, or draw it anew"
    return str(error).removeprefix(f"{label(content)}: ")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
