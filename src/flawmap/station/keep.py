"""Which pictures of inspected parts are kept, where, and what makes room for them."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flawmap.errors import UsageError
from flawmap.types import Verdict

PATIENCE_S = 2.0  # for the disk to take one picture
_SUFFIX = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"BM": ".bmp"}
_Task = tuple[str, bytes, "Future[tuple[str | None, str]]"]


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

    The same picture is written once a day. What a folder of an earlier run holds counts. A disk that does not answer
    keeps nobody waiting for longer than two seconds, once: until it answers, pictures are not kept. One station, one
    folder.
    """

    def __init__(self, folder: Path, rules: Rules | None = None) -> None:
        self.folder, self.rules = folder, rules or Rules()
        folder.mkdir(parents=True, exist_ok=True)
        self._files = _files(folder)  # the oldest first
        self._bytes = sum(size for _, size in self._files)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._late: Future[tuple[str | None, str]] | None = None
        self._thread = threading.Thread(target=self._work, name="keep", daemon=True)
        self._thread.start()

    def wanted(self, seen: int, verdict: Verdict | None, p_value: float | None, least: float) -> bool:
        """Whether the pictures of a part are kept. `least`: the p-value at the threshold; `seen`: OK parts so far."""
        if verdict != Verdict.OK:
            return True
        if p_value is not None and p_value <= self.rules.near * least:
            return True
        return self.rules.every > 0 and seen % self.rules.every == 0

    def write(self, day: str, sha256: str, content: bytes) -> tuple[str | None, str]:
        """Path relative to the folder, and "" or why nothing was written."""
        if self._late is not None and not self._late.done():
            return None, "picture not kept: the disk does not answer"
        if not self._thread.is_alive():
            return None, "picture not kept: the station has closed"
        answer: Future[tuple[str | None, str]] = Future()
        self._tasks.put((f"{day}/{sha256}{_suffix(content)}", content, answer))
        try:
            return answer.result(PATIENCE_S)
        except TimeoutError:
            self._late = answer
            return None, "picture not kept: the disk does not answer"

    def read(self, name: str) -> bytes | None:
        """A picture that was kept, or None where it has made room for others."""
        try:
            path = (self.folder / name).resolve()
            return path.read_bytes() if path.is_relative_to(self.folder.resolve()) else None
        except (OSError, ValueError, RuntimeError):
            return None

    def close(self) -> None:
        """Ends its thread, unless the disk holds it."""
        self._tasks.put(None)
        self._thread.join(PATIENCE_S)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            name, content, answer = task
            try:
                self._write(name, content)
                answer.set_result((name, ""))
            except OSError as error:
                answer.set_result((None, f"picture not kept: {error.strerror or error}"))
            except Exception as error:  # a fault of ours costs a picture, never a verdict
                answer.set_result((None, f"picture not kept: {type(error).__name__}: {error}"))

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with suppress(FileNotFoundError):
            if path.stat().st_size == len(content):  # less: the power failed before it was on the disk
                return
        self._make_room(len(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._files.append((name, len(content)))
        self._bytes += len(content)

    def _make_room(self, needed: int) -> None:
        """OSError: no room, with nothing to remove that would make it; then nothing is removed."""
        most, least = self.rules.most_gb * 1e9, self.rules.least_free_gb * 1e9
        free = shutil.disk_usage(self.folder).free
        if needed > most:
            raise OSError("it is larger than all room for pictures")
        if free + self._bytes - needed < least:
            raise OSError("the disk has less room than is to be left free")
        while self._files and (self._bytes + needed > most or shutil.disk_usage(self.folder).free - needed < least):
            name, size = self._files[0]
            path = self.folder / name
            path.unlink(missing_ok=True)  # may raise: then it is still there, and counts
            self._files.popleft()
            self._bytes -= size
            if not self._files or self._files[0][0][:10] != name[:10]:
                with suppress(OSError):  # not empty, or gone
                    path.parent.rmdir()
        if shutil.disk_usage(self.folder).free - needed < least:
            raise OSError("the disk has less room than is to be left free")


def _files(folder: Path) -> deque[tuple[str, int]]:
    """Name and size of what is in the days' folders; a file that was half written when the power failed is removed."""
    found = []
    for path in folder.glob("????-??-??/*"):
        try:
            if path.suffix == ".new":
                path.unlink()
                continue
            stat = path.stat()
        except OSError:
            continue
        found.append((path.parent.name, stat.st_mtime, path.name, stat.st_size))
    return deque((f"{day}/{name}", size) for day, _, name, size in sorted(found))


def _suffix(content: bytes) -> str:
    return next((suffix for starts, suffix in _SUFFIX.items() if content.startswith(starts)), ".bin")
