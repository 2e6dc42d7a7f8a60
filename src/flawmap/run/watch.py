"""Looks at the test set while a network trains, for the one column that says BEST ON TEST.

Nothing is chosen by it: the model is that of the last step. The column shows what a table gains whose authors kept the
step that the test set liked best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flawmap.detectors.base import Detector
from flawmap.errors import UsageError
from flawmap.images.intake import Intake
from flawmap.run.feed import Feed
from flawmap.run.recipe import write_json
from flawmap.types import Sample
from flawmap.verdict.metrics import auroc


class Watch:
    """I-AUROC of the test pictures at `looks` moments of a training, the last step among them; kept in `folder`."""

    def __init__(self, samples: Sequence[Sample], looks: int, folder: Path) -> None:
        if looks < 1:
            raise UsageError(f"{looks} looks: at least 1")
        self.tested = [s for s in samples if s.split == "test" and s.kind is not None]
        self.looks, self.folder, self.path = looks, folder, folder / "looks.json"
        self._feed: Feed | None = None

    def due(self, done: int, steps: int) -> bool:
        """After `done` of `steps` steps."""
        return done * self.looks // steps > (done - 1) * self.looks // steps

    def look(self, detector: Detector, done: int, intake: Intake, device: str) -> None:
        """Leaves the detector in eval mode."""
        if self._feed is None:
            self._feed = Feed(detector, self.tested, intake, self.folder / "looks", device)
            self._feed.synthesis = None  # test pictures are not painted
            self._feed.prepare(detector)
        scores = [found.score for _, found in self._feed.predict(detector, range(len(self.tested)))]
        write_json(self.path, {**self.points(), str(done): auroc(scores, [not s.good for s in self.tested])})

    def points(self) -> dict[str, float | None]:
        """Step -> I-AUROC."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def best(self) -> tuple[float | None, int | None]:
        """The largest I-AUROC and its step, the first of equals; None where nothing was trained or can be told."""
        known = [(value, -int(step)) for step, value in self.points().items() if value is not None]
        value, step = max(known, default=(None, None))
        return value, None if step is None else -step
