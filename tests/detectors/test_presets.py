"""fast, balanced and accurate: what they are, and that they cost what their names say (docs/presets.md)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create, detector_class
from flawmap.detectors.base import FrozenDetector
from flawmap.errors import UsageError

METHODS = ("patchcore", "padim", "simplenet")
PRESETS = ("fast", "balanced", "accurate")
EDGE = 256  # px, at which the smoothing of the defaults is 4


def _work(method: str, preset: str) -> int:
    """Operations of one picture, backbone and head, with a full memory."""
    detector = create(method, {"preset": preset}, pretrained=False).eval()
    assert isinstance(detector, FrozenDetector)
    if method == "patchcore":
        rows = int(dataclasses.asdict(detector.config)["most"])
        detector.memory_MD = torch.rand(rows, detector.embed.dim)
        detector.company_MK = torch.zeros(rows, 9, dtype=torch.long)
    size = detector.config.size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(torch.zeros(1, 3, size, size))
    return counter.get_total_flops()


@pytest.mark.parametrize("method", METHODS)
def test_balanced_is_the_defaults(method: str) -> None:
    cls = detector_class(method)
    assert cls.presets["balanced"]  # it says what fast and accurate change
    assert cls.configure({"preset": "balanced"}) == cls.configure({})


@pytest.mark.parametrize("method", METHODS)
def test_fast_costs_less_than_balanced_and_accurate_more(method: str) -> None:
    fast, balanced, accurate = (_work(method, preset) for preset in PRESETS)
    assert fast <= 0.6 * balanced
    assert balanced < accurate <= 6 * balanced


@pytest.mark.parametrize("method", METHODS)
def test_the_smoothing_keeps_its_width_on_the_part(method: str) -> None:
    for preset in PRESETS:
        config = dataclasses.asdict(detector_class(method).configure({"preset": preset}))
        assert config["sigma_px"] / config["size"] == pytest.approx(4 / EDGE)


@pytest.mark.parametrize("method", ["efficientad", "pouta", "draem"])
def test_a_trained_network_has_no_fast_and_says_what_it_has(method: str) -> None:
    with pytest.raises(UsageError, match=f"{method} has no preset 'fast'; there are: .*small"):
        detector_class(method).configure({"preset": "fast"})
