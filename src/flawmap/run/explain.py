"""What a POUTA network does inside, as plain arrays: features of a level, what each level finds, and Grad-CAM.

B images  C channels  H W pixels  h w sides of a level; levels 1 (fine) to 4 (coarse)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flawmap.detectors.pouta import POUTA, enlarged

STRANGEST = 0.01  # of the pixels: what they say is what Grad-CAM explains


@dataclass(frozen=True)
class Level:
    """The encoder's and the decoder's features of one level, (B, C, h, w), and where they differ, (B, h, w)."""

    encoded: np.ndarray
    decoded: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """1 - cosine of the two at every place, in [0, 2]."""
        dot = (self.encoded * self.decoded).sum(axis=1)
        norms = np.linalg.norm(self.encoded, axis=1) * np.linalg.norm(self.decoded, axis=1)
        return 1 - dot / np.maximum(norms, 1e-12)


def level(detector: POUTA, image_B3HW: np.ndarray, number: int) -> Level:
    """Level 4 is the pair around the mapping layer: the last before it and the first after it."""
    with torch.inference_mode():
        encoded, mapped = detector.encode(torch.from_numpy(image_B3HW))
        decoded, _ = detector.decode(mapped)
    return Level(encoded[number - 1].numpy(), decoded[number - 1].numpy())


def repaired(detector: POUTA, image_B3HW: np.ndarray) -> np.ndarray:
    """The reconstruction, (B, 3, H, W)."""
    with torch.inference_mode():
        return detector.decode(detector.encode(torch.from_numpy(image_B3HW))[1])[1].numpy()


def per_level(detector: POUTA, image_B3HW: np.ndarray) -> list[np.ndarray]:
    """(B, H, W) a level, fine to coarse: the probability that its own head sees (MSS), else its share of the map."""
    image = torch.from_numpy(image_B3HW)
    with torch.inference_mode():
        encoded, mapped = detector.encode(image)
        levels = detector.compare(encoded, detector.decode(mapped)[0])
        heads = detector.mss if detector.config.mss else detector.head
        logits = [enlarged(head(feat), image) for head, feat in zip(heads, levels, strict=True)]
        return [found.softmax(dim=1)[:, 1].numpy() for found in logits]


def grad_cam(detector: POUTA, image_B3HW: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the encoder's and of the decoder's features of a level, (B, H, W) each, at least 0.

    What is explained is the margin "not normal - normal" over the strangest pixels of each map; a channel weighs as
    much as the mean of its gradient (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2).
    """
    image = torch.from_numpy(image_B3HW)
    encoded, mapped = detector.encode(image)
    decoded, repaired_B3HW = detector.decode(mapped)
    logits = detector.locate(image, encoded, decoded, repaired_B3HW)
    margin_BP = (logits[:, 1] - logits[:, 0]).flatten(1)
    count = max(1, int(STRANGEST * margin_BP.shape[1]))
    wanted = margin_BP.topk(count, dim=1).values.mean(dim=1).sum()
    feats = encoded[number - 1], decoded[number - 1]
    grads = torch.autograd.grad(wanted, feats)
    encoder, decoder = (_cam(feat, grad, image) for feat, grad in zip(feats, grads, strict=True))
    return encoder, decoder


def _cam(feat: Tensor, grad: Tensor, image: Tensor) -> np.ndarray:
    cam_B1hw = (grad.mean(dim=(2, 3), keepdim=True) * feat).sum(dim=1, keepdim=True).relu()
    return F.interpolate(cam_B1hw, image.shape[-2:], mode="bilinear", align_corners=False)[:, 0].detach().numpy()
