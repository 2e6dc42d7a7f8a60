from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from flawmap.report.parts import Scored, by_part, doubt, picks, promised, reviews, shown
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
        ("good", 1, "OK"),
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


def test_by_a_review_threshold_parts_are_borderline_too_and_counted_by_kind():
    views = [*scored("good", [1.0, 1.52, 1.8]), *scored("crack", [1.49, 1.7, 3.0]), *scored(None, [1.6])]
    views = [v._replace(verdict=Verdict.REVIEW if 1.5 < v.score <= CALIBRATION.threshold else v.verdict) for v in views]
    parts = by_part(views)
    near = sorted(range(7), key=lambda i: min(abs(views[i].score - 1.5), abs(views[i].score - CALIBRATION.threshold)))
    assert picks(parts, CALIBRATION.threshold, 1.5)["borderline"] == near
    assert near[:2] == [3, 1]
    assert shown(parts, CALIBRATION.threshold, 4, 1.5) >= {1, 3}
    assert reviews(parts, 1.5) == (4, 7, "good 2, defective 1, unknown 1")
    assert reviews(parts, None) is None


@pytest.mark.parametrize("kinds", list(itertools.product(["good", None, "crack", "stain"], repeat=2)))
def test_a_parts_kind_is_that_of_the_metrics(kinds: tuple[str | None, str | None]):
    from flawmap.run import evaluate
    from flawmap.types import Sample

    views = [Scored(f"a{i}", "a", kind, 1.0 + i, Verdict.OK) for i, kind in enumerate(kinds)]
    told = [evaluate.Scored(Sample(Path(v.name), v.name, "a", "test", v.kind), v.score, 1.0) for v in views if v.kind]
    counted = evaluate._by_part(told)
    assert by_part(views)[0].kind == (counted[0].sample.kind if counted else None)


@pytest.mark.parametrize(
    ("policy", "notes", "words"),
    [
        ("false-alarm", [], None),
        ("cost", ["left out: a.png", "0 of the pictures were used to fit or calibrate this model: fine"], None),
        ("false-alarm", ["1 of the pictures was used to fit or calibrate this model: too good"], "(1 of the pictures"),
        ("cost", ["x", "38 of the pictures were used to fit or calibrate this model"], "(38 of the pictures"),
        ("manual", [], "chosen by hand"),
        ("f1-oracle", [], "F1 oracle"),
    ],
)
def test_a_threshold_read_off_the_parts_or_chosen_by_hand_is_doubted(policy: str, notes: list[str], words: str | None):
    found = doubt(policy, notes)
    assert (found is None) == (words is None)
    if found and words:
        assert words in found.said
        assert "promises nothing" in found.said
        assert "promises nothing" in found.label


def test_the_sentence_names_no_page_that_is_not_there():
    assert promised("At most 4.0 % by re-splitting (docs/promise.md).") == "At most 4.0\u202f% by re-splitting."
