"""What a graph in int8 loses against the one in single precision: verdicts, I-AUROC, scores; and the gate on it.

Judged are good pictures that neither graph was made of, the same pictures with painted defects (seeded, so that they
are the same every time), and labelled pictures where there are any. Verdicts are counted over the painted and the
labelled ones: the good ones calibrated, so that theirs hardly flip whatever int8 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flawmap.errors import GateError
from flawmap.run.export import LEAST_SCALE, judged_alone
from flawmap.run.model import Model
from flawmap.run.progress import progress
from flawmap.types import Sample
from flawmap.verdict.metrics import auroc

PAINTED = 60  # at least so many pictures with painted defects, however few good ones there are
MOST_LOST = 0.01  # of the I-AUROC
MOST_FLIPPED = 0.05  # of the verdicts on painted and labelled pictures
# Of the defective ones that were stopped and pass in int8. Flips without a direction go either way alike, which is half
# of MOST_FLIPPED; below that, a drift towards OK is refused. Of 60 painted pictures one may pass, two may not.
MOST_ESCAPED = 0.02


@dataclass(frozen=True)
class Loss:
    good: int  # pictures
    painted: int
    labelled: int
    defective: int  # of the painted and labelled ones
    flips: int  # of the painted and labelled ones, each judged alone
    escapes: int  # of these flips: defective ones from NOK (or REVIEW) to OK
    alarms: int  # from OK to NOK
    auroc_painted: tuple[float, float]  # in single precision, in int8
    auroc_labelled: tuple[float, float] | None
    worst_score: float  # largest change of a score, in units of the scale

    @property
    def pictures(self) -> int:
        return self.good + self.painted + self.labelled

    @property
    def judged(self) -> int:
        """Those whose verdicts are counted."""
        return self.painted + self.labelled

    @property
    def lost(self) -> float:
        """Of the I-AUROC, where more is lost; below 0 where int8 is better."""
        return max(before - after for before, after in (self.auroc_painted, self.auroc_labelled or self.auroc_painted))

    @property
    def sentence(self) -> str:
        areas = f"I-AUROC on painted defects {self.auroc_painted[0]:.4f} -> {self.auroc_painted[1]:.4f}"
        if self.auroc_labelled:
            areas += f", on labelled pictures {self.auroc_labelled[0]:.4f} -> {self.auroc_labelled[1]:.4f}"
        return (
            f"int8 against fp32: {areas}; {self.flips} of {self.judged} verdicts flip ({self.alarms} OK to NOK), "
            f"{self.escapes} of {self.defective} defective pictures go from NOK or REVIEW to OK; "
            f"scores move by up to {self.worst_score:.2g} of their scale"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "pictures": self.pictures, "judged": self.judged, "lost": self.lost}


def gate(loss: Loss, most_lost: float = MOST_LOST, most_flipped: float = MOST_FLIPPED) -> None:
    """GateError: more of the I-AUROC is lost than is allowed, more verdicts flip, or more defective pictures pass."""
    if not loss.escapes <= MOST_ESCAPED * loss.defective:
        raise GateError(
            f"{loss.sentence}: at most {MOST_ESCAPED:.0%} of the defective pictures may, whatever --loss and --flips "
            "allow; nothing is written. Export in fp32"
        )
    # A score that is not a number makes `lost` one that is none, which is within nothing.
    if (
        not loss.lost <= most_lost + 1e-9
        or not loss.flips <= most_flipped * loss.judged
        or not loss.worst_score < math.inf
    ):
        raise GateError(
            f"{loss.sentence}: allowed are {most_lost:g} of the I-AUROC and {most_flipped:.0%} of the verdicts; "
            "nothing is written. Export in fp32, or allow more with --loss and --flips"
        )


def compare(ours: Model, theirs: Model, good: Sequence[Sample], labelled: Sequence[Sample] = ()) -> Loss:
    """`ours` in single precision, `theirs` in int8, each with its own calibration."""
    assert ours.calibration is not None
    draws = math.ceil(PAINTED / len(good))
    scores: dict[str, list[tuple[float, float]]] = {"good": [], "painted": [], "labelled": []}
    with progress("comparing", len(good) + len(labelled)) as tick:
        for place, sample in enumerate(good):
            first, *others = _with_painted(ours, theirs, sample, [(place, draw) for draw in range(draws)])
            scores["good"].append(first)
            scores["painted"] += others
            tick(place + 1)
        for place, sample in enumerate(labelled):
            scores["labelled"].append((ours.look(sample.source).score, theirs.look(sample.source).score))
            tick(len(good) + place + 1)
    pairs = np.array([pair for group in scores.values() for pair in group])
    turns = [
        tuple(str(judged_alone(score, m.calibration)) for score, m in zip(pair, (ours, theirs), strict=True))
        for pair in scores["painted"] + scores["labelled"]
    ]
    defective = [True] * len(scores["painted"]) + [not s.good for s in labelled]
    tested = _areas(scores["labelled"], [not s.good for s in labelled])
    painted = _areas(scores["good"] + scores["painted"], [False] * len(good) + [True] * len(scores["painted"]))
    assert painted is not None
    gaps = np.abs(pairs[:, 0] - pairs[:, 1]) / max(ours.calibration.scale, LEAST_SCALE)
    return Loss(
        good=len(good),
        painted=len(scores["painted"]),
        labelled=len(labelled),
        defective=sum(defective),
        flips=sum(a != b for a, b in turns),
        escapes=sum(a != b == "OK" for (a, b), bad in zip(turns, defective, strict=True) if bad),
        alarms=turns.count(("OK", "NOK")),
        auroc_painted=painted,
        auroc_labelled=tested,
        worst_score=float(gaps.max()),
    )


def _with_painted(
    ours: Model, theirs: Model, sample: Sample, seeds: Sequence[tuple[int, int]]
) -> Iterator[tuple[float, float]]:
    """Both scores of the picture, and of it with a defect in one of its tiles, one a seed."""
    from flawmap.synthesis import Synthesis

    view, paint = ours.intake.view(sample.source), Synthesis(anomalous=1.0)
    tiles = [tuple(_score(model, view.tile(n)) for model in (ours, theirs)) for n in range(len(view))]
    yield (max(a for a, _ in tiles), max(b for _, b in tiles))
    for seed in seeds:
        number = seed[1] * 7919 % len(view)  # another tile each time
        painted = paint(view.tile(number), seed).image
        others = [pair for n, pair in enumerate(tiles) if n != number]
        mine = (_score(ours, painted), _score(theirs, painted))
        yield (max([mine[0], *(a for a, _ in others)]), max([mine[1], *(b for _, b in others)]))


def _score(model: Model, image_3HW: np.ndarray) -> float:
    return float(model.engine(image_3HW[None]).score[0])


def _areas(pairs: Sequence[tuple[float, float]], labels: Sequence[bool]) -> tuple[float, float] | None:
    """None where only one kind is there. CalibrationError of the metrics where a score is not a number."""
    first, second = (auroc([pair[i] for pair in pairs], labels) if pairs else None for i in (0, 1))
    return None if first is None or second is None else (first, second)
