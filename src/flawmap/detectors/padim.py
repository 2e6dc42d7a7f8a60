"""PaDiM: at every place of the picture a Gaussian of normal features; a patch is as strange as it is far from its own.

Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, ICPR 2020
Workshops, https://arxiv.org/abs/2011.08785

Departs from the paper: the default backbone is EfficientNet-Lite0 at 256 px without a crop, finer stages are averaged
down to a grid of stride 8 instead of coarser ones being repeated at stride 4, and what is added to the covariances is a
share of the mean variance instead of 0.01, since features of other backbones have other scales (docs/defaults.md).

B images  D features that were drawn  h w patch grid  P = h * w places  H W pixels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flawmap.detectors.base import FrozenDetector, option
from flawmap.errors import UsageError
from flawmap.features.patches import Enlarge
from flawmap.types import Batch, Prediction


class PaDiM(FrozenDetector):
    name = "padim"
    title = "PaDiM"
    paper = "https://arxiv.org/abs/2011.08785"
    presets = {  # noqa: RUF012 (read only)
        # docs/presets.md
        "fast": {"size": 192, "dims": 100, "sigma_px": 3.0},
        "balanced": {"size": 256, "dims": 100, "sigma_px": 4.0},
        "accurate": {"size": 384, "dims": 100, "sigma_px": 6.0},
        "paper": {"backbone": "wide_resnet50_2.tv_in1k", "size": 224, "stride": 4, "dims": 550},
    }

    @dataclass(frozen=True)
    class Config(FrozenDetector.Config):
        neighbourhood: int = option(1, "patches are averaged over so many by so many; 1 as in the paper", least=1)
        equalise: bool = option(False, "divide each stage by its deviation over the fitting pictures")
        dims: int = option(100, "so many features are drawn at random (section 3.2); 0: all", least=0)
        ridge: float = option(0.1, "share of the mean variance that is added to every variance", above=0)
        sigma_px: float = option(4.0, "Gaussian smoothing of the map", least=0)
        seed: int = option(0, "of the features that are drawn", least=0, most=2**63 - 1)

    config: Config
    drawn_D: Tensor
    mean_PD: Tensor
    whiten_PDD: Tensor

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        self.dims = config.dims or self.embed.dim
        if self.dims > self.embed.dim:
            raise UsageError(f"padim: dims is {config.dims}, but the stages have {self.embed.dim} features")
        places = self.grid[0] * self.grid[1]
        drawn = np.sort(np.random.default_rng(config.seed).permutation(self.embed.dim)[: self.dims])
        self.enlarge = Enlarge(self.grid, (config.size, config.size), config.sigma_px)
        self.register_buffer("drawn_D", torch.from_numpy(drawn))
        self.register_buffer("mean_PD", torch.zeros(places, self.dims))
        self.register_buffer("whiten_PDD", torch.zeros(places, self.dims, self.dims))

    def begin(self, normals: Iterable[Batch]) -> None:
        """Mean and covariance at every place (section 3.2), in one pass."""
        if self.config.equalise:
            self.embed.measure(normals)
        count, total_PD = 0, torch.zeros_like(self.mean_PD, dtype=torch.float64)
        square_PDD = torch.zeros_like(self.whiten_PDD, dtype=torch.float64)
        for batch in normals:
            patch_PBD = self._patches(batch.features or ()).double()
            count += patch_PBD.shape[1]
            total_PD += patch_PBD.sum(dim=1)
            square_PDD += patch_PBD.transpose(1, 2) @ patch_PBD
        mean_PD = total_PD / count
        covariance_PDD = (square_PDD / count - mean_PD[:, :, None] * mean_PD[:, None]) * count / max(1, count - 1)
        variance = covariance_PDD.diagonal(dim1=1, dim2=2).clamp(min=0).mean()
        if count == 1 or variance <= 0:  # one picture says nothing of a spread: all features count alike
            variance = torch.ones_like(variance)
        covariance_PDD.diagonal(dim1=1, dim2=2).add_(self.config.ridge * variance)
        self.mean_PD = mean_PD.float()
        self.whiten_PDD = torch.linalg.inv(torch.linalg.cholesky(covariance_PDD)).float()

    def head(self, feats: tuple[Tensor, ...]) -> Prediction:
        """The Mahalanobis distance (equation 2), enlarged and smoothed; its largest value is the score."""
        away_PBD = self._patches(feats) - self.mean_PD[:, None]
        far_PB = (away_PBD @ self.whiten_PDD.transpose(1, 2)).square().sum(dim=2).sqrt()
        map_BHW = self.enlarge(far_PB.T.unflatten(1, self.grid))
        return Prediction(map_BHW, map_BHW.flatten(1).amax(dim=1))

    def memory_note(self, pictures: int) -> str:
        places = self.grid[0] * self.grid[1]
        numbers = places * self.dims * (self.dims + 1)
        return f"{places:,} places of {self.dims} features: {numbers * 4 / 2**20:.0f} MB, thrice while it is fitted"

    def _patches(self, feats: tuple[Tensor, ...]) -> Tensor:
        """One (B, C, h, w) a stage -> (P, B, D)."""
        return self.embed(feats).flatten(2)[:, self.drawn_D].permute(2, 0, 1)
