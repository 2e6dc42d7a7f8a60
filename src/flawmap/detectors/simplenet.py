"""SimpleNet: a small discriminator learns to tell normal patch features from the same with Gaussian noise.

Liu et al., SimpleNet: A Simple Network for Image Anomaly Detection and Localization, CVPR 2023,
https://arxiv.org/abs/2303.15140

Departs from the paper: the default backbone is EfficientNet-Lite0 at 256 px with one finer stage, whose features differ
in scale from those of WideResNet-50, so every stage is divided by its deviation over the fitting pictures and the noise
is given in units of the joined features' deviation; heads as wide as the features instead of 1536, a step on some of
its patches, and a higher learning rate for fewer steps (docs/defaults.md; the preset `paper` has the paper's). Departs
from the authors' code: plain means over 3 x 3 patches instead of its uneven pooling; the last step is kept, never the
best on the test set; steps are counted, not epochs.

B images  D embedding  h w patch grid  N = B * h * w patches  H W pixels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from flawmap.detectors.base import FrozenDetector, Optimisers, option
from flawmap.features.patches import Enlarge, to_patches
from flawmap.types import Batch, Prediction


class SimpleNet(FrozenDetector):
    name = "simplenet"
    title = "SimpleNet"
    paper = "https://arxiv.org/abs/2303.15140"
    presets = {  # noqa: RUF012 (read only)
        # docs/presets.md
        "fast": {"size": 192, "sigma_px": 3.0},
        "balanced": {"size": 256, "sigma_px": 4.0},
        "accurate": {"size": 384, "sigma_px": 6.0},
        # 160 epochs of 209 pictures in batches of 8; 288 px is what the paper crops from 329
        "paper": {
            **{"backbone": "wide_resnet50_2.tv_in1k", "size": 288, "width": 1536, "hidden": 1024, "steps": 4160},
            **{"noise": 0.015, "equalise": False, "stages": (2, 3), "patches": 0, "rate": 2e-4},
        },
    }

    @dataclass(frozen=True)
    class Config(FrozenDetector.Config):
        steps: int = option(300, "steps of training, each on 8 pictures", least=1)
        patches: int = option(2048, "of a step's patches so many are used, drawn at random; 0: all", least=0)
        width: int = option(0, "features are pooled to so many dimensions; 0: as many as they have", least=0)
        hidden: int = option(256, "width of the discriminator's hidden layer", least=1)
        noise: float = option(0.5, "deviation of the Gaussian noise (section 3.3), in units of the features'", above=0)
        rate: float = option(1e-3, "learning rate of the discriminator; the adaptor's is half of it", above=0)
        margin: float = option(0.5, "th+ = -th- of the truncated L1 loss (equation 6)", above=0)
        sigma_px: float = option(4.0, "Gaussian smoothing of the map", least=0)
        seed: int = option(0, "of the heads' first weights", least=0, most=2**63 - 1)

    config: Config
    mean_D: Tensor
    scale: Tensor

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        width = config.width or self.embed.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.adaptor = nn.Linear(width, width)
            self.discriminator = nn.Sequential(
                nn.Linear(width, config.hidden),
                nn.BatchNorm1d(config.hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(config.hidden, 1, bias=False),
            )
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
        self.width = width
        self.enlarge = Enlarge(self.grid, (config.size, config.size), config.sigma_px)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def begin(self, normals: Iterable[Batch]) -> None:
        if not self.config.equalise:
            return
        self.embed.measure(normals)
        count, total_D, square_D = 0, torch.zeros(self.width).double(), torch.zeros(self.width).double()
        for batch in normals:
            patch_ND = self._patches(batch.features or ()).double().cpu()
            count, total_D, square_D = (
                count + len(patch_ND),
                total_D + patch_ND.sum(0),
                square_D + patch_ND.square().sum(0),
            )
        mean_D = total_D / count
        deviation = (square_D / count - mean_D.square()).clamp(min=0).mean().sqrt()
        self.mean_D = mean_D.float().to(self.mean_D.device)
        self.scale = (deviation if deviation > 1e-12 else torch.ones_like(deviation)).float().to(self.mean_D.device)

    def optimisers(self, steps: int) -> Optimisers:
        return [
            (optim.Adam(self.discriminator.parameters(), lr=self.config.rate, weight_decay=1e-5), None),
            (optim.AdamW(self.adaptor.parameters(), lr=self.config.rate / 2, weight_decay=1e-2), None),
        ]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Truncated L1 (equation 6). True and fake pass as one batch, so that BatchNorm sees both, as in the code."""
        patch_ND = self._standard(batch.features or ())
        if 0 < self.config.patches < len(patch_ND):
            patch_ND = patch_ND[torch.randperm(len(patch_ND), device=patch_ND.device)[: self.config.patches]]
        true_ND = self.adaptor(patch_ND)
        fake_ND = true_ND + self.config.noise * torch.randn_like(true_ND)
        judged_N = self.discriminator(torch.cat([true_ND, fake_ND]))[:, 0]
        true_N, fake_N = judged_N.split(len(true_ND))
        th = self.config.margin
        loss = F.relu(th - true_N).mean() + F.relu(th + fake_N).mean()
        parts = {"good_kept": float((true_N > 0).float().mean()), "noise_found": float((fake_N < 0).float().mean())}
        return loss, parts

    def head(self, feats: tuple[Tensor, ...]) -> Prediction:
        h, w = self.grid
        strange_N = -self.discriminator(self.adaptor(self._standard(feats)))[:, 0]
        strange_Bhw = strange_N.view(-1, h, w)
        return Prediction(self.enlarge(strange_Bhw), strange_Bhw.flatten(1).amax(dim=1))

    def _patches(self, feats: tuple[Tensor, ...]) -> Tensor:
        patch_ND = to_patches(self.embed(feats))
        if patch_ND.shape[1] != self.width:
            patch_ND = F.adaptive_avg_pool1d(patch_ND[:, None], self.width)[:, 0]
        return patch_ND

    def _standard(self, feats: tuple[Tensor, ...]) -> Tensor:
        return (self._patches(feats) - self.mean_D) / self.scale

    def memory_note(self, pictures: int) -> str:
        numbers = sum(c * h * w for c, h, w in self.backbone.shapes)
        heads = sum(p.numel() for p in (*self.adaptor.parameters(), *self.discriminator.parameters()))
        megabytes = pictures * numbers * 4 / 2**20
        return f"features of {pictures} pictures, {megabytes:.0f} MB on disk; heads of {heads:,} weights"
