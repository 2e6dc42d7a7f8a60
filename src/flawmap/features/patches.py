"""Feature maps -> patch vectors, and a grid of patch scores -> a map in pixels.

B images  C channels of a stage  D channels of all stages  h w patch grid  H W pixels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flawmap.types import Batch


class Embed(nn.Module):
    """Locally aware patch features (PatchCore section 3.1, SimpleNet section 3.1): feature maps -> (B, D, h, w).

    Stages finer than the grid are averaged down to it, each stage is averaged over its neighbourhood x neighbourhood
    patches (zeros beyond the border count, as in both papers' code), coarser ones are resized, and all are joined.

    Stages differ in scale by what their last layer happens to put out. `measure` finds each stage's deviation over good
    pictures, by which it is then divided, so that every stage weighs the same in a distance.
    """

    scale_S: Tensor

    def __init__(self, shapes: Sequence[tuple[int, ...]], grid: tuple[int, int], neighbourhood: int) -> None:
        super().__init__()
        self.grid, self.neighbourhood = grid, neighbourhood
        self.dim = sum(shape[0] for shape in shapes)
        self.register_buffer("scale_S", torch.ones(len(shapes)))

    def measure(self, normals: Iterable[Batch]) -> None:
        """Sets the scales: the root of each stage's summed channel variances."""
        count = 0
        total = [torch.zeros((), device=self.scale_S.device)] * len(self.scale_S)
        square = [torch.zeros((), device=self.scale_S.device)] * len(self.scale_S)
        for batch in normals:
            feats = self._pooled(batch.features or ())
            for stage, feat in enumerate(feats):
                total[stage] = total[stage] + feat.mean(dim=(2, 3)).double().sum(dim=0)
                square[stage] = square[stage] + feat.square().mean(dim=(2, 3)).double().sum(dim=0)
            count += len(feats[0])
        variance = [(q / count - (t / count).square()).clamp(min=0).sum() for q, t in zip(square, total, strict=True)]
        # A stage that never moves says nothing of good parts: leave its scale rather than blow it up.
        self.scale_S = torch.stack([v.sqrt() if v > 1e-12 else torch.ones_like(v) for v in variance]).to(self.scale_S)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """One (B, C, h, w) a stage -> (B, D, h, w)."""
        grown = [feat / self.scale_S[stage] for stage, feat in enumerate(self._pooled(feats))]
        return torch.cat([feat if feat.shape[-2:] == self.grid else self._resized(feat) for feat in grown], dim=1)

    def _resized(self, feat: Tensor) -> Tensor:
        return F.interpolate(feat, self.grid, mode="bilinear", align_corners=False)

    def _pooled(self, feats: Sequence[Tensor]) -> list[Tensor]:
        n = self.neighbourhood
        fine = [feat if feat.shape[-1] <= self.grid[1] else F.adaptive_avg_pool2d(feat, self.grid) for feat in feats]
        return [F.avg_pool2d(feat, n, 1, n // 2, count_include_pad=True) for feat in fine]


def grid_of(shapes: Sequence[tuple[int, ...]], size: int, stride: int) -> tuple[int, int]:
    """The patch grid: that of the finest stage whose patches stand at least `stride` pixels apart."""
    grids = sorted({(shape[1], shape[2]) for shape in shapes}, reverse=True)
    return next((grid for grid in grids if -(-size // grid[0]) >= stride), grids[-1])


def to_patches(feat_BDhw: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D), row by row."""
    return feat_BDhw.permute(0, 2, 3, 1).reshape(-1, feat_BDhw.shape[1])


class Enlarge(nn.Module):
    """A grid of patch scores -> the map: bilinear to the size in pixels, then a Gaussian of sigma_px.

    Both are linear and separable, so that the whole is one matrix for the rows and one for the columns: the same
    numbers in every engine, and no resize operator whose corners could be read in two ways.
    """

    rows_Hh: Tensor
    columns_wW: Tensor

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], sigma_px: float) -> None:
        super().__init__()
        self.register_buffer("rows_Hh", _matrix(grid[0], size[0], sigma_px), persistent=False)
        self.register_buffer("columns_wW", _matrix(grid[1], size[1], sigma_px).T.contiguous(), persistent=False)

    def forward(self, score_Bhw: Tensor) -> Tensor:
        """(B, h, w) -> (B, H, W)"""
        return self.rows_Hh @ score_Bhw @ self.columns_wW


def _matrix(n: int, size: int, sigma_px: float) -> Tensor:
    """(size, n): bilinear (half-pixel centres), then a Gaussian cut at 4 sigma with mirrored borders."""
    from scipy.ndimage import gaussian_filter1d

    eye = torch.eye(n, dtype=torch.float64)
    grown = F.interpolate(eye[None], size, mode="linear", align_corners=False)[0].T.numpy()
    if sigma_px > 0:
        grown = gaussian_filter1d(grown, sigma_px, axis=0, mode="reflect", truncate=4.0)
    return torch.from_numpy(grown).float()
