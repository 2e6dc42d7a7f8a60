"""What defects are painted with, where, and the same batches from any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.filters import threshold_otsu

from flawmap.errors import UsageError
from flawmap.synthesis import PRESETS, Painted, Synthesis, paint, textures


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """(3, H, W) float32: a bright disc with stripes before a dark ground, in steps that are not those of 8 bits."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y / size[0] - 0.5, x / size[1] - 0.5) < 0.38
    plain = np.where(disc, 0.7 + 0.1 * np.sin(x / 4 + random.uniform(0, 6)), 0.15)
    return np.clip(plain + random.normal(0, 0.02, (3, *size)), 0, 1).astype(np.float32)


def plain(value: float) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    return lambda random, size: np.full((3, *size), value, np.float32)


def painted(preset: str, count: int, **more: object) -> list[Painted]:
    """Of these seeds those that got a defect."""
    synthesis = Synthesis(preset, anomalous=1.0, **more)  # type: ignore[arg-type]
    found = [synthesis(picture(seed), (9, seed)) for seed in range(count)]
    return [made for made in found if made.mask.any()]


# ---- with what


def sources(monkeypatch: pytest.MonkeyPatch, preset: str, count: int, **more: object) -> dict[str, float]:
    """How often what was asked for, a defect."""
    seen = {"drawn": 0, "shuffled": 0, "augmented": 0, "given": 0}

    def counted(name: str, real: Callable) -> Callable:
        def call(*args: object) -> object:
            seen[name] += 1
            return real(*args)

        return call

    monkeypatch.setattr(paint, "drawn", counted("drawn", textures.drawn))
    monkeypatch.setattr(paint, "shuffled", counted("shuffled", textures.shuffled))
    monkeypatch.setattr(paint, "augment", counted("augmented", textures.augment))
    monkeypatch.setattr(paint, "SEEN", 0.0)
    if more:
        more = {"texture": counted("given", plain(0.4))}
    made = painted(preset, count, **more)
    return {name: times / len(made) for name, times in seen.items()}


@pytest.mark.parametrize(
    ("preset", "drawn", "shuffled", "augmented"),
    [("pouta", 0.5, 0.5, 0.5), ("draem", 1, 0, 1), ("memseg", 0.5, 0.5, 0.5)],
)
def test_without_pictures_to_paint_with_textures_are_drawn_or_cells_shuffled(
    monkeypatch: pytest.MonkeyPatch, preset: str, drawn: float, shuffled: float, augmented: float
):
    seen = sources(monkeypatch, preset, 300)
    assert seen["given"] == 0
    expected = {"drawn": drawn, "shuffled": shuffled, "augmented": augmented}
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("preset", "given", "augmented"), [("pouta", 1, 0), ("draem", 1, 1), ("memseg", 0.5, 0.5)])
def test_with_pictures_to_paint_with_none_is_drawn(
    monkeypatch: pytest.MonkeyPatch, preset: str, given: float, augmented: float
):
    seen = sources(monkeypatch, preset, 300, texture=True)
    assert seen["drawn"] == 0
    assert (seen["given"], seen["augmented"]) == pytest.approx((given, augmented), abs=0.15)


def test_a_texture_is_asked_for_the_pictures_own_size():
    asked = []

    def texture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        asked.append(size)
        return random.uniform(0, 1, (3, *size)).astype(np.float32)

    for preset in PRESETS:
        Synthesis(preset, texture=texture, anomalous=1.0)(picture(size=(33, 47)), (0, 5))
    assert set(asked) == {(33, 47)}


def test_the_picture_is_kept_moved_or_turned_about_as_often(monkeypatch: pytest.MonkeyPatch):
    count = dict.fromkeys(("_same", "_translated", "_turned"), 0)
    for name in count:

        def counted(clean: np.ndarray, random: np.random.Generator, name: str = name) -> np.ndarray:
            count[name] += 1
            return clean

        monkeypatch.setattr(paint, name, counted)
    made = painted("pouta", 300, texture=plain(0.0))
    assert sum(count.values()) >= len(made) == 300
    assert min(count.values()) > 70  # 100 expected, deviation 8
    before = sum(count.values())
    painted("draem", 20)
    painted("memseg", 20)
    assert sum(count.values()) == before  # theirs is never moved


def test_a_translated_picture_comes_in_again_on_the_other_side():
    clean = picture(size=(33, 47))
    moved = [paint._translated(clean, np.random.default_rng(seed)) for seed in range(60)]
    assert all(sorted(m.ravel()) == sorted(clean.ravel()) for m in moved)
    for shifted in moved[:20]:
        ways = [(y, x) for y in range(33) for x in range(47) if np.array_equal(np.roll(clean, (y, x), (1, 2)), shifted)]
        ((down, across),) = ways
        assert 33 // 8 <= down <= 33 * 7 // 8
        assert 47 // 8 <= across <= 47 * 7 // 8


def test_a_turned_square_shows_no_black_corner_at_any_angle():
    white = np.ones((3, 40, 40), np.float32)
    assert all(paint._turned(white, np.random.default_rng(seed)).min() == 1 for seed in range(100))


def test_a_picture_is_turned_about_its_middle_by_20_degrees_at_least():
    clean = np.zeros((3, 65, 65), np.float32)
    clean[:, 30:35, 50:55] = 1  # right of the middle
    angles = []
    for seed in range(100):
        y, x = np.nonzero(paint._turned(clean, np.random.default_rng(seed))[0] > 0.3)
        near = np.hypot(y - 32, x - 32) < 26  # not the mirrored one
        middle = y[near].mean() - 32, x[near].mean() - 32
        assert np.hypot(*middle) == pytest.approx(20, abs=1.5)
        angles.append(np.degrees(np.arctan2(-middle[0], middle[1])) % 360)
    assert min(angles) > 18
    assert max(angles) < 342
    assert np.ptp(angles) > 250


# ---- where


def grey(clean: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray((clean.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)).convert("L"))


@pytest.mark.parametrize("rule", ["bright", "dark", "bright:90", "dark:160"])
def test_a_foreground_keeps_the_defect_on_the_part(rule: str):
    side, _, level = rule.partition(":")
    some = 0
    for made in painted("memseg", 40, foreground=rule, texture=plain(0.5)):
        limit = int(level) if level else threshold_otsu(grey(made.clean))
        part = grey(made.clean) > limit if side == "bright" else grey(made.clean) <= limit
        assert not (made.mask.astype(bool) & ~part).any()
        some += made.mask.sum()
    assert some > 500


def test_without_a_foreground_the_ground_is_painted_too():
    outside = [made.mask[grey(made.clean) < 90].sum() for made in painted("memseg", 40, texture=plain(0.5))]
    assert np.count_nonzero(outside) > 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 120), st.integers(120, 250), st.floats(0.05, 0.95))
def test_otsus_threshold_is_that_of_an_independent_library(seed: int, low: int, high: int, share: float):
    random = np.random.default_rng(seed)
    values = np.where(random.random((40, 40)) < share, low, high) + random.normal(0, 12, (40, 40))
    image = np.clip(values, 0, 255).astype(np.uint8)
    assert np.array_equal(image > paint._otsu(image), image > threshold_otsu(image))


def test_otsu_of_one_or_two_values_is_no_error():
    assert np.array_equal(np.full((4, 4), 7, np.uint8) > paint._otsu(np.full((4, 4), 7, np.uint8)), np.ones((4, 4)))
    two = np.array([[10, 200]], np.uint8)
    assert 10 <= paint._otsu(two) < 200


def test_a_picture_without_any_part_stays_clean():
    for preset in PRESETS:
        made = Synthesis(preset, anomalous=1.0, foreground="bright:254")(picture(), (0, 0))
        assert not made.mask.any()
        assert np.array_equal(made.image, made.clean)


@pytest.mark.parametrize(
    "rule", ["light", "Bright", "bright:", "bright:x", "dark:-1", "dark:2.5", "bright:255", "dark:999", "dark:²", ":90"]
)
def test_a_foreground_that_makes_no_sense_is_refused_before_anything_is_painted(rule: str):
    with pytest.raises(UsageError, match="give bright, dark"):
        Synthesis("pouta", foreground=rule)


@pytest.mark.parametrize("level", [0, 1, 100, 254])
def test_grey_levels_from_0_to_254_are_taken(level: int):
    assert Synthesis("pouta", foreground=f"dark:{level}").foreground is not None


def test_a_recipe_that_is_not_there_is_refused_with_the_list():
    with pytest.raises(UsageError, match="no recipe 'cutpaste'; there are: pouta, draem, memseg"):
        Synthesis("cutpaste")


# ---- fed to a detector


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on; torch has threads
@pytest.mark.parametrize("preset", PRESETS)
def test_worker_processes_give_the_same_batches_as_none(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawmap.detectors import create
    from flawmap.images.decode import Intake
    from flawmap.run import feed as feeding
    from flawmap.types import Sample

    detector = create("pouta", {"size": 32, "width": 2, "window": 5, "steps": 4, "synthesis": preset})
    samples = [
        Sample((picture(n, (32, 32)).transpose(1, 2, 0) * 255).astype(np.uint8), str(n), str(n)) for n in range(6)
    ]
    feed = feeding.Feed(detector, samples, Intake((32, 32)), tmp_path, "cpu")
    feed.prepare(detector)

    def batches(workers: int, start: int) -> list[bytes]:
        monkeypatch.setattr(feeding, "_workers", lambda device: workers)
        found = feed.steps(np.arange(6), 8, 11, start, 4)
        return [b"".join(part.numpy().tobytes() for part in (b.image, b.clean, b.mask)) for b in found]

    alone = batches(0, 0)
    assert len(alone) == len(set(alone)) == 4
    assert batches(2, 0) == alone
    assert batches(2, 2) == alone[2:]  # and when training goes on at a later step
