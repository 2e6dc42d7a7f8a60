"""One process a job: what breaks in it, or takes all memory, breaks nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flawmap.errors import FlawmapError
from flawmap.run.progress import say
from flawmap.run.table import Job, Table

ELSEWHERE = 75  # exit code: another process has the job
PAUSE_S = 0.2
AGAIN_S = 10  # until a job in other hands is asked for again
TAIL = 2000  # characters of a log that are looked at for a reason


@dataclass
class Child:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    log: Path


def fill(jobs: Sequence[Job], table: Table, data: Path, workers: int, gpus: Sequence[str], device: str) -> None:
    """Runs jobs in `workers` processes at a time, worker k on gpus[k % len]; every job ends as a row."""
    waiting, later = list(jobs), list[tuple[float, Job]]()
    running: dict[int, Child] = {}
    done, total, before = 0, len(jobs), table.failures()
    try:
        while waiting or later or running:
            waiting += [job for due, job in later if due <= time.monotonic()]
            later = [(due, job) for due, job in later if due > time.monotonic()]
            for slot in set(range(workers)) - running.keys():
                while waiting and _over(waiting[0], table, before):  # by another command on the same folder
                    waiting.pop(0)
                    done += 1
                if waiting:
                    running[slot] = _start(waiting.pop(0), slot, table, data, workers, gpus, device)
            time.sleep(PAUSE_S)
            for slot, child in list(running.items()):
                if child.process.poll() is None:
                    continue
                del running[slot]
                if child.process.returncode == ELSEWHERE:
                    later.append((time.monotonic() + AGAIN_S, child.job))
                    continue
                done += 1
                _ended(child, table, before, f"{done} of {total}")
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            child.process.wait()


def _over(job: Job, table: Table, before: Counter[str]) -> bool:
    return table.done(job) or table.failures()[job.key] > before[job.key]


def _start(job: Job, slot: int, table: Table, data: Path, workers: int, gpus: Sequence[str], device: str) -> Child:
    threads = max(1, (os.cpu_count() or 1) // workers)
    names = ("OMP_NUM_THREADS", "FLAWMAP_THREADS") if workers > 1 else ()
    more = {name: os.environ.get(name, str(threads)) for name in names}
    if gpus:
        more["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    log = table.root / "logs" / f"{job.key}.log"
    log.parent.mkdir(exist_ok=True)
    words = [sys.executable, "-P", "-m", "flawmap.run.isolate", str(table.root), table.part, str(data), device]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*words, json.dumps(asdict(job))],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more},
        )
    return Child(job, slot, process, log)


def _ended(child: Child, table: Table, before: Counter[str], place: str) -> None:
    """A row for a process that could not write one itself."""
    if table.done(child.job):
        say(f"{place}: {child.job}")
        return
    if table.failures()[child.job.key] == before[child.job.key]:
        table.fail(child.job, _why(child.process.returncode, child.log))
    say(f"{place}: {child.job}: failed: {table.failed()[child.job.key]['failed']}")


def _why(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "killed (signal 9), most likely for want of memory"
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    lines = log.read_text(errors="replace")[-TAIL:].split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"ended with exit code {code}: {last}"


def main(words: Sequence[str]) -> int:
    """The child: one job, as a row or as a row that says why not."""
    from flawmap.images.datasets import dataset
    from flawmap.run.benchmark import reason

    root, part, data, device, given = words
    _first_to_go()
    table, job = Table(Path(root), part=part), Job(**json.loads(given))
    try:
        if table.fill([job], dataset(Path(data)).samples, device):
            return ELSEWHERE
    except FlawmapError as error:
        table.fail(job, reason(error))
        return error.exit_code
    except Exception as error:
        import traceback

        traceback.print_exc()
        table.fail(job, reason(error))
        return 1
    if not table.done(job):
        table.fail(job, "it ran, but its row does not count: the weights or the defaults changed meanwhile")
        return 1
    return 0


def _first_to_go() -> None:
    """When memory runs out, Linux is to take this process, not the one that watches it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
