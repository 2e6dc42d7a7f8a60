"""How far SimpleNet's features spread over good pictures, before its adaptor and after it: dimension by dimension.

The paper's reason for an adaptor is that adapted features of good patches are more compact, so that noise of one size
leads out of them in more of the dimensions. Both are taken at the adaptor itself, in the units in which the noise is
given; noise is added behind it. Mixing dimensions at random evens their deviations out already, so the adaptor as it
was before training stands between them: what is not different from that was not learned.

N patches  D dimensions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from flawmap.detectors.simplenet import SimpleNet
from flawmap.errors import DataError, UsageError
from flawmap.report import charts
from flawmap.run.engine import TorchEngine
from flawmap.run.model import Model, load
from flawmap.run.pages import NOT_RUN, notes
from flawmap.run.reproduce import Pairs, Recipe, SamplesOf, Size, head
from flawmap.run.table import Table
from flawmap.types import Sample

BINS = 40  # of the histogram
LOCAL, UNTRAINED, ADAPTED = "local", "adapted, untrained", "adapted"


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """A histogram and a sorted curve a category, from the models that the table keeps, and a table of numbers."""
    rows, shown, lines, numbers = table.rows(), [], [], []
    for row, job in pairs:
        name = f"{job.data}, seed {job.seed}" if len(size.seeds) > 1 else job.data
        path = table.model(job)
        if path is None:
            lines += [f"{name}: {NOT_RUN}, so not shown.", ""]
            continue
        shown.append(rows[job.key])
        model, good = load(path), [s for s in samples_of(job.data) if s.split == "test" and s.good]
        detector = network(model, row.name)
        found = deviations(detector, model, good)
        noise = detector.config.noise
        file = out / f"{recipe.name}-{name.replace('/', '-').replace(', ', '-').replace(' ', '-')}.svg"
        file.write_bytes(_chart(found, noise, f"{name}: patches of {len(good)} good test pictures"))
        lines += [f"**{name}**", "", f"![{recipe.title}]({file.name})", "", _sentence(found, noise), ""]
        numbers += [f"| {name} | {word} | {' | '.join(_cells(each_D, noise))} |" for word, each_D in found.items()]
    if numbers:
        yield from head(["category", "features", "dimensions", "median", "10 % to 90 %", "largest", "below the noise"])
        yield from (*numbers, "")
    yield from lines
    yield from notes(recipe, pairs, rows)
    if shown:
        made = "; ".join(sorted({f"{each['commit']}, {each['date']}" for each in shown}))
        yield from ("", f"Models of {made}.")


def network(model: Model, name: str) -> SimpleNet:
    """The detector in a bundle."""
    detector = TorchEngine.from_bundle(model.bundle.config, model.bundle.files["weights.safetensors"]).detector
    if not isinstance(detector, SimpleNet):
        raise UsageError(f"{name} is {model.method}; this figure looks into simplenet alone")
    return detector


def deviations(detector: SimpleNet, model: Model, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Standard deviation of every dimension over all patches of the pictures, (D,), by the name of the features."""
    if not samples:
        raise DataError("there is no good test picture to look at")
    sums = {LOCAL: _Sums(), UNTRAINED: _Sums(), ADAPTED: _Sums()}
    first = SimpleNet(detector.config, pretrained=False).adaptor  # its first weights come from the seed alone

    def note(adaptor: torch.nn.Module, given: tuple[torch.Tensor, ...], found_ND: torch.Tensor) -> None:
        for name, feat_ND in ((LOCAL, given[0]), (UNTRAINED, first(given[0])), (ADAPTED, found_ND)):
            sums[name].add(feat_ND)

    hook = detector.adaptor.register_forward_hook(note)
    try:
        with torch.inference_mode():
            for sample in samples:
                detector(torch.from_numpy(model.intake(sample.source)[0][None]))
    finally:
        hook.remove()
    return {name: each.deviation for name, each in sums.items()}


class _Sums:
    """Count, sums and sums of squares, so that the patches of many pictures need not be kept."""

    def __init__(self) -> None:
        self.count, self.total_D, self.square_D = 0, np.zeros(()), np.zeros(())

    def add(self, feat_ND: torch.Tensor) -> None:
        feat = feat_ND.double().numpy()
        self.count += len(feat)
        self.total_D = self.total_D + feat.sum(axis=0)
        self.square_D = self.square_D + np.square(feat).sum(axis=0)

    @property
    def deviation(self) -> np.ndarray:
        mean_D = self.total_D / self.count
        return np.sqrt(np.maximum(self.square_D / self.count - np.square(mean_D), 0))


def _chart(named: Mapping[str, np.ndarray], noise: float, caption: str) -> bytes:
    edges = np.linspace(0, float(max(found.max() for found in named.values())), BINS + 1)
    histograms = [
        charts.Line(name, edges.tolist(), [*np.histogram(found, edges)[0].tolist(), 0], style="steps")
        for name, found in named.items()
    ]
    top = max(max(line.y) for line in histograms)
    histograms.append(charts.Line("noise", [noise, noise], [0, top], style="dashed"))
    curves = [
        charts.Line(name, (np.arange(1, len(found) + 1) / len(found)).tolist(), np.sort(found).tolist())
        for name, found in named.items()
    ]
    curves.append(charts.Line("noise", [0, 1], [noise, noise], style="dashed"))
    panels = [
        charts.Panel("Deviation of a dimension", "standard deviation", "dimensions", histograms),
        charts.Panel("The same, sorted", "share of the dimensions", "standard deviation", curves),
    ]
    return charts.lines(panels, caption)


def _cells(found_D: np.ndarray, noise: float) -> list[str]:
    low, high = np.quantile(found_D, (0.1, 0.9))
    share = f"{np.mean(found_D < noise):.0%} (noise {noise:g})"
    return [str(len(found_D)), f"{np.median(found_D):.3f}", f"{low:.3f} to {high:.3f}", f"{found_D.max():.3f}", share]


def _sentence(found: Mapping[str, np.ndarray], noise: float) -> str:
    local_D, adapted_D = found[LOCAL], found[ADAPTED]
    ratio = float(np.median(adapted_D) / np.median(local_D))
    words = "more compact, as in the paper" if ratio < 1 else "not more compact"
    even = {name: float(np.divide(*np.quantile(each_D, (0.9, 0.1)))) for name, each_D in found.items()}
    return (
        f"The median deviation is {np.median(local_D):.3f} before the adaptor and {np.median(adapted_D):.3f} behind "
        f"it, {ratio:.2f} times as large: adapted features are {words}; behind the untrained adaptor it is "
        f"{np.median(found[UNTRAINED]):.3f}. The 90 % quantile of the deviations is {even[LOCAL]:.2f} times the 10 % "
        f"quantile before the adaptor, {even[UNTRAINED]:.2f} times behind the untrained and {even[ADAPTED]:.2f} times "
        f"behind the trained one. {np.mean(local_D < noise):.0%} of the dimensions spread less than the noise before, "
        f"{np.mean(adapted_D < noise):.0%} behind."
    )
