"""Endurance: a hundred thousand inspections in a row in one process, each from a file's bytes.

python benchmarks/soak.py [--small 100000] [--real 2000] [--quiet]

A bundle at 64 px on drawn fabric, and one at 256 px on bottles of MVTec AD (FLAWMAP_DATA), good and not, as PNG. Every
hundredth of the way memory, open files and threads are read from /proc. Fails where the memory moves by more than 2 %
after the first tenth, or anything stays open. --quiet measures only the latency of the real one again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from paired import BUNDLES, CATEGORY, bundle, made_by, section
from results import DATA

MOST_MOVED = 0.02
WARM = 0.1  # of the way
KEPT = BUNDLES / "soak.json"


def small() -> tuple[Path, list[bytes]]:
    """A bundle at 64 px, and its pictures."""
    from flawmap.images import woven

    path, cloth = BUNDLES / "woven-64.flaw", woven.write(BUNDLES / "woven", good=40, test_good=20, per_kind=4, size=64)
    if not path.exists():
        words = ["fit", str(cloth), "--size", "64", "--save", str(path), "--out", str(BUNDLES / "runs")]
        subprocess.run([sys.executable, "-m", "flawmap.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return path, [file.read_bytes() for file in sorted(cloth.glob("test/*/*.png"))]


def real() -> tuple[Path, list[bytes]]:
    test = DATA / CATEGORY / "test"
    return bundle("patchcore, 4,000 patches"), [file.read_bytes() for file in sorted(test.glob("*/*.png"))]


def now() -> tuple[float, int, int]:
    """Resident MB, open files, threads of this process."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["VmRSS"].split()[0]) / 1024, len(os.listdir("/proc/self/fd")), int(words["Threads"])


def soak(path: Path, files: list[bytes], count: int) -> dict[str, Any]:
    from flawmap import load

    model, took, seen = load(path), np.empty(count), []
    verdicts: set[tuple[int, str]] = set()
    every = max(1, count // 100)
    for number, place in zip(range(count), itertools.cycle(range(len(files)))):
        begun = time.perf_counter()
        found = model.inspect(files[place])
        took[number] = time.perf_counter() - begun
        verdicts.add((place, f"{found.verdict} {found.score!r}"))
        if number % every == every - 1:
            gc.collect()
            seen.append(now())
    memory, handles, threads = np.array(seen[int(len(seen) * WARM) :]).T
    return {
        "count": count,
        "pictures": len(files),
        "answers": len(verdicts),
        "memory": [memory[0], memory.min(), memory.max(), memory[-1]],
        "moved": float(np.abs(memory / memory[0] - 1).max()),
        "slope": float(np.polyfit(np.arange(len(memory)) * every, memory * 1024, 1)[0]),
        "handles": [int(handles.min()), int(handles.max())],
        "threads": [int(threads.min()), int(threads.max())],
        "ms": [float(x) * 1e3 for x in (*np.percentile(took, (50, 99)), took.max())],
    }


def row(what: str, r: dict[str, Any]) -> str:
    first, low, high, last = r["memory"]
    (least, most), (few, many), (half, late, worst) = r["handles"], r["threads"], r["ms"]
    return (
        f"| {what} | {r['count']:,} | {first:.1f}, {low:.1f} to {high:.1f}, {last:.1f} | {r['moved']:.2%} | "
        f"{r['slope'] * 1e3:.2f} | {least} to {most} | {few} to {many} | {half:.1f} / {late:.1f} / {worst:.0f} |"
    )


def page(found: dict[str, dict[str, Any]]) -> None:
    what = {"small": "64 px, drawn fabric", "real": "256 px, bottles"}
    lines = [
        f"{made_by('soak.py')} PatchCore, one process, every picture from its file's bytes to the verdict, good ones "
        f"and defects in turn. Memory, open files and threads after the first tenth; aim: memory within "
        f"{MOST_MOVED:.0%}, the others constant. The long runs had a low priority beside other work, which their "
        "latency shows.",
        "",
        "| | inspections | resident MB: then, range, at the end | moved | kB a 1,000 | open files | threads "
        "| p50 / p99 / longest ms |",
        "|---|---|---|---|---|---|---|---|",
        *(row(what[name], r) for name, r in found.items() if name in what),
        "",
        "Every picture got the same score, to the last bit, each time it came: "
        + ", ".join(f"{r['answers']} answers for {r['pictures']} pictures" for n, r in found.items() if n in what)
        + ".",
    ]
    if quiet := found.get("quiet"):
        half, late, worst = quiet["ms"]
        lines += [
            "",
            f"The latency of the bottles again with nothing beside it, {quiet['count']} inspections: "
            f"p50 {half:.1f} ms, p99 {late:.1f} ms, longest {worst:.0f} ms.",
        ]
    section("Endurance", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--real", type=int, default=2000)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--one", choices=("small", "real"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    ways = {"small": (small, args.small), "real": (real, args.real)}
    if args.one:  # in a process of its own, so that neither inherits the other's memory
        make, count = ways[args.one]
        print(json.dumps(soak(*make(), count)))
        return
    found = json.loads(KEPT.read_text()) if args.quiet and KEPT.exists() else {}
    for name in ("real",) if args.quiet else tuple(ways):
        ways[name][0]()  # fitted here, so that nothing of the fit is in the measured process
        words = ["--one", name, "--small", str(args.small), "--real", str(args.real)]
        child = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
        found["quiet" if args.quiet else name] = json.loads(child.stdout)
        KEPT.write_text(json.dumps(found))
    page(found)
    for name, r in found.items():
        steady = r["handles"][0] == r["handles"][1] and r["threads"][0] == r["threads"][1]
        if not (r["moved"] <= MOST_MOVED and steady and r["answers"] == r["pictures"]):
            sys.exit(f"{name}: not as steady as it should be: {r}")


if __name__ == "__main__":
    main()
