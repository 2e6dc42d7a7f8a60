"""SimpleNet: a small discriminator learns to tell normal patch features from the same with Gaussian noise.

Liu et al., SimpleNet: A Simple Network for Image Anomaly Detection and Localization, CVPR 2023,
https://arxiv.org/abs/2303.15140

Departs from the paper: the default backbone is EfficientNet-Lite0 at 256 px, whose features differ in scale from those
of WideResNet-50, so features are first standardised per dimension over the fitting pictures and the noise is given in
those units; heads as wide as the features instead of 1536 (the preset `paper` has the paper's). Departs from the
authors' code: plain means over 3 x 3 patches instead of its uneven pooling; the last step is kept, never the best on
the test set; steps are counted, not epochs.

B images  D embedding  h w patch grid  N = B * h * w patches  H W pixels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from flawmap.detectors.base import FrozenDetector, Optimisers, option
from flawmap.errors import UsageError
from flawmap.features.patches import Enlarge, embed, to_patches
from flawmap.types import Batch, Prediction


class SimpleNet(FrozenDetector):
    name = "simplenet"
    title = "SimpleNet"
    paper = "https://arxiv.org/abs/2303.15140"
    presets = {  # noqa: RUF012 (read only)
        # 160 epochs of 209 pictures in batches of 8; 288 px is what the paper crops from 329
        "paper": {
            **{"backbone": "wide_resnet50_2.tv_in1k", "size": 288, "width": 1536, "hidden": 1024, "steps": 4160},
            **{"noise": 0.015, "standardise": False},
        },
    }

    @dataclass(frozen=True)
    class Config(FrozenDetector.Config):
        steps: int = option(1000, "steps of training, each on 8 pictures")
        neighbourhood: int = option(3, "patches are averaged over so many by so many (p, section 3.1)")
        width: int = option(0, "features are pooled to so many dimensions; 0: as many as they have")
        hidden: int = option(256, "width of the discriminator's hidden layer")
        noise: float = option(0.3, "standard deviation of the Gaussian noise (section 3.3), in units of the features'")
        margin: float = option(0.5, "th+ = -th- of the truncated L1 loss (equation 6)")
        standardise: bool = option(True, "scale every feature to deviation 1 over the fitting pictures")
        sigma_px: float = option(4.0, "Gaussian smoothing of the map")
        seed: int = option(0, "of the heads' first weights")

    config: Config
    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        if config.hidden < 1 or config.noise <= 0 or config.margin <= 0 or config.neighbourhood % 2 == 0:
            raise UsageError("simplenet: hidden >= 1, noise > 0, margin > 0, neighbourhood odd")
        super().__init__(config, pretrained=pretrained)
        features = sum(shape[0] for shape in self.backbone.shapes)
        width = config.width or features
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
        self.register_buffer("scale_D", torch.ones(width))

    @torch.no_grad()
    def begin(self, normals: Iterable[Batch]) -> None:
        if not self.config.standardise:
            return
        count, total_D, square_D = 0, torch.zeros(self.width).double(), torch.zeros(self.width).double()
        for batch in normals:
            patch_ND = self._patches(batch.features or ()).double()
            count, total_D, square_D = (
                count + len(patch_ND),
                total_D + patch_ND.sum(0),
                square_D + patch_ND.square().sum(0),
            )
        mean_D = total_D / count
        deviation_D = (square_D / count - mean_D.square()).clamp(min=0).sqrt()
        # A feature that never moves says nothing of good parts: leave its scale rather than blow it up.
        self.mean_D = mean_D.float()
        self.scale_D = torch.where(
            deviation_D > 1e-6 * deviation_D.max(), deviation_D, torch.ones_like(deviation_D)
        ).float()

    def optimisers(self, steps: int) -> Optimisers:
        return [
            (optim.Adam(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-5), None),
            (optim.AdamW(self.adaptor.parameters(), lr=1e-4, weight_decay=1e-2), None),
        ]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Truncated L1 (equation 6). True and fake pass as one batch, so that BatchNorm sees both, as in the code."""
        true_ND = self.adaptor(self._standard(batch.features or ()))
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
        patch_ND = to_patches(embed(feats, self.config.neighbourhood))
        if patch_ND.shape[1] != self.width:
            patch_ND = F.adaptive_avg_pool1d(patch_ND[:, None], self.width)[:, 0]
        return patch_ND

    def _standard(self, feats: tuple[Tensor, ...]) -> Tensor:
        return (self._patches(feats) - self.mean_D) / self.scale_D

    def memory_note(self, pictures: int) -> str:
        numbers = sum(c * h * w for c, h, w in self.backbone.shapes)
        heads = sum(p.numel() for p in (*self.adaptor.parameters(), *self.discriminator.parameters()))
        megabytes = pictures * numbers * 4 / 2**20
        return f"features of {pictures} pictures, {megabytes:.0f} MB on disk; heads of {heads:,} weights"
