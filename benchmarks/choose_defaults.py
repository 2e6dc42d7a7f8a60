"""Chooses the CPU defaults of PatchCore and SimpleNet without a look at any test picture.

Of every category's good training pictures some parts fit the method, others are held out; each held-out picture is
judged as it is and with artificial defects, whose masks are exact. Prints the Markdown tables of docs/defaults.md.

    FLAWMAP_DATA=../shared/data python benchmarks/choose_defaults.py [patchcore|simplenet] [category ...]

B images  H W pixels  h w patch grid  P patches  M memory  D embedding
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from torch import Tensor

from flawmap.detectors.patchcore import _company, nearest
from flawmap.detectors.simplenet import SimpleNet
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.coreset import k_centre
from flawmap.features.frozen import frozen
from flawmap.features.patches import Enlarge, embed, to_patches
from flawmap.images.decode import Intake
from flawmap.images.folder import find
from flawmap.images.split import split
from flawmap.run.train import draw
from flawmap.types import Batch
from flawmap.verdict.metrics import PixelMetrics, auroc

SIZE, FIT, HELD, DEFECTS = 256, 60, 24, 2  # pixels; pictures that fit; held out; defective versions of each of those
STAGES = (1, 2, 3, 4)
CATEGORIES = (
    "mvtec/bottle", "magnetic_tile/magnetic_tile", "aitex/fabric_02", "glassfiber/glassfiber", "elpv/mono",
    "aws_lookout/cookie", "bsdata/ball_screw", "dagm/class8", "deeppcb/pcb_group20085",
)  # fmt: skip
METRICS = ("i_auroc", "p_auroc", "p_ap", "pro")


# ---- artificial defects


def with_defect(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy of (H, W, 3) in [0, 1] with one defect, and its mask (H, W); drawn again until it can be seen."""
    while True:
        alpha, new = (_paste, _stain, _scratch, _disturb)[rng.integers(4)](image, other, rng)
        changed = image + alpha[..., None] * (np.clip(new, 0, 1) - image)
        mask = alpha > alpha.max() / 2
        if mask.any() and np.abs(changed - image).max(axis=2)[mask].mean() > 0.03:
            return changed.astype(np.float32), mask


def _paste(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A piece from elsewhere, of this picture or another one, turned and with other colours."""
    source = (image, other)[rng.integers(2)]
    moved = np.roll(np.rot90(source, rng.integers(4)), rng.integers(16, SIZE - 16, 2), axis=(0, 1))
    return _blob(rng, 0.7) * rng.uniform(0.4, 1), moved * _tint(image, rng, 0.15) + _tint(image, rng, 0.05) - 1


def _stain(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Darker, brighter or of another colour, with a soft edge."""
    return _blob(rng, rng.uniform(1, 5)) * rng.uniform(0.1, 0.6), np.broadcast_to(
        _tint(image, rng, 0.5) / 2, image.shape
    )


def _scratch(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bent line, 1 to 4 pixels wide."""
    start, angle, length = rng.uniform(0.1, 0.9, 2) * SIZE, rng.uniform(0, 2 * np.pi), rng.uniform(15, 120)
    turn = angle + rng.normal(0, 0.02, 24).cumsum() * rng.uniform(0, 4)
    path = start + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], axis=1) * length / 24, axis=0)
    canvas = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(canvas).line([tuple(4 * p) for p in path], fill=255, width=int(rng.integers(4, 17)), joint="curve")
    alpha = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
    return alpha * rng.uniform(0.15, 0.7), np.broadcast_to(_tint(image, rng, 0.9) / 2, image.shape)


def _disturb(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same place blurred, its tiles shuffled, or seen turned."""
    kind, alpha = rng.integers(3), _blob(rng, 0.7)
    if kind == 0:
        return alpha, gaussian_filter(image, (s := rng.uniform(1, 4), s, 0))
    if kind == 1:
        n = SIZE // (tile := int(rng.choice([4, 8, 16])))
        tiles = image.reshape(n, tile, n, tile, 3).swapaxes(1, 2)
        rows, columns = (np.clip(np.arange(n) + rng.integers(-2, 3, (n, n)), 0, n - 1) for _ in range(2))
        return alpha, tiles[rows.T, columns].swapaxes(1, 2).reshape(SIZE, SIZE, 3)
    y, x = (int(v) for v in np.argwhere(alpha > 0.5).mean(axis=0)) if (alpha > 0.5).any() else (0, 0)
    centred = np.roll(image, (SIZE // 2 - y, SIZE // 2 - x), axis=(0, 1))
    turned = np.asarray([Image.fromarray(c).rotate(a, Image.Resampling.BILINEAR) for a in [rng.uniform(20, 340)]
                         for c in centred.transpose(2, 0, 1).astype(np.float32)]).transpose(1, 2, 0)  # fmt: skip
    return alpha, np.roll(turned, (y - SIZE // 2, x - SIZE // 2), axis=(0, 1))


def _blob(rng: np.random.Generator, soft_px: float) -> np.ndarray:
    """A wobbly ellipse of 0.1 % to 5 % of the picture, 1 inside and 0 outside."""
    area, ratio, angle = (
        np.exp(rng.uniform(np.log(1e-3), np.log(5e-2))),
        np.exp(rng.uniform(0, 1)),
        rng.uniform(0, np.pi),
    )
    y, x = np.mgrid[:SIZE, :SIZE] - (rng.uniform(0.08, 0.92, 2) * SIZE)[:, None, None]
    u, v = (np.cos(angle) * x + np.sin(angle) * y) / ratio**0.5, (np.cos(angle) * y - np.sin(angle) * x) * ratio**0.5
    theta, phase = np.arctan2(v, u), rng.uniform(0, 2 * np.pi, 3)
    wobble = 1 + 0.15 * sum(np.sin(k * theta + p) for k, p in zip((2, 3, 5), phase, strict=True))
    return gaussian_filter((np.hypot(u, v) < SIZE * (area / np.pi) ** 0.5 * wobble).astype(np.float32), soft_px)


def _tint(image: np.ndarray, rng: np.random.Generator, spread: float) -> np.ndarray:
    """Three numbers around 1, equal where the picture is grey."""
    grey = np.ptp(image, axis=2).max() < 0.02
    return np.repeat(1 + rng.uniform(-spread, spread), 3) if grey else 1 + rng.uniform(-spread, spread, 3)


# ---- features


@dataclass(frozen=True, eq=False)
class Category:
    """Features of one category, one (B, C, h, w) a stage; masks (B, H, W) are all False where the picture is good."""

    name: str
    fit: dict[int, Tensor]
    held: dict[int, Tensor]
    mask: np.ndarray


@cache
def backbone() -> Backbone:
    return Backbone(EMBEDDED, STAGES, SIZE)


def pictures(root: Path, name: str) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Pictures that fit, and held-out ones, good and defective, with their masks."""
    good = [s for s in find(root / name) if s.split == "train"]
    sets = [
        [part[i] for i in np.linspace(0, len(part) - 1, min(len(part), most)).astype(int)]
        for part, most in zip(split(good, (0.7, 0.3), seed=0), (FIT, HELD), strict=True)
    ]
    intake = Intake.fit([s.source for s in good], (SIZE, SIZE))
    fit, held = ([intake(s.source)[0].transpose(1, 2, 0) for s in part] for part in sets)
    rng = np.random.default_rng(list(name.encode()))
    made = [with_defect(image, fit[rng.integers(len(fit))], rng) for image in held for _ in range(DEFECTS)]
    mask = np.concatenate([np.zeros((len(held), SIZE, SIZE), bool), np.stack([m for _, m in made])])
    return fit, held + [image for image, _ in made], mask


def features(root: Path, name: str) -> Category:
    run = frozen(backbone(), SIZE)
    fit, held, mask = pictures(root, name)
    found = []
    for images in (fit, held):
        rows = [run(np.ascontiguousarray(image.transpose(2, 0, 1))[None]) for image in images]
        found.append(
            {s: torch.from_numpy(np.concatenate(f)) for s, f in zip(STAGES, zip(*rows, strict=True), strict=True)}
        )
    return Category(name, found[0], found[1], mask)


# ---- PatchCore


@dataclass(frozen=True)
class Memory:
    """What is searched; of one Memory several maps and scores can be made."""

    stages: tuple[int, ...] = (2, 3)
    scale: str = "none"  # each stage or channel divided by: its mean patch norm, its deviation
    neighbourhood: int = 3
    most: int = 4000
    how: str = "coreset"
    apart: bool = False  # a memory for each stage, distances averaged
    grid: int = 32


@dataclass(frozen=True)
class Reading:
    sigma_px: float = 4.0
    neighbours: int = 9
    centred: bool = False


def joined(feats: dict[int, Tensor], memory: Memory) -> list[Tensor]:
    """The stages asked for, none with a finer grid than the patches'."""
    return [
        F.adaptive_avg_pool2d(f, memory.grid) if f.shape[-1] > memory.grid else f
        for f in (feats[s] for s in memory.stages)
    ]


def scales(fit: list[Tensor], memory: Memory) -> list[Tensor]:
    if memory.scale == "none":
        return [torch.ones(()) for _ in fit]
    pooled = [embed([f], memory.neighbourhood) for f in fit]
    if memory.scale == "stage norm":
        return [1 / f.norm(dim=1).mean() for f in pooled]
    deviations = [f.std(dim=(0, 2, 3)) for f in pooled]
    if memory.scale == "stage deviation":
        return [1 / d.square().sum().sqrt() for d in deviations]
    if memory.scale == "channel deviation":
        return [(1 / d)[:, None, None] for d in deviations]
    return [(1 / d)[:, None, None] / len(d) ** 0.5 for d in deviations]  # and every stage with equal weight


def search(category: Category, memory: Memory) -> list[tuple[Tensor, ...]]:
    """Distance of every patch to the memory, (B, P), and of the strangest its company's distances, (B, 9)."""
    if memory.apart:
        return [found for s in memory.stages for found in search(category, replace(memory, stages=(s,), apart=False))]
    fit, held = joined(category.fit, memory), joined(category.held, memory)
    scale = scales(fit, memory)
    patch_ND = to_patches(embed([f * k for f, k in zip(fit, scale, strict=True)], memory.neighbourhood))
    keep = min(memory.most, len(patch_ND) // 10)
    if memory.how == "coreset":
        row_M = k_centre(patch_ND, keep, seed=0, projection=128)
    else:
        row_M = torch.randperm(len(patch_ND), generator=torch.Generator().manual_seed(0))[:keep]
    memory_MD = patch_ND[row_M]
    company_MK = _company(memory_MD, 9)
    parts = []
    for first in range(0, len(category.mask), 8):
        patch_BPD = embed([f[first : first + 8] * k for f, k in zip(held, scale, strict=True)], memory.neighbourhood)
        patch_BPD = patch_BPD.flatten(2).transpose(1, 2)
        near_BP, index_BP = nearest(patch_BPD, memory_MD)
        worst_B, every = near_BP.argmax(dim=1), torch.arange(len(near_BP))
        friends_BKD = memory_MD[company_MK[index_BP[every, worst_B]]]
        parts.append((near_BP, (patch_BPD[every, worst_B][:, None] - friends_BKD).norm(dim=2)))
    return [(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))]


def read(category: Category, found: list[tuple[Tensor, ...]], memory: Memory, reading: Reading) -> dict[str, float]:
    """Maps and scores of what was found, held against the masks."""
    near_BP = fused([near for near, _ in found])
    score_B = near_BP.amax(dim=1)
    if len(found) == 1 and reading.neighbours > 1:
        score_B = score_B * (1 - found[0][1][:, : reading.neighbours].softmax(dim=1)[:, 0])
    n = int(near_BP.shape[1] ** 0.5)
    enlarge = Enlarge((n, n), (SIZE, SIZE), reading.sigma_px)
    if reading.centred:
        shift(enlarge, n)
    return metrics(enlarge(near_BP.unflatten(1, (n, n))).numpy(), score_B.numpy(), category.mask)


def fused(near: list[Tensor]) -> Tensor:
    if len(near) == 1:
        return near[0]
    g = max(int(x.shape[1] ** 0.5) for x in near)
    return torch.stack(
        [
            F.interpolate(x.unflatten(1, (int(x.shape[1] ** 0.5),) * 2)[:, None], (g, g), mode="bilinear")[
                :, 0
            ].flatten(1)
            / x.median()
            for x in near
        ]
    ).mean(0)


def shift(enlarge: Enlarge, n: int) -> None:
    s = SIZE // n
    u = ((torch.arange(SIZE).double() - (s - 1)) / s).clamp(0, n - 1)
    m = torch.zeros(SIZE, n).double()
    lo = u.floor().long().clamp(0, n - 2)
    m[torch.arange(SIZE), lo] = 1 - (u - lo)
    m[torch.arange(SIZE), lo + 1] = u - lo
    from scipy.ndimage import gaussian_filter1d

    m = torch.from_numpy(gaussian_filter1d(m.numpy(), 4.0, axis=0, mode="reflect", truncate=4.0)).float()
    enlarge.rows_Hh, enlarge.columns_wW = m, m.T.contiguous()


def metrics(maps: np.ndarray, scores: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    pixels = PixelMetrics()
    defective = mask.any(axis=(1, 2))
    for map, truth, bad in zip(maps, mask, defective, strict=True):
        pixels.add(map, truth, good=not bad)
    return {"i_auroc": auroc(scores, defective), **{key: pixels.result()[key] for key in METRICS[1:]}}


# ---- SimpleNet


@dataclass(frozen=True)
class Heads:
    """What is trained, and how; the noise is in units of the features' deviation."""

    noise: float = 0.3
    stages: tuple[int, ...] = (2, 3)
    standardise: bool = True
    width: int = 0
    hidden: int = 256
    rate: float = 1.0  # learning rates, times those of the paper's code
    rows: int = 8192  # patches of a step, out of 8 pictures
    sigma_px: float = 4.0
    margin: float = 0.5
    seed: int = 0


class Fewer(SimpleNet):
    """Trained on some of a batch's patches only."""

    rows: int = 8192

    def _standard(self, feats: tuple[Tensor, ...]) -> Tensor:
        patch_ND = super()._standard(feats)
        return patch_ND[torch.randperm(len(patch_ND))[: self.rows]] if self.training else patch_ND


def train_heads(
    category: Category, heads: Heads, checks: tuple[int, ...]
) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Steps, seconds a step and figures at every number of steps asked for."""
    fit = [category.fit[s] for s in heads.stages]
    held = [category.held[s] for s in heads.stages]
    noise = (
        heads.noise
        if heads.standardise
        else heads.noise * float(to_patches(embed(fit, 3)).std(dim=0).square().mean().sqrt())
    )
    config = SimpleNet.Config(stages=heads.stages, noise=noise, standardise=heads.standardise, width=heads.width,
                              hidden=heads.hidden, sigma_px=heads.sigma_px, margin=heads.margin, seed=heads.seed)  # fmt: skip
    net = Fewer(config, pretrained=False)
    net.rows = heads.rows
    with torch.no_grad():
        net.begin([Batch(features=tuple(fit))])
    optimisers = [o for o, _ in net.optimisers(1)]
    for group in (g for o in optimisers for g in o.param_groups):
        group["lr"] *= heads.rate
    torch.manual_seed(heads.seed)
    spent = 0.0
    for step in range(max(checks)):
        begun = time.perf_counter()
        net.train()
        rows = draw(len(fit[0]), 8, step, heads.seed)
        loss, _ = net.loss(Batch(features=tuple(f[rows] for f in fit)))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        spent += time.perf_counter() - begun
        if step + 1 in checks:
            net.eval()
            with torch.inference_mode():
                parts = [net.head(tuple(f[i : i + 8] for f in held)) for i in range(0, len(category.mask), 8)]
            maps = torch.cat([p.map for p in parts]).numpy()
            raw = metrics(maps, torch.cat([p.score for p in parts]).numpy(), category.mask)
            yield (
                step + 1,
                spent / (step + 1),
                raw | {"i_auroc_map": auroc(maps.max(axis=(1, 2)), category.mask.any(axis=(1, 2)))},
            )
