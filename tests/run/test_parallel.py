"""Two processes that torchrun starts train what one would, and leave one bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load

from flawmap.errors import UsageError
from flawmap.run import parallel
from flawmap.run.bundle import read
from flawmap.run.fit import fit
from flawmap.run.recipe import Log

OPTIONS = ["--method", "pouta", "--width", "4", "--size", "32", "--window", "5", "--steps", "6", "--held-out", "0"]


def _fit(world: Path, out: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["-m", "flawmap.cli", "fit", str(world), *OPTIONS, *more, "--out", str(out), "--device", "cpu", "--json"]
    if processes > 1:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def together(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("together")
    return out, _fit(world, out, 2)


def test_two_processes_leave_one_bundle_and_one_voice(
    together: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = together
    assert done.returncode == 0, done.stderr
    assert len(list(out.rglob("bundle.flaw"))) == 1
    assert len(done.stdout.strip().splitlines()) == 1
    assert Path(json.loads(done.stdout)["bundle"]).exists()
    assert done.stderr.count("checking 24 pictures") == 1


def test_two_processes_learn_what_one_does(
    world: Path, tmp_path: Path, together: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    assert _fit(world, tmp_path, 1).returncode == 0
    runs = [next(out.rglob("bundle.flaw")) for out in (tmp_path, together[0])]
    alone, both = (load(read(path).files["weights.safetensors"]) for path in runs)
    start = max(float(value.abs().max()) for value in alone.values())
    for key, value in alone.items():
        assert float((value - both[key]).abs().max()) < 0.02 * start, key
    logs = [Log(path.parent / "train.jsonl").entries() for path in runs]
    losses = [[entry["loss"] for entry in log if entry["event"] == "step"] for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert len(losses[0]) == 6


@pytest.mark.parametrize(
    ("method", "options", "processes", "message"),
    [
        ("simplenet", {}, 2, "simplenet is not trained by several processes"),
        ("draem", {}, 2, "its batch norm counts over the pictures of a whole step"),
        ("pouta", {"norm": "batch"}, 4, "its batch norm counts over the pictures of a whole step"),
        ("pouta", {"reuse": False}, 2, "its batch norm counts over the pictures of a whole step"),
        ("pouta", {}, 3, "8 pictures a step cannot be shared by 3 processes"),
    ],
)
def test_what_several_processes_cannot_train_as_one_is_refused_before_there_is_a_run(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: dict,
    processes: int,
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    small = {} if method == "simplenet" else {"width": 4, "window": 5}
    with pytest.raises(UsageError, match=message):
        fit(world, method, options={"size": 64, **small, **options}, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_one_process_is_the_first_and_waits_for_nobody() -> None:
    assert (parallel.rank(), parallel.world()) == (0, 1)
    parallel.wait()
    assert parallel.own_device("cuda") == "cuda"
    assert parallel.same_path(Path("a"), "cpu") == Path("a")
