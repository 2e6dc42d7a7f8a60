"""Progress on stderr: a bar with an ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 5.0  # between two plain lines

Tick = Callable[..., None]


@contextmanager
def progress(what: str, total: int) -> Iterator[Tick]:
    """Yields tick(done, loss=None)."""
    if _silent():
        yield lambda done, loss=None: None
    elif sys.stderr.isatty():
        yield from _bar(what, total)
    else:
        yield from _lines(what, total)


def say(text: str) -> None:
    if not _silent():
        print(text, file=sys.stderr, flush=True)


def _silent() -> bool:
    """Of several processes that train together, the first one speaks."""
    return os.environ.get("RANK", "0") != "0"


def _bar(what: str, total: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, note="")

        def tick(done: int, loss: float | None = None) -> None:
            bar.update(task, completed=done, note="" if loss is None else f"loss {loss:.4f}")

        yield tick


def _lines(what: str, total: int) -> Iterator[Tick]:
    begun, said = time.monotonic(), [time.monotonic()]

    def tick(done: int, loss: float | None = None) -> None:
        now = time.monotonic()
        if now - said[0] > QUIET_S or done == total:
            left = (now - begun) / max(done, 1) * (total - done)
            note = "" if loss is None else f", loss {loss:.4f}"
            say(f"{what}: {done} of {total}{note}, {now - begun:.0f} s, about {left:.0f} s to go")
            said[0] = now

    yield tick
