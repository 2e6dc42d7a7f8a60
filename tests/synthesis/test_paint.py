"""Painted pictures: what stays, what changes and how much, from the same seed the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion
from skimage.filters import threshold_otsu

from flawmap.errors import UsageError
from flawmap.synthesis import PRESETS, Painted, Synthesis, paint, textures
from flawmap.synthesis.paint import SEEN

SIZES = [(64, 64), (32, 32), (33, 47), (96, 40)]
FOREGROUNDS = ("", "bright", "dark", "bright:90", "dark:160")


def picture(seed: int = 0, size: tuple[int, int] = (64, 64), grey: bool = False) -> np.ndarray:
    """(3, H, W) float32: a bright disc with stripes before a dark ground, in steps that are not those of 8 bits."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y / size[0] - 0.5, x / size[1] - 0.5) < 0.38
    plain = np.where(disc, 0.7 + 0.1 * np.sin(x / 4 + random.uniform(0, 6)), 0.15)
    image = plain + random.normal(0, 0.02, (1 if grey else 3, *size))
    return np.repeat(np.clip(image, 0, 1), 3 if grey else 1, axis=0).astype(np.float32)


def plain(value: float) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    return lambda random, size: np.full((3, *size), value, np.float32)


def painted(preset: str, count: int, **more: object) -> list[Painted]:
    """Of these seeds those that got a defect."""
    synthesis = Synthesis(preset, anomalous=1.0, **more)  # type: ignore[arg-type]
    found = [synthesis(picture(seed), (9, seed)) for seed in range(count)]
    return [made for made in found if made.mask.any()]


# ---- what must hold for every picture


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(PRESETS)),
    st.sampled_from(SIZES),
    st.sampled_from(FOREGROUNDS),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_outside_the_mask_the_picture_is_the_clean_one_bit_for_bit(
    preset: str, size: tuple[int, int], foreground: str, grey: bool, seed: int
):
    clean = picture(seed % 7, size, grey)
    before = clean.copy()
    made = Synthesis(preset, anomalous=1.0, foreground=foreground)(clean, (seed, 1, 2))
    assert np.array_equal(clean, before)  # the picture that was given is left alone
    assert made.image.shape == made.clean.shape == (3, *size)
    assert made.mask.shape == size
    assert made.image.dtype == made.clean.dtype == made.mask.dtype == np.float32
    assert set(np.unique(made.mask)) <= {0.0, 1.0}
    outside = made.mask == 0
    assert made.image[:, outside].tobytes() == made.clean[:, outside].tobytes()
    assert made.image.min() >= 0
    assert made.image.max() <= 1
    if not PRESETS[preset].rotate_clean:
        assert made.clean.tobytes() == before.tobytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_gives_the_same_picture_twice_and_in_any_order(preset: str):
    synthesis, other = Synthesis(preset), Synthesis(preset)
    seeds = [(0, step, place) for step in range(5) for place in range(4)]
    first = {seed: synthesis(picture(), seed) for seed in seeds}
    again = {seed: other(picture(), seed) for seed in reversed(seeds)}
    for seed in seeds:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first[seed], again[seed], strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_another_seed_step_or_place_gives_another_picture(preset: str):
    synthesis = Synthesis(preset, anomalous=1.0)
    seeds = [(s, t, p) for s in range(3) for t in range(1, 4) for p in range(1, 4)]
    found = [synthesis(picture(), seed) for seed in seeds]
    assert len({made.image.tobytes() for made in found if made.mask.any()}) == sum(m.mask.any() for m in found) > 20


def test_painting_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr,index]  # noqa: NPY002
    Synthesis("pouta", anomalous=1.0)(picture(), (0, 0))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_a_grey_picture_stays_grey_outside_its_defect():
    made = Synthesis("pouta", anomalous=1.0)(picture(grey=True), (0, 3))
    assert np.ptp(made.image[:, made.mask == 0], axis=0).max() == 0


# ---- how often


def test_half_of_the_pictures_stay_clean_but_for_what_draem_cannot_see_to_paint():
    count, share = 1200, {}
    for preset in PRESETS:
        synthesis = Synthesis(preset, texture=plain(0.5))
        made = [synthesis(picture(seed % 5), (1, seed)) for seed in range(count)]
        clean = [m for m in made if not m.mask.any()]
        assert all(np.array_equal(m.image, m.clean) for m in clean)
        share[preset] = len(clean) / count
    deviation = 0.5 / count**0.5
    assert share["pouta"] == pytest.approx(0.5, abs=4 * deviation)
    assert share["memseg"] == pytest.approx(0.5, abs=4 * deviation)
    # its empty noise is not drawn again: 3 to 6 % of the pictures that were to get a defect
    assert share["draem"] == pytest.approx(0.5 + 0.045 / 2, abs=4 * deviation)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_defects_is_the_one_that_was_asked_for(share: float):
    synthesis = Synthesis("pouta", texture=plain(0.0), anomalous=share)
    found = np.mean([synthesis(picture(), (2, seed)).mask.any() for seed in range(400)])
    assert found == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)


def test_only_draem_turns_the_clean_picture_and_three_times_in_ten():
    turned = {}
    for preset in PRESETS:
        synthesis = Synthesis(preset, anomalous=0.0)
        made = [synthesis(picture(), (3, seed)) for seed in range(600)]
        assert all(m.image is m.clean for m in made)
        turned[preset] = np.mean([not np.array_equal(m.clean, picture()) for m in made])
    assert turned["pouta"] == turned["memseg"] == 0
    assert turned["draem"] == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 600) ** 0.5)


def test_a_turned_clean_picture_has_black_corners_and_its_middle_stays():
    clean = np.ones((3, 64, 64), np.float32)
    made = [Synthesis("draem", anomalous=0.0)(clean, (4, seed)).clean for seed in range(100)]
    black = np.array([(m == 0).all(axis=0).mean() for m in made])
    assert 0.14 < black.max() < 0.18  # at 45 degrees a square loses 3 - 2 sqrt(2) of its area
    assert all(m[:, 12:52, 12:52].min() == 1 for m in made)


# ---- how strongly


def opacities(preset: str, count: int = 400) -> np.ndarray:
    """Of black paint on white: how much of the white is gone at most, where it was white."""
    found = []
    synthesis = Synthesis(preset, texture=plain(0.0), anomalous=1.0)
    for seed in range(count):
        made = synthesis(np.ones((3, 48, 48), np.float32), (5, seed))
        inside = (made.mask > 0) & (made.clean == 1).all(axis=0)  # not the corners that turning left black
        if inside.any():
            found.append(1 - made.image[:, inside].min())
    return np.array(found)


@pytest.mark.parametrize(("preset", "least"), [("draem", 0.2), ("memseg", 0.15)])
def test_opacity_fills_the_range_of_its_recipe(preset: str, least: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paint, "augment", lambda random, image: image)
    monkeypatch.setattr(Synthesis, "_cells", Synthesis._texture)  # memseg: black in both of its cases
    found = opacities(preset)
    assert PRESETS[preset].opacity == (least, 1.0)
    assert least - 1e-6 <= found.min() < least + 0.03
    assert 0.97 < found.max() <= 1
    assert found.mean() == pytest.approx((1 + least) / 2, abs=4 * (1 - least) / (12 * len(found)) ** 0.5)


def test_opacity_is_one_number_for_all_of_the_mask_in_draem_and_memseg(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paint, "augment", lambda random, image: image)
    monkeypatch.setattr(Synthesis, "_cells", Synthesis._texture)
    for preset in ("draem", "memseg"):
        synthesis = Synthesis(preset, texture=plain(0.0), anomalous=1.0)
        for seed in range(30):
            made = synthesis(np.ones((3, 48, 48), np.float32), (5, seed))
            inside = (made.mask > 0) & (made.clean == 1).all(axis=0)
            assert len(np.unique(made.image[:, inside])) == inside.any()


def test_pouta_mixes_a_copy_of_the_picture_with_the_texture_in_any_share(monkeypatch: pytest.MonkeyPatch):
    # black paint on white: what is gone is opacity x share, whatever way the white picture is moved
    monkeypatch.setattr(paint, "FEATHER", 0.0)
    found = opacities("pouta", 800)
    assert found.min() >= SEEN - 1e-6  # fainter ones were drawn again
    assert found.max() > 0.9
    u = np.random.default_rng(0).uniform
    product = u(0.15, 1, 200_000) * u(0, 1, 200_000)
    for level in (0.25, 0.5, 0.75):
        assert np.quantile(found, level) == pytest.approx(np.quantile(product[product > SEEN], level), abs=0.05)


def test_every_pixel_inside_the_mask_is_painted_when_what_is_painted_differs_everywhere():
    for preset in PRESETS:
        synthesis = Synthesis(preset, texture=plain(1.0), anomalous=1.0)
        synthesis._cells = lambda clean, random: np.ones_like(clean)  # type: ignore[method-assign]
        for seed in range(60):
            made = synthesis(np.full((3, 40, 40), 0.25, np.float32), (6, seed))
            inside = made.mask > 0
            if preset != "draem":  # whose changes may turn white into this grey
                assert inside.any()
                assert np.abs(made.image - made.clean).max(axis=0)[inside].min() > 0.25 * 0.02


def test_what_is_painted_lies_between_the_picture_and_the_texture():
    synthesis = Synthesis("pouta", texture=plain(1.0), anomalous=1.0)
    for seed in range(60):
        made = synthesis(np.full((3, 40, 40), 0.25, np.float32), (7, seed))
        inside = made.mask > 0
        # 8 bits know no 0.25: a turned copy is 64 / 255
        assert made.image[:, inside].min() >= 0.25
        assert made.image[:, inside].max() <= 1
        assert np.ptp(made.image, axis=0).max() == 0


def test_the_soft_edge_of_pouta_stays_inside_the_mask_and_above_a_quarter():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 20:45] = True
    hard = paint._soft(mask, 0.0)
    assert np.array_equal(hard, mask.astype(np.float32))
    soft = paint._soft(mask, 2.0)
    assert not soft[~mask].any()
    assert soft[mask].min() == 0.25
    assert (soft[binary_erosion(mask, iterations=7)] == 1).all()
    edge = soft[30, 20:30]
    assert (np.diff(edge) >= 0).all()
    assert 0.5 <= edge[0] < 0.8
    assert edge[-1] == 1


def test_only_pouta_softens_and_never_over_the_masks_border():
    assert [name for name, preset in PRESETS.items() if preset.seamless] == ["pouta"]
    synthesis, softer = Synthesis("pouta", texture=plain(0.0), anomalous=1.0), []
    for seed in range(150):
        made = synthesis(np.ones((3, 128, 128), np.float32), (9, seed))
        inside, change = made.mask > 0, np.abs(made.image - made.clean).max(axis=0)
        border = inside & binary_dilation(~inside)
        if (core := binary_erosion(inside, iterations=6)).sum() > 30:
            softer.append(change[border].mean() / change[core].mean())
    assert len(softer) > 20
    assert 0.25 < min(softer) < 0.75
    assert max(softer) == pytest.approx(1)  # and some edges are hard


def test_the_pages_table_has_the_ranges_of_the_code():
    page = (Path(__file__).parents[2] / "docs/synthesis.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| ")}
    for place, preset in enumerate(PRESETS.values()):
        low, high = preset.opacity
        assert rows["opacity"][place].strip().startswith(f"{low:g} to {high:g} (")
        assert rows["edge"][place].strip().startswith("soft" if preset.seamless else "hard")
        turned = rows["good picture is turned first"][place].strip()
        assert turned.startswith(f"{100 * preset.rotate_clean:g} %" if preset.rotate_clean else "never")


# ---- what is seen


@pytest.mark.parametrize("preset", ["pouta", "memseg"])
def test_a_defect_that_nobody_could_see_is_drawn_again(preset: str):
    made = painted(preset, 150)
    assert len(made) == 150
    change = [np.abs(m.image - m.clean)[:, m.mask > 0].mean() for m in made]
    assert min(change) >= SEEN - 1e-6


@pytest.mark.parametrize("preset", PRESETS)
def test_a_picture_in_which_nothing_can_be_seen_stays_clean_except_in_draem(preset: str):
    synthesis = Synthesis(preset, texture=plain(0.5), anomalous=1.0)
    synthesis._cells = lambda clean, random: clean  # type: ignore[method-assign]
    grey = np.full((3, 48, 48), 0.5, np.float32)
    labelled = sum(synthesis(grey, (8, seed)).mask.any() for seed in range(30))
    assert labelled == 0 if preset != "draem" else labelled > 20


def test_no_mask_is_empty_where_empty_noise_is_drawn_again():
    assert len(painted("pouta", 200, texture=plain(0.0))) == 200
    assert 180 < len(painted("draem", 200, texture=plain(0.0))) < 200


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
    from flawmap.images.intake import Intake
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
