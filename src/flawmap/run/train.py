"""The training loop, and checkpoints from which it goes on as if it had never stopped.

Every step seeds torch anew from (seed, step) and draws its pictures from (seed, epoch), so that nothing but weights,
buffers and the optimisers' state has to be carried over. A checkpoint is one safetensors file, written whole or not at
all; the log is only written with it, so that no logged step is ever repeated.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flawmap.detectors.base import Detector, Optimisers
from flawmap.errors import FlawmapError
from flawmap.run.recipe import Log
from flawmap.types import Batch

CHECKPOINT_S = 5.0  # seconds between two checkpoints


def train(
    detector: Detector,
    batch_of: Callable[[np.ndarray], Batch],
    pictures: int,
    *,
    seed: int,
    batch_size: int,
    checkpoint: Path,
    log: Log,
    tick: Callable[[int, float], None],
) -> None:
    """Asks for `detector.steps` losses. `batch_of(rows)` gives the batch of these pictures."""
    steps, optimisers = detector.steps, detector.optimisers(detector.steps)
    start = restore(detector, optimisers, checkpoint) if checkpoint.exists() else 0
    detector.train()
    pending: list[dict[str, Any]] = []
    saved = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(_mix(seed, step))
        loss, parts = detector.loss(batch_of(draw(pictures, batch_size, step, seed)))
        value = loss.item()
        if not math.isfinite(value):
            raise FlawmapError(f"the loss is {value} at step {step}: check the pictures and the options")
        for optimiser, _ in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser, schedule in optimisers:
            optimiser.step()
            if schedule is not None:
                schedule.step()
        pending.append({"event": "step", "step": step, "loss": value, **parts})
        tick(step + 1, value)
        if time.monotonic() - saved > CHECKPOINT_S or step + 1 == steps:
            save(detector, optimisers, step + 1, checkpoint)
            log.many(pending)
            pending, saved = [], time.monotonic()
    detector.eval()


def draw(pictures: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of a step: every epoch is a fresh shuffle, and batches run on across the end of an epoch."""
    first = step * batch_size
    rows = []
    for place in range(first, first + batch_size):
        epoch, index = divmod(place, pictures)
        rows.append(np.random.default_rng((seed, epoch)).permutation(pictures)[index])
    return np.array(rows)


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
        notes = json.loads(file.metadata()["flawmap"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
    detector.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for number, (optimiser, schedule) in enumerate(optimisers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser.{number}."):
                _, _, index, name = key.split(".", 3)
                state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": notes["groups"][number]})
        if schedule is not None:
            schedule.load_state_dict(notes["schedules"][number])
    return notes["step"]


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
