from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import roc_curve
from statsmodels.stats.proportion import proportion_confint

from flawmap.report import figures
from flawmap.report.figures import Costs, Known

RNG = np.random.default_rng(0)
sound, flawed = RNG.integers(0, 12, 60).astype(float), RNG.integers(6, 20, 45).astype(float)
known = Known(np.concatenate([sound, flawed]), np.array([False] * 60 + [True] * 45), np.arange(105))


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def drawn(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [node for node in root.iter() if node.get("class") == name]


def points(text: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split(",")] for pair in text.split()])


def axis(root: ElementTree.Element, name: str, at: np.ndarray) -> np.ndarray:
    low, high, start, end = map(float, root.get(f"data-{name}", "").split())
    return low + (at - start) / (end - start) * (high - low)


def test_the_curve_is_scikit_learns_roc():
    way = figures.curve(known)
    x, y, cuts = roc_curve(known.defect, known.scores, drop_intermediate=False)
    assert way.refused == pytest.approx(x)
    assert way.found == pytest.approx(y)
    assert way.cuts == pytest.approx(cuts[1:])


def test_the_spots_of_the_roc_are_its_points_on_a_logarithmic_axis():
    root = parse(figures.roc(known, (0.25, 0.75), "r"))
    spots = {int(node.get("data-p", -1)): node for node in drawn(root, "spot")}
    assert sorted(spots) == list(range(105))
    for i, node in spots.items():
        refused = (sound >= known.scores[i]).mean()
        at = np.array([float(node.get("cx", 0)), float(node.get("cy", 0))])
        assert axis(root, "y", at[1:]) == pytest.approx((flawed >= known.scores[i]).mean(), abs=2e-4)
        if refused:
            assert 10 ** axis(root, "x", at[:1]) == pytest.approx(refused, rel=2e-3)
        else:
            assert at[0] == float(root.get("data-x", "").split()[2]) - figures.ZERO


def test_the_band_is_made_of_clopper_pearson_bounds():
    root = parse(figures.roc(known, None, "r"))
    corners = axis(root, "y", points(drawn(root, "band")[0].get("points", ""))[:, 1])
    found = np.unique(figures.curve(known).found)
    low, high = proportion_confint(np.round(found * 45), 45, method="beta")
    expected = np.concatenate([np.where(found == 0, 0, low), np.where(found == 1, 1, high)])
    assert np.abs(corners[:, None] - expected[None]).min(axis=1).max() < 4e-4
    assert np.abs(corners[:, None] - expected[None]).min(axis=0).max() < 4e-4


def test_the_oracle_is_the_false_alarm_rate_at_no_escape():
    assert figures.no_escape(known) == ((sound >= flawed.min()).mean(), 1.0)
    root = parse(figures.roc(known, (0.25, 0.75), "r"))
    at = {name: drawn(root, f"op {name}")[0].get("transform", "") for name in ("calibrated", "oracle")}
    place = {name: np.array([float(v) for v in re.findall(r"[\d.]+", text)]) for name, text in at.items()}
    assert 10 ** axis(root, "x", place["calibrated"][:1]) == pytest.approx(0.25, rel=2e-3)
    assert axis(root, "y", place["calibrated"][1:]) == pytest.approx(0.75, abs=4e-4)
    assert axis(root, "y", place["oracle"][1:]) == pytest.approx(1, abs=4e-4)


@pytest.mark.parametrize("name", ["escapes", "alarms"])
def test_rates_between_two_scores_are_those_of_a_loop(name):
    root = parse(figures.rates(known, 8.0, "r"))
    corners = points(drawn(root, f"rate {name}")[0].get("points", ""))
    x, y = axis(root, "x", corners[:, 0]), axis(root, "y", corners[:, 1])
    for threshold in np.arange(-0.5, 20):
        expected = (flawed <= threshold).mean() if name == "escapes" else (sound > threshold).mean()
        assert np.interp(threshold, x, y) == pytest.approx(expected, abs=4e-3)


def test_the_least_cost_is_that_of_a_loop():
    costs = Costs(50, 2, 0.03)
    root = parse(figures.cost(known, None, costs, "c"))
    cuts = np.unique(known.scores)
    value = [50 * 0.03 * (flawed <= c).mean() + 2 * 0.97 * (sound > c).mean() for c in cuts]
    least = float(cuts[int(np.argmin(value))])
    ring = drawn(root, "best")[0]
    assert axis(root, "x", np.array([float(ring.get("cx", 0))])) == pytest.approx(least, abs=0.01)
    told = next(node.text or "" for node in root.iter("desc"))
    assert told.startswith(f"The least is {min(value):.4g}"[:20])


def test_a_defect_stands_at_its_size_and_score():
    some = Known(np.array([1.0, 3.0]), np.array([True, True]), np.array([4, 9]))
    root = parse(figures.sizes(some, np.array([10, 1000]), ["wrong", ""], 2.0, "s"))
    small, large = drawn(root, "mark wrong")[0], drawn(root, "mark")[0]
    assert (small.get("data-p"), large.get("data-p")) == ("4", "9")
    at = np.array([[float(v) for v in node.get("data-at", "").split()] for node in (small, large)])
    assert axis(root, "y", at[:, 1]) == pytest.approx([1, 3], abs=0.01)
    assert 10 ** axis(root, "x", at[:, 0]) == pytest.approx([10, 1000], rel=0.01)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_odd_input_still_makes_a_drawing(value):
    flat = Known(np.full(4, value), np.array([True, False, True, False]), np.arange(4))
    for svg in (
        figures.roc(flat, None, "a"),
        figures.rates(flat, value, "b"),
        figures.cost(flat, value, Costs(0, 0, 0), "c"),
        figures.sizes(flat, np.ones(4), ["wrong"] * 4, None, "d"),
        figures.training(np.full(3, value), "e"),
        figures.embedding(np.zeros((4, 2)), [-1, 0, 1, 2], [True] * 4, "f"),
    ):
        assert "nan" not in ElementTree.tostring(parse(svg), "unicode")


def test_the_cost_with_a_band_of_review_is_that_of_a_loop():
    costs, cuts = Costs(50, 2, 0.03, 0.4), np.arange(-0.5, 20, 0.5)
    found = costs.of(known, cuts, 8.0)
    for t, value in zip(cuts, found, strict=True):
        total = 0.0
        for s, bad in zip(known.scores, known.defect, strict=True):
            price = 50 if bad and s <= min(t, 8) else 2 if not bad and s > t else 0.4 if min(t, 8) < s <= t else 0
            total += price * (0.03 / 45 if bad else 0.97 / 60)
        assert value == pytest.approx(total)
    assert costs.of(known, cuts) == pytest.approx(Costs(50, 2, 0.03).of(known, cuts))


def test_what_goes_to_review_has_not_escaped():
    root = parse(figures.rates(known, 12.0, "r", 8.0))
    corners = points(drawn(root, "rate escapes")[0].get("points", ""))
    x, y = axis(root, "x", corners[:, 0]), axis(root, "y", corners[:, 1])
    for threshold in np.arange(-0.5, 20):
        assert np.interp(threshold, x, y) == pytest.approx((flawed <= min(threshold, 8)).mean(), abs=4e-3)
    for name, value in (("threshold", 12.0), ("review-line", 8.0)):
        assert axis(root, "x", np.array([float(drawn(root, name)[0].get("x1", 0))])) == pytest.approx(value, abs=0.01)


def test_a_part_for_review_is_neither_found_nor_an_escape():
    some = Known(np.array([1.0, 2.0, 3.0]), np.ones(3, bool), np.array([4, 5, 9]))
    root = parse(figures.sizes(some, np.array([10, 100, 1000]), ["wrong", "review", ""], 2.5, "s", 1.5))
    of = {name: drawn(root, name)[0].get("data-p") for name in ("mark wrong", "mark review", "mark")}
    assert of == {"mark wrong": "4", "mark review": "5", "mark": "9"}
    assert len(drawn(root, "review-line")) == 1
    assert next(node.text or "" for node in root.iter("desc")).endswith("1 escape. 1 go to review.")


def test_axes_of_scores_that_differ_in_their_last_digit_still_have_a_length():
    scores = 1e9 + np.arange(4) * 2e-6
    near = Known(scores, np.array([False, True, False, True]), np.arange(4))
    root = parse(figures.rates(near, None, "r"))
    low, high, *_ = map(float, root.get("data-x", "").split())
    assert low < scores[0] < scores[-1] < high
