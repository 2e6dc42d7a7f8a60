from __future__ import annotations

import numpy as np

from flawmap.report.parts import Scored, by_part, picks, shown
from flawmap.types import Verdict
from flawmap.verdict.calibration import Calibration

CALIBRATION = Calibration.from_good(
    [f"good/{i}" for i in range(40)], np.linspace(1, 2, 40).tolist(), np.linspace(2, 3, 40).tolist()
)


def scored(kind: str | None, scores: list[float]) -> list[Scored]:
    return [Scored(f"{kind}/{i}", f"{kind}/{i}", kind, s, CALIBRATION.verdict([s])) for i, s in enumerate(scores)]


def test_views_of_one_part_become_one_part():
    views = [
        Scored("a1", "a", "good", 1.0, Verdict.OK),
        Scored("a2", "a", "crack", 5.0, Verdict.NOK),
        Scored("b1", "b", "good", 1.0, Verdict.OK),
        Scored("b2", "b", "good", 1.4, Verdict.OK),
        Scored("c1", "c", "good", 1.0, Verdict.OK),
        Scored("c2", "c", None, 0.5, Verdict.OK),
    ]
    parts = {p.name: p for p in by_part(views)}
    assert [(p.kind, p.score, p.verdict) for p in parts.values()] == [
        ("crack", 5, "NOK"),
        ("good", 1.4, "OK"),
        (None, 1, "OK"),
    ]
    assert [p.views for p in parts.values()] == [(1, 0), (3, 2), (4, 5)]


def test_of_too_many_pictures_the_wrong_and_those_nearest_to_the_threshold_are_shown():
    views = [*scored("good", np.linspace(0, 1, 50).tolist()), *scored("crack", [0.5, *np.linspace(3, 4, 50)])]
    parts = by_part(views)
    kept = shown(parts, CALIBRATION.threshold, 11)
    assert kept == {50, *range(45, 50), *range(51, 56)}  # the escape; five below and five above
    assert shown(parts, CALIBRATION.threshold, 1000) == set(range(101))


def test_galleries_are_the_worst_and_the_closest():
    views = [*scored("good", [1.0, 2.5, 9.0, 1.9]), *scored("crack", [0.1, 1.0, 1.95, 3.0]), *scored(None, [2.0])]
    chosen = picks(by_part(views), CALIBRATION.threshold)
    assert chosen["escapes"] == [4, 5, 6]
    assert chosen["alarms"] == [2, 1]
    assert chosen["borderline"][:3] == sorted(range(9), key=lambda i: abs(views[i].score - CALIBRATION.threshold))[:3]
    assert picks(by_part(views), CALIBRATION.threshold, review=1.5)["escapes"] == [4, 5]


def test_a_part_that_a_person_reviews_is_not_wrong_and_a_mean_is_taken_where_it_is_asked_for():
    views = [Scored("a1", "a", "crack", 1.0, Verdict.REVIEW), Scored("a2", "a", "crack", 3.0, Verdict.REVIEW)]
    part = by_part(views, lambda scores: float(np.mean(scores)))[0]
    assert (part.score, part.verdict, part.wrong, part.views) == (2.0, "REVIEW", "", (1, 0))
