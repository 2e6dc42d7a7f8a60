"""A fit that is killed goes on as if nothing had happened: the same scores, no step twice, never half a bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from flawmap.cli import INTERRUPTED, main
from flawmap.run.model import Model, load

# Checkpoints all the time.
FIT = """
import sys
import flawmap.run.train
flawmap.run.train.CHECKPOINT_S = 0.05
from flawmap.cli import main
sys.exit(main(sys.argv[1:]))
"""
PATIENCE_S = 600


def _kill(words: Sequence[str], root: Path, when: Callable[[Path], bool]) -> None:
    """Starts a fit in a process of its own and kills it (SIGKILL) as soon as `when(run)` holds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-c", FIT, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    begun = time.monotonic()
    while not _holds(root, when):
        if process.poll() is not None or time.monotonic() - begun > PATIENCE_S:
            process.kill()
            pytest.fail(f"the fit was not caught in time: {process.communicate()[1]}")
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def _ctrl_c(root: Path, when: Callable[[Path], bool]) -> Iterator[None]:
    """SIGINT to this very process as soon as `when(run)` holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if _holds(root, when):
                os.kill(os.getpid(), signal.SIGINT)
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)


def _holds(root: Path, when: Callable[[Path], bool]) -> bool:
    return any(when(path.parent) for path in root.glob("*/*/*/*/train.jsonl") if not path.parent.is_symlink())


def _log(run: Path) -> list[dict]:
    """What is whole of the log; a killed run may have left half a line."""
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines(True) if line.endswith("\n")]


def _steps(run: Path) -> list[int]:
    return [entry["step"] for entry in _log(run) if entry["event"] == "step"]


def _at_step(number: int) -> Callable[[Path], bool]:
    return lambda run: len(_steps(run)) >= number


def _at_stage(name: str) -> Callable[[Path], bool]:
    return lambda run: any(entry.get("stage") == name for entry in _log(run))


def _at_fold(number: int) -> Callable[[Path], bool]:
    return lambda run: (run / "work" / f"fold{number}.json").exists()


def _only_run(root: Path) -> Path:
    runs = [path.parent for path in root.glob("*/*/*/*/recipe.toml") if not path.parent.is_symlink()]
    assert len(runs) == 1
    return runs[0]


def _has_no_bundle(root: Path) -> None:
    run = _only_run(root)
    assert not (run / "bundle.flaw").exists()
    assert not (run / "report.html").exists()
    assert main(["inspect", str(run / "bundle.flaw"), str(run / "recipe.toml")]) == 1


def _equals(root: Path, reference: Model, pictures: Sequence[Path]) -> None:
    """The run under `root` ended with what the uninterrupted one ended with."""
    run = _only_run(root)
    assert reference.run is not None
    assert sorted(os.listdir(run)) == sorted(os.listdir(reference.run))
    for name in ("calibration.csv", "data.jsonl"):
        assert (run / name).read_text() == (reference.run / name).read_text()
    model = load(run / "bundle.flaw")
    assert model.bundle.files["weights.safetensors"] == reference.bundle.files["weights.safetensors"]
    assert model.calibration is not None
    assert reference.calibration is not None
    assert model.calibration.scores == reference.calibration.scores
    assert model.calibration.threshold == reference.calibration.threshold
    for picture in pictures:
        assert model.predict(picture)[0] == pytest.approx(reference.predict(picture)[0], abs=1e-6)


def _words(model: Model, root: Path, *more: str) -> list[str]:
    """The command that fits this model again."""
    assert model.run is not None
    recipe = tomllib.loads((model.run / "recipe.toml").read_text())
    words = ["fit", recipe["data"], "--method", recipe["method"], "--out", str(root), "--skip-bad", "--size", "64"]
    words += ["--held-out", str(recipe["held_out"]), "--folds", str(recipe["folds"])]
    return words + (["--steps", str(recipe["options"]["steps"])] if "steps" in recipe["options"] else []) + list(more)


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([_at_step(20)], id="in training"),
        pytest.param([_at_stage("features"), _at_step(20), _at_step(150)], id="three times", marks=pytest.mark.slow),
        pytest.param([_at_step(200), _at_stage("graph"), _at_stage("bundle")], id="late", marks=pytest.mark.slow),
    ],
)
def test_a_net_that_was_killed_ends_as_if_it_had_not_been(
    held: Model, paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], moments: list[Callable[[Path], bool]]
):
    before: list[int] = []
    for moment in moments:
        _kill(_words(held, tmp_path, "--resume"), tmp_path, moment)
        steps = _steps(_only_run(tmp_path))
        assert steps[: len(before)] == before
        before = steps
        _has_no_bundle(tmp_path)
    if len(moments) == 1:
        assert 20 <= len(before) < 200

    assert main(_words(held, tmp_path, "--resume", "--json")) == 0
    run = _only_run(tmp_path)
    assert json.loads(capsys.readouterr().out)["bundle"] == str(run / "bundle.flaw")
    # A kill between a checkpoint and its lines in the log may lose lines, but never repeats one.
    assert _steps(run) == sorted(set(_steps(run)))
    assert _steps(run)[-1] == 199
    assert held.run is not None
    losses = {entry["step"]: entry["loss"] for entry in _log(held.run) if entry["event"] == "step"}
    assert {entry["step"]: entry["loss"] for entry in _log(run) if entry["event"] == "step"}.items() <= losses.items()
    _equals(tmp_path, held, sorted((paired / "test").rglob("*.png")))


@pytest.mark.parametrize("killed_too", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_memory_that_was_interrupted_in_its_calibration_ends_as_if_it_had_not_been(
    crossed: Model, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], killed_too: bool
):
    with _ctrl_c(tmp_path, _at_fold(0)):
        assert main(_words(crossed, tmp_path)) == INTERRUPTED
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("flawmap: interrupted; nothing half-written is left")
    work = _only_run(tmp_path) / "work"
    assert not (work / "fold5.json").exists()
    _has_no_bundle(tmp_path)

    kept = {path: path.stat().st_mtime_ns for path in [work / "model.onnx", *work.glob("fold*.json")]}
    if killed_too:
        _kill(_words(crossed, tmp_path, "--resume"), tmp_path, _at_fold(len(kept)))
        assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was done is not done again
        _has_no_bundle(tmp_path)

    assert main(_words(crossed, tmp_path, "--resume")) == 0
    assert f"going on with {_only_run(tmp_path)}" in capsys.readouterr().err
    _equals(tmp_path, crossed, sorted((world / "test").rglob("*.png")))


def test_a_finished_run_or_one_of_another_recipe_is_not_gone_on_with(
    held: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(_words(held, tmp_path, "--resume-run", str(held.run))) == 2
    assert "this run is finished" in capsys.readouterr().err
    for more in (["--seed", "1"], ["--noise", "0.2"], ["--false-alarm", "0.25"]):
        assert main(_words(held, tmp_path, "--resume-run", str(held.run), *more)) == 2
        assert "no run of this recipe" in capsys.readouterr().err
    assert main(_words(held, tmp_path, "--resume-run", str(tmp_path / "nowhere"))) == 2
    assert list(tmp_path.iterdir()) == []
