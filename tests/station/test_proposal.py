"""What operators' decisions propose: no change, a promise that the command keeps, nothing where they contradict."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import beta

from flawmap import cli
from flawmap.run.model import load
from flawmap.station.line import Line
from flawmap.station.proposal import CHOSEN, UNKNOWN, Decided, Proposal, propose, says_good, weighed
from flawmap.verdict.calibration import Calibration


def judged(line: Line, part: str, score: float, **other: Any) -> int:
    """A row as the line writes it, with a score of our choice."""
    recipe = line.recipes.active
    assert recipe.model.calibration
    row = {"kind": "verdict", "part": part, "recipe": recipe.name, "bundle": recipe.bundle, "score": score}
    row |= {"calibration": recipe.calibration, "verdict": str(recipe.model.calibration.verdict([score]))}
    return line.ledger.add(**{**row, "source": "http", **other})["seq"]


def say(line: Line, part: str, score: float, decision: str, **other: Any) -> int:
    seq = judged(line, part, score, **other)
    line.decide(seq, decision, "looked at it", "anna")
    return seq


def of(line: Line, flaw: Path) -> Proposal:
    return propose(line.ledger, line.recipes.active, flaw)


@pytest.fixture
def calibration(line: Line) -> Calibration:
    found = line.recipes.active.model.calibration
    assert found is not None
    return found


def test_without_decisions_nothing_is_proposed(line: Line, flaw: Path, calibration: Calibration) -> None:
    judged(line, "a", calibration.threshold * 2)
    found = of(line, flaw)
    assert (found.action, found.proposed, found.judged, found.promise) == ("none", None, 1, calibration.sentence)


def test_false_alarms_as_often_as_promised_change_nothing(line: Line, flaw: Path, calibration: Calibration) -> None:
    for number in range(60):
        judged(line, f"fine {number}", calibration.scores[0])
    say(line, "dusty", calibration.threshold * 1.1, "false alarm")
    found = of(line, flaw)
    assert (found.action, found.proposed, found.judged) == ("keep", None, 61)
    assert float(beta.ppf(0.025, 1, 61)) < calibration.promise  # type: ignore[operator]
    assert "1 of 61 parts" in found.words


def test_more_false_alarms_than_promised_raise_it_above_the_highest(
    line: Line, flaw: Path, calibration: Calibration
) -> None:
    t = calibration.threshold
    for number in range(12):
        say(line, f"dusty {number}", t * (1.01 + number / 100), "false alarm")
    say(line, "broken", t * 3, "really bad")
    found = of(line, flaw)
    assert found.action == "raise"
    assert found.proposed is not None
    assert t * 1.12 < found.proposed < t * 1.14
    assert all(d.score <= found.proposed for d in found.good)
    assert all(d.score > found.proposed for d in found.bad)
    assert CHOSEN in found.cautions
    assert UNKNOWN not in found.cautions


def test_a_higher_threshold_without_a_known_defect_is_proposed_with_a_warning(
    line: Line, flaw: Path, calibration: Calibration
) -> None:
    for number in range(12):
        say(line, f"dusty {number}", calibration.threshold * 1.1, "false alarm")
    found = of(line, flaw)
    assert found.action == "raise"
    assert found.cautions[0] == UNKNOWN


def test_where_a_good_part_scores_above_a_bad_one_no_threshold_is_proposed(
    line: Line, flaw: Path, calibration: Calibration
) -> None:
    for number in range(12):
        say(line, f"dusty {number}", calibration.threshold * 1.5, "false alarm")
    say(line, "broken", calibration.threshold * 1.2, "agreed")
    found = of(line, flaw)
    assert (found.action, found.proposed) == ("none", None)
    assert "no threshold passes all good parts" in found.words


def test_a_bad_part_that_passed_lowers_it_to_just_below(line: Line, flaw: Path, calibration: Calibration) -> None:
    passed = calibration.threshold * 0.98
    say(line, "cracked", passed, "really bad")
    say(line, "broken", calibration.threshold * 2, "really bad")
    found = of(line, flaw)
    assert found.action == "lower"
    assert found.proposed is not None
    assert passed * 0.99 < found.proposed < passed
    # None of two passes below the lowest: Beta(1, 2), whose 95 % point is 1 - 0.05^(1/2).
    assert "at most 77.7 %" in found.words


def test_the_command_writes_the_promise_that_is_shown(
    line: Line, flaw: Path, calibration: Calibration, tmp_path: Path
) -> None:
    say(line, "cracked", calibration.threshold * 0.98, "really bad")
    before = flaw.read_bytes()
    bundle = tmp_path / "a bundle.flaw"
    bundle.write_bytes(before)
    found = of(line, bundle)
    words = shlex.split(found.commands[0])
    assert words[0] == "flawmap"
    assert cli.main(words[1:]) == 0
    made = load(tmp_path / "a bundle-new.flaw").calibration
    assert made is not None
    assert (made.sentence, made.threshold) == (found.promise, found.proposed)
    assert bundle.read_bytes() == before


def test_it_changes_nothing(line: Line, flaw: Path, calibration: Calibration) -> None:
    say(line, "cracked", calibration.threshold * 0.98, "really bad")
    head = line.ledger.head()
    found = of(line, flaw)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["about"] == "a proposal: nothing was changed"
    assert tuple(told["ledger"]) == head == line.ledger.head()
    assert line.recipes.active.model.calibration is calibration


def test_the_newest_decision_on_a_part_counts(line: Line, flaw: Path, calibration: Calibration) -> None:
    seq = say(line, "a", calibration.threshold * 1.2, "really bad")
    line.decide(seq, "false alarm", "only dust", "ben")
    found = of(line, flaw)
    assert [(d.part, d.good, d.who) for d in (*found.good, *found.bad)] == [("a", True, "ben")]


def test_a_part_judged_several_times_counts_once_by_its_worst_score(
    line: Line, flaw: Path, calibration: Calibration
) -> None:
    t = calibration.threshold
    for share in (1.2, 1.4, 1.3):
        say(line, "good one", t * share, "false alarm")
        say(line, "bad one", t * share, "really bad")
    found = of(line, flaw)
    assert [d.score for d in found.good] == [t * 1.4]
    assert [d.score for d in found.bad] == [t * 1.2]


def test_what_another_calibration_or_bundle_judged_is_left_out(
    line: Line, flaw: Path, calibration: Calibration
) -> None:
    say(line, "a", calibration.threshold * 0.5, "really bad", calibration="0" * 64)
    say(line, "b", calibration.threshold * 0.5, "really bad", bundle="0" * 64)
    judged(line, "challenge good: 1", calibration.scores[0], source="challenge")
    found = of(line, flaw)
    assert (found.action, found.good, found.bad, found.judged) == ("none", (), (), 0)


@pytest.mark.parametrize(
    ("decision", "verdict", "good"),
    [
        ("false alarm", "NOK", True),
        ("really bad", "OK", False),
        ("agreed", "OK", True),
        ("agreed", "NOK", False),
        ("agreed", "REVIEW", None),
    ],
)
def test_what_a_decision_says_of_the_part(decision: str, verdict: str, good: bool | None) -> None:
    assert says_good({"code": decision, "verdict": verdict}) is good


def test_a_bad_part_in_the_band_for_review_has_not_passed(calibration: Calibration) -> None:
    t = calibration.threshold
    banded = replace(calibration, review_threshold=0.8 * t)
    bad = Decided("cracked", False, 0.9 * t, 1, "really bad", "", "anna")
    assert weighed(banded, [], [bad], 1)[0] == "keep"
    assert weighed(calibration, [], [bad], 1)[0] == "lower"
