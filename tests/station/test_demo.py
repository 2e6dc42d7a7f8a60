"""`flawmap demo station` as a process: camera, PLC, ledger and page, until it is told to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flawmap.images import woven
from flawmap.station.ledger import Ledger

pytest.importorskip("asyncua")


def test_a_station_runs_on_one_command_and_stops_whole(flaw: Path, tmp_path: Path, until: Any) -> None:
    out = tmp_path / "demo"
    woven.write(out / "woven-parts", good=1, test_good=8, per_kind=2, size=64)
    shutil.copy(flaw, out / "woven.flaw")  # what it says of fabric does not matter here; fitting takes its time
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "-m", "flawmap.cli", "demo", "station", "--out", str(out), "--port", str(port)]
    process = subprocess.Popen([*words, "--every", "0.05"], stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        status = until(lambda: _status(port, process), 60)
        until(lambda: sum(_status(port, process)["counts"].values()) >= 5, 30)
        assert status["lamps"]["camera"][0] == "ok"
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
        assert "<html" in page
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    ledger = Ledger(out / "station.db")
    assert ledger.verify()[1] == []
    rows = ledger.rows()
    assert {row["source"] for row in rows} == {"opcua"}
    assert {row["part"] for row in rows} >= {f"demo-{number:05}" for number in range(1, 6)}
    assert ledger.rows(kinds=("event",))[0]["code"] == "STOP"


def _status(port: int, process: subprocess.Popen[str]) -> Any:
    assert process.poll() is None, process.stderr and process.stderr.read()
    try:
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=5))
    except OSError:
        return None
