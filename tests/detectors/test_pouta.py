"""POUTA: its published cost, its equations against slow words of the paper, and what training reaches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flawmap.detectors import create
from flawmap.detectors.pouta import POUTA
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
