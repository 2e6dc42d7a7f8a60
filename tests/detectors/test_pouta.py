"""POUTA: its published cost, its equations against slow words of the paper, and what training reaches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.pouta import POUTA, SUPERVISION
from flawmap.errors import UsageError
from flawmap.types import Batch


def _pouta(**options: object) -> POUTA:
    detector = create("pouta", {"width": 8, "size": 64, **options})
    assert isinstance(detector, POUTA)
    return detector.eval()


def _batch(size: int = 64, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    clean, mask = torch.rand(2, 3, size, size), torch.zeros(2, size, size)
    mask[0, 10:20, 5:30] = 1
    return Batch(image=torch.where(mask[:, None] > 0, 1 - clean, clean), clean=clean, mask=mask)


def _joined(detector: POUTA, image: Tensor) -> Tensor:
    """The map with the head in the paper's own order: enlarge, join, one 1 x 1 convolution."""
    encoded, mapped = detector.encode(image)
    levels = detector.compare(encoded, detector.decode(mapped)[0])
    size = image.shape[-2:]
    large = torch.cat([F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in levels], dim=1)
    weight = torch.cat([head.weight for head in detector.head], dim=1)  # type: ignore[union-attr]
    logits = F.conv2d(large, weight, detector.head[0].bias)  # type: ignore[union-attr]
    return logits.softmax(dim=1)[:, 1]


def _gmac(run: object, *inputs: Tensor) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*inputs)  # type: ignore[operator]
    return counter.get_total_flops() / 2e9


# ---- what the paper says of its cost


def test_the_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        trained, inferring = (POUTA(POUTA.configure({"mss": mss})) for mss in (True, False))
    assert sum(p.numel() for p in trained.parameters()) == 15_024_720
    assert sum(p.numel() for p in inferring.parameters()) == 15_023_752


def test_in_the_papers_order_it_has_the_published_number_of_multiply_adds_and_ours_has_less() -> None:
    with torch.device("meta"):
        detector = POUTA(POUTA.configure({})).eval()
        image = torch.empty(1, 3, 224, 224)
        assert _gmac(lambda image: _joined(detector, image), image) == pytest.approx(35.21, abs=0.01)
        assert _gmac(detector, image) == pytest.approx(35.17, abs=0.01)


def test_the_exported_graph_has_no_head_of_the_supervision() -> None:
    import onnx

    from flawmap.run.export import to_onnx

    sizes = {}
    for mss in (True, False):
        graph = onnx.load_from_string(to_onnx(_pouta(mss=mss, width=2, size=32, window=5))).graph
        sizes[mss] = sorted(tuple(tensor.dims) for tensor in graph.initializer)
        assert [tensor.name for tensor in graph.initializer if "mss" in tensor.name] == []
    assert sizes[True] == sizes[False]


# ---- the equations, against slow words of the paper


def test_the_head_is_the_papers_convolution_of_the_joined_and_enlarged_levels() -> None:
    detector, image = _pouta(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(detector(image).map, _joined(detector, image), rtol=1e-4, atol=1e-5)


def test_guidance_goes_from_coarse_to_fine_and_leaves_the_coarsest_level_as_it_is() -> None:
    detector, image = _pouta(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        encoded, mapped = detector.encode(image)
        decoded, _ = detector.decode(mapped)
        plain = [fcm(e, d) for fcm, e, d in zip(detector.fcm, encoded, decoded, strict=True)]
        expected = [plain[3]]
        for place in (2, 1, 0):  # W_sp * F_C * W_cn, each level by the refined one below it
            hsg = detector.hsg[place]
            large = F.interpolate(expected[0], scale_factor=2, mode="bilinear", align_corners=False)
            guide = F.relu(F.conv2d(large, hsg.guide.weight, hsg.guide.bias, padding=1))
            spatial = torch.sigmoid(F.conv2d(guide, hsg.places.weight, hsg.places.bias))
            pooled = guide.flatten(2).mean(dim=2)
            channel = torch.sigmoid(pooled @ hsg.channels.weight.flatten(1).T + hsg.channels.bias)
            expected.insert(0, spatial * plain[place] * channel[:, :, None, None])
        found = detector.compare(encoded, decoded)
    assert torch.equal(found[3], plain[3])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_decoder_levels_have_the_sides_and_channels_of_their_encoder_levels() -> None:
    detector = _pouta()
    encoded, mapped = detector.encode(torch.rand(1, 3, 64, 64))
    decoded, repaired = detector.decode(mapped)
    assert [tuple(f.shape[1:]) for f in encoded] == [(8, 64, 64), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [f.shape for f in decoded] == [f.shape for f in encoded]
    assert mapped.shape == (1, 64, 4, 4)
    assert repaired.shape == (1, 3, 64, 64)


def test_the_loss_is_the_sum_of_its_parts_with_the_papers_weights() -> None:
    detector, batch = _pouta(), _batch()
    encoded, mapped = detector.encode(batch.image)
    decoded, repaired = detector.decode(mapped)
    levels = detector.compare(encoded, decoded)

    def located(logits: Tensor) -> Tensor:
        probability = logits.softmax(dim=1)
        truth = torch.where(batch.mask > 0, probability[:, 1], probability[:, 0])
        return (-((1 - truth) ** 2) * truth.log()).mean() + (probability[:, 1] - batch.mask).abs().mean()

    def large(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)

    rebuilt = (repaired - batch.clean).square().mean() + detector.similarity(repaired, batch.clean)
    final = located(sum(large(head(f)) for head, f in zip(detector.head, levels, strict=True)))
    each = [located(large(head(f))) for head, f in zip(detector.mss, levels, strict=True)]
    expected = rebuilt + final + 0.4 * each[0] + 0.3 * each[1] + 0.2 * each[2] + 0.1 * each[3]
    total, parts = detector.loss(batch)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    assert sum(parts.values()) == pytest.approx(total.item(), rel=1e-5)
    assert SUPERVISION[0] == max(SUPERVISION) == 0.4


def test_the_repaired_picture_is_held_against_the_clean_one() -> None:
    detector, batch = _pouta(), _batch()
    _, parts = detector.loss(batch)
    _, other = detector.loss(Batch(image=batch.image, clean=batch.image, mask=batch.mask))
    assert parts["rebuilt"] != other["rebuilt"]
    assert parts["located"] == other["located"]


def test_what_is_located_teaches_encoder_and_decoder_too() -> None:
    detector, batch = _pouta(), _batch()
    encoded, mapped = detector.encode(batch.image)
    decoded, _ = detector.decode(mapped)
    detector._enlarged_sum(detector.head, detector.compare(encoded, decoded))[:, 1].sum().backward()
    for block in (detector.encoder[0], detector.mapping, detector.decoder[0]):
        weight = next(iter(block.parameters()))
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_the_rate_falls_to_a_fifth_at_four_fifths_and_again_at_nine_tenths() -> None:
    detector = _pouta(steps=50, rate=2e-4)
    [(adam, schedule)] = detector.optimisers(50)
    rates = []
    for _ in range(50):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        assert schedule is not None
        schedule.step()
    assert rates == pytest.approx([2e-4] * 40 + [4e-5] * 5 + [8e-6] * 5)


# ---- the switches of the ablation


def test_each_switch_takes_away_what_it_names() -> None:
    whole, no_mss, base, vanilla = (
        {name.split(".")[0] for name, _ in _pouta(**options).named_parameters()}
        for options in ({}, {"mss": False}, {"mss": False, "hsg": False}, {"reuse": False})
    )
    assert whole - no_mss == {"mss"}
    assert no_mss - base == {"hsg"}
    assert base - vanilla == {"fcm", "head"}
    assert vanilla - base == {"find"}


def test_supervision_changes_the_loss_and_not_what_is_found() -> None:
    image, batch = torch.rand(1, 3, 64, 64), _batch()
    with_mss, without = _pouta(), _pouta(mss=False)
    with_mss.load_state_dict(without.state_dict(), strict=False)
    assert torch.equal(with_mss(image).map, without(image).map)
    assert "supervised" in with_mss.loss(batch)[1]
    assert "supervised" not in without.loss(batch)[1]


@pytest.mark.parametrize(("norm", "kind"), [("instance", "InstanceNorm2d"), ("batch", "BatchNorm2d"), ("none", "")])
def test_the_norm_is_the_one_that_was_asked_for(norm: str, kind: str) -> None:
    found = {type(layer).__name__ for layer in _pouta(norm=norm).modules() if "Norm" in type(layer).__name__}
    assert found == ({kind} if kind else set())


def test_the_same_seed_gives_the_same_first_weights() -> None:
    first, again, other = (next(_pouta(seed=seed).parameters()) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 72}, "it must be a multiple of 16, such as 64"),
        ({"size": 80, "reuse": False}, "it must be a multiple of 32, such as 64|such as 96"),
        ({"size": 32, "reuse": False}, "it must be a multiple of 32, such as 64"),
        ({"window": 20}, "window is 20; it must be odd"),
        ({"window": 65}, "window is 65; it must be odd and at most 64"),
        ({"norm": "layer"}, "no norm 'layer'; there are: instance, none, batch"),
        ({"synthesis": "cutpaste"}, "no recipe 'cutpaste'; there are: pouta, draem, memseg"),
        ({"foreground": "left"}, "foreground is 'left'; give bright, dark"),
        ({"width": 1}, "width is 1; it must be at least 2"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _pouta(**options)
