"""Growth: what fitting and judging take, against the number of pictures and the size of PatchCore's memory.

python benchmarks/growth.py [--pictures 100 300 1000 3000 10000 20000] [--memory 500 2000 8000 32000 64000]

Drawn fabric at 64 px (flawmap.images.woven), every fit and every judging in a fresh process. The processor's time,
peak memory and bundle size, with the slope of their last steps on logarithmic axes: 1 is a straight line, 0 does not
grow. Writes docs/growth.svg. What was measured is kept, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paired import BUNDLES, HERE, made_by, section

FIGURE = HERE.parent / "docs" / "growth.svg"
KEPT = BUNDLES / "growth.jsonl"
SIZE = 64
POOL = 1000  # pictures whose 64,000 patches a memory is chosen from
WAYS = ("simplenet", "padim", "patchcore")
AXES = {"fit_s": "fit, CPU s", "fit_mb": "fit, peak MB", "inspect_ms": "a picture, CPU ms", "bundle_mb": "bundle, MB"}
# A child starts with its parent's peak; a small one in between keeps ours out of the figure.
WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=-3, stderr=-3).returncode
took = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, took.ru_utime + took.ru_stime, took.ru_maxrss / 1024)
"""
JUDGE = """
import sys, time
from pathlib import Path
import flawmap
model, files = flawmap.load(sys.argv[1]), [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())[:50]]
took = []
for file in files * 4:
    begun = time.process_time()
    model.inspect(file)
    took.append(time.process_time() - begun)
print(sorted(took)[len(took) // 2] * 1e3)
"""


def drawn(most: int) -> Path:
    from flawmap.images import woven

    return woven.write(BUNDLES / f"woven-{most}", good=most, test_good=50, per_kind=0, size=SIZE)


def measured(cloth: Path, pictures: int, method: str, *options: str) -> dict[str, Any]:
    """One fit and its judging."""
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder, "good")
        some.mkdir()
        for path in sorted((cloth / "train" / "good").iterdir())[:pictures]:
            (some / path.name).symlink_to(path)
        bundle = Path(folder, "one.flaw")
        words = ["fit", str(some), "--method", method, "--size", str(SIZE), *options, "--save", str(bundle)]
        command = [sys.executable, "-m", "flawmap.cli", *words, "--held-out", "0.2", "--out", f"{folder}/runs"]
        watched = subprocess.run([sys.executable, "-c", WATCH, *command], check=True, capture_output=True, text=True)
        code, seconds, peak = watched.stdout.split()
        if code != "0":
            sys.exit(f"flawmap {' '.join(words)} failed")
        judge = [sys.executable, "-c", JUDGE, str(bundle), str(cloth / "test" / "good")]
        told = subprocess.run(judge, check=True, capture_output=True, text=True).stdout
        size = bundle.stat().st_size / 2**20
    return {"fit_s": float(seconds), "fit_mb": float(peak), "inspect_ms": float(told), "bundle_mb": size}


def jobs(pictures: Sequence[int], memory: Sequence[int]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Line, place on it, and the words of the fit; small ones first."""
    found: list[tuple[str, int, tuple[str, ...]]] = [
        (f"{method}, pictures", count, ("--method", method)) for count in sorted(pictures) for method in WAYS
    ]
    whole = ("--method", "patchcore", "--keep", "1.0", "--reservoir-mb", "256", "--most")
    found += [("patchcore, patches in memory", most, (*whole, str(most))) for most in sorted(memory)]
    return found


def rows(pictures: Sequence[int], memory: Sequence[int]) -> list[dict[str, Any]]:
    done = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    cloth = drawn(max(*pictures, POOL))
    found = []
    for line, place, (_, method, *options) in jobs(pictures, memory):
        row = next((r for r in done if (r["line"], r["place"]) == (line, place)), None)
        if row is None:
            count = place if line.endswith("pictures") else POOL
            row = {"line": line, "place": place, **measured(cloth, count, method, *options)}
            with KEPT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def slope(line: Sequence[dict[str, Any]], what: str) -> float:
    """Over the last two steps, where what is constant counts least."""
    first, last = line[max(0, len(line) - 3)], line[-1]
    if first is last:
        return math.nan
    return math.log(last[what] / first[what]) / math.log(last["place"] / first["place"])


def draw(lines: dict[str, list[dict[str, Any]]]) -> bytes:
    from flawmap.report import charts

    with charts._drawing((8.6, 6.2)) as figure:
        for place, (what, label) in enumerate(AXES.items()):
            axes = figure.add_subplot(2, 2, place + 1)
            for look, (name, line) in enumerate(lines.items()):
                x, y = ([row[key] for row in line] for key in ("place", what))
                axes.loglog(x, y, color=charts.COLOURS[look], marker=charts.MARKERS[look], ms=4, label=name)
            axes.set(ylabel=label, xlabel="pictures, or patches in memory")
        axes.legend(fontsize=8)
        return charts._svg(figure, "")


def page(found: Sequence[dict[str, Any]]) -> list[str]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        lines.setdefault(row["line"], []).append(row)
    FIGURE.write_bytes(draw(lines))
    out = [
        f"{made_by('growth.py')} Drawn fabric at {SIZE} px, a fit and its judging in fresh processes; a memory's sizes "
        f"are chosen from the {POOL * 64:,} patches of {POOL:,} pictures. Seconds are the processor's, over all "
        "threads, because other work ran beside it: read the slopes. A slope is that of the last steps on logarithmic "
        "axes: 1 is a straight line, 0 does not grow.",
        "",
        "![Time, memory and bundle size against pictures and patches](growth.svg)",
        "",
        "| | | fit, CPU s | peak MB | a picture, CPU ms | bundle, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        for row in line:
            values = " | ".join(f"{row[what]:.1f}" for what in AXES)
            out.append(f"| {name} | {row['place']:,} | {values} |")
        out.append(f"| **slope** | | {' | '.join(f'{slope(line, what):.2f}' for what in AXES)} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000, 20_000])
    parser.add_argument("--memory", type=int, nargs="+", default=[500, 2000, 8000, 32_000, 64_000])
    args = parser.parse_args()
    BUNDLES.mkdir(parents=True, exist_ok=True)
    section("Growth", page(rows(args.pictures, args.memory)))


if __name__ == "__main__":
    main()
