"""A part on its way through the line, and what its row in the ledger says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flawmap.errors import UsageError
from flawmap.station.ledger import Row, clean
from flawmap.station.recipes import Recipe
from flawmap.types import Inspection, Region

MOST_REGIONS = 50  # a view, in a row
MOST_TEXT = 500
MOST_REQUEST = 200


@dataclass(frozen=True)
class Picture:
    """One view as it came: a file's bytes."""

    name: str
    content: bytes


def _answer() -> Future[Row]:
    """One that who asked cannot cancel: others may wait for it, and the row is written all the same."""
    made: Future[Row] = Future()
    made.set_running_or_notify_cancel()
    return made


@dataclass
class Job:
    part: str
    views: Sequence[Picture]
    recipe: Recipe
    source: str
    request: str | None
    who: str
    challenge: bool = False
    begun: float = field(default_factory=time.monotonic)
    answer: Future[Row] = field(default_factory=_answer)
    found: Inspection | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    kept: bool = True  # whether its pictures are to be kept

    def __post_init__(self) -> None:
        self.part, self.request = clean(self.part), clean(self.request or "") or None
        if not self.part.strip() or len(self.part) > MOST_TEXT or len(self.request or "") > MOST_REQUEST:
            raise UsageError(
                f"a part has a name of 1 to {MOST_TEXT} characters, a request one of at most {MOST_REQUEST}"
            )
        if any(not isinstance(view.content, bytes) for view in self.views):
            raise UsageError(f"part {self.part!r}: a picture is given as the bytes of its file")

    @cached_property
    def bytes(self) -> int:
        return sum(len(view.content) for view in self.views)

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of every view."""
        return [hashlib.sha256(view.content).hexdigest() for view in self.views]

    def same(self, part: str, digests: Sequence[str], recipe: str | None = None) -> None:
        """UsageError: what stands under its request is another part, other pictures, or not by the recipe asked for."""
        if self.part != part or self.digests != list(digests) or (recipe or self.recipe.name) != self.recipe.name:
            raise UsageError(
                f"the request {self.request!r} was used for another part, other pictures or another recipe"
            )

    def judged(self, found: Inspection) -> dict[str, Any]:
        """The row of a verdict."""
        entry = self._common() | {"kind": "verdict", "verdict": str(found.verdict), "score": found.score}
        entry |= {"p_value": found.p_value, "threshold": found.threshold}
        views = zip(self._views(), found.scores, found.regions, strict=True)
        said = [view | {"score": float(s), "regions": [_region(r) for r in rs[:MOST_REGIONS]]} for view, s, rs in views]
        return entry | {"views": said}

    def failed(self, code: str, reason: str) -> dict[str, Any]:
        """The row of a part without a verdict."""
        self.found = None
        return self._common() | {"kind": "error", "code": code, "reason": reason, "views": self._views()}

    def _common(self) -> dict[str, Any]:
        recipe = self.recipe
        entry = {"part": self.part, "recipe": recipe.name, "bundle": recipe.bundle, "calibration": recipe.calibration}
        return entry | {"source": self.source, "request": self.request, "who": self.who or None}

    def _views(self) -> list[dict[str, Any]]:
        named = zip(self.views, self.digests, strict=True)
        said = ({"name": clean(v.name)[:MOST_TEXT], "sha256": sha256, "bytes": len(v.content)} for v, sha256 in named)
        return [{**view, "path": None, "note": ""} for view in said]


def _region(region: Region) -> dict[str, Any]:
    return {
        "box": region.box,
        "area_px": region.area_px,
        "area_mm2": region.area_mm2,
        "centroid": region.centroid,
        "peak": region.peak,
    }
