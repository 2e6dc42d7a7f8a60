"""The figures of the POUTA paper, from models that the run table keeps: strips, t-SNE, Grad-CAM, levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawmap.detectors.pouta import POUTA
from flawmap.errors import DataError, UsageError
from flawmap.images.decode import decode
from flawmap.images.masks.levels import read_mask
from flawmap.report.heatmap import Scale, outlined, overlay, picture, thumbnail
from flawmap.report.sheet import sheet
from flawmap.run import embed
from flawmap.run.engine import TorchEngine
from flawmap.run.model import Model, load
from flawmap.run.reproduce import Pairs, Recipe, SamplesOf, Size
from flawmap.run.table import Job, Table
from flawmap.types import GOOD, Sample

CELL = 160  # pixels
POINTS = 400  # of a group, in a cloud
LEVELS = (4, 3, 2, 1)


@dataclass(frozen=True)
class Kept:
    """A trained model that a figure shows, and its name there."""

    name: str
    job: Job
    model: Model

    @property
    def pouta(self) -> POUTA:
        config, weights = self.model.bundle.config, self.model.bundle.files["weights.safetensors"]
        detector = TorchEngine.from_bundle(config, weights).detector
        if not isinstance(detector, POUTA):
            raise UsageError(f"{self.name} is {self.job.method}; this figure looks into pouta alone")
        return detector


@dataclass(frozen=True)
class Shown:
    """A test picture of a figure: as it is, its mask and what is ignored, and what it is called."""

    sample: Sample
    image: np.ndarray
    mask: np.ndarray
    ignored: np.ndarray | None = None

    @property
    def name(self) -> str:
        return str(self.sample.kind)

    @property
    def outlined(self) -> np.ndarray:
        return outlined(self.image, self.mask, self.ignored)

    @property
    def marked(self) -> np.ndarray:
        """(H, W) bool: all that is not known to be good."""
        return self.mask if self.ignored is None else self.mask | self.ignored


def figure(
    recipe: Recipe,
    size: Size,
    pairs: Pairs,
    table: Table,
    samples_of: SamplesOf,
    out: Path,
) -> Iterator[str]:
    """Draws what can be drawn, a file a category, and yields the lines of its page."""
    for category in dict.fromkeys(job.data for _, job in pairs):
        kept, lacking = [], []
        for row, job in pairs:
            if job.data != category:
                continue
            shots = f", k = {job.shots}" if job.shots else ", all"
            name = row.name + (shots if size.shots else "")
            path = table.model(job)
            if path is None:
                lacking.append(name)
            else:
                kept.append(Kept(name, job, load(path)))
        if lacking:
            yield f"{category}: not run, so not shown: {', '.join(lacking)}.\n"
        if not kept:
            continue
        shown = chosen(samples_of(category), int(size.figure.get("pictures", 6)))
        content = KINDS[recipe.kind](kept, shown, size.figure)
        path = out / f"{recipe.name}-{category.replace('/', '-')}.png"
        path.write_bytes(content)
        rows = table.rows()
        made = sorted({f"{rows[k.job.key]['commit']}, {rows[k.job.key]['date']}" for k in kept})
        yield f"**{category}**, models of {'; '.join(made)}:\n\n![{recipe.title}]({path.name})\n"


def chosen(samples: Sequence[Sample], most: int) -> list[Shown]:
    """Test pictures by a rule that has not seen a score: of every kind of defect the middle ones by name, in turn."""
    defects = [s for s in samples if s.split == "test" and s.kind not in (GOOD, None) and s.mask is not None]
    kinds = sorted({str(s.kind) for s in defects})
    if not defects:
        raise DataError("there is no test picture of a defect with a mask to show")
    queues = {kind: _from_the_middle([s for s in defects if s.kind == kind]) for kind in kinds}
    order = [queues[kind][turn] for turn in range(most) for kind in kinds if turn < len(queues[kind])]
    found = []
    for sample in order[:most]:
        image = decode(sample.source)
        assert sample.mask is not None
        found.append(Shown(sample, image, *read_mask(sample.mask, image.shape[:2], of=sample.name)))
    return found


def strips(kept: Sequence[Kept], shown: Sequence[Shown], options: Mapping[str, Any]) -> bytes:
    """Picture with the mask's outline (with `mask`: the mask beside it), then every model's map; a scale a model."""
    maps = [[k.model.predict(s.sample.source)[1] for s in shown] for k in kept]
    scales = [_scale(each, shown) for each in maps]
    rows = []
    for i, s in enumerate(shown):
        first = [_small(s.image), s.mask] if options.get("mask") else [_small(s.outlined)]
        rows.append([*first, *(_over(s.image, m[i], c) for m, c in zip(maps, scales, strict=True))])
    columns = ["picture", *["mask"] * bool(options.get("mask")), *(k.name for k in kept)]
    return _png(rows, columns, shown, SCALE_NOTE)  # with `mask`, what is ignored is not in it


def levels(kept: Sequence[Kept], shown: Sequence[Shown], options: Mapping[str, Any]) -> bytes:
    """What each level finds, coarse to fine, and the final map; for every model a block of rows."""
    from flawmap.run.explain import per_level, repaired

    rows, names = [], []
    for k in kept:
        detector = k.pouta
        for s in shown:
            image = k.model.intake(s.sample.source)[0][None]
            found = [*per_level(detector, image)[::-1], k.model.engine(image).map]
            fixed = np.clip(repaired(detector, image)[0].transpose(1, 2, 0) * 255, 0, 255).astype(np.uint8)
            maps = [_over(s.image, m[0], Scale(0, 0.5, 1)) for m in found]
            rows.append([_small(s.outlined), _small(fixed), *maps])
            names.append(f"{k.name}: {s.name}" if len(kept) > 1 else s.name)
    hatched = any(s.ignored is not None for s in shown)
    note = "Probability; colours start at 0.5." + " Hatched: pixels to ignore." * hatched
    columns = ["picture", "repaired", *(f"level {n}" for n in LEVELS), "map"]
    return _bytes(sheet(rows, columns=columns, names=names, caption=note, cell=CELL))


def gradcam(kept: Sequence[Kept], shown: Sequence[Shown], options: Mapping[str, Any]) -> bytes:
    """Which places of the encoder's and of the decoder's features decide, for every model."""
    from flawmap.run.explain import grad_cam

    number = int(options.get("level", 3))
    columns, cells = ["picture"], [[_small(s.outlined)] for s in shown]
    for k in kept:
        detector = k.pouta
        columns += [f"{k.name}: encoder", "decoder"]
        for row, s in zip(cells, shown, strict=True):
            image = k.model.intake(s.sample.source)[0][None]
            for cam in grad_cam(detector, image, number):
                row.append(_over(s.image, cam[0], _own(cam[0])))
    note = (
        f"Grad-CAM of level {number}, of what the strangest 1 % of the map say; each picture on its own scale, which "
        "starts at a third of its largest value."
    )
    return _png(cells, columns, shown, note)


def tsne(kept: Sequence[Kept], shown: Sequence[Shown], options: Mapping[str, Any]) -> bytes:
    """Encoder and decoder features of a level as points, and the map from that one pair of layers."""
    from flawmap.report.scatter import Cloud, clouds

    number, found = int(options.get("level", 4)), []
    for k in kept:
        points, groups, differences = _features(k, shown, number)
        first = shown[0]
        beside = [
            ("picture", thumbnail(first.outlined, 2 * CELL)),
            ("this pair alone", thumbnail(overlay(first.image, differences[0], _scale(differences, shown)), 2 * CELL)),
        ]
        found.append(Cloud(k.name, embed.tsne(points), groups, beside))
    pair = "around the mapping layer (level 4)" if number == 4 else f"of level {number}"
    caption = f"t-SNE of the features {pair}; {len(shown)} test pictures of defects; map: 1 - cosine of the pair"
    caption += "; hatched: pixels to ignore" * (shown[0].ignored is not None)
    return clouds(found, caption)


def _features(k: Kept, shown: Sequence[Shown], number: int) -> tuple[np.ndarray, list[str], list[np.ndarray]]:
    from flawmap.run.explain import level

    random, detector = np.random.default_rng(0), k.pouta
    vectors: dict[str, list[np.ndarray]] = {}
    differences = []
    for s in shown:
        pair = level(detector, k.model.intake(s.sample.source)[0][None], number)
        differences.append(pair.difference[0])
        share, marked = (_share(each, pair.encoded.shape[2:]) for each in (s.mask, s.marked))
        for side, feat in (("encoder", pair.encoded[0]), ("decoder", pair.decoded[0])):
            vectors.setdefault(f"{side}, defect", []).append(feat[:, share > 0.5].T)
            vectors.setdefault(f"{side}, normal", []).append(feat[:, marked == 0].T)
    chosen, groups = [], []
    for name, parts in vectors.items():
        every = np.concatenate(parts)
        some = every[random.permutation(len(every))[:POINTS]]
        chosen.append(some)
        groups += [name] * len(some)
    return np.concatenate(chosen), groups, differences


def _share(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """The share of defect in every cell of a grid, (h, w)."""
    from PIL import Image

    small = Image.fromarray(mask.astype(np.float32)).resize((grid[1], grid[0]), Image.Resampling.BOX)
    return np.asarray(small)


SCALE_NOTE = (
    "Colours: one scale a column, from the value that 1 % of the pixels outside the masks exceed to the largest shown."
)


def _scale(maps: Sequence[np.ndarray], shown: Sequence[Shown]) -> Scale:
    good = np.concatenate([m[_share(s.marked, m.shape) == 0].ravel()[::7] for m, s in zip(maps, shown, strict=True)])
    low, start, high = np.median(good), np.quantile(good, 0.99), max(m.max() for m in maps)
    return Scale(float(low), float(start), float(max(high, start + 1e-6)))


def _own(values: np.ndarray) -> Scale:
    high = max(float(values.max()), 1e-12)
    return Scale(0, high / 3, high)


def _over(image: np.ndarray, map: np.ndarray, scale: Scale) -> np.ndarray:
    return overlay(_small(image), map, scale)


def _small(image: np.ndarray) -> np.ndarray:
    return thumbnail(picture(image), CELL)


def _png(rows: Any, columns: Sequence[str], shown: Sequence[Shown], note: str) -> bytes:
    hatched = any(s.ignored is not None for s in shown)
    note = f"{note} Hatched: pixels to ignore." if hatched else note
    return _bytes(sheet(rows, columns=columns, names=[s.name for s in shown], caption=note, cell=CELL))


def _bytes(image: Any) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _from_the_middle(samples: Sequence[Sample]) -> list[Sample]:
    ordered = sorted(samples, key=lambda s: s.name)
    return sorted(ordered, key=lambda s: abs(ordered.index(s) - len(ordered) // 2))


KINDS: dict[str, Callable[[Sequence[Kept], Sequence[Shown], Mapping[str, Any]], bytes]] = {
    "strips": strips,
    "levels": levels,
    "gradcam": gradcam,
    "tsne": tsne,
}
