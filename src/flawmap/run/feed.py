"""What a detector is fed while it is fitted: pictures, or their frozen features when it has a head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from flawmap.detectors.base import Detector, FrozenDetector
from flawmap.images.decode import Intake
from flawmap.run.progress import progress
from flawmap.run.store import FeatureStore
from flawmap.types import Batch, Prediction, Sample

PASS = 8  # pictures in a batch of `begin`, `end` and scoring


class Feed:
    """Batches of samples by their row. Frozen features are computed on the first use of `prepare`."""

    def __init__(
        self, detector: Detector, samples: Sequence[Sample], intake: Intake, folder: Path, device: str
    ) -> None:
        self.samples, self.intake, self.device = samples, intake, device
        self.store: FeatureStore | None = None
        if isinstance(detector, FrozenDetector):
            self.store = FeatureStore(folder, detector.backbone.shapes, len(samples))

    def prepare(self, detector: Detector) -> None:
        if self.store is None or self.store.done == len(self.samples) or not isinstance(detector, FrozenDetector):
            return
        from flawmap.features.frozen import frozen

        features = frozen(detector.backbone, detector.config.size, self.device)
        with progress("features", len(self.samples)) as tick:
            self.store.fill(self.image, features, tick)

    def image(self, row: int) -> np.ndarray:
        """(3, H, W) float32 in [0, 1]"""
        return self.intake(self.samples[row].source)[0]

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        if self.store is not None:
            return _to(self.store.batch(rows), self.device)
        image_B3HW = torch.from_numpy(np.stack([self.image(int(row)) for row in rows]))
        return _to(Batch(image=image_B3HW, clean=image_B3HW), self.device)

    def one_pass(self, rows: Sequence[int]) -> Iterable[Batch]:
        return _Pass(self, rows)

    @torch.inference_mode()
    def predict(self, detector: Detector, rows: Sequence[int]) -> Iterator[tuple[int, Prediction]]:
        """Row and prediction of single pictures, (H, W) and (); from the stored features where there are any."""
        detector.eval()
        for first in range(0, len(rows), PASS):
            part = rows[first : first + PASS]
            batch = self.batch(part)
            if isinstance(detector, FrozenDetector) and batch.features is not None:
                found = detector.head(batch.features)
            else:
                found = detector(batch.image)
            for place, row in enumerate(part):
                yield row, Prediction(found.map[place].cpu().numpy(), float(found.score[place]))


class _Pass:
    """Batches in order; can be walked more than once."""

    def __init__(self, feed: Feed, rows: Sequence[int]) -> None:
        self.feed, self.rows = feed, rows

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), PASS):
            yield self.feed.batch(self.rows[first : first + PASS])


def _to(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    if batch.features is not None:
        return Batch(features=tuple(feat.to(device) for feat in batch.features))
    image = batch.image.to(device)
    return Batch(image=image, clean=image)
