"""The training loop, and checkpoints from which it goes on as if it had never stopped.

Every step seeds torch anew from (seed, step) and its pictures come from (seed, step) too, so that nothing but weights,
buffers and the optimisers' state has to be carried over. A checkpoint is one safetensors file, written whole or not at
all; the log is only written with it, so that no logged step is ever repeated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from flawmap.detectors.base import Detector, Optimisers
from flawmap.errors import FlawmapError
from flawmap.run import parallel
from flawmap.run.recipe import Log
from flawmap.types import Batch

CHECKPOINT_S = 5.0  # least seconds between two checkpoints
CHECKPOINT_SHARE = 0.02  # of the time may go into writing them


def train(
    detector: Detector,
    batches: Callable[[int], Iterable[Batch]],
    *,
    seed: int,
    checkpoint: Path,
    log: Log | None,
    tick: Callable[[int, float], None],
) -> None:
    """Asks for `detector.steps` losses. `batches(step)` gives the batches from that step on.

    Under torchrun every process has its share of a batch; the one of rank 0 alone has a `log`, and writes.
    """
    steps, optimisers = detector.steps, detector.optimisers(detector.steps)
    if detector.mixed_precision:  # convolutions are faster with the channels of a pixel side by side
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = restore(detector, optimisers, checkpoint) if checkpoint.exists() else 0
    detector.train()
    loss_of = parallel.spread(_Loss(detector))
    pending: list[dict[str, Any]] = []
    saved, wait = time.monotonic(), CHECKPOINT_S
    for step, batch in zip(range(start, steps), batches(start), strict=True):
        torch.manual_seed(_mix(seed, step))
        with precision(detector):
            loss, parts = loss_of(batch)
        value = parallel.mean(loss)
        if not math.isfinite(value):
            raise FlawmapError(f"the loss is {value} at step {step}: check the pictures and the options")
        for optimiser, _ in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser, schedule in optimisers:
            optimiser.step()
            if schedule is not None:
                schedule.step()
        if log is None:
            continue
        pending.append({"event": "step", "step": step, "loss": value, **parts})
        tick(step + 1, value)
        if time.monotonic() - saved > wait or step + 1 == steps:
            begun = time.monotonic()
            save(detector, optimisers, step + 1, checkpoint)
            log.many(pending)
            pending, saved = [], time.monotonic()
            wait = max(CHECKPOINT_S, (saved - begun) / CHECKPOINT_SHARE)
    detector.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    detector.eval()


class _Loss(nn.Module):
    """Torch spreads a module's forward over processes; ours is the loss."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.detector.loss(batch)


def precision(detector: Detector) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies its matrices, for those that say they bear it (benchmarks/step.py)."""
    device = next(detector.parameters()).device.type
    if not detector.mixed_precision or not _multiplies_bfloat16(device):
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)


def _multiplies_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def save(detector: Detector, optimisers: Optimisers, step: int, path: Path) -> None:
    tensors = {f"model.{key}": value for key, value in detector.state_dict().items()}
    notes: dict[str, Any] = {"step": step, "groups": [], "schedules": []}
    for number, (optimiser, schedule) in enumerate(optimisers):
        state = optimiser.state_dict()
        for index, values in state["state"].items():
            tensors.update({f"optimiser.{number}.{index}.{key}": torch.as_tensor(v) for key, v in values.items()})
        notes["groups"].append(state["param_groups"])
        notes["schedules"].append(schedule.state_dict() if schedule else None)
    temporary = path.with_suffix(".new")
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, {"flawmap": json.dumps(notes)})
    os.replace(temporary, path)


def restore(detector: Detector, optimisers: Optimisers, path: Path) -> int:
    """Loads a checkpoint and returns the step to go on with."""
    with safe_open(path, "pt") as file:
        notes = json.loads(file.metadata()["flawmap"], object_hook=_numbered)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
    detector.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for number, (optimiser, schedule) in enumerate(optimisers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser.{number}."):
                _, _, index, name = key.split(".", 3)
                state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": notes["groups"][number]})
        _lay_out(optimiser)
        if schedule is not None:
            schedule.load_state_dict(notes["schedules"][number])
    return notes["step"]


def _numbered(found: dict[str, Any]) -> dict[Any, Any]:
    """JSON makes text of keys that are numbers, such as the steps at which a learning rate falls."""
    return {int(key) if key.isdecimal() else key: value for key, value in found.items()}


def _lay_out(optimiser: optim.Optimizer) -> None:
    """Its state in the order of the weights in memory, as it was: in another one, sums round differently."""
    for weight, values in optimiser.state.items():
        for key, value in values.items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                values[key] = torch.empty_like(weight).copy_(value)


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
