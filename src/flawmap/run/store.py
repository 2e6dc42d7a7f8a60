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

from flawmap.run.ahead import ahead
from flawmap.types import Batch

FLUSH = 32  # pictures between two marks of progress


class FeatureStore:
    """One memory-mapped file (N, C, h, w) a stage, and a mark of how many pictures are in."""

    def __init__(
        self, folder: Path, shapes: Sequence[tuple[int, ...]], pictures: int, dtype: type[np.floating] = np.float32
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.mark, self.pictures = folder / "done.json", pictures
        self.done: int = json.loads(self.mark.read_text())["pictures"] if self.mark.exists() else 0
        mode = "r+" if self.done else "w+"  # without a mark, what lies there may be half a file
        self.stages = [
            np.lib.format.open_memmap(folder / f"stage{i}.npy", mode=mode, dtype=dtype, shape=(pictures, *shape))
            for i, shape in enumerate(shapes)
        ]

    def fill(self, image_of: Callable[[int], np.ndarray], features: Callable, tick: Callable[[int], None]) -> None:
        """Computes what is missing. `image_of(i)` is (3, H, W); `tick(i)` is told of every picture."""
        rows = range(self.done, self.pictures)
        for i, image in zip(rows, ahead(image_of, rows), strict=True):
            for stage, feat in zip(self.stages, features(image[None]), strict=True):
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
        """float32, whatever is on the disk."""
        return Batch(
            features=tuple(torch.from_numpy(stage[rows].astype(np.float32, copy=False)) for stage in self.stages)
        )
