"""What is shown of a network is what the network computes: against slow loops and against its own output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flawmap.detectors import create
from flawmap.detectors.pouta import POUTA
from flawmap.run.explain import Level, grad_cam, level, per_level, repaired


def _pouta(**options: object) -> POUTA:
    detector = create("pouta", {"width": 8, "size": 64, "window": 5, **options}).eval()
    assert isinstance(detector, POUTA)
    return detector


IMAGE = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)


def test_the_difference_of_a_level_is_one_minus_the_cosine_at_every_place() -> None:
    random = np.random.default_rng(0)
    encoded, decoded = random.normal(size=(2, 1, 5, 3, 4))
    found = Level(encoded, decoded).difference
    for y in range(3):
        for x in range(4):
            a, b = encoded[0, :, y, x], decoded[0, :, y, x]
            assert found[0, y, x] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("number", "shape"), [(1, (8, 64, 64)), (2, (16, 32, 32)), (3, (32, 16, 16)), (4, (64, 8, 8))])
def test_a_level_is_the_pair_of_that_side(number: int, shape: tuple[int, ...]) -> None:
    found = level(_pouta(), IMAGE, number)
    assert found.encoded.shape == found.decoded.shape == (2, *shape)
    assert not np.array_equal(found.encoded, found.decoded)


def test_without_supervision_the_levels_add_up_to_the_map() -> None:
    detector = _pouta(mss=False)
    with torch.inference_mode():
        logits = []
        for place, head in enumerate(detector.head):
            others = [other for i, other in enumerate(detector.head) if i != place]
            saved = [(other.weight.clone(), None if other.bias is None else other.bias.clone()) for other in others]
            for other in others:
                other.weight.zero_()
                if other.bias is not None:
                    other.bias.zero_()
            logits.append(detector(torch.from_numpy(IMAGE)).map.numpy())
            for other, (weight, bias) in zip(others, saved, strict=True):
                other.weight.copy_(weight)
                if bias is not None:
                    other.bias.copy_(bias)
            assert head.weight.abs().sum() > 0
    for ours, alone in zip(per_level(detector, IMAGE), logits, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-6)


def test_with_supervision_every_level_speaks_through_its_own_head() -> None:
    detector = _pouta()
    before = per_level(detector, IMAGE)
    with torch.no_grad():
        detector.mss[2].bias += torch.tensor([0.0, 1.0])
    after = per_level(detector, IMAGE)
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False]
    assert all(found.shape == (2, 64, 64) for found in before)


def test_grad_cam_is_the_papers_sum_over_channels() -> None:
    detector, number = _pouta(), 3
    image = torch.from_numpy(IMAGE[:1])
    kept: dict[str, Tensor] = {}

    def hook(name: str):
        def keep(_: object, __: object, out: Tensor) -> None:
            out.retain_grad()
            kept[name] = out

        return keep

    detector.encoder[2].register_forward_hook(hook("encoder"))
    detector.decoder[2].register_forward_hook(hook("decoder"))
    encoded, mapped = detector.encode(image)
    decoded, fixed = detector.decode(mapped)
    logits = detector.locate(image, encoded, decoded, fixed)
    margin = (logits[0, 1] - logits[0, 0]).flatten()
    margin.sort(descending=True).values[: int(0.01 * 64 * 64)].mean().backward()
    for name, ours in zip(("encoder", "decoder"), grad_cam(detector, IMAGE[:1], number), strict=True):
        feat, grad = kept[name].detach()[0].numpy(), kept[name].grad
        assert grad is not None
        weight = grad[0].numpy().mean(axis=(1, 2))
        slow = np.maximum(sum(w * f for w, f in zip(weight, feat, strict=True)), 0)
        large = torch.nn.functional.interpolate(torch.from_numpy(slow)[None, None], (64, 64), mode="bilinear")[0, 0]
        np.testing.assert_allclose(ours[0], large.numpy(), rtol=1e-3, atol=1e-7)


def test_each_picture_of_a_batch_is_explained_alone() -> None:
    detector = _pouta()
    together, alone = grad_cam(detector, IMAGE, 2), grad_cam(detector, IMAGE[1:], 2)
    for both, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(both[1], one[0], rtol=1e-3, atol=1e-7)


def test_the_repaired_picture_is_what_the_loss_compares() -> None:
    detector = _pouta()
    fixed = torch.from_numpy(repaired(detector, IMAGE))
    assert fixed.shape == IMAGE.shape
    from flawmap.types import Batch

    image = torch.from_numpy(IMAGE)
    rebuilt = (fixed - image).square().mean() + detector.similarity(fixed, image)
    _, parts = detector.loss(Batch(image=image, clean=image, mask=torch.zeros(2, 64, 64)))
    assert parts["rebuilt"] == pytest.approx(float(rebuilt), rel=1e-4)
