from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flawmap.errors import BundleError, CalibrationError
from flawmap.types import Verdict
from flawmap.verdict.calibration import Calibration
from flawmap.verdict.metrics import f1_max
from flawmap.verdict.parts import Parts, by_part
from flawmap.verdict.policies import Costs, by_kind, cheapest, cost, f1_oracle, manual, no_escape

SCORES = st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=25)


def parts(scores, kinds=(), **how) -> Parts:
    names = [f"part-{i}" for i in range(len(scores))]
    return by_part(names, scores, [2 * s for s in scores], kinds, **how)


GOOD = parts([float(i) for i in range(1, 28)])
BAD = parts([20.0, 26.5, 30.0, 31.0, 40.0], ["dent", "cut", "dent", "cut", "ink"])


# no-escape


def test_no_known_defect_escapes_and_the_sentence_says_what_that_is_worth():
    made = no_escape(GOOD, BAD)
    assert made.threshold == pytest.approx(20 - 1e-3 * 20)
    assert all(made.verdict([score]) is Verdict.NOK for score in made.defect_scores)
    assert (made.refused, made.rank) == (8, 9)
    assert made.escape_bound == pytest.approx(1 - 0.05 ** (1 / 5))
    assert made.bound == pytest.approx(stats.beta.ppf(0.95, 9, 19))
    assert made.sentence == (
        "5 known defective parts set the threshold: with 95 % confidence at most 45.1 % of defective parts like these "
        "escape (16.7 % on average); 8 of 27 good parts are above it, so 13.7 % to 50.2 % of good parts are refused "
        "(95 %); each of the 3 kinds left out in turn, 1 would have had escapes (dent): nothing is promised for kinds "
        "that are not among them."
    )


def test_a_kind_left_out_is_judged_by_the_others():
    assert by_kind(GOOD, BAD) == {
        "cut": (0, 2, pytest.approx(19.98)),
        "dent": (1, 2, pytest.approx(26.4735)),
        "ink": (0, 1, pytest.approx(19.98)),
    }
    assert by_kind(GOOD, parts([1.0, 2.0], ["cut", "cut"])) == {}
    assert "all of one kind: nothing is promised for others" in no_escape(GOOD, parts([30.0], ["cut"])).sentence


def test_a_margin_lowers_the_threshold_by_its_share_of_the_way_to_the_median_good_part():
    assert no_escape(GOOD, BAD, margin=0.5).threshold == pytest.approx(20 - 0.5 * (20 - 14))
    assert no_escape(GOOD, BAD, margin=1.0).threshold == pytest.approx(14)
    with pytest.raises(CalibrationError, match="share of the way"):
        no_escape(GOOD, BAD, margin=1.5)


@settings(deadline=None)
@given(SCORES, SCORES, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_never_lets_more_defects_pass(good, bad, one, other):
    low, high = (no_escape(parts(good), parts(bad), margin=m) for m in sorted((one, other)))
    assert high.threshold <= low.threshold < min(bad)
    assert high.refused >= low.refused


# cost


def _slow(good, bad, costs: Costs) -> float:
    """The least cost over every pair of thresholds there can be."""
    values = sorted({*good, *bad})
    cuts = [values[0] - 1, *values]
    best = np.inf
    for low, high in product(cuts, cuts) if costs.review is not None else zip(cuts, cuts, strict=True):
        if low > high:
            continue
        escape = np.mean([d <= low for d in bad])
        reject = np.mean([g > high for g in good])
        look = [np.mean([low < s <= high for s in group]) for group in (bad, good)]
        rate, review = costs.defect_rate, costs.review or 0.0
        total = rate * (costs.escape * escape + review * look[0])
        total += (1 - rate) * (costs.reject * reject + review * look[1])
        best = min(best, total)
    return best


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES, st.floats(0.1, 100), st.floats(0.1, 10), st.floats(0.001, 0.9), st.none() | st.floats(0.01, 10))
def test_no_threshold_is_cheaper(good, bad, escape, reject, rate, review):
    costs = Costs(escape, reject, rate, review)
    found = cheapest(good, bad, costs)
    assert found.cost == pytest.approx(_slow(good, bad, costs), rel=1e-9, abs=1e-12)
    low = found.threshold if found.review is None else found.review
    assert low <= found.threshold
    assert found.flat[0] <= found.threshold <= found.flat[1]


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES, st.floats(0.01, 100), st.floats(0.001, 0.9))
def test_within_the_stated_ratio_the_same_threshold_stays_best_and_outside_it_does_not(good, bad, ratio, rate):
    found = cheapest(good, bad, Costs(ratio, 1.0, rate))
    low, high = found.ratio
    assert low <= ratio * (1 + 1e-6)
    assert ratio <= high * (1 + 1e-6)

    def excess(escape: float) -> float:
        here = rate * escape * np.mean(np.array(bad) <= found.threshold)
        here += (1 - rate) * np.mean(np.array(good) > found.threshold)
        return here - _slow(good, bad, Costs(escape, 1.0, rate))

    assert excess(max(low, 1e-9) * (1 + 1e-9)) == pytest.approx(0, abs=1e-6)
    if high < 1e6:
        assert excess(high) == pytest.approx(0, abs=1e-6)
        assert excess(high * 1.5) > 1e-9
    if low > 1e-6:
        assert excess(low / 1.5) > 1e-9


def test_the_costs_make_the_threshold_and_the_sentence_says_what_they_were():
    made = cost(GOOD, BAD, Costs(escape=200, reject=1, defect_rate=0.01))
    assert made.threshold == 19.5  # between the good part 19 and the defect 20: no known defect escapes
    assert made.costs == {"escape": 200, "reject": 1, "defect_rate": 0.01, "flat_low": 19, "flat_high": 20}
    assert made.sentence.startswith(
        "The least cost on these parts, 0.2933 each, at an escape of 200, a false alarm of 1 and 1.0 % defective ones: "
        "0 of 5 known defective parts escape (with 95 % confidence at most 60.2 %), 8 of 27 good parts are refused"
    )
    assert cost(GOOD, BAD, Costs(20, 1, 0.01)).threshold == 26.25  # one more escapes, and 7 fewer are refused


def test_a_dearer_escape_never_raises_the_threshold():
    thresholds = [cheapest(GOOD.scores, BAD.scores, Costs(c, 1, 0.02)).threshold for c in (1, 10, 50, 100, 1000)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


def test_between_two_thresholds_a_person_looks():
    made = cost(GOOD, BAD, Costs(escape=500, reject=20, defect_rate=0.01, review=1))
    assert made.review_threshold is not None
    assert made.review_threshold < made.threshold
    between = (made.review_threshold + made.threshold) / 2
    assert [made.verdict([s]) for s in (made.review_threshold, between, made.threshold + 1)] == [
        Verdict.OK, Verdict.REVIEW, Verdict.NOK
    ]  # fmt: skip
    assert "go to review" in made.sentence
    assert made.escape_bound == pytest.approx(stats.beta.ppf(1 - 0.05 / 5, 1, 5))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"escape": 0}, "cost of escape is 0"),
        ({"reject": float("inf")}, "cost of reject is inf"),
        ({"review": -1}, "cost of review is -1"),
        ({"defect_rate": 2}, "the defect rate 2 is not a rate"),
    ],
)
def test_costs_that_cannot_be_meant_are_refused(wrong, words):
    with pytest.raises(CalibrationError, match=words):
        Costs(**{"escape": 10, "reject": 1, "defect_rate": 0.01, **wrong})


# manual and the oracle


def test_a_threshold_set_by_hand_promises_nothing_and_tells_what_is_known():
    made = manual(GOOD, 25.0, BAD)
    assert (made.threshold, made.refused, made.rank, made.promise) == (25.0, 2, 3, None)
    assert made.sentence == (
        "Set by hand, which promises nothing by itself; 1 of 5 known defective parts are not above it: with 95 % "
        "confidence at most 65.8 % of such parts escape; 2 of 27 good parts are above it, so 0.91 % to 24.3 % of good "
        "parts are refused (95 %); this is true only if the number was not read off these parts."
    )
    assert manual(GOOD, 99.0).escape_bound is None
    with pytest.raises(CalibrationError, match="not a finite number"):
        manual(GOOD, float("nan"))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_oracle_is_the_best_f1_and_says_so(good, bad):
    made = f1_oracle(parts(good), parts(bad))
    best, _ = f1_max([*good, *bad], [False] * len(good) + [True] * len(bad))
    nok = np.array([*good, *bad]) > made.threshold
    defect = np.arange(len(nok)) >= len(good)
    assert 2 * (nok & defect).sum() / (nok.sum() + defect.sum()) == pytest.approx(best)
    assert made.sentence.startswith("F1 ORACLE")


# All of them


MADE = [
    no_escape(GOOD, BAD),
    cost(GOOD, BAD, Costs(200, 1, 0.01)),
    cost(GOOD, BAD, Costs(500, 20, 0.01, 1)),
    manual(GOOD, 25.0),
    manual(GOOD, -5.0, BAD),
    f1_oracle(GOOD, BAD),
    Calibration.from_parts(GOOD, confidence=0.9),
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.policy)
def test_a_calibration_comes_back_from_json_as_it_was(made: Calibration):
    assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.policy)
def test_the_mask_is_empty_on_as_many_good_parts_as_pass(made: Calibration):
    marked = sum(peak > made.map_threshold for peak in made.peaks)
    assert marked <= made.refused
    assert made.policy == "false-alarm" or marked == made.refused


@settings(deadline=None)
@given(SCORES, SCORES, st.randoms())
def test_the_order_of_parts_is_irrelevant(good, bad, random):
    kinds = [f"kind-{i % 3}" for i in range(len(bad))]
    before = no_escape(parts(good), parts(bad, kinds))
    rows = list(range(len(good)))
    random.shuffle(rows)
    pairs = list(zip(bad, kinds, strict=True))
    random.shuffle(pairs)
    after = no_escape(parts([good[r] for r in rows]), parts(*zip(*pairs, strict=True)))
    assert (after.threshold, after.sentence, after.scores) == (before.threshold, before.sentence, before.scores)


@settings(deadline=None)
@given(SCORES, SCORES, st.floats(0.1, 10), st.floats(-100, 100))
def test_another_unit_of_the_score_gives_the_same_verdicts(good, bad, stretch, shift):
    """Exactly so for any rising transform but for the hair that a threshold stands off: here a straight line."""
    good, bad = ([round(s, 2) for s in group] for group in (good, bad))
    costs = Costs(50, 1, 0.05)
    before = cheapest(good, bad, costs)
    after = cheapest(*([stretch * s + shift for s in group] for group in (good, bad)), costs)
    for group in (good, bad):
        ours = [s > before.threshold for s in group]
        assert ours == [stretch * s + shift > after.threshold for s in group]


@settings(deadline=None)
@given(SCORES, st.floats(0.05, 0.95), st.none() | st.floats(0.5, 0.8))
def test_false_alarm_does_not_ask_how_far_apart_the_scores_are(scores, target, confidence):
    """Ranks decide: any rising transform leaves the same parts above the order statistic."""
    try:
        before = Calibration.from_parts(parts(scores), false_alarm=target, confidence=confidence)
    except CalibrationError:
        return
    bent = [float(np.arctan(s / 100) ** 3) for s in scores]
    after = Calibration.from_parts(parts(bent), false_alarm=target, confidence=confidence)
    assert after.rank == before.rank
    assert after.scores[-after.rank] == sorted(bent)[-before.rank]


def test_single_and_equal_scores_have_stated_results():
    one = no_escape(parts([1.0]), parts([1.0], ["cut"]))
    assert one.verdict([1.0]) is Verdict.NOK  # a good part that scores as a defect is refused: no defect may pass
    assert one.refused == 1
    flat = cheapest([1.0, 1.0], [1.0], Costs(1, 1, 0.5))
    assert flat.cost == 0.5
    assert no_escape(parts([0.0] * 9), parts([0.0], ["cut"])).refused == 9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(CalibrationError, match="not a finite number"):
        parts([1.0, value])


def test_nothing_and_half_of_something_is_refused():
    with pytest.raises(CalibrationError, match="no good parts"):
        parts([])
    with pytest.raises(CalibrationError, match="takes good and defective parts"):
        cheapest([1.0], [], Costs(1, 1, 0.5))


# Parts


def test_views_make_a_part_by_the_largest_or_the_mean_and_pictures_stand_alone():
    names, scores, peaks = ["a", "a", "b", "b"], [1.0, 3.0, 2.0, 2.5], [9.0, 1.0, 2.0, 3.0]
    assert by_part(names, scores, peaks).scores == [2.5, 3.0]
    assert by_part(names, scores, peaks, rule="mean").scores == [2.0, 2.25]
    assert by_part(names, scores, peaks, unit="picture").scores == [1.0, 2.0, 2.5, 3.0]
    assert by_part(names, scores, peaks, rule="mean").peaks == [3.0, 9.0]
    assert by_part(names, scores, peaks, ["good", "cut", "good", "good"]).kinds == ["good", "cut"]
    with pytest.raises(CalibrationError, match="'median' is not one of largest, mean"):
        by_part(names, scores, peaks, rule="median")


def test_the_mean_of_the_views_judges_by_the_mean():
    names = [f"p{i // 2}" for i in range(18)]
    made = Calibration.from_good(names, [float(i) for i in range(18)], [1.0] * 18, rule="mean")
    assert made.scores[-1] == 16.5
    assert made.verdict([0.0, 30.0]) is Verdict.OK
    assert made.verdict([4.0, 30.0]) is Verdict.NOK
    assert "the mean of its 2 views" in made.sentence


def test_calibrating_per_picture_warns_in_the_sentence_and_takes_any_number_of_views():
    made = Calibration.from_good(["a", "a", "b", "b"], [1.0, 2.0, 3.0, 4.0], [1.0] * 4, unit="picture")
    assert made.parts == 4
    assert made.sentence.startswith("4 good pictures promise at most 20.0 %")
    assert "this counts pictures, not parts" in made.sentence
    assert [made.verdict(views) for views in ([1.0], [1.0, 9.0], [1.0] * 5)] == [Verdict.OK, Verdict.NOK, Verdict.OK]


@pytest.mark.parametrize(
    ("engine", "same", "words"),
    [
        ("onnxruntime 1.30.0 cpu fp32", [], None),
        ("onnxruntime 1.31.0 cpu int8", [], "calibrated in fp32, and onnxruntime 1.31.0 cpu int8 computes in int8"),
        ("torch 2.14 cpu fp32", ["torch 2.14 cpu fp32", "onnxruntime 1.31.0 cpu fp32"], None),
        ("openvino 2026.4 cpu fp32", ["torch 2.14 cpu fp32", "onnxruntime 1.31.0 cpu fp32"], "never held against it"),
        ("torch 2.14 cpu fp32", [], "never held against it"),
        ("", [], "does not say with which engine"),
    ],
)
def test_another_precision_or_an_engine_that_was_not_compared_needs_another_calibration(engine, same, words):
    found = Calibration.from_parts(GOOD, engine="onnxruntime 1.31.0 cpu fp32").unfit(engine, same)
    assert found is None if words is None else words in found
    if found:
        assert found.endswith("calibrate again")


HAND = [
    {"threshold": 1e6},
    {"map_threshold": 1e30},
    {"margin": 1e6, "threshold": 27.0 + 1e6},
    {"scale": 1e30},
    {"scale": 0.0},
    {"rank": 14},
    {"target": 1e-9},
    {"confidence": 7.0},
    {"review_threshold": 1.0},
    {"pitch_mm": -1.0},
    {"views": [True, True]},
    {"min_area_px": 10**12},
    {"rule": "median"},
    {"parts": 26},
    {"images": 3},
]


@pytest.mark.parametrize("change", HAND, ids=str)
def test_a_calibration_that_was_changed_by_hand_is_refused(change):
    values = Calibration.from_parts(GOOD, engine="onnxruntime 1 cpu fp32").to_dict()
    with pytest.raises(BundleError):
        Calibration.from_dict({**values, **change})


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (MADE[0], {"threshold": 25.0, "rank": 3}),
        (MADE[0], {"defect_scores": [], "defect_kinds": []}),
        (MADE[0], {"closer": 0.5}),
        (MADE[1], {"costs": {}}),
        (MADE[1], {"threshold": 26.25, "rank": 2}),
        (MADE[2], {"review_threshold": None}),
        (MADE[5], {"policy": "no-escape"}),
    ],
)
def test_so_is_one_of_another_policy(made: Calibration, change):
    with pytest.raises(BundleError, match="contradict each other"):
        Calibration.from_dict({**made.to_dict(), **change})


def test_the_sentence_is_said_by_the_facts_and_not_by_the_file():
    made = no_escape(GOOD, BAD)
    assert Calibration.from_dict({**made.to_dict(), "sentence": "No defect ever escapes."}).sentence == made.sentence


def test_the_last_digits_of_another_machine_are_no_change():
    values = MADE[2].to_dict()
    nudged = {name: values[name] * (1 + 1e-13) for name in ("margin", "scale", "map_threshold", "review_threshold")}
    assert Calibration.from_dict({**values, **nudged}).threshold == MADE[2].threshold


def test_a_threshold_set_by_hand_does_not_say_how_exact_an_engine_has_to_be():
    assert manual(GOOD, 1e9).scale == manual(GOOD, 1.0).scale == 27.0


def test_a_range_of_views_is_said():
    made = Calibration.from_good(["a", "b", "b", "c"], [1.0, 2.0, 3.0, 4.0], [1.0] * 4)
    assert "its 1 to 2 views, for parts that come with so many views as often as these" in made.sentence
