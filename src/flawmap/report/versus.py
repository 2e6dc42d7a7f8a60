"""Two or more evaluations on the same parts as one HTML file: who lets what pass, and whether that can be told apart.

Plain values come in; the page only shows them. A run is known by its letter, its dashes and the shape of its mark,
never by colour alone (versus_plots.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from flawmap.report import versus_plots as plots
from flawmap.report.files import put
from flawmap.types import GOOD, Verdict

MOST_ROWS = plots.MOST_ROWS  # of parts whose verdict changed, a table


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` of `n` parts, with two-sided 95 % Clopper-Pearson bounds."""

    count: int
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """An AUROC, or a difference of two, with its 95 % interval by a bootstrap of parts; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    letter: str
    name: str
    method: str | None
    sentence: str | None  # the promise of its threshold
    policy: str | None
    threshold: float | None
    review_threshold: float | None
    escapes: Rate | None
    false_alarms: Rate | None
    reviews: int  # of the parts with a verdict
    reviews_good: int
    reviews_defective: int
    judged: int  # parts with a verdict
    undecided: int  # parts without a verdict
    part_auroc: Estimate
    picture_auroc: Estimate
    p_auroc: float | None
    pro: float | None
    seconds_per_picture: float | None
    protocol: str | None
    bundle_sha256: str | None
    pictures_sha256: str | None
    doubts: Sequence[str] = ()  # why its figures or verdicts look better than the line will be; sentences


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the parts of one class. Wrong is an escape or a false alarm; a part for review is neither."""

    group: str  # "defective" or "good"
    n: int  # parts with a verdict in both
    neither_wrong: int
    mended: int  # wrong before, not after
    to_review: int  # of these: for review after
    spoiled: int  # wrong after, not before
    both_wrong: int
    p: float  # exact McNemar
    least_p: float  # the least that so many changed parts could give


@dataclass(frozen=True, slots=True)
class Pair:
    """A run against the baseline, the first one."""

    before: str  # letters
    after: str
    sentence: str
    part_auroc: Estimate  # differences: after - before
    picture_auroc: Estimate
    changes: Sequence[Change]
    changed: Sequence[dict[str, Any]]  # part, kind, verdicts and scores before and after, effect; new mistakes first
    level: float = 0.05  # p is held against it, and intervals have the confidence 1 - level


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    n: int
    aurocs: Sequence[float | None]  # one a run, against all good parts
    escapes: Sequence[Rate | None]


class Part(NamedTuple):
    name: str
    kind: str | None
    scores: Sequence[float]  # one a run
    verdicts: Sequence[Verdict | None]


@dataclass(frozen=True, slots=True)
class Versus:
    runs: Sequence[Run]
    pairs: Sequence[Pair]
    kinds: Sequence[Kind]
    parts: Sequence[Part]
    pictures: int
    notes: Sequence[str]

    def count(self, good: bool | None) -> int:
        """Parts known to be good, known to be defective, or (None) of which nobody has said."""
        return sum(
            (p.kind is None) if good is None else p.kind is not None and (p.kind == GOOD) == good for p in self.parts
        )


def page(versus: Versus) -> str:
    """HTML that asks the network for nothing and has no script."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        share=plots.share, auroc=plots.auroc_text, signed=plots.signed, p=plots.p_value, score=plots.score
    )
    environment.filters["share_of"] = plots.share_of
    files = resources.files("flawmap.report")
    template, style = (files.joinpath(name).read_text(encoding="utf-8") for name in ("versus.html", "shared.css"))
    drawn = {"roc": plots.curves(versus), "ranks": [plots.ranks(versus, pair) for pair in versus.pairs]}
    drawn["thinned"] = [plots.thinned(versus.parts, pair) for pair in versus.pairs]
    return environment.from_string(template).render(
        v=versus,
        drawn=drawn,
        swatch=plots.swatch,
        whisker=plots.whisker,
        shared=Markup(style),
        most=MOST_ROWS,
        good=GOOD,
    )


def write(versus: Versus, path: Path) -> Path:
    """Write the page to `path`, whole or not at all. DataError where it cannot be written."""
    return put(page(versus), path)
