"""The log of saves: one line each, written before its mask is, so that a mask never is where no line tells of it.

A line whose mask never came, of a crash or of a disk that was full, is taken back by a second line, the same but for
the action "void".
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from flawmap.editor.files import refused, sync
from flawmap.errors import DataError

VOID = "void"
WORDS = ("time", "who", "picture", "version", "before")


class Log:
    """Read on where it was left, so that saves of any other editor of the same data are seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: dict[str, Any] | None = None  # the newest save of any picture: the only one that may be under way
        self._saves: dict[str, list[dict[str, Any]]] = {}
        self._read_to = 0  # bytes
        self._reading = threading.Lock()

    def of(self, name: str) -> list[dict[str, Any]]:
        """The saves of a picture, oldest first."""
        return list(self.all().get(name, ()))

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """By picture."""
        with self._reading:
            lines, self._read_to = _lines(self.path, self._read_to)
            for line in lines:
                self._take(line)
            return dict(self._saves)

    def _take(self, line: dict[str, Any]) -> None:
        saves = self._saves.setdefault(line["picture"], [])
        if line.get("action") != VOID:
            saves.append(line)
            self.last = line
        elif saves and all(saves[-1].get(key) == line.get(key) for key in (*WORDS, "kept")):
            gone = saves.pop()
            self.last = None if self.last is gone else self.last

    def write(self, line: dict[str, Any]) -> None:
        """Durably. A line that a crash left half written is ended first, and is lost alone.

        FlawmapError: it cannot be written.
        """
        try:
            with self.path.open("ab+") as file:
                new = not file.tell()
                if not new:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(self.path, error) from error
        if new:
            sync(self.path.parent)


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
    words = all(isinstance(line.get(key), str) for key in WORDS)
    if not words or "kept" not in line or not line["picture"].startswith("test/") or ".." in line["picture"].split("/"):
        return False
    kept = line["kept"]
    if kept is None:
        return True
    return isinstance(kept, str) and not Path(kept).is_absolute() and ".." not in Path(kept).parts
