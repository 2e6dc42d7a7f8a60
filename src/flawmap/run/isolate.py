"""One process a job: what breaks in it, or takes all memory, breaks nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
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
    done, total = 0, len(jobs)
    try:
        while waiting or later or running:
            waiting += [job for due, job in later if due <= time.monotonic()]
            later = [(due, job) for due, job in later if due > time.monotonic()]
            for slot in set(range(workers)) - running.keys():
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
                _ended(child, table, f"{done} of {total}")
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            child.process.wait()


def _start(job: Job, slot: int, table: Table, data: Path, workers: int, gpus: Sequence[str], device: str) -> Child:
    threads = max(1, (os.cpu_count() or 1) // workers)
    more = {"OMP_NUM_THREADS": str(threads), "FLAWMAP_THREADS": str(threads)} if workers > 1 else {}
    if gpus:
        more["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    log = table.root / "logs" / f"{job.key}.log"
    log.parent.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "flawmap.run.isolate", str(table.root), table.part, str(data), device]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*words, json.dumps(asdict(job))],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more},
        )
    return Child(job, slot, process, log)


def _ended(child: Child, table: Table, place: str) -> None:
    """A row for a process that could not write one itself."""
    code, row = child.process.returncode, table.rows().get(child.job.key)
    if row is not None:
        say(f"{place}: {child.job}")
        return
    failed = table.failed().get(child.job.key)
    if failed is None or code < 0:
        table.fail(child.job, _why(code, child.log))
        failed = table.failed()[child.job.key]
    say(f"{place}: {child.job}: failed: {failed['failed']}")


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
        table.fill([job], dataset(Path(data)).samples, device)
    except FlawmapError as error:
        table.fail(job, reason(error))
        return error.exit_code
    except Exception as error:
        import traceback

        traceback.print_exc()
        table.fail(job, reason(error))
        return 1
    return 0 if job.key in table.rows() else ELSEWHERE


def _first_to_go() -> None:
    """When memory runs out, Linux is to take this process, not the one that watches it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
