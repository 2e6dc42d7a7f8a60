"""A folder that is watched: each new picture, or each part when all its views are there, is inspected once."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from flawmap.errors import LedgerError, Unavailable, UsageError
from flawmap.images.folder import SUFFIXES
from flawmap.station.line import Line, Picture

POLL_S = 0.2
SETTLED_S = 0.5  # a file that has not grown for so long is whole
SOURCE = "watch"
_LOG = logging.getLogger("flawmap.station")


@dataclass
class _File:
    size: int
    mtime_ns: int
    since: float


@dataclass
class _Part:
    views: dict[str, Path] = field(default_factory=dict)
    since: float = 0.0


class Watch:
    """Looks into a folder several times a second; also into those within it. Works on network drives, too.

    part_pattern  its first group in a file's name is the part; else each file is one
    late_s        a part whose views have not all come after so long is an error, code VIEWS

    A file counts as new by its name, size and time, and is known from the ledger after a restart. While the station
    takes no more, files wait. Nothing is moved or deleted.
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
        self._files: dict[Path, _File] = {}
        self._done: set[tuple[str, int, int]] = set()
        self._parts: dict[str, _Part] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._lamp("ok", f"watches {folder.name}")
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                self._look()
                self._lamp("ok", f"watches {self.folder.name}")
            except Unavailable:
                continue  # tried again at the next look
            except LedgerError as error:
                self._lamp("warn", str(error))
            except OSError as error:
                self._lamp("bad", f"{self.folder.name}: {error.strerror or error}")
            except Exception:
                _LOG.exception("watch")
                self._lamp("bad", "see the log")

    def _lamp(self, state: str, text: str) -> None:
        self.line.lamps["camera"] = (state, text)

    def _look(self) -> None:
        now = time.monotonic()
        if not self.folder.is_dir():
            raise FileNotFoundError(2, "the folder has gone")
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        for path in set(self._files) - set(found):
            del self._files[path]
        for path in found:
            self._one(path, now)
        least = self.line.recipes.active.views[0]
        for name, part in list(self._parts.items()):
            if len(part.views) >= least or now - part.since > self.late_s:
                self._hand_in(name, part, least)
                del self._parts[name]

    def _one(self, path: Path, now: float) -> None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            return
        known = self._files.get(path)
        if known is None or (known.size, known.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            self._files[path] = _File(stat.st_size, stat.st_mtime_ns, now)
            return
        name = path.relative_to(self.folder).as_posix()
        key = (name, known.size, known.mtime_ns)
        if key in self._done or now - known.since < SETTLED_S:
            return
        part = self._parts.setdefault(self._part_of(name), _Part(since=now))
        part.views[name] = path
        self._done.add(key)

    def _part_of(self, name: str) -> str:
        found = self.pattern.search(name) if self.pattern else None
        return found.group(1) if found else name

    def _hand_in(self, name: str, part: _Part, least: int) -> None:
        """Unavailable: try again later; the part stays."""
        request = self._request(part)
        if self.line.ledger.of_request(request):
            return
        if len(part.views) < least:
            reason = f"{len(part.views)} of {least} views came within {self.late_s:g} s"
            self.line.fail(name, "VIEWS", reason, SOURCE, request)
            return
        try:
            pictures = [Picture(view, path.read_bytes()) for view, path in sorted(part.views.items())]
            answer = self.line.submit(name, pictures, source=SOURCE, request=request)
            answer.add_done_callback(lambda done: self._again(part) if done.exception() else None)
        except UsageError as error:
            self.line.fail(name, "VIEWS", str(error), SOURCE, request)
        except OSError as error:
            self.line.fail(name, "FILE", f"{error.strerror or error}", SOURCE, request)

    def _again(self, part: _Part) -> None:
        """Its row could not be written: no verdict was given, so it is looked at once more."""
        for view, path in part.views.items():
            if known := self._files.get(path):
                self._done.discard((view, known.size, known.mtime_ns))

    def _request(self, part: _Part) -> str:
        import hashlib

        files = [
            (view, self._files[path].size, self._files[path].mtime_ns) for view, path in sorted(part.views.items())
        ]
        return f"watch {hashlib.sha256(repr(files).encode()).hexdigest()}"
