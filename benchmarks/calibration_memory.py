"""Leave-part-out calibration of a memory of patches, on drawn features: part of calibration.py.

PatchCore's own begin and head (detectors/patchcore.py) on features that are drawn instead of computed: 16 patches a
part, each from one of four clusters of six dimensions mapped to those of the backbone's stage, all patches of a part
shifted alike. Calibrated as run/fit.py does it: five folds, each scored by a memory without it; the final memory holds
all parts, and 500 new parts are judged by it. The scores of the parts by the memory that holds them are there to
show what calibrating on the fitting parts would do.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from flawmap.detectors import create
from flawmap.detectors.patchcore import PatchCore
from flawmap.types import Batch
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.rates import rank, upper

FOLDS, NEW, SIDE = 5, 500, 32
HIDDEN, CLUSTERS = 6, 4
SHARE = 20  # of the repeats that the other simulations have, one in so many: 500
NEIGHBOURS = 9  # of the re-weighting, equation 7
KEEP = {"all patches": 1.0, "coreset of a tenth": 0.1}
SCORES = ("nearest distance", "re-weighted")


def detector(keep: float) -> PatchCore:
    options = {"size": SIDE, "stages": (2,), "neighbourhood": 1, "equalise": False, "keep": keep}
    made = create("patchcore", options | {"neighbours": NEIGHBOURS}, pretrained=False)
    assert isinstance(made, PatchCore)
    return made


class World:
    """Where parts come from: one a repeat, so that nothing hangs on one geometry."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.random, self.shape = np.random.default_rng(seed), shape
        self.centre = 3 * self.random.standard_normal((CLUSTERS, HIDDEN))
        self.width = self.random.uniform(0.3, 1.0, (CLUSTERS, 1))
        self.out = self.random.standard_normal((HIDDEN, shape[0])) / HIDDEN**0.5

    def parts(self, n: int) -> torch.Tensor:
        """(n, C, h, w)"""
        channels, high, wide = self.shape
        kind = self.random.integers(CLUSTERS, size=(n, high * wide))
        hidden = self.centre[kind] + self.width[kind] * self.random.standard_normal((n, high * wide, HIDDEN))
        hidden += 0.5 * self.random.standard_normal((n, 1, HIDDEN))
        feat = hidden @ self.out + 0.05 * self.random.standard_normal((n, high * wide, channels))
        return torch.from_numpy(feat.transpose(0, 2, 1).reshape(n, channels, high, wide)).float()


def scores(model: PatchCore, feat: torch.Tensor) -> np.ndarray:
    """(2, n): by the nearest distance alone, as with one neighbour, and re-weighted."""
    company_MK = model.company_MK
    with torch.inference_mode():
        weighted = model.head((feat,)).score.numpy()
        model.company_MK = company_MK[:, :1]
        plain = model.head((feat,)).score.numpy()
    model.company_MK = company_MK
    return np.stack([plain, weighted])


def fitted(model: PatchCore, feat: torch.Tensor) -> PatchCore:
    with torch.inference_mode():
        model.begin([Batch(image=feat, features=(feat,))])
    return model


def once(model: PatchCore, n: int, seed: int) -> dict[str, np.ndarray]:
    """Realised rate of both scores: cross-fitted, and calibrated on the very parts that the memory holds."""
    world = World(seed, model.backbone.shapes[0])
    feat, new = world.parts(n), world.parts(NEW)
    crossed = np.empty((2, n))
    for fold in range(FOLDS):
        out = np.zeros(n, bool)
        out[fold::FOLDS] = True
        crossed[:, out] = scores(fitted(model, feat[~out]), feat[out])
    fitted(model, feat)
    judged, names = scores(model, new), [str(i) for i in range(n)]
    found = {}
    for how, values in (("crossed", crossed), ("own", scores(model, feat))):
        made = [Calibration.from_good(names, row.tolist(), row.tolist(), cross_fitted=True) for row in values]
        found[how] = np.array([np.mean(row > c.threshold) for row, c in zip(judged, made, strict=True)])
    return found


def rows(repeats: int) -> list[dict[str, Any]]:
    found, repeats = [], max(2, repeats // SHARE)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    for n in (20, 50):
        k = rank(max(0.01, 1 / (n + 1)), n)
        bound = upper(k - 1, n)
        for memory, keep in KEEP.items():
            print(f"   {memory}, {n} parts", file=sys.stderr, flush=True)
            model = detector(keep)
            made = [once(model, n, seed) for seed in range(repeats)]
            for place, score in enumerate(SCORES):
                crossed, own = (np.array([m[how][place] for m in made]) for how in ("crossed", "own"))
                row = {"memory": memory, "score": score, "n": n, "repeats": repeats, "promised": k / (n + 1)}
                row |= {"realised": float(crossed.mean()), "error": float(crossed.std() / repeats**0.5)}
                row |= {"bound": bound, "above_bound": float(np.mean(crossed > bound)), "own": float(own.mean())}
                found.append(row)
    return found
