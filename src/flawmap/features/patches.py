"""Feature maps -> patch vectors, and a grid of patch scores -> a map in pixels.

B images  C channels of a stage  D channels of all stages  h w patch grid  H W pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed(feats: Sequence[Tensor], neighbourhood: int) -> Tensor:
    """Locally aware patch features (PatchCore section 3.1, SimpleNet section 3.1): (B, D, h, w).

    Each stage is averaged over its neighbourhood x neighbourhood patches (zeros beyond the border count, as in both
    papers' code), resized to the grid of the first stage, and joined.
    """
    pooled = [F.avg_pool2d(feat, neighbourhood, 1, neighbourhood // 2, count_include_pad=True) for feat in feats]
    grid = tuple(int(n) for n in pooled[0].shape[-2:])
    resized = [
        p if p.shape[-2:] == grid else F.interpolate(p, grid, mode="bilinear", align_corners=False) for p in pooled
    ]
    return torch.cat(resized, dim=1)


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
