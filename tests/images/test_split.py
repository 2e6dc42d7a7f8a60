from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawmap.errors import DataError, UsageError
from flawmap.images.split import folds, split
from flawmap.types import Sample

PIXELS = np.zeros((2, 2), np.uint8)


def views(parts: int, per_part: int = 3) -> list[Sample]:
    return [Sample(PIXELS, f"{p:03d}-{v}", f"part-{p:03d}") for p in range(parts) for v in range(per_part)]


def parts(samples: list[Sample]) -> set[str]:
    return {sample.part for sample in samples}


def names(sets: list[list[Sample]]) -> list[list[str]]:
    return [[sample.name for sample in samples] for samples in sets]


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    st.integers(-5, 2**40),
    st.integers(1, 3),
)
def test_sets_are_disjoint_by_part_and_lose_nothing(count, shares, seed, per_part):
    samples = views(count, per_part)
    if count < len(shares):
        with pytest.raises(DataError, match="cannot be cut"):
            split(samples, shares, seed)
        return
    sets = split(samples, shares, seed)
    assert Counter(name for group in names(sets) for name in group) == Counter(sample.name for sample in samples)
    assert sum(len(parts(group)) for group in sets) == count
    assert all(sets)
    for group, share in zip(sets, shares, strict=True):
        size = count * share / sum(shares)
        assert len(parts(group)) <= max(1, size + 1)
        assert len(parts(group)) > size - len(shares)


def test_sizes_count_parts_not_pictures():
    samples = views(10, 1) + [Sample(PIXELS, f"extra-{v}", "part-000") for v in range(90)]
    assert [len(parts(group)) for group in split(samples, (0.7, 0.1, 0.2), 3)] == [7, 1, 2]
    assert [len(parts(group)) for group in split(views(90), (70, 10, 20), 3)] == [63, 9, 18]
    assert [len(parts(group)) for group in split(views(3), (0.98, 0.01, 0.01), 3)] == [1, 1, 1]


def test_a_cut_depends_on_the_seed_and_not_on_the_order_of_the_input():
    samples = views(40)
    shuffled = random.Random(1).sample(samples, len(samples))
    assert names(split(shuffled, (0.6, 0.4), 7)) == names(split(samples, (0.6, 0.4), 7))
    assert names(folds(shuffled, 5, 7)) == names(folds(samples, 5, 7))
    cuts = {tuple(sorted(parts(split(samples, (0.6, 0.4), seed)[1]))) for seed in range(20)}
    assert len(cuts) == 20


def test_a_cut_is_the_same_on_every_machine():
    assert [sorted(parts(group)) for group in split(views(6), (0.5, 0.5), 0)] == [
        ["part-001", "part-003", "part-004"],
        ["part-000", "part-002", "part-005"],
    ]


def test_every_part_is_held_out_equally_often_over_seeds():
    held = Counter(part for seed in range(1000) for part in parts(split(views(10, 1), (0.7, 0.3), seed)[1]))
    assert len(held) == 10
    # binomial(1000, 0.3): four standard deviations are 58
    assert max(abs(count - 300) for count in held.values()) < 58


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(2, 40), st.integers(0, 100))
def test_folds_are_disjoint_and_differ_by_one_part_at_most(k, count, seed):
    samples = views(count)
    if count < k:
        with pytest.raises(DataError, match="cannot be cut"):
            folds(samples, k, seed)
        return
    sets = folds(samples, k, seed)
    sizes = [len(parts(group)) for group in sets]
    assert (len(sets), sum(sizes)) == (k, count)
    assert max(sizes) - min(sizes) <= 1
    assert sum(map(len, sets)) == len(samples)


def test_shares_and_folds_that_make_no_sense_are_refused():
    for shares in ((), (0.5, 0.0), (0.5, -0.1), (1.0, float("nan")), (1.0, float("inf"))):
        with pytest.raises(UsageError, match="give positive numbers"):
            split(views(5), shares, 0)
    with pytest.raises(UsageError, match="2 folds"):
        folds(views(5), 1, 0)
    with pytest.raises(DataError, match="2 parts cannot be cut into 3 sets"):
        split(views(2), (1, 1, 1), 0)
