"""`flawmap masks edit` as it is started: says where it listens, answers, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flawmap.cli import main

COMMAND = [sys.executable, "-m", "flawmap.cli", "masks", "edit"]


@pytest.mark.skipif(os.name == "nt", reason="a signal for one process alone is not sent there")
def test_it_says_where_it_listens_and_ends_by_ctrl_c(data: Path) -> None:
    command = [*COMMAND, str(data), "--port", "0", "--who", "Jörg", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stderr
            told = json.loads(process.stdout.readline())
            assert told["pictures"] == 7
            page = urllib.request.urlopen(told["url"]).read().decode()
            assert 'data-author="Jörg"' in page
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr.read() == f"flawmap: 7 pictures at {told['url']} (this machine only)\n"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines: give tokens"),
        (["--port", "99999"], "--port 99999"),
        (["--who", " "], "--who ' '"),
        (["--model", "none.flaw", "--port", "0"], "none.flaw"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    data: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["masks", "edit", str(data), *words]) != 0
    assert said in capsys.readouterr().err


def test_two_pictures_that_share_a_mask_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "test/square/000.bmp").write_bytes((data / "test/square/000.png").read_bytes())
    assert main(["masks", "edit", str(data), "--port", "0"]) == 3
    assert "test/square/000.bmp and test/square/000.png would share one mask" in capsys.readouterr().err


def test_a_folder_without_test_pictures_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["masks", "edit", str(world / "train/good"), "--port", "0"]) == 3
    assert "no pictures in test/" in capsys.readouterr().err
