"""PatchCore: a memory of normal patches; a patch is as strange as it is far from that memory.

Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, https://arxiv.org/abs/2106.08265

Departs from the paper: the default backbone is EfficientNet-Lite0 at 256 px without a crop (the paper: WideResNet-50 at
224 px cropped from 256) with one finer stage, each stage divided by its deviation (docs/defaults.md), and the memory
holds at most 4,000 patches. Departs from the authors' code: plain means over
3 x 3 patches instead of its uneven pooling to 1024 dimensions; Euclidean distances, not squared; the re-weighting of
equation 7, which the code leaves out; no scaling by the test set.

B images  D embedding  h w patch grid  P = h * w patches  M memory  K neighbours  H W pixels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flawmap.detectors.base import FrozenDetector, option
from flawmap.features.coreset import Reservoir, k_centre
from flawmap.features.patches import Enlarge, to_patches
from flawmap.types import Batch, Prediction

# The tag is timm's for the weights that the papers used.
PLAIN = {"backbone": "wide_resnet50_2.tv_in1k", "stages": (2, 3), "equalise": False}


class PatchCore(FrozenDetector):
    name = "patchcore"
    title = "PatchCore"
    paper = "https://arxiv.org/abs/2106.08265"
    cross_fits = True
    presets = {  # noqa: RUF012 (read only)
        # docs/presets.md
        "fast": {"size": 192, "most": 1000, "sigma_px": 3.0},
        "balanced": {"size": 256, "most": 4000, "sigma_px": 4.0},
        "accurate": {"size": 384, "most": 4000, "sigma_px": 6.0},
        "paper": {**PLAIN, "size": 224, "keep": 0.1, "most": 1_000_000, "reservoir_mb": 4096},
        "paper-320": {**PLAIN, "size": 320, "keep": 0.01, "most": 1_000_000, "reservoir_mb": 8192},
    }

    @dataclass(frozen=True)
    class Config(FrozenDetector.Config):
        keep: float = option(0.1, "fraction of the patches that the memory keeps (section 3.2)", above=0, most=1)
        most: int = option(4000, "and at most so many", least=1)
        neighbours: int = option(9, "K of the re-weighted image score (equation 7); 1 turns re-weighting off", least=1)
        projection: int = option(128, "dimensions of the random projection in the search (section 3.2)", least=0)
        reservoir_mb: int = option(
            64, "memory for the patches that the coreset is chosen from; beyond it, a random sample", least=1
        )
        sigma_px: float = option(4.0, "Gaussian smoothing of the map (section 3.3)", least=0)
        seed: int = option(0, "of the reservoir and the coreset", least=0, most=2**63 - 1)

    config: Config
    memory_MD: Tensor
    company_MK: Tensor
    origin_M3: Tensor

    def __init__(self, config: Config, *, pretrained: bool = True) -> None:
        super().__init__(config, pretrained=pretrained)
        self.dim = self.embed.dim
        self.enlarge = Enlarge(self.grid, (config.size, config.size), config.sigma_px)
        self.register_buffer("memory_MD", torch.empty(0, self.dim))
        self.register_buffer("company_MK", torch.empty(0, 0, dtype=torch.long))  # nearest in memory, itself first
        # Where a row came from: which picture of `begin`'s pass, row and column of the grid. No number depends on it.
        self.register_buffer("origin_M3", torch.empty(0, 3, dtype=torch.int32))

    def begin(self, normals: Iterable[Batch]) -> None:
        if self.config.equalise:
            self.embed.measure(normals)
        # Of one seed and fed alike, the two draw alike: a patch and its origin stand in the same slot.
        reservoir, origin = Reservoir(self._room(), self.config.seed), Reservoir(self._room(), self.config.seed)
        pictures = 0
        for batch in normals:
            feat_BDhw = self.embed(batch.features or ())
            origin.add(_origins(pictures, feat_BDhw))
            reservoir.add(to_patches(feat_BDhw))
            pictures += len(feat_BDhw)
        patch_ND = reservoir.rows()
        kept = max(1, min(int(self.config.keep * reservoir.seen), self.config.most))
        row_M = k_centre(patch_ND, kept, seed=self.config.seed, projection=self.config.projection)
        self.memory_MD = patch_ND[row_M].clone()
        self.origin_M3 = origin.rows()[row_M].clone()
        self.company_MK = _company(self.memory_MD, min(self.config.neighbours, len(row_M)))

    def head(self, feats: tuple[Tensor, ...]) -> Prediction:
        patch_BPD = self.embed(feats).flatten(2).transpose(1, 2)
        near_BP, index_BP = nearest(patch_BPD, self.memory_MD)
        return Prediction(self.enlarge(near_BP.unflatten(1, self.grid)), self._score(patch_BPD, near_BP, index_BP))

    def _score(self, patch_BPD: Tensor, near_BP: Tensor, index_BP: Tensor) -> Tensor:
        """Equations 6 and 7: the strangest patch, weighted down where its neighbour in memory has rare company."""
        score_B1, worst_B1 = near_BP.max(dim=1, keepdim=True)
        if self.company_MK.shape[1] < 2:
            return score_B1[:, 0]
        patch_B1D = patch_BPD.gather(1, worst_B1[:, :, None].expand(-1, -1, self.dim))
        friend_B = index_BP.gather(1, worst_B1)[:, 0]
        gap_BK = (patch_B1D - self.memory_MD[self.company_MK[friend_B]]).square().sum(dim=-1).sqrt()
        return score_B1[:, 0] * (1 - gap_BK.softmax(dim=1)[:, 0])

    def closest(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The strangest patch of each picture, the row of the memory nearest to it, their distance: (B,) each.

        The patch is that of equation 6, counted row by row of the grid; the distance is not re-weighted.
        """
        patch_BPD = self.embed(self.backbone(image)).flatten(2).transpose(1, 2)
        near_BP, index_BP = nearest(patch_BPD, self.memory_MD)
        far_B1, worst_B1 = near_BP.max(dim=1, keepdim=True)
        return worst_B1[:, 0], index_BP.gather(1, worst_B1)[:, 0], far_B1[:, 0]

    def memory_note(self, pictures: int) -> str:
        patches = pictures * self.grid[0] * self.grid[1]
        pool = min(patches, self._room())
        kept = max(1, min(int(self.config.keep * patches), self.config.most, pool))
        taken = "all of them" if pool == patches else f"a random sample of {pool:,}"
        return (
            f"{patches:,} patches of {self.dim} numbers; coreset from {taken} "
            f"({pool * self.dim * 4 / 2**20:.0f} MB); memory of at most {kept:,} ({kept * self.dim * 4 / 2**20:.1f} MB)"
        )

    def _room(self) -> int:
        return max(1, self.config.reservoir_mb * 2**20 // (4 * self.dim))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # States of before it was there load too, and then no row knows where it came from.
        state_dict.setdefault(prefix + "origin_M3", torch.empty(0, 3, dtype=torch.int32))
        # The memory's length is known only once it is fitted.
        for key in ("memory_MD", "company_MK", "origin_M3"):
            setattr(self, key, torch.empty_like(state_dict[prefix + key]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def nearest(patch_BPD: Tensor, memory_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest row of the memory, and which one: (B, P), (B, P).

    The row is found by expanded norms, one matrix product; its distance is then computed directly, since expanded
    norms lose the small distances.
    """
    # The norms ride along as one more column: adding them to the whole product costs a third of the product itself.
    norm_M1 = memory_MD.square().sum(dim=1, keepdim=True)
    far_BPM = F.pad(patch_BPD, (0, 1), value=1.0) @ torch.cat([-2 * memory_MD, norm_M1], dim=1).T
    index_BP = far_BPM.argmin(dim=2)
    return (patch_BPD - memory_MD[index_BP]).square().sum(dim=2).sqrt(), index_BP


def _origins(first: int, feat_BDhw: Tensor) -> Tensor:
    """Picture (counted from `first`), row and column of each patch, in the order of `to_patches`: (B * h * w, 3)."""
    pictures, _, high, wide = feat_BDhw.shape
    ranges = (range(first, first + pictures), range(high), range(wide))
    return torch.cartesian_prod(*(torch.tensor(r, dtype=torch.int32, device=feat_BDhw.device) for r in ranges))


def _company(memory_MD: Tensor, neighbours: int) -> Tensor:
    """For every row of the memory its nearest rows, itself first (N_b of equation 7): (M, K)."""
    row_MD = memory_MD.double()  # expanded norms need the digits
    norm_M = row_MD.square().sum(dim=1)
    found = []
    for first in range(0, len(row_MD), 1024):
        part_LD = row_MD[first : first + 1024]
        gap_LM = norm_M - 2 * (part_LD @ row_MD.T)
        gap_LM[torch.arange(len(part_LD)), torch.arange(first, first + len(part_LD))] = -torch.inf
        found.append(gap_LM.topk(neighbours, largest=False).indices)
    return torch.cat(found)
