"""How many pictures a second `flawmap inspect` judges over its workers, and what bounds it: docs/scale.md.

python benchmarks/scale.py [--pictures 600] [--listed 1000000] [--rounds 3]

Bottles of MVTec AD (FLAWMAP_DATA, default ../shared/data) under as many names as asked for, PatchCore on Lite0. The
terms of the model are measured apart: in one process of one thread, alone and with a second one busy beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from results import DATA, HERE, commit

from flawmap.images.decode import probe

PAGE = HERE.parent / "docs" / "scale.md"
BUNDLE = HERE / "out" / "scale" / "bottle.flaw"
START, END = "<!-- table -->", "<!-- end -->"
BUSY_HERE = (
    " **Other work kept the cores busy meanwhile, see the load: this says nothing of how the throughput grows with "
    "workers, and the times below are too long. Run it again on a quiet machine.**"
)
STEPS = ("decode", "infer", "rest")
# Judges the pictures again and again until it is told to stop; beside it we measure.
BUSY = """
import sys
from pathlib import Path
from flawmap.run.model import load
model = load(sys.argv[1])
pictures = sorted(Path(sys.argv[2]).iterdir())[:60]
print("ready", flush=True)
while True:
    for picture in pictures:
        model.inspect(picture)
"""


def bundle() -> Path:
    """Fitted once and kept."""
    if not BUNDLE.exists():
        words = ["fit", str(DATA / "mvtec/bottle"), "--save", str(BUNDLE), "--out", str(BUNDLE.parent / "runs")]
        subprocess.run([sys.executable, "-m", "flawmap.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return BUNDLE


def lot(root: Path, count: int) -> Path:
    """So many names for the bottles."""
    bottles = sorted((DATA / "mvtec/bottle").glob("t*/*/*.png"))
    root.mkdir()
    for i in range(count):
        (root / f"{i:05}.png").symlink_to(bottles[i % len(bottles)])
    return root


# A child starts with its parent's peak; a small one in between keeps ours out of the figure.
WATCH = """
import resource, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=-3, stderr=-3).returncode
seconds, spent = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, seconds, spent.ru_maxrss / 1024, spent.ru_utime + spent.ru_stime)
"""


def judged(out: Path, pictures: Path, count: int, *words: str, threads: str = "") -> tuple[float, float, float]:
    """Pictures a second of a whole command in a fresh process, its start included; its largest MB, and CPU seconds."""
    command = [sys.executable, "-m", "flawmap.cli", "inspect", str(bundle()), str(pictures), "--json", *words]
    env = {**os.environ, **({"FLAWMAP_THREADS": threads} if threads else {})}
    if words:
        command += ["--out", str(out)]
    watched = [sys.executable, "-c", WATCH, *command]
    code, seconds, peak, cpu = subprocess.run(
        watched, check=True, env=env, capture_output=True, text=True
    ).stdout.split()
    if code != "0":
        sys.exit(f"flawmap {' '.join(command[3:])} failed")
    return count / float(seconds), float(peak), float(cpu) / count


def steps(pictures: Path) -> dict[str, float]:
    """Seconds a picture of each step, the median over pictures; the first ones warm up."""
    from flawmap.run.engine import OnnxEngine
    from flawmap.run.model import load
    from flawmap.verdict.regions import regions

    model = load(bundle())
    engine = OnnxEngine(model.bundle.files["model.onnx"], threads=1)
    assert model.calibration is not None
    found: dict[str, list[float]] = {step: [] for step in STEPS}
    for picture in sorted(pictures.iterdir())[:120]:
        marks = [time.perf_counter()]
        image, size = model.intake(picture)
        marks.append(time.perf_counter())
        maps, _ = engine(image[None])
        marks.append(time.perf_counter())
        regions(model.over(maps[0], size), model.calibration.map_threshold)
        marks.append(time.perf_counter())
        for i, step in enumerate(STEPS):
            found[step].append(marks[i + 1] - marks[i])
    return {step: statistics.median(values[20:]) for step, values in found.items()}


@contextmanager
def beside(pictures: Path) -> Iterator[None]:
    """A second process judges with one thread meanwhile."""
    command = [sys.executable, "-c", BUSY, str(bundle()), str(pictures)]
    env = {**os.environ, "FLAWMAP_THREADS": "1"}
    busy = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        yield
    finally:
        busy.kill()
        busy.communicate()


def disk(pictures: Path) -> tuple[float, float]:
    """MB a second of files that are not in the page cache, and MB a picture."""
    files = sorted({path.resolve() for path in pictures.iterdir()})[:200]
    total = sum(path.stat().st_size for path in files)
    seconds = 0.0
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        while os.read(handle, 1 << 20):
            pass
        seconds += time.perf_counter() - begun
        os.close(handle)
    return total / 1e6 / seconds, total / 1e6 / len(files)


LIST = """
import json, resource, sys, time
from pathlib import Path
from flawmap.run.bulk import open_job
from flawmap.run.bundle import read
bundle = read(Path(sys.argv[1]))
spent = []
for _ in range(2):
    begun = time.perf_counter()
    job = open_job(Path(sys.argv[3]), bundle, [sys.argv[2]], engine="onnx", part_pattern=None, maps=False)
    spent.append(time.perf_counter() - begun)
begun = time.perf_counter()
job.left()
spent.append(time.perf_counter() - begun)
print(json.dumps([*spent, len(job.sizes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def parent(scratch: Path, count: int) -> tuple[float, float, float, int, float]:
    """Seconds to list so many files and begin, to find the job begun, to look once; shards; peak MB."""
    root = scratch / "many"
    for begin in range(0, count, 1000):
        folder = root / f"{begin // 1000:04}"
        folder.mkdir(parents=True)
        for i in range(begin, min(begin + 1000, count)):
            (folder / f"picture-{i:07}.png").touch()
    command = [sys.executable, "-c", LIST, str(bundle()), str(root), str(scratch / "listed")]
    return tuple(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def curve(pictures: Path, scratch: Path, count: int, rounds: int) -> list[tuple[str, int, float, float, float]]:
    """What, processes, pictures a second (the best round), MB of the largest process, CPU ms a picture."""
    ways = [
        ("`flawmap inspect`, threads as it sets them", 1, (), ""),
        ("`flawmap inspect`, 1 thread", 1, (), "1"),
        ("`--out --workers 1`, threads as it sets them", 1, ("--workers", "1"), ""),
        ("`--out --workers 1`, 1 thread", 1, ("--workers", "1"), "1"),
        ("`--out --workers 2`, 1 thread each", 2, ("--workers", "2"), ""),
        ("`--out --workers 2 --save-maps`, 1 thread each", 2, ("--workers", "2", "--save-maps"), ""),
    ]
    found: list[list[tuple[float, float, float]]] = [[] for _ in ways]
    for round in range(rounds):  # every way once a round: what else the machine does meets all alike
        for i, (what, _, words, threads) in enumerate(ways):
            found[i].append(judged(scratch / f"{round}-{i}", pictures, count, *words, threads=threads))
            print(f"{what}: {found[i][-1][0]:.1f} a second", file=sys.stderr)
    rows = []
    for (what, processes, _, _), each in zip(ways, found, strict=True):
        rate, memory, cpu = max(each)
        rows.append((what, processes, rate, memory, cpu * 1000))
    return rows


def page(count: int, listed: int, rounds: int) -> str:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pictures = lot(scratch / "lot", count)
        header = probe(next(pictures.iterdir()))
        speed, weight = disk(pictures)
        alone = steps(pictures)
        with beside(pictures):
            shared = steps(pictures)
        rows = curve(pictures, scratch, count, rounds)
        begin, again, look, shards, peak = parent(scratch, listed)
    one, two = (sum(each.values()) for each in (alone, shared))
    measured = {what: rate for what, _, rate, _, _ in rows}
    first, second = measured["`--out --workers 1`, 1 thread"], measured["`--out --workers 2`, 1 thread each"]
    serial = (begin + again) / 2 / listed
    command = f"python benchmarks/scale.py --pictures {count} --listed {listed} --rounds {rounds}"
    lines = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d')}, commit {commit()}: {os.cpu_count()} cores "
        f"({platform.machine()}), load {load:.1f} before it began, Python {platform.python_version()}, no GPU. "
        f"PatchCore on Lite0 at 256 px, bottles of {header.width} x {header.height} px, {weight:.2f} MB a PNG. "
        f"Best of {rounds} rounds; a command's start and the list of pictures are counted.",
        "",
        "| | processes | pictures a second | CPU ms a picture | MB of the largest process |",
        "|---|---|---|---|---|",
        *(f"| {what} | {n} | {rate:.1f} | {cpu:.0f} | {memory:.0f} |" for what, n, rate, memory, cpu in rows),
        "",
        f"Two workers against one, each of one thread: {second / first:.2f} times." + (BUSY_HERE if load > 0.5 else ""),
        "",
        "| ms a picture, one thread | alone | with a second process beside it |",
        "|---|---|---|",
        *(f"| {step} | {alone[step] * 1e3:.1f} | {shared[step] * 1e3:.1f} |" for step in STEPS),
        f"| sum | {one * 1e3:.1f} | {two * 1e3:.1f} |",
        "",
        "| term of the model | measured | bound, pictures a second |",
        "|---|---|---|",
        f"| one worker alone: 1 / ({' + '.join(STEPS)}) | {one * 1e3:.1f} ms | {1 / one:.1f} (measured {first:.1f}) |",
        f"| two workers: 2 / ({' + '.join(STEPS)}), beside each other | {two * 1e3:.1f} ms | {2 / two:.1f} "
        f"(measured {second:.1f}) |",
        f"| disk here, files not in memory | {speed:.0f} MB/s | {speed / weight:.0f} |",
        f"| parent: list, begin and check, once a run | {serial * 1e6:.0f} us a picture | {1 / serial:,.0f} |",
        "",
        f"The parent with {listed:,} files: {begin:.1f} s to list them and begin, {again:.1f} s to list them again and "
        f"go on, {look * 1e3:.1f} ms for a look at what is done ({shards} shards, five looks a second), {peak:.0f} MB "
        "at most.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--listed", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{page(args.pictures, args.listed, args.rounds)}\n\n{END}{after}")
    print(PAGE)


if __name__ == "__main__":
    main()
