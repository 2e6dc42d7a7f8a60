"""What training will take: counted against a network whose work is known, and words that a person can act on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flawmap.detectors import create
from flawmap.run.estimate import Estimate, advice, estimate
from flawmap.types import Batch


def _batch(size: int) -> Batch:
    image = torch.rand(1, 3, size, size)
    return Batch(image=image, clean=image, mask=torch.zeros(1, size, size))


def test_the_detector_is_left_as_it_is() -> None:
    detector = create("pouta", {"width": 4, "size": 32, "window": 5, "norm": "batch"})
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    estimate(detector, _batch(32))
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for p in detector.parameters())


def test_work_and_memory_grow_as_the_network_does() -> None:
    small, wide, large = (
        estimate(create("pouta", {"width": width, "size": size, "window": 5}), _batch(size))
        for width, size in ((8, 64), (16, 64), (8, 128))
    )
    assert wide.gflop / small.gflop == pytest.approx(4, rel=0.1)  # channels in times channels out
    assert large.gflop / small.gflop == pytest.approx(4, rel=0.1)  # the windows of SSIM grow faster
    assert 1.5 < wide.memory_mb / small.memory_mb < 4
    assert 3 < large.memory_mb / small.memory_mb < 4.5
    assert all(found.step_s > 0 and found.peak > 0 for found in (small, wide, large))


def test_a_step_counts_three_times_the_forward_pass_of_eight_pictures() -> None:
    found = estimate(create("pouta", {"width": 16, "size": 128, "window": 13}), _batch(128))
    assert found.gflop == pytest.approx(3 * 8 * 2 * 0.72, rel=0.1)  # 0.72 G multiply-adds a picture


def test_a_cpu_is_told_what_to_do_when_training_would_take_days() -> None:
    detector = create("pouta", {"width": 4, "size": 32, "window": 5})
    slow = Estimate(steps=18_150, step_s=60, gflop=1700, memory_mb=9000, peak=100)
    words = advice(detector, slow, "cpu")
    assert "13 days on this CPU makes no sense" in words
    assert "--preset small (--width 16 --size 128 --steps 1500)" in words
    assert advice(detector, slow, "cuda") == ""
    assert advice(detector, replace(slow, step_s=0.3), "cpu") == ""


def test_the_sentence_says_time_speed_share_and_memory() -> None:
    words = Estimate(steps=1500, step_s=0.4, gflop=40, memory_mb=200.4, peak=1000).sentence(8)
    for part in (
        "about 0.4 s",
        "20.0 pictures a second",
        "10% of the 1000 GFLOP/s",
        "1500 steps about 10 min",
        "200 MB",
    ):
        assert part in words
    assert np.isfinite(Estimate(1, 1, 1, 1, 1).hours)
