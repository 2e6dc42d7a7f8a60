"""Frozen features of all pictures on disk: computed once, in order, and picked up again after an interruption.

N pictures  B of them  C channels of a stage  h w its grid
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from flawmap.types import Batch

FLUSH = 32  # pictures between two marks of progress


class FeatureStore:
    """One memory-mapped file (N, C, h, w) float32 a stage, and a mark of how many pictures are in."""

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]], pictures: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.mark, self.pictures = folder / "done.json", pictures
        self.stages = [_open(folder / f"stage{i}.npy", (pictures, *shape)) for i, shape in enumerate(shapes)]
        self.done: int = json.loads(self.mark.read_text())["pictures"] if self.mark.exists() else 0

    def fill(self, image_of: Callable[[int], np.ndarray], features: Callable, tick: Callable[[int], None]) -> None:
        """Computes what is missing. `image_of(i)` is (3, H, W); `tick(i)` is told of every picture."""
        for i in range(self.done, self.pictures):
            for stage, feat in zip(self.stages, features(image_of(i)[None]), strict=True):
                stage[i] = feat[0]
            tick(i + 1)
            if (i + 1) % FLUSH == 0 or i + 1 == self.pictures:
                self._flush(i + 1)

    def _flush(self, done: int) -> None:
        for stage in self.stages:
            stage.flush()
        temporary = self.mark.with_suffix(".new")
        temporary.write_text(json.dumps({"pictures": done}))
        os.replace(temporary, self.mark)
        self.done = done

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        return Batch(features=tuple(torch.from_numpy(np.ascontiguousarray(stage[rows])) for stage in self.stages))


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap:
    if path.exists():
        stage = np.lib.format.open_memmap(path, mode="r+")
        if stage.shape == shape:
            return stage
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
