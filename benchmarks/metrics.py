"""Pixel metrics on the same drawn maps, flawmap's beside anomalib's: the tables of docs/metrics.md.

python benchmarks/metrics.py --peers PYTHON [--counts 10 25 50 100 200]

PYTHON is the interpreter of an environment with anomalib 2.7.0. Half of the maps are of good pictures. Every row is
measured in a fresh process with one thread that reads one map after the other, as an evaluation does: processor seconds
are the least of three rounds from the first map to the figures (AUPIMO: of one), so that other work on the machine
counts little; peak memory is what the first round adds to the process after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "metrics.md"
MARKS = ("<!-- from here: python benchmarks/metrics.py -->", "<!-- to here -->")
SIDE = 256
ROUNDS = 3
THEIRS = {"AUPRO": "pro", "AUROC": "p_auroc", "F1Max": "p_f1_max_oracle", "AUPIMO": "aupimo"}
Pictures = Iterator[tuple[np.ndarray, np.ndarray]]


def draw(folder: Path, count: int) -> None:
    """Smooth noise, and in every second picture one to three round defects, dimly seen, of very different size."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    y, x = np.ogrid[:SIDE, :SIDE]
    with open(folder / "maps", "wb") as maps, open(folder / "masks", "wb") as masks:
        for number in range(count):
            map = 8 * gaussian_filter(random.normal(size=(SIDE, SIDE)), 4)
            mask = np.zeros((SIDE, SIDE), bool)
            for _ in range(random.integers(1, 4) if number % 2 else 0):
                at, radius = random.integers(20, SIDE - 20, 2), random.uniform(2, 18)
                blob = (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2
                map += random.uniform(1, 4) * gaussian_filter(blob.astype(float), 2)
                mask |= blob
            maps.write(map.astype(np.float32).tobytes())
            masks.write(mask.tobytes())


def read(folder: Path, count: int) -> Pictures:
    size = SIDE * SIDE
    for number in range(count):
        map = np.fromfile(folder / "maps", np.float32, size, offset=4 * size * number)
        mask = np.fromfile(folder / "masks", bool, size, offset=size * number)
        yield map.reshape(SIDE, SIDE), mask.reshape(SIDE, SIDE)


def flawmap() -> Callable[[Pictures], dict[str, Any]]:
    from flawmap.verdict.pixels import PixelMetrics

    def measure(pictures: Pictures) -> dict[str, Any]:
        metrics = PixelMetrics()
        for map, mask in pictures:
            metrics.add(map, mask, good=not mask.any())
        return metrics.result()

    return measure


def adeval() -> Callable[[Pictures], dict[str, Any]]:
    from adeval.au_pro import calculate_au_pro

    def measure(pictures: Pictures) -> dict[str, Any]:
        maps, masks = zip(*pictures, strict=True)
        return {"value": float(calculate_au_pro([m.astype(int) for m in masks], list(maps))[0])}

    return measure


def anomalib(name: str) -> Callable[[Pictures], dict[str, Any]]:
    import torch
    from anomalib import metrics  # type: ignore[import-not-found]

    def measure(pictures: Pictures) -> dict[str, Any]:
        metric = getattr(metrics, name)(fields=("map", "mask"))
        for map, mask in pictures:
            metric.update(SimpleNamespace(map=torch.from_numpy(map)[None], mask=torch.from_numpy(mask)[None].int()))
        value = metric.compute()
        return {"value": float(torch.as_tensor(value))}

    return measure


def work(what: str, folder: Path, count: int) -> dict[str, Any]:
    """One row, in this process."""
    ours = {"flawmap": flawmap, "adeval": adeval}
    measure = ours[what]() if what in ours else anomalib(what)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, peak, seconds = {}, 0, []
    for _ in range(1 if what == "AUPIMO" else ROUNDS):
        begun = time.process_time()
        try:
            found = measure(read(folder, count))
        except RuntimeError as error:  # AUPIMO refuses a set that is too small
            return {"error": str(error).split(".")[0]}
        seconds.append(time.process_time() - begun)
        peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "mb": (peak - before) / 1024, "found": found}


def child(python: str, *words: str) -> Any:
    """What a fresh process prints. This one stays small: a child starts with its parent's peak."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, __file__, "--work", *words], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(counts: list[int], peers: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            child(sys.executable, "draw", folder, str(count))
            row = {"count": count, "flawmap": child(sys.executable, "flawmap", folder, str(count))}
            row["adeval"] = child(sys.executable, "adeval", folder, str(count))
            row |= {name: child(peers, name, folder, str(count)) for name in THEIRS}
            print(json.dumps(row), flush=True)
            yield row


def table(found: list[dict[str, Any]], versions: str) -> list[str]:
    from results import commit

    lines = [
        f"Made by `python benchmarks/metrics.py --peers PYTHON` on {time.strftime('%Y-%m-%d')}, commit {commit()}: "
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, Python {platform.python_version()}, numpy "
        f"{np.__version__}; {versions}. Drawn maps of {SIDE} x {SIDE}, half of them of good pictures; every cell a "
        "fresh process with one thread that reads one map after the other: processor seconds, and the memory added at "
        "most. flawmap's column is all of its metrics at once, the others are one each. Read the ratios; seconds are "
        "those of this machine.",
        "",
        "| pictures | flawmap, all | " + " | ".join(f"anomalib {name}" for name in THEIRS) + " | PRO: x faster |",
        "|---" * (len(THEIRS) + 3) + "|",
    ]
    for row in found:
        cells = [_cost(row[name]) for name in ("flawmap", *THEIRS)]
        ratio = row["AUPRO"]["seconds"] / row["flawmap"]["seconds"]
        lines.append(f"| {row['count']} | {' | '.join(cells)} | {ratio:.1f} |")
    lines += [
        "",
        "The values; flawmap's with the largest error of its bins.",
        "",
        "| pictures | metric | flawmap | anomalib | adeval |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        ours = row["flawmap"]["found"]
        for name, key in THEIRS.items():
            value = "undefined" if ours[key] is None else f"{ours[key]:.5f} (± {ours[f'{key}_error']:.0e})"
            theirs = f"{row[name]['found']['value']:.5f}" if "found" in row[name] else "refuses"
            third = f"{row['adeval']['found']['value']:.5f}" if key == "pro" else ""
            lines.append(f"| {row['count']} | {key} | {value} | {theirs} | {third} |")
    return lines


def _cost(cell: dict[str, Any]) -> str:
    return f"{cell['seconds']:.2f} s, {cell['mb']:.0f} MB" if "seconds" in cell else "refuses"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", help="the python of an environment with anomalib")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 25, 50, 100, 200])
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        what, folder, count = given.work[0], Path(given.work[1]), int(given.work[2])
        print(json.dumps(draw(folder, count) if what == "draw" else work(what, folder, count)))
        return
    if not given.peers:
        parser.error("--peers: give the python of an environment with anomalib")
    ask = "import anomalib, torch; print(f'anomalib {anomalib.__version__} with torch {torch.__version__}')"
    versions = subprocess.run([given.peers, "-c", ask], check=True, capture_output=True, text=True).stdout.split("\n")
    lines = table(list(rows(given.counts, given.peers)), versions[-2])
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text("\n".join([before + MARKS[0], *lines, MARKS[1] + after]), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
