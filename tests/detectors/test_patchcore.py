"""PatchCore against brute force: distances, the re-weighted score of equation 7, and what the memory keeps.

The nets have random weights where nothing depends on what they know.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from flawmap.detectors import create
from flawmap.detectors.patchcore import PatchCore, nearest
from flawmap.errors import UsageError
from flawmap.types import Batch

PATCHES = 64  # of a picture of 64 px at stride 8
DIM = 24 + 40 + 112


@pytest.fixture(scope="module")
def template() -> PatchCore:
    detector = create("patchcore", {"size": 64, "reservoir_mb": 256, "most": 4000}, pretrained=False)
    assert isinstance(detector, PatchCore)
    return detector.eval()


def _feats(pictures: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(seed)
    shapes = ((24, 16, 16), (40, 8, 8), (112, 4, 4))
    return tuple(torch.from_numpy(random.normal(size=(pictures, *shape)).astype(np.float32)) for shape in shapes)


def _fitted(template: PatchCore, pictures: int = 6, **options: Any) -> PatchCore:
    detector = copy.deepcopy(template)
    detector.config = replace(template.config, **options)
    detector.begin([Batch(features=_feats(2, seed)) for seed in range(pictures // 2)])
    return detector


def test_nearest_is_brute_force() -> None:
    random = np.random.default_rng(0)
    patch = torch.from_numpy(random.normal(size=(2, 50, 30)).astype(np.float32))
    memory = torch.from_numpy(random.normal(size=(200, 30)).astype(np.float32))
    distance, index = nearest(patch, memory)
    slow = cdist(patch.flatten(0, 1).double(), memory.double())
    np.testing.assert_array_equal(index.flatten(), slow.argmin(1))
    np.testing.assert_allclose(distance.flatten(), slow.min(1), rtol=1e-6)


@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2])
def test_tiny_distances_are_not_lost_far_from_the_origin(gap: float) -> None:
    """Expanded norms of 1e5 in single precision know distances to about 0.1."""
    random = np.random.default_rng(1)
    memory = torch.from_numpy(random.normal(0, 30, size=(100, 150)).astype(np.float32))
    # Small beside the others, so that single precision holds the number and the gap.
    memory[:, 0] = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 0.01
    patch = memory.clone()[None]
    patch[..., 0] += gap
    distance, index = nearest(patch, memory)
    assert torch.equal(index[0], torch.arange(100))
    slow = np.linalg.norm(patch[0].double() - memory.double(), axis=1)
    np.testing.assert_allclose(distance[0], slow, rtol=1e-6)
    np.testing.assert_allclose(distance[0], gap, rtol=2e-3)


def test_a_patch_of_the_memory_is_at_distance_zero(template: PatchCore) -> None:
    detector = _fitted(template, keep=1.0)
    found = detector.head(_feats(2, seed=0))
    assert torch.equal(found.map, torch.zeros(2, 64, 64))
    assert torch.equal(found.score, torch.zeros(2))


def _slow_score(patch_PD: np.ndarray, memory_MD: np.ndarray, neighbours: int) -> float:
    """Equations 6 and 7, a patch and a memory row at a time."""
    worst, friend, strange = -1, -1, -1.0
    for p, patch in enumerate(patch_PD):
        gaps = [float(np.linalg.norm(patch - row)) for row in memory_MD]
        if min(gaps) > strange:
            worst, friend, strange = p, int(np.argmin(gaps)), min(gaps)
    company = sorted(range(len(memory_MD)), key=lambda m: float(np.linalg.norm(memory_MD[m] - memory_MD[friend])))
    gaps = [float(np.linalg.norm(patch_PD[worst] - memory_MD[m])) for m in company[:neighbours]]
    return (1 - np.exp(strange) / np.sum(np.exp(gaps))) * strange


@pytest.mark.parametrize("neighbours", [2, 9, 1000])
def test_the_score_is_that_of_equation_7(template: PatchCore, neighbours: int) -> None:
    detector = _fitted(template, neighbours=neighbours)
    feats = _feats(4, seed=100)
    patch_BPD = detector.embed(feats).flatten(2).transpose(1, 2).double().numpy()
    slow = [_slow_score(patch_PD, detector.memory_MD.double().numpy(), neighbours) for patch_PD in patch_BPD]
    np.testing.assert_allclose(detector.head(feats).score, slow, rtol=1e-5)


def test_one_neighbour_means_no_reweighting(template: PatchCore) -> None:
    detector = _fitted(template, neighbours=1)
    feats = _feats(4, seed=100)
    patch_BPD = detector.embed(feats).flatten(2).transpose(1, 2)
    slow = [cdist(patch_PD.double(), detector.memory_MD.double()).min(1).max() for patch_PD in patch_BPD]
    np.testing.assert_allclose(detector.head(feats).score, slow, rtol=1e-5)


def test_the_map_is_the_enlarged_grid_of_distances(template: PatchCore) -> None:
    detector = _fitted(template)
    feats = _feats(3, seed=100)
    patch_BPD = detector.embed(feats).flatten(2).transpose(1, 2)
    slow = np.stack([cdist(patch_PD.double(), detector.memory_MD.double()).min(1) for patch_PD in patch_BPD])
    grid = torch.from_numpy(slow.reshape(3, 8, 8).astype(np.float32))
    torch.testing.assert_close(detector.head(feats).map, detector.enlarge(grid), rtol=1e-5, atol=1e-5)


def test_a_rows_company_is_itself_and_then_its_nearest(template: PatchCore) -> None:
    detector = _fitted(template, keep=0.5, neighbours=5)
    memory = detector.memory_MD.double().numpy()
    slow = np.argsort(cdist(memory, memory), axis=1)[:, :5]
    np.testing.assert_array_equal(detector.company_MK, slow)
    np.testing.assert_array_equal(detector.company_MK[:, 0], np.arange(len(memory)))


def test_a_memory_of_more_than_1024_rows_has_the_same_company(template: PatchCore) -> None:
    """It is measured a block of 1024 at a time."""
    detector = _fitted(template, pictures=20, keep=1.0, neighbours=3)
    memory = detector.memory_MD.double().numpy()
    assert len(memory) == 20 * PATCHES
    np.testing.assert_array_equal(detector.company_MK, np.argsort(cdist(memory, memory), axis=1)[:, :3])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 0.1}, int(0.1 * 6 * PATCHES)),
        ({"keep": 1.0}, 6 * PATCHES),
        ({"keep": 0.5, "most": 50}, 50),
        ({"keep": 1e-6}, 1),
    ],
)
def test_the_memory_keeps_its_share_but_at_most_so_many(
    template: PatchCore, options: dict[str, Any], kept: int
) -> None:
    detector = _fitted(template, **options)
    assert detector.memory_MD.shape == (kept, DIM)
    assert detector.company_MK.shape == (kept, min(9, kept))
    rows = torch.cat([detector.embed(_feats(2, seed)).permute(0, 2, 3, 1).flatten(0, 2) for seed in range(3)])
    assert cdist(detector.memory_MD, rows).min(1).max() == 0
    assert f"memory of at most {kept:,} (" in detector.memory_note(6)


def test_beyond_the_reservoir_the_coreset_comes_from_a_sample(template: PatchCore) -> None:
    room = 2**20 // (4 * DIM)
    detector = _fitted(template, pictures=30, keep=1.0, reservoir_mb=1)
    assert len(detector.memory_MD) == room == 1489
    assert f"coreset from a random sample of {room:,} (1 MB)" in detector.memory_note(30)


def test_the_note_says_what_is_held(template: PatchCore) -> None:
    note = template.memory_note(1000)
    numbers = [float(n.replace(",", "")) for n in re.findall(r"[\d,]*\d(?:\.\d)?", note)]
    megabytes = [round(64_000 * DIM * 4 / 2**20), round(4000 * DIM * 4 / 2**20, 1)]
    assert numbers == [64_000, DIM, megabytes[0], 4000, megabytes[1]] == [64_000, 176, 43, 4000, 2.7]
    assert "coreset from all of them" in note


def test_a_state_of_another_length_is_taken_over(template: PatchCore) -> None:
    detector, fresh = _fitted(template, keep=0.3), _fitted(template, keep=0.05)
    assert len(detector.memory_MD) != len(fresh.memory_MD)
    fresh.load_state_dict(detector.state_dict())
    feats = _feats(2, seed=50)
    for ours, theirs in zip(fresh.head(feats), detector.head(feats), strict=True):
        assert torch.equal(ours, theirs)


def _recomputed(detector: PatchCore, feats: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What the memory should hold, from the origins alone, a row at a time: (M, D)."""
    found = detector.embed(feats)
    return torch.stack([found[picture, :, row, column] for picture, row, column in detector.origin_M3.tolist()])


@pytest.mark.parametrize(
    "options",
    [{"keep": 1.0}, {"keep": 0.1}, {"keep": 1.0, "reservoir_mb": 1}, {"keep": 0.3, "reservoir_mb": 1, "seed": 5}],
)
def test_every_row_knows_the_patch_it_came_from(template: PatchCore, options: dict[str, Any]) -> None:
    """Also where the reservoir has been overwritten: 30 pictures have 1,920 patches, 1 MB holds 1,489 of them."""
    detector = _fitted(template, pictures=30, **options)
    assert detector.origin_M3.dtype == torch.int32
    assert detector.origin_M3.shape == (len(detector.memory_MD), 3)
    assert len({tuple(origin) for origin in detector.origin_M3.tolist()}) == len(detector.memory_MD)
    feats = tuple(torch.cat(stage) for stage in zip(*(_feats(2, seed) for seed in range(15)), strict=True))
    torch.testing.assert_close(_recomputed(detector, feats), detector.memory_MD, rtol=1e-5, atol=1e-5)
    moved = detector.origin_M3.clone()
    moved[:, 2] = (moved[:, 2] + 1) % 8  # the neighbour to the right is another patch
    detector.origin_M3 = moved
    assert (_recomputed(detector, feats) - detector.memory_MD).norm(dim=1).min() > 0.1


def test_origins_do_not_depend_on_how_the_pictures_are_batched(template: PatchCore) -> None:
    feats = tuple(torch.cat(stage) for stage in zip(*(_feats(2, seed) for seed in range(3)), strict=True))
    whole, parts = copy.deepcopy(template), copy.deepcopy(template)
    whole.begin([Batch(features=feats)])
    parts.begin([Batch(features=tuple(f[:5] for f in feats)), Batch(features=tuple(f[5:] for f in feats))])
    # Equalising sums in another order, so the choice may differ where two are equally far: what they came from may not.
    for detector in (whole, parts):
        torch.testing.assert_close(_recomputed(detector, feats), detector.memory_MD, rtol=1e-5, atol=1e-5)


def test_the_closest_row_is_brute_force(template: PatchCore) -> None:
    detector = _fitted(template)
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cell_B, row_B, distance_B = detector.closest(image)
    patch_BPD = detector.embed(detector.backbone(image)).flatten(2).transpose(1, 2).double()
    for picture, patch_PD in enumerate(patch_BPD):
        gap_PM = cdist(patch_PD, detector.memory_MD.double())
        cell = int(gap_PM.min(1).argmax())
        assert (int(cell_B[picture]), int(row_B[picture])) == (cell, int(gap_PM[cell].argmin()))
        assert float(distance_B[picture]) == pytest.approx(gap_PM.min(1).max(), rel=1e-5)


def test_origins_survive_saving_and_a_state_without_them_loads(template: PatchCore) -> None:
    detector, fresh = _fitted(template), copy.deepcopy(template)
    fresh.load_state_dict(detector.state_dict())
    assert torch.equal(fresh.origin_M3, detector.origin_M3)
    old = {key: value for key, value in detector.state_dict().items() if key != "origin_M3"}
    fresh.load_state_dict(old)
    assert fresh.origin_M3.shape == (0, 3)
    assert "origin_M3" not in old
    feats = _feats(2, seed=50)
    assert torch.equal(fresh.head(feats).score, detector.head(feats).score)
    with pytest.raises(KeyError, match="memory_MD"):
        fresh.load_state_dict({key: value for key, value in old.items() if key != "memory_MD"})


@pytest.mark.parametrize("option", [{"keep": 0}, {"keep": 1.1}, {"most": 0}, {"neighbours": 0}, {"neighbourhood": 2}])
def test_options_that_make_no_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        create("patchcore", option)
