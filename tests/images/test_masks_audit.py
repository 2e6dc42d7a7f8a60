"""The audit of masks: each finding on a mask made for it, edges at known offsets, agreement against slow loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter

from flawmap.errors import DataError
from flawmap.images.audit import audit
from flawmap.images.folder import find, strays
from flawmap.images.masks.audit import MaskAudit, audit_masks, worst
from flawmap.images.masks.checks import look, shapes
from flawmap.images.masks.edges import offset
from flawmap.images.masks.levels import Marks, read_mask
from flawmap.images.masks.second import agree, overall
from flawmap.types import Sample

SIDE = 64


def noise(seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 110, (side, side, 3), dtype=np.uint8)


def box(top: int, left: int, high: int, wide: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top : top + high, left : left + wide] = value
    return mask


def sample(mask: np.ndarray | Path | None, name: str = "d", kind: str = "crack") -> Sample:
    return Sample(noise(sum(map(ord, name))), name, name, "test", kind, mask)


def codes(found: MaskAudit, name: str = "d") -> list[str]:
    return [code for code, _ in found.of.get(name, [])]


def said(found: MaskAudit, code: str) -> tuple[str, ...]:
    return next(finding.names for finding in found.findings if finding.code == code)


BODY = box(20, 20, 16, 16)


def test_a_plain_mask_has_nothing_to_be_said_of_it() -> None:
    found = audit_masks([sample(BODY), sample(None, "g", "good")])
    assert (found.findings, found.spoils, found.pictures, found.masks) == ((), False, 1, 1)
    assert "nothing found" in found.text()


@pytest.mark.parametrize(
    ("mask", "code", "words"),
    [
        (BODY | box(2, 2, 3, 3) | box(50, 50, 2, 2), "mask-specks", "d: 2 specks of 4 to 9 px"),
        (np.where(box(25, 25, 3, 4) > 0, 0, BODY), "mask-holes", "d: 1 hole of 12 px"),
        (BODY | box(24, 36, 2, 9), "mask-spikes", "d: 1"),
        (BODY | box(0, 25, 21, 5), "mask-edge", "d: top"),
        (box(2, 0, 62, 64), "mask-full", "d: 97%"),
        (np.where(box(20, 20, 1, 3) > 0, 200, BODY).astype(np.uint8), "mask-values", "d: 0, 200, 255"),
    ],
)
def test_what_a_slip_of_the_hand_leaves_behind_is_told(mask: np.ndarray, code: str, words: str) -> None:
    found = audit_masks([sample(mask)])
    assert code in codes(found)
    assert said(found, code) == (words,)
    assert not found.spoils


@pytest.mark.parametrize(
    "mask",
    [
        box(20, 20, 3, 3),  # small, and all there is
        BODY | box(4, 4, 4, 3),  # 12 px beside it
        np.where(box(20, 25, 4, 4) > 0, 0, BODY),  # a bay, not a hole
        BODY | box(24, 36, 2, 7),  # too short to be a spike
        BODY | box(24, 36, 3, 9),  # too thick
        box(20, 10, 2, 40),  # a scratch is thin all along
        np.where(box(25, 25, 3, 4) > 0, 128, BODY).astype(np.uint8),  # ignored, not good
        (BODY > 0).astype(np.uint8) * 3,  # an id of a class
    ],
)
def test_what_is_no_slip_is_not_told(mask: np.ndarray) -> None:
    assert codes(audit_masks([sample(mask)])) == []


def test_specks_are_smaller_than_the_size_that_is_given() -> None:
    looked = look(sample(BODY | box(2, 2, 3, 3)), (SIDE, SIDE))
    assert [code for code, _ in shapes(looked, "d", speck_px=9)] == []
    assert [code for code, _ in shapes(looked, "d", speck_px=10)] == ["mask-specks"]


def test_the_two_audits_say_the_same_of_what_both_look_for(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("x")
    Image.fromarray(BODY[:, :40]).save(tmp_path / "small.png")
    samples = [
        sample(BODY, "fine"),
        sample(tmp_path / "bad.png", "bad"),
        sample(tmp_path / "small.png", "small"),
        sample(BODY * 0, "empty"),
        sample(box(3, 3, 5, 5), "on-good", "good"),
        sample(box(3, 3, 5, 5, 128), "ignored"),
        sample(None, "none"),
        sample(np.arange(SIDE * SIDE, dtype=np.uint32).reshape(SIDE, SIDE).astype(np.uint8), "grey"),
    ]
    plain, masks = audit(samples), audit_masks(samples)
    told = {finding.code: finding for finding in plain.findings if finding.code.startswith("mask")}
    assert told.keys() == {
        *("mask-misfit", "mask-empty", "mask-on-good", "mask-only-ignored", "mask-missing", "mask-grey"),
    }
    mine = {finding.code: finding for finding in masks.findings}
    assert {code: mine[code] for code in told} == told
    assert plain.ignored == masks.ignored == {"masks": 1, "pixels": 25}
    assert "to ignore: 25 pixels in 1 mask" in plain.text()
    assert masks.spoils
    assert worst(masks, 2)[0] in ("bad", "empty", "on-good", "small")


def test_the_keys_of_what_is_ignored_are_there_only_where_something_is() -> None:
    assert "ignored" not in audit([sample(BODY)]).to_dict()
    assert "ignored" not in audit_masks([sample(BODY)]).to_dict()


def test_the_same_mask_on_two_pictures_is_told_of_both() -> None:
    found = audit_masks([sample(BODY, "a"), sample(BODY * 1, "b"), sample(box(20, 20, 16, 15), "c")])
    assert said(found, "mask-copied") == ("a = b", "b = a")
    assert codes(audit_masks([sample(BODY * 0, "a"), sample(BODY * 0, "b")]), "a") == ["mask-empty"]


def test_a_picture_that_cannot_be_read_and_a_set_without_masks_are_told(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = audit_masks([Sample(tmp_path / "p.png", "p", "p", "test", "crack", BODY), sample(BODY)])
    assert (codes(found, "p"), found.spoils) == (["unreadable"], True)
    with pytest.raises(DataError, match="no picture has a mask"):
        audit_masks([sample(None)])


def test_a_sidecar_of_a_mask_is_no_stray(tmp_path: Path) -> None:
    for folder, pixels in (("train/good", noise()), ("test/crack", noise(1)), ("ground_truth/crack", BODY)):
        (tmp_path / folder).mkdir(parents=True)
        name = "000_mask.png" if "truth" in folder else "000.png"
        Image.fromarray(pixels).save(tmp_path / folder / name)
    (tmp_path / "ground_truth/crack/000_mask.png.json").write_text('{"ignore": 128}')
    (tmp_path / "ground_truth/crack/other.json").write_text("{}")
    assert strays(tmp_path, find(tmp_path)) == ["ground_truth/crack/other.json"]


# ---- edges


def made(kind: str, seed: int, step: float, texture: float, side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a defect of a known outline, on a texture, as a lens would blur it; and that outline's mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = {
        "disc": (y - 80) ** 2 + (x - 84) ** 2 < 40**2,
        "box": (abs(y - 84) < 26) & (abs(x - 76) < 44),
        "cut": (y + 0.3 * x < 90) & (x > 30),  # goes on beyond the picture
    }[kind]
    grey = 120 + gaussian_filter(step * mask.astype(float), 1) + texture * rng.normal(size=mask.shape)
    grey += 10 * x / side  # light falls from one side
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def wider(mask: np.ndarray, by: int) -> np.ndarray:
    if by == 0:
        return mask
    return np.asarray(distance_transform_edt(~mask)) <= by if by > 0 else np.asarray(distance_transform_edt(mask)) > -by


@pytest.mark.parametrize("kind", ["disc", "box", "cut"])
@pytest.mark.parametrize("by", [-5, -3, -1, 0, 1, 2, 4, 6])
def test_how_much_too_wide_a_mask_was_drawn_is_found(kind: str, by: int) -> None:
    for step in (-50.0, 30.0):
        image, mask = made(kind, by + 10, step, 8.0)
        found = offset(image, wider(mask, by))
        assert found.pixels == -by, (kind, step, found)
        assert found.step > 3 * found.far


def test_sixteen_bits_give_the_same_answer() -> None:
    image, mask = made("disc", 3, 40, 6.0)
    one, deep = offset(image, wider(mask, 3)), offset(image.astype(np.uint16) * 257, wider(mask, 3))
    assert (one.pixels, deep.pixels) == (-3, -3)
    assert deep.step == pytest.approx(one.step)


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_stands_out_nothing_is_told(seed: int) -> None:
    image, mask = made("disc", seed, 0.0, 12.0)
    found = offset(image, mask)
    assert (found.pixels, found.why) == (None, "no step in grey stands out")


def test_an_edge_beyond_the_range_and_masks_that_are_too_small_are_not_guessed() -> None:
    image, mask = made("box", 1, 50, 4.0)
    assert "px away or more" in offset(image, wider(mask, 9)).why
    dot = np.zeros_like(mask)
    dot[80, 80] = True
    assert offset(image, dot).pixels is None
    assert offset(image, np.ones_like(mask)).why == offset(image, ~np.ones_like(mask)).why == "the mask has no outline"


def test_what_is_ignored_is_not_looked_at() -> None:
    image, mask = made("box", 2, 40, 4.0)
    blot = np.zeros_like(mask)
    blot[50:120, 121:130] = True  # a bright bar beside the defect, wider apart than its own edge
    image[blot] = 255
    assert offset(image, wider(mask, 2)).pixels != -2
    assert offset(image, wider(mask, 2), np.asarray(distance_transform_edt(~blot)) <= 3).pixels == -2


def test_an_outline_off_the_edge_is_a_finding_from_two_pixels_on() -> None:
    image, mask = made("disc", 5, 50, 6.0)
    samples = [
        Sample(image, f"{by:+d}", f"{by:+d}", "test", "crack", (wider(mask, by) * np.uint8(255)))
        for by in (-3, -1, 0, 2)
    ]
    found = audit_masks(samples)
    assert {name: each.pixels for name, each in found.offsets.items()} == {"-3": 3, "-1": 1, "+0": 0, "+2": -2}
    assert said(found, "mask-wide") == ("+2: the edge lies 2 px inside",)
    assert said(found, "mask-narrow") == ("-3: the edge lies 3 px outside",)
    assert found.to_dict()["edges"]["median_px"] == 0.5
    assert "told of 4 of 4, median +0.5 px" in found.text()


# ---- two people


def slow_agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    def outline(mask: np.ndarray) -> list[tuple[int, int]]:
        found = []
        for y, x in np.argwhere(mask).tolist():
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]]
            if not all(mask[v, u] for v, u in inside):
                found.append((y, x))
        return found

    one, other = outline(a), outline(b)
    there = [min(np.hypot(y - v, x - u) for v, u in other) for y, x in one]
    back = [min(np.hypot(y - v, x - u) for v, u in one) for y, x in other]
    farthest = max(np.percentile(there, 95), np.percentile(back, 95))
    return (a & b).sum() / (a | b).sum(), float(np.mean(there + back)), float(farthest)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_agreement_is_that_of_slow_loops_whoever_is_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, 20, 24), bool)
    for mask in masks:
        for _ in range(2):
            top, left = rng.integers(0, 16, 2)
            mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = True
    found = agree("a", Marks(masks[0], None), Marks(masks[1], None))
    assert (found.iou, found.mean_px, found.hausdorff95_px) == pytest.approx(slow_agreement(*masks))
    back = agree("a", Marks(masks[1], None), Marks(masks[0], None))
    assert (back.iou, back.area_px) == (found.iou, found.area_px[::-1])
    assert (back.mean_px, back.hausdorff95_px) == pytest.approx((found.mean_px, found.hausdorff95_px))


def test_a_square_moved_by_three_pixels_has_the_figures_of_hand() -> None:
    one, other = (box(20, left, 16, 16) > 0 for left in (20, 23))
    found = agree("a", Marks(one, None), Marks(other, None))
    assert found.iou == pytest.approx(13 / 19)
    assert found.hausdorff95_px == 3.0
    assert found.area_px == (256, 256)
    assert agree("a", Marks(one, None), Marks(one, None)).mean_px == 0.0


def test_what_one_of_them_ignores_counts_nowhere() -> None:
    one, other, band = BODY > 0, box(20, 20, 16, 20) > 0, box(18, 36, 20, 6) > 0
    assert agree("a", Marks(one, None), Marks(other & ~band, band)).iou == 1.0
    assert agree("a", Marks(one, band), Marks(other, None)).iou == 1.0


def test_masks_without_a_defect_or_an_outline_have_no_distance() -> None:
    none, full = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
    assert agree("a", Marks(none, None), Marks(none, None)).iou is None
    assert agree("a", Marks(none, None), Marks(BODY > 0, None)).iou == 0.0
    found = agree("a", Marks(full, None), Marks(BODY > 0, None))
    assert (found.iou, found.mean_px) == (256 / SIDE**2, None)
    assert overall([found])["mean_px"] is None


def test_a_second_folder_is_held_against_the_data(tmp_path: Path) -> None:
    second = tmp_path / "ground_truth/crack"
    second.mkdir(parents=True)
    for name, mask in (("0", box(20, 23, 16, 16)), ("1", box(44, 44, 16, 16)), ("3", BODY), ("9", BODY)):
        Image.fromarray(mask).save(second / f"{name}_mask.png")
    (second / "4.png").write_text("x")
    samples = [sample(BODY if n != 3 else None, f"test/crack/{n}.png") for n in range(5)]
    for folder in (tmp_path, tmp_path / "ground_truth"):
        found = audit_masks(samples, folder)
        assert [each.iou for each in found.agreements] == [pytest.approx(13 / 19), 0.0]
        assert said(found, "annotators-apart") == ("test/crack/1.png: 0.00",)
        assert said(found, "second-only") == ("test/crack/3.png",)
        assert said(found, "second-missing") == ("test/crack/2.png",)
        assert said(found, "mask-misfit")[0].endswith("(second)")
        told = found.to_dict()["second"]
        assert (told["pictures"], told["iou_worst"], told["hausdorff95_px_worst"]) == (
            2,
            0.0,
            pytest.approx(33.9, abs=5),
        )
    assert read_mask(second / "3_mask.png", (SIDE, SIDE)).ignored is None
    for wrong, why in (
        (tmp_path / "none", "must be a folder"),
        (tmp_path / "ground_truth/crack", "no mask in it is of"),
    ):
        with pytest.raises(DataError, match=why):
            audit_masks(samples, wrong)
