"""How far figures hang on where a person drew the outline: all masks made smaller and larger, the maps as they are.

In pixels of the picture as given, by a disc: of a mask made smaller by r remains what is farther than r from all that
is not defect, made larger it takes in all that is at most r away. Nothing beyond the picture's edge counts as good, so
that a defect at the edge does not shrink from there. Defects that meet when they grow are one component of PRO. Pixels
to ignore stay ignored at every width.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flawmap.errors import DataError
from flawmap.images.decode import size_of
from flawmap.images.masks.levels import Marks, read_mask
from flawmap.report import charts
from flawmap.run.model import Model, load
from flawmap.run.pages import NOT_RUN, notes
from flawmap.run.progress import progress
from flawmap.run.reproduce import TITLES, Pairs, Recipe, SamplesOf, Size, head
from flawmap.run.table import Table
from flawmap.types import Sample
from flawmap.verdict.pixels import PixelMetrics

OFFSETS = (-16, -8, -4, -2, 0, 2, 4, 8, 16)  # pixels; below zero the masks are made smaller
METRICS = ("p_auroc", "p_ap", "pro")

Change = TypeVar("Change", bound=Hashable)  # what tells one set of masks from another
Figures = Mapping[int, Mapping[str, float]]  # by offset, then by name; not a number where no mask is left


def page(recipe: Recipe, size: Size, pairs: Pairs, table: Table, samples_of: SamplesOf, out: Path) -> Iterator[str]:
    """A chart and a table a category, from the models that the table keeps; the first seed of every row."""
    rows, shown = table.rows(), []
    offsets = tuple(size.figure.get("offsets", OFFSETS))
    for category in dict.fromkeys(job.data for _, job in pairs):
        jobs = {row.name: job for row, job in reversed(pairs) if job.data == category}
        paths = {row.name: table.model(jobs[row.name]) for row in recipe.rows if row.name in jobs}
        models = {name: load(path) for name, path in paths.items() if path is not None}
        if len(models) < len(paths):
            lacking = ", ".join(name for name in paths if name not in models)
            yield from (f"{category}: {NOT_RUN}, so not shown: {lacking}.", "")
        if not models:
            continue
        shown += [rows[jobs[name].key] for name in models]
        tested = [s for s in samples_of(category) if s.split == "test" and s.kind is not None]
        given = read_all(tested)
        masks = {offset: kept(given, tested, offset) for offset in offsets}
        found = {name: figures(model, tested, masks) for name, model in models.items()}
        path = out / f"{recipe.name}-{category.replace('/', '-')}.svg"
        path.write_bytes(_chart(found, f"{category}; masks made smaller (below 0) or larger by so many pixels"))
        yield from (f"**{category}**", "", f"![{recipe.title}]({path.name})", "")
        yield from _table(found, masks)
        yield from ("", *_sentences(found), "")
    yield from notes(recipe, pairs, rows)
    if shown:
        made = "; ".join(sorted({f"{row['commit']}, {row['date']}" for row in shown}))
        yield from ("", f"Models of {made}. Maps brought to the picture's own size; every picture judged once.")


def changed(mask: np.ndarray, offset: int) -> np.ndarray:
    """The mask (H, W) made larger by `offset` pixels, or smaller where that is below zero."""
    from scipy.ndimage import distance_transform_edt

    if offset == 0 or not mask.any() or mask.all():
        return mask
    if offset > 0:
        return np.asarray(distance_transform_edt(~mask)) <= offset
    return np.asarray(distance_transform_edt(mask)) > -offset


def banded(marks: Marks, width: int) -> Marks:
    """With an ignore band of `width` pixels to both sides of the outline."""
    if width == 0 or not marks.defect.any() or marks.defect.all():
        return marks
    band = changed(marks.defect, width) & ~changed(marks.defect, -width)
    ignored = band if marks.ignored is None else band | marks.ignored
    return Marks(marks.defect & ~ignored, ignored)


def read_all(tested: Sequence[Sample]) -> dict[str, Marks]:
    """By name; of good pictures only those that have a mask."""
    found = {}
    for sample in tested:
        if sample.mask is None and not sample.good:
            raise DataError(f"{sample.name}: a defect without a mask; this figure needs one of every defect")
        if sample.mask is not None:
            found[sample.name] = read_mask(sample.mask, size_of(sample.source), of=sample.name)
    return found


def kept(given: Mapping[str, Marks], tested: Sequence[Sample], offset: int) -> dict[str, Marks]:
    """The masks made larger or smaller; of a defective picture one that vanishes by it is left out."""
    good = {sample.name for sample in tested if sample.good}
    found = {name: Marks(changed(marks.defect, offset), marks.ignored) for name, marks in given.items()}
    return {
        name: marks
        for name, marks in found.items()
        if name in good or marks.defect.any() or not given[name].defect.any()
    }


def figures(
    model: Model, tested: Sequence[Sample], masks: Mapping[Change, Mapping[str, Marks]], cap: int = 2**19
) -> dict[Change, dict[str, float]]:
    """Every picture is judged once, and held against all of its masks."""
    pixels = {change: PixelMetrics(cap) for change in masks}
    with progress("inspecting", len(tested)) as tick:
        for number, sample in enumerate(tested):
            _, map = model.predict(sample.source)
            for change, of_change in masks.items():
                if sample.good or sample.name in of_change:
                    mask, ignored = of_change.get(sample.name, (None, None))
                    pixels[change].add(map, mask, good=sample.good, ignored=ignored)
            tick(number + 1)
    results = {change: each.result() for change, each in pixels.items()}
    return {
        change: {**{metric: _number(result[metric]) for metric in METRICS}, **_counted(result)}
        for change, result in results.items()
    }


def _counted(result: Mapping[str, Any]) -> dict[str, float]:
    """Of all masks together: components, and the share of the pixels, which is the P-AP of a map that knows nothing."""
    defect, good = result["defect_pixels"], result["good_pixels"]
    return {"components": result["components"], "share": defect / (defect + good) if defect + good else float("nan")}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _chart(found: Mapping[str, Figures], caption: str) -> bytes:
    panels = []
    for metric in METRICS:
        lines = [
            charts.Line(name, list(each), [each[offset][metric] for offset in each]) for name, each in found.items()
        ]
        panels.append(charts.Panel(TITLES[metric], "pixels", "", lines))
    return charts.lines(panels, caption)


def _table(found: Mapping[str, Figures], masks: Mapping[int, Mapping[str, Marks]]) -> Iterator[str]:
    yield from head(["", "method", *(f"{offset:+d} px" if offset else "as given" for offset in masks)])
    for metric in METRICS:
        for name, each in found.items():
            cells = ["—" if np.isnan(value) else f"{value:.3f}" for value in (each[offset][metric] for offset in masks)]
            yield f"| {TITLES[metric]} | {name} | {' | '.join(cells)} |"
    most = max(len(of_offset) for of_offset in masks.values())
    cells = [str(most - len(of_offset)) for of_offset in masks.values()]
    yield f"| pictures left out, of {most} defective ones | their mask vanished | {' | '.join(cells)} |"
    any_of = next(iter(found.values()))
    yield f"| components | of all masks | {' | '.join(str(any_of[offset]['components']) for offset in masks)} |"
    shares = " | ".join(f"{any_of[offset]['share']:.3f}" for offset in masks)
    yield f"| defect pixels, share | of all masks | {shares} |"


def _sentences(found: Mapping[str, Figures]) -> Iterator[str]:
    """How far each figure moves, and whether the order of the methods does."""
    for metric in METRICS:
        moved = []
        for name, each in found.items():
            values = {offset: each[offset][metric] for offset in each if not np.isnan(each[offset][metric])}
            if not values:
                return
            best = max(values, key=lambda offset: values[offset])
            moved.append(f"{name} {min(values.values()):.3f} to {max(values.values()):.3f} (largest at {best:+d} px)")
        words = f"- {TITLES[metric]}: {'; '.join(moved)}."
        if len(found) > 1:
            words += f" {_order(found, metric)}"
        yield words
    yield (
        "- P-AP grows with the share of the defect pixels by itself, which is the P-AP of a map that knows nothing. "
        "Where pictures are left out, or a mask falls into several components, a column is not of the same defects as "
        "the one beside it."
    )


def _order(found: Mapping[str, Figures], metric: str) -> str:
    offsets = [offset for offset, each in next(iter(found.values())).items() if not np.isnan(each[metric])]
    orders = {offset: tuple(sorted(found, key=lambda name: -found[name][offset][metric])) for offset in offsets}
    given = orders[0] if 0 in orders else orders[offsets[0]]
    others = [f"{offset:+d}" for offset in offsets if orders[offset] != given]
    words = f"Order of the methods: {' > '.join(given)}"
    return f"{words}, at every width." if not others else f"{words}; another one at {', '.join(others)} px."
