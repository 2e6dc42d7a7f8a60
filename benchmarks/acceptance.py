"""Shows `flawmap evaluate --acceptance` with trials on pictures that were presented once: docs/acceptance.md.

python benchmarks/acceptance.py BUNDLE DATA [--each 10] [--trials 3] [--keep FOLDER]

No data set here holds repeated presentations. This makes them: each test picture (up to so many of a kind) is moved by
up to 2 pixels and made up to 1 % brighter or darker, anew for every trial. The figures show the command, not a machine:
a part that is taken out and put back turns, shines and moves in other ways.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from flawmap import cli
from flawmap.images.folder import find


def present(data: Path, root: Path, each: int, trials: int) -> None:
    """root/trial-T/<kind>/<name>.png, and the masks of trial 1, moved alike."""
    draw, taken = np.random.default_rng(0), Counter[str]()
    for sample in find(data, kind=None):
        if sample.split != "test" or taken[str(sample.kind)] == each or not isinstance(sample.source, Path):
            continue
        taken[str(sample.kind)] += 1
        pixels = np.asarray(Image.open(sample.source)).astype(float)
        for trial in range(1, trials + 1):
            by, light = draw.integers(-2, 3, 2), draw.uniform(0.99, 1.01)
            name = f"trial-{trial}/{sample.kind}/{sample.source.stem}.png"
            write(np.clip(np.round(moved(pixels, by) * light), 0, 255), root / name)
            if isinstance(sample.mask, Path):
                mask = moved(np.asarray(Image.open(sample.mask)).astype(float), by)
                write(mask, root / name.replace(f"/{sample.kind}/", f"/ground_truth/{sample.kind}/"))


def moved(pixels: np.ndarray, by: np.ndarray) -> np.ndarray:
    """By up to 2 pixels; the edge repeats."""
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, [(2, 2), (2, 2)] + [(0, 0)] * (pixels.ndim - 2), mode="edge")
    return wide[2 - by[0] : 2 - by[0] + height, 2 - by[1] : 2 - by[1] + width]


def write(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data", type=Path)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary) / "presented"
        present(given.data, root, given.each, given.trials)
        words = ["evaluate", given.bundle, str(root), "--acceptance", "--trial-pattern", r"trial-(\d+)"]
        raise SystemExit(cli.main([*words, "--out", str(Path(temporary) / "evaluation")]))
