"""What methods cost: parameters, multiply-adds of convolutions, and time a picture, all in one run and one engine."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.base import Detector
from flawmap.detectors.patchcore import PatchCore
from flawmap.features.backbone import Backbone
from flawmap.features.frozen import export
from flawmap.run.engine import OnnxEngine, _threads
from flawmap.run.export import to_onnx
from flawmap.run.reproduce import Pairs, Recipe, Row, SamplesOf, Size, head
from flawmap.run.table import Table, made
from flawmap.types import Batch

ROUNDS = 15  # every method once a round, so that what else the machine does falls on all alike
FROZEN = ", frozen part"
PICTURES = 209  # a memory bank is sized for so many: those of MVTec's bottle


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """Times are medians over rounds at batch 1; ratios are those of the paired rounds."""
    detectors = {
        row.name: _made(row.method, {**size.options.get(row.method, {}), **row.options}) for row in recipe.rows
    }
    engines, name = _engines(detectors)
    took = _timed(engines, detectors, int(size.figure.get("rounds", ROUNDS)))
    yield from head(["method", "px", *_columns(recipe), "the frozen network's share of the time"])
    for row in recipe.rows:
        detector = detectors[row.name]
        ours = {
            "parameters": f"{_parameters(detector) / 1e6:.2f}",
            "gmac": f"{gmac(detector):.2f}",
            "ms": f"{statistics.median(took[row.name]):.0f}",
        }
        cells = [str(detector.config.size)]
        for key, value in ours.items():
            cells += [value, *[_paper(row.paper, key)] * _quoted(recipe, key)]
        yield f"| {row.name} | {' | '.join(cells)} | {_share(took, row.name)} |"
    yield ""
    mine = next((row for row in recipe.rows if row.name == size.figure.get("against")), recipe.rows[-1])
    for other in recipe.rows:
        if other is not mine:
            yield _ratio(mine, other, took)
    yield from ((f"\n{recipe.says}") if recipe.says else "", "")
    yield from (*(f"- {row.name}: {row.note}." for row in recipe.rows if row.note), "")
    where = made()
    yield (
        f"{len(took[mine.name])} rounds, every method once a round, batch 1, {name}, "
        f"{os.environ.get('FLAWMAP_THREADS', 'all')} threads, "
        f"{where['machine']}; {where['date']}, commit {where['commit']}. {recipe.paper_is}"
        "Parameters are those used to judge. Multiply-adds are those of convolutions and matrix products, by torch's "
        "own counter. The frozen network is the backbone, or EfficientAD's teacher, timed alone in the same rounds."
    )


def _columns(recipe: Recipe) -> list[str]:
    titles = {"parameters": "parameters, M", "gmac": "G multiply-adds", "ms": "ms here"}
    return [word for key, title in titles.items() for word in [title, *["printed"] * _quoted(recipe, key)]]


def _quoted(recipe: Recipe, key: str) -> bool:
    return any(key in row.paper for row in recipe.rows)


Engines = dict[str, Callable[[np.ndarray], Any]]


def _engines(detectors: Mapping[str, Detector]) -> tuple[Engines, str]:
    """A graph a method, and under (its name, FROZEN) one of its frozen network alone; and the engine's name."""
    engines: Engines = {}
    name = ""
    for method, detector in detectors.items():
        engine = OnnxEngine(to_onnx(detector))
        engines[method], name = engine, engine.name
        part = getattr(detector, "backbone", None) or getattr(detector, "teacher", None)
        if part is not None:
            engines[method + FROZEN] = _alone(part.to("cpu"), detector.config.size)
    return engines, name


def _alone(part: torch.nn.Module, size: int) -> Callable[[np.ndarray], Any]:
    """A network's own graph, on as many threads as the whole method's."""
    import onnxruntime

    names = [f"feat{i}" for i in range(len(part.shapes) if isinstance(part, Backbone) else 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = _threads(), 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frozen.onnx"
        export(part, (torch.zeros(2, 3, size, size),), path, ["image"], names)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def _timed(engines: Engines, detectors: Mapping[str, Detector], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every engine in every round, after one that warms up."""
    image = {
        name: np.random.default_rng(0).random((1, 3, d.config.size, d.config.size), np.float32)
        for name, d in detectors.items()
    }
    took: dict[str, list[float]] = {name: [] for name in engines}
    for round_ in range(rounds + 1):
        for name, engine in engines.items():
            begun = time.perf_counter()
            engine(image[name.removesuffix(FROZEN)])
            if round_:
                took[name].append(1000 * (time.perf_counter() - begun))
    return took


def _share(took: Mapping[str, list[float]], name: str) -> str:
    if name + FROZEN not in took:
        return "—"
    shares = [part / whole for part, whole in zip(took[name + FROZEN], took[name], strict=True)]
    return f"{statistics.median(shares):.0%}"


def _ratio(mine: Row, other: Row, took: Mapping[str, list[float]]) -> str:
    ratios = [a / b for a, b in zip(took[mine.name], took[other.name], strict=True)]
    low, high = np.quantile(ratios, (0.25, 0.75))
    words = (
        f"- {mine.name} takes {statistics.median(ratios):.2f} times as long as {other.name} (quartiles {low:.2f} "
        f"to {high:.2f})"
    )
    if "ms" in mine.paper and "ms" in other.paper:
        words += f"; in the paper {mine.paper['ms'] / other.paper['ms']:.2f}"
    return words


def gmac(detector: Detector) -> float:
    """10^9 multiply-adds for one picture."""
    image = torch.zeros(1, 3, detector.config.size, detector.config.size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(image)
    return counter.get_total_flops() / 2e9


def _made(method: str, options: Mapping[str, Any]) -> Detector:
    """With random weights, and a memory of random patches: neither changes what a picture takes."""
    torch.manual_seed(0)  # the backbone's graph is kept by its weights: the same ones, so that one is kept
    detector = create(method, dict(options), pretrained=False).eval()
    if isinstance(detector, PatchCore):
        feats = [tuple(torch.rand(1, *shape) for shape in detector.backbone.shapes) for _ in range(PICTURES)]
        with torch.no_grad():
            detector.begin([Batch(features=feat) for feat in feats])
    return detector


def _parameters(detector: Detector) -> int:
    """Without the heads that only training has."""
    return sum(p.numel() for name, p in detector.named_parameters() if not name.startswith("mss."))


def _paper(paper: Mapping[str, Any], key: str) -> str:
    return f"{paper[key]:g}" if key in paper else "—"
