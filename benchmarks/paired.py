"""What the benchmarks of speed share: variants in turn, their quartiles, bundles to measure, a page's own section.

The machine's speed drifts while a benchmark runs, so every variant is measured once a round, and a ratio is that of two
times of the same round.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from results import DATA, HERE, commit

PAGE = HERE.parent / "docs" / "speed.md"
BUNDLES = HERE / "out" / "speed"
CATEGORY = "mvtec/bottle"
FITTED = 40  # pictures: the speed of judging depends on neither pictures nor steps, but for the memory's size
METHODS: dict[str, tuple[str, ...]] = {
    "padim": ("--method", "padim"),
    "simplenet": ("--method", "simplenet", "--steps", "20"),
    "patchcore, 1,000 patches": ("--method", "patchcore", "--most", "1000"),
    "patchcore, 4,000 patches": ("--method", "patchcore", "--most", "4000"),
    "efficientad": ("--method", "efficientad", "--preset", "small", "--steps", "3"),
    "pouta": ("--method", "pouta", "--preset", "small", "--steps", "3"),
    "draem": ("--method", "draem", "--preset", "small", "--steps", "3"),
}

Times = dict[str, list[float]]


def in_turn(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds of each variant in each round, by the wall's clock or the processor's (time.process_time)."""
    took: Times = {name: [] for name in variants}
    for number in range(rounds + warm_up):
        for name, work in variants.items():
            begun = clock()
            work()
            if number >= warm_up:
                took[name].append(clock() - begun)
    return took


def ratio(took: Times, above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(took[above], took[below], strict=True)]


def middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def quartiles(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median, and between which values the middle half lies."""
    low, half, high = np.percentile(np.array(values) * scale, (25, 50, 75))
    return f"{half:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def bundle(method: str) -> Path:
    """Fitted once on a few pictures and kept; a network that has hardly learnt is as fast as one that has."""
    path = BUNDLES / f"{method.replace(',', '').replace(' ', '-')}.flaw"
    if not path.exists():
        some = BUNDLES / "pictures"
        some.mkdir(parents=True, exist_ok=True)
        for picture in sorted((DATA / CATEGORY / "train" / "good").iterdir())[:FITTED]:
            (some / picture.name).unlink(missing_ok=True)
            (some / picture.name).symlink_to(picture)
        words = ["fit", str(some), *METHODS[method], "--save", str(path), "--out", str(BUNDLES / "runs")]
        subprocess.run([sys.executable, "-m", "flawmap.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return path


def grown(picture: Path, side: int = 900, noise: float = 2.0) -> bytes:
    """A picture as a camera gives it: a PNG so large, with noise of so many grey levels, which no smooth one has."""
    image = Image.open(picture).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, noise, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def made_by(script: str) -> str:
    """When and where a section was measured."""
    return (
        f"Made by `python benchmarks/{script}` on {time.strftime('%Y-%m-%d')}, commit {commit()}: {os.cpu_count()} "
        f"cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} when it ended, no GPU, "
        f"Python {platform.python_version()}."
    )


def section(title: str, lines: Sequence[str], page: Path = PAGE) -> None:
    """Puts the lines below `## title`, in place of what stood there; the page's other sections stay."""
    before, _, rest = f"{page.read_text('utf-8').rstrip()}\n\n".partition(f"## {title}\n")
    _, mark, after = rest.partition("\n## ")
    body = "\n".join(lines).strip()
    page.write_text(f"{before}## {title}\n\n{body}\n{mark}{after}".rstrip() + "\n", "utf-8")
    print(f"{page}: {title}")
