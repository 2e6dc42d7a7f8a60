"""DRAEM: one network paints the defect away, a second one finds it in the picture and its repaired copy.

Zavrtanik et al., DRAEM - A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection, ICCV 2021,
https://arxiv.org/abs/2108.07610

Follows the authors' code where it differs from the paper: learning rate x 0.2 at 80 % and 90 % of the steps, last step
kept. Departs from it: RGB instead of BGR, every picture is drawn once an epoch instead of with replacement, half-pixel
centres in up-sampling, first weights of He et al. scaled by the layer's inputs instead of one deviation of 0.02, SSIM
over windows that lie inside the picture.

B images  C channels  H W pixels  S sides of an SSIM map
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.detectors.base import SynthesisDetector, option
from flawmap.errors import UsageError
from flawmap.types import Batch, Prediction


class DRAEM(SynthesisDetector):
    name = "draem"
    title = "DRAEM"
    paper = "https://arxiv.org/abs/2108.07610"
    presets = {  # noqa: RUF012 (read only)
        "small": {"width": 16, "size": 128, "window": 13, "steps": 1500, "rate": 1e-3},  # as POUTA: docs/defaults.md
    }

    @dataclass(frozen=True)
    class Config(SynthesisDetector.Config):
        width: int = option(128, "channels of the reconstruction's first level; the second network has half", least=2)
        steps: int = option(21_175, "steps of training, each on 8 pictures", least=1)
        rate: float = option(1e-4, "learning rate of Adam; x 0.2 at 80 % and again at 90 % of the steps", above=0)
        synthesis: str = option("draem", "recipe of the painted defects: pouta, draem or memseg")
        window: int = option(21, "the score is the largest mean of the map over so many by so many pixels", least=1)

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        check_sides(self.name, config.size, 32, config.window)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.repair = Repair(config.width)
            self.find = UNet(6, config.width // 2)
            initialise(self)
        self.similarity = SSIM(config.size)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """L2 + SSIM on the repaired picture, focal on the map (sections 3.1 and 3.2), all with weight 1."""
        repaired_B3HW = self.repair(batch.image)
        logits_B2HW = self.find(torch.cat([repaired_B3HW, batch.image], dim=1))
        rebuilt = F.mse_loss(repaired_B3HW, batch.clean) + self.similarity(repaired_B3HW, batch.clean)
        located = focal(logits_B2HW, batch.mask)
        return rebuilt + located, {"rebuilt": rebuilt.item(), "located": located.item()}

    def forward(self, image: Tensor) -> Prediction:
        map_BHW = self.find(torch.cat([self.repair(image), image], dim=1)).softmax(dim=1)[:, 1]
        return Prediction(map_BHW, score(map_BHW, self.config.window))


class Repair(nn.Module):
    """An auto-encoder of five levels without skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.encoder = nn.ModuleList(conv_twice(i, o) for i, o in itertools.pairwise([3, *widths]))
        up = [8 * width, 4 * width, 2 * width, width, width]
        self.enlarge = nn.ModuleList(conv_norm(c, c) for c in up[:-1])
        self.decoder = nn.ModuleList(nn.Sequential(conv_norm(i, i), conv_norm(i, o)) for i, o in itertools.pairwise(up))
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        feat = self.encoder[0](image)
        for block in self.encoder[1:]:
            feat = block(F.max_pool2d(feat, 2))
        for enlarge, block in zip(self.enlarge, self.decoder, strict=True):
            feat = block(enlarge(double(feat)))
        return self.out(feat).float()


class UNet(nn.Module):
    """Six levels with skips; two channels out, normal and not."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        self.encoder = nn.ModuleList(conv_twice(i, o) for i, o in itertools.pairwise([channels, *widths]))
        up, skips = [8 * width, 8 * width, 4 * width, 2 * width, width, width], widths[-2::-1]
        self.enlarge = nn.ModuleList(conv_norm(i, o) for i, o in itertools.pairwise(up))
        self.decoder = nn.ModuleList(conv_twice(o + skip, o) for o, skip in zip(up[1:], skips, strict=True))
        self.out = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        feats = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            feats.append(block(F.max_pool2d(feats[-1], 2)))
        feat = feats.pop()
        for enlarge, block in zip(self.enlarge, self.decoder, strict=True):
            feat = block(torch.cat([enlarge(double(feat)), feats.pop()], dim=1))
        return self.out(feat).float()


class SSIM(nn.Module):
    """1 - mean structural similarity, Gaussian windows of 11 x 11, deviation 1.5, values in [0, 1] (Wang et al. 2004).

    The windows are two banded matrices: on a CPU a product of matrices is far faster than 11 x 11 convolutions.
    """

    window_SH: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.exp(-(torch.arange(11) - 5.0).square() / (2 * 1.5**2))
        rows = torch.arange(size - 10)[:, None] + torch.arange(11)
        window_SH = torch.zeros(size - 10, size).scatter_(1, rows, (weight / weight.sum()).expand(size - 10, 11))
        self.register_buffer("window_SH", window_SH, persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):  # differences of squares need all bits
            return self._loss(a.float(), b.float())

    def _loss(self, a: Tensor, b: Tensor) -> Tensor:
        def mean(x: Tensor) -> Tensor:
            return self.window_SH @ x @ self.window_SH.T

        mean_a, mean_b = mean(a), mean(b)
        aa, bb, ab = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
        var_a, var_b, cov = mean(a * a) - aa, mean(b * b) - bb, mean(a * b) - ab
        similarity = (2 * ab + 1e-4) * (2 * cov + 9e-4) / ((aa + bb + 1e-4) * (var_a + var_b + 9e-4))
        return 1 - similarity.mean()


def focal(logits_B2HW: Tensor, mask_BHW: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p, p the probability of the truth (Lin et al. 2017, equation 4)."""
    log_B2HW = logits_B2HW.log_softmax(dim=1)
    log_p_BHW = torch.where(mask_BHW > 0.5, log_B2HW[:, 1], log_B2HW[:, 0])
    return -((1 - log_p_BHW.exp()) ** gamma * log_p_BHW).mean()


def score(map_BHW: Tensor, window: int) -> Tensor:
    """The largest mean of the map over a window; beyond the border the map is 0, as in the code."""
    mean_B1HW = F.avg_pool2d(map_BHW[:, None], window, 1, window // 2, count_include_pad=True)
    return mean_B1HW.flatten(1).amax(dim=1)


def double(feat: Tensor) -> Tensor:
    """Twice as many rows and columns, bilinear; fixed numbers, so that the graph has no sizes to work out."""
    return F.interpolate(feat, size=(2 * feat.shape[2], 2 * feat.shape[3]), mode="bilinear", align_corners=False)


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def conv_twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(inputs, outputs), conv_norm(outputs, outputs))


def initialise(network: nn.Module) -> None:
    """He et al. 2015: signals keep their scale at any width, with and without norms."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_sides(method: str, size: int, multiple: int, window: int) -> None:
    if size % multiple or size < 2 * multiple:  # at one pixel a norm has nothing to count over
        near = max(2 * multiple, round(size / multiple) * multiple)
        raise UsageError(f"{method}: size is {size}; it must be a multiple of {multiple}, such as {near}")
    if window % 2 == 0 or window > size:
        raise UsageError(f"{method}: window is {window}; it must be odd and at most {size}")
