from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flawmap.errors import MissingExtra
from flawmap.run import cluster
from flawmap.run.bulk import inspect_bulk
from flawmap.run.model import Model

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds actors in /proc")
TOKEN = "the-token-of-this-test-" + str(os.getpid()).zfill(16)
# Two nodes of a core each, on this machine; ends when its stdin does.
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
FILL = """
import json, os, sys, time
from flawmap.run.cluster import fill
def work(job):
    if job["n"] == 3:
        raise ValueError("three is\\nwrong")
    first = not os.path.exists(job["mark"])
    open(job["mark"], "a").write("x")
    if job["n"] == 4 and first:
        os.kill(os.getpid(), 9)
    return {"square": job["n"] ** 2}
if __name__ == "__main__":
    jobs = [{"n": n, "mark": f"{sys.argv[1]}/{n}"} for n in range(6)]
    print(json.dumps(list(fill(work, jobs, sys.argv[2]))))
    try:
        list(fill(work, jobs, sys.argv[2], gpus=0.5))
    except Exception as error:
        print(type(error).__name__, error)
    print(os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""


def _run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **more, "FLAWMAP_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = subprocess.Popen(
        [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert nodes.stdout is not None
    yield nodes.stdout.readline().strip()
    nodes.communicate("", timeout=60)


def _actors() -> list[int]:
    """Processes of this test's cluster that judge."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, env = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"_Actor" in words and TOKEN.encode() in env:
            found.append(int(process.name))
    return found


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r'ray: pip install "flawmap\[cluster\]"'), cluster.connected("local"):
        pass


@pytest.mark.slow
def test_a_cluster_judges_as_one_process_does_and_survives_a_killed_actor(address: str, crossed: Model, tmp_path: Path):
    lot, random = tmp_path / "lot", np.random.default_rng(0)
    lot.mkdir()
    for i in range(400):
        Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(lot / f"{i:03}.png")
    (lot / "100.png").write_bytes(b"no picture")
    bundle, out = crossed.save(tmp_path / "tiny.flaw"), tmp_path / "o"
    calm, code = inspect_bulk(bundle, [str(lot)], tmp_path / "calm", workers=1)
    assert (calm["pictures"], calm["errors"], code) == (400, 1, 3)
    words = ["-m", "flawmap.cli", "inspect", str(bundle), str(lot), "--out", str(out), "--ray", address, "--json"]
    env = {**os.environ, "RAY_AUTH_TOKEN": TOKEN, "FLAWMAP_THREADS": "1"}
    env.pop("RAY_AUTH_MODE", None)
    run = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    killed: set[int] = set()
    while run.poll() is None:
        if len(list(out.glob("*.parquet"))) > 2 * (len(killed) + 1) and len(killed) < 2:
            for pid in _actors()[:1]:
                os.kill(pid, 9)
                killed.add(pid)
        time.sleep(0.01)
    said, complained = run.communicate()
    assert run.returncode == 3, complained
    assert len(killed) == 2
    found = json.loads(said)
    assert [found[key] for key in ("pictures", "OK", "NOK", "errors")] == [
        calm[key] for key in ("pictures", "OK", "NOK", "errors")
    ]
    assert pq.read_table(out).to_pylist() == pq.read_table(tmp_path / "calm").to_pylist()


@pytest.mark.slow
def test_who_has_not_the_token_is_refused(address: str, crossed: Model, tmp_path: Path):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    bundle = crossed.save(tmp_path / "tiny.flaw")
    words = ["-m", "flawmap.cli", "inspect", str(bundle), str(tmp_path / "a.png"), "--out", str(tmp_path / "o")]
    done = _run([*words, "--ray", address], RAY_AUTH_TOKEN="another-token-of-enough-length")
    assert done.returncode == 1
    assert f"flawmap: no Ray cluster at {address}: " in done.stderr
    assert not list((tmp_path / "o").glob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cluster", "local"])
def test_jobs_are_filled_into_a_cluster_and_what_fails_is_told(where: str, address: str, tmp_path: Path):
    script = tmp_path / "jobs.py"
    script.write_text(FILL)
    done = _run([str(script), str(tmp_path), address if where == "cluster" else "local"], RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    first, gpus, settings = done.stdout.splitlines()[-3:]
    found = {job["n"]: result for job, result in json.loads(first)}
    assert found.pop(3) == "ValueError: three is wrong"
    assert found == {n: {"square": n**2} for n in (0, 1, 2, 4, 5)}
    assert (tmp_path / "4").read_text() == "xx"
    assert gpus.startswith("UsageError jobs of 0.5 GPUs would wait for ever")
    assert settings == "token 0"
