"""SimpleNet against its formulas in numpy: loss, statistics, pooling, score; and how it is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flawmap.detectors import create
from flawmap.detectors.simplenet import SimpleNet
from flawmap.errors import UsageError
from flawmap.types import Batch

DIM = 24 + 40 + 112


@pytest.fixture(scope="module")
def template() -> SimpleNet:
    return _simplenet(pretrained=False)


@pytest.fixture
def detector(template: SimpleNet) -> SimpleNet:
    return copy.deepcopy(template)


def _simplenet(pretrained: bool = False, **options: Any) -> SimpleNet:
    made = create("simplenet", {"size": 64, **options}, pretrained=pretrained)
    assert isinstance(made, SimpleNet)
    return made


def _feats(pictures: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Features of unequal scale: of dimension d it grows with d."""
    random = np.random.default_rng(seed)
    made = [random.normal(2, 1, size=(pictures, *shape)) for shape in ((24, 16, 16), (40, 8, 8), (112, 4, 4))]
    made = [feat * np.linspace(0.1, 3, feat.shape[1])[:, None, None] for feat in made]
    return tuple(torch.from_numpy(feat.astype(np.float32)) for feat in made)


def _patches(detector: SimpleNet, feats: tuple[torch.Tensor, ...]) -> np.ndarray:
    return detector.embed(feats).permute(0, 2, 3, 1).reshape(-1, DIM).double().numpy()


def _weights(detector: SimpleNet) -> Mapping[str, np.ndarray]:
    return {key: value.double().numpy().copy() for key, value in detector.state_dict().items()}


def _hidden(w: Mapping[str, np.ndarray], adapted: np.ndarray) -> np.ndarray:
    return adapted @ w["discriminator.0.weight"].T + w["discriminator.0.bias"]


def _judged(w: Mapping[str, np.ndarray], hidden: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    normal = (hidden - mean) / np.sqrt(variance + 1e-5) * w["discriminator.1.weight"] + w["discriminator.1.bias"]
    return np.where(normal > 0, normal, 0.2 * normal) @ w["discriminator.3.weight"][0]


def _noise(seed: int, rows: int) -> np.ndarray:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)).double().numpy()


def _adapted(w: Mapping[str, np.ndarray], patches: np.ndarray) -> np.ndarray:
    return (patches - w["mean_D"]) / w["scale"] @ w["adaptor.weight"].T + w["adaptor.bias"]


def test_the_loss_is_equation_6_with_the_noise_of_equation_4(detector: SimpleNet) -> None:
    feats = _feats(3)
    detector.begin([Batch(features=feats)])
    detector.train()
    w = _weights(detector)
    torch.manual_seed(7)
    loss, parts = detector.loss(Batch(features=feats))
    true = _adapted(w, _patches(detector, feats))
    hidden = _hidden(w, np.concatenate([true, true + 0.5 * _noise(7, len(true))]))
    # BatchNorm sees true and fake patches as one batch.
    judged = _judged(w, hidden, hidden.mean(0), hidden.var(0))
    good, fake = judged[: len(true)], judged[len(true) :]
    slow = np.mean([max(0.0, 0.5 - q) for q in good]) + np.mean([max(0.0, 0.5 + q) for q in fake])
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-5)
    assert parts == pytest.approx({"good_kept": np.mean(good > 0), "noise_found": np.mean(fake < 0)}, abs=1e-7)


def test_a_step_uses_some_of_its_patches_drawn_at_random() -> None:
    detector = _simplenet(patches=50).train()
    feats, w = _feats(3), _weights(detector)
    torch.manual_seed(7)
    loss, _ = detector.loss(Batch(features=feats))
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randperm(3 * 64, generator=generator)[:50].numpy()
    true = _adapted(w, _patches(detector, feats))[drawn]
    noise = torch.randn(50, DIM, generator=generator).double().numpy()
    hidden = _hidden(w, np.concatenate([true, true + 0.5 * noise]))
    judged = _judged(w, hidden, hidden.mean(0), hidden.var(0))
    slow = np.maximum(0, 0.5 - judged[:50]).mean() + np.maximum(0, 0.5 + judged[50:]).mean()
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-5)


def test_batch_norm_counts_true_and_fake_patches_once_together(detector: SimpleNet) -> None:
    feats = _feats(2)
    detector.train()
    before = _weights(detector)
    torch.manual_seed(3)
    detector.loss(Batch(features=feats))
    after, true = _weights(detector), _adapted(before, _patches(detector, feats))
    hidden = _hidden(before, np.concatenate([true, true + 0.5 * _noise(3, len(true))]))
    np.testing.assert_allclose(after["discriminator.1.running_mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after["discriminator.1.running_var"], 0.9 + 0.1 * hidden.var(0, ddof=1), rtol=1e-4)
    assert after["discriminator.1.num_batches_tracked"] == 1


def test_the_score_is_the_strangest_patch_and_the_map_its_grid(detector: SimpleNet) -> None:
    detector.begin([Batch(features=_feats(4))])
    detector.train()
    for seed in range(3):
        detector.loss(Batch(features=_feats(2, seed)))
    detector.eval()
    feats, w = _feats(3, seed=9), _weights(detector)
    running = w["discriminator.1.running_mean"], w["discriminator.1.running_var"]
    strange = -_judged(w, _hidden(w, _adapted(w, _patches(detector, feats))), *running).reshape(3, 8, 8)
    with torch.no_grad():
        found = detector.head(feats)
    np.testing.assert_allclose(found.score, strange.max((1, 2)), rtol=1e-4, atol=1e-5)
    grown = detector.enlarge(torch.from_numpy(strange.astype(np.float32)))
    torch.testing.assert_close(found.map, grown, rtol=1e-4, atol=1e-4)


def test_features_are_centred_and_divided_by_one_deviation_of_all(detector: SimpleNet) -> None:
    """One scale, the root of the mean variance, so that noise of one size is as loud in every feature."""
    batches = [_feats(n, seed) for seed, n in enumerate((8, 8, 3))]
    detector.begin([Batch(features=feats) for feats in batches])
    assert float(detector.embed.scale_S.min()) != 1
    patches = np.concatenate([_patches(detector, feats) for feats in batches])
    np.testing.assert_allclose(detector.mean_D, patches.mean(0), rtol=1e-5)
    assert float(detector.scale) == pytest.approx(np.sqrt(patches.var(0).mean()), rel=1e-5)


def test_features_that_never_move_keep_their_scale(detector: SimpleNet) -> None:
    detector.begin([Batch(features=tuple(torch.zeros_like(feat) for feat in _feats(4)))])
    assert (float(detector.scale), float(detector.mean_D.abs().max())) == (1.0, 0.0)
    assert torch.equal(detector.embed.scale_S, torch.ones(3))


def test_without_equalising_nothing_is_shifted_or_scaled() -> None:
    detector = _simplenet(equalise=False)
    detector.begin([Batch(features=_feats(4))])
    assert torch.equal(detector.mean_D, torch.zeros(DIM))
    assert float(detector.scale) == 1
    assert torch.equal(detector.embed.scale_S, torch.ones(3))


@pytest.mark.parametrize("width", [32, 100])
def test_features_are_pooled_to_the_width(width: int) -> None:
    """Adaptive average pooling: bin i is the mean of [floor(i D / W), ceil((i + 1) D / W))."""
    detector = _simplenet(width=width)
    feats = _feats(4)
    detector.begin([Batch(features=feats)])
    patches = _patches(detector, feats)
    pooled = np.stack([patches[:, i * DIM // width : -(-(i + 1) * DIM // width)].mean(1) for i in range(width)], axis=1)
    np.testing.assert_allclose(detector.mean_D, pooled.mean(0), rtol=1e-5)
    assert float(detector.scale) == pytest.approx(np.sqrt(pooled.var(0).mean()), rel=1e-5)
    assert detector.adaptor.weight.shape == (width, width)
    assert detector.eval().head(feats).map.shape == (4, 64, 64)


def test_two_optimisers_share_out_all_that_learns() -> None:
    """The authors' code: Adam for the discriminator at 2e-4, AdamW for the adaptor at 1e-4."""
    detector = _simplenet(rate=2e-4)
    (first, _), (second, _) = detector.optimisers(100)
    assert (type(first), type(second)) == (torch.optim.Adam, torch.optim.AdamW)
    settings = [
        (o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"], len(o.param_groups)) for o in (first, second)
    ]
    assert settings == [(2e-4, 1e-5, 1), (1e-4, 1e-2, 1)]
    held = [[id(p) for p in o.param_groups[0]["params"]] for o in (first, second)]
    assert sorted(held[0]) == sorted(id(p) for p in detector.discriminator.parameters())
    assert sorted(held[1]) == sorted(id(p) for p in detector.adaptor.parameters())
    assert sorted(held[0] + held[1]) == sorted(id(p) for p in detector.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in detector.backbone.parameters())


def test_training_finds_the_noise_and_leaves_the_backbone_alone(world: Path) -> None:
    detector = _simplenet(pretrained=True)
    photos = [np.array(Image.open(path)) for path in sorted((world / "train" / "good").glob("*.png"))[:4]]
    image = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    batch = Batch(features=detector.backbone(image))
    detector.begin([batch])
    detector.train()
    backbone = copy.deepcopy(detector.backbone.state_dict())
    optimisers = [optimiser for optimiser, _ in detector.optimisers(100)]
    torch.manual_seed(0)
    losses = []
    for _ in range(100):
        loss, parts = detector.loss(batch)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert min(parts.values()) > 0.8
    assert all(torch.equal(value, backbone[key]) for key, value in detector.backbone.state_dict().items())


def test_the_seed_decides_the_heads_first_weights() -> None:
    torch.manual_seed(11)
    first = _simplenet(seed=1)
    torch.manual_seed(12)
    same, other = _simplenet(seed=1), _simplenet(seed=2)
    assert torch.equal(first.adaptor.weight, same.adaptor.weight)
    assert all(map(torch.equal, first.discriminator.parameters(), same.discriminator.parameters()))
    assert not torch.equal(first.adaptor.weight, other.adaptor.weight)


@pytest.mark.parametrize("option", [{"hidden": 0}, {"noise": 0}, {"margin": 0}, {"neighbourhood": 4}])
def test_options_that_make_no_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        create("simplenet", option)
