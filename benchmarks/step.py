"""What makes a training step faster on this machine: memory format, precision, fused optimiser, threads, compiling.

    python benchmarks/step.py [--rounds 5] [--compile]

The step of the small POUTA on 8 pictures, every variant once a round; the table gives the median of the paired ratios
to the plain step (contiguous, float32, optimiser in a loop). Ratios below 1 are faster. docs/speed.md says what of it
flawmap does. Also how fast pictures are painted, against the step, in synthesis.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from flawmap.detectors import create
from flawmap.run.estimate import peak_gflops
from flawmap.run.table import made
from flawmap.types import Batch

BATCH = 8


def step_of(
    norm: str, *, last: bool = False, half: bool = False, fused: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """A step on random pictures: the time does not depend on them."""
    torch.manual_seed(0)
    detector = create("pouta", {"preset": "small", "norm": norm}).train()
    size = detector.config.size
    image = torch.rand(BATCH, 3, size, size)
    batch = Batch(image=image, clean=image, mask=(torch.rand(BATCH, size, size) > 0.9).float())
    if last:
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.Adam(detector.parameters(), lr=1e-4, fused=fused)
    loss_of: Any = torch.compile(lambda: detector.loss(batch)[0]) if compiled else lambda: detector.loss(batch)[0]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            loss = loss_of()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    return step


def measure(variants: dict[str, tuple[int, Callable[[], None]]], rounds: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, (threads, step) in variants.items():
            torch.set_num_threads(threads)
            begun = time.perf_counter()
            step()
            if number:  # the first one warms up
                took[name].append(time.perf_counter() - begun)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes a minute to start")
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    where, detector = made(), create("pouta", {"preset": "small"})
    print(f"{where['date']}, commit {where['commit']}, {where['machine']}; ", end="")
    print(f"a plain convolution reaches {peak_gflops(detector, 'cpu'):.0f} GFLOP/s in the precision trained in\n")
    for norm in ("instance", "batch", "none"):
        variants = {
            "plain": (1, step_of(norm)),
            "channels last": (1, step_of(norm, last=True)),
            "bfloat16": (1, step_of(norm, half=True)),
            "channels last, bfloat16": (1, step_of(norm, last=True, half=True)),
            "channels last, bfloat16, fused Adam": (1, step_of(norm, last=True, half=True, fused=True)),
            f"channels last, bfloat16, {cores} threads": (cores, step_of(norm, last=True, half=True)),
        }
        if args.compile:
            variants["channels last, compiled"] = (1, step_of(norm, last=True, compiled=True))
        took = measure(variants, args.rounds)
        print(f"| norm {norm} | threads | of the plain step | pictures a second |\n|---|---|---|---|")
        for name, seconds in took.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, took["plain"], strict=True))
            print(f"| {name} | {variants[name][0]} | {ratio:.2f} | {BATCH / statistics.median(seconds):.1f} |")
        print(flush=True)


if __name__ == "__main__":
    main()
