"""Is painting ever waited for? Pictures a second of each recipe against those of POUTA's training step, on one core.

    python benchmarks/synthesis.py [--large] [--textures DIR]

Target: at least 3 times as many. Both in seconds of the processor, in one thread, on drawn woven pictures; as in
training half of the pictures stay clean. The step is forward, losses, backward and Adam, in the precision that
`flawmap fit` would take here. --large adds the paper's width and size (a step of one picture, minutes on a CPU).
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from flawmap.detectors import create
from flawmap.detectors.base import SynthesisDetector
from flawmap.images.intake import Intake
from flawmap.images.woven import draw
from flawmap.run.feed import textures
from flawmap.run.train import precision
from flawmap.synthesis import PRESETS, Synthesis
from flawmap.types import Batch

TARGET = 3.0
PAINTED = 200  # pictures
SMALL = ("small", {"preset": "small"}, 8, 3)  # name, options, pictures a step, steps that are timed
LARGE = ("paper's", {"width": 64, "size": 224}, 1, 1)


def painting(size: int, preset: str, folder: str) -> float:
    """Pictures a second."""
    paint = Synthesis(preset, texture=textures(folder) if folder else None)
    intake = Intake((size, size))
    pictures = [intake(draw(seed, size)[0])[0] for seed in range(8)]
    for number in range(PAINTED):  # textures that are read from files stay in memory
        paint(pictures[number % 8], (0, number))
    spent = _spent(lambda: [paint(pictures[n % 8], (0, n)) for n in range(PAINTED)])
    return PAINTED / spent


def training(options: dict[str, Any], batch: int, steps: int) -> tuple[int, float]:
    """Side of the pictures, and pictures a second."""
    detector = create("pouta", options)
    assert isinstance(detector, SynthesisDetector)
    size, (adam, _) = detector.config.size, detector.optimisers(detector.steps)[0]
    detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    paint = Synthesis(detector.config.synthesis)
    made = [paint(draw(n, size)[0].transpose(2, 0, 1).astype(np.float32) / 255, (0, n)) for n in range(batch)]
    image, clean, mask = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))

    def step() -> None:
        with precision(detector):
            loss, _ = detector.loss(Batch(image=image, clean=clean, mask=mask))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    step()
    return size, batch / np.median([_spent(step) for _ in range(steps)])


def _spent(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--large", action="store_true", help="the paper's width and size too")
    parser.add_argument("--textures", default="", metavar="DIR", help="pictures to paint with, such as DTD")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread, torch {torch.__version__}\n")
    print("| POUTA | px | its step, pictures/s | recipe | painting, pictures/s | ratio |\n|---|---|---|---|---|---|")
    worst = np.inf
    for name, options, batch, steps in (SMALL, LARGE)[: 1 + args.large]:
        size, trained = training(options, batch, steps)
        for preset in PRESETS:
            painted = painting(size, preset, args.textures)
            worst = min(worst, painted / trained)
            print(
                f"| {name} | {size} | {trained:.3g} | {preset} | {painted:.0f} | {painted / trained:.3g} |", flush=True
            )
    print(f"\nsmallest ratio {worst:.3g}, target {TARGET:g}: {'met' if worst >= TARGET else 'missed'}")
    return 0 if worst >= TARGET else 4


if __name__ == "__main__":
    sys.exit(main())
