"""Several processes that train one detector, as torchrun starts them: all compute, the one of rank 0 writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from flawmap.detectors.base import Detector
from flawmap.errors import UsageError

Net = TypeVar("Net", bound=nn.Module)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(detector: Detector, shared: bool) -> None:
    """UsageError: the processes cannot train it together as one would."""
    if world() == 1:
        return
    if not shared:
        raise UsageError(f"{detector.name} is not trained by several processes: start flawmap without torchrun")
    if any(isinstance(layer, nn.BatchNorm2d) for layer in detector.modules()):
        raise UsageError(
            f"{detector.name}: its batch norm counts over the pictures of a whole step, which several processes do not "
            "see: start flawmap without torchrun, or take pouta with norm instance"
        )
    if detector.batch_size % world():
        raise UsageError(f"{detector.batch_size} pictures a step cannot be shared by {world()} processes")


@contextmanager
def group(device: str) -> Iterator[None]:
    """The processes find each other, and part again."""
    if world() == 1:
        yield
        return
    kind = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(kind, timeout=timedelta(hours=12))  # one alone reads, exports and judges
    try:
        yield
    finally:
        distributed.destroy_process_group()


def own_device(device: str) -> str:
    """The GPU of this process among those of its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and world() > 1 else device


def same_path(path: Path | None, device: str) -> Path:
    """The path that rank 0 has, in all processes; they must share a disk."""
    if world() == 1:
        assert path is not None
        return path
    text = torch.zeros(4096, dtype=torch.uint8, device=device)
    if path is not None:
        coded = os.fsencode(path.resolve())
        text[: len(coded)] = torch.tensor(list(coded), dtype=torch.uint8)
    distributed.broadcast(text, 0)
    shared = Path(os.fsdecode(bytes(text.cpu().tolist()).rstrip(b"\0")))
    if not shared.exists():
        raise UsageError(f"{shared}: process {rank()} does not see this folder; torchrun needs a disk that all share")
    return shared


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        distributed.barrier()


def mean(loss: Tensor) -> float:
    """Over the processes, each with an equal share of the batch."""
    value = loss.detach().float()
    if world() > 1:
        value = value / world()
        distributed.all_reduce(value)
    return value.item()


def spread(network: Net) -> Net | nn.parallel.DistributedDataParallel:
    """Gradients are averaged over the processes."""
    return nn.parallel.DistributedDataParallel(network) if world() > 1 else network
