"""Maps that are made when they are asked for, and regions that need none of a map below its threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flawmap.images.intake import Intake
from flawmap.images.tiles import enlarge
from flawmap.run.look import Looked, Maps, over
from flawmap.run.model import ROUNDING, Model
from flawmap.verdict.regions import regions

SIDES = st.integers(1, 70)


def test_a_map_is_made_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr("flawmap.run.look.over", lambda intake, map, size: made.append(size) or over(intake, map, size))
    small = np.arange(16, dtype=np.float32).reshape(4, 4)
    maps = Maps(Intake((4, 4)), [Looked(1.0, small, (8, 8)), Looked(2.0, small, (6, 4))])
    assert (len(maps), made) == (2, [])
    assert maps[-1].shape == (6, 4)
    assert maps[1] is maps[1]
    assert made == [(6, 4)]
    assert [map.shape for map in maps] == [(8, 8), (6, 4)]
    assert maps[:1][0] is maps[0]
    with pytest.raises(IndexError):
        maps[2]


def test_regions_are_those_of_the_whole_map(crossed: Model, world: Path):
    assert crossed.calibration
    files = sorted(world.glob("test/*/*.png"))
    found = [crossed.inspect(path) for path in files]
    for one in found:
        assert one.regions[0] == regions(one.map, crossed.calibration.map_threshold, crossed.calibration.min_area_px)
    assert {bool(one.regions[0]) for one in found} == {False, True}


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_no_enlarging_brings_a_map_above_its_largest_value(
    high: int, wide: int, to_high: int, to_wide: int, seed: int, middle: float, spread: float
):
    map = (middle + spread * np.random.default_rng(seed).standard_normal((high, wide))).astype(np.float32)
    most = float(map.max())
    threshold = most + 1.1 * ROUNDING * abs(most)
    assume(most < threshold - ROUNDING * abs(threshold))
    assert not (enlarge(map, (to_high, to_wide)) > threshold).any()
