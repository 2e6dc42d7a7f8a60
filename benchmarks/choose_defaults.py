"""Chooses the CPU defaults of PatchCore, SimpleNet and PaDiM without a look at any test picture.

Of every category's good training pictures some parts fit the method and others are held out; each held-out picture is
judged as it is and with artificial defects, whose masks are exact. Prints the tables of docs/defaults.md.

    python benchmarks/choose_defaults.py [--methods patchcore simplenet padim] [--most-categories 9]

The pictures are found by FLAWMAP_DATA, else in ../shared/data.

B images  H W pixels  C channels of a stage  h w its grid
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from artificial_defects import SIZE, with_defect
from torch import Tensor

from flawmap.detectors.base import FrozenDetector
from flawmap.detectors.padim import PaDiM
from flawmap.detectors.patchcore import PatchCore
from flawmap.detectors.simplenet import SimpleNet
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.frozen import frozen
from flawmap.images.folder import find
from flawmap.images.intake import Intake
from flawmap.images.split import split
from flawmap.run.feed import draw
from flawmap.types import Batch
from flawmap.verdict.metrics import auroc
from flawmap.verdict.pixels import PixelMetrics

FIT, HELD, DEFECTS = 60, 24, 2  # pictures that fit, that are held out, and defective versions of each of those
STAGES = (1, 2, 3)
NAMES = (
    "mvtec/bottle", "elpv/mono", "magnetic_tile/magnetic_tile", "deeppcb/pcb_group20085", "glassfiber/glassfiber",
    "aitex/fabric_02", "aws_lookout/cookie", "bsdata/ball_screw", "dagm/class8",
)  # fmt: skip
METRICS = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "pro": "PRO"}
WHOLE = {"reservoir_mb": 256}  # the coreset is chosen from all patches
PLAIN = WHOLE | {"stages": (2, 3), "equalise": False}
Figures = dict[str, float]


@dataclass(frozen=True, eq=False)
class Category:
    """Frozen features, one (B, C, h, w) a stage; masks (B, H, W), all False where the held-out picture is good."""

    fit: dict[int, Tensor]
    held: dict[int, Tensor]
    mask: np.ndarray


@dataclass(frozen=True)
class Variant:
    """Options of the detector; and, for what has no option, another scaling of its features."""

    options: dict[str, Any]
    categories: int = len(NAMES)  # tried on so many, the first of NAMES
    scale: str = ""


PATCHCORE = {
    "plain: stages 2, 3": Variant(PLAIN),
    "stages 1, 2, 3": Variant(WHOLE | {"equalise": False}),
    "stages 2, 3, equalised": Variant(WHOLE | {"stages": (2, 3)}),
    "stages 1, 2, 3, equalised": Variant(WHOLE),
    "the same, coreset from 22 % of the patches": Variant({"reservoir_mb": 9}, 4),
    "sigma 2 px": Variant(PLAIN | {"sigma_px": 2}),
    "sigma 6 px": Variant(PLAIN | {"sigma_px": 6}),
    "no re-weighting": Variant(PLAIN | {"neighbours": 1}),
    "stage 2": Variant(PLAIN | {"stages": (2,)}, 4),
    "stage 3": Variant(PLAIN | {"stages": (3,)}, 4),
    "neighbourhood 1": Variant(PLAIN | {"neighbourhood": 1}, 4),
    "neighbourhood 5": Variant(PLAIN | {"neighbourhood": 5}, 4),
    "memory 1,000": Variant(PLAIN | {"most": 1000}, 4),
    "every channel to deviation 1": Variant(PLAIN, 4, "channel deviation"),
    "every stage to mean norm 1": Variant(PLAIN, 4, "stage norm"),
}
SIMPLENET = {
    "stages 1, 2, 3, equalised": Variant({}, 2),
    "noise 0.3": Variant({"noise": 0.3}, 2),
    "noise 0.8": Variant({"noise": 0.8}, 2),
    "rate 2e-4": Variant({"rate": 2e-4}, 1),
    "hidden 128": Variant({"hidden": 128}, 1),
    "hidden 1024": Variant({"hidden": 1024}, 1),
    "another seed": Variant({"seed": 1}, 1),
    "60 steps": Variant({"steps": 60}, 1),
    "60 steps, heads of the paper's width": Variant({"steps": 60, "width": 1536, "hidden": 1024}, 1),
}
EQUAL = {"equalise": True}
PADIM = {
    "100 features, ridge 0.1, equalised": Variant(EQUAL, 5),
    "ridge 0.01": Variant(EQUAL | {"ridge": 0.01}, 5),
    "ridge 1": Variant(EQUAL | {"ridge": 1.0}, 5),
    "50 features": Variant(EQUAL | {"dims": 50}, 5),
    "all features": Variant(EQUAL | {"dims": 0}, 5),
    "not equalised": Variant({}, 5),
    "stages 2, 3": Variant(EQUAL | {"stages": (2, 3)}, 5),
    "neighbourhood 3": Variant(EQUAL | {"neighbourhood": 3}, 5),
    "another draw of features": Variant(EQUAL | {"seed": 1}, 5),
}


@cache
def backbone() -> Backbone:
    return Backbone(EMBEDDED, STAGES, SIZE)


def pictures(
    root: Path, name: str, seed: int, most: tuple[int, int] = (FIT, HELD)
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Pictures that fit, and held-out ones, good and then defective, with their masks; at most so many are good."""
    good = [s for s in find(root / name) if s.split == "train"]
    sets = [
        [part[i] for i in np.linspace(0, len(part) - 1, min(len(part), few)).astype(int)]
        for part, few in zip(split(good, (0.7, 0.3), seed), most, strict=True)
    ]
    intake = Intake.fit([s.source for s in good], (SIZE, SIZE))
    fit, held = ([intake(s.source)[0].transpose(1, 2, 0) for s in part] for part in sets)
    rng = np.random.default_rng([*name.encode(), *range(seed)])
    made = [with_defect(image, fit[rng.integers(len(fit))], rng) for image in held for _ in range(DEFECTS)]
    mask = np.concatenate([np.zeros((len(held), SIZE, SIZE), bool), np.stack([m for _, m in made])])
    return fit, held + [image for image, _ in made], mask


def features(root: Path, name: str, seed: int) -> Category:
    run = frozen(backbone(), SIZE)
    fit, held, mask = pictures(root, name, seed)
    found = []
    for images in (fit, held):
        rows = [run(np.ascontiguousarray(image.transpose(2, 0, 1))[None]) for image in images]
        stages = [torch.from_numpy(np.concatenate(stage)) for stage in zip(*rows, strict=True)]
        found.append(dict(zip(STAGES, stages, strict=True)))
    return Category(found[0], found[1], mask)


def scaled(category: Category, scale: str) -> Category:
    """Each stage, or each channel, divided by what it is over the fitting patches."""
    if not scale:
        return category
    factor = {}
    for stage, feat in category.fit.items():
        patch = F.avg_pool2d(feat, 3, 1, 1)
        size = patch.std(dim=(0, 2, 3)) if scale == "channel deviation" else patch.norm(dim=1).mean()[None]
        factor[stage] = 1 / size[:, None, None]
    fit, held = ({s: f * factor[s] for s, f in part.items()} for part in (category.fit, category.held))
    return Category(fit, held, category.mask)


def fitted(
    detector: FrozenDetector, fit: Mapping[int, Tensor], held: Mapping[int, Tensor]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits on the features of some pictures by stage: maps and scores of the others, and seconds of the fit."""
    stages = detector.config.stages
    fit_feats, held_feats = (tuple(part[s] for s in stages) for part in (fit, held))
    begun = time.perf_counter()
    with torch.no_grad():
        rows = range(0, len(fit_feats[0]), 8)
        detector.begin([Batch(features=tuple(f[i : i + 8] for f in fit_feats)) for i in rows])
    learn(detector, fit_feats)
    spent = time.perf_counter() - begun
    with torch.inference_mode():
        rows = range(0, len(held_feats[0]), 8)
        found = [detector.head(tuple(f[i : i + 8] for f in held_feats)) for i in rows]
    return torch.cat([p.map for p in found]).numpy(), torch.cat([p.score for p in found]).numpy(), spent


def judge(detector: FrozenDetector, category: Category) -> Figures:
    """Fits, and holds maps and scores against the masks; `fit_s` is what the fit took after the features."""
    maps, scores, spent = fitted(detector, category.fit, category.held)
    pixels, defective = PixelMetrics(), np.asarray(category.mask.any(axis=(1, 2)))
    for map, truth, bad in zip(maps, category.mask, defective, strict=True):
        pixels.add(map, truth, good=not bad)
    result = pixels.result() | {"i_auroc": auroc(scores, defective), "fit_s": spent}
    return {key: result[key] for key in (*METRICS, "fit_s")} | {
        "map": auroc(np.asarray(maps.max(axis=(1, 2))), defective) or 0.0
    }


def learn(detector: FrozenDetector, fit: tuple[Tensor, ...]) -> None:
    """The driver's loop, without its checkpoints."""
    seed = getattr(detector.config, "seed", 0)
    optimisers = [optimiser for optimiser, _ in detector.optimisers(detector.steps)]
    torch.manual_seed(seed)
    detector.train()
    for step in range(detector.steps):
        rows = draw(len(fit[0]), 8, step, seed)
        loss, _ = detector.loss(Batch(features=tuple(f[rows] for f in fit)))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    detector.eval()


def table(rows: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """One row a variant: mean over its categories; in brackets the mean gain on the first variant and on how many."""
    first = next(iter(rows.values()))
    yield "| variant | categories | " + " | ".join(METRICS.values()) + " | fit, s |\n|---|---|" + "---|" * 5
    for name, found in rows.items():
        cells = [name, str(len(found))]
        for key in METRICS:
            gain = [figures[key] - first[place][key] for place, figures in found.items()]
            change = "" if found is first else f" ({np.mean(gain):+.3f}, {sum(g > 0 for g in gain)})"
            cells.append(f"{np.mean([figures[key] for figures in found.values()]):.3f}{change}")
        yield f"| {' | '.join(cells)} | {np.mean([figures['fit_s'] for figures in found.values()]):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["patchcore", "simplenet", "padim"])
    parser.add_argument("--most-categories", type=int, default=len(NAMES))
    asked = parser.parse_args()
    root = Path(os.environ.get("FLAWMAP_DATA", "../shared/data"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(time.strftime("%Y-%m-%d"), f"{platform.machine()}, {os.cpu_count()} cores, commit {commit}\n", sep=", ")
    again = dict(list(PATCHCORE.items())[:4])
    for kind, seed, variants in (
        (PatchCore, 0, PATCHCORE),
        (PatchCore, 1, again),
        (SimpleNet, 0, SIMPLENET),
        (PaDiM, 0, PADIM),
        (PaDiM, 1, PADIM),
    ):
        if kind.name not in asked.methods:
            continue
        rows: dict[str, dict[str, Figures]] = {name: {} for name in variants}
        for index, place in enumerate(NAMES[: asked.most_categories]):
            tried = {name: v for name, v in variants.items() if index < v.categories}
            if not tried:
                break
            category = features(root, place, seed)
            for name, variant in tried.items():
                detector = kind(kind.configure(variant.options), pretrained=False)
                rows[name][place] = judge(detector, scaled(category, variant.scale))
        print(f"\n{kind.title}, draw {seed}\n", *table(rows), sep="\n", flush=True)


if __name__ == "__main__":
    main()
