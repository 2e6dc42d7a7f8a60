"""What training will take, said before it starts: a step is tried on a copy, on one picture, and counted."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors.base import Detector
from flawmap.run.train import precision
from flawmap.types import Batch

LONG_H = 12.0  # of training on a CPU: more makes no sense when a smaller network would do


@dataclass(frozen=True)
class Estimate:
    steps: int
    step_s: float
    gflop: float  # of a step
    memory_mb: float  # weights, gradients, the optimiser's state and what the gradient needs of the step
    peak: float  # GFLOP/s of this machine in a plain convolution

    @property
    def hours(self) -> float:
        return self.steps * self.step_s / 3600

    def sentence(self, batch_size: int) -> str:
        speed = self.gflop / self.step_s
        return (
            f"a step of {batch_size} pictures takes about {self.step_s:.2g} s ({batch_size / self.step_s:.1f} pictures "
            f"a second, {speed / self.peak:.0%} of the {self.peak:.0f} GFLOP/s that convolutions reach here), "
            f"{self.steps} steps about {_time(self.hours)}; memory about {self.memory_mb:.0f} MB"
        )


def estimate(detector: Detector, picture: Batch) -> Estimate:
    """`picture` is a batch of one. The detector is left as it is."""
    tried = copy.deepcopy(detector).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tried.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisers = tried.optimisers(max(1, detector.steps))
    weights = [p for p in tried.parameters() if p.requires_grad]
    weight_bytes = sum(p.numel() * p.element_size() for p in weights)

    def step() -> None:
        with precision(tried):
            loss = tried.loss(picture)[0]
        loss.backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as flops:
        step()
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    took = []
    for _ in range(2):
        begun = time.perf_counter()
        step()
        _wait(picture)
        took.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    for optimiser, _ in optimisers:
        optimiser.step()
    _wait(picture)
    size = detector.batch_size
    return Estimate(
        detector.steps,
        size * min(took) + time.perf_counter() - begun,
        size * flops.get_total_flops() / 1e9,
        (size * sum(kept.values()) + 4 * weight_bytes) / 2**20,
        peak_gflops(tried, str(picture.image.device)),
    )


def advice(detector: Detector, found: Estimate, device: str) -> str:
    """What to do where a CPU makes no sense for the chosen network; empty where it does."""
    if device != "cpu" or found.hours < LONG_H or "small" not in detector.presets:
        return ""
    small = detector.presets["small"]
    options = " ".join(f"--{name} {value}" for name, value in small.items() if name in ("width", "size", "steps"))
    return (
        f"\n{_time(found.hours)} on this CPU makes no sense: use a GPU (--device cuda), or a network made for a CPU "
        f"with --preset small ({options})"
    )


def peak_gflops(detector: Detector, device: str) -> float:
    """What a plain 3 x 3 convolution of 128 channels reaches here, in the precision that the detector is trained in."""
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(device)
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(8, 128, 56, 56, device=device).to(memory_format=torch.channels_last)
    took = []
    with torch.inference_mode(), precision(detector):
        for _ in range(4):
            begun = time.perf_counter()
            conv(image)
            _wait(Batch(image=image))
            took.append(time.perf_counter() - begun)
    return 2 * 8 * 56 * 56 * 128 * 128 * 9 / min(took) / 1e9


def _wait(batch: Batch) -> None:
    if batch.image.is_cuda:
        torch.cuda.synchronize()


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
