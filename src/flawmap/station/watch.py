"""A folder that is watched: each new picture, or each part when all its views are there, is inspected once."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from flawmap.errors import LedgerError, Unavailable, UsageError
from flawmap.images.decode import SUFFIXES
from flawmap.station.ledger import Row
from flawmap.station.line import Line, Picture

POLL_S = 0.2
SETTLED_S = 0.5  # a file that has not grown for so long is whole
SOURCE = "watch"
_LOG = logging.getLogger("flawmap.station")
_Stamp = tuple[int, int]  # size and time of change


@dataclass
class _Seen:
    stamp: _Stamp
    since: float
    taken: bool = False


@dataclass
class _Part:
    views: dict[str, _Stamp] = field(default_factory=dict)
    since: float = 0.0


class Watch:
    """Looks into a folder several times a second; also into those within it. Works on network drives, too.

    part_pattern  its first group in a file's name is the part; else each file is one
    late_s        a part whose views have not all come after so long is an error, code VIEWS

    A file counts as new by its name, size and time, and is known from the ledger after a restart. While the station
    takes no more, or the folder has gone, files wait. A part without a row is handed in again. Nothing is moved or
    deleted; links and what begins with a dot are left alone.
    """

    def __init__(self, line: Line, folder: Path, *, part_pattern: str | None = None, late_s: float = 10.0) -> None:
        try:
            self.pattern = re.compile(part_pattern) if part_pattern else None
        except re.error as error:
            raise UsageError(f"--part-pattern {part_pattern!r}: {error}") from error
        if self.pattern is not None and not self.pattern.groups:
            raise UsageError(f"--part-pattern {part_pattern!r} has no group: put ( ) around what names the part")
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder to watch")
        self.line, self.folder, self.late_s = line, folder, late_s
        self._files: dict[str, _Seen] = {}
        self._parts: dict[str, _Part] = {}
        self._again: queue.SimpleQueue[_Part] = queue.SimpleQueue()  # without a row
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._lamp("ok", f"watches {folder.name}")
        self._thread.start()

    def close(self) -> None:
        """Ends its thread, unless a drive that does not answer holds it."""
        self._ended.set()
        self._thread.join(5.0)
        self._lamp("off", "closed")

    def _run(self) -> None:
        pause = POLL_S
        while not self._ended.wait(pause):
            begun = time.monotonic()
            try:
                self._look()
                self._lamp("ok", f"watches {self.folder.name}")
            except Unavailable as error:  # tried again at the next look
                self._lamp("warn", f"{len(self._parts)} parts wait: {error}")
            except LedgerError as error:
                self._lamp("warn", str(error))
            except OSError as error:
                self._lamp("bad", f"{self.folder.name}: {error.strerror or error}")
            except Exception:
                _LOG.exception("watch")
                self._lamp("bad", "see the log")
            pause = max(POLL_S, 4 * (time.monotonic() - begun))  # many files, or a slow drive

    def _lamp(self, state: str, text: str) -> None:
        self.line.lamps["camera"] = (state, text)

    def _look(self) -> None:
        now, found = time.monotonic(), dict(_pictures(self.folder))
        for name in self._files.keys() - found.keys():
            del self._files[name]
        while not self._again.empty():
            for name in self._again.get().views:
                if seen := self._files.get(name):
                    seen.taken = False
        for name, stamp in sorted(found.items()):
            self._one(name, stamp, now)
        for name, part in list(self._parts.items()):
            least, most = self.line.recipes.active.views
            if len(part.views) >= most or now - part.since > self.late_s:
                self._hand_in(name, part, least)
                del self._parts[name]

    def _one(self, name: str, stamp: _Stamp, now: float) -> None:
        seen = self._files.get(name)
        if seen is None or seen.stamp != stamp:
            self._files[name] = _Seen(stamp, now)
            return
        settled = SETTLED_S if stamp[0] else self.late_s  # an empty file is one that is about to be written
        if seen.taken or now - seen.since < settled:
            return
        part = self._parts.setdefault(self._part_of(name), _Part(since=now))
        part.views[name] = stamp
        seen.taken = True

    def _part_of(self, name: str) -> str:
        found = self.pattern.search(name) if self.pattern else None
        return (found.group(1) if found else "") or name

    def _hand_in(self, name: str, part: _Part, least: int) -> None:
        """Raises where it has to be tried again later; the part stays."""
        request = _request(part)
        if self.line.ledger.of_request(request):
            return
        if self.line.blocked:  # before the files are read for nothing
            raise Unavailable(f"blocked: {self.line.blocked}", "BLOCKED")
        if len(part.views) < least:
            reason = f"{len(part.views)} of {least} views came within {self.late_s:g} s"
            self.line.fail(name, "VIEWS", reason, SOURCE, request)
            return
        size = sum(stamp[0] for stamp in part.views.values())
        if size > self.line.most_bytes:
            self.line.fail(name, "FILE", f"{size} bytes, at most {self.line.most_bytes}", SOURCE, request)
            return
        try:
            pictures = [Picture(view, (self.folder / view).read_bytes()) for view in sorted(part.views)]
            answer = self.line.submit(name, pictures, source=SOURCE, request=request)
            answer.add_done_callback(lambda done: self._answered(part, done))
        except UsageError as error:
            self.line.fail(name, "VIEWS", str(error), SOURCE, request)
        except OSError as error:
            if not self.folder.is_dir():  # it comes back, and the pictures with it
                raise
            self.line.fail(name, "FILE", f"{error.strerror or error}", SOURCE, request)

    def _answered(self, part: _Part, done: Future[Row]) -> None:
        """Its row could not be written: no verdict was given, so it is looked at once more."""
        if done.exception():
            self._again.put(part)


def _pictures(folder: Path) -> Iterator[tuple[str, _Stamp]]:
    """Name below the folder, size and time of every picture. OSError: the folder has gone, or cannot be read."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    elif os.path.splitext(name)[1].lower() in SUFFIXES:
                        yield from _stamped(name, entry)
        except (FileNotFoundError, PermissionError):
            if not below:
                raise


def _stamped(name: str, entry: os.DirEntry[str]) -> Iterator[tuple[str, _Stamp]]:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode):
        yield name, (found.st_size, found.st_mtime_ns)


def _request(part: _Part) -> str:
    files = [(view, *stamp) for view, stamp in sorted(part.views.items())]
    return f"watch {hashlib.sha256(repr(files).encode()).hexdigest()}"
