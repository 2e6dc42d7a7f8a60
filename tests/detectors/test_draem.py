"""DRAEM: its cost, and its losses against other libraries and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.draem import DRAEM, SSIM, focal, score
from flawmap.types import Batch


def test_the_two_networks_have_the_cost_of_the_authors_code() -> None:
    with torch.device("meta"):
        detector = DRAEM(DRAEM.configure({"size": 224})).eval()
        image = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector(image)
    parameters = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (detector.repair, detector.find)]
    assert parameters == pytest.approx([69.05, 28.37], abs=0.01)
    assert counter.get_total_flops() / 2e9 == pytest.approx(151.5, abs=0.3)


def test_small_draem_costs_what_small_pouta_costs() -> None:
    gmac = {}
    for method in ("draem", "pouta"):
        detector = create(method, {"preset": "small"}).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector(torch.zeros(1, 3, 128, 128))
        gmac[method] = counter.get_total_flops() / 2e9
    assert gmac["draem"] == pytest.approx(gmac["pouta"], rel=0.1)


def test_similarity_is_that_of_scikit_image() -> None:
    random = np.random.default_rng(0)
    first = random.random((40, 40, 3), dtype=np.float32)
    second = np.clip(first + random.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)
    _, whole = structural_similarity(
        first, second, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, truncate=3.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    inside = whole[5:-5, 5:-5].mean()  # our windows lie inside the picture
    ours = SSIM(40)(*(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()) for image in (first, second)))
    assert float(1 - ours) == pytest.approx(inside, abs=2e-5)


def test_similarity_of_a_picture_with_itself_costs_nothing() -> None:
    image = torch.rand(2, 3, 32, 32)
    assert float(SSIM(32)(image, image)) == pytest.approx(0, abs=1e-5)


def test_focal_loss_is_the_papers_sum_over_pixels() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 2, 5, 4), (torch.rand(2, 5, 4) > 0.6).float()
    total = 0.0
    for b in range(2):
        for y in range(5):
            for x in range(4):
                odds = np.exp(logits[b, :, y, x].double().numpy())
                p = odds[int(mask[b, y, x])] / odds.sum()
                total += -((1 - p) ** 2) * np.log(p)
    assert float(focal(logits, mask)) == pytest.approx(total / 40, rel=1e-5)


def test_the_score_is_the_largest_mean_of_a_window_with_nothing_beyond_the_border() -> None:
    random = np.random.default_rng(0)
    map = random.random((2, 9, 11))
    padded = np.pad(map, ((0, 0), (2, 2), (2, 2)))
    slow = [max(padded[b, y : y + 5, x : x + 5].sum() / 25 for y in range(9) for x in range(11)) for b in range(2)]
    assert score(torch.from_numpy(map), 5).tolist() == pytest.approx(slow)


def test_the_loss_is_reconstruction_against_the_clean_picture_and_focal_alone() -> None:
    detector = create("draem", {"width": 8, "size": 64}).eval()
    assert isinstance(detector, DRAEM)
    torch.manual_seed(0)
    clean, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64)
    mask[:, 5:20, 5:20] = 1
    image = torch.where(mask[:, None] > 0, 1 - clean, clean)
    repaired = detector.repair(image)
    logits = detector.find(torch.cat([repaired, image], dim=1))
    expected = (repaired - clean).square().mean() + detector.similarity(repaired, clean) + focal(logits, mask)
    total, parts = detector.loss(Batch(image=image, clean=clean, mask=mask))
    torch.testing.assert_close(total, expected)
    assert sum(parts.values()) == pytest.approx(total.item(), rel=1e-5)
