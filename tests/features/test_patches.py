"""Patches and maps against plain loops, torch's resize and scipy's Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from flawmap.features.patches import Embed, Enlarge, grid_of, to_patches
from flawmap.types import Batch


def _feat(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _mean_of_neighbours(feat_Chw: np.ndarray, p: int) -> np.ndarray:
    """Zeros beyond the border count."""
    C, h, w = feat_Chw.shape
    wide = np.zeros((C, h + p - 1, w + p - 1))
    wide[:, p // 2 : p // 2 + h, p // 2 : p // 2 + w] = feat_Chw
    return np.array(
        [[[wide[c, y : y + p, x : x + p].sum() / p**2 for x in range(w)] for y in range(h)] for c in range(C)]
    )


def _bilinear(map_hw: np.ndarray, H: int, W: int) -> np.ndarray:
    """Half-pixel centres; beyond the outer centres the border's value goes on."""

    def place(i: int, n: int, size: int) -> tuple[int, int, float]:
        at = min(max((i + 0.5) * n / size - 0.5, 0), n - 1)
        return int(at), min(int(at) + 1, n - 1), at - int(at)

    grown = np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            (y0, y1, v), (x0, x1, u) = place(y, map_hw.shape[0], H), place(x, map_hw.shape[1], W)
            above, below = (1 - u) * map_hw[[y0, y1], x0] + u * map_hw[[y0, y1], x1]
            grown[y, x] = (1 - v) * above + v * below
    return grown


def _block_means(feat_Chw: np.ndarray, h: int, w: int) -> np.ndarray:
    """Cell i is the mean of the rows [floor(i n / h), ceil((i + 1) n / h)), likewise in columns."""
    n, m = feat_Chw.shape[1:]
    rows = [slice(i * n // h, -(-(i + 1) * n // h)) for i in range(h)]
    columns = [slice(i * m // w, -(-(i + 1) * m // w)) for i in range(w)]
    return np.array([[[c[y, x].mean() for x in columns] for y in rows] for c in feat_Chw])


# finer than the grid by two (and by a crooked factor), the grid itself, coarser by two
SHAPES = ((2, 12, 16), (2, 9, 11), (3, 6, 8), (2, 3, 4))


def _slow(feats: tuple[torch.Tensor, ...], picture: int, neighbourhood: int) -> list[np.ndarray]:
    """One (C, h, w) a stage, resized only as far as the grid (6, 8) asks for before the mean of neighbours."""
    made = []
    for feat in (feat[picture].double().numpy() for feat in feats):
        fine = _block_means(feat, 6, 8) if feat.shape[1] > 6 else feat
        made.append(_mean_of_neighbours(fine, neighbourhood))
    return made


@pytest.mark.parametrize("neighbourhood", [1, 3, 5])
def test_embed_is_the_plain_loop(neighbourhood: int) -> None:
    feats = tuple(_feat(2, *shape, seed=seed) for seed, shape in enumerate(SHAPES))
    embed = Embed(SHAPES, (6, 8), neighbourhood)
    found = embed(feats).numpy()
    assert found.shape == (2, embed.dim, 6, 8) == (2, 9, 6, 8)
    for b in range(2):
        slow = [_bilinear(c, 6, 8) for stage in _slow(feats, b, neighbourhood) for c in stage]
        np.testing.assert_allclose(found[b], slow, atol=1e-6)


def test_each_stage_is_divided_by_the_deviation_of_all_its_channels() -> None:
    """The root of the summed variances of its channels, over all pixels of all pictures."""
    batches = [tuple(_feat(n, *shape, seed=n) * (5 + shape[1]) + 3 for shape in SHAPES) for n in (4, 4, 1)]
    embed = Embed(SHAPES, (6, 8), 3)
    before = embed(batches[0]).numpy()
    embed.measure([Batch(features=feats) for feats in batches])
    pictures = [_slow(feats, b, 3) for feats in batches for b in range(len(feats[0]))]
    slow = [np.sqrt(np.stack(stage).var(axis=(0, 2, 3)).sum()) for stage in zip(*pictures, strict=True)]
    np.testing.assert_allclose(embed.scale_S, slow, rtol=1e-5)
    channels = np.repeat(slow, [shape[0] for shape in SHAPES])[:, None, None]
    np.testing.assert_allclose(embed(batches[0]), before / channels, rtol=1e-5, atol=1e-6)


def test_a_stage_that_never_moves_keeps_its_scale() -> None:
    feats = (_feat(3, 2, 6, 8), torch.zeros(3, 2, 3, 4))
    embed = Embed(((2, 6, 8), (2, 3, 4)), (6, 8), 1)
    embed.measure([Batch(features=feats)])
    assert float(embed.scale_S[1]) == 1.0
    assert float(embed.scale_S[0]) != 1.0


def test_the_scales_are_part_of_the_saved_weights() -> None:
    embed, fresh = Embed(SHAPES, (6, 8), 3), Embed(SHAPES, (6, 8), 3)
    embed.measure([Batch(features=tuple(_feat(3, *shape) for shape in SHAPES))])
    fresh.load_state_dict(embed.state_dict())
    assert torch.equal(fresh.scale_S, embed.scale_S)


@pytest.mark.parametrize(
    ("stride", "grid"), [(1, (64, 64)), (4, (64, 64)), (5, (32, 32)), (8, (32, 32)), (16, (16, 16)), (99, (16, 16))]
)
def test_the_grid_is_that_of_the_finest_stage_not_finer_than_the_stride(stride: int, grid: tuple[int, int]) -> None:
    shapes = ((24, 64, 64), (40, 32, 32), (112, 16, 16))
    assert grid_of(shapes, 256, stride) == grid
    assert grid_of(shapes[::-1], 256, stride) == grid


def test_patches_come_picture_by_picture_and_row_by_row() -> None:
    feat = _feat(2, 5, 3, 4)
    patches = to_patches(feat)
    assert patches.shape == (24, 5)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                assert torch.equal(patches[b * 12 + y * 4 + x], feat[b, :, y, x])


@pytest.mark.parametrize(("grid", "size"), [((8, 8), (64, 64)), ((5, 7), (40, 33))])
def test_without_smoothing_enlarge_is_the_bilinear_resize(grid: tuple[int, int], size: tuple[int, int]) -> None:
    score = _feat(3, *grid)
    found = Enlarge(grid, size, 0.0)(score)
    torchs = F.interpolate(score[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, torchs, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[0].numpy(), _bilinear(score[0].numpy(), *size), atol=2e-6)


@pytest.mark.parametrize(("grid", "size"), [((8, 8), (64, 64)), ((5, 7), (40, 33))])
@pytest.mark.parametrize("sigma_px", [0.7, 4.0, 12.0])
def test_enlarge_is_scipys_gaussian_of_the_resize(
    grid: tuple[int, int], size: tuple[int, int], sigma_px: float
) -> None:
    score = _feat(2, *grid)
    found = Enlarge(grid, size, sigma_px)(score)
    for b in range(2):
        slow = gaussian_filter(_bilinear(score[b].numpy(), *size), sigma_px, mode="reflect", truncate=4.0)
        np.testing.assert_allclose(found[b].numpy(), slow, atol=2e-6)


def test_a_constant_grid_stays_constant() -> None:
    found = Enlarge((8, 8), (64, 64), 4.0)(torch.full((1, 8, 8), 3.5))
    torch.testing.assert_close(found, torch.full((1, 64, 64), 3.5))


def test_the_matrices_are_no_part_of_the_saved_weights() -> None:
    assert Enlarge((8, 8), (64, 64), 4.0).state_dict() == {}
