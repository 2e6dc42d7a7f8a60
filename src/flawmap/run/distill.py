"""Distil a teacher for EfficientAD: a small network learns to say what a frozen backbone says of any pictures.

EfficientAD, section 3.1 and algorithm 1, https://arxiv.org/abs/2303.14535. The backbone sees a crop at twice the size
and joins its stages as PatchCore does; the teacher sees it at the size itself. Departs from the paper: the teacher is
trained without its padding, on the inner features alone, so that it is the network that the detector uses; the pictures
are crops drawn once from photos, or drawn textures where there are no photos.

B pictures  D features  h w their grid  H W pixels
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, optim

from flawmap.detectors.base import Detector, Optimisers, option
from flawmap.detectors.efficientad import PDN, EfficientAD, normalised
from flawmap.errors import DataError, UsageError
from flawmap.features.backbone import EMBEDDED, Backbone
from flawmap.features.frozen import frozen
from flawmap.features.patches import Embed
from flawmap.images.decode import decode
from flawmap.images.intake import Intake
from flawmap.run.claim import claimed
from flawmap.run.engine import device_named
from flawmap.run.feed import draw, grey, pictures_in
from flawmap.run.progress import progress, say
from flawmap.run.recipe import Log
from flawmap.run.store import FeatureStore
from flawmap.run.table import made
from flawmap.run.train import train
from flawmap.synthesis.textures import drawn
from flawmap.types import Batch

LEAST, MOST = 0.25, 1.0  # share of a photo's area in a crop
GREY = 0.1  # of the crops lose their colours, as in the paper
HELD_OUT = 0.1  # of the photos: how much of the backbone's features the teacher explains there


class Distilling(Detector):
    """The training of a teacher, in the form that the training loop takes."""

    name = "distill"
    mixed_precision = True

    @dataclass(frozen=True)
    class Config(Detector.Config):
        size: int = option(
            256, "pixels of a crop for the teacher; the backbone sees twice as many", least=64, most=1024
        )
        backbone: str = option(EMBEDDED, "a model of timm; the default is embedded and needs no network")
        stages: tuple[int, ...] = option((2, 3), "its stages: 2 is stride 8, 3 is stride 16", least=0)
        weights: str = option("", "a .safetensors file with the backbone's weights")
        pdn: str = option("small", "shape of the teacher: small or medium")
        width: int = option(32, "channels of its first layer; 128 (small) or 256 (medium) in the paper", least=1)
        dim: int = option(96, "features that it gives; 384 in the paper", least=1)
        crops: int = option(1500, "crops, drawn once", least=10)
        steps: int = option(3000, "steps of training; 60,000 in the paper", least=1)
        batch: int = option(4, "crops a step; 16 in the paper", least=1)
        rate: float = option(1e-3, "learning rate of Adam; x 0.1 at 80 % of the steps; 1e-4 in the paper", above=0)
        seed: int = option(0, "of crops and first weights", least=0, most=2**63 - 1)

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.teacher = PDN(config.pdn, config.width, config.dim)

    @property
    def batch_size(self) -> int:
        return self.config.batch

    def optimisers(self, steps: int) -> Optimisers:
        adam = optim.Adam(self.parameters(), lr=self.config.rate, weight_decay=1e-5)
        return [(adam, optim.lr_scheduler.MultiStepLR(adam, [int(0.8 * steps)], gamma=0.1))]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert batch.features is not None
        return F.mse_loss(self.teacher(normalised(batch.image)).float(), batch.features[0]), {}


def distill(photos: Path | None, out: Path, *, options: dict[str, Any], device: str = "auto") -> dict[str, str]:
    """Writes a teacher with its recipe. Goes on where it was stopped; its work lies beside `out` until it is done."""
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: a teacher is a .safetensors file")
    distilling = Distilling(Distilling.configure(options))
    config = distilling.config
    backbone = Backbone(config.backbone, config.stages, 2 * config.size, weights=config.weights)
    _check(config, sum(shape[0] for shape in backbone.shapes))
    pictures = _photos(photos) if photos else []
    recipe = _recipe(config, backbone.sha256, photos, pictures)
    work = out.with_suffix(f".{recipe['key']}.work")
    with claimed(work / "claim") as mine:
        if not mine:
            raise UsageError(f"{out}: another process makes this teacher")
        explained = _taught(distilling, backbone, pictures, work, device_named(device))
        _write(distilling.teacher, {**recipe, "explained": round(explained, 4), **made()}, out)
    shutil.rmtree(work)
    return {
        "teacher": str(out),
        "explains": f"{explained:.1%} of the features' variance on pictures that were held out",
        "use": f"flawmap fit DATA --method efficientad --teacher {out} {_shape(config)}",
    }


def _shape(config: Distilling.Config) -> str:
    """The options of a detector that takes this teacher."""
    small = EfficientAD.configure({"preset": "small"})
    if (config.pdn, config.width, config.dim) == (small.pdn, small.width, small.dim):
        return "--preset small"
    return f"--pdn {config.pdn} --width {config.width} --dim {config.dim}"


def _check(config: Distilling.Config, features: int) -> None:
    if config.size % 32:  # elsewhere a feature of the teacher and its target would not be of the same place
        raise UsageError(f"distill: size is {config.size}; it must be a multiple of 32")
    if config.dim > features:
        raise UsageError(
            f"distill: dim is {config.dim}, but stages {','.join(map(str, config.stages))} of {config.backbone} have "
            f"{features} features: take more stages, another backbone, or a smaller dim"
        )


def _taught(distilling: Distilling, backbone: Backbone, pictures: Sequence[Path], work: Path, device: str) -> float:
    """Trains the teacher; returns what it explains of pictures that were held out."""
    config = distilling.config
    held = int(HELD_OUT * config.crops)
    store = _crops(config, backbone, pictures, held, work, device)
    mean_D11, std_D11 = _spread(store, config.crops - held)

    def batch(rows: Sequence[int] | np.ndarray) -> Batch:
        found = store.batch(rows).features
        assert found is not None
        image, target = (part.to(device) for part in found)
        return Batch(image=image, features=((target - mean_D11.to(device)) / std_D11.to(device),))

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, config.steps):
            yield batch(draw(config.crops - held, config.batch, step, config.seed))

    with progress("training", config.steps) as tick:
        train(
            distilling.to(device),
            batches,
            seed=config.seed,
            checkpoint=work / "checkpoint",
            log=Log(work / "train.jsonl"),
            tick=tick,
        )
    return _explained(distilling, batch, range(config.crops - held, config.crops))


def _photos(folder: Path) -> list[Path]:
    found = pictures_in(folder)
    if len(found) < 10:
        raise DataError(f"{folder}: {len(found)} pictures; a teacher wants at least 10, and better thousands")
    say(f"checking {len(found)} photos")
    for path in found:
        decode(path)
    return found


def _recipe(
    config: Distilling.Config, backbone_sha256: str, photos: Path | None, pictures: Sequence[Path]
) -> dict[str, Any]:
    """What decides the teacher; `key` names the work in progress."""
    digest = hashlib.sha256()
    for path in pictures:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    values = {key: getattr(config, key) for key in Distilling.Config.__dataclass_fields__ if key != "weights"}
    recipe = {
        **values,
        "backbone_sha256": backbone_sha256,
        "photos": f"{len(pictures)} photos of {photos.name}" if photos else "drawn textures",
        "photos_sha256": digest.hexdigest() if pictures else "",
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return {**recipe, "key": key}


def _crops(
    config: Distilling.Config, backbone: Backbone, pictures: Sequence[Path], held: int, work: Path, device: str
) -> FeatureStore:
    """Crops (3, H, W) and what the backbone says of them (D, h, w), on disk; the last `held` are of photos apart."""
    grid = PDN(config.pdn, 1, 1).grid(config.size)
    shapes = [(3, config.size, config.size), (config.dim, grid, grid)]
    store = FeatureStore(work / "crops", shapes, config.crops, np.float16)
    features = frozen(backbone, 2 * config.size, device)
    whole = config.size // 4
    embed = Embed(backbone.shapes, (whole, whole), 3)
    border = (whole - grid) // 2
    apart = max(1, int(HELD_OUT * len(pictures)))

    def crop(row: int) -> np.ndarray:
        random = np.random.default_rng((config.seed, row))
        mine = pictures[-apart:] if row >= config.crops - held else pictures[:-apart]
        return _crop(random, mine, 2 * config.size)

    @torch.inference_mode()
    def both(image_B3HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        joined = embed([torch.from_numpy(feat) for feat in features(image_B3HW)])
        inner = joined[:, :, border : border + grid, border : border + grid]
        pooled = F.adaptive_avg_pool1d(inner.flatten(2).transpose(1, 2), config.dim).transpose(1, 2)
        small = F.avg_pool2d(torch.from_numpy(image_B3HW), 2)
        return small.numpy(), pooled.reshape(-1, config.dim, grid, grid).numpy()

    with progress("crops", config.crops) as tick:
        store.fill(crop, both, tick)
    return store


def _crop(random: np.random.Generator, pictures: Sequence[Path], side: int) -> np.ndarray:
    """(3, side, side) float32 in [0, 1]: a square of a photo, turned over or not, at times grey; or a drawn texture."""
    if pictures:
        image = Image.fromarray((_read(pictures[int(random.integers(len(pictures)))]) * 255).round().astype(np.uint8))
        length = min(image.size) * random.uniform(LEAST, MOST) ** 0.5
        left, top = (random.uniform(0, whole - length) for whole in image.size)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + length, top + length))
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    else:
        pixels = drawn(random, (side, side))
    if random.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if random.random() < GREY:
        pixels = grey(pixels)
    return np.ascontiguousarray(pixels, np.float32)


def _read(path: Path) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1], at the picture's own size."""
    pixels = decode(path)
    return Intake.fit([path], pixels.shape[:2])(path)[0].transpose(1, 2, 0)


def _spread(store: FeatureStore, count: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every feature over the crops that are learnt from."""
    total, square, patches = 0.0, 0.0, 0
    for row in range(count):
        feat_DN = store.stages[1][row].astype(np.float64).reshape(store.stages[1].shape[1], -1)
        total, square = total + feat_DN.sum(1), square + np.square(feat_DN).sum(1)
        patches += feat_DN.shape[1]
    mean = total / patches
    deviation = np.sqrt(np.maximum(square / patches - mean**2, 1e-12))
    first, second = (torch.from_numpy(np.asarray(values, np.float32)).view(-1, 1, 1) for values in (mean, deviation))
    return first, second


@torch.inference_mode()
def _explained(distilling: Distilling, batch: Callable[[Sequence[int]], Batch], rows: Sequence[int]) -> float:
    """1 - squared error / variance, over pictures that were held out."""
    wrong, spread = 0.0, 0.0
    for row in rows:
        one = batch([row])
        assert one.features is not None
        target = one.features[0]
        wrong += (distilling.teacher(normalised(one.image)) - target).square().mean().item()
        spread += target.square().mean().item()
    return 1 - wrong / spread


def _write(teacher: PDN, recipe: dict[str, Any], out: Path) -> None:
    from safetensors.torch import save_file

    # Half the bits: the teacher is a yardstick, and every detector that uses it reads the same ones.
    state = {key: value.half().contiguous().cpu() for key, value in teacher.state_dict().items()}
    temporary = out.with_suffix(".new")
    save_file(state, temporary, {"flawmap": json.dumps(recipe)})
    os.replace(temporary, out)
