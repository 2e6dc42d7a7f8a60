from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from flawmap.run import progress as module
from flawmap.run.progress import progress

BAR = """
from flawmap.run.progress import progress
with progress("features", 3) as tick:
    for done in range(3):
        tick(done + 1, 0.25)
"""


def _on_a_terminal(**env: str) -> str:
    """What the bar writes to stderr when stderr is a terminal; nothing may come on stdout."""
    parent, child = pty.openpty()
    try:
        clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
        done = subprocess.run(
            [sys.executable, "-c", BAR],
            env={**clean, "TERM": "xterm-256color", **env},
            stdout=subprocess.PIPE,
            stderr=child,
            check=True,
        )
        assert done.stdout == b""
        os.close(child)
        child = -1
        said = b""
        try:
            while piece := os.read(parent, 65536):
                said += piece
        except OSError:  # Linux says EIO where the other end is closed
            pass
        return said.decode()
    finally:
        os.close(parent)
        if child >= 0:
            os.close(child)


def _colours(said: str) -> list[str]:
    """Codes between ESC [ and m that set a colour: 30 to 37, 38;5;n, 90 to 97."""
    codes = [piece.split("m")[0] for piece in said.split("\x1b[")[1:]]
    return [
        c for c in codes if all(n.isdigit() for n in c.split(";")) and any(30 <= int(n) <= 97 for n in c.split(";"))
    ]


def test_a_terminal_gets_a_bar_and_colours_unless_no_color_is_set():
    said = _on_a_terminal()
    assert "features" in said
    assert "3/3" in said
    assert "loss 0.2500" in said
    assert _colours(said)
    plain = _on_a_terminal(NO_COLOR="1")
    assert "3/3" in plain
    assert not _colours(plain)


def test_elsewhere_there_is_a_plain_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    with progress("training", 50) as tick:
        for done in range(50):
            tick(done + 1, 0.5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training: 50 of 50, loss 0.5000, 0 s, about 0 s to go\n"
    now = iter(range(0, 1000, 3))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with progress("training", 10) as tick:
        for done in range(10):
            tick(done + 1)
    assert len(capsys.readouterr().err.splitlines()) == 5  # every second tick of 3 s is beyond 5 s
