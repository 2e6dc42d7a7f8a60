"""What each good picture is for: disjoint sets, cut by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flawmap.detectors.base import Detector
from flawmap.images.split import split
from flawmap.run.progress import say
from flawmap.run.recipe import CALIBRATION, CROSSED, FIT, SCALE, Recipe
from flawmap.types import Sample
from flawmap.verdict.rates import check_rate, least_parts, rank

SCALES = 0.1  # of the parts that fit, where the method scales its maps by pictures that it did not learn from
LEAST_TO_SCALE = 10  # with fewer parts none can be spared


@dataclass(frozen=True)
class Roles:
    of: Sequence[str]  # one a picture

    @property
    def crossed(self) -> bool:
        """Every picture fits, and is judged by a fit without its part."""
        return CROSSED in self.of

    def rows(self, *roles: str) -> list[int]:
        return [i for i, role in enumerate(self.of) if role in roles]

    @property
    def fitted(self) -> list[int]:
        return self.rows(FIT, CROSSED)

    @property
    def scaling(self) -> list[int]:
        """Those that `end` is shown: held out of learning, unless there are too few parts."""
        return self.rows(SCALE) or self.fitted


def roles(samples: Sequence[Sample], recipe: Recipe, detector: Detector) -> Roles:
    """CalibrationError: the false-alarm rate that was asked for takes more parts than can be held out."""
    parts = len({s.part for s in samples})
    if _crosses(parts, recipe, detector):
        _check(recipe, parts)
        return Roles([CROSSED] * len(samples))
    held: list[Sample] = []
    if parts >= 2 and recipe.held_out:
        _, held = split(samples, (1 - recipe.held_out, recipe.held_out), recipe.seed)
    _check(recipe, len({s.part for s in held}))
    kept = {s.name for s in held}
    left = [s for s in samples if s.name not in kept]
    scaling = _scaling(left, recipe.seed) if detector.needs_end else set()
    return Roles([CALIBRATION if s.name in kept else SCALE if s.name in scaling else FIT for s in samples])


def _scaling(samples: Sequence[Sample], seed: int) -> set[str]:
    parts = len({s.part for s in samples})
    if parts < LEAST_TO_SCALE:
        say(f"{parts} good parts are too few to spare one: the maps are scaled by the pictures that were learnt from")
        return set()
    _, apart = split(samples, (1 - SCALES, SCALES), seed)
    return {s.name for s in apart}


def _crosses(parts: int, recipe: Recipe, detector: Detector) -> bool:
    target = recipe.false_alarm or 0.01
    if not recipe.held_out or not detector.cross_fits or parts < 2:
        return False
    return int(parts * recipe.held_out) < least_parts(target, recipe.confidence)


def _check(recipe: Recipe, count: int) -> None:
    """Before anything is computed: whether so many parts can keep what was asked for."""
    if recipe.false_alarm is not None:
        rank(recipe.false_alarm, count, recipe.confidence)
    elif recipe.confidence is not None:
        check_rate(recipe.confidence, "the confidence")
