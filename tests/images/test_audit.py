from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.images.audit import NEAR, Audit, _close_pairs, audit
from flawmap.images.folder import find, strays
from flawmap.types import Sample


def texture(seed: int, size: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def sample(pixels: np.ndarray | Path, name: str, split: str = "train", kind: str = "good", **known) -> Sample:
    return Sample(pixels, name, known.pop("part", name), split, kind, **known)  # type: ignore[arg-type]


def codes(found: Audit) -> dict[str, str]:
    return {finding.code: finding.severity for finding in found.findings}


def good(count: int) -> list[Sample]:
    return [sample(texture(seed), f"{seed}.png") for seed in range(count)]


def test_a_clean_set_has_no_findings_and_is_counted():
    samples = [*good(4), sample(texture(9), "t", "test"), sample(texture(8), "d", "test", "crack", part="t2")]
    found = audit(samples)
    assert found.findings == ()
    assert not found.spoils
    assert [(g.split, g.kind, g.pictures, g.parts, g.masks) for g in found.groups] == [
        ("train", "good", 4, 4, 0),
        ("test", "good", 1, 1, 0),
        ("test", "crack", 1, 1, 0),
    ]
    assert (found.sizes, found.modes) == ({"48 x 48": 6}, {"L 8-bit": 6})
    assert "nothing found" in found.text()


def test_the_same_pixels_in_train_and_test_spoil_a_result_whatever_the_file(tmp_path):
    Image.fromarray(texture(0)).save(tmp_path / "a.bmp")
    Image.fromarray(texture(0)).save(tmp_path / "b.png")
    found = audit([*good(3)[1:], sample(tmp_path / "a.bmp", "a"), sample(tmp_path / "b.png", "b", "test")])
    assert codes(found) == {"duplicate-across-splits": "error"}
    assert found.findings[0].names == ("a = b",)
    assert found.spoils


def test_the_same_pixels_in_one_split_are_a_warning_unless_the_kinds_differ():
    found = audit([*good(3), sample(texture(0), "again")])
    assert codes(found) == {"duplicate": "warning"}
    assert not found.spoils
    found = audit([*good(3), sample(texture(7), "x", "test"), sample(texture(7), "y", "test", "crack")])
    assert codes(found) == {"duplicate-across-kinds": "error"}


def jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def test_a_picture_saved_again_is_a_near_duplicate():
    changed = {
        "jpeg": jpeg(texture(0)),
        "brighter": np.clip(texture(0) * 0.9 + 20, 0, 255).astype(np.uint8),
        "smaller": np.asarray(Image.fromarray(texture(0)).resize((36, 36), Image.Resampling.BILINEAR)),
    }
    for name, pixels in changed.items():
        found = audit([*good(8), sample(pixels, name, "test")])
        assert codes(found)["near-duplicate-across-splits"] == "warning"
        assert found.findings[0].names == (f"{name} ~ 0.png",)
        assert codes(audit([*good(8), sample(pixels, name)]))["near-duplicate"] == "warning"
        assert "near-duplicate" not in codes(audit([*good(8), sample(pixels, name, part="0.png")]))


def test_parts_under_a_fixed_camera_are_not_near_duplicates():
    stage = texture(100).astype(float)
    parts = [np.clip(stage + 0.1 * (texture(seed) - 128.0), 0, 255).astype(np.uint8) for seed in range(30)]
    flat = np.array(parts).reshape(30, -1)
    assert np.corrcoef(flat)[np.triu_indices(30, 1)].min() > 0.97
    samples = [sample(pixels, f"{index:02d}") for index, pixels in enumerate(parts)]
    assert codes(audit(samples)) == {}
    assert codes(audit([*samples, sample(np.minimum(parts[3], 253) + 2, "again")])) == {"near-duplicate": "warning"}


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_the_correlation_leaves_both_pictures_out_of_the_mean(count):
    rng = np.random.default_rng(count)
    thumbs = rng.normal(100, 30, (count, 64)).astype(np.float32)
    thumbs[1] = thumbs[0] + rng.normal(0, 3, 64)
    if count > 10:
        thumbs[11] = 2 * thumbs[5] + 7
    unit = thumbs - thumbs.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = []
    for i in range(count):
        for j in range(i + 1, count):
            others = [k for k in range(count) if k not in (i, j)]
            mean = unit[others].mean(axis=0) if others else 0
            a, b = unit[i] - mean, unit[j] - mean
            if a @ b / np.linalg.norm(a) / np.linalg.norm(b) > NEAR:
                expected.append((i, j))
    assert (0, 1) in expected
    for rows in (1024, 3):
        assert sorted(_close_pairs(thumbs, rows)) == expected


def test_many_near_duplicates_make_one_short_finding():
    frames = [np.clip(texture(0) + float(shift), 0, 255).astype(np.uint8) for shift in range(60)]
    samples = [sample(pixels, f"{index:02d}") for index, pixels in enumerate(frames)]
    found = audit([*samples, *good(8)[1:]])
    near = next(finding for finding in found.findings if finding.code == "near-duplicate")
    assert len(near.names) == 60
    assert len(found.text().splitlines()) < 20
    assert "and 57 more" in found.text()


def test_masks_that_do_not_fit_are_errors(tmp_path):
    square = np.zeros((48, 48), np.uint8)
    square[:9, :9] = 255
    (tmp_path / "bad.png").write_text("x")
    Image.fromarray(square[:, :40]).save(tmp_path / "small.png")
    defect = sample(texture(9), "d", "test", "crack")
    for mask, code, name in [
        (tmp_path / "bad.png", "mask-misfit", "bad.png: not a PNG"),
        (tmp_path / "small.png", "mask-misfit", "small.png: the mask is 40 x 48 pixels, d is 48 x 48"),
        (square * 0, "mask-empty", "d"),
    ]:
        found = audit([*good(4), replace(defect, mask=mask)])
        assert codes(found) == {code: "error"}
        assert name in found.findings[0].names[0]
    assert codes(audit([*good(4), replace(defect, mask=square)])) == {}
    assert codes(audit([*good(4), replace(defect, mask=jpeg(texture(3)))])) == {"mask-grey": "warning"}


def test_a_mask_with_a_defect_on_a_good_picture_is_an_error_and_an_empty_one_is_not():
    mask = np.zeros((48, 48), np.uint8)
    assert codes(audit([*good(4), sample(texture(9), "g", "test", mask=mask)])) == {}
    mask[5, 5] = 255
    found = audit([*good(4), sample(texture(9), "g", "test", mask=mask)])
    assert codes(found) == {"mask-on-good": "error"}


def test_a_defect_without_a_mask_among_masked_ones_is_a_warning():
    mask = np.eye(48, dtype=np.uint8)
    masked = sample(texture(8), "m", "test", "crack", mask=mask)
    found = audit([*good(4), masked, sample(texture(9), "d", "test", "crack")])
    assert codes(found) == {"mask-missing": "warning"}
    assert found.findings[0].names == ("d",)


def test_a_part_in_train_and_test_is_an_error():
    found = audit([*good(4), sample(texture(9), "t", "test", part="2.png")])
    assert codes(found) == {"part-across-splits": "error"}
    assert found.findings[0].names == ("2.png",)


def test_unreadable_blank_and_stray_files_are_told(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for seed in range(4):
        Image.fromarray(texture(seed)).save(tmp_path / f"{seed}.png")
    Image.fromarray(np.full((48, 48), 7, np.uint8)).save(tmp_path / "blank.png")
    (tmp_path / "notes.txt").touch()
    samples = find(tmp_path)
    found = audit(samples, strays(tmp_path, samples))
    assert codes(found) == {"unreadable": "error", "blank": "warning", "strays": "warning"}
    named = {finding.code: finding.names for finding in found.findings}
    assert named["unreadable"][0].startswith("cut.png: ")
    assert (named["blank"], named["strays"]) == (("blank.png",), ("notes.txt",))


def test_mixed_depths_are_an_error_and_mixed_sizes_and_modes_warnings():
    deep = texture(7).astype(np.uint16) * 257
    assert codes(audit([*good(4), sample(deep, "deep")])) == {"mixed-depth": "error"}
    assert codes(audit([*good(4), sample(texture(7, 40), "small")])) == {"mixed-sizes": "warning"}
    assert codes(audit([*good(4), sample(np.dstack([texture(7)] * 3), "rgb")])) == {"mixed-modes": "warning"}


def test_errors_come_first_and_the_dictionary_is_json():
    found = audit([*good(4), sample(texture(7, 40), "small"), sample(texture(9), "t", "test", part="2.png")])
    assert [finding.severity for finding in found.findings] == ["error", "warning"]
    loaded = json.loads(json.dumps(found.to_dict()))
    assert loaded["spoils"] is True
    assert loaded["groups"][0] == {"split": "train", "kind": "good", "pictures": 5, "parts": 5, "masks": 0}
    assert loaded["findings"][0]["code"] == "part-across-splits"
    text = found.text()
    assert "error    part-across-splits: 1 part in train and in test" in text
    assert "48 x 48 (5), 40 x 40 (1)" in text


def test_no_pictures_and_one_picture_are_audited():
    assert audit([]).groups == ()
    assert audit(good(1)).findings == ()


def test_two_thousand_thumbnails_are_compared_in_seconds():
    thumbs = np.random.default_rng(0).normal(size=(2000, 1024)).astype(np.float32)
    thumbs[1999] = thumbs[3] + 0.01
    start = time.perf_counter()
    assert list(_close_pairs(thumbs)) == [(3, 1999)]
    assert time.perf_counter() - start < 5


@pytest.mark.data
@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("mvtec/bottle", set()),
        ("aitex/fabric_02", set()),
        ("dagm/class8", set()),
        ("elpv/mono", {"near-duplicate", "near-duplicate-across-splits"}),
        ("kaggle_pill/round_pill", {"near-duplicate", "near-duplicate-across-splits"}),
    ],
)
def test_real_categories_have_no_errors_and_slow_sequences_are_seen(real, category, expected):
    found = audit(find(real(category)))
    assert not found.spoils
    assert set(codes(found)) == expected
