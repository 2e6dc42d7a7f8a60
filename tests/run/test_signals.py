"""A process that used two models of OpenVINO still hears signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flawmap.run.model import Model

pytest.importorskip("openvino")

_TWO_MODELS = """
import faulthandler, os, signal, sys
from pathlib import Path
from flawmap.run.bundle import read
from flawmap.run.engine import OpenVinoEngine

faulthandler.enable()  # a process that has a stack for signals, as those of pytest and many services have
graph = read(Path(sys.argv[1])).files["model.onnx"]
first, second = OpenVinoEngine(graph), OpenVinoEngine(graph)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


def test_signals_are_heard_after_the_models_have_gone(crossed: Model, tmp_path: Path) -> None:
    path = crossed.save(tmp_path / "one.flaw")
    words = [sys.executable, "-c", _TWO_MODELS, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["heard", "alive"]
