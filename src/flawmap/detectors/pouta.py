"""POUTA: a network repairs the picture, and the features it made on the way in and out are compared to find the defect.

Shao et al., Produce Once, Utilize Twice for Anomaly Detection, IEEE TCSVT 2024, https://arxiv.org/abs/2312.12913

The paper leaves the layers open; these meet its published cost (15.02 M parameters, 35.37 G multiply-adds as a common
tool counts them) at width 64 and 224 px. Open in the paper and chosen here, with reasons in docs/detectors/pouta.md:
norms, activations (ReLU; sigmoid for the weights of HSG), first weights (He et al.), focal exponent 2. Departs from it
in one order only: the 1 x 1 convolutions of the heads come before the enlarging. Both are linear, so the result is the
same, and 480 channels need not be enlarged.

B images  C channels  H W pixels  h w sides of a level; levels 1 (fine) to 4 (coarse) are places 0 to 3 of a list
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.detectors.base import SynthesisDetector, option
from flawmap.detectors.draem import SSIM, UNet, check_sides, double, focal, initialise, score
from flawmap.errors import UsageError
from flawmap.types import Batch, Prediction

SUPERVISION = (0.4, 0.3, 0.2, 0.1)  # lambda of MSS, fine to coarse (section IV-A; a "." of 0.4 is misprinted)
NORMS = {"instance": nn.InstanceNorm2d, "none": lambda channels: nn.Identity(), "batch": nn.BatchNorm2d}


class POUTA(SynthesisDetector):
    name = "pouta"
    title = "POUTA"
    paper = "https://arxiv.org/abs/2312.12913"
    presets = {  # noqa: RUF012 (read only)
        "small": {"width": 16, "size": 128, "window": 13, "steps": 1500, "rate": 1e-3},  # docs/defaults.md
        # the paper's comparison: a reconstruction and a U-Net that is not told what the reconstruction knows
        "vanilla": {"reuse": False},
        "base": {"hsg": False, "mss": False},
    }

    @dataclass(frozen=True)
    class Config(SynthesisDetector.Config):
        size: int = option(224, "pictures are resized to a square of so many pixels", least=32, most=4096)
        width: int = option(64, "channels of the first level; levels have 1, 2, 4 and 8 times as many", least=2)
        norm: str = option("instance", "after each convolution of encoder and decoder: instance, none or batch")
        reuse: bool = option(True, "compare features (FCM); false: vanilla, a U-Net on picture and reconstruction")
        hsg: bool = option(True, "refine fine levels by coarse ones (hierarchical semantic guidance)")
        mss: bool = option(True, "supervise every level in training (multi-scale supervision)")
        window: int = option(21, "the score is the largest mean of the map over so many by so many pixels", least=1)

    config: Config

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        check_sides(self.name, config.size, 16 if config.reuse else 32, config.window)
        if config.norm not in NORMS:
            raise UsageError(f"pouta: no norm {config.norm!r}; there are: {', '.join(NORMS)}")
        width = config.width
        widths, thin = [width, 2 * width, 4 * width, 8 * width], [width // 2, width, 2 * width, 4 * width]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            twice = partial(_twice, norm=config.norm)
            self.encoder = nn.ModuleList(twice(i, o) for i, o in itertools.pairwise([3, *widths]))
            self.mapping = _conv(widths[3], widths[3], config.norm)
            self.decoder = nn.ModuleList(twice(i, o) for i, o in zip([*widths[1:], widths[3]], widths, strict=True))
            self.out = nn.Conv2d(width, 3, 3, padding=1)
            if config.reuse:
                self.fcm = nn.ModuleList(FCM(c, m) for c, m in zip(widths, thin, strict=True))
                self.hsg = nn.ModuleList(HSG(d, m) for m, d in itertools.pairwise(thin) if config.hsg)
                self.head = nn.ModuleList(nn.Conv2d(m, 2, 1, bias=m == thin[0]) for m in thin)
                self.mss = nn.ModuleList(nn.Conv2d(m, 2, 1) for m in thin if config.mss)
            else:
                self.find = UNet(6, max(1, width // 2))
            initialise(self)
        self.similarity = SSIM(config.size)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """L_rec + L_pre + L_MSS, unweighted; no gradient is stopped, so that MSS reaches encoder and decoder."""
        encoded, mapped = self.encode(batch.image)
        decoded, repaired_B3HW = self.decode(mapped)
        rebuilt = F.mse_loss(repaired_B3HW, batch.clean) + self.similarity(repaired_B3HW, batch.clean)
        if not self.config.reuse:
            located = located_by(self.find(torch.cat([repaired_B3HW, batch.image], dim=1)), batch.mask)
            return rebuilt + located, {"rebuilt": rebuilt.item(), "located": located.item()}
        levels = self.compare(encoded, decoded)
        located = located_by(self._enlarged_sum(self.head, levels), batch.mask)
        total, parts = rebuilt + located, {"rebuilt": rebuilt.item(), "located": located.item()}
        if self.config.mss:
            each = [
                located_by(enlarged(head(f).float(), batch.mask), batch.mask)
                for head, f in zip(self.mss, levels, strict=True)
            ]
            supervised = torch.stack([share * loss for share, loss in zip(SUPERVISION, each, strict=True)]).sum()
            total, parts["supervised"] = total + supervised, supervised.item()
        return total, parts

    def forward(self, image: Tensor) -> Prediction:
        encoded, mapped = self.encode(image)
        decoded, repaired_B3HW = self.decode(mapped)
        map_BHW = self.locate(image, encoded, decoded, repaired_B3HW).softmax(dim=1)[:, 1]
        return Prediction(map_BHW, score(map_BHW, self.config.window))

    def locate(self, image: Tensor, encoded: list[Tensor], decoded: list[Tensor], repaired_B3HW: Tensor) -> Tensor:
        """(B, 2, H, W): normal and not, before the softmax."""
        if not self.config.reuse:
            return self.find(torch.cat([repaired_B3HW, image], dim=1))
        return self._enlarged_sum(self.head, self.compare(encoded, decoded))

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """F_E1 to F_E4, and F_M."""
        encoded = [self.encoder[0](image)]
        for block in self.encoder[1:]:
            encoded.append(block(F.max_pool2d(encoded[-1], 2)))
        return encoded, self.mapping(F.max_pool2d(encoded[-1], 2))

    def decode(self, mapped: Tensor) -> tuple[list[Tensor], Tensor]:
        """F_D1 to F_D4, and the repaired picture I_r."""
        decoded, feat = [], mapped
        for block in reversed(self.decoder):
            feat = block(double(feat))
            decoded.insert(0, feat)
        return decoded, self.out(feat).float()

    def compare(self, encoded: list[Tensor], decoded: list[Tensor]) -> list[Tensor]:
        """F'_C1, F'_C2, F'_C3, F_C4: contrast by FCM, refined from coarse to fine by HSG."""
        levels = [fcm(e, d) for fcm, e, d in zip(self.fcm, encoded, decoded, strict=True)]
        if self.config.hsg:
            for place in (2, 1, 0):
                levels[place] = self.hsg[place](levels[place], levels[place + 1])
        return levels

    def _enlarged_sum(self, heads: nn.ModuleList, levels: list[Tensor]) -> Tensor:
        """The 1 x 1 convolution of the joined levels, each level enlarged after it, then added."""
        found = [enlarged(head(feat).float(), levels[0]) for head, feat in zip(heads, levels, strict=True)]
        return torch.stack(found).sum(dim=0)


class FCM(nn.Module):
    """Feature contrast: each side through a 1 x 1 convolution, joined, and through one more (section III-B)."""

    def __init__(self, channels: int, thin: int) -> None:
        super().__init__()
        self.encoded, self.decoded = nn.Conv2d(channels, thin, 1), nn.Conv2d(channels, thin, 1)
        self.joined = nn.Conv2d(2 * thin, thin, 1)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        return self.joined(torch.cat([self.encoded(encoded), self.decoded(decoded)], dim=1).relu()).relu()


class HSG(nn.Module):
    """Hierarchical semantic guidance: the coarser level weighs the finer one's places and channels (section III-C)."""

    def __init__(self, deeper: int, thin: int) -> None:
        super().__init__()
        self.guide = nn.Conv2d(deeper, thin, 3, padding=1)
        self.places, self.channels = nn.Conv2d(thin, 1, 1), nn.Conv2d(thin, thin, 1)

    def forward(self, level: Tensor, deeper: Tensor) -> Tensor:
        guide = self.guide(double(deeper)).relu()
        weight_B1hw = self.places(guide).sigmoid()
        weight_BC11 = self.channels(guide.mean(dim=(2, 3), keepdim=True)).sigmoid()
        return weight_B1hw * level * weight_BC11


def located_by(logits_B2HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Focal + L1 of the probability (section III-D)."""
    return focal(logits_B2HW, mask_BHW) + F.l1_loss(logits_B2HW.softmax(dim=1)[:, 1], mask_BHW)


def enlarged(feat: Tensor, like: Tensor) -> Tensor:
    """To the last two sides of `like`, bilinear."""
    if feat.shape[-2:] == like.shape[-2:]:
        return feat
    return F.interpolate(feat, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _conv(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), NORMS[norm](outputs), nn.ReLU())


def _twice(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, norm), _conv(outputs, outputs, norm))
