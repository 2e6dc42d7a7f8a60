from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from flawmap.errors import DataError
from flawmap.types import Verdict
from flawmap.verdict.acceptance import Judged, rate, rates, size_bin

OK, NOK = Verdict.OK, Verdict.NOK


def _parts(kind: str, passed: int, stopped: int, size: int | None = None) -> list[Judged]:
    return [Judged(f"{kind}-{i}", kind, OK if i < passed else NOK, size) for i in range(passed + stopped)]


def test_the_bounds_are_those_of_statsmodels() -> None:
    for count, n in ((0, 13), (1, 20), (7, 9), (20, 20), (3, 300)):
        found = rate(count, n)
        low, high = proportion_confint(count, n, method="beta")
        one_sided = proportion_confint(count, n, alpha=0.10, method="beta")[1]
        assert found["low"] == pytest.approx(low if count else 0, abs=1e-9)
        assert found["high"] == pytest.approx(high if count < n else 1, abs=1e-9)
        assert found["upper"] == pytest.approx(one_sided if count < n else 1, abs=1e-9)
    assert rate(0, 0) == {"count": 0, "n": 0, "rate": None, "low": 0.0, "high": 1.0, "upper": 1.0}


def test_the_sentence_of_no_escape_gives_its_bound() -> None:
    found = rates([*_parts("crack", 0, 13), *_parts("good", 17, 1)])
    assert found["sentences"] == [
        "0 of 13 defective parts escaped: with 95 % confidence at most 20.6 % escape",
        "1 of 18 good parts refused: with 95 % confidence at most 23.8 % be refused",
    ]
    assert found["escapes"]["upper"] == pytest.approx(1 - 0.05 ** (1 / 13))
    only_good = rates(_parts("good", 3, 0))
    assert only_good["sentences"][0] == "no defective parts were judged: nothing can be said of how many escape"
    assert only_good["escapes"]["rate"] is None


def test_escapes_are_counted_by_kind_and_by_size() -> None:
    parts = [
        *_parts("scratch", 2, 3, 50),
        *_parts("hole", 1, 6, 5000),
        *_parts("stain", 0, 2),
        Judged("big", "scratch", NOK, 1234),
        *_parts("good", 9, 1),
    ]
    found = rates(parts)
    counts = {key: (v["count"], v["n"]) for key, v in found["kinds"].items()}
    assert counts == {"hole": (1, 7), "scratch": (2, 6), "stain": (0, 2)}
    assert [(k, v["count"], v["n"]) for k, v in found["sizes"].items()] == [
        ("<100", 2, 5),
        ("1000 to 9999", 1, 8),
        ("no mask", 0, 2),
    ]
    assert (found["escapes"]["count"], found["escapes"]["n"]) == (3, 15)
    assert (found["false_alarms"]["count"], found["false_alarms"]["n"]) == (1, 10)


def test_what_could_not_be_judged_is_told_and_not_counted() -> None:
    found = rates([Judged("a", "crack", None), Judged("b", "crack", NOK), Judged("c", "good", OK)])
    assert (found["not_judged"], found["escapes"]["n"]) == (1, 1)


def test_what_went_to_review_is_neither_an_escape_nor_a_false_alarm() -> None:
    parts = [Judged(f"{kind}-{said}", kind, said) for kind in ("good", "crack") for said in (OK, NOK, Verdict.REVIEW)]
    found = rates(parts)
    assert (found["escapes"]["count"], found["escapes"]["n"]) == (1, 3)
    assert (found["false_alarms"]["count"], found["false_alarms"]["n"]) == (1, 3)
    assert (found["review_good"], found["review_defective"]) == (1, 1)


def test_sizes_are_powers_of_ten() -> None:
    sizes = [1, 99, 100, 999, 1000, 9999, 10_000, 123_456]
    assert [size_bin(size) for size in sizes] == [
        *("<100", "<100", "100 to 999", "100 to 999", "1000 to 9999", "1000 to 9999"),
        *("10000 to 99999", "100000 to 999999"),
    ]
    assert size_bin(None) == "no mask"
    with pytest.raises(DataError, match="0 px is none"):
        size_bin(0)


@given(st.integers(1, 10**9))
def test_every_size_lies_in_its_bin(area: int) -> None:
    name = size_bin(area)
    low, high = (1, 99) if name == "<100" else map(int, name.split(" to "))
    assert low <= area <= high


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["good", "a", "b"]), st.sampled_from([OK, NOK, Verdict.REVIEW, None]), st.integers(1, 10**5)
        ),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_parts_is_irrelevant_and_the_kinds_and_sizes_add_up(rows: list, shuffle: random.Random) -> None:
    parts = [Judged(str(i), kind, verdict, size) for i, (kind, verdict, size) in enumerate(rows)]
    found = rates(parts)
    shuffle.shuffle(parts)
    assert rates(parts) == found
    for name in ("kinds", "sizes"):
        for field in ("count", "n"):
            assert sum(v[field] for v in found[name].values()) == found["escapes"][field]
    assert found["escapes"]["n"] + found["false_alarms"]["n"] + found["not_judged"] == len(parts)


@given(st.integers(1, 200), st.data())
def test_a_bound_grows_with_the_escapes_and_falls_with_the_parts(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n - 1))
    assert rate(count, n)["upper"] < rate(count + 1, n)["upper"]
    assert rate(count, n + 1)["upper"] < rate(count, n)["upper"]
    assert rate(count, n)["low"] <= count / n < rate(count, n)["upper"] <= rate(count, n)["high"]


def test_no_parts_or_a_part_twice_is_refused() -> None:
    with pytest.raises(DataError, match="no parts"):
        rates([])
    with pytest.raises(DataError, match="the part a is there twice"):
        rates([Judged("a", "good", OK), Judged("b", "good", OK), Judged("a", "good", NOK)])
