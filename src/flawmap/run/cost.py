"""What methods cost: parameters, multiply-adds of convolutions, and time a picture, all in one run and one engine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.base import Detector
from flawmap.detectors.patchcore import PatchCore
from flawmap.run.engine import OnnxEngine
from flawmap.run.export import to_onnx
from flawmap.run.reproduce import Recipe, Size, head
from flawmap.run.table import made
from flawmap.types import Batch

ROUNDS = 15  # every method once a round, so that what else the machine does falls on all alike
PICTURES = 209  # a memory bank is sized for so many: those of MVTec's bottle


def cost_table(recipe: Recipe, size: Size) -> Iterator[str]:
    """Times are medians over rounds at batch 1; ratios are those of the paired rounds."""
    detectors = {
        row.name: _made(row.method, {**size.options.get(row.method, {}), **row.options}) for row in recipe.rows
    }
    engines = {name: OnnxEngine(to_onnx(detector)) for name, detector in detectors.items()}
    image = {name: np.random.default_rng(0).random((1, 3, d.config.size, d.config.size), np.float32)
             for name, d in detectors.items()}  # fmt: skip
    took: dict[str, list[float]] = {name: [] for name in engines}
    for name, engine in engines.items():
        engine(image[name])
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            begun = time.perf_counter()
            engine(image[name])
            took[name].append(1000 * (time.perf_counter() - begun))
    yield from head(["method", "px", "parameters, M", "paper", "G multiply-adds", "paper", "ms here", "paper"])
    for row in recipe.rows:
        detector, paper = detectors[row.name], row.paper
        cells = [
            str(detector.config.size),
            f"{_parameters(detector) / 1e6:.2f}",
            _paper(paper, "parameters"),
            f"{gmac(detector):.2f}",
            _paper(paper, "gmac"),
            f"{statistics.median(took[row.name]):.0f}",
            _paper(paper, "ms"),
        ]
        yield f"| {row.name} | {' | '.join(cells)} |"
    yield ""
    mine = recipe.rows[-1]
    for other in recipe.rows[:-1]:
        ratios = [a / b for a, b in zip(took[mine.name], took[other.name], strict=True)]
        low, high = np.quantile(ratios, (0.25, 0.75))
        yield (
            f"- {mine.name} takes {statistics.median(ratios):.2f} times as long as {other.name} (quartiles {low:.2f} "
            f"to {high:.2f}); in the paper {mine.paper['ms'] / other.paper['ms']:.2f}"
        )
    yield from ("", *(f"{row.name}: {row.note}." for row in recipe.rows if row.note), "")
    where = made()
    yield (
        f"{ROUNDS} rounds, every method once a round, batch 1, {next(iter(engines.values())).name}, "
        f"{where['machine']}; {where['date']}, commit {where['commit']}. "
        "The paper's times are those of an unnamed GPU. "
        "Parameters are those used to judge. Multiply-adds are those of convolutions and matrix products, by torch's "
        "own counter."
    )


def gmac(detector: Detector) -> float:
    """10^9 multiply-adds for one picture."""
    image = torch.zeros(1, 3, detector.config.size, detector.config.size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(image)
    return counter.get_total_flops() / 2e9


def _made(method: str, options: Mapping[str, Any]) -> Detector:
    """With random weights, and a memory of random patches: neither changes what a picture takes."""
    detector = create(method, dict(options), pretrained=False).eval()
    if isinstance(detector, PatchCore):
        torch.manual_seed(0)
        feats = [tuple(torch.rand(1, *shape) for shape in detector.backbone.shapes) for _ in range(PICTURES)]
        with torch.no_grad():
            detector.begin([Batch(features=feat) for feat in feats])
    return detector


def _parameters(detector: Detector) -> int:
    """Without the heads that only training has."""
    return sum(p.numel() for name, p in detector.named_parameters() if not name.startswith("mss."))


def _paper(paper: Mapping[str, Any], key: str) -> str:
    return f"{paper[key]:g}" if key in paper else "—"
